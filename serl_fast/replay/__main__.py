"""Look at replay stores on disk: ``python -m serl_fast.replay inspect | verify | export PATH``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from serl_fast.replay.fields import describe as describe_field
from serl_fast.replay.files import describe, export_npz, exported
from serl_fast.replay.store import ReplayStore

_SHOWN = 20  # damaged transitions listed one by one


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 well, 1 damage found or not possible."""
    parser = argparse.ArgumentParser(prog="python -m serl_fast.replay", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for run, text in (
        (_inspect, "print what a store holds"),
        (_verify, "check every block; exit status 1 if one is damaged"),
        (_export, "write all good transitions to a new store, or to an .npz file"),
    ):
        command = commands.add_parser(run.__name__.removeprefix("_"), help=text, description=text)
        command.add_argument("path", type=Path, help="folder of the store")
        if run is _export:
            command.add_argument("target", type=Path, help="folder to make, or a file name that ends in .npz")
        command.set_defaults(run=run)
    options = parser.parse_args(arguments)
    try:
        _require_store(options.path)
        return int(options.run(options))
    except (OSError, ValueError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _require_store(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not (path / "header").is_file():
        raise FileNotFoundError(f"{path} is no replay store")


def _inspect(options: argparse.Namespace) -> int:
    info = describe(options.path)
    for field in (*info["schema"].observations, *info["schema"].steps):
        print(f"{field.name:32} {describe_field(field)}")
    if info["writer"]:
        print(f"process {info['writer']} is writing to it")
    elif info["damage"]:
        print("whether its last writer closed it is not known")
    else:
        print("closed by its last writer" if info["closed"] else "not closed: its last writer was killed")
    if info["damage"]:
        print(info["damage"])
    with ReplayStore.open(options.path, mode="r", damaged="skip") as store:
        episodes = len(store.episodes())
        print(f"{len(store)} of {store.capacity} transitions, {store.appended} ever appended")
        print(f"{episodes} episode{'' if episodes == 1 else 's'} or parts of one")
        print(f"{info['disk_bytes'] / 1e6:.1f} MB on the disk, format {info['format']}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    header = describe(options.path)["damage"]
    with ReplayStore.open(options.path, mode="r", damaged="skip") as store:
        with _progress(len(store)) as progress:
            found = store.verify(progress)
        if header:
            print(header)
        for damage in found[:_SHOWN]:
            print(damage)
        if len(found) > _SHOWN:
            print(f"and {len(found) - _SHOWN} more")
        print(f"{len(found)} of {len(store)} transitions are damaged")
    return 1 if found or header else 0


def _export(options: argparse.Namespace) -> int:
    with ReplayStore.open(options.path, mode="r", damaged="skip") as store:
        if options.target.suffix.lower() == ".npz":
            with _progress(len(store) * len(exported(store.schema))) as progress:
                kept = export_npz(store, options.target, progress)
        else:
            if os.path.lexists(options.target):
                raise FileExistsError(f"{options.target} exists; give the path of a new folder")
            kept = len(store) - len(store.verify())
            store.snapshot(options.target)
        print(f"{kept} of {len(store)} transitions are in {options.target}")
    return 0


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar where there is a terminal and tqdm, else nothing."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        done = 0

        def plain(count: int) -> None:
            nonlocal done
            done += count
            print(f"\r{done} of {total}", end="", file=sys.stderr)

        yield plain
        print(file=sys.stderr)
        return
    with tqdm(total=total, unit="transitions", unit_scale=True) as bar:
        yield bar.update


if __name__ == "__main__":
    sys.exit(main())
