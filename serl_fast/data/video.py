"""Video files through PyAV, a frame at a time: a film is never in memory as a whole.

Containers are MP4, MOV, MKV, WebM and AVI, known by the name of the file: what is in a file does not decide how it is
opened, so a play list that is called ``film.mp4`` leads nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from serl_fast.data.episodes import DatasetError
from serl_fast.data.image_files import MAX_PIXELS, resized
from serl_fast.data.images import resize
from serl_fast.errors import require

Picture = npt.NDArray[np.uint8]

VIDEO_FILES = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}
"""Endings of files that are read, and their containers."""

SMOOTH = 0x2 | 0x2000 | 0x40000
"""FFmpeg's SWS_BILINEAR, SWS_FULL_CHR_H_INT and SWS_ACCURATE_RND: colours are interpolated between their samples."""


def read_frames(path: str | Path, size: tuple[int, int] | None = None) -> Iterator[Picture]:
    """All frames of a video, turned as a player turns them, colours interpolated between their samples.

    Args:
        path: a file whose ending is in :data:`VIDEO_FILES`.
        size: (height, width) px that each frame is resized to; None for its own.

    Yields:
        uint8 [H, W, 3], RGB.

    Raises:
        DatasetError: the file is missing, holds no video, is damaged, or claims too many pixels.
    """
    frames, picture_of = _decoded(Path(path), 0.0), _to_pictures(None, smooth=True)
    for frame in frames:
        turns = round(getattr(frame, "rotation", 0) / 90)  # counterclockwise; an older PyAV does not tell it
        picture = np.ascontiguousarray(np.rot90(picture_of(frame), turns))
        yield picture if size is None else resize(picture[None], size)[0]


def decode_clip(path: Path, size: tuple[int, int]) -> Iterator[Picture]:
    """All frames of a clip, as a classifier resizes what it is shown, each before the next one is decoded.

    Args:
        path: as in :func:`read_frames`.
        size: (height, width) px.

    Yields:
        uint8 [*size, 3], RGB.

    Raises:
        DatasetError: as in :func:`read_frames`.
    """
    for frame in read_frames(path):
        yield resized(torch.from_numpy(frame[None]), size)[0].numpy()


def read_frames_at(
    path: str | Path, times: Sequence[float] | npt.NDArray[Any], tolerance: float, size: tuple[int, int] | None = None
) -> Iterator[Picture]:
    """The frames that are nearest to points in time.

    The file is entered at the last key frame before the first of them and left after the last.

    Args:
        path: as in :func:`read_frames`.
        times: s from the start of the file, in order; at least one.
        tolerance: s; how far a frame may be from its time.
        size: as in :func:`read_frames`.

    Yields:
        For every time: uint8 [H, W, 3], RGB.

    Raises:
        DatasetError: as in :func:`read_frames`, or a time has no frame.
    """
    path = Path(path)
    frames, picture_of = _decoded(path, max(float(times[0]) - tolerance, 0.0)), _to_pictures(size)
    here: Any = next(frames, None)
    following: Any = next(frames, None)
    shown: Any = None
    picture: Picture | None = None
    for row, time in enumerate(times):
        while following is not None and abs(following.time - time) <= abs(here.time - time):
            here, following = following, next(frames, None)
        if here is None or abs(here.time - time) > tolerance:
            nearest = "it has no frames from there on" if here is None else f"the nearest one is at {here.time:.4f} s"
            raise DatasetError(
                f"{path}: frame {row} of {len(times)} is wanted at {time:.4f} s (within {tolerance:.4f} s); {nearest}"
            )
        if here is not shown:
            shown, picture = here, picture_of(here)
        assert picture is not None
        yield picture


class VideoWriter:
    """Writes frames into an MP4 file that every player and decoder reads: yuv420p, constant frame rate.

    The codec is lossy and halves the resolution of colour. Heights and widths are even.

    Attributes:
        frames: how many were added.
        size: bytes of the encoded frames so far.
    """

    def __init__(self, path: str | Path, fps: float, codec: str = "libx264", quality: int = 18, gop: int = 2) -> None:
        """Create the file.

        Args:
            path: the file, whatever its ending.
            fps: frames per second.
            codec: an encoder of FFmpeg: "libx264", "libsvtav1" or "libx265".
            quality: constant rate factor: the smaller, the better and larger.
            gop: a key frame every so many frames; the fewer, the faster a frame in the middle is found.
        """
        av = require("av", "logging")
        self.path, self.frames, self.size = Path(path), 0, 0
        rate = Fraction(fps).limit_denominator(1001)
        try:
            self._container = av.open(str(self.path.absolute()), "w", format="mp4")
            options = {"crf": str(quality), "g": str(gop)} | ({"preset": "12"} if codec == "libsvtav1" else {})
            self._stream: Any = self._container.add_stream(codec, rate, options=options)
        except (av.FFmpegError, ValueError) as error:
            raise DatasetError(f"{path}: no video can be written with {codec!r} ({error})") from None
        self._stream.pix_fmt = "yuv420p"
        self._av, self._shape = av, (0, 0)

    def add(self, frame: Picture) -> None:
        """Encode one frame.

        Args:
            frame: uint8 [H, W, 3], RGB; H and W even and those of the first frame.

        Raises:
            DatasetError: it is something else.
        """
        shape = frame.shape[:2]
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or shape[0] % 2 or shape[1] % 2:
            raise DatasetError(
                f"{self.path}: frame {self.frames} is {frame.dtype} {frame.shape}; "
                "accepted: uint8 (height, width, 3), height and width even"
            )
        if not self.frames:
            self._shape = self._stream.height, self._stream.width = shape
        if shape != self._shape:
            raise DatasetError(f"{self.path}: frame {self.frames} is {shape} px large; the first is {self._shape}")
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts = self.frames
        self._mux(self._stream.encode(picture))
        self.frames += 1

    def close(self) -> None:
        """Encode what waits and complete the file."""
        try:
            if self.frames:
                self._mux(self._stream.encode())
        finally:
            self._container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _mux(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            self.size += packet.size
            self._container.mux(packet)


def _decoded(path: Path, start: float) -> Iterator[Any]:
    """``av.VideoFrame`` after ``av.VideoFrame``, from the last key frame at or before ``start`` s on."""
    av = require("av", "data")
    container = VIDEO_FILES.get(path.suffix.lower())
    if container is None:
        raise DatasetError(f"{path} is no video that is read; accepted: {', '.join(VIDEO_FILES)}")
    count = 0
    try:
        with av.open(str(path.absolute()), format=container) as file:
            if not file.streams.video:
                raise DatasetError(f"{path} holds no video: it is something else, damaged or cut short")
            stream = file.streams.video[0]
            if stream.codec_context is None:
                raise DatasetError(f"{path}: damaged, or in a codec that FFmpeg does not know")
            _check_size(path, stream)
            if start:
                file.seek(int(start / stream.time_base), stream=stream)
            for frame in file.decode(stream):
                if frame.time is None:
                    raise DatasetError(f"{path}: frame {count} has no time")
                _check_size(path, frame)  # it may change on the way
                yield frame
                count += 1
    except av.FFmpegError as error:
        if not path.is_file():
            raise DatasetError(f"{path} is missing") from None
        raise DatasetError(f"{path}: damaged or cut short after {count} decoded frames ({error.strerror})") from None


def _check_size(path: Path, shown: Any) -> None:
    if shown.width * shown.height > MAX_PIXELS:
        raise DatasetError(f"{path}: {shown.width} x {shown.height} px; accepted: up to {MAX_PIXELS:,} pixels")


def _to_pictures(size: tuple[int, int] | None, smooth: bool = False) -> Callable[[Any], Picture]:
    """Turns ``av.VideoFrame`` into uint8 [H, W, 3]; setting a converter up takes longer than using it, so it is one.

    With ``smooth`` colours are interpolated and rounded, as DALI does it; else FFmpeg repeats those of 2 x 2 pixels
    where heights are even, which is quicker.
    """
    library = require("av.video.reformatter", "data")
    converter = library.VideoReformatter()
    takes_flags = issubclass(library.Interpolation, int)  # from PyAV 14 on
    how = {"interpolation": SMOOTH} if smooth and takes_flags else {}

    def picture_of(frame: Any) -> Picture:
        picture: Picture = converter.reformat(frame, format="rgb24", **how).to_ndarray()
        return picture if size is None else resize(picture[None], size)[0]

    return picture_of
