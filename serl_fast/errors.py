"""Errors that more than one package raises."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtraError(ImportError):
    """An optional package is not installed; the message says which extra brings it."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module, or say in one line how to install it.

    Args:
        module: dotted name of the module, for example ``"tensorboard"``.
        extra: the extra of ``serl-fast`` that installs it, for example ``"logging"``.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: the module, or one that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{module} needs the package {error.name!r}, which is not installed: pip install 'serl-fast[{extra}]'"
        ) from error
