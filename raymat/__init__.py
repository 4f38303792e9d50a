"""raymat: readers' masks of lung nodules in CT to a dataset of 3D alpha mattes."""

from typing import TYPE_CHECKING

from raymat.version import __version__

__all__ = ["__version__", "load", "measure"]

if TYPE_CHECKING:
    from raymat.loading import load
    from raymat.measures.nodule import measure
else:
    # `raymat --version` need not wait for pyarrow.
    def __getattr__(name: str) -> object:
        if name == "load":
            from raymat.loading import load as found
        elif name == "measure":
            from raymat.errors import missing_packages_named

            with missing_packages_named():
                from raymat.measures.nodule import measure as found
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
