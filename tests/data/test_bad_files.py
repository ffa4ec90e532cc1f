"""A corpus of bad files of every format: each is refused by name, nothing is run, hangs or is half-loaded."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serl_fast.data.episodes import Episode
from serl_fast.data.fill import fill_store, schema_of, store_of
from serl_fast.data.formats import open_dataset, write_dataset
from serl_fast.data.validation import validate
from serl_fast.replay import ReplayStore

Builder = Callable[[Path, Path], Path]
"""Makes a bad file in a folder, of which the second argument holds good ones; returns what is to be read."""

BAD: dict[str, Builder] = {}
MEMORY = 64e6  # bytes that looking at any of them may take
NEEDS = {"hdf5": "h5py", "minari": "h5py", "lerobot": "pyarrow"}


def case(name: str) -> Callable[[Builder], Builder]:
    def register(builder: Builder) -> Builder:
        assert name not in BAD
        BAD[name] = builder
        return builder

    return register


def episode(number: int, camera: bool = False) -> Episode:
    rng = np.random.default_rng(number)
    ends = np.arange(6) == 5
    observations = {"state": rng.normal(size=(7, 3)).astype(np.float32)}
    if camera:
        observations["front"] = rng.integers(0, 256, (7, 16, 16, 3), np.uint8)
    actions = rng.uniform(-1, 1, (6, 2)).astype(np.float32)
    return Episode(observations, actions, ends.astype(np.float32), ends, np.zeros(6, bool), name=str(number))


# ---------------------------------------------------------------------------------------------------- pickles


def rows(count: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "observations": {"state": np.full(3, i, np.float32), "front": np.full((4, 4, 3), i, np.uint8)},
            "actions": np.zeros(2, np.float32),
            "next_observations": {"state": np.full(3, i + 1, np.float32), "front": np.full((4, 4, 3), i + 1, np.uint8)},
            "rewards": 0.0,
            "masks": 1.0,
            "dones": False,
        }
        for i in range(count)
    ]


def pickled(content: Any) -> Builder:
    return lambda folder, _: _put(folder / "bad.pkl", content if isinstance(content, bytes) else pickle.dumps(content))


def changed(row: int = 2, **changes: Any) -> list[dict[str, Any]]:
    return [{**value, **changes} if i == row else value for i, value in enumerate(rows())]


def _put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


GOOD_PICKLE = pickle.dumps(rows())
for _part in (0, 1, 2, 3, 30, 200, 700, 1500, len(GOOD_PICKLE) - 1):
    BAD[f"pickle cut at {_part}"] = pickled(GOOD_PICKLE[:_part])
_WITHOUT_MASKS = [{key: value for key, value in row.items() if key != "masks"} for row in rows()]
_WIDE = {"state": np.zeros(4, np.float32), "front": np.zeros((4, 4, 3), np.uint8)}
BAD |= {
    "pickle and more": pickled(GOOD_PICKLE + b"more"),
    "pickle twice": pickled(GOOD_PICKLE + GOOD_PICKLE),
    "pickle of protocol 0": pickled(pickle.dumps(rows(), 0)),
    "pickle of a dict": pickled({"observations": 1}),
    "pickle of nothing": pickled([]),
    "pickle of numbers": pickled([1, 2, 3]),
    "pickle without masks": pickled(_WITHOUT_MASKS),
    "pickle with nan": pickled(changed(actions=np.array([0, np.nan]))),
    "pickle with infinity": pickled(changed(rewards=np.inf)),
    "pickle with 1e300": pickled(changed(actions=np.array([0, 1e300]))),
    "pickle with text": pickled(changed(actions="left")),
    "pickle with complex numbers": pickled(changed(actions=np.zeros(2, complex))),
    "pickle with two shapes": pickled(changed(actions=np.zeros(3, np.float32))),
    "pickle with another state": pickled(changed(observations=_WIDE, next_observations=_WIDE)),
    "pickle with a float image": pickled(changed(observations={"state": np.zeros(3), "front": np.zeros((4, 4, 3))})),
    "pickle with a half mask": pickled(changed(masks=0.5)),
    "pickle with an object array": pickled(changed(actions=np.array([{}, []], object))),
    "pickle with a structure": pickled(changed(actions=np.zeros(2, [("x", float)]))),
    "pickle with a ragged array": pickled(changed(actions=[[1.0], [1.0, 2.0]])),
}


class Payload:
    """Unpickled by Python's own unpickler this makes a folder."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> Any:
        return self.call


def hostile(make: Callable[[str], Any]) -> Builder:
    """``make`` gets the folder that the payload would make."""

    def build(folder: Path, _: Path) -> Path:
        content = make(str(folder / "executed"))
        return _put(folder / "bad.pkl", content if isinstance(content, bytes) else pickle.dumps(content))

    return build


def _global(module: str, name: str, argument: str, protocol: int = 2) -> bytes:
    """A list that holds what ``module.name(argument)`` returns."""
    return (
        bytes([0x80, protocol]) + b"](c" + f"{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(argument))
        + argument.encode() + b"\x85Re."
    )  # fmt: skip


def _in_state(folder: str) -> Any:
    """Numbers whose dtype is a payload."""
    made = changed()
    made[0]["infos"] = {"x": np.array([Payload(os.mkdir, folder)], object)}
    return made


def _nested(depth: int) -> bytes:
    return b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b"."


def _laughs() -> bytes:
    """Lists of ten times the list before: 10^30 elements."""
    content = b"\x80\x02]q\x00"
    for level in range(30):
        content += b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 9 + b"eq" + bytes([level + 1])
    return content + b"."


BAD |= {
    "hostile call": hostile(lambda folder: [Payload(os.mkdir, folder)]),
    "hostile call in infos": hostile(lambda folder: changed(infos={"x": Payload(os.mkdir, folder)})),
    "hostile system": hostile(lambda folder: _global("posix", "system", f"mkdir {folder}")),
    "hostile eval": hostile(lambda folder: _global("builtins", "eval", f"__import__('os').mkdir({folder!r})")),
    "hostile eval of python 2": hostile(lambda folder: _global("__builtin__", "eval", f"open({folder!r}, 'w')")),
    "hostile getattr": hostile(lambda folder: _global("builtins", "getattr", folder)),
    "hostile dotted name": hostile(
        lambda folder: (
            b"\x80\x04](\x8c\x05numpy\x8c\x08os.mkdir\x93X"
            + struct.pack("<I", len(folder))
            + folder.encode()
            + b"\x85Re."
        )
    ),
    "hostile numpy.load": hostile(lambda folder: _global("numpy", "load", folder)),
    "hostile runstring": hostile(lambda folder: _global("numpy.testing._private.utils", "runstring", folder)),
    "hostile object array": hostile(_in_state),
    "hostile persistent id": pickled(b"\x80\x02](U\x01xQe."),
    "hostile extension": pickled(b"\x80\x02]\x82\x01a."),
    "hostile instance": pickled(b"\x80\x02](ios\nsystem\ne."),
    "hostile new object": pickled(b"\x80\x02](csubprocess\nPopen\n(X\x02\x00\x00\x00lst\x81e."),
    "hostile state of a global": pickled(b"\x80\x02](cnumpy\nndarray\n}(X\x01\x00\x00\x00aK\x01ube."),
    "bomb of claimed bytes": pickled(b"\x80\x04]\x8e" + struct.pack("<Q", 1 << 40) + b"a."),
    "bomb of claimed text": pickled(b"\x80\x04]\x8d" + struct.pack("<Q", (1 << 63) - 1) + b"a."),
    "bomb of a memo": pickled(b"\x80\x02]r\xff\xff\xff\x7f."),
    "bomb of a memo again": pickled(b"\x80\x02]" + b"r\x00\x00\x00\x70" * 2 + b"."),
    "bomb of nested lists": pickled(_nested(20_000)),
    "bomb of laughs": pickled(_laughs()),
    "bomb of bytes": pickled(b"\x80\x02](c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85Re."),
    "a list that holds itself": pickled(b"\x80\x02]q\x00h\x00a."),
    "an array of a false shape": pickled(
        pickle.dumps(changed(actions=np.zeros(2, np.float64)), 2).replace(b"K\x02\x85", b"J\xff\xff\xff\x7f\x85")
    ),
    "random bytes": pickled(np.random.default_rng(0).bytes(4096)),
    "random bytes behind a header": pickled(b"\x80\x04" + np.random.default_rng(1).bytes(4096)),
}


@case("folder that is empty")
def _(folder: Path, _: Path) -> Path:
    (folder / "bad").mkdir()
    return folder / "bad"


@case("folder of notes")
def _(folder: Path, _: Path) -> Path:
    (folder / "bad").mkdir()
    (folder / "bad" / "notes.txt").write_text("none")
    return folder / "bad"


@case("folder whose last pickle is cut")
def _(folder: Path, _: Path) -> Path:
    (folder / "bad").mkdir()
    for number in range(3):
        _put(folder / "bad" / f"transitions_{number}.pkl", GOOD_PICKLE)
    _put(folder / "bad" / "transitions_10.pkl", GOOD_PICKLE[:-5])
    return folder / "bad"


@case("folder whose pickles differ")
def _(folder: Path, _: Path) -> Path:
    (folder / "bad").mkdir()
    _put(folder / "bad" / "1.pkl", GOOD_PICKLE)
    _put(folder / "bad" / "2.pkl", pickle.dumps([{**row, "actions": np.zeros(3)} for row in rows()]))
    return folder / "bad"


@case("file of no format")
def _(folder: Path, _: Path) -> Path:
    return _put(folder / "bad.txt", b"observations, actions")


# ------------------------------------------------------------------------------------------- HDF5: D4RL, robomimic


def cut(name: str, part: float) -> Builder:
    """The good file of that name up to a part of its length."""

    def build(folder: Path, good: Path) -> Path:
        content = (good / name).read_bytes()
        return _put(folder / f"bad{Path(name).suffix}", content[: int(part * len(content))])

    return build


def edited(name: str, edit: Callable[[Any, Any], None]) -> Builder:
    """The good file of that name after ``edit(h5py, file)``."""

    def build(folder: Path, good: Path) -> Path:
        import h5py

        path = folder / "bad.hdf5"
        shutil.copy(good / name, path)
        with h5py.File(path, "a") as file:
            edit(h5py, file)
        return path

    return build


def instead(name: str, make: Callable[[Any, Any], Any]) -> Callable[[Any, Any], None]:
    """An edit that puts another value or data set in the place of one; ``make`` gets h5py and the old values."""

    def edit(h5py: Any, file: Any) -> None:
        old = file[name][()]
        del file[name]
        made = make(h5py, old)
        if isinstance(made, dict):
            file.create_dataset(name, **made)
        else:
            file[name] = made

    return edit


def _with(old: Any, where: Any, value: float) -> Any:
    new = old.copy()
    new[where] = value
    return new


D4RL, DEMO = "good_d4rl.hdf5", "data/demo_1"
for _part in (0.01, 0.2, 0.5, 0.9, 0.999):
    BAD[f"hdf5 d4rl cut at {_part}"] = cut(D4RL, _part)
    BAD[f"hdf5 robomimic cut at {_part}"] = cut("good_robomimic.hdf5", _part)
_D4RL_EDITS: dict[str, Callable[[Any, Any], None]] = {
    "without actions": lambda _, file: file.__delitem__("actions"),
    "without anything": lambda _, file: [file.__delitem__(name) for name in list(file)] and None,
    "with nan": instead("actions", lambda _, old: _with(old, (3, 1), np.nan)),
    "with infinite rewards": instead("rewards", lambda _, old: _with(old, 3, np.inf)),
    "with text": instead("rewards", lambda _, old: [b"good"] * len(old)),
    "with a structure": instead("actions", lambda _, old: np.zeros(len(old), [("x", "f4"), ("y", "f4")])),
    "with whole actions": instead("actions", lambda _, old: old.astype(np.int64)),
    "with fewer rewards": instead("rewards", lambda _, old: old[:-1]),
    "with a scalar": instead("terminals", lambda _, old: 1.0),
    "with a group for actions": lambda _, file: (file.__delitem__("actions"), file.create_group("actions"))[0],
    "with no rows": lambda _, file: [instead(name, lambda _, old: old[:0])(_, file) for name in list(file)] and None,
    "with a false shape": instead("observations", lambda _, old: {"shape": (12, 10**12), "dtype": "f4"}),
    "with a false length": instead("rewards", lambda _, old: {"shape": (10**12,), "dtype": "f4"}),
    "with an external link": instead("observations", lambda h5py, _: h5py.ExternalLink("good_d4rl.hdf5", "/actions")),
    "with a link to itself": instead("observations", lambda h5py, _: h5py.SoftLink("/observations")),
    "with a link to nothing": instead("observations", lambda h5py, _: h5py.SoftLink("/nowhere")),
    "with data in another file": instead(
        "observations", lambda _, old: {"shape": (12, 3), "dtype": "f4", "external": [(__file__, 0, 144)]}
    ),
    "with a bomb": instead(
        "observations",
        lambda _, old: {"data": np.zeros((12, 1_000_000), "f4"), "compression": "gzip", "chunks": (1, 1_000_000)},
    ),
}
for _name, _edit in _D4RL_EDITS.items():
    BAD[f"hdf5 d4rl {_name}"] = edited(D4RL, _edit)


def _loop(h5py: Any, file: Any) -> None:
    del file[f"{DEMO}/obs"]
    file[f"{DEMO}/obs"] = file["data"]  # a group within itself


def _virtual(h5py: Any, file: Any) -> None:
    del file[f"{DEMO}/actions"]
    layout = h5py.VirtualLayout((6, 2), "f4")
    layout[:] = h5py.VirtualSource("good_d4rl.hdf5", "actions", (12, 2))[:6]
    file[DEMO].create_virtual_dataset("actions", layout)


_ROBOMIMIC_EDITS: dict[str, Callable[[Any, Any], None]] = {
    "without observations": lambda _, file: file.__delitem__(f"{DEMO}/obs"),
    "without actions": lambda _, file: file.__delitem__(f"{DEMO}/actions"),
    "with another shape": instead(f"{DEMO}/actions", lambda _, old: np.zeros((6, 3), "f4")),
    "with nan": instead(f"{DEMO}/obs/state", lambda _, old: _with(old, (2, 0), np.nan)),
    "with text": instead(f"{DEMO}/actions", lambda _, old: [b"left"] * 6),
    "with fewer rewards": instead(f"{DEMO}/rewards", lambda _, old: old[:-1]),
    "with a demonstration that is an array": lambda _, file: (file.__delitem__(DEMO), file.__setitem__(DEMO, [1.0]))[0],
    "with an external link": lambda h5py, file: (
        file.__delitem__(DEMO),
        file.__setitem__(DEMO, h5py.ExternalLink("good_robomimic.hdf5", "/data/demo_0")),
    )[0],
    "with soft links in a circle": lambda h5py, file: (
        file.__delitem__(DEMO),
        file.__setitem__(DEMO, h5py.SoftLink("/x")),
        file.__setitem__("x", h5py.SoftLink(f"/{DEMO}")),
    )[0],
    "with a group in itself": _loop,
    "with a virtual data set": _virtual,
    "with a float camera": instead(f"{DEMO}/obs/front", lambda _, old: old.astype("f4")),
    "with a smaller camera": instead(f"{DEMO}/obs/front", lambda _, old: old[:, :8]),
}
for _name, _edit in _ROBOMIMIC_EDITS.items():
    BAD[f"hdf5 robomimic {_name}"] = edited("good_robomimic.hdf5", _edit)


@case("hdf5 that is text")
def _(folder: Path, _: Path) -> Path:
    return _put(folder / "bad.hdf5", b"not HDF5 at all")


@case("hdf5 of something else")
def _(folder: Path, _: Path) -> Path:
    import h5py

    with h5py.File(folder / "bad.hdf5", "w") as file:
        file["weights/kernel"] = np.zeros(3)
    return folder / "bad.hdf5"


# ------------------------------------------------------------------------------------------------- npz: OGBench


def arrays(**changes: Any) -> dict[str, Any]:
    ends = np.arange(12) % 6 == 5
    return {
        "observations": np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32),
        "actions": np.zeros((12, 2), np.float32),
        "terminals": ends.astype(np.float32),
        **changes,
    }


def npz(**changes: Any) -> Builder:
    def build(folder: Path, _: Path) -> Path:
        np.savez(folder / "bad.npz", **{key: value for key, value in arrays(**changes).items() if value is not None})
        return folder / "bad.npz"

    return build


def members(**changes: bytes) -> Builder:
    """Members as they stand; others are those of a good file."""

    def build(folder: Path, _: Path) -> Path:
        with zipfile.ZipFile(folder / "bad.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, value in arrays().items():
                stream = io.BytesIO()
                np.save(stream, value)
                archive.writestr(f"{name}.npy", changes.get(name, stream.getvalue()))
        return folder / "bad.npz"

    return build


def _npy(descr: Any, shape: Any, body: bytes = b"") -> bytes:
    stream = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + body


@case("npz with a hostile object array")
def _(folder: Path, _: Path) -> Path:
    payload = np.empty(12, object)
    payload[0] = Payload(os.mkdir, str(folder / "executed"))
    np.savez(folder / "bad.npz", **arrays(actions=payload))
    return folder / "bad.npz"


@case("npz that is a pickle")
def _(folder: Path, _: Path) -> Path:
    return _put(folder / "bad.npz", pickle.dumps([Payload(os.mkdir, str(folder / "executed"))]))


for _part in (0.1, 0.5, 0.95):
    BAD[f"npz cut at {_part}"] = cut("good_ogbench.npz", _part)
BAD |= {
    "npz without actions": npz(actions=None),
    "npz with nan": npz(actions=np.full((12, 2), np.nan, np.float32)),
    "npz with text": npz(actions=np.full((12, 2), "left")),
    "npz with fewer actions": npz(actions=np.zeros((11, 2), np.float32)),
    "npz with whole actions": npz(actions=np.zeros((12, 2), np.int64)),
    "npz with a wrong image": npz(observations=np.zeros((12, 8, 8), np.uint8)),
    "npz with a scalar": npz(terminals=np.float32(1)),
    "npz with a false shape": members(observations=_npy("<f4", (12, 10**12))),
    "npz with a negative shape": members(observations=_npy("<f4", (12, -3), bytes(144))),
    "npz with a shape of text": members(observations=b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'shape': 'x'}\n"),
    "npz with code for a header": members(
        observations=b"\x93NUMPY\x01\x00\x76\x00" + b"__import__('os').mkdir('executed')".ljust(117) + b"\n"
    ),
    "npz with a bomb": members(observations=_npy("<f4", (12, 10**7), bytes(480_000_000)[:120_000_000])),
    "npz with an empty member": members(observations=b""),
    "npz with nonsense": members(observations=b"nonsense" * 20),
}


# ------------------------------------------------------------------------------------------- folders: Minari, LeRobot

_BOX = json.dumps(
    {"type": "Box", "dtype": "float32", "shape": [3], "low": [-1.0] * 3, "high": [1.0] * 3, "title": "space"}
)
_ACTION = _BOX.replace("[3]", "[2]")
_MINARI = {
    "data_format": "hdf5",
    "total_episodes": 2,
    "total_steps": 12,
    "observation_space": _BOX,
    "action_space": _ACTION,
    "dataset_id": "x/y-v0",
}


def minari(metadata: Any = None, edit: Callable[[Any], None] | None = None, part: float = 1.0) -> Builder:
    def build(folder: Path, _: Path) -> Path:
        import h5py

        data = folder / "bad-v0" / "data"
        data.mkdir(parents=True)
        content = metadata if isinstance(metadata, str) else json.dumps({**_MINARI, **(metadata or {})})
        (data / "metadata.json").write_text(content)
        with h5py.File(data / "main_data.hdf5", "w") as file:
            for number in range(2):
                group = file.create_group(f"episode_{number}")
                given = episode(number)
                group["observations"], group["actions"] = given.observations["state"], given.actions
                group["rewards"] = given.rewards
                group["terminations"], group["truncations"] = given.terminated, given.truncated
            if edit is not None:
                edit(file)
        content = (data / "main_data.hdf5").read_bytes()
        _put(data / "main_data.hdf5", content[: int(part * len(content))])
        return folder / "bad-v0"

    return build


BAD |= {
    "minari with nonsense for metadata": minari('{"data_format": "hdf5", '),
    "minari with a list for metadata": minari('["data_format"]'),
    "minari with nested metadata": minari('{"data_format": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "minari with another format": minari({"data_format": "pickle"}),
    "minari with text for a count": minari({"total_episodes": "two"}),
    "minari with more episodes": minari({"total_episodes": 3}),
    "minari with a false space": minari({"observation_space": '{"type": "Box"}'}),
    "minari with discrete actions": minari(
        {"action_space": '{"type": "Discrete", "n": 3, "start": 0, "dtype": "int64"}'}
    ),
    "minari cut": minari(part=0.6),
    "minari without actions": minari(edit=lambda file: file["episode_1"].__delitem__("actions")),
    "minari with nan": minari(edit=lambda file: file["episode_1/actions"].__setitem__((0, 0), np.nan)),
    "minari with fewer observations": minari(
        edit=lambda file: (
            file["episode_1"].__delitem__("observations"),
            file["episode_1"].__setitem__("observations", np.zeros((5, 3), "f4")),
        )[0]
    ),
}


def lerobot(edit: Callable[[Path], None]) -> Builder:
    def build(folder: Path, good: Path) -> Path:
        shutil.copytree(good / "good_lerobot", folder / "bad")
        edit(folder / "bad")
        return folder / "bad"

    return build


def info(**changes: Any) -> Builder:
    def edit(folder: Path) -> None:
        path = folder / "meta" / "info.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return lerobot(edit)


def table(pattern: str, change: Callable[[Any], Any]) -> Builder:
    """The table of the first file of that pattern after ``change``."""

    def edit(folder: Path) -> None:
        import pyarrow.parquet

        path = next(iter(sorted(folder.glob(pattern))))
        pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)

    return lerobot(edit)


def replaced(pattern: str, content: bytes) -> Builder:
    return lerobot(lambda folder: [path.write_bytes(content) for path in folder.glob(pattern)] and None)


def shortened(pattern: str, part: float) -> Builder:
    def edit(folder: Path) -> None:
        path = next(iter(sorted(folder.glob(pattern))))
        content = path.read_bytes()
        path.write_bytes(content[: int(part * len(content))])

    return lerobot(edit)


def _column(name: str, values: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def change(found: Any) -> Any:
        import pyarrow

        return found.set_column(found.column_names.index(name), name, pyarrow.array(values(found[name].to_pylist())))

    return change


_DATA, _EPISODES, _FILM = "data/**/*.parquet", "meta/episodes/**/*.parquet", "videos/**/*.mp4"
BAD |= {
    "lerobot with nonsense for info": replaced("meta/info.json", b"{nonsense"),
    "lerobot with a list for info": replaced("meta/info.json", b"[1]"),
    "lerobot with an empty info": replaced("meta/info.json", b"{}"),
    "lerobot of version 9": info(codebase_version="v9.0"),
    "lerobot with text for fps": info(fps="ten"),
    "lerobot with a path outside": info(data_path="../../{chunk_index}/{file_index}.parquet"),
    "lerobot with code in a path": info(data_path="{chunk_index.__class__.__mro__}.parquet"),
    "lerobot without features": info(features={}),
    "lerobot with features of text": info(features={"action": "two numbers"}),
    "lerobot without episodes": lerobot(lambda folder: shutil.rmtree(folder / "meta" / "episodes")),
    "lerobot without data": lerobot(lambda folder: shutil.rmtree(folder / "data")),
    "lerobot without films": lerobot(lambda folder: shutil.rmtree(folder / "videos")),
    "lerobot with a cut table": shortened(_DATA, 0.7),
    "lerobot with a cut table of episodes": shortened(_EPISODES, 0.5),
    "lerobot with a cut film": shortened(_FILM, 0.3),
    "lerobot with a film of nonsense": replaced(_FILM, b"nonsense" * 500),
    "lerobot without actions": table(_DATA, lambda found: found.drop_columns(["action"])),
    "lerobot with fewer rows": table(_DATA, lambda found: found.slice(0, found.num_rows - 3)),
    "lerobot with text for actions": table(_DATA, _column("action", lambda old: ["left"] * len(old))),
    "lerobot with ragged actions": table(_DATA, _column("action", lambda old: [[0.5], [0.5, 1]] * (len(old) // 2))),
    "lerobot with nan": table(_DATA, _column("action", lambda old: [[float("nan")] * 2] * len(old))),
    "lerobot with other episodes": table(_DATA, _column("episode_index", lambda old: [7] * len(old))),
    "lerobot with lengths that do not fit": table(_EPISODES, _column("length", lambda old: [10**9] * len(old))),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the test


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good file of every format."""
    folder = tmp_path_factory.mktemp("good")
    _put(folder / "good.pkl", GOOD_PICKLE)
    np.savez(folder / "good_ogbench.npz", **arrays())
    for format, name, module in (
        ("d4rl", D4RL, "h5py"),
        ("robomimic", "good_robomimic.hdf5", "h5py"),
        ("lerobot", "good_lerobot", "pyarrow"),
    ):
        try:
            __import__(module)
            given = (episode(number, camera=format != "d4rl") for number in range(2))
            write_dataset(folder / name, given, format, {})
        except ModuleNotFoundError:
            continue
    return folder


def needed(name: str) -> None:
    for beginning, module in NEEDS.items():
        if name.startswith(beginning):
            pytest.importorskip(module)
    if name.startswith("lerobot"):
        pytest.importorskip("av")


GOOD = {
    "hdf5 d4rl": D4RL,
    "hdf5 robomimic": "good_robomimic.hdf5",
    "npz": "good_ogbench.npz",
    "minari": "good_ogbench.npz",  # whose steps have the same fields
    "lerobot": "good_lerobot",
}


def store(name: str, good: Path) -> ReplayStore:
    """For what the bad file would be if it were good."""
    path = next((path for beginning, path in GOOD.items() if name.startswith(beginning)), "good.pkl")
    return ReplayStore(schema_of(next(iter(open_dataset(good / path)))), 100)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused(name: str, tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed(name)
    monkeypatch.chdir(tmp_path)
    path = BAD[name](tmp_path, good)
    target = store(name, good)
    tracemalloc.start()
    with pytest.raises((ValueError, OSError)) as caught:
        fill_store(open_dataset(path), target, progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    with pytest.raises((ValueError, OSError)) as again:
        store_of(open_dataset(path), path=tmp_path / "store", progress=False)
    tracemalloc.stop()
    assert path.name in str(caught.value), caught.value
    assert path.name in str(again.value)
    assert len(str(caught.value)) < 600
    assert peak < MEMORY
    assert len(target) == target.appended == 0
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "executed").exists()
    findings = list(validate(path))
    assert any(finding.is_error for finding in findings)
    assert not (tmp_path / "executed").exists()


def test_the_good_files_are_good(good: Path) -> None:
    """So that the others are refused for what was done to them."""
    for path in sorted(good.iterdir()):
        assert len(store_of(open_dataset(path), progress=False)) >= 4, path
        assert not [finding for finding in validate(path) if finding.is_error]


def test_there_are_thirty_and_more() -> None:
    assert len(BAD) >= 30
