"""Formats of data sets: one module each, and which of them a file is.

A format's module has

* ``matches(path) -> bool``: whether a file or folder is one, from its name and first bytes alone;
* ``read(path, options) -> Dataset``: opens it, reading headers alone;
* ``survey(path, options, report) -> Iterator[Episode]``, where reading can go on behind a problem: what is wrong goes
  to ``report(place, message)`` and is left out;
* ``write(path, episodes, attributes)``, where this project writes it: complete or not at all, from one pass over the
  episodes.

They raise ``DatasetError`` for what can not be read.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from serl_fast.data.episodes import Dataset, DatasetError, Episode, ReadOptions

FORMATS = ("pickle", "robomimic", "d4rl", "minari", "ogbench", "lerobot")
"""In the order in which :func:`open_dataset` asks them; the module of a format has its name."""


def format_module(name: str) -> Any:
    """The module of a format.

    Raises:
        DatasetError: there is no such format.
    """
    if name not in FORMATS:
        raise DatasetError(f"format {name!r} is not known; choose from {', '.join(FORMATS)}")
    return importlib.import_module(f"{__name__}.{name}")


def open_dataset(path: str | Path, options: ReadOptions | None = None, format: str | None = None) -> Dataset:
    """Open a data set.

    Args:
        path: file or folder.
        options: what of it is wanted.
        format: one of :data:`FORMATS`; None to find out.

    Raises:
        DatasetError: it is none of the formats, or can not be read.
        FileNotFoundError: there is nothing.
        MissingExtraError: a package that reads it is not installed.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there")
    options = options or ReadOptions()
    names = (format,) if format else FORMATS
    for name in names:
        module = format_module(name)
        if format or module.matches(path):
            dataset: Dataset = module.read(path, options)
            return dataset
    raise DatasetError(f"{path} looks like none of {', '.join(FORMATS)}; say which it is, by format or --input_format")


def write_dataset(
    path: str | Path, episodes: Iterable[Episode], format: str, attributes: Mapping[str, Any] | None = None
) -> None:
    """Write episodes as a data set, in one pass over them.

    Args:
        path: file or folder, which must not exist.
        episodes: at least one.
        format: "pickle", "robomimic", "d4rl" or "lerobot".
        attributes: of the whole, see :class:`serl_fast.data.episodes.Dataset`.

    Raises:
        DatasetError: the format is not written here, or an episode does not fit it.
        FileExistsError: there is something at ``path``.
    """
    path = Path(path).expanduser()
    module = format_module(format)
    if not hasattr(module, "write"):
        writing = [name for name in FORMATS if hasattr(format_module(name), "write")]
        raise DatasetError(f"{format} is read but not written; choose from {', '.join(writing)}")
    if path.exists():
        raise FileExistsError(f"{path} exists; give another name")
    module.write(path, episodes, dict(attributes or {}))
