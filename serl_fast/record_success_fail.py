"""Record labelled frames for a reward classifier: successes and failures, labelled by a person or by the simulation.

python -m serl_fast.record_success_fail --env serl_robots/PickCube-v0 --image_keys front --labels scripted
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np

from serl_fast.cli import main, parse
from serl_fast.data.demonstrations import save_demonstrations
from serl_fast.envs import executed_action, load_operator, make_env
from serl_fast.envs.disturbed import DisturbedExpert
from serl_fast.errors import require
from serl_fast.evaluation import succeeded
from serl_fast.interrupts import ending_signals, interrupt
from serl_fast.keys import pressed_keys
from serl_fast.logging import progress
from serl_fast.run_setup import close_quietly

Transition = dict[str, Any]
SUCCESS_KEY, NEXT_KEY, QUIT_KEY = " ", "n", "q"
HELD = 0.7
"""Seconds between two presses up to which the key was held: a terminal repeats it after up to 0.66 s."""


@dataclasses.dataclass(frozen=True)
class RecordSuccessFailConfig:
    """Flags of ``record_success_fail``.

    Attributes:
        env: any gymnasium id; ``module:Id-v0`` imports ``module`` first.
        image_keys: cameras to record: those that the classifier is to see.
        image_size: height and width of their images, px, where the environment takes it; the one to train with.
        successes_needed: frames of success to record; every other frame is a failure.
        labels: "keyboard": SPACE marks the step as success, held it marks all, n begins the next episode, q ends.
            "scripted": the environment's own verdict.
        operator: who acts. "scripted": the environment's expert, which errs in another manner every episode;
            "random": random motions; "none": the arm is held still, unless the environment has an operator of its own;
            or module:callable that wraps the environment and sets info["intervene_action"].
        noise: standard deviation of the scripted expert's motion noise, in units of the action.
        after_success: steps that an episode goes on after its first success.
        frequency: steps per second at most while a person labels.
        exp_name: first part of the files' names; by default the environment's.
        output_dir: folder of the two pickles.
        max_episodes: give up after so many episodes.
        seed: of episodes and motions.
    """

    env: str = "serl_robots/PickCube-v0"
    image_keys: tuple[str, ...] = ("front",)
    image_size: int | None = None
    successes_needed: int = 200
    labels: Literal["keyboard", "scripted"] = "keyboard"
    operator: str = "scripted"
    noise: float = 0.1
    after_success: int = 10
    frequency: float = 10.0
    exp_name: str | None = None
    output_dir: Path = Path("classifier_data")
    max_episodes: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.image_keys:
            raise ValueError("image_keys is empty; a classifier looks at one camera at least")
        for name, least in {"successes_needed": 1, "after_success": 0, "max_episodes": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not self.noise >= 0:
            raise ValueError(f"noise is {self.noise}; it must not be negative")
        if not self.frequency > 0:
            raise ValueError(f"frequency is {self.frequency} steps/s; it must be positive")


class Recording:
    """Episodes in an environment, step by step, with labels.

    Args:
        config: the command's flags.
        keys: keys pressed since the last call; None where the environment's verdict is the label.

    Attributes:
        successes: transitions whose next observations show success.
        failures: all others.
        episodes: finished ones, and the one in progress.
    """

    def __init__(self, config: RecordSuccessFailConfig, keys: Callable[[], str] | None) -> None:
        self.config, self._keys = config, keys
        self.successes: list[Transition] = []
        self.failures: list[Transition] = []
        self.episodes = 0
        self.ended = False  # the person pressed q
        self._pressed: tuple[float, int] | None = None  # in this episode: when SPACE was pressed last, and its failures
        self._session = time.strftime("%Y-%m-%d_%H-%M-%S")
        acts_itself = config.operator in ("scripted", "random", "none")
        operator = None if acts_itself else load_operator(config.operator)
        self.env = make_env(config.env, config.image_keys, operator=operator, image_size=config.image_size)
        self._act = self._actions(self.env)

    def _actions(self, env: gymnasium.Env[Any, Any]) -> DisturbedExpert | None:
        """Who acts; None where the arm is held still, or an operator of its own acts."""
        config, expert = self.config, None
        if config.operator not in ("scripted", "random"):
            return None
        if config.operator == "scripted":
            expert = require("serl_robots.experts", "sim").expert(env)
        return DisturbedExpert(expert, (env.action_space.shape or (0,))[0], noise=config.noise, seed=config.seed)

    def run(self) -> Iterator[int]:
        """Record until there is enough; after every step the number of new successes."""
        config = self.config
        while self.episodes < config.max_episodes and not self.ended:
            for successes in self._episode():
                yield successes
                if len(self.successes) >= config.successes_needed:
                    return

    def _episode(self) -> Iterator[int]:
        """Record one episode; after every step the number of new successes."""
        config = self.config
        observation, _ = self.env.reset(seed=config.seed + self.episodes)
        if self._keys is not None and QUIT_KEY in self._keys():  # other keys pressed meanwhile were for what was before
            self.ended = True
            return
        self._pressed = None
        if self._act is not None:
            self._act.start(self.episodes)
        name = f"{self._session}_{self.episodes}"
        self.episodes += 1
        since_success: int | None = None
        done = False
        while not done:
            with self._paced():
                action = np.zeros(self.env.action_space.shape or (), np.float32)
                action = action if self._act is None else self._act(observation)
                step = self.env.step(action)
            following, reward, terminated, truncated, info = step
            own = succeeded(float(reward), bool(terminated), info)
            pressed = "" if self._keys is None else self._keys()
            success = own if self._keys is None else SUCCESS_KEY in pressed
            filled = self._fill_held() if success and self._keys is not None else 0
            self.ended = QUIT_KEY in pressed
            since_success = 0 if success and since_success is None else since_success
            if since_success is not None:
                since_success += 1
            # The environment's own success does not end it: a person is slower, and a classifier sees what follows.
            enough = since_success is not None and since_success > config.after_success
            done = bool(truncated or (terminated and not own) or enough or self.ended or NEXT_KEY in pressed)
            if "intervene_action" in info:
                action = executed_action(info["intervene_action"], action)
            (self.successes if success else self.failures).append(
                {
                    "observations": observation,
                    "actions": action,
                    "next_observations": following,
                    "rewards": np.float32(success),
                    "masks": np.float32(1.0 - bool(terminated and not own)),
                    "dones": done,
                    "labels": int(success),
                    "infos": {"episode": name},
                }
            )
            observation = following
            yield filled + success

    def _fill_held(self) -> int:
        """SPACE is pressed: where it was held since the last time, the steps between are successes too; how many."""
        now, between = time.monotonic(), 0
        if self._pressed is not None and now - self._pressed[0] <= HELD:
            between = len(self.failures) - self._pressed[1]
            held = [{**step, "rewards": np.float32(1), "labels": 1} for step in self.failures[self._pressed[1] :]]
            self.successes += held
            del self.failures[self._pressed[1] :]
        self._pressed = now, len(self.failures)
        return between

    @contextlib.contextmanager
    def _paced(self) -> Iterator[None]:
        """While a person labels, a step takes its time."""
        began = time.monotonic()
        yield
        if self._keys is not None:
            time.sleep(max(0.0, began + 1.0 / self.config.frequency - time.monotonic()))

    def save(self) -> list[Path]:
        """Write what there is, each file complete or not at all; the files."""
        config, written = self.config, []
        name = config.exp_name or config.env.rpartition("/")[2].rpartition(":")[2]
        count = len(self.successes)
        files = {
            f"{name}_{count}_success_images_{self._session}.pkl": self.successes,
            f"{name}_failure_images_{self._session}.pkl": self.failures,
        }
        config.output_dir.mkdir(parents=True, exist_ok=True)
        failed: list[str] = []
        for file, transitions in files.items():
            if transitions:
                try:
                    save_demonstrations(config.output_dir / file, transitions)
                    written.append(config.output_dir / file)
                except OSError as error:  # the other one may still find room
                    failed.append(f"{config.output_dir / file}: {error}")
        if failed:
            raise OSError(
                f"could not be written: {'; '.join(failed)}; written: {', '.join(map(str, written)) or 'none'}"
            )
        return written


def record(config: RecordSuccessFailConfig) -> list[Path]:
    """Record, write the two files, and return their paths.

    Ctrl-C, SIGTERM or the end of the terminal ends the recording; what there is is written.

    Raises:
        ValueError: ``max_episodes`` had fewer successes than were asked for (what there is is written), or keys can
            not be read.
    """
    with pressed_keys() if config.labels == "keyboard" else contextlib.nullcontext() as keys:
        recording = Recording(config, keys)
        if keys is not None:
            print("SPACE: this step is a success; n: next episode; q: save and end", flush=True)
        interrupted = False
        try:
            with ending_signals(interrupt):
                progress(recording.run(), config.successes_needed, "frames of success")
        except KeyboardInterrupt:
            interrupted = True
        finally:  # also when a robot fails: labels are dear
            try:
                with ending_signals(signal.SIG_IGN):  # a second Ctrl-C must not cost the first one's data
                    written = recording.save()
                print(
                    f"{len(recording.successes)} frames of success, {len(recording.failures)} of failure from "
                    f"{recording.episodes} episodes"
                )
                for path in written:
                    print(f"  {path}")
            finally:  # last, since a robot's driver may hang
                close_quietly(recording.env)
    if len(recording.successes) < config.successes_needed and not interrupted and not recording.ended:
        raise ValueError(
            f"{len(recording.successes)} frames of success in {recording.episodes} episodes, "
            f"{config.successes_needed} were asked for; what there is is in {config.output_dir}"
        )
    return written


def run(argv: list[str] | None = None) -> int:
    """Parse and record; the exit status."""
    record(parse(RecordSuccessFailConfig, argv, description=__doc__ or ""))
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
