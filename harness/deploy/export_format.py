"""The facts of an exported model, ``export.json``: what its files are, which code reads them, and how its samples run.

::

    DIR/export.json        these facts
    DIR/fits/NAME/         what a fitted method saved, and those that it borrows from: safetensors, tables, thresholds
    DIR/tokenizer/         files of the tokenizer
    DIR/engine/            the converted model of a whole-model engine
    DIR/onnx/graph.onnx    full depth in float32, of methods that always run at full depth
    DIR/measured.json      the result of the cell, as in its run folder
    DIR/README.md          the model card
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.contracts import EngineName, Execution, LearnsInStages, Method
from harness.core.digest import file_digest, files_below
from harness.core.errors import ResultError, first_line
from harness.core.files import content_key, write_json
from harness.core.names import FolderLabel, Label, StoredName
from harness.core.text_formats import read_json
from harness.encoder.shape import EncoderShape
from harness.results.schema import Cell, StrictRecord

FORMAT = 1  # raised with any change of meaning
FACTS, CARD, MEASURED = "export.json", "README.md", "measured.json"
FITS, TOKENIZER, ENGINE, ONNX = "fits", "tokenizer", "engine", "onnx"
_FREE = (FACTS, CARD)  # files whose content is not checked; the card may be edited


class ExportedFit(StrictRecord):
    """One fitted method of an export, in ``fits/NAME``.

    Attributes:
        method: the registered method whose ``load`` reads it.
        version: of that method's code (:func:`version_of`).
        teachers: the method's name of a teacher -> the fit that it borrows from.
    """

    method: StoredName
    version: str
    teachers: dict[str, StoredName]


class ExportFacts(StrictRecord):
    """What ``export.json`` holds.

    Attributes:
        format: number of this format.
        program: version of this project that wrote it.
        cell: what was exported.
        params: settings of its operating point, chosen on dev.
        engine: what it runs on instead of plain float; ``None``: as ``execution`` says.
        execution: how samples run.
        fit: name of the fit that answers.
        fits: by name: that one, and those that it borrows from.
        language: of the texts.
        label_names: of the classes, class 0 first.
        paired: samples are pairs of texts.
        max_length: tokens per sample, at most.
        backbone: its name.
        shape: of the backbone.
        refitted: the fit was not in the cache any more, so that it was made again for the export.
        files: name -> SHA-256, of all files but the card and these facts.
    """

    format: int
    program: str
    cell: Cell
    params: dict[str, Any]
    engine: EngineName | None
    execution: Execution
    fit: StoredName
    fits: dict[StoredName, ExportedFit]
    language: str
    label_names: list[Label]
    paired: bool
    max_length: int
    backbone: FolderLabel
    shape: EncoderShape
    refitted: bool
    files: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Content hash of the model: of its files and of how they are used."""
        return content_key(self.model_dump(mode="json"))


def version_of(method: Method) -> str:
    """Return the version of a method's code, that of its weights included."""
    return f"{method.version}.{method.weights_version if isinstance(method, LearnsInStages) else 1}"


def digests_below(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of all files of an export that must stay as they are, by their names below its folder."""
    names = {path.relative_to(folder).as_posix(): path for path in files_below(folder)}
    return {name: file_digest(path) for name, path in names.items() if name not in _FREE}


def write_facts(folder: Path, facts: ExportFacts) -> None:
    """Write ``export.json``."""
    write_json(folder / FACTS, facts.model_dump(mode="json"))


def read_facts(folder: Path) -> ExportFacts:
    """Read ``export.json`` and check the files beside it.

    Raises:
        ResultError: the folder is no export, or one of another version, or a file is missing or was changed.
    """
    path = folder / FACTS
    if not path.is_file():
        raise ResultError(f"{folder} is no exported model (it has no {FACTS}): make one with 'geep-bench export'")
    try:
        data = read_json(path)
        found = data.get("format") if isinstance(data, dict) else None
        if isinstance(found, int) and found != FORMAT:
            raise ResultError(
                f"{path} has export format {found}, this program reads {FORMAT}: export the cell again, or use geep-bench "
                f"{data.get('program')}, which wrote it"
            )
        facts = ExportFacts.model_validate(data)
    except (OSError, ValidationError, ValueError) as error:
        raise ResultError(f"{path} cannot be read ({first_line(error)}): export the cell again") from error
    for name, digest in facts.files.items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise ResultError(f"{folder / name} is missing or was changed: fetch the folder again, or export it again")
    return facts
