"""Labelled camera frames for a classifier: from pickles, images and clips, with the episode that each belongs to."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from serl_fast import safe_pickle
from serl_fast.data.class_names import class_of
from serl_fast.data.episodes import DatasetError
from serl_fast.data.image_files import decode_images, resized
from serl_fast.data.video import VIDEO_FILES, decode_clip

Image = npt.NDArray[np.uint8]
Kind = Literal["pickle", "clip", "image"]

SUFFIXES: dict[str, Kind] = {
    **dict.fromkeys((".pkl", ".pickle"), "pickle"),
    **dict.fromkeys(VIDEO_FILES, "clip"),
    **dict.fromkeys((".png", ".jpg", ".jpeg"), "image"),
}  # type: ignore[dict-item]
IMAGES_AT_ONCE = 64
CLIP_FRAMES = 36_000  # 20 minutes at 30 frames per second
ACCEPTED = "pickles (.pkl), images (.png, .jpg) and clips (.mp4)"


@dataclass(frozen=True)
class Frame:
    """What the cameras showed at one moment.

    Attributes:
        images: uint8 [H, W, 3] of each camera, all frames of one size.
        label: number of the class.
        group: the episode; frames of one group look alike.
        name: file and step, for messages.
        source: the pickle, or the folder of an image or a clip.
        before: of a transition whose episode is not named, a digest of what the cameras showed before the action;
            empty where there is none.
        after: of what they showed after it; empty also where the episode ended.
    """

    images: dict[str, Image]
    label: int
    group: str
    name: str
    source: str = ""
    before: bytes = b""
    after: bytes = b""


@dataclass(frozen=True)
class Recording:
    """What is read at once: a pickle, or one clip or image of each camera.

    Attributes:
        kind: of its files.
        files: by camera; a pickle, which holds all cameras, under "".
        label: number of the class; None where the rows of a pickle say it themselves.
        group: an episode where the whole recording belongs to it, else what its episodes are called after.
        root: the path that was given.
    """

    kind: Kind
    files: dict[str, Path]
    label: int | None
    group: str
    root: Path

    @property
    def first(self) -> Path:
        """The file, or that of the first camera."""
        return next(iter(self.files.values()))

    @property
    def name(self) -> str:
        """The first file, as seen from the path that was given."""
        return self.first.name if self.first == self.root else str(self.first.relative_to(self.root))

    @property
    def source(self) -> str:
        """The pickle, or the folder of an image or a clip."""
        return str(self.first if self.kind == "pickle" else self.first.parent)


def without_repeats(recordings: Sequence[Recording]) -> tuple[list[Recording], list[str]]:
    """Every file once, however often and by whatever path it was given: twice, it would be on both sides of a split.

    Of two readings of an image, as an episode of its own and as one of a folder's, the folder's is kept.

    Returns:
        The recordings, in their order, and what is to be said about them.

    Raises:
        DatasetError: a file is given as two classes.
    """
    kept: dict[Path, Recording] = {}
    repeated: list[Path] = []
    for recording in recordings:
        known = kept.setdefault(recording.first.resolve(), recording)
        if known.label != recording.label:
            raise DatasetError(
                f"{recording.first} is given as two classes; a folder with files of several is --labelled_data, which "
                "goes by their names"
            )
        if known is not recording:
            repeated.append(recording.first)
            if len(recording.group) < len(known.group):
                kept[recording.first.resolve()] = recording
    notes = [f"{len(repeated)} file(s) are given more than once and read once: {file}, ..." for file in repeated[:1]]
    return list(kept.values()), notes


def find_recordings(
    path: Path, label: int | None, image_keys: Sequence[str], classes: Sequence[str]
) -> list[Recording]:
    """What there is at ``path``.

    A folder is searched with all that is in it. Of several cameras every image and every clip lies in a folder named
    after its camera, and those of one moment have the same path below it: ``front/a/1.png`` and ``wrist/a/1.png``.
    Images directly in the folder are an episode each; those of a folder below it are one together, and so is a clip.

    Args:
        path: a file or a folder.
        label: number of the class; None: the ``labels`` in a pickle say it, or a name of ``classes`` with which a word
            of the file's or folder's name begins ("success_images.pkl", "failures/1.png").
        image_keys: cameras.
        classes: names of the classes.

    Raises:
        DatasetError: there is nothing to read, a camera is missing, or no class is named.
        FileNotFoundError: there is no such path.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    found = _find(path, path, class_of(path, classes) if label is None else label, image_keys, classes)
    if not found:
        there = ", ".join(sorted(file.name for file in path.iterdir())[:3]) if path.is_dir() else ""
        raise DatasetError(
            f"{path}: there is nothing to read; accepted: {ACCEPTED}{f'; it holds {there}' if there else ''}"
        )
    return found


def _find(
    path: Path, root: Path, label: int | None, image_keys: Sequence[str], classes: Sequence[str]
) -> list[Recording]:
    """:func:`find_recordings`, which may find nothing; ``root`` is the path that names are seen from."""
    if label is None and path.is_dir():  # the class may be said further down
        children = [(child, class_of(child, classes)) for child in sorted(path.iterdir())]
        return [found for child, named in children for found in _find(child, root, named, image_keys, classes)]
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    kinds = {
        file: SUFFIXES[file.suffix.lower()]
        for file in files
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    }
    found = [
        Recording("pickle", {"": file}, label, str(file.resolve()), root) for file in kinds if kinds[file] == "pickle"
    ]
    pictures = {file: kind for file, kind in kinds.items() if kind != "pickle"}
    if pictures and label is None:
        raise DatasetError(
            f"{path}: of which class is it? No word of its name or of its folders' begins with one of "
            f"{', '.join(classes)}"
        )
    for moment, cameras in _by_camera(path, pictures, image_keys).items():
        kind = pictures[next(iter(cameras.values()))]
        together = kind == "image" and moment.parent != Path(".")
        group = (path / (moment.parent if together else moment)).resolve()
        found.append(Recording(kind, cameras, label, str(group), root))
    return found


def _by_camera(root: Path, files: Mapping[Path, Kind], image_keys: Sequence[str]) -> dict[Path, dict[str, Path]]:
    """By path below the camera's folder: the file of each camera."""
    found: dict[Path, dict[str, Path]] = {}
    for file in files:
        below = Path(file.name) if file == root else file.relative_to(root)
        camera, rest = _without_camera(below, image_keys)
        if camera is None and len(image_keys) > 1:
            raise DatasetError(
                f"{file}: which camera is it of? With several cameras images and clips lie in folders named after "
                f"them: {', '.join(image_keys)}"
            )
        key = image_keys[0] if camera is None else camera
        moment = rest.with_suffix("") if len(image_keys) > 1 else rest
        if key in found.setdefault(moment, {}):
            raise DatasetError(f"{file} and {found[moment][key]} are of the same camera and moment")
        found[moment][key] = file
    for cameras in found.values():
        missing = [key for key in image_keys if key not in cameras]
        if missing:
            some = next(iter(cameras.values()))
            raise DatasetError(f"{some}: there is no file of the same name of camera {', '.join(missing)}")
        if len({files[file] for file in cameras.values()}) > 1:
            raise DatasetError(f"{' and '.join(map(str, cameras.values()))}: one is an image, the other a clip")
    return {moment: {key: cameras[key] for key in image_keys} for moment, cameras in found.items()}


def _without_camera(below: Path, image_keys: Sequence[str]) -> tuple[str | None, Path]:
    """The camera after which a folder is named ("left/wrist" after two), and the path without that folder."""
    *folders, file = below.parts
    for key in image_keys:
        named = key.split("/")
        for start in range(len(folders) - len(named) + 1):
            if folders[start : start + len(named)] == named:
                return key, Path(*folders[:start], *folders[start + len(named) :], file)
    return None, below


def read_recording(
    recording: Recording,
    image_keys: Sequence[str],
    image_size: tuple[int, int],
    classes: Sequence[str],
    read_clip: Callable[[Path], Iterator[Image]] | None = None,
) -> list[Frame]:
    """The frames of a recording, resized.

    Of a transition the frame after the action is taken (``next_observations``), for that is the one that a reward is
    asked of; where a row has ``observations`` alone, those. An episode ends at ``dones``, and where an observation is
    not the one that the row before it led to; ``episode``, in a row or its ``infos``, says it outright.

    Args:
        recording: of :func:`find_recordings`.
        image_keys: cameras.
        image_size: (height, width) px of the frames.
        classes: names of the classes.
        read_clip: of ``data.dali_clips.clip_decoder``; None for the reference.

    Raises:
        DatasetError: the message names the file, and the row of a pickle, and what is wrong.
    """
    if recording.kind == "pickle":
        return list(_read_pickle(recording, image_keys, image_size, classes))
    assert recording.label is not None
    if recording.kind == "image":
        return _read_images([recording], lambda files: decode_images(files, image_size))[0]
    read_clip = read_clip or (lambda file: decode_clip(file, image_size))
    cameras = {key: _all_frames(file, read_clip(file)) for key, file in recording.files.items()}
    lengths = {key: len(images) for key, images in cameras.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{recording.files[key]} has {length}" for key, length in lengths.items())
        raise DatasetError(f"the clips of one moment differ in length: {told} frames")
    count = next(iter(lengths.values()))
    return [
        Frame(
            {key: images[step] for key, images in cameras.items()},
            recording.label,
            recording.group,
            f"{recording.name}, frame {step}",
            recording.source,
        )
        for step in range(count)
    ]


def read_recordings(
    recordings: Sequence[Recording],
    image_keys: Sequence[str],
    image_size: tuple[int, int],
    classes: Sequence[str],
    decode: Callable[[Sequence[Path]], torch.Tensor],
    read_clip: Callable[[Path], Iterator[Image]] | None = None,
) -> Iterator[list[Frame]]:
    """The frames of every recording, as :func:`read_recording` gives them, image files many at a time.

    Args:
        recordings: of :func:`find_recordings`.
        image_keys: cameras.
        image_size: (height, width) px of the frames.
        classes: names of the classes.
        decode: of ``data.dali_images.image_decoder``, for IMAGES_AT_ONCE files.
        read_clip: see :func:`read_recording`.

    Raises:
        DatasetError: see :func:`read_recording`.
    """
    most = max(1, IMAGES_AT_ONCE // len(image_keys))
    for are_images, group in itertools.groupby(recordings, lambda recording: recording.kind == "image"):
        together = list(group)
        if not are_images:
            yield from (read_recording(each, image_keys, image_size, classes, read_clip) for each in together)
            continue
        for start in range(0, len(together), most):
            yield from _read_images(together[start : start + most], decode)


def _read_images(
    recordings: Sequence[Recording], decode: Callable[[Sequence[Path]], torch.Tensor]
) -> list[list[Frame]]:
    """The one frame of each recording of image files."""
    files = [file for recording in recordings for file in recording.files.values()]
    images = iter(decode(files).numpy())
    frames = []
    for recording in recordings:
        assert recording.label is not None
        cameras = {key: next(images) for key in recording.files}
        frames.append([Frame(cameras, recording.label, recording.group, recording.name, recording.source)])
    return frames


def _read_pickle(
    recording: Recording, image_keys: Sequence[str], size: tuple[int, int], classes: Sequence[str]
) -> Iterator[Frame]:
    path = recording.first
    try:
        rows = safe_pickle.load(path)
    except ValueError as error:
        raise DatasetError(str(error)) from None
    if not isinstance(rows, (list, tuple)) or not rows:
        what = f"a {type(rows).__name__}" if rows else "no rows"
        raise DatasetError(f"{path} holds {what}; expected a list of transitions")
    episode, before = 0, None
    for index, row in enumerate(rows):
        where = f"{path}, transition {index}"
        if not isinstance(row, Mapping) or not isinstance(row.get("observations"), Mapping):
            has = ", ".join(map(repr, row)) if isinstance(row, Mapping) else f"a {type(row).__name__}"
            raise DatasetError(f"{where}: there is no dict of observations; it is {has}")
        if before is not None and not _continues(before, row, image_keys):
            episode += 1
        before = row
        told = _episode(row)
        group = f"{recording.group}, episode {episode}" if told is None else f"episode {told}"
        name = "next_observations" if isinstance(row.get("next_observations"), Mapping) else "observations"
        images = {key: _camera(row[name], key, f"{where}, field '{name}/{key}'", size) for key in image_keys}
        label = _label(row, recording.label, classes, where)
        joins = told is None and name == "next_observations"
        first = _digest(row["observations"], image_keys) if joins else b""
        last = _digest(row[name], image_keys) if joins and not np.any(row.get("dones", False)) else b""
        yield Frame(images, label, group, f"{recording.name}, step {index}", recording.source, first, last)


def _digest(observation: Mapping[str, Any], image_keys: Sequence[str]) -> bytes:
    """A digest of all cameras' images; empty where one is missing."""
    if not all(key in observation for key in image_keys):
        return b""
    state = hashlib.blake2b(digest_size=16)
    for key in image_keys:
        state.update(_array(observation[key]).tobytes())
    return state.digest()


def _continues(before: Mapping[str, Any], row: Mapping[str, Any], image_keys: Sequence[str]) -> bool:
    """Whether a row is of the same episode as the one before it, as far as it can be seen."""
    if np.any(before.get("dones", False)):
        return False
    reached = before.get("next_observations")
    if not isinstance(reached, Mapping):
        return True
    now, key = row["observations"], image_keys[0]
    return key in now and key in reached and np.array_equal(reached[key], now[key])


def _episode(row: Mapping[str, Any]) -> str | None:
    infos = row.get("infos")
    told = row.get("episode", infos.get("episode") if isinstance(infos, Mapping) else None)
    return str(told) if isinstance(told, (int, str, np.integer)) else None


def _label(row: Mapping[str, Any], given: int | None, classes: Sequence[str], where: str) -> int:
    """The row's class: its own ``labels``, which must not contradict the folder's."""
    names = ", ".join(f"{number} ({name})" for number, name in enumerate(classes))
    if "labels" not in row:
        if given is None:
            raise DatasetError(f"{where}: of which class is it? It has no 'labels', and the file's name says none")
        return given
    value = _array(row["labels"])
    if value.size != 1 or value.dtype.kind not in "fiub" or value.reshape(-1)[0] not in range(len(classes)):
        raise DatasetError(f"{where}, field 'labels': is {row['labels']!r:.60}; accepted: {names}")
    label = int(value.reshape(-1)[0])
    if given is not None and label != given:
        raise DatasetError(
            f"{where}, field 'labels': is {label} ({classes[label]}), but the file was given as {given} "
            f"({classes[given]}); a file of several classes is --labelled_data"
        )
    return label


def _array(value: Any) -> npt.NDArray[Any]:
    """A value as an array; of no numbers where it is none."""
    try:
        return np.asarray(value)
    except ValueError:  # lists of different lengths
        return np.empty(0, object)


def _camera(observation: Mapping[str, Any], key: str, where: str, size: tuple[int, int]) -> Image:
    if key not in observation:
        raise DatasetError(f"{where}: is missing; the observation has {', '.join(map(repr, observation))}")
    image = _array(observation[key])
    if image.ndim == 4 and image.shape[0] == 1:  # the time axis of HIL-SERL
        image = image[0]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DatasetError(f"{where}: is {image.dtype} {image.shape}; accepted: uint8 (height, width, 3), RGB")
    return resized(torch.from_numpy(np.ascontiguousarray(image[None])), size)[0].numpy()


def _all_frames(path: Path, clip: Iterator[Image]) -> list[Image]:
    """All frames of a clip; one array would hold a long clip twice."""
    frames = list(itertools.islice(clip, CLIP_FRAMES + 1))
    if len(frames) > CLIP_FRAMES:
        raise DatasetError(f"{path}: more than {CLIP_FRAMES:,} frames; accepted: clips of so many, so cut it up")
    if not frames:
        raise DatasetError(f"{path}: there are no frames in it")
    return frames
