"""Clips: what may go to DALI, and DALI against the reference."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serl_fast.data import clip_packets, dali_clips, labelled, video
from serl_fast.data.clip_packets import plain_clip
from serl_fast.data.dali_clips import ON_A_CPU, DaliClips, clip_decoder
from serl_fast.data.episodes import DatasetError
from serl_fast.data.image_files import EXIF_ORIENTATION
from serl_fast.data.video import decode_clip
from serl_fast.errors import MissingExtraError

av = pytest.importorskip("av", str(clip_packets.OLDEST_PYAV), "PyAV is not installed, or old: pip install -U av")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'serl-fast[data]'")
INSTALLED = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
needs_dali = pytest.mark.skipif(not INSTALLED, reason="DALI is not installed: pip install 'serl-fast[dali]'")

VP9, MJPEG, WEBCAM = ("libvpx-vp9", "yuv420p"), ("mjpeg", "yuvj420p"), ("mjpeg", "yuvj422p")
SHAPE, SIZE = (64, 80), (48, 40)
Codec = tuple[str, str]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Patches with soft edges."""
    patches = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))


def film(
    path: Path, codec: Codec, count: int = 3, shape: tuple[int, int] = SHAPE, *, options: Any = None, **colours: int
) -> Path:
    """A clip of pictures, each of them another one; ``colours`` are FFmpeg's numbers of matrix and range."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec[0], Fraction(10), options=options or {})
        stream.height, stream.width = shape
        stream.pix_fmt = codec[1]
        for name, value in colours.items():
            setattr(stream.codec_context, name, value)
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(picture(*shape, seed=index), format="rgb24")
            frame = frame.reformat(format=codec[1], **{f"dst_{name}": value for name, value in colours.items()})
            for name, value in colours.items():
                setattr(frame, name, value)
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def muxed(path: Path, contents: Sequence[bytes], codec: Codec, shape: tuple[int, int] = SHAPE) -> Path:
    """A clip of these packets, whose container says that it has this shape."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec[0], Fraction(10))
        stream.height, stream.width = shape
        stream.pix_fmt = codec[1]
        stream.codec_context.open()
        for index, content in enumerate(contents):
            packet = av.Packet(content)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 10)
            packet.is_keyframe = True
            container.mux(packet)
    return path


def collected(frames: Iterator[np.ndarray]) -> tuple[list[np.ndarray], str]:
    """Frames up to an error, and what it says."""
    found: list[np.ndarray] = []
    try:
        found.extend(frames)  # extend keeps what came before an error
    except DatasetError as error:
        return found, str(error)
    return found, ""


@pytest.fixture
def no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """DALI alone may decode."""

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("the reference decoded in DALI's place")

    monkeypatch.setattr(dali_clips, "decode_clip", refuse)


@needs_dali
@pytest.mark.usefixtures("no_reference")
@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("codec", [VP9, MJPEG, WEBCAM])
def test_decoding_is_the_references(codec: Codec, ending: str, tmp_path: Path) -> None:
    for count, shape in ((1, SHAPE), (8, (65, 91)), (13, (50, 64))):  # PIECE frames at once
        path = film(tmp_path / f"film.{ending}", codec, count, shape)
        frames, expected = list(DaliClips(shape)(path)), list(decode_clip(path, shape))
        assert len(frames) == len(expected) == count
        assert {(frame.dtype, frame.shape) for frame in frames} == {(np.dtype(np.uint8), (*shape, 3))}
        assert all(np.array_equal(*pair) for pair in zip(frames, expected, strict=True))
        assert not np.array_equal(frames[0], frames[-1]) or count == 1
        assert all(frame.base is None for frame in frames)  # one that is kept does not keep the others


def hidden(path: Path) -> list[list[bytes]]:
    """VP9 frames that are not shown, each followed by one that shows it."""
    content = packets(film(path, VP9, 9, options={"g": "1"}))
    return [[bytes([frame[0] ^ 2]) + frame[1:], b"\x88"] for frame in content]


def superframe(frames: Sequence[bytes]) -> bytes:
    marker = bytes([0b110_01_000 | len(frames) - 1])  # lengths of two bytes
    return b"".join([*frames, marker, *(struct.pack("<H", len(frame)) for frame in frames), marker])


@needs_dali
@pytest.mark.usefixtures("no_reference")
def test_frames_are_in_order_where_the_codec_hides_some(tmp_path: Path) -> None:
    path = muxed(tmp_path / "film.webm", [superframe(frames) for frames in hidden(tmp_path / "film.mkv")], VP9)
    frames, expected = list(DaliClips(SHAPE)(path)), list(decode_clip(tmp_path / "film.mkv", SHAPE))
    assert len(frames) == len(expected) == 9
    assert all(np.array_equal(*pair) for pair in zip(frames, expected, strict=True))


@needs_dali
@pytest.mark.usefixtures("no_reference")
@pytest.mark.parametrize("shape", [(97, 133), (200, 120), (30, 25), (48, 100)])
@pytest.mark.parametrize("codec", [VP9, MJPEG])
def test_resizing_is_near_to_the_references(codec: Codec, shape: tuple[int, int], tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", codec, 3, shape)
    frames, expected = (np.stack(list(clip)).astype(int) for clip in (DaliClips(SIZE)(path), decode_clip(path, SIZE)))
    found = np.abs(frames - expected)
    assert found[:, 1:-1, 1:-1].max() <= 1
    assert found.max() <= 20  # see data.dali_images about the outermost pixels
    assert found.mean() <= 0.4


@needs_dali
@pytest.mark.parametrize(("matrix", "by_dali"), [(5, True), (6, True), (1, False), (9, False)])
@pytest.mark.parametrize("full", [1, 2])
def test_colours_are_those_that_the_file_names(matrix: int, by_dali: bool, full: int, tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", VP9, colorspace=matrix, color_range=full)
    assert (plain_clip(path, ON_A_CPU) is not None) == by_dali
    frames = list(DaliClips(SHAPE)(path))
    assert all(np.array_equal(*pair) for pair in zip(frames, decode_clip(path, SHAPE), strict=True))
    assert np.abs(frames[0].astype(int) - picture(*SHAPE)).mean() < 12  # the codec is lossy, another matrix more so


def turned(path: Path) -> Path:
    content = bytearray(film(path, VP9).read_bytes())
    start = content.index(b"tkhd") + 44  # the matrix of the track's header
    content[start : start + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def unusual(name: str, folder: Path) -> Path:
    """Clips that DALI does not decode as the reference does, or that make it read and write where it must not."""
    path = folder / "film.mkv"
    if name == "H.264":
        return film(path, ("libx264", "yuv420p"))
    if name.startswith("4:4:4"):
        return film(path, (name.split()[-1], "yuvj444p" if name.endswith("mjpeg") else "yuv444p"))
    if name == "turned":
        return turned(folder / "film.mp4")
    codec = VP9 if name.startswith("VP9") else MJPEG
    small, wide = (packets(film(path, codec, 3, shape)) for shape in (SHAPE, (64, 640)))
    if name.endswith("wide"):
        return muxed(path, wide, codec)
    if name.endswith("wider"):
        return muxed(path, small + wide, codec)
    if name.endswith("narrower"):
        return muxed(path, wide + small, codec, (64, 640))
    if name == "VP9, hidden":  # a packet of its own for a frame that is not shown
        return muxed(folder / "film.avi", [frame for frames in hidden(path) for frame in frames], codec)
    if name == "MJPEG, 4:2:2 after 4:2:0":
        return muxed(path, small + packets(film(path, WEBCAM)), codec)
    if name == "MJPEG, turned":
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = 6
        part = b"\xff\xe1" + struct.pack(">H", 2 + len(exif.tobytes())) + exif.tobytes()
        return muxed(path, [*small, *(content[:2] + part + content[2:] for content in small)], codec)
    if name == "VP9, cut":
        return muxed(path, [small[0], small[1][:3], *small[1:]], codec)
    if name == "VP9, two ranges":
        limited, full = (packets(film(path, codec, color_range=colours)) for colours in (1, 2))
        return muxed(path, limited + full, codec)
    if name == "MJPEG, two scans":
        return muxed(path, [small[0], small[1] + small[1][small[1].index(b"\xff\xda") :], *small[1:]], codec)
    assert name == "MJPEG, two in a packet"
    return muxed(path, [content + content for content in small], codec)


UNUSUAL = (
    *("H.264", "4:4:4 in libvpx-vp9", "4:4:4 in mjpeg", "turned"),
    *("VP9, wide", "VP9, wider", "VP9, narrower", "VP9, hidden", "VP9, cut", "VP9, two ranges"),
    *("MJPEG, wide", "MJPEG, wider", "MJPEG, narrower", "MJPEG, 4:2:2 after 4:2:0", "MJPEG, two in a packet"),
    *("MJPEG, turned", "MJPEG, two scans"),
)


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_not_plain_is_left_to_the_reference(name: str, tmp_path: Path) -> None:
    path = unusual(name, tmp_path)
    content = plain_clip(path, ON_A_CPU)
    if name.endswith("wide"):  # what the container says does not matter: the copy says what is right
        assert content is not None
    else:
        assert content is None
    if INSTALLED:
        frames, expected = collected(DaliClips(SIZE)(path)), collected(decode_clip(path, SIZE))
        assert frames[1] == expected[1]
        assert len(frames[0]) == len(expected[0]) > 0
        assert np.abs(np.stack(frames[0]).astype(int) - np.stack(expected[0])).max() <= 20


def test_a_large_clip_is_left_to_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "film.mp4", VP9)
    for name, largest in (("MAX_BYTES", path.stat().st_size), ("MAX_PIXELS", SHAPE[0] * SHAPE[1])):
        with monkeypatch.context() as patch:
            patch.setattr(clip_packets, name, largest)
            assert plain_clip(path, ON_A_CPU) is not None
            patch.setattr(clip_packets, name, largest - 1)
            assert plain_clip(path, ON_A_CPU) is None
    if INSTALLED:
        monkeypatch.setattr(clip_packets, "MAX_PIXELS", SHAPE[0] * SHAPE[1] - 1)
        monkeypatch.setattr(video, "MAX_PIXELS", SHAPE[0] * SHAPE[1] - 1)
        with pytest.raises(DatasetError, match=r"film.mp4: 80 x 64 px; accepted: up to 5,119 pixels"):
            list(DaliClips(SIZE)(path))


def test_hardware_takes_even_sizes_and_every_other_pixel_of_colour(tmp_path: Path) -> None:
    for codec, shape, taken in ((VP9, SHAPE, True), (VP9, (64, 81), False), (WEBCAM, SHAPE, False)):
        assert (plain_clip(film(tmp_path / "film.mp4", codec, 2, shape), ON_A_CPU, even=True) is not None) == taken
    path = film(tmp_path / "film.mp4", ("libx264", "yuv420p"), 20, options={"g": "5", "bf": "2"})
    content = plain_clip(path, ("h264",), even=True)
    assert content is not None
    (tmp_path / "copy.mkv").write_bytes(content[0])
    assert content[1] == 20
    pairs = zip(decode_clip(tmp_path / "copy.mkv", SIZE), decode_clip(path, SIZE), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs)
    path = tmp_path / "film.avi"
    h264, larger = ("libx264", "yuv420p"), (96, 128)
    both = packets(film(path, h264, 9)) + packets(film(path, h264, 9, larger))
    assert plain_clip(path, ("h264",), even=True) is not None
    assert plain_clip(muxed(path, both, h264), ("h264",), even=True) is None


def test_an_old_pyav_is_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "film.mp4", VP9)
    monkeypatch.setattr(av, "__version__", "15.1.0")
    assert plain_clip(path, ON_A_CPU) is None


def test_a_header_that_is_cut_short(tmp_path: Path) -> None:
    _, frame = packets(film(tmp_path / "film.mkv", VP9, 2))
    assert clip_packets._vp9_header(frame)[0]
    with pytest.raises(ValueError, match="cut short"):
        clip_packets._vp9_header(frame[:3])


def bad_files(folder: Path) -> dict[str, Path]:
    good = film(folder / "good.mp4", VP9, 12)
    content, frames = good.read_bytes(), packets(good)
    large = struct.pack(">HH", 30_000, 30_000)
    size = content.index(b"vp09") + 28  # in the track's header
    jpegs = film(folder / "good.avi", MJPEG, 12).read_bytes()
    (folder / "tail.avi").write_bytes(jpegs[: len(jpegs) // 2])
    jpegs = re.sub(rb"(\xff\xc0\0\x11\x08)....", rb"\1" + large, jpegs, flags=re.DOTALL)
    (folder / "pixels.avi").write_bytes(jpegs)
    contents = {
        "cut": content[: len(content) // 2],
        "text": b"not a clip",
        "empty": b"",
        "list": b"#EXTM3U\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile good.mp4\n",
        "codec": content.replace(b"vp09", b"zzzz"),
        "header": content[:size] + large + content[size + 4 :],
    }
    for name, bad in contents.items():
        (folder / f"{name}.mp4").write_bytes(bad)
    muxed(folder / "frame.mp4", [*frames[:9], frames[9][:12], *frames[10:]], VP9)
    names = [*(f"{name}.mp4" for name in (*contents, "frame", "none")), "pixels.avi", "tail.avi"]
    return {name.split(".")[0]: folder / name for name in names}


def test_a_bad_clip_is_named_as_the_reference_names_it(tmp_path: Path) -> None:
    said = {
        "frame": "damaged or cut short after 9 decoded frames",
        "header": "",  # nobody goes by it
        "tail": "",  # of an AVI file what there is
        "none": "is missing",
        "codec": "damaged, or in a codec that FFmpeg does not know",
    }
    files = bad_files(tmp_path)
    assert [name for name, path in files.items() if plain_clip(path, ON_A_CPU) is not None] == ["header", "frame"]
    for name, path in files.items():
        expected, message = collected(decode_clip(path, SIZE))
        assert said.get(name, "damaged or cut short") in message, name
        if INSTALLED:
            frames, ours = collected(DaliClips(SIZE)(path))
            assert (len(frames), ours) == (len(expected), message), name
    assert INSTALLED is False or len(list(DaliClips(SIZE)(tmp_path / "good.mp4"))) == 12


def test_a_clip_may_have_so_many_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "success.mp4", VP9, 10)
    (recording,) = labelled.find_recordings(path, 1, ["front"], ("failure", "success"))
    for backend in ("torch", "auto"):
        read_clip, _ = clip_decoder(backend, SIZE)  # type: ignore[arg-type]
        rest = (["front"], SIZE, ("failure", "success"), read_clip)
        with monkeypatch.context() as patch:
            patch.setattr(labelled, "CLIP_FRAMES", 10)
            assert len(labelled.read_recording(recording, *rest)) == 10
            patch.setattr(labelled, "CLIP_FRAMES", 9)
            with pytest.raises(DatasetError, match=r"success.mp4: more than 9 frames; accepted: clips of so many"):
                labelled.read_recording(recording, *rest)


def test_without_dali_the_reference_decodes_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(module: str, extra: str) -> Any:
        raise MissingExtraError(f"{module} is not installed: pip install 'serl-fast[{extra}]'")

    path = film(tmp_path / "film.mp4", VP9)
    assert clip_decoder("torch", SIZE)[1] == "clips are decoded by PyAV and PyTorch"
    monkeypatch.setattr(dali_clips, "require", absent)
    decode, why = clip_decoder("auto", SIZE)
    with pytest.raises(MissingExtraError, match=r"pip install 'serl-fast\[dali\]'"):
        clip_decoder("dali", SIZE)
    assert "\n" not in why
    assert "without DALI: " in why
    assert all(np.array_equal(*pair) for pair in zip(decode(path), decode_clip(path, SIZE), strict=True))
    with pytest.raises(ValueError, match="image backend 'cv2' is not known; choose auto, dali or torch"):
        clip_decoder("cv2", SIZE)  # type: ignore[arg-type]


@needs_dali
def test_auto_is_dali_where_it_is_installed() -> None:
    decode, why = clip_decoder("auto", SIZE)
    assert isinstance(decode, DaliClips)
    assert why == "clips in VP9 and MJPEG are decoded by DALI on the CPU, others by PyAV and PyTorch"
    assert (
        "H.264, HEVC, AV1, VP9 and MJPEG are decoded by DALI on CUDA device 1"
        in clip_decoder("auto", SIZE, device_id=1)[1]
    )


def test_the_references_colours_are_interpolated_at_every_height(tmp_path: Path) -> None:
    even, odd = (film(tmp_path / f"{height}.mkv", MJPEG, 1, (height, 80)) for height in (64, 63))
    for path in (even, odd):
        (frame,) = video.read_frames(path)
        assert np.abs(frame.astype(int) - picture(*frame.shape[:2])).mean() < 12
    (smooth,) = video.read_frames(even)
    with av.open(str(even)) as container:
        quick = next(container.decode(video=0)).to_ndarray(format="rgb24")
    original = picture(64, 80).astype(int)
    assert np.abs(smooth - original).mean() < np.abs(quick - original).mean()
