"""Which class the name of a file or a folder says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from serl_fast.data.episodes import DatasetError

NEGATIONS = ("no", "not", "non", "un", "without", "never")


def class_of(path: Path, classes: Sequence[str]) -> int | None:
    """The class that a name says; None where it says none, several, or a folder's content says another.

    Raises:
        DatasetError: see :func:`class_in`.
    """
    named = class_in(path, classes)
    if named is None or path.is_file():
        return named
    return named if all(class_in(below, classes) in (None, named) for below in path.rglob("*")) else None


def class_in(path: Path, classes: Sequence[str]) -> int | None:
    """The one class with which a word of the last part of ``path`` begins; None where there is none, or several.

    Raises:
        DatasetError: the name says a class and a negation ("no_success"): which class that means is not guessed.
    """
    words = re.findall(r"[a-z0-9]+", path.name.lower())
    found = {word: [n for n, each in enumerate(classes) if word.startswith(each.lower())] for word in words}
    named = sorted({number for numbers in found.values() for number in numbers})
    negations = [word for word in words if word in NEGATIONS and not found[word]]
    if named and negations:
        raise DatasetError(
            f"{path}: of which class is it? Its name says {negations[0]!r} and {classes[named[0]]!r}, and what that "
            f"means is not guessed; rename it so that a word begins with one of {', '.join(classes)} and none is one "
            f"of {', '.join(NEGATIONS)}, or give it with the flag of its class"
        )
    return named[0] if len(named) == 1 else None
