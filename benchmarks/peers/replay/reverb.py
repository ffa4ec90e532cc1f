"""Reverb's table."""

from __future__ import annotations

from benchmarks.peers.replay.store import ALPHA, Store, leading_axis
from benchmarks.peers.replay.transitions import named, transition


class Reverb(Store):
    """Reverb: server and client in one process, batches fetched ahead; 10 000 transitions at most, because it takes
    a few thousand a second.
    """

    modules = ("reverb", "tensorflow")
    package = "dm-reverb"
    orders = ("uniform", "prioritized")
    fill_limit = 10_000

    def __init__(self, work, order, capacity):
        super().__init__(work, order, min(capacity, self.fill_limit))
        import reverb
        import tensorflow as tf

        chosen = reverb.selectors.Prioritized(ALPHA) if order == "prioritized" else reverb.selectors.Uniform()
        signature = {
            key: tf.TensorSpec(value.shape, tf.as_dtype(value.dtype))
            for key, value in self.item(transition(work.steps, 0)).items()
        }
        table = reverb.Table(
            "steps", chosen, reverb.selectors.Fifo(), self.capacity, reverb.rate_limiters.MinSize(1),
            signature=signature,
        )  # fmt: skip
        self.server = reverb.Server([table], port=None)
        self.client = self.server.localhost_client()

    def item(self, step):
        seen = named(step["observations"]) | {f"next_{k}": v for k, v in named(step["next_observations"]).items()}
        rest = {key: value for key, value in step.items() if not key.endswith("observations")}
        return {key: leading_axis(value)[0] for key, value in (seen | rest).items()}

    def append(self, items):
        insert, priority = self.client.insert, {"steps": 1.0}
        for item in items:
            insert(item, priority)

    def fresh(self, rows):
        import reverb

        data = reverb.TimestepDataset.from_table_signature(self.client.server_address, "steps", 2 * rows)
        batches = data.batch(rows).as_numpy_iterator()
        return lambda: next(batches)

    def prioritise(self, batch, priorities):
        keys = batch.info.key.tolist()
        self.client.mutate_priorities("steps", updates=dict(zip(keys, priorities.tolist(), strict=True)))

    def parts(self, batch):
        steps = batch.data
        nexts = {key.removeprefix("next_"): value for key, value in steps.items() if key.startswith("next_")}
        flags = {name: steps[name] for name in ("terminated", "truncated")}
        return self.parts_of(steps, nexts, steps["actions"], steps["rewards"], **flags)
