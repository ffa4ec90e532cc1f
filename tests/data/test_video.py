"""Films: what is written is read back frame by frame, frames are found by time, and what is no film is refused."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs PyAV: pip install 'serl-fast[data]'")

from serl_fast.data import video
from serl_fast.data.episodes import DatasetError
from serl_fast.data.video import VideoWriter, read_frames, read_frames_at


def film(frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Grey frames, each 4 levels brighter than the one before."""
    return np.broadcast_to(
        (20 + 4 * np.arange(frames, dtype=np.uint8))[:, None, None, None], (frames, height, width, 3)
    )


def levels(frames: Iterator[np.ndarray]) -> list[int]:
    """Numbers of the frames."""
    return [round((frame.mean() - 20) / 4) for frame in frames]


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.add(frame)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_video(tmp_path / "film.mp4", film(30), 10)
    return tmp_path / "film.mp4"


def test_frames_come_back_in_order(path: Path) -> None:
    frames = list(read_frames(path))
    assert len(frames) == 30
    assert frames[0].dtype == np.uint8
    assert frames[0].shape == (32, 48, 3)
    assert np.abs(np.stack(frames).astype(int) - film(30)).max() <= 2
    assert [child.name for child in path.parent.iterdir()] == ["film.mp4"]


def test_frames_are_resized(path: Path) -> None:
    frames = list(read_frames(path, (8, 12)))
    assert frames[0].shape == (8, 12, 3)
    assert levels(iter(frames)) == list(range(30))


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
@pytest.mark.parametrize("gop", [2, 12])
def test_frames_are_found_by_time(tmp_path: Path, codec: str, gop: int) -> None:
    path = tmp_path / "film.mp4"
    with VideoWriter(path, 10, codec, gop=gop) as writer:
        for frame in film(30, 64, 64):
            writer.add(frame)
    assert (writer.frames, writer.size > 0) == (30, True)
    assert levels(read_frames_at(path, [0.0, 0.1, 0.2], 0.05)) == [0, 1, 2]
    assert levels(read_frames_at(path, [1.31, 1.31, 1.68, 2.04, 2.9], 0.05)) == [13, 13, 17, 20, 29]
    with pytest.raises(DatasetError, match=r"frame 1 of 2 is wanted at 3.0000 s \(within 0.0500 s\); .* at 2.9000 s"):
        list(read_frames_at(path, [2.9, 3.0], 0.05))


def test_a_film_on_its_side_is_turned(tmp_path: Path) -> None:
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:, :24] = 200  # bright on the left
    write_video(tmp_path / "film.mp4", [picture] * 3, 10)
    content = bytearray((tmp_path / "film.mp4").read_bytes())
    start = content.index(b"tkhd") + 44  # the matrix of the track's header
    for turn, bright in (((0, 1, -1, 0), np.s_[:20]), ((0, -1, 1, 0), np.s_[28:])):  # clockwise: left goes up
        a, b, c, d = (n << 16 for n in turn)
        content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        (tmp_path / "turned.mp4").write_bytes(content)
        for frame in read_frames(tmp_path / "turned.mp4"):
            assert frame.shape == (48, 32, 3)
            assert frame[bright].min() > 150
            assert frame[bright].flags.c_contiguous
            assert frame.mean() < 130
        assert {frame.shape for frame in read_frames(tmp_path / "turned.mp4", (12, 8))} == {(12, 8, 3)}


def test_a_film_that_claims_too_many_pixels_is_not_decoded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_PIXELS", 32 * 48)
    assert len(list(read_frames(path))) == 30
    monkeypatch.setattr(video, "MAX_PIXELS", 32 * 48 - 1)
    asked, check = [], video._check_size
    monkeypatch.setattr(video, "_check_size", lambda path, shown: (asked.append(type(shown)), check(path, shown)))
    with pytest.raises(DatasetError, match=r"film.mp4: 48 x 32 px; accepted: up to 1,535 pixels"):
        list(read_frames(path))
    assert [kind.__name__ for kind in asked] == ["VideoStream"]


def test_a_film_is_never_in_memory(tmp_path: Path) -> None:
    count, size = 200, 128 * 128 * 3

    def frames() -> Iterator[np.ndarray]:
        for index in range(count):
            yield np.full((128, 128, 3), index, np.uint8)

    write_video(tmp_path / "film.mp4", frames(), 10)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_frames(tmp_path / "film.mp4")) == count
        assert tracemalloc.get_traced_memory()[1] < 20 * size
    finally:
        tracemalloc.stop()


def test_frames_that_can_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    small, odd = np.zeros((16, 16, 3), np.uint8), np.zeros((15, 16, 3), np.uint8)
    for frames, message in (
        ([odd], r"frame 0 is uint8 \(15, 16, 3\); accepted: uint8 \(height, width, 3\), height and width even"),
        ([small, small.astype(np.float32)], r"frame 1 is float32 \(16, 16, 3\)"),
        ([small, np.zeros((16, 18, 3), np.uint8)], r"frame 1 is \(16, 18\) px large; the first is \(16, 16\)"),
    ):
        with pytest.raises(DatasetError, match=message):
            write_video(path, frames, 10)


def test_what_is_no_film(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nfilm.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile film.mp4\n")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name, message in (
        ("cut.mp4", "damaged or cut short"),
        ("list.mp4", "damaged or cut short"),
        ("concat.mp4", "damaged or cut short"),
        ("empty.mp4", "damaged or cut short"),
        ("none.mp4", "none.mp4 is missing"),
        ("film.m3u8", "is no video that is read; accepted: .mp4, "),
    ):
        with pytest.raises(DatasetError, match=message):
            list(read_frames(tmp_path / name))
