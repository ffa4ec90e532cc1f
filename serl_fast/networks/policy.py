"""The Gaussian policy, squashed by tanh or not, and SAC's temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serl_fast.networks.mlp import MLP, at_least_float32, linear

StdParameterization = Literal["exp", "softplus", "uniform", "fixed"]


class ActionDistribution(NamedTuple):
    """a = tanh(u) or a = u, u = mean + std * noise, diagonal; ``mean`` and ``std`` are float [B, A]."""

    mean: Tensor
    std: Tensor
    squash: bool = True

    @property
    def mode(self) -> Tensor:
        """The deterministic action [B, A], tanh(mean) or mean."""
        return torch.tanh(self.mean) if self.squash else self.mean

    def stddev(self) -> Tensor:
        """What the original reports as standard deviation [B, A]: the std sent through the tanh too."""
        return torch.tanh(self.std) if self.squash else self.std

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reparameterised actions and their log-probabilities.

        log pi(a) = sum_i [-noise_i^2 / 2 - log std_i - log(2 pi) / 2] - sum_i log |da_i/du_i|; u is at hand, so the
        second sum needs no inverse of the tanh. Without squashing it is zero.

        Args:
            noise: standard normal, [B, A] or [N, B, A].

        Returns:
            actions [(N,) B, A], in (-1, 1) when squashed, and log-probabilities [(N,) B].

        Source: SAC (Haarnoja et al. 2018), appendix C.
        """
        u = self.mean + self.std * noise
        gaussian = self._log_gaussian(noise)
        if not self.squash:
            return u, gaussian.sum(-1)
        return torch.tanh(u), (gaussian - log_tanh_slope(u)).sum(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probabilities [(N,) B] of given actions [(N,) B, A].

        When squashed, u = atanh(a). As in the original nothing is clipped: on the boundary and beyond it the result
        is infinite or not a number.
        """
        u = torch.atanh(actions) if self.squash else actions
        gaussian = self._log_gaussian((u - self.mean) / self.std)
        return (gaussian - log_tanh_slope(u)).sum(-1) if self.squash else gaussian.sum(-1)

    def _log_gaussian(self, noise: Tensor) -> Tensor:
        return -0.5 * noise.square() - self.std.log() - 0.5 * math.log(2 * math.pi)


def log_tanh_slope(u: Tensor) -> Tensor:
    """log(d tanh(u) / du) = 2 (log 2 - u - softplus(-2 u)), which neither over- nor underflows."""
    return 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))


class Policy(nn.Module):
    """Features -> a diagonal Gaussian over actions, squashed by tanh unless asked otherwise.

    std = clip(s, std_min, std_max) * sqrt(temperature), where s is, by ``std_parameterization``,

    * "exp": exp(Dense(hidden));
    * "softplus": softplus(Dense(hidden));
    * "uniform": exp(``log_stds``), one trained number for each action dimension;
    * "fixed": ``fixed_std``.

    The clip acts on the std, as in HIL-SERL, so its gradient is zero outside.

    Args:
        features: width D of the encoded observation.
        action_dim: width A.
        widths: hidden widths.
        std_parameterization: see above.
        std_min: smallest standard deviation.
        std_max: largest standard deviation.
        fixed_std: the A standard deviations of "fixed".
        squash: send actions through tanh.
        activate_final: whether the last hidden layer has its norm and activation too.
        layer_norm: LayerNorm before each activation.
        activation: a name of :func:`serl_fast.networks.mlp.activation`.

    Raises:
        ValueError: an unknown parameterisation, or ``fixed_std`` does not go with it.

    Source: ``serl_launcher/networks/actor_critic_nets.py``.
    """

    fixed_std: Tensor | None

    def __init__(
        self,
        features: int,
        action_dim: int,
        widths: Sequence[int] = (256, 256),
        *,
        std_parameterization: StdParameterization = "exp",
        std_min: float = 1e-5,
        std_max: float = 5.0,
        fixed_std: Sequence[float] | None = None,
        squash: bool = True,
        activate_final: bool = True,
        layer_norm: bool = True,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        if std_parameterization not in ("exp", "softplus", "uniform", "fixed"):
            raise ValueError(
                f"std_parameterization is {std_parameterization!r}; choose 'exp', 'softplus', 'uniform' or 'fixed'"
            )
        given = None if fixed_std is None else len(fixed_std)
        expected = action_dim if std_parameterization == "fixed" else None
        if given != expected:
            raise ValueError(
                f"fixed_std has {given} values; std_parameterization {std_parameterization!r} takes {expected}"
            )
        self.std_parameterization = std_parameterization
        self.std_min, self.std_max, self.squash = std_min, std_max, squash
        self.trunk = MLP(features, widths, activate_final=activate_final, layer_norm=layer_norm, activation=activation)
        self.mean = linear(widths[-1], action_dim)
        depends_on_state = std_parameterization in ("exp", "softplus")
        self.log_std = linear(widths[-1], action_dim) if depends_on_state else None
        uniform = std_parameterization == "uniform"
        self.log_stds = nn.Parameter(torch.zeros(action_dim)) if uniform else None
        self.register_buffer("fixed_std", None if fixed_std is None else torch.tensor(fixed_std, dtype=torch.float32))

    def forward(
        self, features: Tensor, dropout: Sequence[Tensor] | None = None, temperature: float = 1.0
    ) -> ActionDistribution:
        """Map features to the action distribution.

        Args:
            features: float [B, D].
            dropout: masks of the hidden layers, see :meth:`MLP.forward`.
            temperature: multiplies the variance; an entropy-regularised policy's optimal std grows so.
        """
        hidden = self.trunk(features, dropout)
        mean = at_least_float32(self.mean(hidden))
        std = self._std(hidden).clamp(self.std_min, self.std_max).expand_as(mean)
        return ActionDistribution(mean, std if temperature == 1.0 else std * math.sqrt(temperature), self.squash)

    def _std(self, hidden: Tensor) -> Tensor:
        if self.log_std is not None:
            raw = at_least_float32(self.log_std(hidden))
            return raw.exp() if self.std_parameterization == "exp" else F.softplus(raw)
        if self.log_stds is not None:
            return self.log_stds.exp()
        assert self.fixed_std is not None
        return self.fixed_std


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
