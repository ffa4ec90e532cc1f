"""What every training command does around its loop: folder, engine, checkpoints, interruptions, failures, the end."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import gymnasium
import numpy as np
import torch

from serl_fast.agents.parts import normalize_states
from serl_fast.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint, save_run, save_stores
from serl_fast.core import Agent, DeviceSource
from serl_fast.data.dali import DaliReader
from serl_fast.data.readers import Reader, make_reader
from serl_fast.engine import Engine, EngineConfig, NonFiniteLossError, PolicyRunner, default_execution
from serl_fast.engine.ranks import Alone, Ranks
from serl_fast.errors import require
from serl_fast.evaluation import EVALUATION_SEEDS, EvaluationResult, Evaluations, evaluate
from serl_fast.figures import Film
from serl_fast.files import FolderInUseError, held_alone
from serl_fast.interop.pretrained import load_pretrained
from serl_fast.interrupts import ending_signals
from serl_fast.kernels.choice import use_backend
from serl_fast.logging import RunLogger, plot_progress
from serl_fast.loop import Learner
from serl_fast.networks.encoder import Encoder
from serl_fast.replay import ReplayStore
from serl_fast.run_setup import (
    can_be_filmed,
    check_takes_pretrained,
    choose_device,
    close_quietly,
    default_threads,
    flattened,
    newest_run,
    plain_values,
    with_defaults,
)
from serl_fast.schedule import Counters, Stop


class Run:
    """One training run: what is saved of it, and how it ends. A command adds data, agent and loop.

    Args:
        config: the command's flags; those that are read here have the same names in every command.
        ranks: the processes that learn together.

    Attributes:
        agent, engine, learner, logger, directory: to be set by the command.
        evaluations: those during the run.
        interrupted: whether Ctrl-C or SIGTERM came.
    """

    agent: Agent
    engine: Engine
    learner: Learner
    logger: RunLogger
    directory: Path
    evaluations: Evaluations

    def __init__(self, config: Any, ranks: Ranks | Alone | None = None) -> None:
        self.config, self.ranks = config, ranks or Alone()
        self.device = self.ranks.device or choose_device(config.device)
        torch.set_num_threads(config.threads or default_threads(bool(config.image_keys), self.device))
        self.counters, self.stop = Counters(), Stop()
        self.interrupted = False
        self._found_out: dict[str, Any] = {}
        self._lock: BinaryIO | None = None  # open as long as this process writes to the folder
        if config.augment == "dali":
            require("nvidia.dali", "dali")  # before anything is read
        use_backend("auto" if config.augment == "dali" else config.augment, self.device)

    # What a command adds.

    def loop(self) -> None:
        """Learn until the stop is set."""
        raise NotImplementedError

    def stores(self) -> Mapping[str, ReplayStore]:
        """The replay stores by name, as they are saved beside checkpoints."""
        return {}

    def save_stores_too(self) -> bool:
        """Whether checkpoints have the replay stores beside them."""
        return False

    def progress_state(self) -> dict[str, Any]:
        """What continuing needs beyond networks, engine and counters."""
        return {}

    def final_policy(self) -> None:
        """Put into the agent's networks what the run is to end with."""

    def draw(self) -> None:
        """Draw the pictures of the run folder."""
        plot_progress(self.directory / "metrics.csv", self.directory / "success.png")

    # Setting up.

    def place(self, default: Path) -> tuple[Path, dict[str, Any] | None]:
        """The run's folder, and the checkpoint to continue from.

        Raises:
            ValueError: the folder holds a run already, or one of another environment, or another process writes to it.
            CheckpointError: there is nothing to continue from.
        """
        config = self.config
        if not config.resume:
            directory = config.save_dir or default
            if (directory / "metrics.csv").exists():
                raise ValueError(f"{directory} holds a run already; give --resume, or another --save_dir")
            return directory, None
        directory = config.save_dir or newest_run()
        latest_checkpoint(directory)  # a folder without one is left as it is
        self._hold(directory)
        path = latest_checkpoint(directory)
        checkpoint = load_checkpoint(path)
        for name in ("env", "setup_mode"):
            given, saved = getattr(config, name), checkpoint[name]
            if given != saved:
                raise ValueError(f"--{name} is {given}; {path} was trained with {saved}: resume with that")
        print(f"resuming from {path}")
        return directory, checkpoint

    def _hold(self, directory: Path) -> None:
        """Be the only process that writes to the run's folder; what another left unfinished goes."""
        if self._lock is not None:
            return
        try:
            self._lock = held_alone(directory)
        except FolderInUseError as error:
            raise ValueError(f"{error}; wait for it, or end it, or give another --save_dir") from error
        except OSError as error:
            raise ValueError(f"the run's folder can not be used: {error}; give another --save_dir") from error
        for unfinished in directory.glob(".*.pth.*.tmp"):  # of a process that was killed while it saved
            unfinished.unlink(missing_ok=True)

    def open_logger(self) -> None:
        """Make the run's folder and what writes to it."""
        self._hold(self.directory)
        self.logger = RunLogger(self.directory)

    def take_weights(self, agent: Agent, checkpoint: dict[str, Any] | None) -> Agent:
        """Check the agent against the checkpoint to resume; a new one gets its pre-trained encoder.

        Raises:
            ValueError: the checkpoint's agent has other settings, or there is no encoder for the weights given.
        """
        config, networks = self.config, dict(agent.networks.items())
        if config.pretrained_encoder is not None:
            check_takes_pretrained(agent, config.image_keys, config.algorithm)
        if checkpoint is not None:
            mine, saved = flattened(agent.settings), flattened(with_defaults(checkpoint["agent"]))
            differing = [
                f"{name} {saved.get(name)}, not {mine[name]}" for name in mine if mine[name] != saved.get(name)
            ]
            if differing:
                raise ValueError(f"the run to resume has {'; '.join(differing)}: resume it with its own flags")
        elif config.pretrained_encoder is not None or (
            config.image_keys and agent.settings.get("config", {}).get("encoder") == "resnet-pretrained"
        ):
            load_pretrained(networks["encoder"], config.pretrained_encoder, target=networks.get("target_encoder"))
        return agent

    def normalize(self, store: ReplayStore) -> None:
        """Scale the state by the statistics of ``store``, where the agent's encoder can."""
        if not self.config.normalize_state or len(store) < 2:  # one state has no spread
            return
        encoder = dict(self.agent.networks.items()).get("encoder")
        if not isinstance(encoder, Encoder) or encoder.normalizer is None:
            return
        states = store.sampler(fields=["observations/state"]).batch_at(np.arange(len(store)))["observations"]["state"]
        normalize_states(self.agent.networks, torch.from_numpy(states))

    def make_reader(self, stores: list[ReplayStore], rows: int, discount: float, updates: int, **given: Any) -> Reader:
        """Where batches come from, by ``--augment`` and ``--replay_device``; says where.

        Args:
            stores: what is drawn from.
            rows: of one update.
            discount: gamma.
            updates: of most calls of the engine.
            given: as for ``data.readers.make_reader``.
        """
        config = self.config
        if config.augment == "dali":
            print("replay on the host, drawn in line; its images are cropped there by DALI")
            seed = config.seed + self.ranks.rank
            return DaliReader(rows, config.image_keys, self.device, seed=seed, updates=updates)
        reader, why = make_reader(config.replay_device, stores, rows, discount, self.device, updates=updates, **given)
        print(why)
        return reader

    def build_engine(self, seed: int, source: DeviceSource | None) -> None:
        """Make the engine, and say how it runs."""
        config = self.config
        execution = default_execution() if config.execution == "auto" else config.execution
        interval = None if self.device.type == "cpu" else config.log_interval
        engine_config = EngineConfig(execution, config.precision, config.strict_execution, interval)
        self.agent = self.ranks.share_noise(self.agent, self.device)
        self.engine = Engine(
            self.agent,
            engine_config,
            seed=seed,
            device=self.device,
            source=self.ranks.share_source(source),
            average=self.ranks.average,
        )
        print(
            f"execution {execution}, precision {config.precision}, device {self.device}, "
            f"{torch.get_num_threads()} thread(s)"
        )
        if self.ranks.rank == 0 and (remark := engine_config.remark(self.device)):
            print(remark)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Continue with the networks, Adam, random state and counters of a checkpoint."""
        self.engine.load_state_dict(checkpoint["engine"])
        self.counters.load_state_dict(checkpoint["counters"])

    # Running.

    def train(self) -> None:
        """Run the loop to its end; whatever happens, save what there is.

        Raises:
            RuntimeError: an exception ended the loop; it is the cause.
        """
        try:
            with self.logger.display():
                self.loop()
            self.save()
        except Exception as error:
            inspection = self.save_inspection(error)
            raise RuntimeError(f"training stopped: {error}; {inspection}{self._salvage()}") from error
        finally:
            if self.engine.execution != self.engine.config.execution:
                self.write_config()
            self.close()

    def close(self) -> None:
        """Give back what only learning needs."""
        self.learner.close()

    def finish(self) -> EvaluationResult | None:
        """Save the final policy, evaluate it on fresh episodes, draw and film; print where everything is."""
        self.final_policy()
        final = save_checkpoint(self.directory / "final_model.pth", self.policy_content())
        result, env = None, self.evaluations.env
        if env is not None:
            if not self.interrupted:
                result = self._final_evaluation(env)
            close_quietly(env)
        self.logger.close()
        self.draw()
        print(f"\n{self.stop.reason}")
        if result is not None and result.successes:
            true = result.true_success_rate
            seen = "" if true is None else f" by the classifier, {true:.0%} by the environment itself"
            count, value = len(result.successes), np.mean(result.returns)
            print(f"success rate over {count} fresh episodes: {result.success_rate:.0%}{seen}; return {value:.4g}")
        for path in (final, *sorted(set(self.directory.glob("[!.]*")) - {final})):
            print(f"  {path}")
        return result

    def save(self) -> Path:
        """Write a checkpoint and, beside it, the replay stores; the newest stores replace older ones.

        Raises:
            NonFiniteLossError: an update was not finite, or the weights hold NaN or infinity; the last good checkpoint
                stays the newest.
        """
        before = self.engine.updates
        try:
            self.engine.check()
        except NonFiniteLossError:
            self.learner.recount(before)
            raise
        if not self.engine.finite():
            raise NonFiniteLossError(f"the weights are not finite after {self.engine.updates} updates")
        stores = self.stores() if self.save_stores_too() else {}
        return save_run(self.directory, self.counters.updates, self._content(), stores)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM or the end of the terminal once: finish the step, save, exit 0. Ctrl-C twice: as usual."""

        def handle(signum: int, frame: FrameType | None) -> None:
            # Whatever the main thread was doing is on hold: no locks here, and a way out before anything else.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.interrupted = True
            self.stop.set("interrupted")
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, b"\nfinishing the step and saving; press Ctrl-C again to end at once\n")

        with ending_signals(handle):
            yield

    def report(self, metrics: dict[str, float]) -> None:
        """Log metrics at the present step."""
        self.logger.log(metrics, step=self.engine.updates, environment_steps=self.counters.environment_steps)

    def tick(self) -> None:
        """Show where the run stands."""
        counters = self.counters
        recent = counters.recent_successes.copy()
        self.logger.progress(
            environment_steps=counters.environment_steps,
            updates=counters.updates,
            max_updates=self.config.max_steps,
            utd_ratio=counters.utd_ratio,
            success_rate=counters.success_rate,
            training_success_rate=sum(recent) / len(recent) if recent else None,
            episodes=counters.episodes,
            interventions=counters.interventions,
        )

    def write_config(self, **more: Any) -> None:
        """Write ``config.json``: the flags, and what came of them; ``more`` is in it from then on."""
        self._found_out |= {"execution_used": self.engine.execution, "device_used": str(self.device), **more}
        self.logger.write_config({**plain_values(self.config), **self._found_out})

    # Saving.

    def policy_content(self) -> dict[str, Any]:
        """What acting needs."""
        return {
            "agent": self.agent.settings,
            "networks": self.agent.networks.state_dict(),
            "env": self.config.env,
            "setup_mode": self.config.setup_mode,
            "image_size": self.config.image_size,
            "updates": self.counters.updates,
        }

    def _content(self) -> dict[str, Any]:
        return {
            **self.policy_content(),
            "engine": self.engine.state_dict(),
            "counters": self.counters.state_dict(),
            **self.progress_state(),
        }

    def save_inspection(self, error: Exception) -> str:
        """After an update that was not finite: save what it saw; says where."""
        if not isinstance(error, NonFiniteLossError) or error.inspection is None:
            return ""
        rank = f"_rank{self.ranks.rank}" if self.ranks.rank else ""
        path = self.directory / f"non_finite_{error.inspection['updates'] + 1}{rank}.pth"
        try:
            return f"its batch and the state that it met are in {save_checkpoint(path, error.inspection)}; "
        except OSError as failed:
            return f"its batch and state could not be saved ({failed}); "

    def _salvage(self) -> str:
        """After a failure: save what can be saved, and say what was."""
        step, kept = self.counters.updates, f"older checkpoints in {self.directory} stay"
        finite = False
        try:
            finite = self.engine.finite()
            if finite:
                return f"everything up to here is in {self.save()}"
            data = ""
            if stores := self.stores():
                data = f"the data are in {save_stores(self.directory, step, stores)}, "
            return f"the weights are not finite and were not saved; {data}{kept}"
        except Exception as error:
            said = f"saving failed as well: {error}; {kept}"
        if not finite:
            return said
        try:  # the weights are small and may still fit where the stores did not
            path = save_checkpoint(self.directory / f"checkpoint_{step}.pth", self._content())
            return f"{said}; the weights alone are in {path}"
        except Exception:
            return said

    def _final_evaluation(self, env: gymnasium.Env[Any, Any]) -> EvaluationResult | None:
        """The evaluation after training, which stands for one of those in between that the end left out."""
        due, episodes = self.evaluations.due, self.config.final_eval_episodes
        if not episodes and not due:
            return None
        runner = PolicyRunner(self.agent, device=self.device)
        with Film(self.directory / "rollout.mp4") as film:
            result = evaluate(
                env,
                lambda observation: runner.act(observation, deterministic=True),
                episodes or self.config.eval_episodes,
                seed=EVALUATION_SEEDS * (1 + self.config.seed) + EVALUATION_SEEDS // 2,
                record_episodes=self.config.video_episodes if can_be_filmed(env) else 0,
                film=film.add,
                should_stop=lambda: self.interrupted,
            )
        if result.successes:
            metrics = result.metrics()
            final = {f"final_{name}": value for name, value in metrics.items()} if episodes else {}
            self.report({**final, **(metrics if due else {})})
        return result
