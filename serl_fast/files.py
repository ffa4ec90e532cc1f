"""Files that are complete or not there, and folders that one process writes to."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


class FolderInUseError(ValueError):
    """Another process writes to the folder."""


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A name in the folder of ``path`` to write a file under.

    When the block ends without an error, the file is flushed to disk and gets its name, in place of an older one.
    Otherwise it is removed, and an older one stays as it is.

    Args:
        path: the file; its folder must exist.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def held_alone(folder: str | Path) -> BinaryIO:
    """Keep other processes from writing to a folder, which is made where there is none.

    The system ends it with the process, however that ends, and no child of the process holds it on. Where the file
    system has no locks, nothing is kept out.

    Args:
        folder: where the file ``.lock`` is put.

    Returns:
        A file; closing it lets others in.

    Raises:
        FolderInUseError: another process holds the folder.
        OSError: it can not be written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("ab")
    try:
        import fcntl  # absent on Windows

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise FolderInUseError(f"{folder} is in use: another process is writing to it") from error
    return file
