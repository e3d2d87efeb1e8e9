"""A run in one small file that holds what a comparison needs of every cell.

A packed run is JSON of about 1 KiB per cell of 1,000 samples, small enough to commit: per cell its coordinates, the
correctness of every test sample as bits, a hash of the test rows, exact costs, and the timed passes. An oracle's cell also
holds the answers of every exit, about 5 KiB for 12 layers. ``geep-bench pack RUN FILE`` writes one; :func:`load` reads one,
or packs a run folder in memory.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field, ValidationError

from harness.core.errors import ResultError
from harness.core.files import write_text
from harness.core.names import clean, clean_all
from harness.core.text_formats import read_json
from harness.results.rows.answer_bits import from_bits, to_bits
from harness.results.rows.sample_columns import BEFORE_BIT, DEPTH_COLUMNS
from harness.results.run_folder import RunFolder, failed_cell
from harness.results.schema import SCHEMA, Binding, Cell, Result
from harness.results.strict_record import StrictRecord

PACKED = 1  # version; raise it with any change of meaning
SKETCHED = 64  # samples whose confidence is kept
_SAME_CONFIDENCE = 1e-3  # the same fit on two machines differs by about 1e-6; two fits differ by 0.1 in some sample
_LEAST_SHARED = 8
_TIMES = {"reference", "speedup", "round_seconds", "reference_seconds", "together"}


class Machine(StrictRecord):
    """What must be equal for two times to be comparable. The device is a coordinate of the cell."""

    cpu: str | None = None
    cores: int | None = None
    torch_threads: int | None = None
    torch: str | None = None
    gpu: str | None = None

    @property
    def known(self) -> bool:
        return None not in (self.cpu, self.cores, self.torch)

    def __str__(self) -> str:
        processor = self.gpu or self.cpu or "unknown machine"
        return f"{processor}, {self.cores or '?'} cores, {self.torch_threads or '?'} threads, torch {self.torch or '?'}"


class PackedCell(StrictRecord):
    """One cell.

    ``bits``: base64 of the correctness of the ``n`` test samples, eight per byte, the first in the highest bit; None without
    per-sample rows. ``rows``: hash of index and label of the test rows in file order; ``tokens``: tokens of all of them.
    ``sketch`` and ``sketch_exits``: base64 of the confidence (float32) and exit layer (uint8) of up to 64 samples, evenly
    spaced, which distinguish fits (:func:`same_fit`). ``depths``: base64 of the columns
    :data:`harness.results.rows.sample_columns.DEPTH_COLUMNS` of cells that have them, one after the other: of every layer a bit per
    sample, eight per byte, and last, with ``depths_before``, what answers before layer 1. ``exits``: samples that answered from
    layer 1, 2, ...; ``answered_before``: before layer 1. ``together``: cells beside the same passes of the reference.
    ``machine`` and ``binding``: index into the lists of :class:`PackedRun`; results of older versions have no binding.
    """

    cell: Cell
    kind: Literal["method", "control", "bound"]
    synthetic: bool
    n: int = Field(ge=1)
    accuracy: float
    bits: str | None = None
    rows: str | None = None
    tokens: int | None = None
    sketch: str | None = None
    sketch_exits: str | None = None
    depths: str | None = None
    depths_before: bool = False
    flops_linear: float
    flops_full: float
    mean_layers: float
    mean_heads: float
    exits: list[int]
    answered_before: int = 0
    reference: str | None = None
    speedup: float | None = None
    round_seconds: list[float] = Field(default_factory=list)
    reference_seconds: list[float] = Field(default_factory=list)
    together: int = 1
    machine: int = Field(ge=0)
    binding: int | None = Field(default=None, ge=0)

    model_config = ConfigDict(ignored_types=(cached_property,))

    @property
    def timed(self) -> bool:
        """Whether it was timed; single passes are not stored in results of the first version."""
        return bool(self.round_seconds) or self.reference is not None

    @cached_property
    def correct(self) -> np.ndarray | None:
        """Correctness, bool [n] in file order; None if it was not kept.

        Raises:
            ValueError: the bits are damaged, or not n bits.
        """
        if self.bits is None:
            return None
        try:
            return from_bits(self.bits, self.n)
        except ValueError as error:
            raise ValueError(f"{self.cell.method} {self.cell.point}: {error}") from error

    @cached_property
    def sketched(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Confidences and exit layers of some samples, [up to 64] each; None if they were not kept.

        Raises:
            ValueError: they are damaged.
        """
        if self.sketch is None or self.sketch_exits is None:
            return None
        count = min(self.n, SKETCHED)
        confidences = np.frombuffer(self._decode(self.sketch, 4 * count), dtype="<f4")
        return confidences, np.frombuffer(self._decode(self.sketch_exits, count), dtype=np.uint8)

    @cached_property
    def depth_columns(self) -> dict[str, np.ndarray] | None:
        """The columns :data:`harness.results.rows.sample_columns.DEPTH_COLUMNS`, int64 [n] each; None if the cell has none.

        Raises:
            ValueError: they are damaged.
        """
        if self.depths is None:
            return None
        places, width = _bit_places(len(self.exits), self.depths_before), (self.n + 7) // 8
        raw = self._decode(self.depths, len(DEPTH_COLUMNS) * len(places) * width)
        packed = np.frombuffer(raw, dtype=np.uint8).reshape(len(DEPTH_COLUMNS), len(places), width)
        bits = np.unpackbits(packed, axis=-1, count=self.n).astype(np.int64)
        weights = np.left_shift(1, places)
        return dict(zip(DEPTH_COLUMNS, (bits * weights[:, None]).sum(1), strict=True))

    def _decode(self, text: str, size: int) -> bytes:
        try:
            raw = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError(f"{self.cell.method} {self.cell.point}: {error}") from error
        if len(raw) != size:
            raise ValueError(f"{self.cell.method} {self.cell.point}: {len(raw)} bytes do not fit {self.n} samples")
        return raw


class PackedRun(StrictRecord):
    """All cells of a run.

    Attributes:
        name: of the run folder.
        commits: of the code that measured, in order of appearance.
        failed: cells whose method raised and that were not measured afterwards.
        problems: parts of the run that could not be used, one sentence each.
        damaged: cells that the run had, but whose files are damaged or contradict each other, one sentence each.
        bindings: what cells share with others that they may be compared with.
    """

    packed: int = PACKED
    schema_: int = Field(default=SCHEMA, alias="schema")
    name: str
    commits: list[str]
    machines: list[Machine]
    cells: list[PackedCell]
    failed: list[Cell] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list)
    damaged: list[str] = Field(default_factory=list)
    bindings: list[Binding] = Field(default_factory=list)

    model_config = ConfigDict(populate_by_name=True)

    def binding(self, cell: PackedCell) -> Binding | None:
        return None if cell.binding is None else self.bindings[cell.binding]

    def machine(self, cell: PackedCell) -> Machine:
        return self.machines[cell.machine]


def machine_of(fingerprint: Mapping[str, Any]) -> Machine:
    """Return the machine of a result's fingerprint; unknown values are None."""
    gpu, versions = fingerprint.get("gpu"), fingerprint.get("versions")
    return Machine(
        cpu=fingerprint.get("cpu"),
        cores=fingerprint.get("cores"),
        torch_threads=fingerprint.get("torch_threads"),
        torch=versions.get("torch") if isinstance(versions, Mapping) else None,
        gpu=gpu.get("name") if isinstance(gpu, Mapping) else None,
    )


def same_fit(old: PackedCell, young: PackedCell) -> bool | None:
    """Return whether two cells have the same weights, by the confidences of samples that exit at the same layer in both.

    Fits that 64 samples do not distinguish count as the same, which can happen with saturated heads. None: too few samples.
    """
    if old.sketched is None or young.sketched is None or (old.n, old.rows) != (young.n, young.rows):
        return None
    shared = old.sketched[1] == young.sketched[1]
    if shared.sum() < _LEAST_SHARED:
        return None
    return bool(np.abs(old.sketched[0] - young.sketched[0])[shared].max() <= _SAME_CONFIDENCE)


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")


def _bit_places(layers: int, before: bool) -> np.ndarray:
    """Return which bits of a mask are stored, in this order."""
    return np.array([*range(layers), *([BEFORE_BIT] if before else [])], dtype=np.int64)


def _pack_depths(samples: pd.DataFrame, layers: int) -> dict[str, Any]:
    """Return the columns DEPTH_COLUMNS as :attr:`PackedCell.depths`."""
    masks = samples[[*DEPTH_COLUMNS]].to_numpy(dtype=np.int64).T[:, None]  # [2, 1, N]
    before = bool((masks >> BEFORE_BIT & 1).any())
    bits = (masks >> _bit_places(layers, before)[:, None]) & 1  # [2, layers, N]
    return {"depths": _base64(np.packbits(bits, axis=-1)), "depths_before": before}


def _pack_cell(result: Result, samples: pd.DataFrame | None, machine: int, binding: int | None) -> PackedCell:
    kept: dict[str, Any] = {}
    if samples is not None:
        rows = samples[["index", "label"]].to_numpy(dtype="<i8")
        some = samples.iloc[np.linspace(0, len(samples) - 1, min(len(samples), SKETCHED)).round().astype(int)]
        kept = {
            "bits": to_bits(samples["correct"].to_numpy(dtype=bool)),
            "sketch": _base64(some["confidence"].to_numpy(dtype="<f4")),
            "sketch_exits": _base64(some["exit_layer"].to_numpy(dtype=np.uint8)),
            "rows": hashlib.sha256(rows.tobytes("F")).hexdigest()[:16],  # column by column
            "tokens": int(samples["length"].sum()),
        }
        if all(name in samples for name in DEPTH_COLUMNS):
            kept |= _pack_depths(samples, len(result.exit_histogram))
    return PackedCell(
        cell=result.cell,
        kind=result.kind,
        synthetic=result.synthetic,
        n=result.quality.n,
        accuracy=result.quality.accuracy,
        exits=result.exit_histogram,
        answered_before=result.answered_before,
        machine=machine,
        binding=binding,
        **result.cost.model_dump(include={"flops_linear", "flops_full", "mean_layers", "mean_heads"}),
        **({} if result.speed is None else result.speed.model_dump(include=_TIMES)),
        **kept,
    )


def pack(path: Path | str) -> PackedRun:
    """Pack a run folder. Cells whose per-sample rows cannot be read have no bits, and are counted in ``problems``.

    Raises:
        ResultError: there is no run, it has no results, or results of another schema version.
    """
    run = RunFolder.open(path)
    results = run.results()
    if not results:
        raise ResultError(f"no results in {run.path}: measure some with 'geep-bench run --out {run.path}'")
    machines: list[Machine] = []
    bindings: list[Binding] = []
    cells = []
    for result in results:
        machine = machine_of(result.fingerprint)
        if machine not in machines:
            machines.append(machine)
        if result.binding is not None and result.binding not in bindings:
            bindings.append(result.binding)
        samples = None if result.cell in run.without_rows else run.samples(result.cell)
        binding = None if result.binding is None else bindings.index(result.binding)
        cells.append(_pack_cell(result, samples, machines.index(machine), binding))
    done = {result.cell for result in results}
    failed = [cell for record in run.failures() if (cell := failed_cell(record)) is not None and cell not in done]
    problems = []
    if unread := len(run.without_rows):
        problems.append(f"{unread} of {len(cells)} cells of {run.path.name} have no usable per-sample rows")
    damaged = [why for cell, why in run.without_rows.items() if run.has_rows(cell)]
    commits = [str(commit) for result in results if (commit := result.fingerprint.get("commit"))]
    return PackedRun(
        name=clean(run.path.resolve().name),
        commits=list(dict.fromkeys(commits)),
        machines=machines,
        cells=cells,
        failed=failed,
        problems=problems,
        damaged=[why.replace(f"{run.path}/", "") for why in (*run.lost(), *damaged)],
        bindings=bindings,
    )


def write(packed: PackedRun, path: Path) -> None:
    """Write a packed run, one line per cell, so that a diff shows the cells that changed.

    Raises:
        ResultError: the file cannot be written.
    """
    data = packed.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    cells = data.pop("cells")
    head = {"packed": packed.packed, "schema": packed.schema_, **data}
    lines = [f"{_json(name)}: {_json(value)}," for name, value in head.items()]
    text = "\n".join(["{", *lines, '"cells": [', ",\n".join(map(_json, cells)), "]}", ""])
    write_text(path, text)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)


def load(path: Path | str) -> PackedRun:
    """Load a packed run, or pack a run folder.

    Raises:
        ResultError: the path does not exist, is damaged, or belongs to another version.
    """
    path = Path(path)
    if path.is_dir():
        return pack(path)
    try:
        data = read_json(path)
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror}: give a run folder or a packed run") from error
    except ValueError as error:
        raise ResultError(f"{path} is not a packed run ({error}): write it again with 'geep-bench pack'") from error
    versions = {name: data.get(name) if isinstance(data, dict) else None for name in ("packed", "schema")}
    if versions["packed"] is None:
        raise ResultError(f"{path} is not a packed run: write one with 'geep-bench pack RUN {path}'")
    if versions != {"packed": PACKED, "schema": SCHEMA}:
        raise ResultError(
            f"{path} is a packed run of version {versions['packed']}, result schema {versions['schema']}; this program reads "
            f"{PACKED} and {SCHEMA}: write it again with 'geep-bench pack'"
        )
    try:
        packed = PackedRun.model_validate(data)  # refuses names that hold control characters; other texts are made safe
        if (safe := clean_all(data)) != data:
            packed = PackedRun.model_validate(safe)
        if not packed.cells:
            raise ValueError("it has no cells")
        for cell in packed.cells:
            _ = cell.correct, cell.sketched, cell.depth_columns, packed.machine(cell), packed.binding(cell)
            if cell.correct is not None and abs(cell.correct.mean() - cell.accuracy) * cell.n > 0.5:
                raise ValueError(f"accuracy and answers of {cell.cell.method} {cell.cell.point} contradict each other")
    except (ValueError, IndexError) as error:
        where = error.errors()[0] if isinstance(error, ValidationError) else None
        cause = f"{'.'.join(map(str, where['loc']))}: {where['msg']}" if where else str(error)
        raise ResultError(f"{path} is a damaged packed run ({cause}): write it again with 'geep-bench pack'") from error
    return packed
