"""flashbax's replay buffers."""

from __future__ import annotations

from benchmarks.peers.replay.store import TOLERATED, Store
from benchmarks.peers.replay.transitions import named, transition


class Flashbax(Store):
    """flashbax: item buffer, jitted, donated state; its prioritised buffer keeps one observation and pairs neighbouring
    items.
    """

    modules = ("flashbax", "jax")
    one_thread = True
    package = "flashbax"
    orders = ("uniform", "prioritized")
    tolerated = TOLERATED

    def __init__(self, work, order, capacity):
        super().__init__(work, order, capacity)
        import flashbax
        import jax

        make = flashbax.make_prioritised_flat_buffer if order == "prioritized" else flashbax.make_item_buffer
        sizes = {"max_length": capacity, "min_length": 2}
        self.make = lambda rows, many: make(**sizes, sample_batch_size=rows, add_sequences=many)
        self.state = self.make(2, False).init(jax.device_put(self.item(transition(work.steps, 0))))
        self.add_one = jax.jit(self.make(2, False).add, donate_argnums=0)
        self.add_many = jax.jit(self.make(2, True).add, donate_argnums=0)
        if order == "prioritized":
            self.set_priorities = jax.jit(self.make(2, False).set_priorities, donate_argnums=0)
        self.keys = jax.random.key(0)

    def item(self, step):
        if self.order != "prioritized":
            return step
        return {key: value for key, value in step.items() if key != "next_observations"}

    block = item

    def append(self, items):
        import jax

        for item in items:
            self.state = self.add_one(self.state, item)
        jax.block_until_ready(self.state)

    def extend(self, block):
        import jax

        self.state = jax.block_until_ready(self.add_many(self.state, block))

    def fresh(self, rows):
        import jax

        sample = jax.jit(self.make(rows, False).sample)
        split = jax.jit(jax.random.split)

        def draw():
            self.keys, key = split(self.keys)
            return jax.block_until_ready(sample(self.state, key))

        return draw

    def prioritise(self, batch, priorities):
        import jax

        self.state = jax.block_until_ready(self.set_priorities(self.state, batch.indices, priorities))

    def parts(self, batch):
        if self.order == "prioritized":
            steps = batch.experience.first
            nexts = named(batch.experience.second["observations"])
        else:
            steps = batch.experience
            nexts = named(steps["next_observations"])
        seen = named(steps["observations"])
        flags = {name: steps[name] for name in ("terminated", "truncated")}
        return self.parts_of(seen, nexts, steps["actions"], steps["rewards"], **flags)
