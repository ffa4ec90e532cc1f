"""How fast data sets come into a replay store, each reader beside the plain loop over the format's own library.

python -m benchmarks.data_import --output docs/results/data_import.md

Files of every format are made first, from episodes by chance. Both sides read them whole from the system's file cache
into something to sample from: a ``ReplayStore``, and the arrays of a replay buffer as SERL has them, into which the
loop copies transition by transition. They take turns; peak memory is measured in a process of its own for each.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.interleaved import Rate, summary, turns
from serl_fast.cli import main, parse
from serl_fast.data.episodes import Episode
from serl_fast.data.fill import store_of
from serl_fast.data.formats import open_dataset, write_dataset
from serl_fast.errors import require

STATE, ACTION = 17, 6
LENGTH = 100  # steps of an episode

Transition = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """Flags of the benchmark.

    Attributes:
        output: the page to write; without it, it is printed.
        rounds: of each side of each format.
        scale: of the number of episodes.
        formats: those that are measured; by default all.
        memory_of: measure the peak memory of one side, "ours" or "plain", of the one format; for the children.
        folder: where its files are.
    """

    output: Path | None = None
    rounds: int = 5
    scale: float = 1.0
    formats: tuple[str, ...] = ()
    memory_of: str | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise ValueError(f"rounds is {self.rounds}; there must be 2 at least")


class Format(NamedTuple):
    """A format to measure: its files, and the loop that someone without this project writes."""

    what: str
    episodes: int
    camera: int  # px; 0 for none
    make: Callable[[Path, Iterator[Episode]], Path]
    plain: Callable[[Path], Iterator[Transition]]
    library: str


class Buffer:
    """SERL's replay buffer: an array for every field, observations and next observations apart."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.size = capacity, 0
        self.arrays: dict[str, Any] = {}

    def insert(self, transition: Transition) -> None:
        if not self.arrays:
            self.arrays = {name: self._empty(value) for name, value in transition.items()}
        for name, value in transition.items():
            if isinstance(value, dict):
                for key, part in value.items():
                    self.arrays[name][key][self.size] = part
            else:
                self.arrays[name][self.size] = value
        self.size += 1

    def _empty(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._empty(part) for key, part in value.items()}
        array = np.asarray(value)
        kept = np.float32 if array.dtype.kind == "f" else array.dtype
        return np.empty((self.capacity, *array.shape), kept)


def episodes(count: int, camera: int, seed: int = 0) -> Iterator[Episode]:
    """Episodes by chance; what cameras see moves slowly, as it does before a robot."""
    rng = np.random.default_rng(seed)
    ends = np.arange(LENGTH) == LENGTH - 1
    for number in range(count):
        observations = {"state": rng.normal(size=(LENGTH + 1, STATE)).astype(np.float32)}
        if camera:
            wave = np.linspace(0, 6, camera)[:, None] + np.linspace(0, 4, camera) + rng.uniform(0, 6)
            phases = np.linspace(0, 3, LENGTH + 1)[:, None, None, None] + np.arange(3)
            frames = 110 + 90 * np.sin(wave[None, :, :, None] + phases)
            observations["front"] = (frames + rng.integers(0, 8, frames.shape)).astype(np.uint8)
        actions = rng.uniform(-1, 1, (LENGTH, ACTION)).astype(np.float32)
        rewards = rng.normal(size=LENGTH).astype(np.float32)
        yield Episode(observations, actions, rewards, ends, np.zeros(LENGTH, bool), name=f"episode {number}")


def transitions(observations: dict[str, Any], actions: Any, rewards: Any, terminated: Any) -> Iterator[Transition]:
    """The rows of an episode's arrays."""
    for step in range(len(actions)):
        yield {
            "observations": {key: value[step] for key, value in observations.items()},
            "actions": actions[step],
            "next_observations": {key: value[step + 1] for key, value in observations.items()},
            "rewards": rewards[step],
            "masks": 1.0 - terminated[step],
        }


def make_pickle(folder: Path, given: Iterator[Episode]) -> Path:
    write_dataset(folder / "data.pkl", given, "pickle")
    return folder / "data.pkl"


def plain_pickle(path: Path) -> Iterator[Transition]:
    with open(path, "rb") as file:
        for row in pickle.load(file):
            yield {key: row[key] for key in ("observations", "actions", "next_observations", "rewards", "masks")}


def make_d4rl(folder: Path, given: Iterator[Episode]) -> Path:
    write_dataset(folder / "data.hdf5", given, "d4rl")
    return folder / "data.hdf5"


def plain_d4rl(path: Path) -> Iterator[Transition]:
    with require("h5py", "data").File(path) as file:
        data = {
            name: file[name][()] for name in ("observations", "actions", "next_observations", "rewards", "terminals")
        }
    for row in range(len(data["rewards"])):
        yield {
            "observations": {"state": data["observations"][row]},
            "actions": data["actions"][row],
            "next_observations": {"state": data["next_observations"][row]},
            "rewards": data["rewards"][row],
            "masks": 1.0 - data["terminals"][row],
        }


def make_robomimic(folder: Path, given: Iterator[Episode]) -> Path:
    write_dataset(folder / "data.hdf5", given, "robomimic")
    return folder / "data.hdf5"


def plain_robomimic(path: Path) -> Iterator[Transition]:
    with require("h5py", "data").File(path) as file:
        for number in range(len(file["data"])):
            demo = file[f"data/demo_{number}"]
            now, after = ({key: demo[f"{part}/{key}"][()] for key in demo[part]} for part in ("obs", "next_obs"))
            actions, rewards, dones = (demo[name][()] for name in ("actions", "rewards", "dones"))
            for step in range(len(actions)):
                yield {
                    "observations": {key: value[step] for key, value in now.items()},
                    "actions": actions[step],
                    "next_observations": {key: value[step] for key, value in after.items()},
                    "rewards": rewards[step],
                    "masks": 1.0 - dones[step],
                }


def make_minari(folder: Path, given: Iterator[Episode]) -> Path:
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    minari, spaces = require("minari", "dev"), require("gymnasium.spaces", "sim")
    buffer = require("minari.data_collector", "dev").EpisodeBuffer
    buffers = [
        buffer(
            id=number, observations=list(episode.observations["state"]), actions=list(episode.actions),
            rewards=episode.rewards.tolist(), terminations=episode.terminated.tolist(),
            truncations=episode.truncated.tolist(),
        )
        for number, episode in enumerate(given)
    ]  # fmt: skip
    minari.create_dataset_from_buffers(
        "benchmark/data-v0", buffers, observation_space=spaces.Box(-np.inf, np.inf, (STATE,), np.float32),
        action_space=spaces.Box(-1, 1, (ACTION,), np.float32), description="made for a benchmark",
    )  # fmt: skip
    return folder / "benchmark" / "data-v0"


def plain_minari(path: Path) -> Iterator[Transition]:
    os.environ["MINARI_DATASETS_PATH"] = str(path.parents[1])
    for episode in require("minari", "dev").load_dataset("benchmark/data-v0").iterate_episodes():
        state = {"state": episode.observations}
        yield from transitions(state, episode.actions, episode.rewards, episode.terminations)


def make_ogbench(folder: Path, given: Iterator[Episode]) -> Path:
    """A row more for every trajectory: its last observation."""
    parts = list(given)
    flags = np.tile(np.arange(LENGTH + 1) == LENGTH, len(parts))
    np.savez_compressed(
        folder / "visual-play-v0.npz",
        observations=np.concatenate([part.observations["front"] for part in parts]),
        actions=np.concatenate([np.concatenate([part.actions, part.actions[-1:]]) for part in parts]),
        terminals=flags.astype(np.float32),
    )
    return folder / "visual-play-v0.npz"


def plain_ogbench(path: Path) -> Iterator[Transition]:
    with np.load(path) as file:
        data = {name: file[name] for name in ("observations", "actions", "terminals")}
    for row in np.flatnonzero(data["terminals"] == 0):
        yield {
            "observations": {"image": data["observations"][row]},
            "actions": data["actions"][row],
            "next_observations": {"image": data["observations"][row + 1]},
            "rewards": 0.0,
            "masks": 1.0,
        }


def make_lerobot(folder: Path, given: Iterator[Episode]) -> Path:
    write_dataset(folder / "data", given, "lerobot", {"fps": 10})
    return folder / "data"


def plain_lerobot(path: Path) -> Iterator[Transition]:
    parquet, av = require("pyarrow.parquet", "data"), require("av", "data")
    films = iter(sorted((path / "videos").rglob("*.mp4")))
    frames = (frame.to_ndarray(format="rgb24") for film in films for frame in av.open(str(film)).decode(video=0))
    for file in sorted((path / "data").rglob("*.parquet")):
        columns = parquet.read_table(file)
        data = {
            name: np.array(columns[name].to_pylist())
            for name in ("action", "observation.state", "next.reward", "next.done", "episode_index")
        }
        before: tuple[int, Any] | None = None
        for row, frame in zip(range(len(data["action"])), frames, strict=False):
            observation = {"front": frame, "state": data["observation.state"][row]}
            if before is not None:
                yield _step(data, before[0], before[1], observation)
            if data["next.done"][row]:  # nothing follows: the last frame once more
                yield _step(data, row, observation, observation)
            before = None if data["next.done"][row] else (row, observation)


def _step(data: dict[str, Any], row: int, observation: Any, following: Any) -> Transition:
    return {
        "observations": observation,
        "actions": data["action"][row],
        "next_observations": following,
        "rewards": data["next.reward"][row],
        "masks": 1.0 - data["next.done"][row],
    }


FORMATS = {
    "pickle": Format("state and camera 64 px", 30, 64, make_pickle, plain_pickle, "pickle.load"),
    "d4rl": Format("states", 1000, 0, make_d4rl, plain_d4rl, "h5py"),
    "robomimic": Format("state and camera 84 px, gzip", 20, 84, make_robomimic, plain_robomimic, "h5py"),
    "minari": Format("states", 300, 0, make_minari, plain_minari, "minari"),
    "ogbench": Format("camera 64 px, deflate", 30, 64, make_ogbench, plain_ogbench, "np.load"),
    "lerobot": Format("state and camera 96 px, H.264", 10, 96, make_lerobot, plain_lerobot, "pyarrow, PyAV"),
}


def make(name: str, folder: Path, scale: float) -> tuple[Path, int]:
    """The files of a format, and how many transitions they hold."""
    form = FORMATS[name]
    count = max(round(scale * form.episodes), 2)
    return form.make(folder, episodes(count, form.camera)), count * LENGTH


def ours(path: Path) -> Any:
    return store_of(open_dataset(path), _capacity(path), progress=False)


def plain(path: Path) -> Buffer:
    buffer = Buffer(_capacity(path))
    for transition in FORMATS[path.parents[_DEPTH.get(path.name, 0)].name].plain(path):
        buffer.insert(transition)
    return buffer


_DEPTH = {"data-v0": 1}  # folders between the data set and the folder that has the format's name


def _capacity(path: Path) -> int:
    return int((path.parents[_DEPTH.get(path.name, 0)] / "transitions.txt").read_text())


SIDES: dict[str, Callable[[Path], Any]] = {"ours": ours, "plain": plain}


def content_bytes(store: Any) -> int:
    """What the store holds: every observation once."""
    return int(store.nbytes)


def size_on_disk(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


class Measured(NamedTuple):
    """Of one format."""

    name: str
    content: int
    stored: int
    rates: dict[str, Rate]  # fillings per second
    peaks: dict[str, int]


def measure(name: str, folder: Path, config: Config) -> Measured:
    folder = folder / name
    folder.mkdir()
    path, count = make(name, folder, config.scale)
    (folder / "transitions.txt").write_text(str(count))
    store = ours(path)
    content, held = content_bytes(store), len(store)
    if held != count or plain(path).size != count:
        raise RuntimeError(f"{name}: {held} of {count} transitions were read")
    del store
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for side in turns(list(SIDES), config.rounds):
        start = time.perf_counter()
        SIDES[side](path)
        times[side].append(1 / (time.perf_counter() - start))
    peaks = {side: peak_memory(name, side, path) for side in SIDES}
    return Measured(name, content, size_on_disk(path), {s: summary(t) for s, t in times.items()}, peaks)


def peak_memory(name: str, side: str, path: Path) -> int:
    """Peak resident memory, bytes, of a fresh process that fills once, without what it has before it starts."""
    command = [sys.executable, "-m", "benchmarks.data_import", "--memory_of", side, "--formats", name]
    done = subprocess.run([*command, "--folder", str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def print_peak(config: Config) -> None:
    assert config.memory_of is not None
    assert config.folder is not None
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak so far is forgotten
    before = _peak()
    kept = SIDES[config.memory_of](config.folder)
    print(_peak() - before, flush=True)
    del kept


def _peak() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def page(found: list[Measured], block: str, config: Config) -> str:
    header = (
        "| format | contents | content, MB | on disk, MB | reader, MB/s | plain loop, MB/s | ratio | reader's peak, MB "
        "| loop's peak, MB |"
    )
    lines = [header, "|" + "---|" * (header.count("|") - 1)]
    for one in found:
        speed = {side: one.content / 1e6 * rate.median for side, rate in one.rates.items()}
        form = FORMATS[one.name]
        lines.append(
            f"| {one.name} | {form.what} | {one.content / 1e6:.0f} | {one.stored / 1e6:.1f} | {speed['ours']:.0f} "
            f"| {speed['plain']:.0f} ({form.library}) | {speed['ours'] / speed['plain']:.2f} "
            f"| {one.peaks['ours'] / 1e6:.0f} | {one.peaks['plain'] / 1e6:.0f} |"
        )
    return f"""# Import of data sets

Every reader fills a `ReplayStore`, checked field by field, beside the plain loop over the format's library, which
copies transition by transition into arrays as SERL's replay buffer has them and checks nothing. MB are those of the
content, each observation counted once, whatever the file compresses it to; medians of {config.rounds} rounds in turns,
read from the system's file cache. The peak is the resident memory that filling adds to a fresh process: the store or
arrays themselves, and what reading takes beside them.

{chr(10).join(lines)}

```bash
python -m benchmarks.data_import --output docs/results/data_import.md
```

{block}
"""


def run(argv: list[str]) -> int:
    """Measure; the exit status."""
    config = parse(Config, argv, description=__doc__ or "")
    unknown = set(config.formats) - set(FORMATS)
    if unknown:
        raise ValueError(f"formats are {', '.join(unknown)}; choose from {', '.join(FORMATS)}")
    if config.memory_of is not None:
        print_peak(config)
        return 0
    from benchmarks.machine import (
        busy_cores,
        machine,
        markdown,
        quiet_or_caution,
    )  # with torch, which children need not

    busy, block = [busy_cores()], machine()
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for name in config.formats or FORMATS:
            print(f"{name} …", flush=True)
            found.append(measure(name, Path(folder), config))
    text = page(found, markdown(block | quiet_or_caution([*busy, busy_cores()])), config)
    if config.output is None:
        print(text)
    else:
        config.output.write_text(text)
        print(config.output)
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
