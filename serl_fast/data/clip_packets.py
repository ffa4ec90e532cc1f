"""Clips looked through before they go to a decoder that trusts them.

DALI 2.4 believes what a container says. Frames wider than that are written beyond their memory, smaller ones are read
beyond theirs, and for frames that are missing it gives whatever lies in memory. So it is given the video stream in a
container written here, and only if every packet shows one frame, all of one size and one pixel format.

Source: VP9 Bitstream & Decoding Process Specification v0.6, annex B (superframes) and section 6.2 (uncompressed
header); ITU-T T.81, annex B (JPEG).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from serl_fast.data.video import VIDEO_FILES
from serl_fast.errors import require

OLDEST_PYAV = 16  # with FFmpeg 8, which places colours as DALI's does
MAX_BYTES = 1 << 28
MAX_PIXELS = 4096 * 2304  # several frames are in memory at once
FORMATS = ("yuv420p", "yuvj420p", "yuvj422p")
MATRICES = (2, 5, 6)  # AVColorSpace: not said, BT.470BG and SMPTE 170M, which are BT.601; DALI knows no other

Facts = set[tuple[str, Any]]


def plain_clip(path: Path, codecs: Collection[str], even: bool = False) -> tuple[bytes, int] | None:
    """The video stream of a clip, checked, in a container of its own.

    Args:
        path: a file whose ending is in ``data.video.VIDEO_FILES``.
        codecs: FFmpeg's names of what may be in it.
        even: take even heights and widths in 4:2:0 alone.

    Returns:
        A Matroska file and its number of frames; None for everything that is large, damaged, unusual or not known.
    """
    av = require("av", "data")
    container = VIDEO_FILES.get(path.suffix.lower())
    if container is None or int(av.__version__.split(".")[0]) < OLDEST_PYAV:
        return None
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        with av.open(str(path.absolute()), format=container) as file:
            stream = file.streams.video[0]
            # There is no context of an unknown codec.
            codec = stream.codec_context and stream.codec_context.codec.canonical_name
            if codec not in codecs or stream.width * stream.height > MAX_PIXELS:
                return None
            content = io.BytesIO()
            with av.open(content, "w", format="matroska") as copy:
                count = _copied(file, stream, _LOOKS.get(codec), copy, even)
        return (content.getvalue(), count) if count else None
    except (OSError, IndexError, ValueError, av.FFmpegError):
        return None


def _copied(file: Any, stream: Any, look: Callable[[bytes], Facts] | None, copy: Any, even: bool) -> int:
    """Copies the packets of a stream; their number, 0 if they are not plain.

    Without ``look``, for a codec whose packets are not read here, the key frames are decoded: with them alone the size
    can change.
    """
    target, said = copy.add_stream_from_template(stream), (stream.width, stream.height)
    if look is None:
        stream.codec_context.skip_frame = "NONKEY"
    shown: set[tuple[Any, ...]] = set()
    facts: Facts = set()
    count = 0
    for packet in file.demux(stream):
        if look is None or not shown:
            for frame in packet.decode():
                shown.add(_shown(frame))
        if packet.size:  # the last one is empty: it asks the decoder for what it still has
            if packet.is_corrupt or packet.is_discard or packet.pts is None:
                return 0
            facts |= look(bytes(packet)) if look is not None else set()
            packet.stream = target
            copy.mux(packet)
            count += 1
    if len(shown) != 1 or len(dict(facts)) != len(facts):
        return 0
    ((size, pixels, matrix, _, rotation, timed),) = shown
    if even and (size[0] % 2 or size[1] % 2 or pixels not in FORMATS[:2]):
        return 0
    plain = pixels in FORMATS and matrix in MATRICES and not rotation and timed
    return count if plain and size == said == dict(facts).get("size", said) else 0


def _shown(frame: Any) -> tuple[Any, ...]:
    rotation = getattr(frame, "rotation", 0)
    colours = int(frame.colorspace), int(frame.color_range)
    return ((frame.width, frame.height), frame.format.name, *colours, rotation, frame.time is not None)


_JPEG_FRAME = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]")


def _mjpeg(packet: bytes) -> Facts:
    """What a JPEG file says of its size and components."""
    frames = list(_JPEG_FRAME.finditer(packet))
    baseline = len(frames) == 1 and frames[0].group() == b"\xff\xc0" and packet.count(b"\xff\xda") == 1
    if not baseline or b"Exif\0" in packet:
        raise ValueError("not one image of one scan, shown as it stands")  # interlaced; with a preview; turned
    header = packet[frames[0].end() :][:17]  # length (2), bits, height (2), width (2), 3, 3 components (3 each)
    size = int.from_bytes(header[5:7], "big"), int.from_bytes(header[3:5], "big")
    return {("size", size), ("components", header)}


def _vp9(packet: bytes) -> Facts:
    """What the frames of a packet, of which one is shown, say of their size and colours."""
    headers = [_vp9_header(frame) for frame in _vp9_frames(packet)]
    if sum(shown for shown, _ in headers) != 1:
        raise ValueError("not one frame that is shown")
    return set().union(*(facts for _, facts in headers))


def _vp9_frames(packet: bytes) -> Iterator[bytes]:
    """A packet is a frame, or a superframe: several, then an index of their lengths between two equal bytes."""
    marker = packet[-1]
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    end = len(packet) - 2 - count * width
    if marker & 0xE0 != 0xC0 or end < 0 or packet[end] != marker:
        yield packet
        return
    start = 0
    for n in range(count):
        entry = end + 1 + n * width
        stop = start + int.from_bytes(packet[entry : entry + width], "little")
        yield packet[start:stop]
        start = stop


def _vp9_header(frame: bytes) -> tuple[bool, Facts]:
    """Whether a frame is shown, and what it says of itself; what it does not say is that of another frame."""
    taken = 0

    def bits(count: int) -> int:
        nonlocal taken
        taken += count
        if taken > 8 * len(frame):
            raise ValueError("a frame that is cut short")
        there = frame[: (taken + 7) // 8]
        return int.from_bytes(there, "big") >> (-taken % 8) & ((1 << count) - 1)

    if bits(2) != 2 or bits(2) != 0:
        raise ValueError("not profile 0: 8 bits, 4:2:0")
    if bits(1):
        return True, set()  # an earlier frame
    facts: Facts = set()
    depends, shown, resilient = bits(1), bits(1), bits(1)
    alone = 0
    if depends:
        alone = 0 if shown else bits(1)
        if not resilient:
            bits(2)
    if not depends or alone:
        if bits(24) != 0x498342:
            raise ValueError("no synchronisation code")
        if not depends:
            facts.add(("colours", bits(4)))
        else:
            bits(8)
    else:
        bits(20)
        if bits(1) or bits(1) or bits(1):  # it is as large as one of the three frames that it depends on
            return bool(shown), facts
    width, height = bits(16) + 1, bits(16) + 1
    return bool(shown), facts | {("size", (width, height))}


_LOOKS: dict[str, Callable[[bytes], Facts]] = {"mjpeg": _mjpeg, "vp9": _vp9}
