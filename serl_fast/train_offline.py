"""Learn from recorded data alone: behaviour cloning, offline reinforcement learning, or plain SAC.

python -m serl_fast.train_offline --demo_paths demos.pkl --algorithm iql --env serl_robots/PickCube-v0
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from serl_fast import runs
from serl_fast.agents.build import ALGORITHMS, build_agent
from serl_fast.cli import import_callable, main, parse
from serl_fast.core import Agent
from serl_fast.data.demonstrations import fill_with_demonstrations
from serl_fast.data.episodes import Dataset, ReadOptions, columns_of
from serl_fast.data.fill import count_steps
from serl_fast.data.formats import open_dataset
from serl_fast.data.offline import Selection, Summary, best_episodes, pieces_of, prepared
from serl_fast.engine import PolicyPublisher, PolicyRunner
from serl_fast.envs import SETUP_MODES, action_range, make_env
from serl_fast.evaluation import Evaluations
from serl_fast.figures import plot_q_values
from serl_fast.loop import Learner, run_alone
from serl_fast.offline_diagnostics import Diagnostics
from serl_fast.replay import ReplayStore, Schema
from serl_fast.run_setup import close_quietly, example_transition, new_directory, spaces_of, with_next_actions
from serl_fast.schedule import crossed
from serl_fast.train_offline_config import TrainOfflineConfig


class Run(runs.Run):
    """One training run without an actor, built from the flags."""

    config: TrainOfflineConfig

    def __init__(self, config: TrainOfflineConfig) -> None:
        super().__init__(config)
        # One stream each for the weights, the learner's noise, the store, and the rows that are looked at.
        seeds = np.random.SeedSequence(config.seed).generate_state(4).tolist()
        torch.manual_seed(seeds[0])
        self.directory, checkpoint = self.place(new_directory(f"offline_{config.algorithm}", config.seed))
        env = self._environment()
        self.summary = Summary()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.data = self._store(env, seeds[2])
        if env is not None and not (config.eval_interval or config.final_eval_episodes):
            close_quietly(env)  # it has said what it observes and takes
            env = None
        self.agent = self.take_weights(self._agent(), checkpoint)
        if checkpoint is not None:
            self._require_same_data(checkpoint)
        else:
            self.normalize(self.data)
        reader = self.make_reader([self.data], config.batch_size, config.gamma, config.block)
        self.build_engine(seeds[1], reader.source)
        self.open_logger()
        self.learner = Learner(
            self.engine,
            None,
            self.data,
            PolicyPublisher(),
            self.counters,
            config.loop(),
            self.report,
            self.save,
            self.tick,
            reader,
        )
        self.runner = PolicyRunner(self.agent, device=self.device)
        self.evaluations = Evaluations(
            env,
            lambda observation: self.runner.act(observation, deterministic=True),
            self.counters,
            config.loop(),
            self.report,
            self.stop,
        )
        self.diagnostics = Diagnostics(self.agent, self.data, self.summary, self.device, seeds[3])
        if checkpoint is not None:
            self.restore(checkpoint)
            self.evaluations.load_state_dict(checkpoint)
            self.data.draws = checkpoint["draws"]
        self.write_config(data=self.summary.plain(), discount=config.gamma, cta_ratio=config.block)
        self._warn()

    def loop(self) -> None:
        """Learn, and now and then look at the critics' values and evaluate."""
        self._seen = self._measured_at = self.counters.updates
        run_alone(self.learner, self.stop, self._between)
        if self._measured_at != self.counters.updates:
            self._measure()

    def close(self) -> None:
        """Give back what only learning needs."""
        super().close()
        if self._folder is not None:
            self._folder.cleanup()

    def draw(self) -> None:
        """Draw success, and the critics' values."""
        super().draw()
        plot_q_values(self.directory / "metrics.csv", self.directory / "q_values.png")

    def tick(self) -> None:
        """Show where the run stands."""
        counters = self.counters
        self.logger.progress(
            updates=counters.updates, max_updates=self.config.max_steps, success_rate=counters.success_rate
        )

    def progress_state(self) -> dict[str, Any]:
        """Which evaluation is next, and the place in the store's stream of random numbers."""
        return {**self.evaluations.state_dict(), "draws": self.data.draws}

    def policy_content(self) -> dict[str, Any]:
        """What acting needs, and what the data went through."""
        return {**super().policy_content(), "offline": self._prepared()}

    def _prepared(self) -> dict[str, Any]:
        """What the data went through, and what the values are of."""
        config = self.config
        names = ("drop_idle", "filter_key", "top_return", "reward_scale", "reward_bias", "normalize_state")
        flags = {name: getattr(config, name) for name in names}
        return {**flags, "discount": config.gamma, "cta_ratio": config.block, "transitions": self.summary.transitions}

    def _require_same_data(self, checkpoint: dict[str, Any]) -> None:
        saved, mine = checkpoint.get("offline", {}), self._prepared()
        differing = [
            f"{name} {value}, not {mine.get(name)}" for name, value in saved.items() if value != mine.get(name)
        ]
        if differing:
            raise ValueError(
                f"the run to resume has {'; '.join(differing)}: resume it with its own flags and data, or begin another"
            )

    def _between(self) -> None:
        """After every call of the engine: what is due every ``eval_interval`` gradient steps."""
        before, self._seen = self._seen, self.counters.updates
        if crossed(self.config.eval_interval, before, self._seen):
            self._measure()
        if self.evaluations.due and not self.learner.finished():  # the final one stands for one that is due at the end
            self.runner.load(self.learner.publish())
            self.evaluations.run_if_due()

    def _measure(self) -> None:
        self._measured_at = self.counters.updates
        self.report(self.diagnostics.measure(self.counters.updates))
        if warning := self.diagnostics.warning():
            print(warning, flush=True)

    def _environment(self) -> gymnasium.Env[Any, Any] | None:
        config = self.config
        if config.env is None:
            return None
        mode = SETUP_MODES[config.setup_mode] if config.setup_mode else None
        size = config.image_size
        return make_env(config.env, config.image_keys, mode, render_mode="rgb_array", image_size=size, rescale=True)

    def _store(self, env: gymnasium.Env[Any, Any] | None, seed: int) -> ReplayStore:
        """The data as a replay store."""
        config = self.config
        options = ReadOptions(image_keys=config.image_keys, filter_key=config.filter_key)
        datasets = [open_dataset(path, options) for path in config.demo_paths]
        kept = best_episodes(datasets, config.top_return)
        selection = Selection(
            config.gamma, config.reward_scale, config.reward_bias, config.drop_idle, action_range(env) if env else None
        )
        if env is not None:
            example = example_transition(spaces_of(env), selection.columns)
        else:
            example = first_transition(datasets[0], selection)
        mode = SETUP_MODES[config.setup_mode] if config.setup_mode else None
        store = self._empty_store(example, sum(map(count_steps, datasets)), seed)
        fill_with_demonstrations(
            config.demo_paths,
            store,
            config.image_keys,
            mode.action_dim if mode else None,
            filter_key=config.filter_key,
            prepare=lambda dataset: prepared(dataset, selection, kept[dataset.path] if kept else None, self.summary),
        )
        print(self.summary.describe())
        return store

    def _empty_store(self, example: dict[str, Any], capacity: int, seed: int) -> ReplayStore:
        parent = self.config.data_on_disk
        if parent is None:
            return ReplayStore.from_example(example, capacity, seed=seed)
        parent.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="train_offline_", dir=parent)
        path = Path(self._folder.name) / "store"
        print(f"the data are on disk, in {path}, until the end")
        return ReplayStore.open(path, Schema.from_example(example), capacity, seed=seed)

    def _agent(self) -> Agent:
        config = self.config
        row = self.data.batch_at([0])
        shapes: dict[str, tuple[int, ...]] = {key: value.shape[1:] for key, value in row["observations"].items()}
        state_dim, action_dim = shapes.get("state", (0,))[0], row["actions"].shape[1]
        if config.algorithm not in ALGORITHMS:
            builder = import_callable(config.algorithm, "algorithm")
            return with_next_actions(builder(state_dim, action_dim, config.image_keys))
        cautious = config.algorithm == "td3bc" and not self.summary.failures
        settings = config.agent([shapes[key][:2] for key in config.image_keys], {"alpha": 0.25} if cautious else {})
        if cautious:
            print(
                f"alpha {settings.alpha:g}: every episode ends terminated, as demonstrations do (the paper's 2.5 is "
                "for mixed data: --algorithm_options alpha=2.5)"
            )
        grippers = SETUP_MODES[config.setup_mode].grippers if config.setup_mode else 0
        if config.algorithm == "sac":
            return with_next_actions(build_agent(state_dim, action_dim, grippers, config.image_keys, settings))
        build = ALGORITHMS[config.algorithm].build
        return with_next_actions(build(state_dim, action_dim, config.image_keys, settings))

    def _warn(self) -> None:
        if self.config.algorithm != "sac" or self.agent.settings["config"]["bc_weight"]:
            return
        found = (
            f"the data seem to hold no failures ({self.summary.episodes} episodes, all end terminated)"
            if not self.summary.failures
            else "the data can not contradict it where they have no such actions"
        )
        print(
            f"warning: algorithm sac has no regulariser and {found}: it learns too high values for actions that are "
            "not in the data, and its policy goes there; q_values.png shows it. Use --algorithm iql, td3bc, rebrac, "
            "calql or bc, or give sac --algorithm_options bc_weight=1",
            flush=True,
        )


def first_transition(dataset: Dataset, selection: Selection) -> dict[str, Any]:
    """What a step of the data is like."""
    (first, *_) = pieces_of(next(iter(dataset)), selection)

    def row(tree: dict[str, Any]) -> dict[str, Any]:
        return {key: row(value) if isinstance(value, dict) else value[0] for key, value in tree.items()}

    return row(columns_of(first, ("grasp_penalty", *selection.columns)))


def run(argv: list[str] | None = None) -> int:
    """Parse, train, finish; the exit status."""
    config = parse(TrainOfflineConfig, argv, description=__doc__ or "")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("train_offline learns in one process; start it without torchrun")
    training = Run(config)
    with training.interruptible():
        training.train()
        training.finish()
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
