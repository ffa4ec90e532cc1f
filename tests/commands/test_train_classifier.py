"""train_classifier really run, on frames that are told apart by their colour."""

import dataclasses
import json
import math
import pickle
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tyro", reason="tyro is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

from serl_fast import train_classifier
from serl_fast.cli import parse
from serl_fast.data.held_out import split_by_episode
from serl_fast.engine import Engine, NonFiniteLossError
from serl_fast.errors import MissingExtraError
from serl_fast.logging import read_metrics
from serl_fast.record_success_fail import RecordSuccessFailConfig
from serl_fast.rewards.files import load_classifier
from serl_fast.train_classifier import read_frames
from serl_fast.train_classifier_config import TrainClassifierConfig

EAGER = ["--image_size=32", "--execution=eager", "--threads=1", "--device=cpu"]
SMALL = [*EAGER, "--encoder=small", "--batch_size=16", "--lr=1e-3"]
PER_EPOCH = 8  # updates: 120 frames in batches of 16
DALI = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
COLOURS = {"failure": (120, 120, 90), "success": (90, 120, 120), "egg": (120, 60, 120)}


def frame(rng, colour, spread=60):
    return np.clip(np.array(colour) + rng.normal(0, spread, (32, 32, 3)), 0, 255).astype(np.uint8)


def pickled(path, rng, name, episodes, steps=6, other=None, **more):
    """Transitions whose next observation shows the class, and whose observation another one, ``other``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "observations": {"front": frame(rng, COLOURS[other or name])},
            "next_observations": {"front": frame(rng, COLOURS[name])},
            "dones": step == steps - 1,
            "infos": {"episode": f"{name} {episode}"},
            **more,
        }
        for episode in range(episodes)
        for step in range(steps)
    ]
    path.write_bytes(pickle.dumps(rows, protocol=4))
    return path


def run(*flags):
    return train_classifier.run([*map(str, flags), *SMALL])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained classifier, and its data beside it."""
    torch.set_num_threads(1)
    root, rng = tmp_path_factory.mktemp("classifier"), np.random.default_rng(0)
    # The frame before the action shows the other class: who looks at it is always wrong.
    pickled(root / "good" / "a_success_images.pkl", rng, "success", 10, other="failure")
    pickled(root / "bad" / "a_failure_images.pkl", rng, "failure", 15, other="success")
    assert run(*flags(root), "--num_epochs", 12, "--output_dir", root / "out") == 0
    return root


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """But for those of ``folder``, which is made before."""
    monkeypatch.setattr(train_classifier, "draw_report", lambda *arguments: [])


def flags(root):
    return ("--success_dir", root / "good", "--failure_dir", root / "bad", "--image_keys", "front")


def parsed(root, *more):
    return parse(TrainClassifierConfig, [*map(str, (*flags(root), *more)), *SMALL], description="")


def held_out(root, *more):
    config = parsed(root, *more)
    seed = np.random.SeedSequence(config.seed).generate_state(4).tolist()[1]
    return split_by_episode(read_frames(config)[0], config.validation_fraction, config.class_names, seed)[1]


def test_the_files(folder):
    names = {path.name for path in (folder / "out").iterdir()}
    assert names >= {"classifier.safetensors", "config.json", "report.json", "metrics.csv"}
    assert not [name for name in names if name.endswith(".tmp")]
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    for name in ("confusion.png", "roc.png", "most_wrong.png"):
        assert (folder / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_the_figures_are_those_of_the_saved_classifier(folder):
    report = json.loads((folder / "out" / "report.json").read_text())
    classifier = load_classifier(folder / "out")
    counts, scores = np.zeros((2, 2), int), {0: [], 1: []}
    for each in held_out(folder):
        probability, success = classifier.predict_success(each.images)
        counts[each.label, int(success)] += 1
        scores[each.label].append(probability)
    assert counts.sum(1).tolist() == [18, 12]  # 3 of 15 and 2 of 10 episodes of 6
    assert report["confusion"] == counts.tolist()
    assert report["accuracy"] == pytest.approx(np.trace(counts) / 30)
    assert report["classes"]["success"]["recall"] == pytest.approx(counts[1, 1] / 12)
    assert report["classes"]["failure"]["precision"] == pytest.approx(counts[0, 0] / counts[:, 0].sum())
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[1] for b in scores[0]]
    assert report["threshold"]["roc_area"] == pytest.approx(np.mean(pairs))
    assert report["threshold"]["value"] == classifier.threshold
    assert report["threshold"]["false_positives"] == counts[0, 1] == 0
    assert report["threshold"]["negatives"] == 18
    assert report["threshold"]["negative_episodes"] == 3
    assert report["threshold"]["false_positive_episodes"] == 0


def test_it_looks_at_the_frame_after_the_action(folder):
    classifier, rng = load_classifier(folder / "out"), np.random.default_rng(1)
    shown = {name: np.stack([frame(rng, COLOURS[name]) for _ in range(40)]) for name in ("failure", "success")}
    said = {name: (classifier.probabilities({"front": x}) >= classifier.threshold) for name, x in shown.items()}
    assert said["success"].float().mean() > 0.9
    assert said["failure"].float().mean() < 0.05


def test_the_record_of_the_training(folder):
    rows = read_metrics(folder / "out" / "metrics.csv")
    assert rows["epoch"].tolist() == list(range(1, 13))
    assert rows["step"].tolist() == [PER_EPOCH * epoch for epoch in range(1, 13)]
    assert rows["validation/loss"][-1] < rows["validation/loss"][0]
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["training"]["data"]["train"] == {"failure": 72, "success": 48, "episodes": 20}
    assert report["training"]["best_epoch"] == 1 + int(np.argmin(rows["validation/loss"]))
    config = json.loads((folder / "out" / "config.json").read_text())
    assert config["class_names"] == ["failure", "success"]
    assert config["flags"]["image_keys"] == ["front"]


def test_batches_hold_as_many_of_each_class(folder, tmp_path, monkeypatch):
    seen, update = [], Engine.update
    monkeypatch.setattr(
        Engine, "update", lambda engine, batch: (seen.append(batch["labels"].clone()), update(engine, batch))[1]
    )
    run(*flags(folder), "--num_epochs", 1, "--output_dir", tmp_path)
    assert [labels.bincount().tolist() for labels in seen] == [[8, 8]] * PER_EPOCH


def test_the_same_seed_gives_the_same_classifier(folder, tmp_path):
    for name in ("one", "two"):
        run(*flags(folder), "--num_epochs", 1, "--output_dir", tmp_path / name)
    one, two = (load_classifier(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def losses(monkeypatch, values, failure=None):
    """Have updates only count, or fail in epoch 2, and the held-out losses be these; the weights tell the epoch."""
    given = iter(values)

    def update(self, batch):
        if failure is not None and self.updates == PER_EPOCH + 2:
            raise failure
        self.updates += 1

    def validate(self):
        with torch.no_grad():
            self.classifier.head.bias.fill_(self.engine.updates / PER_EPOCH)
        return next(given), 0.5

    monkeypatch.setattr(Engine, "update", update)
    monkeypatch.setattr(train_classifier.Training, "_validate", validate)


def test_training_ends_early_with_the_best_weights(folder, tmp_path, monkeypatch, capsys):
    losses(monkeypatch, [3.0, 2.0, 2.5, 2.0, 2.1, 1.0])
    run(*flags(folder), "--patience", 3, "--output_dir", tmp_path)
    assert "no better held-out loss in 3 epochs; the weights are those of epoch 2" in capsys.readouterr().out
    assert load_classifier(tmp_path).head.bias.tolist() == [2.0]
    assert len(read_metrics(tmp_path / "metrics.csv")["step"]) == 5
    losses(monkeypatch, [3.0, 2.0, 2.5, 2.0, 2.1, 1.0])
    run(*flags(folder), "--patience", 0, "--num_epochs", 6, "--output_dir", tmp_path)  # in place of the older one
    assert load_classifier(tmp_path).head.bias.tolist() == [6.0]
    assert len(read_metrics(tmp_path / "metrics.csv")["step"]) == 6


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "interrupted; the weights are those of epoch 1"),
        (NonFiniteLossError("a loss is NaN"), "a loss is NaN; the weights are those of epoch 1"),
    ],
)
def test_what_ends_the_training_leaves_the_best_weights(folder, tmp_path, monkeypatch, capsys, error, said):
    losses(monkeypatch, [1.0], error)
    run(*flags(folder), "--output_dir", tmp_path)
    assert said in capsys.readouterr().out
    assert load_classifier(tmp_path).head.bias.tolist() == [1.0]
    monkeypatch.setattr(Engine, "update", lambda engine, batch: (_ for _ in ()).throw(error))
    with pytest.raises(ValueError, match=r"interrupted before the first epoch|training failed: a loss is NaN"):
        run(*flags(folder), "--output_dir", tmp_path / "none")
    assert not (tmp_path / "none" / "classifier.safetensors").exists()


def test_a_loss_that_is_never_finite(folder, tmp_path, monkeypatch):
    losses(monkeypatch, [math.nan, math.nan])
    with pytest.raises(ValueError, match="the held-out loss was never finite; lower --lr"):
        run(*flags(folder), "--num_epochs", 2, "--output_dir", tmp_path)


def test_three_classes_from_folders_of_images(tmp_path, capsys):
    library = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    for name, colour in COLOURS.items():
        (data / name).mkdir(parents=True)
        for number in range(20):
            library.fromarray(frame(rng, colour, 30)).save(data / name / f"{number}.png")
    classes = [f"{name}={data / name}" for name in COLOURS]
    run("--classes", *classes, "--image_keys", "side", "--num_epochs", 12, "--output_dir", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert np.array(report["confusion"]).sum(1).tolist() == [4, 4, 4]
    assert report["accuracy"] > 0.9
    assert "of successes are recognised" in capsys.readouterr().out
    classifier = load_classifier(tmp_path / "out")
    assert (classifier.classes, classifier.success_class) == (3, 1)
    found = [classifier.probabilities({"side": frame(rng, c, 30)[None]})[0].argmax().item() for c in COLOURS.values()]
    assert found == [0, 1, 2]
    # The same frames by the names of their folders, and no class that means success.
    names = ("--classes", "failure", "succ", "egg")
    run("--labelled_data", data, *names, "--image_keys", "side", "--num_epochs", 1, "--output_dir", tmp_path / "o2")
    report = json.loads((tmp_path / "o2" / "report.json").read_text())
    assert report["threshold"] is None
    assert sum(map(sum, report["confusion"])) == 12
    assert load_classifier(tmp_path / "o2").success_class is None


@pytest.mark.parametrize("backend", ["torch", "auto", "dali"])
def test_clips(tmp_path, capsys, backend):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for name in ("success", "failure"):
        for number in range(5):
            with av.open(str(tmp_path / "data" / f"{name}_{number}.mp4"), "w") as container:
                stream = container.add_stream("libvpx-vp9", 10, options={"deadline": "realtime", "cpu-used": "8"})
                stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
                for _ in range(6):
                    shown = av.VideoFrame.from_ndarray(frame(rng, COLOURS[name], 10), format="rgb24")
                    container.mux(stream.encode(shown))
                container.mux(stream.encode())
    given = ("--labelled_data", tmp_path / "data", "--image_backend", backend, "--output_dir", tmp_path / "out")
    if backend == "dali" and not DALI:
        with pytest.raises(MissingExtraError, match=r"pip install 'serl-fast\[dali\]'"):
            run(*given, "--num_epochs", 1)
        return
    run(*given, "--num_epochs", 12)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["accuracy"] > 0.9
    by = "in VP9 and MJPEG are decoded by DALI on the CPU, " if DALI and backend != "torch" else "are decoded by PyAV"
    assert capsys.readouterr().out.count(f"clips {by}") == 1


def test_rows_say_the_class(tmp_path):
    rng = np.random.default_rng(0)
    one = pickle.loads(pickled(tmp_path / "a.pkl", rng, "success", 5, labels=1).read_bytes())
    two = pickle.loads(pickled(tmp_path / "a.pkl", rng, "failure", 5, labels=0).read_bytes())
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(one + two))
    out = tmp_path / "out"
    run("--labelled_data", tmp_path / "a.pkl", "--image_keys", "front", "--num_epochs", 1, "--output_dir", out)
    assert json.loads((out / "report.json").read_text())["training"]["data"]["train"]["success"] == 24


def test_a_frozen_trunk_sees_held_out_frames_once(tmp_path, monkeypatch, capsys):
    from serl_fast.networks.resnet10 import ResNet10

    rng, seen, forward = np.random.default_rng(0), [], ResNet10.forward
    pickled(tmp_path / "a_success.pkl", rng, "success", 2, 2)
    pickled(tmp_path / "a_failure.pkl", rng, "failure", 2, 2)
    monkeypatch.setenv("HOME", str(tmp_path))  # no pre-trained weights there
    monkeypatch.setattr(ResNet10, "forward", lambda self, x: (seen.append(len(x.flatten(0, -4))), forward(self, x))[1])
    out = tmp_path / "out"
    data = ["--labelled_data", str(tmp_path), "--image_keys", "front", "--output_dir", str(out)]
    train_classifier.run([*data, "--num_epochs=2", "--batch_size=2", *EAGER])
    assert "no pre-trained ResNet-10: the frozen trunk is random" in capsys.readouterr().out
    assert seen == [4, 2, 2, 2, 2]  # 4 held out; two epochs of two steps
    load_classifier(out)


SUCCESS = {"success_dir": (Path("s"),)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "there is no data: give --success_dir and --failure_dir"),
        ({**SUCCESS, "batch_size": 1}, "batch_size is 1; it must hold a frame of each of 2 classes"),
        ({**SUCCESS, "image_size": 30}, "image_size is 30; it must be at least 31"),
        ({**SUCCESS, "num_epochs": 0}, "num_epochs is 0; it must be at least 1"),
        ({**SUCCESS, "patience": -1}, "patience is -1; it must be at least 0"),
        ({**SUCCESS, "validation_fraction": 1.0}, "validation_fraction is 1.0; it must be between 0 and 1"),
        ({**SUCCESS, "false_positive_rate": 0.0}, "false_positive_rate is 0.0; it must be between"),
        ({**SUCCESS, "color_jitter": 1.0}, "color_jitter is 1.0"),
        ({**SUCCESS, "image_keys": ("a", "a")}, "image_keys are .*; name at least one camera, each once"),
        ({**SUCCESS, "classes": ("a=b", "c=d")}, "success_dir is for the classes failure and success"),
        ({"classes": ("a=b",)}, "accepted: name=folder of two classes at least"),
        ({"classes": ("a=b", "a=c")}, "accepted: name=folder of two classes at least"),
        ({"classes": ("a=b", "c=d"), "success_class": "e"}, "success_class is 'e'; the classes are a, c"),
        ({**SUCCESS, "success_class": "failure"}, "of failure and success it is success"),
    ],
)
def test_flags_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        TrainClassifierConfig(**given)


def test_a_path_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        run("--success_dir", "nowhere")


def test_a_file_of_two_classes(folder):
    with pytest.raises(ValueError, match=r"a_success_images.pkl is given as two classes; .* is --labelled_data"):
        run("--success_dir", folder / "good", "--failure_dir", folder, "--image_keys", "front")


@pytest.mark.parametrize("there", [["metrics.csv", "notes.txt"], ["classifier.safetensors", "metrics.csv"]])
def test_a_folder_of_something_else_is_left_alone(folder, tmp_path, there):
    (tmp_path / "tensorboard").mkdir()
    for name in [*there, "tensorboard/events"]:
        (tmp_path / name).write_text("mine")
    (tmp_path / "config.json").write_text('{"flags": {"env": "PickCube"}}')
    said = rf"output_dir .* holds {there[0] if len(there[0]) > 12 else 'config.json'}.*; give a new or an empty folder"
    with pytest.raises(ValueError, match=said):
        run(*flags(folder), "--num_epochs", 1, "--output_dir", tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == (tmp_path / "tensorboard" / "events").read_text() == "mine"
    with pytest.raises(ValueError, match=r"notes.txt is a file; give a folder"):
        train_classifier.check_output(_written(tmp_path / "notes.txt"))


def _written(path):
    path.write_text("")
    return path


def test_where_a_training_comes_to_nothing_the_folder_may_be_given_again(folder, tmp_path, monkeypatch):
    losses(monkeypatch, [math.nan])
    with pytest.raises(ValueError, match="never finite"):
        run(*flags(folder), "--num_epochs", 1, "--output_dir", tmp_path)
    train_classifier.check_output(tmp_path)


def test_a_file_given_twice_is_read_once(folder, tmp_path, capsys):
    (tmp_path / "link").symlink_to(folder / "good")
    paths = [folder / "good", tmp_path / "link", folder / "bad" / ".." / "good" / "a_success_images.pkl"]
    config = parsed(folder, "--success_dir", *paths)
    frames, (note,) = read_frames(config)
    assert len(frames) == 60 + 90
    assert re.search(r"2 file\(s\) are given more than once and read once: .*link/a_success_images.pkl", note)
    said = capsys.readouterr().out
    assert f"class failure: 90 frames, from {folder / 'bad' / 'a_failure_images.pkl'} (90)\n" in said
    assert f"class success: 60 frames, from {folder / 'good' / 'a_success_images.pkl'} (60)\n" in said


def test_an_episode_in_two_files_is_one(tmp_path):
    rng = np.random.default_rng(0)
    rows = {"success": [], "failure": []}
    for _ in range(10):
        shown = [{"front": frame(rng, COLOURS["failure"])[None]} for _ in range(7)]
        for step in range(6):
            made = {"observations": shown[step], "next_observations": shown[step + 1], "dones": step == 5}
            rows["success" if step in (2, 5) else "failure"].append(made)
    for name, those in rows.items():
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(those, protocol=4))
    config = parse(
        TrainClassifierConfig, ["--labelled_data", str(tmp_path), "--image_keys=front", *SMALL], description=""
    )
    frames, (note,) = read_frames(config)
    assert len({frame.group for frame in frames}) == 10
    assert "30 were joined" in note  # 0 1 | 2 | 3 4 | 5
    train, held, _ = split_by_episode(frames, 0.2, ("failure", "success"))
    assert not {f.group for f in train} & {f.group for f in held}
    assert (len(train), len(held)) == (48, 12)


def test_the_guide(folder, tmp_path, monkeypatch):
    """Its program runs, and its commands parse."""
    text = (Path(__file__).parents[2] / "docs" / "guides" / "classifier.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    shutil.copytree(folder / "out", tmp_path / "door")
    monkeypatch.chdir(tmp_path)
    names = {"observation": {"front": np.zeros((48, 64, 3), np.uint8)}}
    exec(compile(program, "guide", "exec"), names)
    assert 0 <= names["probability"] <= 1
    configs = {"train_classifier": TrainClassifierConfig, "record_success_fail": RecordSuccessFailConfig}
    commands = re.findall(r"^python -m serl_fast\.(\w+) (.*)$", text, re.MULTILINE)
    assert [command for command, _ in commands].count("train_classifier") == 4
    for command, given in commands:
        if command in configs:
            parse(configs[command], given.split(), description="")
    fields = {field.name for field in dataclasses.fields(TrainClassifierConfig)}
    table = set(re.findall(r"`--(\w+)`", "".join(line for line in text.splitlines() if line.startswith("| `--"))))
    assert table == fields - {"strict_execution"}


def test_a_class_without_frames(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no frames of class 'failure': give --failure_dir, or --labelled_data"):
        run("--success_dir", folder / "good", "--image_keys", "front", "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="'next_observations/image': is missing; the observation has 'front'"):
        run("--success_dir", folder / "good", "--failure_dir", folder / "bad", "--output_dir", tmp_path / "out")
