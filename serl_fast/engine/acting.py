"""A policy for the actor's thread: its own copy of the networks, refreshed from numbered snapshots."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from serl_fast.core import Agent, require_policy
from serl_fast.engine.snapshot import PolicyPublisher, PolicySnapshot


class PolicyRunner:
    """Acts from NumPy observations with parameters that only change in :meth:`refresh`.

    Args:
        agent: whose policy to run; its policy networks are copied.
        seed: of the exploration noise.
        device: where acting happens.
    """

    def __init__(self, agent: Agent, *, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.device = torch.empty(0, device=device).device
        networks = nn.ModuleDict({name: agent.networks[name] for name in agent.policy_networks})
        self._networks = copy.deepcopy(networks).to(self.device)
        self._policy = require_policy(agent)
        self._noise_dim = agent.policy_noise_dim
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.version = 0
        self.updates = 0

    def refresh(self, publisher: PolicyPublisher) -> bool:
        """Take the newest snapshot, if there is a newer one; says whether there was."""
        snapshot = publisher.newest(after=self.version)
        if snapshot is None:
            return False
        self.load(snapshot)
        return True

    def load(self, snapshot: PolicySnapshot) -> None:
        """Use the parameters of ``snapshot``."""
        snapshot.load_into(self._networks)
        self.version, self.updates = snapshot.version, snapshot.updates

    def act(self, observation: dict[str, np.ndarray], deterministic: bool = False) -> np.ndarray:
        """The action float32 [A] for one observation without batch axis: a sample, or the mode."""
        with torch.inference_mode():
            batch = {key: torch.from_numpy(value).unsqueeze(0).to(self.device) for key, value in observation.items()}
            noise = None
            if not deterministic:
                noise = torch.randn(1, self._noise_dim, generator=self.generator, device=self.device)
            action: np.ndarray = self._policy(self._networks, batch, noise)[0].cpu().numpy()
            return action
