"""This project's store."""

from __future__ import annotations

from benchmarks.peers.replay.store import ALPHA, BETA, Store
from benchmarks.peers.replay.transitions import DISCOUNT, N_STEP, named, transition


class SerlFast(Store):
    """serl_fast: ReplayStore with its defaults, appended to with a dictionary or by its positional call; batches hold
    masks and discounts too.
    """

    modules = ("serl_fast",)
    package = "serl-fast"
    orders = ("uniform", "n_step", "prioritized")

    def __init__(self, work, order, capacity):
        from serl_fast.replay import ReplayStore

        super().__init__(work, order, capacity)
        self.store = ReplayStore.from_example(transition(work.steps, 0), capacity, seed=0)
        options = {"n_step": {"n_step": N_STEP}, "prioritized": {"order": "prioritized", "beta": BETA}}
        if order == "prioritized":
            self.store.prioritize(alpha=ALPHA)
        self.sampler = self.store.sampler(discount=DISCOUNT, **options.get(order, {}))

    def append(self, items):
        append = self.store.append
        for item in items:
            append(item)

    def fast_item(self, step):
        flat = {f"observations/{key}" if key else "observations": value for key, value in self._flat(step, "")}
        flat |= {f"next_observations/{key}" if key else "next_observations": v for key, v in self._flat(step, "next_")}
        flat |= {key: value for key, value in step.items() if not key.endswith("observations")}
        return tuple(flat[field.name] for field in self.store.schema.inputs)

    @staticmethod
    def _flat(step, prefix):
        observations = step[f"{prefix}observations"]
        return observations.items() if isinstance(observations, dict) else [("", observations)]

    def append_fast(self, items):
        append = self.store.appender()
        for item in items:
            append(*item)

    def extend(self, block):
        self.store.extend(block)

    def fresh(self, rows):
        return lambda: self.sampler.sample(rows)

    def into(self, rows):
        batch = self.sampler.empty_batch(rows)

        def draw():
            self.sampler.sample_into(batch)
            return batch

        return draw

    def prioritise(self, batch, priorities):
        self.store.update_priorities(batch["ids"], priorities)

    def parts(self, batch):
        seen, nexts = named(batch["observations"]), named(batch["next_observations"])
        rest = {"terminated": "terminated", "truncated": "truncated", "mask": "masks", "discount": "discounts"}
        rest = {name: batch[key] for name, key in rest.items()}
        return self.parts_of(seen, nexts, batch["actions"], batch["rewards"], **rest)


def one_thread() -> None:
    """Keep our store from splitting its copies, where it does."""
    from serl_fast.replay import _native

    _native.set_threads(1)
