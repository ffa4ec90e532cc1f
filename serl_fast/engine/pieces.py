"""Matrix products in pieces of rows that MKL multiplies side by side, in steps compiled for the CPU.

Threads that share one product of 256 x 256 matrices reach half of what each reaches with a product of its own. So the
rows are cut into pieces, a stack of them is multiplied by a stack of the right factor (its stride is 0, nothing is
copied), and MKL gives every thread a product.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Stack = tuple[Sequence[int], Sequence[int]]
"""Shape and strides of matrices."""

View = tuple[tuple[int, ...], tuple[int, ...], int]
"""Shape, strides and offset."""

FEWEST_ROWS = 64  # of a piece: each reads the whole right factor


def pieces_of(rows: int, threads: int) -> int:
    """The number of equal pieces of ``rows`` that occupies most of the threads, the smallest such number."""

    def busy(pieces: int) -> float:  # the share of the threads, until the last one is done
        return pieces / (-(-pieces // threads) * threads)

    numbers = [pieces for pieces in range(1, rows // FEWEST_ROWS + 1) if rows % pieces == 0]
    return max(numbers, key=busy, default=1)


def _parts(stacks: Sequence[Stack], pieces: int) -> Iterator[list[View]]:
    """Of left factors [E, M, K], right ones [E, K, N] and products [E, M, N], what belongs to one call.

    Left factors and products are cut: [pieces, M / pieces, ...]. The right one is the same for all: [pieces, K, N].
    """
    for index in range(stacks[0][0][0]):
        views: list[View] = []
        for ((_, rows, columns), (matrix, row, column)), cut in zip(stacks, (True, False, True), strict=True):
            piece = rows // pieces if cut else rows
            strides = (piece * row if cut else 0, row, column)
            views.append(((pieces, piece, columns), strides, index * matrix))
        yield views


def calls_in_pieces(left: Tensor, right: Tensor, out: Tensor, pieces: int) -> list[list[Tensor]]:
    """(factor, factor, result) of each call of ``torch.bmm``: views of stacks [E, M, K], [E, K, N] and [E, M, N]."""
    tensors = (left, right, out)
    return [
        [
            tensor.as_strided(shape, strides, tensor.storage_offset() + offset)
            for tensor, (shape, strides, offset) in zip(tensors, views, strict=True)
        ]
        for views in _parts([(tensor.shape, tensor.stride()) for tensor in tensors], pieces)
    ]


def _bmm_in_pieces(left: Tensor, right: Tensor, pieces: int) -> Tensor:
    out = left.new_empty(*left.shape[:2], right.shape[2])
    for x, weight, part in calls_in_pieces(left, right, out, pieces):
        torch.bmm(x, weight, out=part)
    return out


_operator = torch.library.custom_op(
    "serl_fast::bmm_in_pieces",
    _bmm_in_pieces,
    mutates_args=(),
    schema="(Tensor left, Tensor right, int pieces) -> Tensor",
)
_operator.register_fake(lambda left, right, pieces: left.new_empty(*left.shape[:2], right.shape[2]))
bmm_in_pieces = torch.ops.serl_fast.bmm_in_pieces.default
"""(left [E, M, K], right [E, K, N], pieces) -> [E, M, N], float32 on the CPU; ``pieces`` divides M."""


def lower_in_pieces() -> None:
    """Let Inductor call MKL for the parts, each of which writes into its place of one result."""
    from torch._inductor import lowering
    from torch._inductor.ir import (
        ExternKernel,
        ExternKernelOut,
        FixedLayout,
        ReinterpretView,
        StorageBox,
        TensorBox,
        as_storage_and_layout,
    )

    if bmm_in_pieces in lowering.lowerings:
        return

    class Products(ExternKernelOut):  # type: ignore[misc]
        """One buffer that is the result, as Inductor plans it, written by several calls."""

        def codegen(self, wrapper: Any) -> None:
            inputs: Any = self.inputs
            tensors = [as_storage_and_layout(tensor) for tensor in (*inputs, StorageBox(self))]
            stacks = [(tuple(map(int, layout.size)), tuple(map(int, layout.stride))) for _, layout in tensors]
            for views in _parts(stacks, *self.constant_args):
                *factors, part = (
                    ReinterpretView(
                        data=storage,
                        layout=FixedLayout(layout.device, layout.dtype, shape, strides, layout.offset + offset),
                    )
                    for (storage, layout), (shape, strides, offset) in zip(tensors, views, strict=True)
                )
                call: Any = copy.copy(self)
                call.inputs, call.constant_args, call.codegen_reference = factors, (), part.codegen_reference
                wrapper.generate_extern_kernel_out(call)

    def in_memory(factor: Any) -> Any:
        factor = ExternKernel.realize_input(factor)
        _, layout = as_storage_and_layout(factor, freeze=True)
        return factor if 1 in layout.stride[1:] else ExternKernel.require_contiguous(factor)  # else torch would copy it

    def lower(left: Any, right: Any, pieces: int) -> Any:
        size = [*left.get_size()[:2], right.get_size()[2]]
        return TensorBox.create(
            Products(
                FixedLayout(left.get_device(), left.get_dtype(), size),
                [in_memory(left), in_memory(right)],
                (pieces,),
                python_kernel_name="extern_kernels.bmm",
                cpp_kernel_name="at::bmm_out",
                op_overload=torch.ops.aten.bmm.out,
            )
        )

    lowering.register_lowering(bmm_in_pieces, type_promotion_kind=None)(lower)
