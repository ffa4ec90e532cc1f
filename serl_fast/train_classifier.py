"""Train a reward classifier: camera frames in, probability of success out, with a threshold that can be trusted.

python -m serl_fast.train_classifier --success_dir data/success --failure_dir data/failure --image_keys front
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from serl_fast.cli import main, parse
from serl_fast.core import Agent
from serl_fast.data.batches import BatchReader
from serl_fast.data.dali_clips import clip_decoder
from serl_fast.data.dali_images import image_decoder
from serl_fast.data.held_out import count_by_class, join_episodes, split_by_episode
from serl_fast.data.labelled import IMAGES_AT_ONCE, Frame, find_recordings, read_recordings, without_repeats
from serl_fast.engine import Engine, EngineConfig, NonFiniteLossError, default_execution
from serl_fast.engine.snapshot import trained_tensors
from serl_fast.errors import require
from serl_fast.interop.pretrained import load_pretrained
from serl_fast.logging import RunLogger, progress
from serl_fast.networks.classifier import RewardClassifier
from serl_fast.replay import Mixture, ReplayStore
from serl_fast.rewards.classifier import reward_classifier, with_threshold
from serl_fast.rewards.files import CONFIG, WEIGHTS, save_classifier
from serl_fast.run_setup import choose_device, default_threads
from serl_fast.train_classifier_config import TrainClassifierConfig
from serl_fast.train_classifier_report import Judged, draw_report, print_report, report_of, write_report

EVALUATION_BATCH = 128
SOURCES_SHOWN = 8


class Training:
    """One training: its frames, its engine, the best weights so far.

    Attributes:
        reason: why it ended.
        best_epoch: the epoch, from 1 on, with the lowest held-out loss; 0 before the first.
    """

    def __init__(self, config: TrainClassifierConfig) -> None:
        self.config = config
        self.device = choose_device(config.device)
        torch.set_num_threads(config.threads or default_threads(True, self.device))
        seeds = np.random.SeedSequence(config.seed).generate_state(4).tolist()
        torch.manual_seed(seeds[0])
        names = config.class_names
        found, notes = read_frames(config)
        frames, self.held_out, said = split_by_episode(found, config.validation_fraction, names, seeds[1])
        self.notes = [*notes, *said]
        self.counts = {"train": _counts(frames, names), "held_out": _counts(self.held_out, names)}
        self.agent = self._agent()
        execution = default_execution() if config.execution == "auto" else config.execution
        engine_config = EngineConfig(execution, config.precision, config.strict_execution)
        self.engine = Engine(self.agent, engine_config, seed=seeds[2], device=self.device)
        print(f"execution {execution}, precision {config.precision}, device {self.device}")
        if remark := engine_config.remark(self.device):
            print(remark)
        stores = [class_store([f for f in frames if f.label == n], seeds[3] + n) for n in range(len(names))]
        self.mixture = Mixture(
            [store.sampler(order="epoch", fields=["next_observations"]) for store in stores],
            [1.0] * len(stores),
            sources=True,
        )
        self.reader = BatchReader(config.batch_size, self.device)
        self.steps_per_epoch = math.ceil(len(frames) / config.batch_size)
        self.encoded = encode(self.classifier, self.held_out, self.device)
        self.labels = torch.tensor([frame.label for frame in self.held_out])
        self.best: dict[str, Tensor] = {}
        self.best_loss, self.best_epoch = math.inf, 0
        self.reason = f"{config.num_epochs} epochs"

    @property
    def classifier(self) -> RewardClassifier:
        """The network."""
        network = self.agent.networks["classifier"]
        assert isinstance(network, RewardClassifier)
        return network

    def _agent(self) -> Agent:
        agent = reward_classifier(self.config.image_keys, self.config.agent())
        if self.config.encoder == "resnet-pretrained" or self.config.pretrained_encoder is not None:
            network = agent.networks["classifier"]
            assert isinstance(network, RewardClassifier)
            load_pretrained(network.encoder, self.config.pretrained_encoder)
        return agent

    def run(self, logger: RunLogger) -> None:
        """Train to the end, and keep the best weights; Ctrl-C ends it early.

        Raises:
            ValueError: it ended, by Ctrl-C or a loss that is not finite, before there was anything to keep.
        """
        try:
            progress(self._steps(logger), self.config.num_epochs * self.steps_per_epoch, "gradient steps")
        except KeyboardInterrupt:
            if not self.best:
                raise ValueError("interrupted before the first epoch ended; there is nothing to save") from None
            self.reason = "interrupted"
        except NonFiniteLossError as error:
            if not self.best:
                raise ValueError(f"training failed: {error}") from error
            self.reason = str(error)
        if not self.best:
            raise ValueError("training failed: the held-out loss was never finite; lower --lr")
        with torch.no_grad():
            for name, tensor in trained_tensors(self.agent.networks).items():
                tensor.copy_(self.best[name])

    def _steps(self, logger: RunLogger) -> Iterator[int]:
        """The gradient steps, one after the other, with the held-out frames judged after every epoch."""
        config = self.config
        for epoch in range(1, config.num_epochs + 1):
            for _ in range(self.steps_per_epoch):
                drawn = self.reader.read(self.mixture)
                self.engine.update({"observations": drawn["next_observations"], "labels": drawn["sources"]})
                yield 1
            self.engine.request_metrics()
            interval = self.engine.newest_metrics(wait=True)
            metrics = interval.metrics if interval is not None else {}
            loss, right = self._validate()
            shown = {"epoch": epoch, **metrics, "validation/loss": loss, "validation/accuracy": right}
            logger.log(shown, step=self.engine.updates)
            print(
                f"epoch {epoch}: loss {metrics.get('classifier/loss', math.nan):.4f}; "
                f"held out: loss {loss:.4f}, accuracy {right:.1%}"
            )
            if loss < self.best_loss:
                self.best_loss, self.best_epoch = loss, epoch
                weights = trained_tensors(self.agent.networks)
                self.best = {name: tensor.detach().clone() for name, tensor in weights.items()}
            elif config.patience and epoch - self.best_epoch >= config.patience:
                self.reason = f"no better held-out loss in {config.patience} epochs"
                return

    def _validate(self) -> tuple[float, float]:
        """Held-out loss and accuracy, means over the classes of those of each class."""
        logits = self._logits()
        if self.classifier.classes == 1:
            losses = F.binary_cross_entropy_with_logits(logits.squeeze(-1), self.labels.float(), reduction="none")
            right = (logits.squeeze(-1) >= 0) == self.labels
        else:
            losses, right = F.cross_entropy(logits, self.labels, reduction="none"), logits.argmax(-1) == self.labels
        of_class = [self.labels == n for n in self.labels.unique()]
        return tuple(  # type: ignore[return-value]
            float(torch.stack([values[rows].float().mean() for rows in of_class]).mean()) for values in (losses, right)
        )

    @torch.no_grad()
    def _logits(self) -> Tensor:
        """Of the held-out frames, float32 [N, classes], on the host."""
        parts = []
        for start in range(0, len(self.labels), EVALUATION_BATCH):
            rows = {key: x[start : start + EVALUATION_BATCH].to(self.device) for key, x in self.encoded.items()}
            parts.append(self.classifier(rows).cpu())
        return torch.cat(parts)

    def judge(self) -> Judged:
        """What the classifier says of the held-out frames."""
        logits = self._logits()
        if self.classifier.classes == 1:
            success = torch.sigmoid(logits.squeeze(-1))
            probabilities = torch.stack([1 - success, success], -1)
        else:
            probabilities = torch.softmax(logits, -1)
        return Judged(self.held_out, self.config.class_names, probabilities.numpy(), self.config.positive)


def read_frames(config: TrainClassifierConfig) -> tuple[list[Frame], list[str]]:
    """All frames of all classes, every class and where it comes from said in a line.

    Returns:
        The frames, and what is to be said about them.

    Raises:
        DatasetError, FileNotFoundError: see ``serl_fast.data.labelled``.
        ValueError: a class has none.
    """
    names, size = config.class_names, (config.image_size, config.image_size)
    recordings = [
        recording
        for path, label in config.sources()
        for recording in find_recordings(path, label, config.image_keys, names)
    ]
    recordings, notes = without_repeats(recordings)
    frames: list[Frame] = []

    def read() -> Iterator[int]:
        most, device = max(IMAGES_AT_ONCE, len(config.image_keys)), choose_device(config.device)
        cuda = (device.index or 0) if device.type == "cuda" else None
        threads = torch.get_num_threads()
        images, by_images = image_decoder(config.image_backend, size, most, threads=threads, device_id=cuda)
        # Clips have not yet been decoded on a device: there only for those who ask for it.
        cuda = cuda if config.image_backend == "dali" else None
        clips, by_clips = clip_decoder(config.image_backend, size, threads=threads, device_id=cuda)
        for kind, by in {"image": by_images, "clip": by_clips}.items():
            if any(recording.kind == kind for recording in recordings):
                print(by)
        for found in read_recordings(recordings, config.image_keys, size, names, images, clips):
            frames.extend(found)
            yield 1

    progress(read(), len(recordings), "reading files")
    counts = count_by_class(frames, len(names))
    for name, count in zip(names, counts, strict=True):
        if not count:
            flag = f"--{name}_dir" if not config.classes else f"--classes {name}=folder"
            raise ValueError(f"there are no frames of class {name!r}: give {flag}, or --labelled_data that has some")
    print_sources(frames, names)
    frames, joined = join_episodes(frames)
    if joined:
        notes.append(f"parts of an episode in several places belong together by their pictures: {joined} were joined")
    return frames, notes


def print_sources(frames: Sequence[Frame], names: Sequence[str]) -> None:
    """Say where the frames of every class come from, the largest source first."""
    for number, name in enumerate(names):
        sources = Counter(frame.source for frame in frames if frame.label == number).most_common()
        told = ", ".join(f"{source} ({count})" for source, count in sources[:SOURCES_SHOWN])
        more = f" and {len(sources) - SOURCES_SHOWN} more" if len(sources) > SOURCES_SHOWN else ""
        print(f"class {name}: {sum(count for _, count in sources)} frames, from {told}{more}")


def class_store(frames: Sequence[Frame], seed: int) -> ReplayStore:
    """A store whose ``next_observations`` are these frames; each one leads to the next, so that it is kept once."""
    first = frames[0].images
    rest = {"actions": np.zeros(1, np.float32), "rewards": np.float32(0), "terminated": False, "truncated": False}
    store = ReplayStore.from_example({"observations": first, "next_observations": first, **rest}, len(frames), seed)
    before = first
    for frame in frames:
        store.append({"observations": before, "next_observations": frame.images, **rest})
        before = frame.images
    return store


@torch.no_grad()
def encode(classifier: RewardClassifier, frames: Sequence[Frame], device: torch.device) -> dict[str, Tensor]:
    """Frames as the classifier takes them, on the host: through a frozen trunk once and for all, else as images."""
    parts = []
    for start in range(0, len(frames), EVALUATION_BATCH):
        chunk = frames[start : start + EVALUATION_BATCH]
        images = {
            key: torch.from_numpy(np.stack([frame.images[key] for frame in chunk])).to(device)
            for key in classifier.image_keys
        }
        parts.append({key: x.cpu() for key, x in classifier.encoder.encode_trunk(images).items()})
    return {key: torch.cat([part[key] for part in parts]) for key in classifier.image_keys}


def train(config: TrainClassifierConfig) -> Path:
    """Train, judge, save; returns the folder.

    Raises:
        ValueError: the data or a setting can not be used.
    """
    require("safetensors", "interop")  # found missing now, not after the training
    folder = config.output_dir or Path("runs") / f"classifier_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    check_output(folder)
    training = Training(config)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_metrics(folder)  # an older training's would be continued
    describe(training)
    with open(os.devnull, "w") as nowhere:  # a line is said for every epoch here
        logger = RunLogger(folder, stream=nowhere)
        try:
            training.run(logger)
        finally:
            logger.close()
            if not training.best and not (folder / WEIGHTS).exists():
                _remove_metrics(folder)  # of nothing: the folder may be given again
    print(f"\n{training.reason}; the weights are those of epoch {training.best_epoch}, the lowest held-out loss")
    judged = training.judge()
    report = report_of(judged, config.false_positive_rate)
    report["training"] = _facts(training)
    agent = training.agent
    if report["threshold"] is not None:
        agent = with_threshold(agent, report["threshold"]["value"])
    save_classifier(folder, agent, {"class_names": list(config.class_names), "flags": dataclasses.asdict(config)})
    write_report(folder, report)
    draw_report(folder, judged, report)
    print_report(report)
    for path in sorted(folder.iterdir()):
        print(f"  {path}")
    return folder


def check_output(folder: Path) -> None:
    """Check that a folder is new or empty, or holds a classifier of this command.

    Raises:
        ValueError: it holds something else, which would be overwritten or mixed up with the classifier.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file; give a folder")
    there = sorted(path.name for path in folder.iterdir())
    if not there or (WEIGHTS in there and _is_ours(folder / CONFIG)):
        return
    raise ValueError(
        f"output_dir {folder} holds {', '.join(there[:5])}{', ...' if len(there) > 5 else ''}, and no classifier of "
        "train_classifier, which alone is replaced; give a new or an empty folder, or move away what is there"
    )


def _is_ours(config: Path) -> bool:
    """Whether a ``config.json`` is of this command."""
    try:
        flags = json.loads(config.read_text(encoding="utf-8"))["flags"]
        return {"success_dir", "false_positive_rate"} <= set(flags)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _remove_metrics(folder: Path) -> None:
    (folder / "metrics.csv").unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def _counts(frames: Sequence[Frame], names: Sequence[str]) -> dict[str, int]:
    """Frames of each class, and episodes."""
    of_class = dict(zip(names, count_by_class(frames, len(names)), strict=True))
    return {**of_class, "episodes": len({frame.group for frame in frames})}


def _facts(training: Training) -> dict[str, object]:
    return {
        "data": training.counts,
        "notes": training.notes,
        "updates": training.engine.updates,
        "best_epoch": training.best_epoch,
        "ended": training.reason,
    }


def describe(training: Training) -> None:
    """Say what there is to train on."""
    for said, counts in zip(("to train on", "held out"), training.counts.values(), strict=True):
        print(f"{said}: {', '.join(f'{count} {name}' for name, count in counts.items())}")
    for note in training.notes:
        print(f"note: {note}")


def run(argv: list[str] | None = None) -> int:
    """Parse and train; the exit status."""
    train(parse(TrainClassifierConfig, argv, description=__doc__ or ""))
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
