"""One recording: its arrays, what was compared with them, and what was not.

Every array is either an input (:meth:`Fixture.given`) or compared (:meth:`Fixture.compare`); what is neither is an
error.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROUNDING = 1e-6
"""A recorded gradient is known to this part of its leaf's largest entry: a float32 sum (see ``parameters.Slack``)."""

MEAN_ROUNDING = 3e-6
"""float32 gives a mean to this part of its largest term. Where that is more than the tolerance allows of the mean
itself (terms of both signs cancel), a mean that fails relative to itself is compared relative to its largest term."""


class FixtureError(Exception):
    """A recording that can not be run, and why."""


@dataclass(frozen=True)
class Tolerance:
    """How far ours may be from the recording: ``limit`` times the scale, or ``limit`` itself."""

    limit: float
    unit: str  # "of scale", "of leaf norm", "absolute" or "exact"


TOLERANCES = {
    "loss": Tolerance(1e-5, "of scale"),
    "value": Tolerance(1e-5, "of scale"),
    "log_prob": Tolerance(1e-5, "of scale"),
    "feature": Tolerance(1e-5, "of scale"),
    "gradient": Tolerance(1e-4, "of scale"),
    "parameter": Tolerance(1e-6, "absolute"),
    "gradient norm": Tolerance(1e-4, "of leaf norm"),
    "parameter norm": Tolerance(1e-6, "of leaf norm"),
    "exact": Tolerance(0.0, "exact"),
}
"""By kind of quantity. The scale is the largest recorded magnitude, unless a comparison states another."""


@dataclass(frozen=True)
class Comparison:
    """The error of one array, as shown in the table."""

    name: str
    group: str
    error: float
    tolerance: Tolerance
    scale: str = ""
    excused: int = 0

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= self.tolerance.limit


@dataclass
class Fixture:
    """The arrays of one folder by name, and the account of what was done with them.

    Args:
        path: the folder.
        meta: ``meta.json``.
        arrays: as described there; float16 on disk holds exact float32 values.
    """

    path: Path
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    comparisons: list[Comparison] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    inputs: set[str] = field(default_factory=set)
    compared: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> Fixture:
        """Read a folder and check the arrays against their description.

        Raises:
            FixtureError: a file is missing or broken, or an array is not what ``meta.json`` says.
        """
        try:
            meta = json.loads((path / "meta.json").read_text())
            with np.load(path / "arrays.npz", allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            arrays = {name: a.astype(np.float32) if a.dtype == np.float16 else a for name, a in arrays.items()}
        except Exception as error:
            raise FixtureError(f"{path.name} can not be read: {type(error).__name__}: {error}") from error
        for name, (shape, dtype, *_) in meta.get("arrays", {}).items():
            if name not in arrays:
                raise FixtureError(f"meta.json lists the array {name!r}, arrays.npz does not hold it")
            if list(arrays[name].shape) != shape:
                raise FixtureError(f"array {name!r} has shape {list(arrays[name].shape)}; meta.json says {shape}")
            arrays[name] = arrays[name].astype(dtype)
        return cls(path, meta, arrays)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the recording."""
        config: dict[str, Any] = self.meta.get("config", {})
        return config

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def below(self, prefix: str) -> list[str]:
        """The names of the arrays below ``prefix/``, without it."""
        return [name.removeprefix(prefix + "/") for name in self.arrays if name.startswith(prefix + "/")]

    def given(self, name: str) -> Tensor:
        """An input: parameters, a batch, noise, images."""
        assert name not in self.compared, f"{name} was compared; it is no input"
        self.inputs.add(name)
        return torch.from_numpy(self.recorded(name).copy())

    def recorded(self, name: str) -> np.ndarray:
        """The recorded values, without an account of their use."""
        if name not in self.arrays:
            raise FixtureError(f"the array {name!r} is needed and is not there")
        return self.arrays[name]

    def compare(
        self,
        name: str,
        ours: Tensor | np.ndarray | float,
        kind: str,
        *,
        group: str | None = None,
        scale: tuple[float, str] | None = None,
        terms: Tensor | float | None = None,
        slack: np.ndarray | float = 0.0,
        corrected: np.ndarray | None = None,
    ) -> None:
        """Note the largest error of ``ours`` against the array ``name``.

        Args:
            name: of the array.
            ours: values of the same shape.
            kind: key of :data:`TOLERANCES`.
            group: row of the table; by default the name, numbered steps together.
            scale: another scale than the largest recorded magnitude, and what it is.
            terms: what the recorded number is a mean of, or the largest magnitude of that, see :data:`MEAN_ROUNDING`.
            slack: what each entry may differ by beyond the tolerance, with its reason at the caller.
            corrected: what is right, where the recording is known to be wrong (see :meth:`known_fault`).
        """
        assert name not in self.inputs, f"{name} was given as an input; comparing it shows nothing"
        self.compared.add(name)
        expected = self.recorded(name) if corrected is None else corrected
        comparison = self._compared(name, expected, ours, kind, group, scale, slack)
        if terms is not None and not comparison.ok:
            largest = float(terms.detach().abs().max()) if isinstance(terms, Tensor) else terms
            if MEAN_ROUNDING * largest > TOLERANCES[kind].limit * _largest(expected):
                scale = largest, "of largest term"
                comparison = self._compared(name, expected, ours, kind, group, scale, slack)
        self.comparisons.append(comparison)

    def compare_statistics(
        self,
        name: str,
        ours: np.ndarray,
        kind: str,
        *,
        terms: np.ndarray | float = 0.0,
        slack: np.ndarray | float = 0.0,
    ) -> None:
        """Note the largest error of rows [l2, sum, checksum], each relative to the recorded l2 of its leaf.

        A leaf recorded as zero must be zero.

        Args:
            name: of the array [..., leaves, 3].
            ours: of the same shape.
            kind: key of :data:`TOLERANCES`.
            terms: [leaves], the largest term of leaves with one entry that is a mean; 0 for the others.
            slack: [..., leaves], what a row may differ by beyond the tolerance.
        """
        recorded, limit = self.recorded(name), TOLERANCES[kind].limit
        self._check_shape(name, ours, recorded)
        self.compared.add(name)
        differences = absolute_errors(ours, recorded).max(-1)  # [..., leaves]
        norms = recorded[..., 0]
        beyond = np.maximum(differences - slack, 0.0)
        cancels = (norms > 0) & (beyond > limit * norms) & (MEAN_ROUNDING * terms > limit * norms)
        scales = np.where(cancels, terms, norms)
        with np.errstate(invalid="ignore", divide="ignore"):
            errors = np.where(beyond > 0, beyond / scales, 0.0)
        excused = int(np.count_nonzero((differences > limit * scales) & (errors <= limit)))
        label = "of largest term" if np.any(cancels) else ""
        self.comparisons.append(Comparison(name, name, float(errors.max()), TOLERANCES[kind], label, excused))

    def compare_setting(self, name: str, ours: Any, recorded: Any) -> None:
        """Note whether a recorded value of ``meta.json`` that is a result equals ours."""
        same = ours == recorded
        self.comparisons.append(
            Comparison(f"config.{name}", f"config.{name}", 0.0 if same else math.inf, TOLERANCES["exact"])
        )

    def known_fault(self, text: str) -> None:
        """Count a place where the original is known to be wrong and ours was compared with the right value."""
        self.faults.append(text)

    def leftover(self) -> list[str]:
        """The arrays that were neither an input nor compared."""
        return sorted(self.arrays.keys() - self.inputs - self.compared)

    def _check_shape(self, name: str, ours: np.ndarray, recorded: np.ndarray) -> None:
        if ours.shape != recorded.shape:
            raise FixtureError(f"{name}: ours has shape {list(ours.shape)}, recorded is {list(recorded.shape)}")

    def _compared(
        self,
        name: str,
        recorded: np.ndarray,
        ours: Any,
        kind: str,
        group: str | None,
        scale: tuple[float, str] | None,
        slack: np.ndarray | float,
    ) -> Comparison:
        tolerance = TOLERANCES[kind]
        if isinstance(ours, Tensor):
            ours = ours.detach().cpu().numpy()
        ours = np.asarray(ours)
        self._check_shape(name, ours, recorded)
        differences = absolute_errors(ours, recorded)
        errors = np.maximum(differences - slack, 0.0)
        error = float(errors.max(initial=0.0))
        if tolerance.unit == "of scale" and error > 0:
            error = error / unit if (unit := scale[0] if scale else _largest(recorded)) > 0 else math.inf
        excused = int(np.count_nonzero((differences > tolerance.limit) & (errors <= tolerance.limit)))
        return Comparison(
            name,
            group or re.sub(r"(^|/)(step|after|after_step)\d+(?=/)", r"\1\2*", name),
            error,
            tolerance,
            scale[1] if scale else "",
            excused if np.any(slack) else 0,
        )


def absolute_errors(ours: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """|ours - recorded| in float64; values that are not finite must agree in kind, else the error is infinite."""
    if recorded.dtype == bool or ours.dtype == bool:
        return (ours.astype(np.int64) != recorded.astype(np.int64)).astype(np.float64)
    a, b = ours.astype(np.float64), recorded.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        return np.where(finite, np.abs(a - b), np.where(same, 0.0, math.inf))


def statistics(values: Tensor | np.ndarray) -> np.ndarray:
    """[l2, sum, checksum] in float64; checksum = sum_i x_i sin(i + 1) over the values in C order."""
    flat = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64).ravel()
    weights = np.sin(np.arange(1, flat.size + 1, dtype=np.float64))
    return np.array([np.sqrt(np.square(flat).sum()), flat.sum(), (flat * weights).sum()])


def _largest(values: np.ndarray) -> float:
    magnitudes = np.abs(values[np.isfinite(values)].astype(np.float64))
    return float(magnitudes.max(initial=0.0))
