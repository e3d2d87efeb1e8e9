"""Compare methods for efficient BERT inference: accuracy, FLOPs and throughput from one pass over real data.

The Python API is six names: :func:`run`, :func:`open_run`, :func:`compare`, :func:`list_methods`, :class:`Run` and, for an
exported model, :func:`load_classifier`. They are loaded when they are first used. The harness knows no method by name; methods
register through :mod:`harness.registry`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import Run, compare, list_methods, open_run, run
    from harness.deploy.classifier import load_classifier

__version__ = "0.1.0"
__all__ = ["Run", "compare", "list_methods", "load_classifier", "open_run", "run"]


def __getattr__(name: str) -> Any:
    if name == "load_classifier":
        from harness.deploy.classifier import load_classifier

        return load_classifier
    if name in __all__:
        from harness import api

        return getattr(api, name)
    raise AttributeError(f"module 'harness' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
