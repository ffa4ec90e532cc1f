"""Convert weights between HIL-SERL's files (flax) and ours: agents, policies, reward classifiers.

python -m serl_fast.convert --input checkpoint_20000.msgpack --output policy.safetensors --image_keys side wrist_1
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from serl_fast.checkpoint import save_checkpoint
from serl_fast.cli import main, parse
from serl_fast.core import Agent
from serl_fast.envs.setup_modes import SETUP_MODES, SetupModeName
from serl_fast.interop.flax_agents import export_params, has_trunk, load_params, with_trunk
from serl_fast.interop.flax_settings import CONFIGS, infer_settings
from serl_fast.interop.flax_trees import ParameterTrees, read_trees, write_trees
from serl_fast.interop.policies import acting_networks, build, load_weights, read_policy, save_policy
from serl_fast.interop.pretrained import find_pretrained, where_to_get_it

OURS = (".pth", ".pt", ".safetensors")
FLAX = (".msgpack", ".npz")
_OVERRIDES = (
    "activation",
    "std_parameterization",
    "std_min",
    "std_max",
    "fixed_std",
    "pooling",
    "frames",
    "image_size",
)


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Flags of ``convert``. What the shapes in a flax file do not tell has HIL-SERL's values.

    Attributes:
        input: a .pth checkpoint or .safetensors policy of ours; anything else is a flax file: msgpack, '/'-joined npz,
            or a pickle of arrays.
        output: .pth, .safetensors (the networks that act, alone), .msgpack or .npz.
        image_keys: the cameras in the order of the original's configuration; needed for two and more.
        compat: how what comes from flax goes on training: hil_serl like the original, none as ours by default: SAC with
            separate critics, BC with camera heads that learn, VICE with all cameras mixed alike. A reward classifier
            trains the same either way, and SERL's SAC from states has separate critics anyway.
        activation: of an agent's hidden layers; by default tanh. (Classifiers and VICE have their own.)
        std_parameterization: exp or softplus, where the policy has a layer for it.
        std_min: smallest standard deviation of the policy.
        std_max: largest standard deviation of the policy.
        fixed_std: the standard deviations of a policy that has neither a layer nor parameters for them.
        pooling: of the cameras' feature maps, where the shapes do not tell: average or max.
        frames: stacked frames, where the shapes do not tell: beside a state that has no layer of its own and is as wide
            as the features of a frame.
        image_size: height and width of the images, px; by default 128 128, or what a ResNet's spatial embeddings say,
            which is a multiple of 32.
        squash: whether a BC policy's actions pass through tanh.
        pretrained_encoder: the frozen trunk, where the flax file has none; by default ~/.serl/resnet10_params.pkl.
        env: environment to note in the output, for evaluate.
        setup_mode: arms and grippers to note; by default what the width of the action says.
        policy_only: write the networks that act alone, whatever the output.
        separate_heads: write SERL's layout of SAC from states, where every critic has its own last layer.
        strict: fail when a tensor has no place or is missing; otherwise take what fits.
    """

    input: Path
    output: Path
    image_keys: tuple[str, ...] = ()
    compat: Literal["hil_serl", "none"] = "hil_serl"
    activation: str | None = None
    std_parameterization: str | None = None
    std_min: float | None = None
    std_max: float | None = None
    fixed_std: tuple[float, ...] | None = None
    pooling: str | None = None
    frames: int | None = None
    image_size: tuple[int, int] | None = None
    squash: bool = False
    pretrained_encoder: Path | None = None
    env: str | None = None
    setup_mode: SetupModeName | None = None
    policy_only: bool = False
    separate_heads: bool = False
    strict: bool = True

    def __post_init__(self) -> None:
        if self.output.suffix not in OURS + FLAX:
            raise ValueError(f"output is {self.output}; its ending must be one of {', '.join(OURS + FLAX)}")
        if self.input.resolve() == self.output.resolve():
            raise ValueError(f"input and output are the same file, {self.input}")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames is {self.frames}; it must be at least 1")


class Weights(NamedTuple):
    """What was read: an agent, which of its networks are filled, and what is known of its training."""

    agent: Agent
    filled: tuple[str, ...]
    facts: dict[str, Any]


def convert(config: ConvertConfig) -> Weights:
    """Read, write, and return what was written.

    Raises:
        ValueError: a file is not readable, or a tensor has no place or is missing; nothing is written then.
        FileNotFoundError: there is no such input.
    """
    read = _read_ours(config) if config.input.suffix in OURS else _read_flax(config)
    facts = read.facts | {"setup_mode": config.setup_mode or read.facts.get("setup_mode") or _mode_of(read.agent)}
    if config.env is not None:
        facts["env"] = config.env
    names = read.filled
    if config.policy_only or config.output.suffix == ".safetensors":
        names = acting_networks(read.agent)
        if set(names) - set(read.filled):
            raise ValueError(f"{config.input} has no weights of {', '.join(sorted(set(names) - set(read.filled)))}")
    weights = Weights(read.agent, names, facts)
    _write(config, weights)
    return weights


def _read_ours(config: ConvertConfig) -> Weights:
    content = read_policy(config.input)
    _check_buildable(content["agent"], config.input)
    agent = build(content["agent"])
    facts = {key: content.get(key) for key in ("env", "setup_mode", "image_size")}
    return Weights(agent, load_weights(agent.networks, content["networks"]), facts)


def _check_buildable(settings: dict[str, Any], path: Path) -> None:
    """An agent of one's own can be built by its own code alone, which is not known here."""
    algorithm = settings.get("algorithm")
    own = None
    if algorithm not in CONFIGS:
        own = f"its algorithm is {algorithm!r}; convert knows {', '.join(CONFIGS)}"
    elif isinstance(settings.get("config"), dict) and settings["config"].get("encoder") == "custom":
        own = "its image trunk is a module of your own, which convert can not build"
    if own is not None:
        raise ValueError(
            f"{path}: {own}. In Python, with a function that builds your agent from its settings: agent, facts = "
            "serl_fast.interop.policies.load_policy(path, builder), then save_policy(output, agent, facts)"
        )


def _read_flax(config: ConvertConfig) -> Weights:
    trees = read_trees(config.input)
    given = {name: getattr(config, name) for name in _OVERRIDES if getattr(config, name) is not None}
    given |= {"squash": True} if config.squash else {}
    given |= {"compat": None} if config.compat == "none" else {}
    settings = infer_settings(trees, config.image_keys or None, **given)
    trees = _complete(config, settings, trees)
    agent = build(settings)
    report = load_params(agent.networks, trees, strict=config.strict)
    print(f"{len(report.placed)} tensors read from {config.input}")
    if trees.left:
        print(f"not read, because no weights: {', '.join(trees.left)}")
    if report.problems():
        print(f"left as they were, {len(report.missing)} missing and {len(report.unplaced)} without a place:")
        print(report.problems())
    return Weights(agent, tuple(agent.networks), {})


def _complete(config: ConvertConfig, settings: dict[str, Any], trees: ParameterTrees) -> ParameterTrees:
    """The trees with the pre-trained trunk, which some files leave out."""
    needed = bool(settings["image_keys"]) and settings["config"]["encoder"] == "resnet-pretrained"
    if not needed or has_trunk(trees):
        return trees
    path = find_pretrained(config.pretrained_encoder)
    if path is None:
        raise ValueError(f"{config.input} does not hold the pre-trained ResNet-10; {where_to_get_it()}")
    print(f"pre-trained ResNet-10 from {path}")
    return with_trunk(trees, read_trees(path).params, settings["image_keys"])


def _mode_of(agent: Agent) -> str | None:
    """The setup mode whose actions are as wide as the agent's."""
    return next((name for name, mode in SETUP_MODES.items() if mode.action_dim == agent.action_dim), None)


def _write(config: ConvertConfig, weights: Weights) -> None:
    agent = weights.agent
    chosen = nn.ModuleDict({name: agent.networks[name] for name in weights.filled})
    if config.output.suffix == ".safetensors":
        save_policy(config.output, agent, weights.facts)
    elif config.output.suffix in OURS:
        content = {"agent": agent.settings, "networks": chosen.state_dict(), **weights.facts}
        save_checkpoint(config.output, content)
    else:
        trees = export_params(chosen, separate_heads=config.separate_heads)
        write_trees(config.output, trees, [f"encoder_{key}" for key in agent.settings["image_keys"]])


def summary(weights: Weights) -> str:
    """A line about the agent and one for each network."""
    settings = weights.agent.settings
    config = settings["config"]
    parts = [f"cameras {' '.join(settings['image_keys']) or 'none'}"]
    parts += [f"state {settings['state_dim']}"] if "state_dim" in settings else []
    parts += [f"actions {weights.agent.action_dim}"] if weights.agent.action_dim else []
    parts += [f"layers {' '.join(map(str, config['hidden_widths']))}"] if "hidden_widths" in config else []
    parts += [f"compat {config['compat']}"] if "compat" in config else []
    lines = [f"{settings['algorithm']}: {', '.join(parts)}"]
    for name in weights.filled:
        parameters = list(weights.agent.networks[name].parameters())
        lines.append(f"  {name:20} {len(parameters):4} tensors {sum(p.numel() for p in parameters):12,} numbers")
    return "\n".join(lines)


def run(argv: list[str] | None = None) -> int:
    """Parse, convert, print; the exit status."""
    config = parse(ConvertConfig, argv, description=__doc__ or "")
    with torch.random.fork_rng(devices=()):
        weights = convert(config)
    print(summary(weights))
    print(config.output)
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
