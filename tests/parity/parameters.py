"""Recorded parameters into our networks, and our gradients and parameters beside the recorded ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serl_fast.core import AdamConfig
from serl_fast.interop.flax_names import Leaf, fill, module_leaves
from tests.parity.fixture import ROUNDING, Fixture, FixtureError, statistics


def fill_module(fixture: Fixture, module: nn.Module, root: str) -> list[Leaf]:
    """Fill ``module`` from the arrays below ``root``; its leaves, with the names they have there."""
    leaves = module_leaves(module)
    fill(leaves, {leaf.path: fixture.given(f"{root}/{leaf.path}") for leaf in leaves})
    return leaves


def gradients_of(loss: Tensor, leaves: Sequence[Leaf], trained: Iterable[Tensor]) -> dict[str, Tensor]:
    """The gradient of every leaf that is not frozen, in the recorded layout.

    Args:
        loss: a scalar.
        leaves: of all networks.
        trained: the parameters that the loss is allowed to move; every other gradient is zero, as the engine has it.
    """
    parameters = [parameter for parameter in trained if parameter.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    by_parameter = dict(zip(map(id, parameters), found, strict=True))
    moving = [leaf for leaf in leaves if leaf.parameter.requires_grad]
    return {
        leaf.path: leaf.to_flax(by_parameter.get(id(leaf.parameter), torch.zeros_like(leaf.parameter)))
        for leaf in moving
    }


def values_of(leaves: Iterable[Leaf]) -> dict[str, Tensor]:
    """The value of every leaf in the recorded layout, copied."""
    return {leaf.path: leaf.value().clone() for leaf in leaves}


def compare_gradients(
    fixture: Fixture,
    ours: Mapping[str, Tensor],
    name: str = "",
    *,
    zeros: Sequence[str] | None = None,
    terms: Mapping[str, float] | None = None,
) -> None:
    """Compare what is recorded of one loss's gradient: whole leaves, samples of large ones, statistics, zeros.

    Args:
        fixture: the recording.
        ours: gradient by leaf name.
        name: of the loss where the recording has several.
        zeros: the leaves whose recorded gradient is exactly zero; None where that is not recorded.
        terms: for leaves of one entry that is a mean: its largest term, see ``Fixture.compare``.
    """
    below = f"/{name}" if name else ""
    for path in fixture.below(f"grads{below}"):
        group = f"grads{below}/{_family(path)}"
        fixture.compare(
            f"grads{below}/{path}", _leaf(ours, path), "gradient", group=group, terms=(terms or {}).get(path)
        )
    for path in fixture.below(f"grads_sample{below}"):
        array = f"grads_sample{below}/{path}"
        flat = _leaf(ours, path).flatten()
        sampled = flat[:: _stride(fixture, array, flat.numel())]
        fixture.compare(array, sampled, "gradient", group=f"grads_sample{below}/{_family(path)}")
    compare_statistics(fixture, f"stats/grads{below}", ours, "gradient norm", terms=terms)
    if zeros is not None:
        without = sorted(path for path, gradient in ours.items() if not bool(gradient.any()))
        fixture.compare_setting("zero_gradient_leaves" + below.replace("/", "."), without, sorted(zeros))


def compare_statistics(
    fixture: Fixture,
    array: str,
    ours: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
    kind: str,
    *,
    terms: Mapping[str, float] | None = None,
    slack: Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]] | None = None,
) -> None:
    """Compare [l2, sum, checksum] of every leaf, in the recording's order.

    Args:
        fixture: the recording.
        array: [leaves, 3], or [steps, leaves, 3]; nothing happens where it is not recorded.
        ours: values by leaf name, or such of every step.
        kind: "gradient norm" or "parameter norm".
        terms: see :func:`compare_gradients`.
        slack: what each entry of a leaf may differ by, of every step; its norm is added to the tolerance of the leaf.
    """
    if array not in fixture:
        return
    order = fixture.config["leaf_order_of_stats"]
    one = isinstance(ours, Mapping)
    steps, allowances = ([ours], [slack or {}]) if one else (ours, slack or [{}] * len(ours))
    rows = np.stack([np.stack([statistics(_leaf(values, path)) for path in order]) for values in steps])
    allowed = np.array([[np.linalg.norm(by_leaf.get(path, 0.0)) for path in order] for by_leaf in allowances])
    if one:
        rows, allowed = rows[0], allowed[0]
    largest = np.array([(terms or {}).get(path, 0.0) for path in order])
    fixture.compare_statistics(array, rows, kind, terms=largest, slack=allowed)


def compare_parameters(
    fixture: Fixture, root: str, ours: Mapping[str, Tensor], slack: Mapping[str, np.ndarray] | None = None
) -> None:
    """Compare the recorded leaves below ``root`` with ours, 1e-6 absolute, beyond ``slack`` where that is given."""
    for path in fixture.below(root):
        fixture.compare(
            f"{root}/{path}",
            _leaf(ours, path),
            "parameter",
            group=f"{root}/{_family(path)}",
            slack=(slack or {}).get(path, 0.0),
        )


def compare_new(fixture: Fixture, root: str, ours: Mapping[str, Tensor], slack: Mapping[str, np.ndarray]) -> None:
    """Compare parameters after one update: whole leaves and statistics."""
    compare_parameters(fixture, root, ours, slack)
    compare_statistics(fixture, f"stats/{root}", ours, "parameter norm", slack=slack)


class Slack:
    """How far parameters may differ along Adam's steps because the recorded gradients are rounded, leaf by leaf.

    A gradient is known to d = ROUNDING times its leaf's largest entry. Adam divides it by its own size: entries near d
    can move by anything between a step down and a step up (the first step is lr g / (|g| + epsilon)), and where that
    is so the recordings say that parameters can not be compared. Two Adams of float64 are carried along, one fed g - d
    and one g + d; the distance between their moves is added up. For nearly every entry it is far below the tolerance.

    Args:
        optimizers: Adam's settings by the loss's name.
    """

    def __init__(self, optimizers: Mapping[str, AdamConfig]) -> None:
        self.optimizers = optimizers
        self.moments: dict[tuple[str, str, int], tuple[Any, Any]] = {}
        self.count = 0
        self.total: dict[str, np.ndarray] = {}

    def step(self, gradients: Mapping[str, Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
        """Take the gradients of every loss, zero for one that was not asked for; the slack so far by leaf."""
        self.count += 1
        for loss, config in self.optimizers.items():
            reached = gradients.get(loss) or {path: None for name, path, _ in self.moments if name == loss}
            for path, gradient in reached.items():
                g = np.zeros(()) if gradient is None else gradient.detach().double().numpy()
                d = ROUNDING * np.abs(g).max(initial=0.0) * (g != 0)  # an exact zero is no rounded value
                moves = [self._move((loss, path, sign), g + sign * d, config) for sign in (-1, 1)]
                self.total[path] = self.total.get(path, 0.0) + np.abs(moves[1] - moves[0])
        return {path: slack.copy() for path, slack in self.total.items()}

    def _move(self, key: tuple[str, str, int], gradient: np.ndarray, config: AdamConfig) -> np.ndarray:
        first, second = self.moments.get(key, (0.0, 0.0))
        first = config.beta1 * first + (1 - config.beta1) * gradient
        second = config.beta2 * second + (1 - config.beta2) * np.square(gradient)
        self.moments[key] = first, second
        mean = first / (1 - config.beta1**self.count)
        root = np.sqrt(second / (1 - config.beta2**self.count))
        move: np.ndarray = config.learning_rate * mean / (root + config.epsilon)
        return move


def _stride(fixture: Fixture, array: str, size: int) -> int:
    """The s of "every s-th element, s = max(1, size//n)" in the description of a sampled gradient."""
    description = str(fixture.meta["docs"][fixture.meta["arrays"][array][2]])
    found = re.search(r"size *// *(\d+)", description)
    if found is None:
        raise FixtureError(f"{array}: every how many-th entry was recorded is not said in {description!r}")
    return max(1, size // int(found[1]))


def _family(path: str) -> str:
    """The first part of a leaf's name: the network."""
    first, _, rest = path.partition("/")
    return f"{first}/*" if rest else first


def _leaf(values: Mapping[str, Tensor], path: str) -> Tensor:
    if path not in values:
        raise FixtureError(f"our networks have no leaf {path!r}")
    return values[path]
