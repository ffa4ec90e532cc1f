"""Hybrid training: half demonstrations, half online data, with a human or scripted operator correcting the policy.

python -m serl_fast.train_hybrid --env serl_robots/PickCube-v0 --demo_paths demos.pkl --operator scripted
"""

from __future__ import annotations

import dataclasses
import functools
import signal
import sys
from typing import Any

import gymnasium
import numpy as np
import torch

from serl_fast import runs
from serl_fast.agents.build import ALGORITHMS, build_agent
from serl_fast.agents.cached_features import encode_images, frozen_encoder, with_cached_features
from serl_fast.checkpoint import (
    newest_stores,
)
from serl_fast.cli import import_callable, main, parse
from serl_fast.core import Agent
from serl_fast.data.demonstrations import fill_with_demonstrations
from serl_fast.data.feature_cache import CropEncoder, FeatureCache, describe
from serl_fast.data.fill import NoRoomError
from serl_fast.data.offline import FOLLOWING, MC_RETURNS, FilledLater, Selection, prepared
from serl_fast.data.readers import Reader
from serl_fast.engine import (
    PolicyPublisher,
    PolicyRunner,
)
from serl_fast.engine.ranks import Alone, Ranks, join
from serl_fast.envs import SETUP_MODES, load_operator, make_env
from serl_fast.follow import SharedLearner
from serl_fast.initial import Initial
from serl_fast.logging import progress
from serl_fast.loop import Actor, Appends, Learner, run_synchronous, run_threaded
from serl_fast.replay import ReplayStore
from serl_fast.run_setup import (
    EMPTY_STATE,
    ROOM_FOR_INTERVENTIONS,
    Spaces,
    close_quietly,
    example_transition,
    new_directory,
    spaces_of,
    with_next_actions,
)
from serl_fast.train_hybrid_config import PRESETS, TrainHybridConfig


class Run(runs.Run):
    """One training run, built from the flags."""

    config: TrainHybridConfig

    def __init__(self, config: TrainHybridConfig, ranks: Ranks | Alone | None = None) -> None:
        super().__init__(config, ranks)
        # One stream each for the weights, the learner's noise, the actor's noise, the two stores, and cached crops.
        seeds = np.random.SeedSequence(config.seed).generate_state(6).tolist()
        torch.manual_seed(seeds[0])
        self.store_seeds = seeds[3:5]
        leads = self.ranks.rank == 0
        self.env: gymnasium.Env[Any, Any] | None = None
        self.eval_env: gymnasium.Env[Any, Any] | None = None
        if leads:
            self.env, self.eval_env = self._environments()
        self.spaces: Spaces = self.ranks.broadcast(spaces_of(self.env) if self.env else None)
        place = self.place(new_directory(config.env, config.seed)) if leads else None
        self.directory, checkpoint = self.ranks.broadcast(place)
        self.initial = Initial.read(config.init, config.discount) if config.init else None
        self.agent = self._agent(checkpoint)
        self.selection = self._selection()
        if self.selection and FOLLOWING in self.selection.columns:
            self.agent = with_next_actions(self.agent)
        self.demonstrations, self.online = self._stores(checkpoint)
        if not leads:
            self.demonstrations.seed, self.online.seed = self.ranks.seeds(config.seed, 2)
        if checkpoint is None and self.initial is None:
            self.normalize(self.demonstrations)
        self.caches = self._feature_caches(seeds[5])
        reader = self._reader()
        self.build_engine(seeds[1], reader.source)
        self.learner = self._learner(reader)
        if checkpoint is not None:
            self.restore(checkpoint)
        elif self.initial is not None:
            self.initial.load_adam(self.engine)
        self._fill_caches()  # by the trunk of the checkpoint
        if leads:
            self._lead(seeds[2], checkpoint)
        self.ranks.synchronize(self.engine)

    def _lead(self, seed: int, checkpoint: dict[str, Any] | None) -> None:
        """What only rank 0 has: the log, the actor and its policy."""
        assert self.env is not None
        self.open_logger()
        self.write_config()
        execution, strict = self.engine.execution, self.config.strict_execution
        runner = PolicyRunner(self.agent, seed=seed, device=self.device, execution=execution, strict=strict)
        if execution != "eager":
            runner.warm_up(example_transition(self.spaces)["observations"])
        online, demonstrations = self._filled()
        if isinstance(self.learner, SharedLearner):
            online, demonstrations = self.learner.forwarded()
        self.actor = Actor(
            self.env,
            self.eval_env,
            runner,
            self.learner.publisher,
            online,
            demonstrations,
            self.counters,
            self.learner.config,
            self.report,
            self.stop,
        )
        self.evaluations = self.actor.evaluations
        if checkpoint is not None:
            self.actor.load_state_dict(checkpoint["actor"])

    def _learner(self, reader: Reader) -> Learner:
        leads, loop = self.ranks.rank == 0, self.config.loop()
        arguments: dict[str, Any] = {
            "config": dataclasses.replace(loop, batch_size=self.ranks.share(loop.batch_size)),
            "report": self.report if leads else lambda metrics: None,
            "tick": self.tick if leads else lambda: None,
            "reader": reader,
        }
        given = (self.engine, *self._drawn_from(), PolicyPublisher(), self.counters)
        if isinstance(self.ranks, Alone):
            return Learner(*given, save=self.save, **arguments)
        return SharedLearner(self.ranks, self._filled(), *given, save=self.save, **arguments)

    def loop(self) -> None:
        """Run actor and learner to the end."""
        run = run_synchronous if self.config.synchronous else run_threaded
        run(self.actor, self.learner, self.stop)

    def close(self) -> None:
        """Give back what only learning needs."""
        super().close()
        if self.env is not None:
            close_quietly(self.env)

    def progress_state(self) -> dict[str, Any]:
        """The actor's."""
        return {"actor": self.actor.state_dict()}

    def policy_content(self) -> dict[str, Any]:
        """What acting needs, and what a run that goes on from here must agree with."""
        drop_idle = bool(self.selection and self.selection.drop_idle)
        return {**super().policy_content(), "offline": {"discount": self.config.discount, "drop_idle": drop_idle}}

    def final_policy(self) -> None:
        """Put into the agent's networks the very policy that passed the evaluation, if one did."""
        if self.actor.accepted is not None:
            self.actor.accepted.load_into(self.agent.networks)

    def save_stores_too(self) -> bool:
        """Whether checkpoints have the replay stores beside them."""
        return self.config.save_replay

    def follow(self) -> int:
        """What every rank but 0 does: learn as rank 0 says, to the end; the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 says when it is over
            signal.signal(number, signal.SIG_IGN)
        assert isinstance(self.learner, SharedLearner)
        try:
            self.learner.obey(self.save_inspection)
        finally:
            self.learner.close()
        return 0

    def _environments(self) -> tuple[gymnasium.Env[Any, Any], gymnasium.Env[Any, Any] | None]:
        """One to act in, and one without operator for evaluations."""
        config, mode = self.config, SETUP_MODES[self.config.setup_mode]
        operator, size, judge = load_operator(config.operator), config.image_size, config.judge()
        env = make_env(config.env, config.image_keys, mode, operator=operator, image_size=size, judge=judge)
        if not config.eval_interval and not config.final_eval_episodes:
            return env, None
        return env, make_env(config.env, config.image_keys, mode, render_mode="rgb_array", image_size=size, judge=judge)

    def stores(self) -> dict[str, ReplayStore]:
        """Those of online data and demonstrations."""
        for cache in self.caches or ():
            cache.store.draws = cache.features.draws  # a resumed run draws on from here
        return {"online": self.online, "demonstrations": self.demonstrations}

    def _agent(self, checkpoint: dict[str, Any] | None) -> Agent:
        config, mode = self.config, SETUP_MODES[self.config.setup_mode]
        space = self.spaces.observations
        state_dim = space.get("state", EMPTY_STATE).shape[0]
        sizes = [space[key].shape[:2] for key in config.image_keys]
        if self.initial is not None and self.initial.keeps_its_agent:
            if config.algorithm not in ("sac", self.initial.algorithm):
                raise ValueError(
                    f"--algorithm is {config.algorithm}; the run goes on with that of {self.initial.path}, "
                    f"{self.initial.algorithm}: leave the flag out"
                )
            agent = self.initial.agent(state_dim, mode.action_dim, config.image_keys)
            crops = agent.settings["config"]["crop_padding"] > 0
            if crops and config.augment == "dali":
                raise ValueError(f"augment is 'dali'; the agent of {self.initial.path} crops by itself: give another")
            if config.image_keys and not crops and config.augment != "dali":
                print(
                    f"images are NOT cropped: the agent of {self.initial.path} has crop_padding 0; --augment dali does"
                )
            print(f"algorithm {self.initial.algorithm} with the checkpoint's settings; flags of SAC have no effect")
        elif config.algorithm == "sac":
            agent = build_agent(state_dim, mode.action_dim, mode.grippers, config.image_keys, config.agent(sizes))
        else:
            builder = import_callable(config.algorithm, "algorithm")
            agent = builder(state_dim, mode.action_dim, config.image_keys)
        if checkpoint is None and self.initial is not None:
            self.initial.load_into(agent)
            return agent
        return self.take_weights(agent, checkpoint)

    def _selection(self) -> Selection | None:
        """What demonstrations go through to be those of the checkpoint; None: nothing."""
        if self.initial is None:
            return None
        algorithm = ALGORITHMS.get(self.agent.settings.get("algorithm", ""))
        fields = {"mc_returns": MC_RETURNS, "next_actions": FOLLOWING}
        columns = tuple(fields[name] for name in (algorithm.fields if algorithm else ()) if name in fields)
        settings = self.agent.settings.get("config", {})
        return Selection(
            self.config.discount,
            settings.get("reward_scale", 1.0),
            settings.get("reward_bias", 0.0),
            self.initial.content.get("offline", {}).get("drop_idle", False),
            columns=columns,
        )

    def _feature_caches(self, seed: int) -> tuple[FeatureCache, FeatureCache] | None:
        """Those of the online store and the demonstrations, still empty; the agent becomes one that reads them."""
        config = self.config
        if not config.feature_cache:
            return None
        if self.selection and self.selection.columns:
            raise ValueError(
                f"feature_cache is {config.feature_cache}; {self.agent.settings['algorithm']} needs "
                f"{', '.join(self.selection.columns)} of every step, which the cache does not have: give 0"
            )
        keys, shapes = frozen_encoder(self.agent).image_keys, self.spaces.observations
        networks = self.agent.networks.to(self.device)
        encoder = CropEncoder(
            functools.partial(encode_images, networks),
            {key: shapes[key].shape for key in keys},
            config.feature_cache,
            padding=self.agent.settings["config"]["crop_padding"],
            precision=config.feature_cache_precision,
            device=self.device,
            seed=seed,
        )
        self.agent = with_cached_features(self.agent, config.feature_cache)
        print(describe(encoder, [self.online, self.demonstrations]))
        return FeatureCache(self.online, encoder), FeatureCache(self.demonstrations, encoder)

    def _fill_caches(self) -> None:
        for cache in self.caches or ():
            if len(cache.store):
                progress(cache.fill(), len(cache.store), "encoding crops of stored transitions")

    def _filled(self) -> tuple[Appends, Appends]:
        """Where the actor's steps go, online data first."""
        if self.selection and self.selection.columns:
            return FilledLater(self.online, self.selection), FilledLater(self.demonstrations, self.selection)
        return self.caches or (self.online, self.demonstrations)

    def _drawn_from(self) -> tuple[ReplayStore, ReplayStore]:
        """The stores that updates read, online data first."""
        if self.caches is None:
            return self.online, self.demonstrations
        return self.caches[0].features, self.caches[1].features

    def _reader(self) -> Reader:
        config = self.config
        # Growing builds the step anew, which ranks would do at different updates.
        room = (self.online.capacity, len(self.demonstrations) + ROOM_FOR_INTERVENTIONS)
        return self.make_reader(
            list(self._drawn_from()),
            self.ranks.share(config.batch_size),
            config.discount,
            config.cta_ratio,
            synchronous=config.synchronous,
            room=None if self.ranks.size > 1 else room,
        )

    def _stores(self, checkpoint: dict[str, Any] | None) -> tuple[ReplayStore, ReplayStore]:
        """The stores of demonstrations and of online data, in this order."""
        config = self.config
        if checkpoint is not None:
            folder = newest_stores(self.directory, ("demonstrations", "online"))
            if folder is not None:
                print(f"replay stores from {folder}")
                loaded = ReplayStore.load(folder / "demonstrations"), ReplayStore.load(folder / "online")
                if (room := loaded[1].capacity) != config.replay_buffer_capacity:
                    print(f"they keep their capacity, {room}: replay_buffer_capacity has no effect")
                return loaded
            print(f"no stores in {self.directory}: starting from the demonstrations, with an empty online store")
        selection = self.selection
        example = example_transition(self.spaces, selection.columns if selection else ())
        capacity = config.replay_buffer_capacity
        demonstrations = ReplayStore.from_example(example, capacity, seed=self.store_seeds[0])
        online = ReplayStore.from_example(example, capacity, seed=self.store_seeds[1])
        if config.demo_paths:
            width = SETUP_MODES[config.setup_mode].action_dim
            try:
                given = (config.demo_paths, demonstrations, config.image_keys, width)
                if selection is None:
                    fill_with_demonstrations(*given)
                else:
                    fill_with_demonstrations(*given, prepare=lambda dataset: prepared(dataset, selection))
            except NoRoomError as error:
                raise ValueError(f"{error}: raise --replay_buffer_capacity, which is {capacity}") from error
            print(f"{len(demonstrations)} demonstration transitions from {len(config.demo_paths)} file(s)")
        return demonstrations, online


def run(argv: list[str] | None = None) -> int:
    """Parse, train, finish; the exit status."""
    config = parse(TrainHybridConfig, argv, description=__doc__ or "", presets=PRESETS)
    with join(config.device) as ranks:
        training = Run(config, ranks)
        if ranks.rank:
            return training.follow()
        with training.interruptible():
            training.train()
            training.finish()
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
