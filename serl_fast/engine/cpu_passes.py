"""What Inductor is given for the CPU instead of operations that are slow there. Nothing else sees these rewrites.

* **Products** are computed in the soonest of three ways: by MKL, which torch chooses and which has the lower overhead
  and multiplies the matrices of a stack side by side; by MKL in pieces, so that there is one for each thread
  (``engine.pieces``); or by oneDNN, the other library that torch brings along, which also uses the AVX-512 units of
  AMD's processors, one matrix of a stack after the other. They are timed once for each shape and number of threads, as
  the step is compiled; compiled code that comes from Inductor's cache keeps its choice. A bias is added outside, where
  the loops around have room for it. Where a factor is a vector the product becomes a multiplication, and a sum, that
  are part of these loops too.
* **tanh** becomes a quotient of polynomials which is within 4e-7 of it, relatively, everywhere (tested), in a quarter
  of the time of the vector library's, which is exact to one unit in the last place. XLA and Eigen use this quotient,
  so HIL-SERL's own networks were trained with it. The gradient, 1 - tanh^2, follows from the value as before.

What each is worth is in ``docs/design/0007-execution.md``.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import Graph, Node, map_arg

from serl_fast.engine import hoisting, pieces
from serl_fast.engine.hoisting import hoist, stored
from serl_fast.engine.pieces import bmm_in_pieces, calls_in_pieces, lower_in_pieces, pieces_of

Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides."""

Way = Literal["mkl", "mkl_in_pieces", "onednn"]

aten = torch.ops.aten
PLAIN = (aten.mm.default, aten.bmm.default)
WITH_BIAS = (aten.addmm.default, aten.baddbmm.default)
MOST = 16  # matrices of a stack, such as the critics' layers; calls for hundreds of small ones would take longer
WAKING = 0.3  # seconds, of which torch's threads need some to be spread over the cores
MANY, SMALL = 64, 16  # matrices, and columns of each: loops along such a stack are sooner than a library
SAME = 1.15  # times MKL's time: up to there pieces are preferred, which gain most where every thread has a core
TIMED, LONGEST = 10, 0.1  # turns, to choose a way, and seconds after which two of them are enough

# tanh(x) = x P(x^2) / Q(x^2) for |x| <= LIMIT, beyond which float32's tanh is 1; lowest powers first.
# Source: Eigen, generic_fast_tanh_float; the same constants in XLA's EmitFastTanh.
LIMIT = 7.90531110763549805
NUMERATOR = (
    4.89352455891786e-03,
    6.37261928875436e-04,
    1.48572235717979e-05,
    5.12229709037114e-08,
    -8.60467152213735e-11,
    2.00018790482477e-13,
    -2.76076847742355e-16,
)
DENOMINATOR = (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06)


class CpuPasses(CustomGraphPass):
    """Rewrites a traced graph, gradients included, before Inductor lowers it: float32 on the CPU alone."""

    def __init__(self) -> None:
        lower_in_pieces()
        if _linear() is not None:
            _lower_as_it_is()

    def __call__(self, graph: Graph) -> None:
        """Rewrite in place."""
        for node in list(graph.nodes):
            rewrite = _rewrite_of(node) if node.op == "call_function" else None
            if rewrite is not None:
                with graph.inserting_before(node):
                    node.replace_all_uses_with(rewrite(functools.partial(_call, graph), *node.args))
                graph.erase_node(node)
        hoist(graph)

    def uuid(self) -> Any:
        """Of this file: compiled code is cached under it."""
        return get_hash_for_files((__file__, hoisting.__file__, pieces.__file__))


@functools.cache
def _linear() -> Any:
    """OneDNN's (x [M, K], weight [N, K], bias [N]) -> [M, N], x and weight of any strides; None where it is absent."""
    if not torch.backends.mkldnn.is_available():
        return None
    packet = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return None if packet is None else packet.default


@functools.cache
def _lower_as_it_is() -> None:
    """Let Inductor call oneDNN on a weight of any strides: its own rule first copies it into another layout.

    The other factor must be dense. Inductor's loops transpose it sooner than the call would.

    The rule is taken from every compilation of this process. What else comes by it (linear layers of models that are
    compiled with ``freezing``) is computed by the same call.
    """
    # The lowerings register the rule. (The rule's own module can not be the first that is imported in torch 2.11.)
    from torch._inductor import lowering
    from torch._inductor.ir import ExternKernel, FixedLayout, TensorBox
    from torch._inductor.mkldnn_ir import LinearUnary

    as_it_comes = lowering.fallback_handler(_linear(), add_to_fallback_set=False)

    def call(x: Any, weight: Any, bias: Any, *post_operation: Any) -> Any:
        if bias is not None or len(x.get_size()) != 2:  # not of this module
            return as_it_comes(x, weight, bias, *post_operation)
        x = ExternKernel.require_contiguous(ExternKernel.realize_input(x))
        weight = ExternKernel.realize_input(weight)
        layout = FixedLayout(x.get_device(), x.get_dtype(), [x.get_size()[0], weight.get_size()[0]])
        return TensorBox.create(LinearUnary(layout, [x, weight], [None, *post_operation]))

    lowering.lowerings.pop(_linear(), None)
    lowering.register_lowering(_linear(), type_promotion_kind=None)(call)


def _rewrite_of(node: Node) -> Any:
    """(call, *arguments of ``node``) -> what to put in its place; None to leave it."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.device.type != "cpu" or value.dtype != torch.float32:
        return None
    if node.target is aten.tanh.default:
        return _rational_tanh
    if node.target not in PLAIN + WITH_BIAS or node.kwargs:  # beta and alpha are 1
        return None
    left, right = (_value(argument) for argument in node.args[-2:])
    if left.dtype != torch.float32 or right.dtype != torch.float32:
        return None
    if 1 in (left.shape[-1], right.shape[-1]):
        return _vector_product
    if left.dim() == 3 and left.shape[0] >= MANY and right.shape[-1] <= SMALL:
        return _small_products
    return functools.partial(_product, _soonest(left, right))


def _call(graph: Graph, operation: Any, *arguments: Any, **named: Any) -> Node:
    """A new node, with the value (a fake tensor) that later passes look at."""
    node = graph.call_function(operation, arguments, named)
    node.meta["val"] = operation(*map_arg(arguments, _value), **named)
    return node


def _value(node: Any) -> Any:
    return node.meta["val"]


def _product(way: Way, call: Any, *arguments: Node) -> Node:
    *bias, left, right = arguments
    stacked = _value(left).dim() == 3
    if way == "mkl":
        product = call(aten.bmm.default if stacked else aten.mm.default, left, right)
    elif way == "mkl_in_pieces":
        stacks = [left, right] if stacked else [call(aten.unsqueeze.default, factor, 0) for factor in (left, right)]
        product = call(bmm_in_pieces, *stacks, _pieces(_value(left)))
        product = product if stacked else call(aten.squeeze.dim, product, 0)
    elif not stacked:
        product = _matrix_product(call, left, right)
    else:
        if _value(left).stride()[1:] != (_value(left).shape[2], 1):  # one transposition of all, not one for each
            left = call(stored, call(aten.clone.default, left, memory_format=torch.contiguous_format))
        products = []
        for index in range(_value(left).shape[0]):
            matrices = [call(aten.select.int, factor, 0, index) for factor in (left, right)]
            products.append(call(aten.unsqueeze.default, _matrix_product(call, *matrices), 0))
        product = call(aten.cat.default, products, 0)
    return _plus(call, product, bias)


def _matrix_product(call: Any, left: Node, right: Node) -> Node:
    # Without the bias: oneDNN would read it as dense whatever its strides.
    product: Node = call(_linear(), left, call(aten.permute.default, right, [1, 0]), None, "none", [], "")
    return product


def _pieces(left: Tensor) -> int:
    """Into how many pieces to cut each left factor: one where its stack has a matrix for every thread anyway."""
    threads = torch.get_num_threads()
    return pieces_of(left.shape[-2], threads) if left.shape[:-2].numel() < threads else 1


def _soonest(left: Tensor, right: Tensor) -> Way:
    """The way to multiply matrices, or stacks of them, of these shapes and strides."""
    if left.dim() == 3 and left.shape[0] > MOST:
        return "mkl"
    shapes = [(tuple(factor.shape), tuple(factor.stride())) for factor in (left, right)]
    times = dict(relative_times(*shapes, torch.get_num_threads()))
    if times.get("mkl_in_pieces", math.inf) < SAME:
        del times["mkl"]
    return min(times, key=lambda way: times[way])


@functools.cache
def relative_times(left: Layout, right: Layout, threads: int) -> dict[Way, float]:
    """Time a product of float32 in all ways that there are for it, in turns.

    Args:
        left: shape and strides of [M, K], or [E, M, K].
        right: of [K, N], or [E, K, N].
        threads: torch's now; results are kept by it.

    Returns:
        What ``mkl_in_pieces`` (where there are fewer matrices than threads, and something to cut) and ``onednn``
        (where this torch has it) take of what ``mkl`` takes in the same turn, medians; 1 for ``mkl``.
    """
    with unset_fake_temporarily(), torch.no_grad():
        _wake(threads)
        x, weight = (_random(*layout) for layout in (left, right))
        multiply = torch.mm if x.dim() == 2 else torch.bmm
        out = multiply(x, weight)
        pieces = _pieces(x)

        def by_mkl() -> None:
            multiply(x, weight, out=out)

        stacks = (x, weight, out) if x.dim() == 3 else (x[None], weight[None], out[None])
        calls = calls_in_pieces(*stacks, pieces)

        def in_pieces() -> None:
            for factor, stack, part in calls:
                torch.bmm(factor, stack, out=part)

        def by_onednn() -> None:
            dense = x.contiguous()  # as _product and _lower_as_it_is arrange it
            if x.dim() == 2:
                _linear()(dense, weight.T, None, "none", [], "")
                return
            for index in range(len(x)):
                out[index] = _linear()(dense[index], weight[index].T, None, "none", [], "")

        ways: dict[Way, Callable[[], None]] = {"mkl": by_mkl}
        if pieces > 1:
            ways["mkl_in_pieces"] = in_pieces
        if _linear() is not None:
            ways["onednn"] = by_onednn
        turns: list[list[float]] = []
        started = time.perf_counter()
        # Behind the first one, which finds nothing in the caches and has oneDNN write its code.
        while len(turns) <= 2 or (len(turns) <= TIMED and time.perf_counter() - started < LONGEST):
            times = [time.perf_counter()]
            for product in ways.values():
                product()
                times.append(time.perf_counter())
            turns.append([end - begin for begin, end in itertools.pairwise(times)])
    ratios = ([seconds / turn[0] for seconds in turn] for turn in turns[1:])
    return dict(zip(ways, map(statistics.median, zip(*ratios, strict=True)), strict=True))


@functools.cache
def _wake(threads: int) -> None:
    """Have threads that slept while the step was traced spread over the cores: two on one make equal shares unequal."""
    x = torch.ones(256, 256)
    started = time.perf_counter()
    while threads > 1 and time.perf_counter() - started < WAKING:
        x @ x


def _random(shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    size = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    return torch.rand(size, generator=torch.Generator()).as_strided(shape, strides)


def _vector_product(call: Any, *arguments: Node) -> Node:
    *bias, left, right = arguments
    if _value(left).shape[-1] == 1:
        return _plus(call, call(aten.mul.Tensor, left, right), bias)
    swapped = [1, 0] if _value(right).dim() == 2 else [0, 2, 1]
    terms = call(aten.mul.Tensor, left, call(aten.permute.default, right, swapped))
    return _plus(call, call(aten.sum.dim_IntList, terms, [-1], True), bias)


def _small_products(call: Any, *arguments: Node) -> Node:
    """Hundreds of small matrices, one for each channel, say: loops that vector instructions run through the stack."""
    *bias, left, right = arguments
    # [M, 1, K, E] * [1, N, K, E], summed over K. What is stored has the stack last in memory, too.
    factors = []
    for factor, axes, place in ((left, [1, 2, 0], 1), (right, [2, 1, 0], 0)):
        turned = call(aten.permute.default, factor, axes)
        turned = call(stored, call(aten.clone.default, turned, memory_format=torch.contiguous_format))
        factors.append(call(aten.unsqueeze.default, turned, place))
    total = call(stored, call(aten.sum.dim_IntList, call(aten.mul.Tensor, *factors), [2]))
    return _plus(call, call(aten.permute.default, total, [2, 0, 1]), bias)


def _plus(call: Any, product: Node, bias: Sequence[Node]) -> Node:
    total: Node = call(aten.add.Tensor, product, bias[0]) if bias else product
    return total


def _rational_tanh(call: Any, x: Node) -> Node:
    clamped = call(aten.clamp_max.default, call(aten.clamp_min.default, x, -LIMIT), LIMIT)
    square = call(aten.mul.Tensor, clamped, clamped)

    def polynomial(coefficients: Sequence[float]) -> Node:
        value: Any = coefficients[-1]
        for coefficient in coefficients[-2::-1]:  # Horner's rule
            value = call(aten.add.Tensor, call(aten.mul.Tensor, square, value), coefficient)
        return value

    numerator = call(aten.mul.Tensor, clamped, polynomial(NUMERATOR))
    quotient: Node = call(aten.div.Tensor, numerator, polynomial(DENOMINATOR))
    return quotient
