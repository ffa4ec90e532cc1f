"""Multi-layer perceptrons as SERL and HIL-SERL build them, alone and as a stacked ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPSILON = 1e-6  # flax's default, which the recorded numbers need; torch's own is 1e-5


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")  # flax's default; torch's own is the exact form


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "gelu": _gelu,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
}
ACTIVATIONS = tuple(_ACTIVATIONS)


def activation(name: str, x: Tensor) -> Tensor:
    """Apply the activation called ``name``: tanh, relu, silu (= swish), gelu (tanh form), elu, leaky_relu (0.01)."""
    return _ACTIVATIONS[name](x)


def known_activation(name: str) -> str:
    """``name``, if it is an activation's.

    Raises:
        ValueError: it is not; the message lists those that there are.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not known; choose one of {', '.join(ACTIVATIONS)}")
    return name


def at_least_float32(x: Tensor) -> Tensor:
    """``x``, as float32 where it is a 16-bit float: under autocast a network's output is in half precision.

    Values, logits and the parameters of distributions leave their network through this, so that targets,
    log-probabilities and losses are computed in float32.
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A dense layer with Xavier-uniform weights, bound sqrt(6 / (in + out)), and zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """Dense -> (dropout) -> LayerNorm -> activation, for each width.

    Args:
        inputs: width of the input.
        widths: width of each layer.
        activate_final: whether the last layer has its norm and activation too; HIL-SERL's grasp critic has not.
        layer_norm: LayerNorm (epsilon 1e-6) before each activation.
        activation: a name of :func:`activation`; "tanh" in HIL-SERL, "relu" in RLPD.

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
        self.activation = known_activation(activation)
        self.layers = nn.ModuleList(linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(
            nn.LayerNorm(width, eps=LAYER_NORM_EPSILON) if layer_norm else nn.Identity()
            for width in sizes[1 : activated + 1]
        )

    def forward(self, x: Tensor, dropout: Sequence[Tensor] | None = None) -> Tensor:
        """Map [..., inputs] to [..., widths[-1]].

        Args:
            x: float [..., inputs].
            dropout: a multiplicative mask [..., width], already scaled, for each layer that has an activation; it
                acts between Dense and LayerNorm. Absent for none.

        Raises:
            ValueError: another number of masks than of layers with an activation.
        """
        if dropout is not None and len(dropout) != len(self.norms):
            raise ValueError(f"there are {len(dropout)} dropout masks; the network takes {len(self.norms)}")
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index < len(self.norms):
                x = x if dropout is None else x * dropout[index]
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
