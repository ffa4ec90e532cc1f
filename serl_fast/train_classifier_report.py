"""What train_classifier says of a classifier: figures, pictures, and the frames that it gets most wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serl_fast.data.labelled import Frame
from serl_fast.errors import MissingExtraError, require
from serl_fast.files import written_whole
from serl_fast.rewards.scores import (
    CONFIDENCE,
    accuracy,
    choose_threshold,
    confusion,
    precision,
    recall,
    roc_area,
    roc_curve,
    trials_for,
)

Array = npt.NDArray[Any]
SHOWN = 24
USEFUL_RECALL, USEFUL_AREA = 0.5, 0.9
_RIGHT, _WRONG = "#4a7c59", "#d1495b"


@dataclass(frozen=True)
class Judged:
    """Held-out frames, and what a classifier says of them.

    Attributes:
        frames: N of them.
        names: of the classes.
        probabilities: float32 [N, classes].
        positive: number of the class that means success; None: no class does.
    """

    frames: Sequence[Frame]
    names: Sequence[str]
    probabilities: Array
    positive: int | None

    @property
    def labels(self) -> Array:
        """What is true, int64 [N]."""
        return np.array([frame.label for frame in self.frames])

    def predicted(self, threshold: float | None) -> Array:
        """What is said, int64 [N]: of two classes success from the threshold on, of several the likeliest."""
        if threshold is None or len(self.names) > 2 or self.positive is None:
            return np.asarray(self.probabilities.argmax(-1))
        passed = self.probabilities[:, self.positive].astype(np.float64) >= threshold
        return np.where(passed, self.positive, 1 - self.positive)


def report_of(judged: Judged, false_positive_rate: float) -> dict[str, Any]:
    """All figures, as JSON takes them; a figure that the held-out frames do not give is None.

    Args:
        judged: the held-out frames.
        false_positive_rate: that the threshold is chosen for.
    """
    threshold: dict[str, Any] | None = None
    if judged.positive is not None:
        positive = judged.labels == judged.positive
        probabilities = judged.probabilities[:, judged.positive].astype(np.float64)  # as at run time
        chosen = choose_threshold(positive, probabilities, false_positive_rate)
        threshold = {
            **asdict(chosen),
            "wanted_false_positive_rate": false_positive_rate,
            "false_positive_rate": chosen.false_positive_rate,
            "recall": chosen.recall,
            "negative_episodes": _episodes(judged, ~positive),
            "false_positive_episodes": _episodes(judged, ~positive & (probabilities >= chosen.value)),
            "roc_area": roc_area(positive, probabilities),
            "negatives_needed": trials_for(false_positive_rate),
        }
    predicted = judged.predicted(threshold["value"] if threshold else None)
    counts = confusion(judged.labels, predicted, len(judged.names))
    of_class = {
        name: {"precision": p, "recall": r, "frames": n}
        for name, p, r, n in zip(judged.names, precision(counts), recall(counts), counts.sum(1), strict=True)
    }
    report = {
        "accuracy": accuracy(counts),
        "classes": of_class,
        "confusion": counts,
        "threshold": threshold,
    }
    plain: dict[str, Any] = _plain(report)
    return plain


def _episodes(judged: Judged, rows: Array) -> int:
    """How many episodes the frames of ``rows``, bool [N], are of."""
    return len({frame.group for frame, wanted in zip(judged.frames, rows, strict=True) if wanted})


def _plain(value: Any) -> Any:
    """Numbers and containers of JSON; NaN is None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def write_report(folder: Path, report: dict[str, Any]) -> Path:
    """Write ``report.json``, whole or not at all."""
    path = folder / "report.json"
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return path


def print_report(report: dict[str, Any]) -> None:
    """Say the figures."""
    print(f"\nheld-out frames: accuracy {report['accuracy']:.1%}")
    width = max(map(len, report["classes"]))
    print(f"  {'':{width}}  precision  recall  frames")
    for name, row in report["classes"].items():
        print(f"  {name:{width}}  {_percent(row['precision']):>9}  {_percent(row['recall']):>6}  {row['frames']:>6}")
    if report["threshold"] is not None:
        print(threshold_text(report["threshold"]))


def threshold_text(threshold: dict[str, Any]) -> str:
    """What the threshold does, and how far that can be believed."""
    passed, negatives = threshold["false_positives"], threshold["negatives"]
    area, found = threshold["roc_area"], threshold["recall"]
    text = [
        "ROC area -" if area is None else f"ROC area {area:.4f}",
        f"threshold {digits_of(threshold['value'])}: {passed} of {negatives} held-out failures pass for success "
        f"({_percent(threshold['false_positive_rate'])}; with {CONFIDENCE:.0%} confidence at most "
        f"{_percent(threshold['bound'])}), {_percent(threshold['recall'])} of successes are recognised",
        f"episodes with a failure that passes: {threshold['false_positive_episodes']} of "
        f"{threshold['negative_episodes']}",
    ]
    wanted = threshold["wanted_false_positive_rate"]
    if threshold["false_positive_rate"] > wanted:
        text.append(f"note: no threshold keeps the rate of {wanted:.3g}; see most_wrong.png, and record more failures")
    elif threshold["bound"] > wanted:
        text.append(
            f"note: to show with {CONFIDENCE:.0%} confidence that the rate is at most {wanted:.3g} takes at least "
            f"{threshold['negatives_needed']} held-out failures, none of which passes"
        )
    if (found is not None and found < USEFUL_RECALL) or (area is not None and area < USEFUL_AREA):
        text.append(
            f"WARNING: this classifier is of no use yet: it recognises {_percent(found)} of the held-out successes "
            f"(wanted: {USEFUL_RECALL:.0%}), and its ROC area is {'-' if area is None else f'{area:.4f}'} (wanted: "
            f"{USEFUL_AREA}; 0.5 is guessing). Look at most_wrong.png for wrong labels, check that the cameras "
            "see the difference, and record more of both"
        )
    return "\n".join(text)


def digits_of(probability: float) -> str:
    """A probability with three digits, or so many that it is told from 0 and 1: 0.788, 0.99999997."""
    distance = min(probability, 1 - probability)
    return f"{probability:.{max(3, -math.floor(math.log10(distance)))}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def draw_report(folder: Path, judged: Judged, report: dict[str, Any]) -> list[Path]:
    """Draw ``confusion.png``, ``roc.png`` (where a class means success) and ``most_wrong.png``.

    Returns:
        What was drawn; nothing where Matplotlib is not installed, which is said in one line.
    """
    try:
        figure = require("matplotlib.figure", "logging").Figure
    except MissingExtraError as error:
        print(error)
        return []
    drawn = [_draw_confusion(folder / "confusion.png", judged.names, np.array(report["confusion"]), figure)]
    threshold = report["threshold"]
    if threshold is not None and threshold["roc_area"] is not None:
        drawn.append(_draw_roc(folder / "roc.png", judged, threshold, figure))
    else:
        (folder / "roc.png").unlink(missing_ok=True)
    drawn.append(_draw_most_wrong(folder / "most_wrong.png", judged, threshold and threshold["value"], figure))
    return drawn


def _draw_confusion(path: Path, names: Sequence[str], counts: Array, figure: Any) -> Path:
    size = 2.4 + 0.9 * len(names)
    picture = figure(figsize=(size + 0.6, size), dpi=150, layout="constrained")
    axes = picture.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        text = f"{counts[row, column]}\n{shares[row, column]:.1%}"
        axes.text(column, row, text, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 2 else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    axes.set_title("held-out frames")
    picture.savefig(path)
    return path


def _draw_roc(path: Path, judged: Judged, threshold: dict[str, Any], figure: Any) -> Path:
    positive = judged.labels == judged.positive
    false, true = roc_curve(positive, judged.probabilities[:, judged.positive])
    picture = figure(figsize=(5, 5), dpi=150, layout="constrained")
    axes = picture.subplots()
    axes.plot(100 * false, 100 * true, color="#1f77b4", label=f"area {threshold['roc_area']:.4f}")
    point = 100 * threshold["false_positive_rate"], 100 * threshold["recall"]
    axes.plot(*point, "o", color=_WRONG, label=f"threshold {digits_of(threshold['value'])}")
    axes.plot([0, 100], [0, 100], ":", color="#9a9a9a", linewidth=1)
    axes.set_xlabel("failures that pass for success (%)")
    axes.set_ylabel("successes that are recognised (%)")
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(path)
    return path


def _draw_most_wrong(path: Path, judged: Judged, threshold: float | None, figure: Any) -> Path:
    """A contact sheet of the frames whose own class got the lowest probability, those in error framed in red."""
    labels, wrong = judged.labels, judged.predicted(threshold) != judged.labels
    own = judged.probabilities[np.arange(len(labels)), labels]
    worst = np.lexsort((own, ~wrong))[:SHOWN]  # errors first
    columns = min(6, len(worst))
    rows = math.ceil(len(worst) / columns)
    cameras = len(judged.frames[0].images)
    picture = figure(figsize=(1.9 * columns * max(1.0, 0.7 * cameras), 2.5 * rows + 0.5), dpi=120, layout="constrained")
    sheet = picture.subplots(rows, columns, squeeze=False).ravel()
    for axes in sheet:
        axes.set_axis_off()
    for axes, index in zip(sheet, worst, strict=False):
        frame = judged.frames[index]
        axes.set_axis_on()
        axes.set_xticks([])
        axes.set_yticks([])
        axes.imshow(np.concatenate(list(frame.images.values()), axis=1))
        for spine in axes.spines.values():
            spine.set(edgecolor=_WRONG if wrong[index] else _RIGHT, linewidth=3)
        axes.set_title(f"{_shortened(frame.name)}\nis {judged.names[frame.label]}: {own[index]:.3f}", fontsize=7)
    shown = f" (here {SHOWN})" if wrong.sum() > SHOWN else ""
    picture.suptitle(
        f"{wrong.sum()} of {len(labels)} held-out frames are wrong{shown}, in red;\n"
        "each with what it is, and how likely that is said to be"
    )
    picture.savefig(path)
    return path


def _shortened(name: str, length: int = 26) -> str:
    """A name without its middle, in lines."""
    file, comma, step = name.partition(", ")
    file = file if len(file) <= length else f"{file[: length // 2]}…{file[1 - length // 2 :]}"
    return f"{file}\n{step}" if comma else file
