"""The programs in the guides run, and print what the guides say they print."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from pathlib import Path

import pytest

GUIDES = Path(__file__).parents[1] / "docs" / "guides"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(guide):
    """Code and expected output (None: not stated) of every Python block; an output block follows its code."""
    text = (GUIDES / guide).read_text()
    found = []
    for match in BLOCK.finditer(text):
        language, body = match.groups()
        if language == "python":
            found.append([body, None])
        elif not language and found and text[: match.start()].rstrip().endswith(found[-1][0].rstrip() + "\n```"):
            found[-1][1] = body
    return found


def check(code, expected, names):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "guide", "exec"), names)
    if expected is not None:
        assert output.getvalue() == expected


def test_the_replay_guide_is_one_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "guide"}
    found = blocks("replay.md")
    assert sum(expected is not None for _, expected in found) >= 10
    for code, expected in found:
        check(code, expected, names)


@pytest.mark.parametrize(("code", "expected"), blocks("embed.md"), ids=["loop", "stable_baselines3", "lerobot"])
def test_each_block_of_the_embedding_guide_stands_alone(code, expected, tmp_path, monkeypatch):
    (package,) = re.findall(r"^# needs: (\S+)$", code, re.MULTILINE)
    pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    check(code, expected, {"__name__": "guide"})


def test_the_training_loop_has_forty_lines_at_most():
    assert len([line for line in blocks("embed.md")[0][0].splitlines() if line.strip()]) <= 40


@pytest.mark.parametrize("guide", ["algorithms.md", "augmentation.md", "classifier_reward.md"])
def test_each_block_of_a_guide_stands_alone(guide):
    for code, expected in blocks(guide):
        check(code, expected, {"__name__": "guide"})


def test_an_algorithm_of_ones_own_trains_by_the_command(tmp_path, monkeypatch, capsys):
    from serl_fast import evaluate, train_hybrid

    source = GUIDES.parent / "examples" / "td3.py"
    assert len(source.read_text().splitlines()) < 80
    monkeypatch.syspath_prepend(source.parent)
    flags = "--env toy/Arm-v0 --algorithm td3:td3 --max_steps=4 --batch_size=4 --training_starts=4 --random_steps=4"
    quiet = "--execution=eager --eval_interval=0 --final_eval_episodes=0"
    train_hybrid.run([*flags.split(), *quiet.split(), "--save_dir", str(tmp_path / "run")])
    (tmp_path / "run" / "final_model.pth").stat()
    resumed = [*flags.replace("max_steps=4", "max_steps=6").split(), *quiet.split(), "--resume"]
    train_hybrid.run([*resumed, "--save_dir", str(tmp_path / "run")])
    checkpoint = ["--checkpoint", str(tmp_path / "run" / "final_model.pth"), "--episodes", "1"]
    evaluate.run([*checkpoint, "--algorithm", "td3:td3"])
    assert "success rate" in capsys.readouterr().out
    cameras = ["--image_keys", "front", "--save_dir", str(tmp_path / "cameras")]
    train_hybrid.run([*flags.split(), *quiet.split(), *cameras])
    with pytest.raises(ValueError, match="algorithm 'td3' is not known"):
        evaluate.run(checkpoint)
    with pytest.raises(ValueError, match=r"algorithm 'td4:td4' can not be loaded.*give module:callable"):
        train_hybrid.run([*flags.replace("td3:td3", "td4:td4").split(), *quiet.split(), "--save_dir", str(tmp_path)])


def test_the_conversion_guide_runs_and_its_commands_parse(tmp_path, monkeypatch):
    pytest.importorskip("msgpack", reason="msgpack is not installed")
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    from serl_fast import convert, evaluate
    from serl_fast.cli import parse

    monkeypatch.chdir(tmp_path)
    ((code, expected),) = blocks("convert.md")
    check(code, expected, {"__name__": "guide"})
    configs = {"convert": convert.ConvertConfig, "evaluate": evaluate.EvaluateConfig}
    lines = re.findall(r"^python -m serl_fast\.(\w+) (.*)$", (GUIDES / "convert.md").read_text(), re.MULTILINE)
    assert len(lines) == 3
    for command, flags in lines:
        parse(configs[command], flags.split(), description="")


def test_the_data_guide_is_one_program_of_python_and_commands(tmp_path, monkeypatch):
    for package in ("matplotlib", "PIL"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    from serl_fast.data.commands import run

    monkeypatch.chdir(tmp_path)
    names = {"__name__": "guide"}
    text = (GUIDES / "data.md").read_text()
    found = list(BLOCK.finditer(text))
    stated = 0
    for block, following in itertools.zip_longest(found, found[1:]):
        language, body = block.groups()
        if not language:
            continue
        expected = None
        if following and not following[1] and not text[block.end() : following.start()].strip():
            expected, stated = following[2], stated + 1
        if language == "bash":
            commands = re.findall(r"^python -m serl_fast\.data (.*)$", body, re.MULTILINE)
            assert len(commands) == len(body.splitlines())
            body = "\n".join(f"assert run({command.split()!r}) == 0" for command in commands)
        check(body, expected, names | {"run": run} if language == "bash" else names)
    assert stated == 5
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
