"""``train_offline`` really runs, on the CPU, for a few steps; and ``train_hybrid --init`` goes on from it."""

import csv
import dataclasses
import json
import re
import signal
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from serl_fast import evaluate, offline_diagnostics, train_hybrid, train_offline
from serl_fast.checkpoint import load_checkpoint
from serl_fast.cli import parse
from serl_fast.data.episodes import Episode
from serl_fast.data.formats import write_dataset
from serl_fast.data.offline import ACTION_LIMIT, FOLLOWING, UNKNOWN
from serl_fast.loop import Learner
from serl_fast.replay import ReplayStore
from serl_fast.train_offline_config import OFFERED, TrainOfflineConfig
from tests.toy_arm import ToyArm

SMALL = "hidden_widths=8"
TINY = [
    "--max_steps=6", "--batch_size=8", "--execution=eager", "--threads=1", "--log_interval=2", "--eval_interval=3",
    "--final_eval_episodes=0", "--video_episodes=0", "--save_interval=0",
]  # fmt: skip
HYBRID = [
    "--env=toy/Arm-v0", "--max_steps=4", "--batch_size=8", "--execution=eager", "--threads=1", "--training_starts=4",
    "--eval_interval=0", "--final_eval_episodes=0", "--synchronous", "--hidden_widths", "8",
]  # fmt: skip
MODE = ["--setup_mode", "single-arm-learned-gripper"]


def episodes(success: bool = True, count: int = 3) -> list[Episode]:
    env, found = ToyArm(), []
    random = np.random.default_rng(0)
    for _ in range(count):
        observation, _ = env.reset()
        states, actions, rewards, ended = [observation["state"]], [], [], False
        while not ended and len(actions) < 19:
            action = random.uniform(-1, 1, 7).astype(np.float32)
            action[0] = 0.8 if success else 0.0
            observation, reward, ended, *_ = env.step(action)
            states.append(observation["state"])
            actions.append(action)
            rewards.append(reward)
        last = np.arange(len(actions)) == len(actions) - 1
        ends = last & np.bool_(ended), last & np.bool_(not ended)
        found.append(Episode({"state": np.array(states)}, np.array(actions), np.array(rewards, np.float32), *ends))
    return found


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("offline") / "demos.pkl"
    write_dataset(path, episodes(), "pickle")
    return path


@pytest.fixture(scope="module")
def made(demos, tmp_path_factory):
    """Runs of ``train_offline``, each made once: algorithm and further flags -> folder."""
    done: dict[tuple[str, ...], Path] = {}

    def make(algorithm: str, *flags: str) -> Path:
        key = (algorithm, *flags)
        if key not in done:
            done[key] = tmp_path_factory.mktemp(algorithm) / "run"
            small = [] if ":" in algorithm else ["--algorithm_options", SMALL]
            arguments = [*TINY, "--demo_paths", str(demos), "--algorithm", algorithm, *small, *flags]
            assert train_offline.run([*arguments, "--save_dir", str(done[key])]) == 0
        return done[key]

    return make


def columns(run: Path) -> dict[str, list[float]]:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def mistake(run, argv: list[str], capsys) -> str:
    """What a command says to ``argv``: as one line of text, however it is framed on the terminal."""
    capsys.readouterr()
    try:
        run(argv)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        return str(error)
    except SystemExit:
        pass
    return re.sub(r"[\s│╭╮╰╯─]+", " ", capsys.readouterr().err)


@pytest.mark.parametrize("algorithm", OFFERED)
def test_every_algorithm_learns_and_its_values_are_looked_at(algorithm, made):
    run = made(algorithm)
    found = columns(run)
    assert len(found["offline/action_distance"]) == 2  # at 3 and at 6
    assert ("offline/q_gap" in found) == (algorithm != "bc")
    assert all(np.isfinite(value) for values in found.values() for value in values)
    assert (run / "q_values.png").stat().st_size > 1000
    content = load_checkpoint(run / "final_model.pth")
    assert content["agent"]["algorithm"] == algorithm
    assert content["offline"]["discount"] == (0.95 if algorithm == "sac" else 0.99)


def test_config_says_what_was_learned_from(made):
    config = json.loads((made("td3bc") / "config.json").read_text())
    assert config["data"]["episodes"] == 3
    assert config["data"]["failures"] == 0
    assert (config["discount"], config["cta_ratio"]) == (0.99, 2)


class Wide(ToyArm):
    """Actions in [-2, 2]."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.action_space = gymnasium.spaces.Box(-2, 2, (7,), np.float32)


@pytest.mark.parametrize("by_maker", [False, True])
def test_actions_are_scaled_once_whether_or_not_the_run_evaluates(by_maker, demos, tmp_path, monkeypatch):
    make = (lambda **k: gymnasium.wrappers.RescaleAction(Wide(**k), -1, 1)) if by_maker else Wide
    monkeypatch.setitem(
        gymnasium.registry, "toy/Scaled-v0", gymnasium.envs.registration.EnvSpec("toy/Scaled-v0", entry_point=make)
    )
    recorded = episodes()[0].actions[0]
    for evaluations in (0, 1):
        flags = [*TINY, "--env=toy/Scaled-v0", "--demo_paths", str(demos), "--algorithm=bc", "--max_steps=1"]
        flags += [
            "--save_dir",
            str(tmp_path / str(evaluations)),
            f"--final_eval_episodes={evaluations}",
            "--eval_interval=0",
        ]
        run = train_offline.Run(parse(TrainOfflineConfig, flags, description=""))
        stored = run.data.batch_at([0])["actions"][0]
        np.testing.assert_allclose(stored, np.clip(recorded if by_maker else recorded / 2, -ACTION_LIMIT, ACTION_LIMIT))
        assert (run.evaluations.env is not None) == bool(evaluations)
        run.close()


def test_evaluation_on_the_way_at_the_end_and_by_its_own_command(demos, tmp_path, capsys):
    flags = ["--env=toy/Arm-v0", "--eval_interval=2", "--eval_episodes=1", "--final_eval_episodes=2"]
    run = tmp_path / "run"
    flags += ["--demo_paths", str(demos), "--save_dir", str(run), "--algorithm=td3bc"]
    assert train_offline.run([*TINY, *flags]) == 0
    found = columns(run)
    assert len(found["evaluation/success_rate"]) == 3  # the final one is the one that is due at the end
    assert len(found["final_evaluation/success_rate"]) == 1
    assert (run / "success.png").exists()
    printed = capsys.readouterr().out
    assert "success rate over 2 fresh episodes" in printed
    assert "alpha 0.25: every episode ends terminated" in printed
    assert evaluate.run(["--checkpoint", str(run / "final_model.pth"), "--episodes", "1"]) == 0
    assert "success rate" in capsys.readouterr().out


def test_one_transition_is_enough(tmp_path):
    (whole,) = episodes(count=1)
    ends = np.zeros(1, bool), np.ones(1, bool)
    one = Episode({"state": whole.observations["state"][:2]}, whole.actions[:1], whole.rewards[:1], *ends)
    write_dataset(tmp_path / "one.pkl", [one], "pickle")
    flags = [*TINY, "--demo_paths", str(tmp_path / "one.pkl"), "--algorithm=iql", "--save_dir", str(tmp_path / "run")]
    assert train_offline.run(flags) == 0


def test_data_on_disk_are_the_same_data(made, tmp_path, capsys):
    disk = tmp_path / "disk"
    on_disk = made("iql", "--data_on_disk", str(disk))
    assert f"the data are on disk, in {disk}" in capsys.readouterr().out
    assert not list(disk.iterdir())  # removed at the end
    a, b = (load_checkpoint(run / "final_model.pth")["networks"] for run in (made("iql"), on_disk))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_statistics_of_the_state_take_the_state_alone_from_the_store(demos, tmp_path, monkeypatch):
    flags = [*TINY, "--demo_paths", str(demos), "--algorithm=iql", "--save_dir", str(tmp_path)]
    run = train_offline.Run(parse(TrainOfflineConfig, flags, description=""))
    states = run.data.batch_at(np.arange(len(run.data)))["observations"]["state"]
    normalizer = run.agent.networks["encoder"].normalizer
    np.testing.assert_allclose(normalizer.mean.numpy(), states.mean(0), rtol=1e-5)
    asked = []
    sampler = ReplayStore.sampler
    monkeypatch.setattr(ReplayStore, "sampler", lambda store, **k: asked.append(k["fields"]) or sampler(store, **k))
    monkeypatch.setattr(ReplayStore, "batch_at", None)  # whose batches hold the images of all rows
    run.normalize(run.data)
    assert asked == [["observations/state"]]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(demos, made, tmp_path, capsys):
    flags = [*TINY, "--demo_paths", str(demos), "--algorithm=rebrac", "--algorithm_options", SMALL]
    flags += ["--save_dir", str(tmp_path)]
    train_offline.run([*flags, "--max_steps=4"])
    train_offline.run([*flags, "--resume"])
    resumed, whole = (load_checkpoint(run / "checkpoint_6.pth") for run in (tmp_path, made("rebrac")))
    assert all(torch.equal(value, whole["networks"][name]) for name, value in resumed["networks"].items())
    assert resumed["engine"]["updates"] == resumed["updates"] == 6
    for more, message in (
        (["--resume", "--algorithm=iql"], "algorithm rebrac, not iql"),
        (["--resume", "--lr=3e-4"], "actor_learning_rate 0.001, not 0.0003"),
        (
            ["--resume", "--discount=0.5", "--top_return=0.3"],
            "top_return 1.0, not 0.3; discount 0.99, not 0.5; transitions",
        ),
        ([], "holds a run already"),
    ):
        assert message in mistake(train_offline.run, [*flags, *more], capsys)


def test_ctrl_c_finishes_the_step_and_saves(demos, tmp_path, monkeypatch, capsys):
    step = Learner.step

    def interrupted(self, most=1):
        signal.raise_signal(signal.SIGINT)
        return step(self, most)

    monkeypatch.setattr(Learner, "step", interrupted)
    flags = ["--demo_paths", str(demos), "--algorithm=bc", "--save_dir", str(tmp_path), "--env=toy/Arm-v0"]
    assert train_offline.run([*TINY, *flags, "--final_eval_episodes=5"]) == 0
    assert load_checkpoint(tmp_path / "checkpoint_1.pth")["updates"] == 1
    assert "interrupted" in capsys.readouterr().out
    assert "final_evaluation/success_rate" not in columns(tmp_path)


def test_sac_warns_of_itself_and_its_values_show_it(demos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(offline_diagnostics, "SETTLED", 0)
    monkeypatch.setattr(offline_diagnostics, "FAR", 0.0)
    monkeypatch.setattr(offline_diagnostics, "GAP", -1e9)
    flags = ["--demo_paths", str(demos), "--algorithm_options", SMALL, "--save_dir"]
    train_offline.run([*TINY, *flags, str(tmp_path / "demos")])
    printed = capsys.readouterr().out
    assert (
        "algorithm sac has no regulariser and the data seem to hold no failures (3 episodes, all end terminated)"
        in printed
    )
    assert printed.count("Such values come from no data") == 1
    train_offline.run(
        [*TINY, *flags[:2], "--algorithm_options", SMALL, "bc_weight=1", "--save_dir", str(tmp_path / "bc")]
    )
    assert "regulariser" not in capsys.readouterr().out
    mixed = tmp_path / "mixed.pkl"
    write_dataset(mixed, [*episodes(), *episodes(success=False)], "pickle")
    flags = ["--demo_paths", str(mixed), "--algorithm=td3bc", "--algorithm_options", SMALL, "--save_dir"]
    train_offline.run([*TINY, *flags, str(tmp_path / "mixed")])
    assert "regulariser" not in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "mixed" / "final_model.pth")["agent"]["config"]["alpha"] == 2.5


def test_options_reach_the_algorithm():
    flags = ["--demo_paths", "x.pkl", "--algorithm", "iql", "--lr", "1e-3", "--reward_scale", "2", "--reward_bias=-1"]
    options = ["expectile=0.9", "hidden_widths=8,4", "actor_cosine_decay_steps=100", "actor_layer_norm=true"]
    config = parse(TrainOfflineConfig, [*flags, "--algorithm_options", *options], description="").agent()
    assert (config.expectile, config.hidden_widths, config.actor_cosine_decay_steps) == (0.9, (8, 4), 100)
    assert (config.actor_learning_rate, config.critic_learning_rate) == (1e-3, 1e-3)
    assert (config.reward_scale, config.reward_bias, config.actor_layer_norm) == (2.0, -1.0, True)
    cosine = parse(TrainOfflineConfig, [*flags, "--algorithm_options", "actor_cosine_decay_steps=none"], description="")
    assert cosine.agent().actor_cosine_decay_steps is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--algorithm=dqn"], "algorithm is 'dqn'; choose from sac, bc, iql, td3bc, rebrac, cql, calql, or"),
        (["--algorithm=iql", "--algorithm_options", "tau=1"], "iql has no option 'tau'; it has hidden_widths, "),
        (["--algorithm=iql", "--algorithm_options", "beta=big"], "option beta is 'big'; accepted: float"),
        (["--algorithm=iql", "--algorithm_options", "beta"], "algorithm_options has 'beta'; give key=value"),
        (["--algorithm=iql", "--algorithm_options", "expectile=2"], r"expectile is 2.0; it must be in (0, 1)"),
        (
            ["--algorithm=iql", "--algorithm_options", "reward_bias=-1"],
            "give --reward_bias -1, which the data's returns",
        ),
        (["--algorithm=own:agent", "--lr=1"], "leave out --lr and --algorithm_options"),
        (["--top_return=0"], r"top_return is 0.0; it must be in (0, 1]"),
        (["--reward_scale=0"], "reward_scale is 0.0"),
        (["--discount=2"], "discount is 2.0"),
        (["--max_steps=0"], "max_steps is 0"),
        (["--setup_mode=single-arm-fixed-gripper"], "field 'actions': has 7 values; accepted: 6"),
        (["--env=serl_robots/PickCube-v0"], "observations/state"),
        (["--image_keys", "front"], "front"),
        (["--demo_paths", "nowhere.pkl"], "nowhere.pkl"),
    ],
)
def test_mistakes(flags, message, demos, tmp_path, capsys):
    given = [*TINY, "--demo_paths", str(demos), "--save_dir", str(tmp_path / "run"), *flags]
    assert message in mistake(train_offline.run, given, capsys)
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(demos, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without torchrun" in mistake(train_offline.run, [*TINY, "--demo_paths", str(demos)], capsys)


@pytest.mark.parametrize("algorithm", ["iql", "calql", "rebrac"])
def test_training_goes_on_with_the_algorithm_of_the_checkpoint(algorithm, made, demos, tmp_path, capsys):
    start = made(algorithm) / "checkpoint_6.pth"
    flags = ["--init", str(start), "--demo_paths", str(demos), "--save_dir", str(tmp_path), "--discount=0.99"]
    assert train_hybrid.run([*HYBRID, *flags]) == 0
    assert f"weights of {start} ({algorithm})" in capsys.readouterr().out
    content = load_checkpoint(tmp_path / "checkpoint_4.pth")
    assert content["agent"]["algorithm"] == algorithm
    assert content["engine"]["updates"] == 4
    stored = ReplayStore.load(tmp_path / "replay_4" / "demonstrations")
    batch = stored.batch_at(np.arange(len(stored)))
    assert np.abs(batch["actions"]).max() <= np.float32(ACTION_LIMIT)
    assert (FOLLOWING in batch, "mc_returns" in batch) == (algorithm == "rebrac", algorithm == "calql")
    online = ReplayStore.load(tmp_path / "replay_4" / "online")
    found = online.batch_at(np.arange(len(online)))
    if algorithm == "rebrac":  # its own steps get the action that followed
        np.testing.assert_array_equal(found[FOLLOWING][:-1], found["actions"][1:])
    elif algorithm == "calql":  # no episode has ended yet
        assert (found["mc_returns"] == UNKNOWN).all()
    assert train_hybrid.run([*HYBRID, *flags, "--resume", "--max_steps=6"]) == 0
    assert load_checkpoint(tmp_path / "checkpoint_6.pth")["updates"] == 6
    chained = ["--init", str(tmp_path / "final_model.pth"), "--save_dir", str(tmp_path / "next")]
    with pytest.raises(ValueError, match=r"give --discount 0\.99"):
        build(*chained)


def build(*flags: str) -> train_hybrid.Run:
    return train_hybrid.Run(parse(train_hybrid.TrainHybridConfig, [*HYBRID, *flags], description=""))


def test_training_goes_on_with_the_weights_the_targets_and_adam(made, demos, tmp_path, capsys):
    start = made("sac", *MODE) / "checkpoint_6.pth"
    run = build("--init", str(start), "--demo_paths", str(demos), "--save_dir", str(tmp_path))
    saved = load_checkpoint(start)
    assert saved["agent"]["algorithm"] == "hybrid_sac"
    assert all(torch.equal(value, saved["networks"][name]) for name, value in run.agent.networks.state_dict().items())
    for name, state in run.engine.adam.items():
        assert all(torch.equal(*pair) for pair in zip(state.tensors(), saved["engine"]["adam"][name], strict=True))
    assert run.learner.config.random_steps == 0
    assert (run.engine.updates, run.counters.updates) == (0, 0)
    other = build("--init", str(start.with_name("final_model.pth")), "--save_dir", str(tmp_path), "--lr=1e-3")
    assert "Adam starts afresh" in capsys.readouterr().out
    assert torch.equal(other.agent.networks.state_dict()["actor.mean.weight"], saved["networks"]["actor.mean.weight"])


def test_cached_features_lack_what_some_algorithms_need(made, demos, tmp_path):
    start = ["--init", str(made("calql") / "checkpoint_6.pth"), "--demo_paths", str(demos), "--discount=0.99"]
    run = build(*start, "--save_dir", str(tmp_path))
    run.config = dataclasses.replace(run.config, image_keys=("front",), feature_cache=2)
    with pytest.raises(ValueError, match="feature_cache is 2; calql needs mc_returns of every step"):
        run._feature_caches(0)


def test_what_a_run_found_out_stays_in_its_config(made, demos, tmp_path):
    flags = [*TINY, "--demo_paths", str(demos), "--algorithm=td3bc", "--save_dir", str(tmp_path)]
    run = train_offline.Run(parse(TrainOfflineConfig, flags, description=""))
    run.write_config()  # as after a step that did not compile
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["discount"], config["cta_ratio"], config["data"]["episodes"]) == (0.99, 2, 3)


def test_a_schedule_that_has_ended_starts_anew(made, tmp_path, capsys):
    run = made("iql", "--algorithm_options", SMALL, "actor_cosine_decay_steps=6")
    build("--init", str(run / "checkpoint_6.pth"), "--discount=0.99", "--save_dir", str(tmp_path))
    assert "Adam starts afresh, for its learning rate falls with its steps" in capsys.readouterr().out


def test_the_encoder_has_one_origin(capsys):
    flags = ["--init", "x.pth", "--pretrained_encoder", "y.pkl"]
    assert "leave one out" in mistake(train_hybrid.run, [*HYBRID, *flags], capsys)


@pytest.mark.parametrize(
    ("algorithm", "flags", "message"),
    [
        (("bc",), ["--discount=0.99"], "is of algorithm bc, which has no critic"),
        (("iql",), [], "--discount is 0.95; the values of .* have 0.99: give --discount 0.99"),
        (
            ("iql",),
            ["--discount=0.99", "--algorithm=own:agent"],
            "--algorithm is own:agent; the run goes on with",
        ),
        (("iql",), ["--discount=0.99", "--setup_mode=single-arm-fixed-gripper"], "has action_dim 7; this run has 6"),
        (("sac", *MODE), ["--activation=relu"], "has activation tanh; this run has relu"),
        (("sac", *MODE), ["--hidden_widths", "16"], r"has hidden_widths \[8\]; this run has \[16\]"),
        (("sac", *MODE), ["--reward_bias=-1"], "has reward_bias 0.0; this run has -1.0"),
        (("sac", *MODE), ["--critic_ensemble_size=3"], r"weight 'critic\.\S+' of .* has shape \(2, .* is \(3, "),
        (("sac",), [], r"weight 'actor.mean.weight' of .*checkpoint_6.pth has shape \(7, 8\); this run's is \(6, 8\)"),
    ],
)
def test_what_can_not_go_on_is_refused(algorithm, flags, message, made, tmp_path):
    start = made(*algorithm) / "checkpoint_6.pth"
    with pytest.raises(ValueError, match=message):
        build("--init", str(start), "--save_dir", str(tmp_path), *flags)


def test_the_commands_of_the_guide_parse():
    guide = Path(__file__).parents[2] / "docs" / "guides" / "offline.md"
    configs = {
        "train_offline": TrainOfflineConfig,
        "train_hybrid": train_hybrid.TrainHybridConfig,
        "evaluate": evaluate.EvaluateConfig,
    }
    text = guide.read_text().replace("\\\n", " ")
    lines = [
        line for line in re.findall(r"^python -m serl_fast\.(\w+) (.*)$", text, re.MULTILINE) if line[0] in configs
    ]
    assert len(lines) == 4
    for command, flags in lines:
        parse(configs[command], flags.split(), description="")
