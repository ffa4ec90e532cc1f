"""Metrics files, settings, the progress display, the plot and the video."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import serl_fast.errors
from serl_fast import __version__, figures
from serl_fast.figures import Film, plot_q_values
from serl_fast.logging import (
    RunLogger,
    metric_aliases,
    plot_progress,
    read_metrics,
    write_config,
    write_video,
)


def rows(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def logger(run_dir: Path, **options: Any) -> RunLogger:
    return RunLogger(run_dir, **{"tensorboard": False, "stream": io.StringIO()} | options)


@pytest.fixture
def without_extra(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make optional packages look as if they were not installed."""

    def hide(*names: str) -> None:
        for name in [*names, *(m for m in sys.modules if m.split(".")[0] in names)]:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


def test_aliases() -> None:
    metrics = {
        "critic/loss": 1.0,
        "grasp_critic/loss": 2.0,
        "actor/loss": 3.0,
        "temperature/loss": 4.0,
        "actor/temperature": 5.0,
        "environment/episode/r": 6.0,
    }
    named = metric_aliases(metrics)
    assert named == metrics | {
        "critic_loss": 1.0,
        "grasp_critic_loss": 2.0,
        "actor_loss": 3.0,
        "alpha_loss": 4.0,
        "alpha": 5.0,
    }
    assert metric_aliases({"actor/temperature": 0.1, "actor/temperature_loss": 0.2}).items() >= {
        ("alpha", 0.1),
        ("alpha_loss", 0.2),
    }
    assert metric_aliases({"bc/loss": 3.0})["actor_loss"] == 3.0
    assert metric_aliases({}) == {}


def test_new_metrics_widen_the_file(tmp_path: Path) -> None:
    run = logger(tmp_path)
    run.log({"critic/loss": 1.5}, step=1, environment_steps=10)
    run.log({"critic/loss": 1.0, "actor/loss": -2.0}, step=2, environment_steps=20)
    run.log({"environment/episode/r": 1.0}, step=2, environment_steps=25)
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert header == "step,environment_steps,time,critic/loss,critic_loss,actor/loss,actor_loss,environment/episode/r"
    first, second, third = rows(tmp_path)
    assert (first["step"], first["environment_steps"], first["critic/loss"]) == ("1", "10", "1.5")
    assert (first["actor/loss"], second["actor_loss"], third["critic/loss"]) == ("", "-2.0", "")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_columns_read_back(tmp_path: Path) -> None:
    run = logger(tmp_path)
    run.log({"a": 1.0}, step=1)
    run.log({"b": float("nan"), "a": float("inf")}, step=2)
    columns = read_metrics(tmp_path / "metrics.csv")
    assert columns["step"].tolist() == [1, 2]
    assert columns["a"].tolist() == [1, math.inf]
    assert np.isnan(columns["b"]).all()


def test_a_resumed_run_continues_the_file(tmp_path: Path) -> None:
    first = logger(tmp_path)
    first.log({"a": 1.0}, step=1)
    first.close()
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("2,20,0.")  # a crash in the middle of a line
    again = logger(tmp_path)
    again.log({"b": 3.0}, step=3)
    again.close()
    again.log({"b": 4.0}, step=4)  # after close
    assert [(row["step"], row["a"], row["b"]) for row in rows(tmp_path)] == [
        ("1", "1.0", ""),
        ("3", "", "3.0"),
        ("4", "", "4.0"),
    ]
    times = read_metrics(tmp_path / "metrics.csv")["time"]
    assert (np.diff(times) >= 0).all()


def test_time_goes_on_after_a_resume(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,environment_steps,time\n5,50,1000.0\n")
    run = logger(tmp_path)
    run.log({"a": 1.0}, step=6)
    assert float(rows(tmp_path)[-1]["time"]) >= 1000.0


def test_numbers_of_numpy_and_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    logger(tmp_path).log({"a": np.float32(1.5), "b": torch.tensor(2.5)}, step=1)
    assert (rows(tmp_path)[0]["a"], rows(tmp_path)[0]["b"]) == ("1.5", "2.5")


def test_threads_write_whole_rows(tmp_path: Path) -> None:
    run = logger(tmp_path)

    def write(worker: int) -> None:
        for step in range(50):
            run.log({f"worker_{worker}/a": step, "shared": worker}, step=step)
            run.progress(updates=step, max_updates=50)
            run.progress_entries()

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = rows(tmp_path)
    assert len(written) == 200
    for worker in range(4):
        own = [row for row in written if row["shared"] == f"{float(worker)}"]
        assert [float(row[f"worker_{worker}/a"]) for row in own] == list(range(50))


def test_tensorboard_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = logger(tmp_path, tensorboard=True)
    run.log({"critic/loss": 1.5}, step=7)
    run.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"critic/loss", "critic_loss"}
    (scalar,) = events.Scalars("critic/loss")
    assert (scalar.step, scalar.value) == (7, 1.5)


def test_without_tensorboard(tmp_path: Path, without_extra: Any) -> None:
    without_extra("tensorboard", "torch.utils.tensorboard")
    stream = io.StringIO()
    run = logger(tmp_path, tensorboard=True, stream=stream)
    assert "pip install 'serl-fast[logging]'" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1
    run.log({"a": 1.0}, step=1)
    assert len(rows(tmp_path)) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def status() -> dict[str, Any]:
    return {
        "environment_steps": 1234,
        "updates": 2500,
        "max_updates": 10_000,
        "utd_ratio": 2.03,
        "success_rate": 0.85,
        "training_success_rate": 0.6,
        "episodes": 40,
        "interventions": 12,
    }


def test_live_table_on_a_terminal(tmp_path: Path) -> None:
    pytest.importorskip("rich")
    stream = Terminal()
    run = logger(tmp_path, stream=stream)
    with run.display():
        run.progress(**status())
        run.log({"critic/loss": 0.125, "learner/updates_per_second": 50.0}, step=2500)
    shown = stream.getvalue()
    for text in (
        "1,234",
        "2,500 of 10,000 (25%)",
        "50.0",
        "2.03",
        "85%",
        "60%",
        "12",
        "critic_loss",
        "0.125",
    ):
        assert text in shown
    assert "about 0:02:30 to the step limit" in shown
    assert "step 2500, environment" not in shown  # no lines beside the table


def test_lines_elsewhere(tmp_path: Path) -> None:
    stream = io.StringIO()
    run = logger(tmp_path, stream=stream, seconds_between_lines=0.0)
    with run.display():
        run.progress(**status())
        run.log({"environment/episode/r": 1.0}, step=1)
        run.log({"critic/loss": 0.125, "actor/loss": -1.0, "learner/updates_per_second": 50.0}, step=2)
        run.log({"evaluation/success_rate": 0.85, "evaluation/return": 0.7}, step=3, environment_steps=9)
    losses, evaluation = stream.getvalue().splitlines()
    assert losses == "step 2: critic_loss 0.125, actor_loss -1, updates/s 50, UTD 2.03"
    assert evaluation.startswith("step 3, environment steps 9: evaluation/success_rate 0.85")


def test_lines_come_no_faster_than_asked(tmp_path: Path) -> None:
    stream = io.StringIO()
    run = logger(tmp_path, stream=stream, seconds_between_lines=60.0)
    for step in range(5):
        run.log({"critic/loss": 1.0}, step=step)
        run.log({"evaluation/success_rate": 1.0}, step=step)
    assert stream.getvalue().count("critic_loss") == 1
    assert stream.getvalue().count("evaluation/success_rate") == 5


def test_without_rich(tmp_path: Path, without_extra: Any) -> None:
    without_extra("rich", "rich.console", "rich.live", "rich.table")
    stream = Terminal()
    run = logger(tmp_path, stream=stream)
    with run.display():
        run.log({"critic/loss": 0.125}, step=1)
    assert "pip install 'serl-fast[logging]'" in stream.getvalue()
    assert "critic_loss 0.125" in stream.getvalue()


def test_config(tmp_path: Path) -> None:
    run = logger(tmp_path)
    path = run.write_config({"lr": 3e-4, "paths": (Path("a.pkl"),), "width": np.int64(3), "keys": {"b", "a"}})
    content = json.loads(path.read_text())
    assert path == tmp_path / "config.json"
    assert (content["lr"], content["paths"], content["width"], content["keys"]) == (
        3e-4,
        ["a.pkl"],
        3,
        ["a", "b"],
    )
    assert content["versions"]["serl_fast"] == __version__
    assert content["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert content["versions"]["numpy"] == np.__version__
    assert content["platform"]
    assert content["git"] is None or set(content["git"]) == {"commit", "dirty"}


def test_git_state(tmp_path: Path) -> None:
    from serl_fast.logging import _git_state

    assert _git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "empty"]):
        subprocess.run([*git, *arguments], check=True)
    state = _git_state(tmp_path)
    assert state is not None
    assert (len(state["commit"]), state["dirty"]) == (40, False)
    (tmp_path / "new.txt").touch()
    state = _git_state(tmp_path)
    assert state is not None
    assert state["dirty"]


def test_config_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert json.loads(write_config(tmp_path, {}).read_text())["git"] is None


def training_run(run_dir: Path) -> Path:
    run = logger(run_dir)
    rng = np.random.default_rng(0)
    for episode in range(200):
        skill = min(1.0, episode / 120)
        run.log(
            {
                "environment/episode/succeed": float(rng.random() < 0.3 + 0.7 * skill),
                "environment/episode/intervention_rate": float(max(0.0, 0.6 - skill + 0.1 * rng.random())),
            },
            step=100 * episode,
            environment_steps=50 * episode,
        )
        if episode % 20 == 0:
            metrics = {"evaluation/success_rate": min(1.0, round(skill * 20) / 20)}
            run.log(metrics, step=100 * episode, environment_steps=50 * episode)
    return run_dir / "metrics.csv"


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = tmp_path / "success.png"
    assert plot_progress(training_run(tmp_path), image) == image
    assert image.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert image.stat().st_size > 20_000


def test_plot_of_part_of_the_metrics(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = logger(tmp_path)
    run.log({"evaluation/success_rate": 0.5}, step=1, environment_steps=10)
    assert plot_progress(tmp_path / "metrics.csv", tmp_path / "success.png") is not None


def test_what_a_resumed_run_did_anew_is_drawn_once(tmp_path):
    rows = ["step,environment_steps,evaluation/success_rate", "10,20,0.1", "20,40,0.2", "30,60,0.9"]
    (tmp_path / "metrics.csv").write_text("\n".join([*rows, "20,41,0.3", "30,50,0.4", ""]))  # resumed at 20
    columns = read_metrics(tmp_path / "metrics.csv")
    assert [each.tolist() for each in figures._curve(columns, "evaluation/success_rate")] == [
        [20, 40, 41, 50],
        [10, 20, 30, 40],
    ]
    steps, rates = figures._by_step(columns, "evaluation/success_rate")
    assert steps.tolist() == [10, 20, 20, 30]
    assert rates.tolist() == [0.1, 0.2, 0.3, 0.4]


def test_without_environment_steps_the_abscissa_is_gradient_steps(tmp_path: Path) -> None:
    run = logger(tmp_path)
    for step in (100, 200):
        run.log({"evaluation/success_rate": 0.5}, step=step)
    steps, percent = figures._curve(read_metrics(tmp_path / "metrics.csv"), "evaluation/success_rate")
    assert (steps.tolist(), percent.tolist()) == ([100, 200], [50, 50])


def test_values_of_critics_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run, image = logger(tmp_path), tmp_path / "q_values.png"
    assert plot_q_values(tmp_path / "absent.csv", image) is None
    run.log({"critic/loss": 1.0}, step=1)
    assert plot_q_values(tmp_path / "metrics.csv", image) is None
    run.log({"offline/action_distance": 0.1}, step=2)  # of an agent without critics
    assert plot_q_values(tmp_path / "metrics.csv", image) == image
    run.log({f"offline/{name}": 1.0 for name in ("q_data", "q_policy", "mc_return", "action_distance")}, step=3)
    assert plot_q_values(tmp_path / "metrics.csv", image) == image


def test_nothing_to_plot(tmp_path: Path) -> None:
    assert plot_progress(tmp_path / "absent.csv", tmp_path / "success.png") is None
    logger(tmp_path).log({"critic/loss": 1.0}, step=1)
    assert plot_progress(tmp_path / "metrics.csv", tmp_path / "success.png") is None


def test_plot_without_matplotlib(tmp_path: Path, without_extra: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = training_run(tmp_path)
    without_extra("matplotlib", "matplotlib.figure")
    assert plot_progress(path, tmp_path / "success.png") is None
    assert "pip install 'serl-fast[logging]'" in capsys.readouterr().out


@pytest.mark.parametrize("size", [(64, 96), (33, 47)])
def test_video(tmp_path: Path, size: tuple[int, int]) -> None:
    av = pytest.importorskip("av")
    frames = [np.full((*size, 3), 20 * i, np.uint8) for i in range(8)]
    path = write_video(tmp_path / "rollout.mp4", frames, fps=5)
    assert path == tmp_path / "rollout.mp4"
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        back = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 5)
        assert (stream.width, stream.height) == (size[1] + size[1] % 2, size[0] + size[0] % 2)
    assert len(back) == len(frames)
    assert abs(float(back[5].mean()) - 100) < 5


def test_video_errors(tmp_path: Path, without_extra: Any, capsys: pytest.CaptureFixture[str]) -> None:
    frame = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="there are no frames"):
        write_video(tmp_path / "a.mp4", [])
    with pytest.raises(ValueError, match=r"frame 1 is uint8 \(4, 8, 3\)"):
        write_video(tmp_path / "a.mp4", [frame, frame[:4]])
    with pytest.raises(ValueError, match="frame 0 is float64"):
        write_video(tmp_path / "a.mp4", [frame / 255])
    assert not list(tmp_path.iterdir())
    without_extra("av")
    assert write_video(tmp_path / "a.mp4", [frame]) is None
    assert "pip install 'serl-fast[logging]'" in capsys.readouterr().out


def test_a_film_is_written_while_frames_come(tmp_path: Path) -> None:
    pytest.importorskip("av")
    random = np.random.default_rng(0)
    with Film(tmp_path / "a.mp4") as film:
        for _ in range(100):  # more than the encoder looks ahead
            film.add(random.integers(0, 255, (64, 64, 3), np.uint8))
        (unfinished,) = tmp_path.iterdir()
        assert unfinished.stat().st_size > 100_000
    assert film.written
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    with Film(tmp_path / "b.mp4") as film:
        pass
    assert not film.written
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_the_module_needs_no_extra() -> None:
    code = (
        "import sys; import serl_fast.logging; "
        "print([m for m in ('torch', 'rich', 'tensorboard', 'matplotlib', 'av') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert run.stdout.strip() == "[]"
    assert issubclass(serl_fast.errors.MissingExtraError, ImportError)
