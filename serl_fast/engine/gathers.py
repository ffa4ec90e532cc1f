"""Kernels that gather by themselves: what would be copied for them first is not.

A ``DeviceSource`` gathers its frames, an agent's preparation crops and normalises them. Neither knows of the other, so
the frames of a batch would be written once and read once in between. In the traced step the two stand side by side:
where a kernel can take rows of a store in place of images, it is given the store that they are gathered from, and the
rows. The values are the same to the bit. Only compiled steps are rewritten, so an eager one makes the copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node, map_arg

aten = torch.ops.aten
KERNELS = {"serl_fast::crop_normalize": (0, 2)}
"""By operator: which arguments are lists of images [N, H, W, C], with rows of stores [F, H, W, C], and of rows [N]."""
RESHAPES = (aten.reshape.default, aten.view.default)


class KernelsGather(CustomGraphPass):
    """Rewrites a traced graph before Inductor lowers it."""

    def __call__(self, graph: Graph) -> None:
        """Rewrite in place."""
        for node in list(graph.nodes):
            schema = getattr(node.target, "_schema", None)
            places = KERNELS.get(schema.name) if schema is not None else None
            if places is None:
                continue
            images, rows = (node.args[place] for place in places)
            gathers = [_gather_of(image) for image in images]
            if rows or any(gather is None for gather in gathers):
                continue
            stores, indices = zip(*(gather for gather in gathers if gather), strict=True)
            arguments = list(node.args)
            arguments[places[0]], arguments[places[1]] = list(stores), list(indices)
            node.args = tuple(arguments)
            if "eager_input_vals" in node.meta:  # by which Inductor arranges the arguments in memory
                node.meta["eager_input_vals"] = map_arg(node.args, _value), {}
            for image, store in dict(zip(images, stores, strict=True)).items():
                _erase_unused(graph, image, store)

    def uuid(self) -> Any:
        """Of this file: compiled code is cached under it."""
        return get_hash_for_files((__file__,))


def _gather_of(image: Node) -> tuple[Node, Node] | None:
    """The store and the rows, int64 [N], of which ``image`` [N, H, W, C] is made; None: it is made in another way."""
    node, shape = image, _value(image).shape
    while node.target in RESHAPES:
        node = node.args[0]  # type: ignore[assignment]
    if node.target is aten.index.Tensor and len(node.args[1]) == 1:  # type: ignore[arg-type]
        store, rows = node.args[0], node.args[1][0]  # type: ignore[index]
    elif node.target is aten.index_select.default and node.args[1] == 0:
        store, rows = node.args[0], node.args[2]
    else:
        return None
    if not isinstance(store, Node) or not isinstance(rows, Node):
        return None
    of_rows, of_store = _value(rows), _value(store)
    fits = of_rows.dtype == torch.int64 and of_rows.dim() == 1
    return (store, rows) if fits and shape == (of_rows.shape[0], *of_store.shape[1:]) else None


def _erase_unused(graph: Graph, node: Any, until: Node) -> None:
    """Erase what nothing reads any more, from ``node`` back to ``until``."""
    while node is not until and not node.users:
        before = node.args[0]
        graph.erase_node(node)
        node = before


def _value(node: Node) -> Tensor:
    value: Tensor = node.meta["val"]
    return value
