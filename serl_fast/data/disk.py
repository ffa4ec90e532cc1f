"""Room on a disk, asked for before libraries write that fail badly where there is none."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from serl_fast.data.episodes import Episode, fields_of

ROOM = 16 * 2**20
"""Bytes that stay free for what formats write about the arrays."""


def require_room(path: Path, episode: Episode, share: float) -> None:
    """Check that a disk has room for an episode.

    A write that fails can not be left to HDF5 and FFmpeg: the process may crash when the file is closed.

    Args:
        path: of the data set, whose folder is there.
        episode: about to be written.
        share: of the bytes of its arrays that it takes on disk at most.

    Raises:
        OSError: there is not so much room.
    """
    needed = int(share * sum(value.nbytes for value in fields_of(episode).values())) + ROOM
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        message = f"{os.strerror(errno.ENOSPC)}: {free:,} bytes are free, and the next episode needs up to {needed:,}"
        raise OSError(errno.ENOSPC, message, str(path))
