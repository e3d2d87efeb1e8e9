"""An exported model that answers texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from harness.contracts import Execution, Fitted, OperatingPoint
from harness.core.errors import ConfigError, DataError, DeviceError
from harness.deploy.export_format import ENGINE, TOKENIZER, ExportFacts, read_facts
from harness.deploy.fit_folders import read_fits
from harness.encoder.backbone import Backbone, default_device, load_tokenizer
from harness.engines.choice import WHOLE, check_engine, execution_on, on_engine
from harness.measure.passes import Contender, timed_pass
from harness.running.run_settings import usual_compute
from harness.toolkit.fitted import FullDepth


@dataclass(frozen=True)
class Classified:
    """Answers to N texts, in their order.

    Attributes:
        labels: name of the most likely class of each.
        probabilities: float32 [N, C], of the classes in the order of :attr:`Classifier.label_names`.
        exit_layers: int16 [N], the layer whose head answered, 1 .. depth; 0 if a table answered before layer 1, or the
            model has no layers.
    """

    labels: list[str]
    probabilities: np.ndarray
    exit_layers: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class Classifier:
    """An exported model; call it with texts.

    Attributes:
        facts: of the export.
        label_names: of the classes, class 0 first.
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, facts: ExportFacts, backbone: Backbone, fitted: Fitted, execution: Execution) -> None:
        self.facts, self.label_names, self.device = facts, tuple(facts.label_names), backbone.device
        self._backbone = backbone
        self._contender = Contender(fitted, OperatingPoint(facts.cell.point, facts.params, execution))

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Classified:
        """Answer all texts, in batches as the cell was measured.

        Args:
            texts: at any number; they are ordered and batched together.
            pairs: the second text of each, for models of pairs.

        Raises:
            ConfigError: pairs are missing, or the model reads single texts.
            DataError: a text is missing or empty.
        """
        _check(texts, pairs, self.facts.paired)
        if not len(texts):
            return Classified([], np.zeros((0, len(self.label_names)), np.float32), np.zeros(0, np.int16))
        tokens = self._backbone.encode(texts, pairs, max_length=self.facts.max_length).to(self.device)
        found = timed_pass(self._contender, tokens).predictions
        probabilities = torch.from_numpy(found.logits).softmax(-1).numpy()
        labels = [self.label_names[number] for number in found.logits.argmax(1)]
        return Classified(labels, probabilities, (found.exit_layer + 1).astype(np.int16))

    def __repr__(self) -> str:
        cell = self.facts.cell
        return f"Classifier({cell.dataset} {cell.method} {cell.point}: {', '.join(self.label_names)}; {self.device})"


def load_classifier(folder: Path | str, *, device: str | None = None, batch_size: int | None = None) -> Classifier:
    """Load a model that ``geep-bench export`` wrote.

    On the kind of device that its cell was measured on, it answers as it did there. On another one, it runs in float32.

    Args:
        folder: of the export.
        device: ``"cpu"`` or ``"cuda"``; default: CUDA if there is a device.
        batch_size: samples per batch; default: as measured.

    Raises:
        ResultError: the folder is no export, or one of another version, or is damaged.
        DeviceError: there is no such device.
        MethodError: its engine does not run here.

    Example:
        >>> classify = load_classifier("my-model")  # doctest: +SKIP
        >>> classify(["Stocks fall as oil climbs."]).labels  # doctest: +SKIP
    """
    folder = Path(folder).expanduser()
    device = device or default_device()
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device '{device}': this machine has no usable CUDA device: use 'cpu'")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size}: give at least 1")
    facts = read_facts(folder)
    engine, execution = facts.engine, facts.execution
    if engine is not None:
        check_engine(engine, facts.cell.method, device, None)
    if device != facts.cell.device:
        compute = usual_compute(device, "float32", execution.protocol)
        execution = execution_on(engine, replace(execution, dtype="float32", compute=compute))
    if batch_size is not None:
        execution = replace(execution, batch_size=batch_size)
    backbone = Backbone(facts.backbone, facts.shape, {}, load_tokenizer(folder / TOKENIZER), device=device)
    fitted = read_fits(folder, facts, backbone)
    if engine is not None and engine in WHOLE:
        assert isinstance(fitted, FullDepth)
        files = {path.name: path.read_bytes() for path in sorted((folder / ENGINE).iterdir())}
        fitted = WHOLE[engine](fitted.model, fitted.training, files)
    elif engine is not None:
        fitted = on_engine(engine, fitted)
    return Classifier(facts, backbone, fitted, execution)


def _check(texts: Sequence[str], pairs: Sequence[str] | None, paired: bool) -> None:
    if isinstance(texts, str) or isinstance(pairs, str):
        raise ConfigError('give a list of texts: classify(["..."])')
    if paired != (pairs is not None):
        mend = "give both: classify(texts, pairs)" if paired else "give single texts: classify(texts)"
        raise ConfigError(f"this model reads {'pairs of texts' if paired else 'single texts'}: {mend}")
    if pairs is not None and len(pairs) != len(texts):
        raise ConfigError(f"{len(texts)} texts and {len(pairs)} second texts: give one for each")
    for column in (texts, pairs or ()):
        for number, text in enumerate(column):
            if not isinstance(text, str) or not text.strip():
                raise DataError(
                    f"text {number} (counted from 0) is {text!r:.40}: give a text with at least one character"
                )
