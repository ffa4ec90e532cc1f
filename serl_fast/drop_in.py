"""Objects for people who drive training themselves: an agent and its engine behind three methods.

from serl_fast.agents.sac import SACHybridAgent

agent = SACHybridAgent(image_keys=["image"], continuous_action_dim=6, grasp_action_dim=3, device="cuda")
agent.load(torch.load("final_model.pth"))
action = agent.sample_actions(observation)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from serl_fast.agents.build import from_settings
from serl_fast.agents.hybrid_sac import ARM_DIM, CHOICES, hybrid_sac
from serl_fast.agents.sac import SACConfig, sac
from serl_fast.core import Agent, Batch
from serl_fast.data.batches import to_tensors
from serl_fast.engine import Engine, EngineConfig
from serl_fast.logging import metric_aliases


class _DropIn:
    """What the two constructors share."""

    def __init__(self, agent: Agent, device: str | torch.device | None, discount: float, execution: str) -> None:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.discount = discount
        self._config = EngineConfig(execution)  # type: ignore[arg-type]
        self.engine = Engine(agent, self._config, device=device)

    @property
    def agent(self) -> Agent:
        """The agent as a value: its networks and losses."""
        return self.engine.agent

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the weights of a checkpoint of ``train_hybrid``, as ``torch.load`` returns it.

        Raises:
            ValueError: the checkpoint is of another agent: other cameras or another action.
        """
        if "agent" not in checkpoint or "networks" not in checkpoint:
            raise ValueError(f"not a checkpoint of train_hybrid: it holds {sorted(checkpoint)}")
        saved, mine = checkpoint["agent"], self.agent.settings
        for key in ("algorithm", "image_keys", "action_dim", "grippers"):
            if saved.get(key) != mine.get(key):
                raise ValueError(f"the checkpoint's {key} is {saved.get(key)}; this agent's is {mine.get(key)}")
        agent = self.agent if saved == mine else from_settings(saved)
        agent.networks.load_state_dict(checkpoint["networks"])
        if agent is not self.agent:  # sizes that the constructor does not ask for, such as the state's
            self.engine = Engine(agent, self._config, device=self.engine.device)
        if "engine" in checkpoint:
            self.engine.load_state_dict(checkpoint["engine"])

    def sample_actions(self, observations: Mapping[str, Any], argmax: bool = False) -> np.ndarray:
        """Actions for one observation (no batch axis) or a batch of them.

        Args:
            observations: ``state`` float and cameras uint8 [H, W, C], each perhaps with a leading batch axis.
            argmax: the mode instead of a sample.

        Returns:
            float32 [A], or [B, A] for a batch.
        """
        arrays = {key: np.asarray(value) for key, value in observations.items() if key in self._observation_keys()}
        single = all(
            array.ndim == (3 if key in self.agent.settings["image_keys"] else 1) for key, array in arrays.items()
        )
        if single:
            arrays = {key: array[None] for key, array in arrays.items()}
        tensors = to_tensors(
            {k: a if a.dtype == np.uint8 else a.astype(np.float32) for k, a in arrays.items()},
            self.engine.device,
        )
        actions: np.ndarray = self.engine.act(tensors, deterministic=argmax).cpu().numpy()
        return actions[0] if single else actions

    def update(self, batch: Mapping[str, Any]) -> tuple[Any, dict[str, float]]:
        """One gradient step of every network on a batch of arrays or tensors.

        Args:
            batch: ``observations``, ``actions``, ``next_observations``, ``rewards``, ``masks`` (1 - terminated), and
                optionally ``grasp_penalty``.

        Returns:
            The agent itself and its metrics (``critic_loss``, ``actor_loss``, ``alpha`` and the rest).
        """
        metrics = self.engine.update(self._tensors(batch))
        return self, metric_aliases({name: float(value) for name, value in metrics.items()})

    def _observation_keys(self) -> list[str]:
        state = ["state"] if self.agent.settings["state_dim"] else []
        return [*state, *self.agent.settings["image_keys"]]

    def _tensors(self, batch: Mapping[str, Any]) -> Batch:
        def floats(value: Any) -> torch.Tensor:
            return torch.as_tensor(value, device=self.engine.device).float()

        tensors: Batch = {
            key: {
                name: torch.as_tensor(batch[key][name], device=self.engine.device)
                if name in self.agent.settings["image_keys"]
                else floats(batch[key][name])
                for name in self._observation_keys()
            }
            for key in ("observations", "next_observations")
        }
        tensors["actions"], tensors["rewards"] = floats(batch["actions"]), floats(batch["rewards"])
        tensors["discounts"] = self.discount * floats(batch["masks"])
        tensors["grasp_penalty"] = floats(batch.get("grasp_penalty", np.zeros(len(tensors["rewards"]))))
        return tensors


class SACAgent(_DropIn):
    """SAC for arms whose grippers are fixed.

    Args:
        image_keys: cameras.
        action_dim: action dimensions; ``continuous_action_dim`` is the same.
        continuous_action_dim: see ``action_dim``.
        state_dim: width of ``observations["state"]``; 0 for none.
        device: by default CUDA where there is one.
        lr: Adam's learning rate.
        discount: gamma.
        execution: "eager" or "compiled".
    """

    def __init__(
        self,
        image_keys: Sequence[str] = (),
        action_dim: int | None = None,
        *,
        continuous_action_dim: int | None = None,
        state_dim: int = 0,
        device: str | torch.device | None = None,
        lr: float = 3e-4,
        discount: float = 0.95,
        execution: str = "eager",
    ) -> None:
        width = action_dim if action_dim is not None else continuous_action_dim
        agent = sac(state_dim, 6 if width is None else width, image_keys, SACConfig(learning_rate=lr))
        super().__init__(agent, device, discount, execution)


class SACHybridAgent(_DropIn):
    """SAC for the arms, double DQN for their learned grippers.

    Args:
        image_keys: cameras.
        continuous_action_dim: 6 for one arm, 12 for two.
        grasp_action_dim: 3 choices for one gripper, 9 for two.
        state_dim: width of ``observations["state"]``; 0 for none.
        device: by default CUDA where there is one.
        lr: Adam's learning rate.
        discount: gamma.
        execution: "eager" or "compiled".

    Raises:
        ValueError: the two dimensions belong to different numbers of arms.
    """

    def __init__(
        self,
        image_keys: Sequence[str] = (),
        continuous_action_dim: int = 6,
        grasp_action_dim: int = 3,
        *,
        state_dim: int = 0,
        device: str | torch.device | None = None,
        lr: float = 3e-4,
        discount: float = 0.95,
        execution: str = "eager",
    ) -> None:
        grippers = continuous_action_dim // ARM_DIM
        if continuous_action_dim != ARM_DIM * grippers or grasp_action_dim != CHOICES**grippers or not grippers:
            raise ValueError(
                f"continuous_action_dim {continuous_action_dim} with grasp_action_dim {grasp_action_dim}; "
                "accepted: 6 with 3 (one arm), 12 with 9 (two arms)"
            )
        agent = hybrid_sac(state_dim, grippers, image_keys, SACConfig(learning_rate=lr))
        super().__init__(agent, device, discount, execution)
