"""Critics: an ensemble of Q(s, a) with stacked parameters, and the gripper's Q over its few choices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from serl_fast.networks.mlp import (
    MLP,
    StackedLayerNorm,
    StackedLinear,
    activation,
    at_least_float32,
    known_activation,
    linear,
)


class CriticEnsemble(nn.Module):
    """E action-value functions of a feature vector and an action.

    Each member is (Dense -> LayerNorm -> activation) per width, then a Dense(1) head. HIL-SERL shares one head between
    all members, which its users report to be worse (rail-berkeley/hil-serl issue 33); here each has its own unless
    ``shared_head`` asks for the original's.

    Args:
        features: width D of the encoded observation.
        action_dim: width A of the (continuous) action.
        widths: hidden widths.
        members: ensemble size E.
        layer_norm: LayerNorm before each activation.
        activation: a name of :func:`serl_fast.networks.mlp.activation`.
        shared_head: one last layer for all members, parameters [1, D, 1] and [1, 1, 1].

    Source: ``serl_launcher/networks/actor_critic_nets.py``; REDQ (Chen et al. 2021) for the ensemble.
    """

    def __init__(
        self,
        features: int,
        action_dim: int,
        widths: Sequence[int] = (256, 256),
        *,
        members: int = 2,
        layer_norm: bool = True,
        activation: str = "tanh",
        shared_head: bool = False,
    ) -> None:
        super().__init__()
        sizes = [features + action_dim, *widths]
        self.members = members
        self.activation = known_activation(activation)
        self.shared_head = shared_head
        self.layers = nn.ModuleList(StackedLinear(members, a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(StackedLayerNorm(members, width) for width in widths if layer_norm)
        self.head = StackedLinear(1 if shared_head else members, sizes[-1], 1)

    def forward(self, features: Tensor, actions: Tensor, members: Tensor | None = None) -> Tensor:
        """Q values.

        Args:
            features: float [B, D].
            actions: float [B, A], or [B, N, A] for N actions in each state.
            members: int64 [M], the members to evaluate; all E when absent.

        Returns:
            float [E, B], or [E, B, N]; M in place of E where members are given.
        """
        if actions.dim() == 3:
            repeated = features.repeat_interleave(actions.shape[1], dim=0)  # [B * N, D]
            return self(repeated, actions.flatten(0, 1), members).unflatten(1, actions.shape[:2])
        count = self.members if members is None else members.shape[0]
        x = torch.cat([features, actions], dim=-1).expand(count, -1, -1)  # [E, B, D + A]
        for index, layer in enumerate(self.layers):
            x = layer(x, members)
            if len(self.norms):
                x = self.norms[index](x, members)
            x = activation(self.activation, x)
        q = x @ self.head.weight + self.head.bias if self.shared_head else self.head(x, members)
        return at_least_float32(q).squeeze(-1)  # [E, B]


class GraspCritic(nn.Module):
    """Q over the gripper's choices (close, stay, open): 3 for one gripper, 9 = 3 * 3 for two.

    The last hidden layer is linear, without norm, as in the original (its ``activate_final`` stays off for this
    network).

    Args:
        features: width D of the encoded observation.
        choices: width G of the output.
        widths: hidden widths.
        layer_norm: LayerNorm before each activation.
        activation: a name of :func:`serl_fast.networks.mlp.activation`.
    """

    def __init__(
        self,
        features: int,
        choices: int,
        widths: Sequence[int] = (256, 256),
        *,
        layer_norm: bool = True,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.trunk = MLP(features, widths, activate_final=False, layer_norm=layer_norm, activation=activation)
        self.head = linear(widths[-1], choices)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, D] to [B, G]."""
        return at_least_float32(self.head(self.trunk(features)))
