"""Labelled frames: what is read from pickles, images and clips, and which episode it is of."""

import pickle

import numpy as np
import pytest
import torch

from serl_fast.data import labelled
from serl_fast.data.episodes import DatasetError
from serl_fast.data.labelled import find_recordings, read_recording, without_repeats
from serl_fast.figures import write_video
from serl_fast.networks.classifier import RewardClassifier

CLASSES = ("failure", "success")
SIZE = (4, 6)


def image(value, size=SIZE):
    return np.full((*size, 3), value, np.uint8)


def row(before, after=None, **more):
    made = {"observations": {"front": image(before)}, **more}
    return made if after is None else {**made, "next_observations": {"front": image(after)}}


def save(path, rows):
    path.write_bytes(pickle.dumps(rows, protocol=4))
    return path


def read(path, label=1, keys=("front",), size=SIZE, classes=CLASSES):
    found = find_recordings(path, label, keys, classes)
    return [frame for recording in found for frame in read_recording(recording, keys, size, classes)]


def values(frames, key="front"):
    return [int(frame.images[key][0, 0, 0]) for frame in frames]


def groups(frames):
    """0 for the frames of the first group, 1 for those of the next and so on."""
    names = list(dict.fromkeys(frame.group for frame in frames))
    return [names.index(frame.group) for frame in frames]


def png(path, pixels, mode=None, **more):
    image_module = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image_module.fromarray(pixels, mode).save(path, **more)
    return path


def test_the_frame_after_the_action_is_taken(tmp_path):
    frames = read(save(tmp_path / "a.pkl", [row(1, 2), row(2, 3), row(3, 4, labels=1)]))
    assert values(frames) == [2, 3, 4]
    assert [frame.label for frame in frames] == [1, 1, 1]
    assert [frame.name for frame in frames] == ["a.pkl, step 0", "a.pkl, step 1", "a.pkl, step 2"]
    assert frames[0].images["front"].shape == (*SIZE, 3)


def test_without_a_frame_after_it_is_the_one_there_is(tmp_path):
    assert values(read(save(tmp_path / "a.pkl", [row(1, labels=1), row(2, labels=np.int64(1))]))) == [1, 2]


def test_a_time_axis_of_one_is_dropped_and_other_sizes_are_resized(tmp_path):
    rows = [{"observations": {"front": image(7)[None]}}, {"observations": {"front": image(8, (20, 10))}}]
    frames = read(save(tmp_path / "a.pkl", rows))
    assert values(frames) == [7, 8]
    assert {frame.images["front"].shape for frame in frames} == {(*SIZE, 3)}


def test_frames_are_resized_as_the_classifier_resizes_what_it_is_shown(tmp_path):
    shown = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)
    classifier = RewardClassifier(["front"], encoder="small", image_size=(32, 36))
    (frame,) = read(save(tmp_path / "a.pkl", [{"observations": {"front": shown}}]), size=(32, 36))
    expected = classifier._sized(torch.from_numpy(shown)[None])[0].numpy()
    assert np.array_equal(frame.images["front"], expected)
    assert classifier.predict_success({"front": shown})[0] == classifier.predict_success(frame.images)[0]


def test_episodes_end_at_dones_and_at_gaps(tmp_path):
    rows = [row(1, 2), row(2, 3, dones=True), row(3, 4), row(4, 5, dones=np.False_), row(8, 9), row(9, 10)]
    assert groups(read(save(tmp_path / "a.pkl", rows))) == [0, 0, 1, 1, 2, 2]
    assert groups(read(save(tmp_path / "b.pkl", [row(1), row(5), row(9)]))) == [0, 0, 0]  # nothing tells


def test_an_episode_that_is_named_is_one_in_all_files(tmp_path):
    save(tmp_path / "success.pkl", [row(1, 2, episode=3), row(5, 6, infos={"episode": 4})])
    save(tmp_path / "failure.pkl", [row(1, 2, episode=4), row(2, 3, episode=4)])
    frames = read(tmp_path, label=None)
    assert {frame.name.partition(",")[0] + frame.group for frame in frames} == {
        "success.pklepisode 3",
        "success.pklepisode 4",
        "failure.pklepisode 4",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no rows; expected a list of transitions"),
        ({"observations": 1}, "holds a dict; expected a list"),
        ([row(1), 5], "transition 1: there is no dict of observations; it is a int"),
        ([{"images": 1}], "there is no dict of observations; it is 'images'"),
        (
            [row(1), {"observations": {"side": image(1)}}],
            "transition 1, field 'observations/front': is missing.*'side'",
        ),
        ([{"observations": {"front": image(1).astype(np.float32)}}], r"is float32 \(4, 6, 3\); accepted: uint8"),
        ([{"observations": {"front": image(1).transpose(2, 0, 1)}}], r"is uint8 \(3, 4, 6\); accepted"),
        ([row(1, labels=0)], r"'labels': is 0 \(failure\), but the file was given as 1 \(success\)"),
        ([row(1, labels=2)], r"'labels': is 2; accepted: 0 \(failure\), 1 \(success\)"),
        ([row(1, labels=[0, 1])], r"'labels': is \[0, 1\]; accepted"),
        ([row(1, labels=[0, [1]])], r"'labels': is \[0, \[1\]\]; accepted"),
        ([row(1, labels="1")], r"'labels': is '1'; accepted"),
        ([{"observations": {"front": [[1], [2, 3]]}}], r"'observations/front': is object \(0,\); accepted: uint8"),
    ],
)
def test_pickles_that_can_not_be_used(tmp_path, content, message):
    with pytest.raises(DatasetError, match=message) as caught:
        read(save(tmp_path / "bad.pkl", content))
    assert "bad.pkl" in str(caught.value)


def test_a_pickle_can_not_run_anything(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    with pytest.raises(DatasetError, match="refused the global"):
        read(save(tmp_path / "bad.pkl", [Hostile()]))
    assert not (tmp_path / "owned").exists()


def test_rows_and_names_say_the_class(tmp_path):
    save(tmp_path / "mixed.pkl", [row(1, labels=0), row(2, labels=1)])
    save(tmp_path / "exp_success_images_2026.pkl", [row(3)])
    png(tmp_path / "failures" / "a.png", image(4))
    png(tmp_path / "failures" / "b.png", image(5))
    png(tmp_path / "Success_7.png", image(6))
    frames = read(tmp_path, label=None)
    assert sorted(zip(values(frames), (frame.label for frame in frames), strict=True)) == [
        (1, 0), (2, 1), (3, 1), (4, 0), (5, 0), (6, 1),
    ]  # fmt: skip
    assert len({frame.group for frame in frames}) == 5  # each image one, the folder is not an episode
    assert {frame.name for frame in frames} >= {"failures/a.png", "mixed.pkl, step 1"}
    folder = tmp_path / "success_data"  # what is in it knows better
    png(folder / "failure" / "a.png", image(1))
    assert [frame.label for frame in read(folder, label=None)] == [0]
    png(folder / "b.png", image(1))
    with pytest.raises(DatasetError, match=r"b.png: of which class is it"):
        read(folder, label=None)
    for name in ("no_success", "not-successful", "un success", "Never_A_Success", "without success", "non.success"):
        with pytest.raises(
            DatasetError, match=rf"{name}.*Its name says .* and 'success', .* is not guessed; rename it"
        ):
            read(png(tmp_path / "y" / name / "1.png", image(1)).parents[1], label=None)
        (tmp_path / "y" / name / "1.png").unlink()
        (tmp_path / "y" / name).rmdir()
    assert [frame.label for frame in read(png(tmp_path / "z" / "notes_success_7.png", image(1)), label=None)] == [1]
    assert [frame.label for frame in read(png(tmp_path / "no_success" / "1.png", image(1)), label=0)] == [0]
    with pytest.raises(DatasetError, match=r"unsuccessful.png: of which class is it\? No word"):
        read(png(tmp_path / "x" / "unsuccessful.png", image(1)).parent, label=None)
    with pytest.raises(DatasetError, match=r"plain.pkl, transition 0: of which class is it\? It has no 'labels'"):
        read(save(tmp_path / "plain.pkl", [row(1)]), label=None)


def test_images_of_one_camera(tmp_path):
    png(tmp_path / "1.png", image(1))
    png(tmp_path / "2.PNG", image(2, (9, 9)))
    png(tmp_path / "run" / "3.jpg", image(3), quality=95)
    png(tmp_path / "run" / "4.png", image(4)[..., 0])  # grey
    png(tmp_path / "run" / "5.png", np.dstack([image(5), image(0)[..., 0]]))  # transparent
    (tmp_path / "notes.txt").write_text("not read")
    (tmp_path / ".hidden.png").write_text("not read")
    frames = read(tmp_path)
    assert values(frames) == [1, 2, 3, 4, 5]
    assert groups(frames) == [0, 1, 2, 2, 2]
    assert {frame.images["front"].shape for frame in frames} == {(*SIZE, 3)}
    (single,) = read(tmp_path / "run" / "4.png")
    assert single.name == "4.png"


def test_an_image_is_turned_as_a_viewer_turns_it(tmp_path):
    library = pytest.importorskip("PIL.Image")
    picture = library.fromarray(np.concatenate([image(0, (2, 4)), image(200, (2, 4))], axis=1))  # dark left of bright
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: what was left is on top
    picture.save(tmp_path / "a.png", exif=exif)
    (frame,) = read(tmp_path, size=(8, 2))
    assert frame.images["front"][:, 0, 0].tolist() == [0] * 4 + [200] * 4


def test_images_that_can_not_be_used(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(DatasetError, match=r"bad.png: no readable image"):
        read(tmp_path)
    good = png(tmp_path / "bad.png", np.zeros((64, 64, 3), np.uint8)).read_bytes()
    (tmp_path / "bad.png").write_bytes(good[: len(good) // 2])
    with pytest.raises(DatasetError, match=r"bad.png: no readable image"):
        read(tmp_path)
    png(tmp_path / "bad.png", np.full((8, 8), 1000, np.uint16))
    with pytest.raises(DatasetError, match=r"bad.png: more than 8 bits per channel"):
        read(tmp_path)


def test_images_of_several_cameras(tmp_path):
    for camera, value in (("front", 10), ("left/wrist", 20)):
        folder = tmp_path / camera
        png(folder / "run" / "1.png", image(value))
        png(folder / "run" / "2.png", image(value + 1))
    keys = ("front", "left/wrist")
    frames = read(tmp_path, keys=keys)
    assert values(frames) == [10, 11]
    assert values(frames, "left/wrist") == [20, 21]
    assert list(frames[0].images) == list(keys)
    assert groups(frames) == [0, 0]
    (tmp_path / "front" / "run" / "2.png").unlink()
    with pytest.raises(DatasetError, match=r"wrist.run.2.png: there is no file of the same name of camera front"):
        read(tmp_path, keys=keys)
    png(tmp_path / "3.png", image(1))
    with pytest.raises(DatasetError, match=r"3.png: which camera is it of\?.*front, left/wrist"):
        read(tmp_path, keys=keys)


def test_a_file_that_is_given_twice_is_of_one_episode(tmp_path):
    for n in range(3):
        png(tmp_path / "run" / f"{n}.png", image(n))
    both = [found for path in (tmp_path / "run", tmp_path) for found in find_recordings(path, 1, ["front"], CLASSES)]
    kept, (note,) = without_repeats(both)
    assert len(kept) == 3
    assert len({recording.group for recording in kept}) == 1  # the folder's, not one each
    assert "3 file(s) are given more than once and read once" in note
    assert without_repeats(kept) == (kept, [])
    with pytest.raises(DatasetError, match=r"0.png is given as two classes"):
        without_repeats([*kept, *find_recordings(tmp_path, 0, ["front"], CLASSES)])


def test_rows_say_what_they_follow(tmp_path):
    rows = [row(1, 2), row(2, 3, dones=True), row(3, 4, episode=1), row(3)]
    first, last, named, alone = read(save(tmp_path / "a.pkl", rows))
    assert first.after == last.before != first.before
    assert (last.after, named.before, named.after, alone.before, alone.after) == (b"",) * 5
    assert first.source == str(tmp_path / "a.pkl")


def test_large_images_are_not_in_memory_together(tmp_path, monkeypatch):
    from serl_fast.data import image_files

    done = []
    for name in ("_decode", "resized"):
        real = getattr(image_files, name)
        monkeypatch.setattr(image_files, name, lambda *given, n=name, real=real: (done.append(n), real(*given))[1])
    image_files.decode_images([png(tmp_path / f"{n}.png", image(n, (9, 9))) for n in range(3)], SIZE)
    assert done == ["_decode", "resized"] * 3


def test_two_files_of_one_moment(tmp_path):
    for name in ("front/1.png", "front/1.jpg", "side/1.png"):
        png(tmp_path / name, image(1))
    with pytest.raises(DatasetError, match=r"1.png and .*1.jpg are of the same camera and moment"):
        read(tmp_path, keys=("front", "side"))


def clip(path, shades):
    pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, [image(shade, (32, 48)) for shade in shades], fps=10)


def test_a_clip_is_one_episode(tmp_path, monkeypatch):
    clip(tmp_path / "a.mp4", [10, 60, 110])
    clip(tmp_path / "b.mp4", [160, 210])
    frames = read(tmp_path, label=0)
    assert groups(frames) == [0, 0, 0, 1, 1]
    assert np.allclose(values(frames), [10, 60, 110, 160, 210], atol=6)  # the codec is lossy
    assert frames[4].name == "b.mp4, frame 1"
    monkeypatch.setattr(labelled, "CLIP_FRAMES", 2)
    assert len(read(tmp_path / "b.mp4")) == 2
    with pytest.raises(DatasetError, match=r"a.mp4: more than 2 frames; accepted: clips of so many"):
        read(tmp_path / "a.mp4")
    monkeypatch.undo()
    (tmp_path / "b.mp4").write_bytes(b"rubbish")
    with pytest.raises(DatasetError, match=r"b.mp4"):
        read(tmp_path, label=0)


def test_a_frame_that_is_kept_does_not_keep_its_clip(tmp_path):
    """Nor are all frames in one array, for which a long clip would have to be in memory twice."""
    clip(tmp_path / "a.mp4", [10, 60, 110])

    def owner(array):
        return array if not isinstance(array.base, np.ndarray) else owner(array.base)

    for size in (SIZE, (32, 48)):  # the clip's own size among them
        frames = read(tmp_path / "a.mp4", size=size)
        assert len({id(owner(frame.images["front"])) for frame in frames}) == 3


def test_clips_of_several_cameras_have_one_length(tmp_path):
    clip(tmp_path / "front" / "a.mp4", [10, 60])
    clip(tmp_path / "side" / "a.mp4", [110, 160])
    frames = read(tmp_path, keys=("front", "side"))
    assert np.allclose(values(frames, "side"), [110, 160], atol=6)
    clip(tmp_path / "side" / "a.mp4", [110])
    with pytest.raises(DatasetError, match=r"differ in length: .*front.a.mp4 has 2, .*side.a.mp4 has 1 frames"):
        read(tmp_path, keys=("front", "side"))


def test_where_there_is_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DatasetError, match=r"there is nothing to read; accepted: pickles.*it holds a.txt"):
        read(tmp_path)
    with pytest.raises(DatasetError, match=r"a.txt: there is nothing to read"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_image_files_are_read_many_at_a_time_with_the_same_frames(tmp_path, monkeypatch, backend):
    from serl_fast.data.dali_images import image_decoder

    monkeypatch.setattr(labelled, "IMAGES_AT_ONCE", 4)
    keys = ("front", "wrist")
    random = np.random.default_rng(0)
    for n in range(5):
        for key in keys:
            png(tmp_path / "success" / key / f"{n}.png", random.integers(0, 256, (*SIZE, 3), np.uint8))
    both = {"front": image(9), "wrist": image(8)}
    save(tmp_path / "failure.pkl", [{"observations": both, "next_observations": both}])
    recordings = find_recordings(tmp_path, None, keys, CLASSES)
    decode, _ = image_decoder(backend, SIZE, 4)
    asked = []

    def counted(files):
        asked.append(len(files))
        return decode(files)

    together = list(labelled.read_recordings(recordings, keys, SIZE, CLASSES, counted))
    apart = [read_recording(recording, keys, SIZE, CLASSES) for recording in recordings]
    assert asked == [4, 4, 2]
    assert len(together) == len(recordings) == 6
    for ours, theirs in zip(together, apart, strict=True):
        assert [(frame.label, frame.group, frame.name) for frame in ours] == [
            (frame.label, frame.group, frame.name) for frame in theirs
        ]
        for frame, same in zip(ours, theirs, strict=True):
            assert list(frame.images) == list(keys)
            assert all(np.array_equal(frame.images[key], same.images[key]) for key in keys)
