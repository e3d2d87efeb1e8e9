"""``geep-bench export``: a measured cell as a folder that :func:`harness.load_classifier` loads, on any machine."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness import __version__
from harness.core.environment import environment_facts
from harness.core.errors import MethodError, ResultError, WriteError
from harness.core.files import write_folder, write_json, write_text
from harness.deploy.cell_choice import ChosenCell, choose_cell
from harness.deploy.cell_session import fit_again, open_cell, point_of_cell, settings_of_cell
from harness.deploy.classifier import Classifier, load_classifier
from harness.deploy.export_card import model_card
from harness.deploy.export_format import (
    CARD,
    ENGINE,
    FORMAT,
    MEASURED,
    ONNX,
    TOKENIZER,
    ExportFacts,
    digests_below,
    write_facts,
)
from harness.deploy.fit_folders import write_fits
from harness.engines.choice import WHOLE
from harness.results.run_folder import RunFolder
from harness.running.profile import Override
from harness.running.session import Session
from harness.toolkit.fitted import FullDepth


@dataclass(frozen=True)
class StoredAgreement:
    """How the answers of an exported model compare with the stored ones of its cell, over N test rows.

    Attributes:
        rows: N.
        labels: rows with the same label.
        exits: rows with the same exit layer.
        largest: largest difference in the probability of the predicted class.
    """

    rows: int
    labels: int
    exits: int
    largest: float

    @property
    def same(self) -> bool:
        """Whether all labels and exits are the same."""
        return self.rows == self.labels == self.exits

    def __str__(self) -> str:
        if self.same:
            return f"all {self.rows:,} labels and exits; probabilities differ by at most {self.largest:.2g}"
        return (
            f"{self.labels:,} of {self.rows:,} labels and {self.exits:,} exits; probabilities differ by at most "
            f"{self.largest:.2g}"
        )


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: with the model.
        facts: its ``export.json``.
        agreement: with the stored answers.
        onnx: why there is no ONNX graph although the method always runs at full depth; empty otherwise.
    """

    folder: Path
    facts: ExportFacts
    agreement: StoredAgreement
    onnx: str


def export(
    run: Path | str,
    cell: str,
    out: Path | str,
    *,
    data: Path | None = None,
    backbones: Mapping[str, str] | None = None,
    overrides: Iterable[Override] = (),
) -> Export:
    """Write a measured cell as a model, and compare its answers with the stored ones.

    Args:
        run: the run folder.
        cell: ID of the cell, see :func:`harness.deploy.cell_choice.choose_cell`.
        out: folder to write, which must not exist.
        data, backbones, overrides: as for the run; results hold no paths, so folders must be given again.

    Raises:
        GeepBenchError: the cell does not exist or cannot be exported, or its data, backbone or fit cannot be used.
        WriteError: the folder exists, or cannot be written.
    """
    folder = Path(out).expanduser()
    stored = RunFolder.open(run)
    chosen = choose_cell(stored, cell)
    if folder.exists():
        raise WriteError(f"{folder} exists already: choose another --out, or delete it")
    settings = settings_of_cell(stored, chosen.result, data=data, backbones=backbones, overrides=overrides)
    session = open_cell(settings, chosen.result)
    refitted = fit_again(session, chosen.result.cell.method)
    found: list[Export] = []

    def fill(place: Path) -> None:
        found.append(_write(session, chosen, place, refitted))

    if not write_folder(folder, fill, "choose another folder with --out", replace=False):
        raise WriteError(f"{folder} was written by another program in the meantime: choose another --out")
    return Export(folder, found[0].facts, found[0].agreement, found[0].onnx)


def _write(session: Session, chosen: ChosenCell, place: Path, refitted: bool) -> Export:
    cell, prepared = chosen.result.cell, session.prepared
    point = point_of_cell(session, chosen.result)
    fits = write_fits(session, cell.method, place)
    session.backbone.tokenizer.save_pretrained(place / TOKENIZER)
    engine = session.settings.profile.engine(cell.method)
    if engine in WHOLE:
        (place / ENGINE).mkdir()
        session.fitted(cell.method).save(place / ENGINE)
    no_graph = _write_graph(session, cell.method, place) if engine != "onnx" else ""
    write_json(place / MEASURED, chosen.result.model_dump(mode="json", by_alias=True))
    facts = ExportFacts(
        format=FORMAT,
        program=__version__,
        cell=cell,
        params=dict(point.params),
        engine=engine,
        execution=point.execution,
        fit=session.settings.profile.fit_of(cell.method),
        fits=fits,
        language=prepared.task.language,
        label_names=prepared.label_names,
        paired=session.raw.test.pairs is not None,
        max_length=session.settings.profile.max_length,
        backbone=session.backbone.name,
        shape=session.backbone.shape,
        refitted=refitted,
        files=digests_below(place),
    )
    write_facts(place, facts)
    agreement = compare_answers(load_classifier(place, device=cell.device), session, chosen)
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    graphs = sorted(path.relative_to(place).as_posix() for path in place.rglob("*.onnx"))
    card = model_card(facts, chosen.result, str(agreement), agreement.same, size, graphs, environment_facts())
    write_text(place / CARD, card)
    return Export(place, facts, agreement, no_graph)


def _write_graph(session: Session, method: str, place: Path) -> str:
    """Write the ONNX graph of a method that always runs at full depth; return why there is none."""
    fit = session.fit(method)
    if not isinstance(fit, FullDepth):
        return ""
    try:
        WHOLE["onnx"].check()
        graph = WHOLE["onnx"].of(fit)
    except MethodError as error:
        return str(error)
    (place / ONNX).mkdir()
    graph.save(place / ONNX)
    return ""


def compare_answers(classify: Classifier, session: Session, chosen: ChosenCell) -> StoredAgreement:
    """Answer the test texts of a cell, and compare with its stored rows.

    Raises:
        ResultError: the cell has other rows.
    """
    test, rows = session.raw.test, chosen.rows
    if len(rows) != len(test):
        raise ResultError(
            f"cell {chosen.name} has {len(rows)} stored rows, and the test split {len(test)}: measure it again"
        )
    print(f"comparing with the stored answers to {len(test):,} test rows", file=sys.stderr, flush=True)
    found = classify(test.texts, test.pairs)
    return StoredAgreement(
        rows=len(rows),
        labels=int((found.probabilities.argmax(1) == rows["prediction"].to_numpy()).sum()),
        exits=int((found.exit_layers == rows["exit_layer"].to_numpy()).sum()),
        largest=float(np.abs(found.probabilities.max(1) - rows["confidence"].to_numpy()).max()),
    )
