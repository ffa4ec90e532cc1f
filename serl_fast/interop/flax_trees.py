"""Files of flax parameters, read and written without flax: msgpack, npz, and pickles of arrays.

A tree is flat here: '/'-joined names to arrays. A file holds ``params`` and, for agents, ``target_params``; what else a
training state has (optimizers, random keys) is left where it is. Nothing that a file claims about sizes is believed
before it is compared with the bytes that are there, and no code in it is run.
"""

from __future__ import annotations

import io
import lzma
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serl_fast import safe_pickle
from serl_fast.errors import require
from serl_fast.files import written_whole

Array = np.ndarray[Any, Any]
Tree = dict[str, Array]

MAX_BYTES = 2**31
"""Largest size of all arrays of a file together; a HIL-SERL agent with its targets and optimizers has under 0.5e9."""

MAX_DEPTH = 64
"""Deepest nesting that is read."""

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # flax's extension types of msgpack
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = frozenset(
    ["bool", "complex64", "complex128", "float16", "float32", "float64"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
)
_SECTIONS = ("params", "target_params")


@dataclass(frozen=True)
class ParameterTrees:
    """The parameters in a file.

    Attributes:
        params: by '/'-joined name.
        target_params: those of the target networks, under the same names; empty where there are none.
        left: further entries of the file that were not read, such as ``opt_states``.
    """

    params: Tree
    target_params: Tree = field(default_factory=dict)
    left: tuple[str, ...] = ()


class FileError(ValueError):
    """A file that can not be read; the message names it and says why."""


def read_trees(path: str | Path) -> ParameterTrees:
    """Read a file of parameters; its kind is found from its content.

    Args:
        path: a msgpack file of ``flax.serialization`` (also ``checkpoint_<step>`` of older versions of flax), an npz
            file with '/'-joined names, or a pickle of nested dicts of arrays, each also compressed by xz.

    Raises:
        ValueError: the file is damaged, of another kind, larger than :data:`MAX_BYTES`, or an orbax checkpoint, which
            is a folder; the message says what to do.
        OSError: the file can not be opened.
    """
    path = Path(path)
    if path.is_dir():
        raise FileError(_folder_message(path))
    if path.stat().st_size > MAX_BYTES:
        raise FileError(f"{path}: {path.stat().st_size} bytes; at most {MAX_BYTES} are read")
    data = path.read_bytes()
    try:
        if data.startswith(b"\xfd7zXZ"):
            data = _decompress(data)
        if data.startswith(b"PK"):
            return _from_npz(data)
        if data[:1] == b"\x80":  # a pickle from protocol 2 on; in msgpack an empty dict
            return _sections(_flat(safe_pickle.loads(data, str(path))))
        return _sections(_flat(_from_msgpack(data)))
    except FileError as error:
        raise FileError(f"{path}: {error}") from None


def write_trees(path: str | Path, trees: ParameterTrees, names: Iterable[str] = ()) -> Path:
    """Write parameters as msgpack, or as npz where the name ends so; the old file stays whole until the new one is.

    Args:
        path: the file to make.
        trees: what to write; ``left`` is not looked at.
        names: keys of the tree that hold a '/' themselves, such as ``encoder_left/wrist``, and stay one key in msgpack.
    """
    path = Path(path)
    content = {"params": trees.params, "target_params": trees.target_params}
    content = {section: tree for section, tree in content.items() if tree}
    if path.suffix == ".npz":
        buffer = io.BytesIO()
        named = {f"{section}/{name}": v for section, tree in content.items() for name, v in tree.items()}
        np.savez(buffer, **named)  # type: ignore[arg-type]
        data = buffer.getvalue()
    else:
        data = _to_msgpack({section: nested(tree, names) for section, tree in content.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_bytes(data)
    return path


def nested(tree: Mapping[str, Any], names: Iterable[str] = ()) -> dict[str, Any]:
    """The nested dict of a flat tree; see :func:`write_trees` for ``names``."""
    result: dict[str, Any] = {}
    whole = [(name, name.replace("/", "\0")) for name in names if "/" in name]
    for path, value in tree.items():
        for name, marked in whole:
            path = f"/{path}".replace(f"/{name}/", f"/{marked}/")[1:]
        *parents, last = (key.replace("\0", "/") for key in path.split("/"))
        inner = result
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return result


def trees_of(content: Mapping[str, Any]) -> ParameterTrees:
    """The parameters in a dict of arrays: nested or with '/'-joined names, with or without ``params`` at the top.

    Raises:
        ValueError: there is no array in it.
    """
    return _sections(_flat(content))


def _sections(tree: Tree) -> ParameterTrees:
    """Split a file's flat tree into parameters, targets and the rest. A file of parameters alone has no sections."""
    if not tree:
        raise FileError("no arrays in it")
    found: dict[str, Tree] = {name: {} for name in _SECTIONS}
    left = []
    for path, value in tree.items():
        section, _, rest = path.partition("/")
        if section in found and rest:
            found[section][rest] = value
        else:
            left.append(section)
    if not found["params"] and not found["target_params"]:
        return ParameterTrees(tree)
    return ParameterTrees(found["params"], found["target_params"], tuple(dict.fromkeys(left)))


def _flat(tree: Any) -> Tree:
    """The arrays and numbers of nested dicts by '/'-joined name; texts and Nones are no parameters."""
    if not isinstance(tree, Mapping):
        raise FileError(f"it holds a {type(tree).__name__}; expected a dict of parameters")
    return dict(_leaves(tree, "", 0))


def _leaves(tree: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Array]]:
    if depth > MAX_DEPTH:
        raise FileError(f"dicts nested more than {MAX_DEPTH} deep")
    for key, value in tree.items():
        if not isinstance(key, str):
            raise FileError(f"a key of type {type(key).__name__} below {prefix!r}; expected texts")
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/", depth + 1)
        elif isinstance(value, (list, tuple)):
            yield from _leaves({str(i): item for i, item in enumerate(value)}, f"{prefix}{key}/", depth + 1)
        elif isinstance(value, (bool, int, float, complex)) or hasattr(value, "__array__"):
            yield f"{prefix}{key}", np.asarray(value)


def _from_msgpack(data: bytes) -> Any:
    """The content of a file of ``flax.serialization``."""
    msgpack = require("msgpack", "interop")
    try:
        # Containers are allocated at their claimed length: arrays, which flax does not write here, stay short.
        content = msgpack.unpackb(
            data, ext_hook=_extension, raw=False, strict_map_key=True, max_array_len=1024, max_map_len=2**16
        )
        return _join_chunks(content, 0)
    except FileError:
        raise
    except (Exception, MemoryError, RecursionError) as error:  # msgpack raises many kinds for damaged data
        raise FileError(f"not readable as msgpack of flax, npz or a pickle: {_name(error)}") from None


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _extension(code: int, data: bytes) -> Any:
    if code not in (_ARRAY, _COMPLEX, _SCALAR):
        raise FileError(f"a msgpack extension of type {code}; flax writes 1, 2 and 3")
    content = require("msgpack", "interop").unpackb(data, raw=False, max_array_len=64, max_map_len=0)
    if code == _COMPLEX:
        real, imaginary = content
        return complex(float(real), float(imaginary))
    shape, name, raw = content
    array = _array(shape, name, raw)
    return array[()] if code == _SCALAR else array


def _array(shape: Any, name: Any, raw: Any) -> Array:
    """An array from its claimed shape and dtype and its bytes; bfloat16 becomes float32, exactly."""
    name = name.decode() if isinstance(name, bytes) else name
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape) or not isinstance(raw, bytes):
        raise FileError(f"an array without a shape or bytes: {shape!r:.80}")
    if name == "bfloat16":
        upper = _array(shape, "uint16", raw)
        return (upper.astype(np.uint32) << 16).view(np.float32)
    if name not in _DTYPES:
        raise FileError(f"an array of dtype {name!r:.80}; read are bfloat16, {', '.join(sorted(_DTYPES))}")
    dtype = np.dtype(name)
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise FileError(f"an array of {name} and shape {shape!r:.80} with {len(raw)} bytes")
    return np.frombuffer(raw, dtype).reshape(shape)


def _join_chunks(value: Any, depth: int) -> Any:
    """Put together the arrays that flax splits because they have more than 2^30 bytes."""
    if not isinstance(value, dict):
        return value
    if depth > MAX_DEPTH:
        raise FileError(f"dicts nested more than {MAX_DEPTH} deep")
    if _CHUNKED not in value:
        return {key: _join_chunks(item, depth + 1) for key, item in value.items()}
    shape, chunks = _ordered(value.get("shape")), _ordered(value.get("chunks"))
    if not chunks or not all(isinstance(chunk, np.ndarray) for chunk in chunks):
        raise FileError("a chunked array without chunks")
    joined = np.concatenate(chunks)
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) != joined.size:
        raise FileError(f"a chunked array of shape {shape!r:.80} with {joined.size} entries")
    return joined.reshape(shape)


def _ordered(numbered: Any) -> list[Any]:
    """The values of {"0": ..., "1": ...}, flax's form of a tuple."""
    if not isinstance(numbered, dict) or set(numbered) != {str(i) for i in range(len(numbered))}:
        raise FileError("a chunked array that is not numbered from 0")
    return [numbered[str(i)] for i in range(len(numbered))]


def _to_msgpack(tree: dict[str, Any]) -> bytes:
    msgpack = require("msgpack", "interop")

    def encode(value: Any) -> Any:
        array = np.ascontiguousarray(value).reshape(np.shape(value))
        content = (array.shape, array.dtype.name, array.tobytes())
        return msgpack.ExtType(_ARRAY, msgpack.packb(content, use_bin_type=True))

    data: bytes = msgpack.packb(tree, default=encode, use_bin_type=True, strict_types=True)
    return data


def _from_npz(data: bytes) -> ParameterTrees:
    """The sections of parameters of an npz file; other arrays are not decompressed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = [name for name in members if name.partition("/")[0] in _SECTIONS] or list(members)
            if sum(members[name].file_size for name in wanted) > MAX_BYTES:
                raise FileError(f"arrays of more than {MAX_BYTES} bytes")
            found = _sections({name: _member(archive, members[name]) for name in wanted})
    except FileError:
        raise
    except (Exception, MemoryError) as error:
        raise FileError(f"not readable as npz: {_name(error)}") from None
    left = {name.partition("/")[0] for name in members.keys() - wanted}
    return ParameterTrees(found.params, found.target_params, tuple(sorted(left)))


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    """One array of an npz file, whose header must claim exactly the bytes that the archive has."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise FileError(f"{info.filename}: version {version} of npy")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
        if dtype.name not in _DTYPES:
            raise FileError(f"{info.filename}: an array of dtype {dtype}")
        needed, size = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
        if needed != size:
            raise FileError(f"{info.filename}: an array of {dtype} and shape {shape} with {size} bytes")
        raw = file.read()
    if len(raw) != needed:
        raise FileError(f"{info.filename}: {len(raw)} of {needed} bytes are there")
    return np.ndarray(shape, dtype, raw, order="F" if fortran_order else "C")


def _decompress(data: bytes) -> bytes:
    try:
        content = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2**28)
        result = content.decompress(data, max_length=MAX_BYTES)
    except (lzma.LZMAError, MemoryError) as error:
        raise FileError(f"not readable as xz: {_name(error)}") from None
    if not content.eof:
        raise FileError(f"xz data that are truncated, or have more than {MAX_BYTES} bytes")
    return result


def _folder_message(path: Path) -> str:
    """What to do with a folder: most are checkpoints of newer versions of flax, in the format of orbax."""
    inside = sorted(path.glob("checkpoint_*"), key=lambda p: (len(p.name), p.name))
    if inside and inside[-1].is_file():
        return f"{path} is a folder; give a file in it, for example {inside[-1]}"
    checkpoint = inside[-1] if inside else path
    return (
        f"{path} is a folder. Newer versions of flax write checkpoints as folders (orbax), which only they read. "
        "Where you run HIL-SERL, write it as one file:\n"
        "  from flax import serialization; from flax.training import checkpoints\n"
        f"  state = checkpoints.restore_checkpoint({str(checkpoint.absolute())!r}, target=None)\n"
        f"  open({checkpoint.name + '.msgpack'!r}, 'wb').write(serialization.to_bytes(state))"
    )
