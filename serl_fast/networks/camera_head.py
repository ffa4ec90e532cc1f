"""The part of an encoder that belongs to one camera: feature map -> pooling -> dense layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from serl_fast.networks.mlp import LAYER_NORM_EPSILON, activation
from serl_fast.networks.resnet10 import truncated_normal_


class SpatialLearnedEmbeddings(nn.Module):
    """Learned weighted sums of a feature map over its positions, F for each channel.

    out[b, c * F + f] = sum_hw x[b, h, w, c] * kernel[h, w, c, f]

    Args:
        feature_shape: (h, w, C) of the feature map.
        embeddings: F.

    Source: ``serl_launcher/vision/resnet_v1.py``; LeCun-normal weights with fan-in h * w * C.
    """

    def __init__(self, feature_shape: tuple[int, int, int], embeddings: int = 8) -> None:
        super().__init__()
        height, width, channels = feature_shape
        self.kernel = nn.Parameter(torch.empty(height, width, channels, embeddings))
        truncated_normal_(self.kernel, fan_in=height * width * channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, h, w, C] to [B, C * F], channel-major."""
        # Each channel is a product of [B, h*w] with [h*w, F]: one batched product over the channels. Copied into that
        # order first, as one transposed matrix: from strided factors the CPU's batched product copies every channel by
        # itself.
        rows = features.flatten(0, 2).t().contiguous()  # [C, B*h*w]
        x = rows.unflatten(1, (features.shape[0], -1))  # [C, B, h*w]
        kernel = self.kernel.flatten(0, 1).permute(1, 0, 2).contiguous()  # [C, h*w, F]
        return torch.bmm(x, kernel.to(x.dtype)).transpose(0, 1).flatten(1)


def spatial_softmax(features: Tensor) -> Tensor:
    """Expected position of each channel under a softmax over the positions, temperature 1.

    Positions run from -1 to 1 along each axis of the map. (The original's run along the wrong axes where a map is not
    square; its own maps always are.)

    Args:
        features: float [B, h, w, C].

    Returns:
        float [B, 2 * C]: the expected x (along the width) of every channel, then the expected y.

    Source: Levine et al. 2016, section 5.1; ``SpatialSoftmax`` in ``serl_launcher/vision/resnet_v1.py``.
    """
    height, width = features.shape[1:3]
    weights = features.flatten(1, 2).softmax(dim=1).unflatten(1, (height, width))  # [B, h, w, C]
    along_x = torch.linspace(-1, 1, width, device=features.device).view(1, 1, -1, 1)
    along_y = torch.linspace(-1, 1, height, device=features.device).view(1, -1, 1, 1)
    return torch.cat([(weights * along_x).sum((1, 2)), (weights * along_y).sum((1, 2))], dim=-1)


POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "spatial_softmax": spatial_softmax,
    "average": lambda features: features.mean((1, 2)),
    "max": lambda features: features.amax((1, 2)),
    "none": lambda features: features.flatten(1),
}
"""Poolings [B, h, w, C] -> [B, W] without parameters; "spatial_embeddings" is the one with."""


class CameraHead(nn.Module):
    """activation(LayerNorm(Dense(dropout(pooling(features))))), the trained part for one camera.

    Args:
        feature_shape: (h, w, C) of the trunk's feature map.
        embeddings: embeddings F per channel of the pooling "spatial_embeddings".
        bottleneck: output width; None leaves out Dense, LayerNorm and activation.
        pooling: "spatial_embeddings" or a name in :data:`POOLINGS`.
        layer_norm: whether there is a LayerNorm.
        activation: a name of :func:`serl_fast.networks.mlp.activation`.

    Raises:
        ValueError: the pooling is not known.

    Source: ``PreTrainedResNetEncoder`` in ``serl_launcher/vision/resnet_v1.py``; without LayerNorm, IMPALA's dense
    layer as FQL has it.
    """

    def __init__(
        self,
        feature_shape: tuple[int, int, int],
        embeddings: int = 8,
        bottleneck: int | None = 256,
        *,
        pooling: str = "spatial_embeddings",
        layer_norm: bool = True,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        height, width, channels = feature_shape
        widths = {
            "spatial_embeddings": channels * embeddings,
            "spatial_softmax": 2 * channels,
            "average": channels,
            "max": channels,
            "none": height * width * channels,
        }
        if pooling not in widths:
            raise ValueError(f"pooling {pooling!r} is not known; choose one of {', '.join(widths)}")
        self.pooling, self.activation = pooling, activation
        learned = pooling == "spatial_embeddings"
        self.embeddings = SpatialLearnedEmbeddings(feature_shape, embeddings) if learned else None
        self.width = widths[pooling]
        self.outputs = self.width if bottleneck is None else bottleneck
        self.dense: nn.Linear | None = None
        self.norm: nn.LayerNorm | None = None
        if bottleneck is None:
            return
        self.dense = nn.Linear(self.width, bottleneck)
        nn.init.zeros_(self.dense.bias)
        if layer_norm:
            truncated_normal_(self.dense.weight, fan_in=self.width)
            self.norm = nn.LayerNorm(bottleneck, eps=LAYER_NORM_EPSILON)
        else:
            nn.init.xavier_uniform_(self.dense.weight)

    def pool(self, features: Tensor) -> Tensor:
        """Map feature maps [B, h, w, C] to [B, ``width``]."""
        if self.embeddings is not None:
            return self.embeddings(features)
        return POOLINGS[self.pooling](features)

    def forward(self, features: Tensor, dropout: Tensor | None = None) -> Tensor:
        """Encode feature maps.

        Args:
            features: float [B, h, w, C].
            dropout: multiplicative mask on the pooled features [B, ``width``], already scaled (:func:`dropout_mask`);
                absent for none.

        Returns:
            float [B, bottleneck], or [B, ``width``] without a bottleneck.
        """
        return self.project(self.pool(features), dropout)

    def project(self, x: Tensor, dropout: Tensor | None = None) -> Tensor:
        """The rest of :meth:`forward` from pooled features [B, ``width``] on."""
        if dropout is not None:
            x = x * dropout
        if self.dense is None:
            return x
        x = self.dense(x)
        return activation(self.activation, x if self.norm is None else self.norm(x))
