"""``train_hybrid``, ``record_demos`` and ``evaluate`` really run, on the CPU, for a few steps."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from serl_fast import evaluate, record_demos, runs, train_hybrid
from serl_fast.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint
from serl_fast.data.demonstrations import DemonstrationError, load_demonstrations
from serl_fast.errors import MissingExtraError
from serl_fast.replay import ReplayStore

TINY = [
    "--max_steps=40", "--batch_size=16", "--training_starts=20", "--random_steps=10", "--hidden_widths", "16", "16",
    "--execution=eager", "--eval_interval=20", "--eval_episodes=1", "--final_eval_episodes=2", "--video_episodes=1",
    "--log_interval=5", "--save_interval=20", "--steps_per_update=5", "--replay_buffer_capacity=500", "--threads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("demos") / "pick.pkl"
    assert record_demos.run(["--num_demos", "2", "--output", str(path), "--seed", "3"]) == 0
    return path


def mistake(run, argv: list[str], capsys) -> str:
    """What a command says to ``argv``: as one line of text, however it is framed on the terminal."""
    try:
        run(argv)
    except (ValueError, RuntimeError) as error:
        return str(error)
    except SystemExit:
        pass
    return re.sub(r"[\s│╭╮╰╯─]+", " ", capsys.readouterr().err)


def require_graphics() -> None:
    """Skip a test that needs rendered images of the simulation where there is no OpenGL."""
    from serl_robots.sim.rendering import choose_backend

    env = train_hybrid.make_env("serl_robots/Reach-v0", render_mode="rgb_array")
    env.reset()
    try:
        env.render()
    except RuntimeError as error:
        pytest.skip(f"no OpenGL ({choose_backend()}): {error}")
    finally:
        env.close()


def columns(run: Path) -> dict[str, list[str]]:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows if row[name] != ""] for name in rows[0]}


def test_a_whole_run_leaves_everything_behind(demos, tmp_path, capsys):
    require_graphics()
    run = tmp_path / "run"
    flags = ["--demo_paths", str(demos), "--operator", "scripted", "--save_dir", str(run), "--cta_ratio", "4"]
    assert (
        train_hybrid.run(
            [*TINY, *flags, "--lr=1e-3", "--discount=0.9", "--pretrain_steps=3", "--max_steps=400", "--eval_interval=2"]
        )
        == 0
    )
    printed = capsys.readouterr().out
    # Behind three updates on demonstrations gradient step 20 lies in the block from 17 to 21.
    for name in ("config.json", "metrics.csv", "tensorboard", "success.png", "rollout.mp4", "final_model.pth",
                 "checkpoint_21.pth", "checkpoint_400.pth"):  # fmt: skip
        assert (run / name).exists(), name
        assert str(run / name) in printed
    assert "success rate over 2 fresh episodes" in printed
    config = json.loads((run / "config.json").read_text())
    assert config["lr"] == 1e-3
    assert config["execution_used"] == "eager"
    assert "torch" in json.dumps(config)
    found = columns(run)
    for name in ("critic_loss", "grasp_critic_loss", "actor_loss", "alpha_loss", "alpha", "environment/episode/r",
                 "environment/episode/l", "environment/episode/intervention_count", "critic/loss",
                 "learner/utd_ratio", "learner/updates_per_second", "evaluation/success_rate"):  # fmt: skip
        assert found[name], name
    assert list(run.glob("tensorboard/*events*"))
    assert len(list(run.glob("replay_*"))) == 1  # only the newest stores are kept


def test_the_final_model_is_evaluated_by_its_own_command(demos, tmp_path, capsys):
    require_graphics()
    run = tmp_path / "run"
    train_hybrid.run([*TINY, "--demo_paths", str(demos), "--save_dir", str(run), "--preset", "quick"])
    video = tmp_path / "v.mp4"
    flags = ["--checkpoint", str(run / "final_model.pth"), "--episodes", "2", "--video", str(video), "--stochastic"]
    assert evaluate.run([*flags, "--video_episodes", "1", "--seed", "7", "--device", "cpu"]) == 0
    assert "success rate" in capsys.readouterr().out
    assert video.stat().st_size > 1000


def test_replay_on_the_device_trains_and_resumes(demos, tmp_path, capsys):
    run = tmp_path / "run"
    flags = [*TINY, "--demo_paths", str(demos), "--save_dir", str(run), "--replay_device", "device"]
    flags += ["--final_eval_episodes=0", "--eval_interval=0", "--video_episodes=0"]
    assert train_hybrid.run([*flags, "--pretrain_steps=3", "--synchronous"]) == 0
    assert re.search(r"replay on the device, as asked: 0.0 GB on cpu", capsys.readouterr().out)
    assert all(np.isfinite(float(value)) for value in columns(run)["critic_loss"])
    assert train_hybrid.run([*flags, "--resume", "--max_steps=60"]) == 0
    first, second = (load_checkpoint(run / f"checkpoint_{step}.pth") for step in (40, 60))
    assert second["updates"] == 60
    assert second["engine"]["updates"] == first["engine"]["updates"] + 20
    weights = zip(first["networks"].values(), second["networks"].values(), strict=True)
    assert any(not torch.equal(before, after) for before, after in weights)
    again = tmp_path / "again"
    assert train_hybrid.run([*flags, "--pretrain_steps=3", "--synchronous", "--save_dir", str(again)]) == 0
    repeated = load_checkpoint(again / "checkpoint_40.pth")["networks"]
    assert all(torch.equal(value, repeated[name]) for name, value in first["networks"].items())


@pytest.mark.parametrize(
    ("mode", "width"),
    [
        ("single-arm-fixed-gripper", 6),
        ("single-arm-learned-gripper", 7),
        ("dual-arm-fixed-gripper", 12),
        ("dual-arm-learned-gripper", 14),
    ],
)
def test_every_setup_mode_trains(mode, width, tmp_path, toy_arm):
    import gymnasium

    env_id = f"toy/Arm{width}-v0"
    if env_id not in gymnasium.registry:
        gymnasium.register(env_id, entry_point=toy_arm, kwargs={"width": width, "intervals": ((2, 5),)})
    flags = ["--env", env_id, "--setup_mode", mode, "--save_dir", str(tmp_path), "--critic_ensemble_size", "4"]
    assert train_hybrid.run([*TINY, *flags, "--critic_subsample_size", "2", "--eval_interval=0"]) == 0
    checkpoint = load_checkpoint(tmp_path / "final_model.pth")
    assert checkpoint["setup_mode"] == mode
    assert ReplayStore.load(tmp_path / "replay_40" / "demonstrations").appended > 0  # the interventions


def test_a_fixed_gripper_mode_holds_a_commanded_gripper_still(tmp_path, demos):
    flags = ["--setup_mode", "single-arm-fixed-gripper", "--operator", "scripted", "--save_dir", str(tmp_path)]
    assert train_hybrid.run([*TINY, *flags, "--env", "serl_robots:serl_robots/PickCube-v0"]) == 0
    assert load_checkpoint(tmp_path / "final_model.pth")["agent"]["action_dim"] == 6
    batch = ReplayStore.load(tmp_path / "replay_40" / "online")
    openings = batch.batch_at(np.arange(len(batch)))["next_observations"]["state"][:, 0]
    assert len(ReplayStore.load(tmp_path / "replay_40" / "demonstrations"))  # the operator acted,
    assert openings.min() > 0.9  # and could not close the gripper either


def test_reach_with_a_fixed_gripper(tmp_path):
    demo = tmp_path / "reach.pkl"
    flags = ["--env", "serl_robots/Reach-v0", "--setup_mode", "single-arm-fixed-gripper"]
    record_demos.run([*flags, "--num_demos", "2", "--noise", "0", "--output", str(demo)])
    assert train_hybrid.run([*TINY, *flags, "--demo_paths", str(demo), "--save_dir", str(tmp_path / "run")]) == 0


def test_images_of_the_simulation_train_in_two_threads(tmp_path):
    """The actor's thread renders first and this one afterwards, for the final evaluation and its video."""
    require_graphics()
    flags = ["--env", "serl_robots/Reach-v0", "--setup_mode", "single-arm-fixed-gripper", "--image_keys", "front"]
    small = ["--max_steps=2", "--batch_size=2", "--training_starts=4", "--random_steps=4", "--eval_interval=1"]
    run = tmp_path / "run"
    assert train_hybrid.run([*TINY, *flags, *small, "--final_eval_episodes=1", "--save_dir", str(run)]) == 0
    assert (run / "rollout.mp4").exists()


def test_flags_of_the_agent_reach_it(tmp_path):
    flags = ["--target_entropy=-2.5", "--temperature_init=0.5", "--target_update_rate=0.01", "--no_normalize_state"]
    train_hybrid.run([*TINY, *flags, "--env", "toy/Arm-v0", "--save_dir", str(tmp_path), "--eval_interval=0"])
    settings = load_checkpoint(tmp_path / "final_model.pth")["agent"]["config"]
    assert settings["target_entropy"] == -2.5
    assert settings["initial_temperature"] == 0.5
    assert settings["target_update_rate"] == 0.01


def test_states_are_normalised_by_the_demonstrations(demos, tmp_path):
    states = np.array([t["observations"]["state"] for t in load_demonstrations(demos)])
    for flag, mean in (("--normalize_state", states.mean(0)), ("--no_normalize_state", np.zeros(21))):
        run = tmp_path / flag
        quiet = ["--demo_paths", str(demos), "--eval_interval=0", "--final_eval_episodes=0", flag]
        train_hybrid.run([*TINY, *quiet, "--save_dir", str(run)])
        networks = load_checkpoint(run / "final_model.pth")["networks"]
        np.testing.assert_allclose(networks["encoder.normalizer.mean"], mean, rtol=1e-4, atol=1e-6)


def test_images_and_state_train_together(tmp_path, toy_arm):
    import gymnasium

    if "toy/Camera-v0" not in gymnasium.registry:
        cameras = ("front", "wrist", "unused")
        gymnasium.register("toy/Camera-v0", entry_point=toy_arm, kwargs={"image_keys": cameras})
    flags = ["--env", "toy/Camera-v0", "--image_keys", "front", "wrist", "--save_dir", str(tmp_path)]
    # The environment takes image_keys itself; what it is given here is what it offers.
    small = ["--max_steps=4", "--batch_size=4", "--training_starts=4", "--log_interval=2", "--eval_interval=0"]
    assert train_hybrid.run([*TINY, *flags, *small, "--final_eval_episodes=0"]) == 0
    store = ReplayStore.load(tmp_path / "replay_4" / "online")
    observations = store.batch_at(np.arange(2))["observations"]
    assert set(observations) == {"state", "front", "wrist"}
    assert observations["front"].shape == (2, 16, 16, 3)


def test_synchronous_runs_are_equal_bit_for_bit(demos, tmp_path):
    def weights(name: str, seed: int, execution: str = "eager") -> dict:
        run = tmp_path / name
        flags = ["--demo_paths", str(demos), "--synchronous", "--operator=scripted", "--seed", str(seed)]
        flags += ["--save_dir", str(run), "--execution", execution]
        train_hybrid.run([*TINY, *flags, "--max_utd_ratio", "0.5", "--final_eval_episodes", "0"])
        return load_checkpoint(run / "checkpoint_40.pth")

    first, second, other = weights("a", 1), weights("b", 1), weights("c", 2)
    assert first["counters"] == second["counters"]
    for name, value in first["networks"].items():
        assert torch.equal(value, second["networks"][name]), name
    assert any(not torch.equal(value, other["networks"][name]) for name, value in first["networks"].items())


def test_resume_continues_with_the_same_state(demos, tmp_path, capsys):
    flags = ["--demo_paths", str(demos), "--synchronous", "--save_dir", str(tmp_path), "--operator", "scripted"]
    quiet = ["--final_eval_episodes", "0", "--eval_interval", "0"]
    train_hybrid.run([*TINY, *flags, *quiet])
    before = load_checkpoint(tmp_path / "checkpoint_40.pth")
    online = ReplayStore.load(tmp_path / "replay_40" / "online")
    resumed = train_hybrid.Run(train_hybrid.parse(
        train_hybrid.TrainHybridConfig, [*TINY, *flags, *quiet, "--max_steps=60", "--resume"], description=""
    ))  # fmt: skip
    assert f"resuming from {tmp_path / 'checkpoint_40.pth'}" in capsys.readouterr().out
    state = resumed.engine.state_dict()
    assert torch.equal(state["generator"], before["engine"]["generator"])
    assert state["updates"] == 40
    for name, tensors in state["adam"].items():
        for mine, saved in zip(tensors, before["engine"]["adam"][name], strict=True):
            assert torch.equal(mine, saved)
    assert len(resumed.online) == len(online)
    np.testing.assert_array_equal(resumed.online.sample(8)["actions"], online.sample(8)["actions"])
    resumed.train()
    assert resumed.counters.updates == 60
    assert latest_checkpoint(tmp_path).name == "checkpoint_60.pth"
    assert float(columns(tmp_path)["step"][-1]) == 60


def test_resume_keeps_to_the_run_it_continues(demos, tmp_path, capsys):
    flags = [*TINY, "--demo_paths", str(demos), "--save_dir", str(tmp_path), "--synchronous", "--eval_interval=0"]
    train_hybrid.run([*flags, "--final_eval_episodes=0"])
    again = [*flags, "--final_eval_episodes=0", "--resume"]
    assert train_hybrid.run(again) == 0  # finished already: not one step more
    assert latest_checkpoint(tmp_path).name == "checkpoint_40.pth"
    assert "capacity" not in capsys.readouterr().out
    assert train_hybrid.run([*again, "--replay_buffer_capacity=600"]) == 0
    assert "they keep their capacity, 500: replay_buffer_capacity has no effect" in capsys.readouterr().out
    for extra, message in (
        (["--hidden_widths", "8"], r"hidden_widths \[16, 16\], not \[8\]: resume it with its own flags"),
        (["--lr", "1e-3"], r"learning_rate 0\.0003, not 0\.001"),
        (["--env", "toy/Arm-v0"], "--env is toy/Arm-v0; .*checkpoint_40.pth was trained with serl_robots/PickCube-v0"),
    ):
        with pytest.raises(ValueError, match=message):
            train_hybrid.run([*again, *extra])


def test_resume_without_a_checkpoint_says_so(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"no checkpoint_<step>\.pth to continue from"):
        train_hybrid.run([*TINY, "--resume", "--save_dir", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no run with a checkpoint under runs/"):
        train_hybrid.run([*TINY, "--resume=True"])


def test_resume_without_its_stores_starts_from_the_demonstrations(demos, tmp_path, capsys):
    flags = ["--demo_paths", str(demos), "--save_dir", str(tmp_path), "--no_save_replay", "--final_eval_episodes=0"]
    train_hybrid.run([*TINY, *flags, "--eval_interval=0"])
    assert not list(tmp_path.glob("replay_*"))
    assert train_hybrid.run([*TINY, *flags, "--eval_interval=0", "--resume", "--max_steps=44"]) == 0
    assert "with an empty online store" in capsys.readouterr().out


def test_a_failing_robot_saves_what_there_is(tmp_path, toy_arm):
    import gymnasium

    if "toy/Failing-v0" not in gymnasium.registry:
        gymnasium.register("toy/Failing-v0", entry_point=toy_arm, kwargs={"fail_at": 35})
    with pytest.raises(RuntimeError, match="the gripper does not answer; everything up to here is in") as error:
        train_hybrid.run([*TINY, "--env", "toy/Failing-v0", "--save_dir", str(tmp_path), "--max_steps=100000"])
    assert isinstance(error.value.__cause__, OSError)
    store = ReplayStore.load(next(tmp_path.glob("replay_*")) / "online")
    assert len(store) == 34


def test_weights_that_are_not_finite_never_replace_good_ones(tmp_path, monkeypatch):
    update = runs.Engine.update_block

    def poisoned(self, *arguments):
        metrics = update(self, *arguments)
        if self.updates == 33:
            with torch.no_grad():
                next(self.agent.networks["actor"].parameters()).fill_(float("nan"))
        return metrics

    monkeypatch.setattr(runs.Engine, "update_block", poisoned)
    flags = ["--env", "toy/Arm-v0", "--save_dir", str(tmp_path), "--eval_interval=0", "--synchronous"]
    with pytest.raises(
        RuntimeError, match=r"training stopped: critic/loss is nan at update 34.*the weights are not finite"
    ):
        train_hybrid.run([*TINY, *flags])
    good = load_checkpoint(latest_checkpoint(tmp_path))
    assert good["updates"] == 20
    assert all(torch.isfinite(t).all() for t in good["networks"].values())
    assert len(ReplayStore.load(tmp_path / "replay_20" / "online")) > 0  # what the good checkpoint resumes with
    newest = ReplayStore.load(tmp_path / "replay_33" / "online")  # and everything up to the failure
    monkeypatch.undo()
    assert train_hybrid.run([*TINY, *flags, "--resume", "--final_eval_episodes=0"]) == 0
    online = ReplayStore.load(tmp_path / "replay_40" / "online")
    assert online.appended > newest.appended  # resuming lost none of it


def test_an_environment_that_returns_nan_is_named_and_what_came_before_is_kept(tmp_path, toy_arm):
    import gymnasium

    class Broken(toy_arm):
        def _observe(self):
            observation = super()._observe()
            if self.total == 30:
                observation["state"][2] = np.nan
            return observation

    if "toy/Nan-v0" not in gymnasium.registry:
        gymnasium.register("toy/Nan-v0", entry_point=Broken)
    with pytest.raises(RuntimeError, match=r"'next_observations/state' holds a non-finite value") as error:
        train_hybrid.run([*TINY, "--env", "toy/Nan-v0", "--save_dir", str(tmp_path), "--max_steps=100000"])
    assert isinstance(error.value.__cause__, ValueError)
    assert len(ReplayStore.load(next(tmp_path.glob("replay_*")) / "online")) == 29


def test_a_failing_save_does_not_hide_why_training_stopped(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "save_run", full)
    with pytest.raises(RuntimeError, match=r"training stopped: .*No space left.*saving failed as well"):
        train_hybrid.run([*TINY, "--env", "toy/Arm-v0", "--save_dir", str(tmp_path), "--eval_interval=0"])


def test_an_environment_that_does_not_render_is_not_filmed(tmp_path, capsys, toy_arm):
    import gymnasium

    if "toy/Dark-v0" not in gymnasium.registry:
        gymnasium.register("toy/Dark-v0", entry_point=lambda: toy_arm())
    train_hybrid.run([*TINY, "--env", "toy/Dark-v0", "--save_dir", str(tmp_path)])
    assert "no video: toy/Dark-v0 does not render" in capsys.readouterr().out
    assert not (tmp_path / "rollout.mp4").exists()
    checkpoint = ["--checkpoint", str(tmp_path / "final_model.pth"), "--episodes", "1"]
    with pytest.raises(ValueError, match="does not render; leave --video out"):
        evaluate.run([*checkpoint, "--video", str(tmp_path / "v.mp4")])
    nowhere = [*checkpoint, "--video", str(tmp_path / "x" / "v.mp4")]
    assert "there is no folder" in mistake(evaluate.run, nowhere, capsys)
    none = [*checkpoint, "--video", str(tmp_path / "v.mp4"), "--video_episodes=0"]
    assert "video_episodes is 0; it must be at least 1" in mistake(evaluate.run, none, capsys)


@pytest.mark.parametrize("picture", ["a picture is float64", "no OpenGL for images"])
def test_what_can_not_be_filmed_costs_the_video_alone(picture, tmp_path, capsys, toy_arm, monkeypatch):
    def render(arm):
        if "OpenGL" in picture:
            raise RuntimeError(picture)
        return np.zeros((32, 32, 3))

    monkeypatch.setattr(toy_arm, "render", render)
    assert train_hybrid.run([*TINY, "--env", "toy/Arm-v0", "--save_dir", str(tmp_path), "--eval_interval=0"]) == 0
    printed = capsys.readouterr().out
    assert f"no video: {picture}" in printed
    assert "success rate over 2 fresh episodes" in printed


def test_a_robot_is_built_once_when_nothing_is_evaluated(tmp_path, toy_arm):
    import gymnasium

    built = []
    gymnasium.register("toy/Counted-v0", entry_point=lambda: built.append(1) or toy_arm())
    flags = ["--env", "toy/Counted-v0", "--save_dir", str(tmp_path), "--eval_interval=0", "--final_eval_episodes=0"]
    train_hybrid.run([*TINY, *flags])
    assert len(built) == 1


def test_the_pretrained_trunk_is_loaded_or_its_absence_said(tmp_path, capsys, monkeypatch):
    import pickle

    from serl_fast.networks.encoder import Encoder
    from serl_fast.networks.resnet10 import ResNet10

    monkeypatch.setenv("HOME", str(tmp_path))
    encoder = Encoder(("front",), trunk=ResNet10())
    runs.load_pretrained(encoder, None)
    assert "no pre-trained ResNet-10: the frozen trunk is random" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        runs.load_pretrained(encoder, tmp_path / "nowhere.pkl")
    (tmp_path / ".serl").mkdir()
    (tmp_path / ".serl" / "resnet10_params.pkl").write_bytes(pickle.dumps({"conv_init": {}}))
    with pytest.raises(ValueError, match="conv_init"):
        runs.load_pretrained(encoder, None)


def test_weights_are_saved_where_the_stores_do_not_fit(tmp_path, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ReplayStore, "snapshot", full)
    with pytest.raises(RuntimeError, match=r"No space left.*the weights alone are in .*checkpoint_40\.pth") as error:
        train_hybrid.run(
            [*TINY, "--env", "toy/Arm-v0", "--save_dir", str(tmp_path), "--eval_interval=0", "--save_interval=0"]
        )
    assert isinstance(error.value.__cause__, OSError)
    assert load_checkpoint(tmp_path / "checkpoint_40.pth")["updates"] == 40


def test_weights_that_are_not_finite_are_not_saved_even_where_the_stores_do_not_fit(tmp_path, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ReplayStore, "snapshot", full)
    monkeypatch.setattr(runs.Engine, "finite", lambda self: False)
    flags = ["--env", "toy/Arm-v0", "--save_dir", str(tmp_path), "--eval_interval=0", "--save_interval=0"]
    with pytest.raises(RuntimeError, match="saving failed as well"):
        train_hybrid.run([*TINY, *flags])
    assert not list(tmp_path.glob("checkpoint_*"))


def test_resuming_without_saving_stores_keeps_those_that_are_there(tmp_path):
    flags = ["--env", "toy/Arm-v0", "--save_dir", str(tmp_path), "--eval_interval=0", "--final_eval_episodes=0"]
    train_hybrid.run([*TINY, *flags])
    train_hybrid.run([*TINY, *flags, "--resume", "--no_save_replay", "--max_steps=60"])
    assert (tmp_path / "checkpoint_60.pth").exists()
    assert len(ReplayStore.load(tmp_path / "replay_40" / "online")) > 0


def test_an_interrupt_during_the_final_evaluation_still_ends_well(tmp_path, monkeypatch, capsys):
    evaluate_ = runs.evaluate

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        return evaluate_(*arguments, **options)

    monkeypatch.setattr(runs, "evaluate", interrupted)
    assert train_hybrid.run([*TINY, "--env", "toy/Arm-v0", "--save_dir", str(tmp_path), "--eval_interval=0"]) == 0
    assert (tmp_path / "success.png").exists()
    assert "success rate over" not in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_interrupt_finishes_the_step_saves_and_exits_cleanly(tmp_path, number):
    command = [
        sys.executable,
        "-m",
        "serl_fast.train_hybrid",
        *TINY,
        "--save_dir",
        str(tmp_path),
        "--max_steps=1000000",
    ]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("checkpoint_*.pth")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "finishing the step and saving" in output
    last = load_checkpoint(latest_checkpoint(tmp_path))
    assert last["updates"] % 2 == 0  # between two blocks
    assert len(ReplayStore.load(tmp_path / f"replay_{last['updates']}" / "online")) > 0
    assert (tmp_path / "final_model.pth").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env", "Nowhere-v0"], "environment 'Nowhere-v0' can not be built"),
        (["--env", "no_such_module:Id-v0"], "no_such_module"),
        (["--setup_mode", "dual-arm-learned-gripper"], "takes actions of width 7.*needs 14"),
        (["--image_keys", "side"], "side"),
        (["--operator", "nobody"], "operator 'nobody' can not be loaded.*scripted"),
        (["--operator", "serl_robots.operators:Nobody"], "Nobody"),
        (["--pretrain_steps", "5"], "there are no demonstrations"),
        (["--replay_buffer_capacity", "10"], "replay_buffer_capacity is 10"),
        (["--max_steps", "0"], "max_steps is 0"),
        (["--discount", "1.1"], r"discount is 1\.1"),
        (["--lr", "0"], r"learning_rate is 0\.0"),
        (["--target_update_rate", "2"], r"target_update_rate is 2\.0"),
        (["--temperature_init", "0"], "initial temperature is 0"),
        (["--execution", "graphed"], "'graphed' captures a CUDA graph"),
        (["--precision", "tf32", "--device", "cpu"], "'tf32' needs a CUDA device"),
        (["--video_episodes=-1"], "video_episodes is -1"),
        (["--device", "gpu"], "device 'gpu' can not be used"),
    ],
)
def test_mistakes_are_named(flags, message, tmp_path, capsys):
    said = mistake(train_hybrid.run, [*TINY, *flags, "--save_dir", str(tmp_path)], capsys)
    assert re.search(message, said), said


def test_demonstrations_of_another_task_are_named(demos, tmp_path):
    flags = ["--env", "serl_robots/Reach-v0", "--setup_mode", "single-arm-fixed-gripper", "--save_dir", str(tmp_path)]
    with pytest.raises(DemonstrationError, match=r"pick\.pkl, transition 0, field 'actions'"):
        train_hybrid.run([*TINY, *flags, "--demo_paths", str(demos)])


def test_demonstrations_with_another_state_are_named(demos, tmp_path):
    flags = ["--demo_paths", str(demos), "--env", "toy/Arm-v0", "--save_dir", str(tmp_path)]
    message = r"pick\.pkl, transition 0, field 'observations/state': has shape \(21,\); the environment has \(4,\)"
    with pytest.raises(DemonstrationError, match=message):
        train_hybrid.run([*TINY, *flags])


def test_demonstrations_are_never_dropped_for_lack_of_room(demos, tmp_path):
    flags = ["--demo_paths", str(demos), "--save_dir", str(tmp_path), "--replay_buffer_capacity=21"]
    with pytest.raises(ValueError, match=r"transitions do not fit; .*: raise --replay_buffer_capacity, which is 21"):
        train_hybrid.run([*TINY, *flags])


def test_a_run_is_not_written_over(tmp_path):
    (tmp_path / "metrics.csv").touch()
    with pytest.raises(ValueError, match="holds a run already; give --resume, or another --save_dir"):
        train_hybrid.run([*TINY, "--save_dir", str(tmp_path)])


def test_a_mistake_is_one_line_on_the_terminal():
    command = [sys.executable, "-m", "serl_fast.train_hybrid", "--env", "Nowhere-v0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.strip().startswith("error: environment 'Nowhere-v0' can not be built")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("module", ["train_hybrid", "record_demos", "evaluate"])
def test_help_names_every_flag(module, capsys):
    command = {"train_hybrid": train_hybrid, "record_demos": record_demos, "evaluate": evaluate}[module]
    with pytest.raises(SystemExit):
        command.run(["--help"])
    text = capsys.readouterr().out
    import dataclasses

    config = {
        "train_hybrid": train_hybrid.TrainHybridConfig,
        "record_demos": record_demos.RecordDemosConfig,
        "evaluate": evaluate.EvaluateConfig,
    }[module]
    for field in dataclasses.fields(config):
        assert field.name in text, field.name


def test_evaluating_a_bad_checkpoint_names_it(tmp_path, capsys):
    bad = tmp_path / "bad.pth"
    with pytest.raises(CheckpointError, match=r"bad\.pth: no such checkpoint"):
        evaluate.run(["--checkpoint", str(bad)])
    bad.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(CheckpointError, match=r"bad\.pth: not a readable checkpoint"):
        evaluate.run(["--checkpoint", str(bad)])
    torch.save({"weights": torch.zeros(1)}, bad)
    with pytest.raises(CheckpointError, match="no format_version"):
        evaluate.run(["--checkpoint", str(bad)])
    torch.save({"format_version": 99}, bad)
    with pytest.raises(CheckpointError, match="format version 99"):
        evaluate.run(["--checkpoint", str(bad)])
    assert "episodes is 0" in mistake(evaluate.run, ["--checkpoint", str(bad), "--episodes", "0"], capsys)


def test_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'serl-fast\[sim\]'"):
        train_hybrid.run([])
