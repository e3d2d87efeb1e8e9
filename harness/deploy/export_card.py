"""The model card of an export: what it is, how to use it, and the measured figures with their machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.files import fill_template
from harness.deploy.export_format import ExportFacts
from harness.results.schema import Result


def model_card(
    facts: ExportFacts,
    result: Result,
    agreement: str,
    same: bool,
    size: int,
    graphs: Sequence[str],
    here: Mapping[str, Any],
) -> str:
    """Return the card as Markdown.

    Args:
        result: of the cell.
        agreement: with the stored answers, in words.
        same: whether all stored labels and exits are the same.
        size: bytes of the folder, without the card.
        graphs: names of its ONNX graphs.
        here: facts of the machine that exported it, see :func:`harness.core.environment.environment_facts`.
    """
    text = fill_template(
        __file__,
        "model_card.md.j2",
        {
            "facts": facts,
            "cell": facts.cell,
            "result": result,
            "agreement": agreement,
            "same": same,
            "size": size,
            "graphs": graphs,
            "machine": machine(result.fingerprint),
            "here": machine(here),
            "example": ("A text.", "Another text.") if facts.paired else ("A text.",),
        },
        count="{:,.0f}".format,
        percent=lambda share: f"{100 * share:.1f} %",
        short="{:.3g}".format,
    )
    return text + "\n"


def machine(facts: Mapping[str, Any]) -> str:
    """Return a machine in words, from the fingerprint of a result."""
    gpu, versions = facts.get("gpu"), facts.get("versions") or {}
    device = f"{gpu['name']}, " if gpu else ""
    return f"{device}{facts.get('cpu', 'unknown CPU')}, {facts.get('torch_threads')} threads, torch {versions.get('torch')}"
