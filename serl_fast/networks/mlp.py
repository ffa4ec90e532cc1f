"""Multi-layer perceptrons as SERL and HIL-SERL build them, alone and as a stacked ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPSILON = 1e-6  # flax's default, which the recorded numbers need; torch's own is 1e-5

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": F.relu}


def activation(name: str, x: Tensor) -> Tensor:
    """Apply the activation called ``name`` ("tanh" or "relu")."""
    try:
        return _ACTIVATIONS[name](x)
    except KeyError:
        raise ValueError(f"activation {name!r} is not known; choose one of {sorted(_ACTIVATIONS)}") from None


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A dense layer with Xavier-uniform weights, bound sqrt(6 / (in + out)), and zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """Dense -> LayerNorm -> activation, for each width.

    Args:
        inputs: width of the input.
        widths: width of each layer.
        activate_final: whether the last layer has its norm and activation too; HIL-SERL's grasp critic has not.
        layer_norm: LayerNorm (epsilon 1e-6) before each activation.
        activation: "tanh" (HIL-SERL) or "relu" (RLPD).

    Source: ``serl_launcher/networks/mlp.py`` of HIL-SERL.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        *,
        activate_final: bool = True,
        layer_norm: bool = True,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        sizes = [inputs, *widths]
        activated = len(widths) if activate_final else len(widths) - 1
        self.activation = activation
        self.layers = nn.ModuleList(linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(
            nn.LayerNorm(width, eps=LAYER_NORM_EPSILON) if layer_norm else nn.Identity()
            for width in sizes[1 : activated + 1]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., inputs] to [..., widths[-1]]."""
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index < len(self.norms):
                x = activation(self.activation, self.norms[index](x))
        return x


class StackedLinear(nn.Module):
    """E independent dense layers as one batched product: [E, B, in] -> [E, B, out].

    Weights are drawn independently for each member, Xavier-uniform over (in, out).
    """

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = (6.0 / (inputs + outputs)) ** 0.5
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, x: Tensor, members: Tensor | None = None) -> Tensor:
        """Apply each member to its row of ``x``; ``members`` [M] int64 keeps only those members."""
        weight: Tensor = self.weight if members is None else self.weight[members]
        bias: Tensor = self.bias if members is None else self.bias[members]
        return torch.baddbmm(bias, x, weight)


class StackedLayerNorm(nn.Module):
    """E independent LayerNorms over the last axis of [E, B, D]."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, width))
        self.bias = nn.Parameter(torch.zeros(members, 1, width))

    def forward(self, x: Tensor, members: Tensor | None = None) -> Tensor:
        """Normalise [E, B, D]; ``members`` [M] int64 keeps only those members."""
        weight: Tensor = self.weight if members is None else self.weight[members]
        bias: Tensor = self.bias if members is None else self.bias[members]
        normalised = F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPSILON)
        return torch.addcmul(bias, normalised, weight)
