"""Going on from another run's checkpoint: with which agent, its weights and, where the agent is the same, its Adam."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from serl_fast.agents.build import ALGORITHMS, from_settings
from serl_fast.agents.sac_config import SACConfig
from serl_fast.checkpoint import load_checkpoint
from serl_fast.core import Agent
from serl_fast.engine import Engine

SACS = ("sac", "hybrid_sac")
NEEDED = ("encoder", "actor", "critic")
FREE = (
    "critic_ensemble_size", "critic_subsample_size", "initial_temperature", "target_entropy", "backup_entropy",
    "target_update_rate", "learning_rate", "warmup_steps", "cosine_decay_steps", "weight_decay", "clip_gradient_norm",
    "encoder_dropout", "crop_padding", "bc_weight",
)  # fmt: skip
"""Settings of SAC that may change from one run to the next: they say how to learn, not what the networks compute."""


@dataclasses.dataclass(frozen=True)
class Initial:
    """A checkpoint to go on from.

    Attributes:
        path: of the file.
        content: of the file.
    """

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path, discount: float) -> Initial:
        """Read the file, and see whether an actor can go on with what is in it.

        Args:
            path: a checkpoint_<step>.pth or final_model.pth of any training command.
            discount: of the run that goes on.

        Raises:
            CheckpointError: no such file, or damaged.
            ValueError: the agent can not learn from its own steps, or its values have another discount.
        """
        content = load_checkpoint(path)
        if not all(isinstance(content.get(key), dict) for key in ("agent", "networks")):
            raise ValueError(f"--init: {path} holds no agent, but {', '.join(sorted(content))}")
        algorithm = content["agent"].get("algorithm")
        if not any(key.startswith("critic.") for key in content["networks"]):
            raise ValueError(
                f"--init: {path} is of algorithm {algorithm}, which has no critic and learns nothing from its own "
                "steps; train_offline with iql, td3bc, calql or sac gives one that does"
            )
        trained = content.get("offline", {}).get("discount", discount)
        if trained != discount:
            raise ValueError(
                f"--discount is {discount:g}; the values of {path} have {trained:g}: give --discount {trained:g}"
            )
        return cls(path, content)

    @property
    def algorithm(self) -> str | None:
        """The name in the checkpoint."""
        name: str | None = self.content["agent"].get("algorithm")
        return name

    @property
    def keeps_its_agent(self) -> bool:
        """Whether the run goes on with the checkpoint's agent and settings: any of this package's but SAC."""
        return self.algorithm in ALGORITHMS and self.algorithm not in SACS

    def agent(self, state_dim: int, action_dim: int, image_keys: tuple[str, ...]) -> Agent:
        """The checkpoint's own agent, with fresh weights.

        Raises:
            ValueError: it observes or does something else than is asked for.
        """
        settings = self.content["agent"]
        asked = {"state_dim": state_dim, "action_dim": action_dim, "image_keys": list(image_keys)}
        for name, value in asked.items():
            if settings.get(name) != value:
                raise ValueError(f"--init: {self.path} has {name} {settings.get(name)}; this run has {value}")
        return from_settings(settings)

    def load_into(self, agent: Agent) -> None:
        """Fill the agent's networks; says which have no weights there and start afresh.

        Raises:
            ValueError: names the first setting or weight that does not fit.
        """
        saved = self.content["networks"]
        self._check_settings(agent)
        fresh = [name for name in agent.networks if not any(key.startswith(f"{name}.") for key in saved)]
        fresh = [name for name in fresh if any(True for _ in agent.networks[name].state_dict())]
        for name, network in agent.networks.items():
            if name in fresh:
                if name in NEEDED:
                    raise ValueError(f"--init: {self.path} has no network {name!r}")
                continue
            self._load(name, network)
        left = sorted({key.partition(".")[0] for key in saved} - set(agent.networks))
        said = f"; {', '.join(fresh)} start afresh" if fresh else ""
        print(f"weights of {self.path} ({self.algorithm})" + said + (f"; unused: {', '.join(left)}" if left else ""))

    def load_adam(self, engine: Engine) -> None:
        """Continue with the checkpoint's Adam where its agent is the same and it is there; says so."""
        adam = self.content.get("engine", {}).get("adam")
        if self.content["agent"] != engine.agent.settings or adam is None or set(adam) != set(engine.adam):
            print("Adam starts afresh" + ("" if adam else f": {self.path.name} has none"))
            return
        if any(state.config.cosine_decay_steps is not None for state in engine.adam.values()):
            print("Adam starts afresh, for its learning rate falls with its steps")
            return
        for name, state in engine.adam.items():
            for mine, saved in zip(state.tensors(), adam[name], strict=True):
                mine.copy_(saved)

    def _load(self, name: str, network: nn.Module) -> None:
        saved = {
            key.partition(".")[2]: value
            for key, value in self.content["networks"].items()
            if key.partition(".")[0] == name
        }
        mine = network.state_dict()
        for key in {**mine, **saved}:
            here, there = (tuple(part[key].shape) if key in part else "missing" for part in (mine, saved))
            if here != there:
                raise ValueError(
                    f"--init: weight '{name}.{key}' of {self.path} has shape {there}; this run's is {here}"
                )
        network.load_state_dict({key: value.to(torch.get_default_device()) for key, value in saved.items()})

    def _check_settings(self, agent: Agent) -> None:
        """Between SACs, what networks compute must be the same: shapes alone do not say."""
        if self.algorithm not in SACS or agent.settings.get("algorithm") not in SACS:
            return
        saved, mine = self.content["agent"], agent.settings
        if saved["algorithm"] == "hybrid_sac" and mine["algorithm"] == "sac":
            raise ValueError(
                f"--init: {self.path} is a hybrid agent; this run learns no gripper: give another --setup_mode"
            )
        pairs = {name: (saved[name], mine[name]) for name in ("state_dim", "image_keys")}
        for field in dataclasses.fields(SACConfig):
            if field.name not in FREE:
                value = saved["config"].get(field.name, field.default)
                pairs[field.name] = (_plain(value), _plain(mine["config"][field.name]))
        for name, (there, here) in pairs.items():
            if there != here:
                raise ValueError(f"--init: {self.path} has {name} {there}; this run has {here}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
