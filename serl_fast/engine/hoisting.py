"""What all elements of a loop share is computed once before it, and not in it, in steps compiled for the CPU.

Inductor writes an operation into the loops of whatever uses its result. For a number that a whole tensor is multiplied
by, such as Adam's sqrt(1 - b2^t), and for one of each row, such as LayerNorm's 1 / sqrt(variance + epsilon), it then
stands in the innermost loop, and the C++ compiler has to leave it there: what the loop writes could be what it reads.
Two calls of ``expm1`` for each 16 parameters were more than all the rest of Adam.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

aten = torch.ops.aten
RATIO = 64  # how many times the elements a use has at least
VIEWS = {
    aten.alias.default, aten.expand.default, aten.permute.default, aten.reshape.default, aten.select.int,
    aten.slice.Tensor, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
    aten.view.default,
}  # fmt: skip

_stored = torch.library.custom_op("serl_fast::stored", torch.clone, mutates_args=(), schema="(Tensor x) -> Tensor")
_stored.register_fake(torch.empty_like)
stored = torch.ops.serl_fast.stored.default
"""The same values, which Inductor has in memory before it goes on."""


def hoist(graph: Graph) -> None:
    """Store what far larger tensors are computed with: pointwise operations on the CPU, in place."""
    _lower_as_memory()
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if not _is_pointwise(node) or not isinstance(value, Tensor) or value.device.type != "cpu":
            continue
        if _largest_use(node) < RATIO * value.numel():
            continue
        with graph.inserting_after(node):
            kept = graph.call_function(stored, (node,))
        kept.meta["val"] = value.clone()
        node.replace_all_uses_with(kept, delete_user_cb=lambda user, kept=kept: user is not kept)


def _is_pointwise(node: Node) -> bool:
    if node.op != "call_function" or node.target in VIEWS:
        return False
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or node.target is torch.ops.prims.convert_element_type.default


def _largest_use(node: Node) -> int:
    """Elements of the largest tensor that is computed with it, through views of it too."""
    largest = 0
    for user in node.users:
        if user.op != "call_function":
            continue
        size = _elements(user.meta.get("val"))
        largest = max(largest, size, _largest_use(user) if user.target in VIEWS else 0)
    return largest


def _elements(value: Any) -> int:
    if isinstance(value, list | tuple):
        return max(map(_elements, value), default=0)
    return value.numel() if isinstance(value, Tensor) else 0


def _lower_as_memory() -> None:
    from torch._inductor import lowering

    if stored in lowering.lowerings:
        return

    def lower(x: Any) -> Any:
        x.realize()
        return x

    lowering.register_lowering(stored, type_promotion_kind=None)(lower)
