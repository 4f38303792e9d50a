"""What goes wrong through no fault of raymat: input that cannot be used, packages that are not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

# Packages that are not called as their module is.
PACKAGES = {"markdown_it": "markdown-it-py", "sklearn": "scikit-learn"}


class InputError(ValueError):
    """Input that cannot be used as it is; the message names the file or nodule, what is wrong and what to do."""


class NoduleExcluded(Exception):
    """The nodule is sound but the rules leave it out (too few readers, say); the message is the reason."""


class MissingPackage(ImportError):
    """A package that is needed is not installed; the message names it and says how to install it."""


@contextlib.contextmanager
def missing_packages_named() -> Iterator[None]:
    """With MissingPackage raised where a module of another package is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", "raymat"):
            raise
        package = PACKAGES.get(module, module)
        raise MissingPackage(
            f"the package {package} is needed and not installed: `pip install raymat` installs all that is missing",
            name=error.name,
        ) from error
