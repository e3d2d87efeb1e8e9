"""Full depth of one random model on every engine, with the same samples in the same batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertModel

from harness.contracts import Compute, EngineName, Execution, Fitted, OperatingPoint
from harness.core import clock
from harness.core.tokens import TokenSet
from harness.encoder.checkpoint import to_hf
from harness.encoder.families.bert_family import BERT
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import KNOWN_SHAPES, EncoderShape
from harness.engines.choice import CALIBRATION, LINEAR, WHOLE, check_engine, execution_on, on_engine
from harness.engines.whole_model import Files, WholeModel
from harness.measure.passes import Contender, TimedPass, timed_pass
from harness.toolkit.fitted import FullDepth
from suites.workloads.random_model import random_samples

SHAPES = {"minilm": EncoderShape(6, 384, 12, 1536, 30522), "bert-base": KNOWN_SHAPES["bert-base-uncased"]}
WAYS: tuple[Compute, ...] = tuple(way for way in get_args(Compute) if "graphs" not in way)  # graphs need CUDA
OURS = tuple(f"ours {way}" for way in WAYS)
TRANSFORMERS = "transformers"
FLOAT32 = (*OURS, TRANSFORMERS, *(name for name in WHOLE if not name.endswith("int8")))
INT8 = (*LINEAR, *(name for name in WHOLE if name.endswith("int8")))
ENGINES = (*FLOAT32, *INT8)


@dataclass
class TransformersModel(WholeModel):
    """``transformers.BertModel`` with the weights of ``model``, over padded batches, and the head on its output."""

    executor = TRANSFORMERS
    modules = ()

    @classmethod
    def convert(cls, model: MultiExitModel, rows: TokenSet | None) -> Files:
        return {}

    def _start(self) -> None:
        encoder = self.model.encoder
        self._encoder = BertModel(BertConfig(**BERT.config(encoder.shape)), add_pooling_layer=False).eval()
        self._encoder.load_state_dict(to_hf(encoder.state_dict()))

    def _logits(self, ids: np.ndarray, segments: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        mask = torch.from_numpy((np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64))
        hidden = self._encoder(torch.from_numpy(ids), mask, torch.from_numpy(segments)).last_hidden_state
        logits: np.ndarray = self.model.teacher(hidden.flatten(0, 1), Layout(lengths, ids.shape[1], "cpu")).numpy()
        return logits


@dataclass
class EngineWorkload:
    """A random model of a shape, and samples of 8 to 128 tokens with a median of 49.

    Attributes:
        shape: of the encoder.
        samples: number of samples.
    """

    shape: EncoderShape
    samples: int
    seed: int = 0

    def __post_init__(self) -> None:
        self._fits: dict[str, Fitted] = {}
        self.seconds: dict[str, float] = {}  # that making an engine took

    @cached_property
    def tokens(self) -> TokenSet:
        return random_samples(self.samples, self.shape.vocab_size, np.random.default_rng(self.seed))

    @cached_property
    def fitted(self) -> FullDepth:
        torch.manual_seed(self.seed)
        model = MultiExitModel(Encoder(self.shape), 2, (), "linear").eval().requires_grad_(False)
        label = model.teacher.label
        assert isinstance(label, nn.Linear)
        with torch.no_grad():
            for layer in model.encoder.layers:  # with BERT's deviation of 0.02 all samples would be nearly alike
                for part in (layer.qkv, layer.up):
                    part.weight.mul_(3)
            label.weight.mul_(10)
        return FullDepth(model)

    def prepare(self, engine: str) -> None:
        """Make an engine.

        Raises:
            MethodError: it cannot be used here.
        """
        start = clock.now()
        self._fits[engine] = self._made(engine)
        self.seconds[engine] = clock.now() - start

    def _made(self, engine: str) -> Fitted:
        if engine in OURS:
            return self.fitted
        if engine == TRANSFORMERS:
            return TransformersModel.of(self.fitted)
        name: EngineName = engine  # type: ignore[assignment]  # one of the settings by construction
        check_engine(name, "bert", "cpu", FullDepth)
        train = random_samples(CALIBRATION, self.shape.vocab_size, np.random.default_rng(self.seed + 1))
        return on_engine(name, self.fitted, train)

    def run(self, engine: str, batch_size: int) -> TimedPass:
        """Run one pass over all samples, sorted by length, on an engine that was prepared."""
        execution = Execution(batch_size)
        if engine in OURS:
            execution = replace(execution, compute=WAYS[OURS.index(engine)])
        elif engine != TRANSFORMERS:
            name: EngineName = engine  # type: ignore[assignment]
            execution = execution_on(name, execution)
        return timed_pass(Contender(self._fits[engine], OperatingPoint("full", execution=execution)), self.tokens)


def interleaved(
    run: Callable[[str], float], names: Sequence[str], rounds: int, tell: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Return what ``run`` says of every name in every round; rounds alternate (A B C, C B A, ...), after one for warm-up."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            seconds = run(name)
            if number >= 0:
                found[name].append(seconds)
        tell()
    return found
