"""Spellings that the manuals use."""

import dataclasses
import errno
import subprocess
import sys

import pytest

from serl_fast import cli
from serl_fast.cli import main, parse, plain_booleans
from serl_fast.train_hybrid_config import PRESETS, TrainHybridConfig


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags.

    Attributes:
        action_chunking: a boolean.
        keep: a boolean that is on.
        max_steps: a number.
    """

    action_chunking: bool = False
    keep: bool = True
    max_steps: int = 3


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Flags()),
        (["--action_chunking"], Flags(action_chunking=True)),
        (["--action_chunking=True"], Flags(action_chunking=True)),
        (["--action-chunking", "true"], Flags(action_chunking=True)),
        (["--keep=False", "--max-steps", "4"], Flags(keep=False, max_steps=4)),
        (["--keep", "False"], Flags(keep=False)),
        (["--no_keep", "--max_steps=5"], Flags(keep=False, max_steps=5)),
    ],
)
def test_booleans_and_underscores(argv, expected):
    assert parse(Flags, argv, description="") == expected


def test_a_boolean_that_is_neither_is_named():
    assert plain_booleans(Flags, ["--keep=0", "--action_chunking=yes"]) == ["--no_keep", "--action_chunking"]
    with pytest.raises(ValueError, match="--keep is 'maybe'; accepted: true, false"):
        plain_booleans(Flags, ["--keep=maybe"])


def test_a_boolean_flag_does_not_swallow_the_next_flag():
    assert plain_booleans(Flags, ["--keep", "--max_steps", "4"]) == ["--keep", "--max_steps", "4"]


@pytest.mark.parametrize(
    ("preset", "steps", "batch", "starts"),
    [("quick", 1000, 32, 100), ("medium", 50_000, 128, 1000), ("full", 500_000, 256, 5000)],
)
def test_presets_give_defaults_that_flags_override(preset, steps, batch, starts):
    config = parse(TrainHybridConfig, ["--preset", preset], description="", presets=PRESETS)
    assert (config.max_steps, config.batch_size, config.training_starts) == (steps, batch, starts)
    config = parse(TrainHybridConfig, [f"--preset={preset}", "--max_steps=7"], description="", presets=PRESETS)
    assert (config.max_steps, config.batch_size) == (7, batch)


def test_defaults_are_the_manuals():
    config = parse(TrainHybridConfig, [], description="", presets=PRESETS)
    assert config.batch_size == 256
    assert config.lr == 3e-4
    assert config.discount == 0.95
    assert config.training_starts == 1000
    assert config.loop().random_steps == 1000
    assert config.cta_ratio == 2
    assert config.replay_buffer_capacity == 200_000
    assert config.critic_ensemble_size == 2
    assert config.target_update_rate == 0.005
    assert config.max_steps == 100_000
    assert config.steps_per_update == 50
    assert config.save_interval == 10_000


def test_an_unexpected_error_keeps_its_traceback():
    def fail() -> int:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        main(fail)


def test_a_reader_that_goes_away_ends_the_command_quietly():
    program = "from serl_fast.cli import main; main(lambda: print('a line\\n' * 100_000) or 0)"
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout.readline() == b"a line\n"
    writer.stdout.close()
    assert writer.stderr.read() == b""
    assert writer.wait(60) == 1


def test_a_full_disk_is_one_line(capsys):
    def fail() -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "demos.pkl")

    with pytest.raises(SystemExit) as caught:
        main(fail)
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"error: [Errno {errno.ENOSPC}] No space left on device: 'demos.pkl'\n"


def test_other_errors_of_the_system_keep_their_traceback():
    def fail() -> int:
        raise OSError(errno.EIO, "a robot's")

    with pytest.raises(OSError, match="a robot's"):
        main(fail)


def test_another_broken_pipe_keeps_its_traceback():
    def fail() -> int:
        raise BrokenPipeError("a robot's")

    with pytest.raises(BrokenPipeError):
        main(fail)


@pytest.mark.parametrize("flags", [["--nonsense", "3"], ["--batch_size=0"], ["--synchronous=perhaps"], ["--help"]])
def test_of_several_processes_one_says_what_is_wrong_with_the_flags(flags, monkeypatch, capsys):
    monkeypatch.setattr(cli, "HEAD_START", 0.0)

    def ended(rank: int) -> tuple[object, str]:
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(SystemExit) as caught:
            main(lambda: parse(TrainHybridConfig, flags, description="", presets=PRESETS) and 0)
        printed = capsys.readouterr()
        return caught.value.code, printed.out + printed.err

    first, other = ended(0), ended(1)
    assert first[0] == other[0] == (0 if flags == ["--help"] else 2)
    assert first[1]
    assert not other[1]
    assert parse(Flags, ["--keep"], description="") == Flags()
