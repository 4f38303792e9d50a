"""raymat: readers' masks of lung nodules in CT to a dataset of 3D alpha mattes."""

from typing import TYPE_CHECKING

from raymat.version import __version__

__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from raymat.loading import load
else:
    # `raymat --version` need not wait for pyarrow.
    def __getattr__(name: str) -> object:
        if name != "load":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from raymat.loading import load

        return load

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
