"""The tanh-squashed Gaussian policy and SAC's temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serl_fast.networks.mlp import MLP, linear


class TanhGaussian(NamedTuple):
    """a = tanh(mean + std * noise), diagonal; ``mean`` and ``std`` are float [B, A]."""

    mean: Tensor
    std: Tensor

    @property
    def mode(self) -> Tensor:
        """tanh(mean), the deterministic action [B, A]."""
        return torch.tanh(self.mean)

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reparameterised actions and their log-probabilities.

        log pi(a) = sum_i [-noise_i^2 / 2 - log std_i - log(2 pi) / 2] - sum_i 2 (log 2 - u_i - softplus(-2 u_i)),
        u = mean + std * noise; the second sum is log |da/du|, written so that it neither over- nor underflows.

        Args:
            noise: standard normal, [B, A].

        Returns:
            actions in (-1, 1) [B, A], log-probabilities [B].

        Source: SAC (Haarnoja et al. 2018), appendix C.
        """
        pre_tanh = self.mean + self.std * noise
        gaussian = -0.5 * noise.square() - self.std.log() - 0.5 * math.log(2 * math.pi)
        log_jacobian = 2.0 * (math.log(2.0) - pre_tanh - F.softplus(-2.0 * pre_tanh))
        return torch.tanh(pre_tanh), (gaussian - log_jacobian).sum(-1)


class Policy(nn.Module):
    """Features -> a tanh-squashed diagonal Gaussian.

    std = clip(exp(head), std_min, std_max): the clip acts on the std, as in HIL-SERL, so its gradient is zero outside.

    Args:
        features: width D of the encoded observation.
        action_dim: width A.
        widths: hidden widths.
        std_min: smallest standard deviation.
        std_max: largest standard deviation.
        layer_norm: LayerNorm before each activation.
        activation: "tanh" or "relu".

    Source: ``serl_launcher/networks/actor_critic_nets.py``.
    """

    def __init__(
        self,
        features: int,
        action_dim: int,
        widths: Sequence[int] = (256, 256),
        *,
        std_min: float = 1e-5,
        std_max: float = 5.0,
        layer_norm: bool = True,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.std_min, self.std_max = std_min, std_max
        self.trunk = MLP(features, widths, layer_norm=layer_norm, activation=activation)
        self.mean = linear(widths[-1], action_dim)
        self.log_std = linear(widths[-1], action_dim)

    def forward(self, features: Tensor) -> TanhGaussian:
        """Map features [B, D] to the action distribution."""
        hidden = self.trunk(features)
        return TanhGaussian(self.mean(hidden), self.log_std(hidden).exp().clamp(self.std_min, self.std_max))


class Temperature(nn.Module):
    """SAC's temperature, softplus(raw) > 0, a learned scalar.

    Args:
        initial: value at the start; HIL-SERL uses 0.01.

    Source: ``serl_launcher/networks/lagrange.py``.
    """

    def __init__(self, initial: float = 0.01) -> None:
        super().__init__()
        if not initial > 0:
            raise ValueError(f"initial temperature is {initial}; it must be positive")
        self.raw = nn.Parameter(torch.tensor(math.log(math.expm1(initial))))

    def forward(self) -> Tensor:
        """The temperature, a scalar tensor."""
        return F.softplus(self.raw)
