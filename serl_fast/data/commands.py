"""Look at data sets, check them, and bring them into other formats: ``python -m serl_fast.data COMMAND``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from serl_fast.cli import parse
from serl_fast.data.episodes import Dataset, DatasetError, Episode, ReadOptions, check_episode, first_step
from serl_fast.data.formats import open_dataset, write_dataset
from serl_fast.data.inspection import Summary, summarize, write_contact_sheet
from serl_fast.data.validation import validate
from serl_fast.errors import MissingExtraError, require
from serl_fast.logging import tracked

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", "sim")

Paths = tyro.conf.Positional[tuple[Path, ...]]
InputFormat = Literal["pickle", "robomimic", "d4rl", "minari", "ogbench", "lerobot"]
OutputFormat = Literal["pickle", "robomimic", "d4rl", "lerobot"]
SUFFIXES: dict[str, OutputFormat] = {
    **dict.fromkeys((".pkl", ".pickle"), "pickle"),
    **dict.fromkeys((".hdf5", ".h5"), "robomimic"),
    "": "lerobot",
}
OF_FORMAT = {"time_axis": "pickle", "fps": "lerobot", "task": "lerobot", "video": "lerobot"}
"""Attributes of what is written that are flags, and the format that heeds them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What of the data sets is read.

    Attributes:
        input_format: of the files that are read; by default found out.
        image_keys: cameras; by default all, without a name none.
        image_size: height and width that images are resized to, px.
        state_keys: arrays that are joined to the state, in this order; by default the format's usual ones.
        filter_key: a named selection of episodes, such as a mask of robomimic.
        max_episodes: the first so many.
    """

    input_format: InputFormat | None = None
    image_keys: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = None
    state_keys: tuple[str, ...] | None = None
    filter_key: str | None = None
    max_episodes: int | None = None

    def __post_init__(self) -> None:
        if self.max_episodes is not None and self.max_episodes < 1:
            raise ValueError(f"max_episodes is {self.max_episodes}; it must be at least 1")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size}; both must be at least 1")

    @property
    def options(self) -> ReadOptions:
        """For the readers."""
        return ReadOptions(*(getattr(self, part.name) for part in dataclasses.fields(ReadOptions)))

    def open(self, path: Path) -> Dataset:
        """Open one of the data sets."""
        return open_dataset(path, self.options, self.input_format)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect(Reading):
    """Arguments of ``inspect``.

    Attributes:
        files: files and folders.
        contact_sheet: PNG to draw with frames of some episodes; of one data set.
    """

    files: Paths
    contact_sheet: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_some(self.files, 1, "files to inspect")
        if self.contact_sheet is not None and len(self.files) > 1:
            raise ValueError(f"a contact sheet is of one data set; {len(self.files)} are given")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validate(Reading):
    """Arguments of ``validate``.

    Attributes:
        files: files and folders.
    """

    files: Paths

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_some(self.files, 1, "files to validate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing(Reading):
    """What is written.

    Attributes:
        format: of what is written; by default what the name says: .pkl, .hdf5 (robomimic), or a folder (lerobot).
        time_axis: of pickles: states and images have a leading axis of 1, which HIL-SERL's learner needs.
        fps: of lerobot: steps a second; by default those of the data that are read, or 10.
        task: of lerobot: what is to be done, in a sentence; by default that of the data.
        video: of lerobot: cameras are films, which lose a little, else PNG.
    """

    format: OutputFormat | None = None
    time_axis: bool = False
    fps: float | None = None
    task: str | None = None
    video: bool = True

    def write(self, path: Path, episodes: Iterable[Episode], attributes: dict[str, Any]) -> None:
        """Write one data set.

        Raises:
            ValueError: a flag is of another format.
        """
        form = self.format_of(path)
        given = {name: getattr(self, name) for name in OF_FORMAT if getattr(self, name) != getattr(Writing, name)}
        for name in given:
            if OF_FORMAT[name] != form:
                raise ValueError(f"{path} is written as {form}; {name} is of {OF_FORMAT[name]}")
        write_dataset(path, episodes, form, {**attributes, **given})

    def format_of(self, path: Path) -> str:
        """The format in which a file or folder is written."""
        found = self.format or SUFFIXES.get(path.suffix)
        if found is None:
            raise ValueError(f"{path}: its name does not say the format; give --format")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(Writing):
    """Arguments of ``convert``.

    Attributes:
        paths: the data set to read, and the file or folder to write.
    """

    paths: Paths

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_some(self.paths, 2, "IN and OUT", exactly=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merge(Writing):
    """Arguments of ``merge``.

    Attributes:
        paths: the data sets to read, and last the file or folder to write.
    """

    paths: Paths

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_some(self.paths, 2, "IN… and OUT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split(Writing):
    """Arguments of ``split``.

    Attributes:
        paths: the data set to read, and the two files or folders to write.
        fraction: part of the episodes that the first one gets; pieces of one recording stay together.
        seed: of the choice.
    """

    paths: Paths
    fraction: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_some(self.paths, 3, "IN, OUT_A and OUT_B", exactly=True)
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction is {self.fraction}; it lies between 0 and 1")


def inspect(config: Inspect) -> int:
    """Print what is in data sets."""
    for number, path in enumerate(config.files):
        dataset = config.open(path)
        summary = summarize(dataset, _followed(dataset), pictures=config.contact_sheet is not None)
        if not summary.lengths:
            raise DatasetError(f"{path} has no episodes")
        print("\n" * bool(number), end="")
        _print_summary(summary)
        if config.contact_sheet is not None:
            print(f"contact sheet: {write_contact_sheet(summary, config.contact_sheet)}")
    return 0


def check(config: Validate) -> int:
    """Print all problems; 1 where one is an error."""
    errors = warnings = 0
    for path in config.files:
        for finding in validate(path, config.options, config.input_format):
            print(finding)
            errors, warnings = errors + finding.is_error, warnings + (not finding.is_error)
    print(f"{_count(errors, 'error')}, {_count(warnings, 'warning')} in {_count(len(config.files), 'data set')}")
    return 1 if errors else 0


def convert(config: Convert) -> int:
    """Write a data set in another format."""
    source, target = config.paths
    dataset = config.open(source)
    config.write(target, _counted(_followed(dataset), target), dataset.attributes)
    return 0


def merge(config: Merge) -> int:
    """Write several data sets as one; attributes are kept where all have the same."""
    *sources, target = config.paths
    datasets = [config.open(path) for path in sources]
    common = {
        key: value
        for key, value in datasets[0].attributes.items()
        if all(key in other.attributes and other.attributes[key] == value for other in datasets[1:])
    }
    config.write(target, _counted(_alike(datasets), target), common)
    return 0


def split(config: Split) -> int:
    """Write some of the episodes, chosen by chance, to one data set, and the others to another one."""
    source, *targets = config.paths
    for target in targets:
        config.format_of(target)
        if target.expanduser().exists():
            raise FileExistsError(f"{target} exists; give another name")
    if targets[0] == targets[1]:
        raise ValueError(f"both outputs are {targets[0]}; give two names")
    dataset = config.open(source)
    recordings = _recordings(dataset)
    count = recordings[-1] + 1 if recordings else 0
    if count < 2:
        raise DatasetError(f"{source} has {_count(count, 'episode')}; a split needs two")
    first = min(max(round(config.fraction * count), 1), count - 1)
    parts = np.random.default_rng(config.seed).permutation(count)[:first]
    chosen = np.isin(recordings, parts)
    for target, wanted in zip(targets, (chosen.tolist(), (~chosen).tolist()), strict=True):
        config.write(target, _counted(_chosen(dataset, wanted), target), dataset.attributes)
    return 0


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
    "inspect": (Inspect, inspect),
    "validate": (Validate, check),
    "convert": (Convert, convert),
    "merge": (Merge, merge),
    "split": (Split, split),
}


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    name, *arguments = (list(sys.argv[1:] if argv is None else argv)) or ["--help"]
    if name not in COMMANDS:
        print(f"usage: python -m serl_fast.data COMMAND …\n\n{__doc__}\n")
        for command, (_, function) in COMMANDS.items():
            print(f"  {command:10} {function.__doc__}")
        print("\npython -m serl_fast.data COMMAND --help says more")
        if name in ("--help", "-h"):
            return 0
        raise ValueError(f"command {name!r} is not known; choose from {', '.join(COMMANDS)}")
    config, function = COMMANDS[name]
    prog = f"python -m serl_fast.data {name}"
    return function(parse(config, arguments, description=function.__doc__ or "", prog=prog))


def _require_some(paths: Sequence[Path], count: int, what: str, exactly: bool = False) -> None:
    if len(paths) < count or (exactly and len(paths) > count):
        raise ValueError(f"{len(paths)} paths are given; give {what}")


def _followed(dataset: Dataset) -> Iterator[Episode]:
    """A pass over a data set that shows how far it is."""
    return tracked(dataset, dataset.steps, f"reading {dataset.path.name}", len)


def _recordings(dataset: Dataset) -> list[int]:
    """For each episode the number of its recording, from 0 on: episodes cut from one have its name among theirs."""
    if dataset.episodes is not None:
        return list(range(dataset.episodes))
    numbers: list[int] = []
    before: Any = None
    for episode in _followed(dataset):
        recording = episode.attributes.get("demo", episode.attributes.get("episode_index"))
        same = recording is not None and recording == before
        numbers.append((numbers[-1] if numbers else -1) + (not same))
        before = recording
    return numbers


def _chosen(dataset: Dataset, wanted: Sequence[bool]) -> Iterator[Episode]:
    """The episodes whose place in ``wanted`` is true."""
    number = 0
    for number, episode in enumerate(_followed(dataset), 1):
        if number <= len(wanted) and wanted[number - 1]:
            yield episode
    if number != len(wanted):
        raise DatasetError(f"{dataset.path} has {_count(number, 'episode')}; its headers say {len(wanted)}")


def _alike(datasets: Sequence[Dataset]) -> Iterator[Episode]:
    """The episodes of all data sets, which must have the same fields."""
    first: Episode | None = None
    for dataset in datasets:
        for episode in _followed(dataset):
            try:
                check_episode(episode, first)
            except DatasetError as error:
                raise DatasetError(f"{dataset.path}, {episode.name}: {error}") from None
            first = first or dataclasses.replace(first_step(episode), name=f"{dataset.path}, {episode.name}")
            yield episode


def _counted(episodes: Iterable[Episode], target: Path) -> Iterator[Episode]:
    count = steps = 0
    for episode in episodes:
        count, steps = count + 1, steps + len(episode)
        yield episode
    print(f"{target}: {_count(count, 'episode')}, {_count(steps, 'step')}")


def _print_summary(summary: Summary) -> None:
    lengths, returns, episodes = summary.lengths, summary.returns, len(summary.lengths)
    ends = ", ".join(f"{summary.ends[name]} {name}" for name in ("terminated", "truncated", "open"))
    facts = [
        ("format", summary.format),
        ("episodes", f"{episodes}: {ends}"),
        ("steps", f"{summary.steps}; {min(lengths)} … {max(lengths)} an episode, median {np.median(lengths):g}"),
        ("success", f"{summary.successes} of {episodes} ({summary.told_by})"),
        ("returns", f"{min(returns):g} … {max(returns):g}, mean {np.mean(returns):g}"),
        ("idle steps", f"{summary.idle} with an action of zeros"),
        *((key, str(value)) for key, value in summary.attributes.items() if value != "" and np.size(value) < 20),
    ]
    _print_table(str(summary.path), ("", ""), facts)
    rows = [
        (name, known.dtype, str(known.shape), f"{known.low.min():g}", f"{known.high.max():g}")
        if known.low.size
        else (name, known.dtype, str(known.shape), "", "")
        for name, known in summary.ranges.items()
    ]
    _print_table("fields", ("name", "dtype", "shape of a step", "least", "most"), rows)
    actions = summary.ranges["actions"]
    limits = enumerate(zip(actions.low, actions.high, strict=True))
    dimensions = [(str(index), f"{low:g}", f"{high:g}") for index, (low, high) in limits]
    _print_table("actions", ("dimension", "least", "most"), dimensions)


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of rich's on a terminal, else text in columns."""
    if sys.stdout.isatty():
        try:
            table = require("rich.table", "logging").Table(*columns, title=title, show_header=any(columns))
            for row in rows:
                table.add_row(*row)
            require("rich.console", "logging").Console().print(table)
            return
        except MissingExtraError as error:
            print(error)
    print(title)
    lines = [columns, *rows] if any(columns) else rows
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns) - 1)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        print("  " + "  ".join([*cells, line[-1]]).rstrip())


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
