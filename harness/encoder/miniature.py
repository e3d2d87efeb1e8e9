"""The embedded miniature: a BERT of 6 layers x 64, pretrained in under a minute on the embedded language.

Two objectives, as in BERT (arXiv 1810.04805, section 3.1), both on texts whose last words restate their meaning
(:mod:`harness.data.embedded`): predict masked words, mainly the restatements, and predict the text's verdict from [CLS]. The
encoder thus learns to compose: negate, contrast, and follow references, layer after layer.

Three techniques make it fast; none is part of BERT:

* **Wired start** (:func:`wire`): heads of layer 1 start by attending one or two tokens back and ahead; heads of the other
  layers start by attending to similar tokens and copying them. All weights are trained from there.
* Hidden matrices are trained with Muon (Jordan et al. 2024: momentum, then orthogonalised steps), all others with AdamW.
* A batch holds texts of one length, so there is no padding.

Both languages share the weights, because concept ``i`` has the same id in both vocabularies.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from harness.core.tokens import TokenSet
from harness.data.embedded import grammar, lexicon, twins
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder, EncoderLayer
from harness.encoder.shape import EncoderShape

LANGUAGES = ("en", "zh")
SHAPE = EncoderShape(
    layers=6,
    width=64,
    heads=4,
    intermediate=256,
    vocab_size=len(lexicon.vocabulary("en")),
    max_positions=128,
    dropout=0.0,
)
STEPS, BATCH, POOL = 1000, 48, 40  # POOL batches are drawn at a time and then shuffled
LEARNING_RATE, MUON_RATE, WARMUP = 1e-3, 0.004, 0.06
# Word embeddings learn fast at first and slowly later, so that layers can build on stable meanings.
WORD_RATE, WORD_FLOOR, WORD_HALT = 1.5e-2, 0.1, 120
RESTATED_WEIGHT = 0.5  # of the loss on restated facts; the loss at [CLS] has weight 1
# The first texts state simple facts and restate all of them; later ones have longer references and a verdict.
FIRST_LESSONS = 0.4  # share of the steps
CLS, SEP, MASK = (lexicon.SPECIALS.index(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
_FIRST = len(lexicon.SPECIALS)
_LAST = _FIRST + len(lexicon.LEXICON["en"])
_VERDICTS = (*lexicon.STAR_VERDICTS, *lexicon.TOPIC_VERDICTS, *lexicon.PAIR_VERDICTS)
_ABSENT = -100


def recipe_key() -> str:
    """Return a hash of everything that determines the weights: this file and the embedded language."""
    digest = hashlib.sha256()
    for module_file in (__file__, lexicon.__file__, grammar.__file__, twins.__file__):
        digest.update(Path(module_file).read_bytes())
    return digest.hexdigest()[:12]


def tokenizer(language: str) -> Any:
    """Return a BERT tokenizer over the embedded vocabulary of ``language`` (``"en"`` or ``"zh"``)."""
    from transformers import BertTokenizer

    vocabulary = {word: i for i, word in enumerate(lexicon.vocabulary(language))}
    return BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=SHAPE.max_positions)


def wire(encoder: Encoder, generator: torch.Generator) -> None:
    """Set the initial weights.

    Positions are waves of eight frequencies in the first 16 dimensions, so "d tokens away" is a rotation. Layer 1 has it as
    query matrix, with d = -1, +1, -2, +2 for its four heads. In the other layers queries and keys share one matrix, so similar
    tokens attend to each other. Values and outputs are an orthogonal matrix and its transpose, which copies.
    """
    width, heads = encoder.shape.width, encoder.shape.heads
    size, waves = width // heads, 8
    frequencies = torch.logspace(math.log10(2.5), math.log10(0.1), waves)

    def orthogonal(rows: int) -> Tensor:
        return torch.linalg.qr(torch.randn(width, rows, generator=generator))[0].T  # [rows, width]

    with torch.no_grad():
        angles = torch.arange(encoder.shape.max_positions)[:, None] * frequencies
        encoder.position.weight.zero_()
        encoder.position.weight[:, 0 : 2 * waves : 2] = 0.4 * angles.sin()
        encoder.position.weight[:, 1 : 2 * waves : 2] = 0.4 * angles.cos()
        encoder.word.weight.normal_(std=0.1, generator=generator)
        encoder.word.weight[:, : 2 * waves] *= 0.3
        encoder.segment.weight.normal_(std=0.1, generator=generator)
        for number, layer in enumerate(encoder.layers):
            assert isinstance(layer, EncoderLayer)
            for linear in (layer.up, layer.down):
                gain = 1.0 if linear is layer.up else 0.4
                linear.weight.normal_(std=gain / linear.in_features**0.5, generator=generator)
            query, key, value = layer.qkv.weight.view(3, width, width).unbind(0)
            copy = orthogonal(width)
            value.copy_(copy)
            layer.out.weight.copy_(copy.T)
            for head in range(heads):
                rows = slice(head * size, (head + 1) * size)
                if number:
                    alike = 1.2 * orthogonal(size)
                    alike[:, : 2 * waves] = 0
                    query[rows], key[rows] = alike, alike
                    continue
                query[rows], key[rows] = 0, 0
                turn = frequencies * (-1, 1, -2, 2)[head % 4]
                for wave in range(min(waves, size // 2)):
                    sin, cos = turn[wave].sin(), turn[wave].cos()
                    row, column = head * size + 2 * wave, slice(2 * wave, 2 * wave + 2)
                    query[row, column] = 1.5 * torch.stack([cos, sin])
                    query[row + 1, column] = 1.5 * torch.stack([-sin, cos])
                    key[row, 2 * wave] = key[row + 1, 2 * wave + 1] = 1.5


class _Text:
    """Ids and segments of a text, positions of masked words, and the verdict to predict (index, or absent)."""

    __slots__ = ("ids", "masked", "segments", "verdict")

    def __init__(self, said: grammar.Utterance, restated: bool, asked: bool, rng: random.Random) -> None:
        concepts = list(said.text)
        self.masked: list[int] = []
        if restated:
            concepts.append(lexicon.SO)
            for name, verdict in rng.sample(said.facts, len(said.facts)):
                concepts += [name, verdict]
                self.masked.append(len(concepts))  # [CLS] shifts positions by one
            concepts.append(lexicon.STOP)
        self.ids = [CLS, *(_FIRST + concept for concept in concepts), SEP]
        self.segments = [0] * len(self.ids)
        if said.pair is not None:
            self.ids += [*(_FIRST + concept for concept in said.pair), SEP]
            self.segments += [1] * (len(said.pair) + 1)
        self.verdict = _VERDICTS.index(said.verdict) if asked else _ABSENT


def _text(stream: Iterator[grammar.Utterance], first_lessons: bool, rng: random.Random) -> _Text:
    if rng.random() < (0.75 if first_lessons else 0.25):
        if first_lessons:
            return _Text(grammar.recite(rng, most_references=1, choosing=False), True, False, rng)
        return _Text(grammar.recite(rng, most_references=3), rng.random() < 0.7, True, rng)
    said = next(stream)
    return _Text(said, bool(said.facts) and rng.random() < 0.3, True, rng)


def _batches(seed: int, steps: int) -> Iterator[list[_Text]]:
    """Yield batches of texts of one length, in random order."""
    rng = random.Random(f"miniature {seed}")
    first, later = twins.utterances(f"{seed}, first"), twins.utterances(f"{seed}, later", pair_share=0.6)
    waiting: dict[int, list[_Text]] = {}
    for step in itertools.count(step=POOL):
        full: list[list[_Text]] = []
        while len(full) < POOL:
            text = _text(first, True, rng) if step < FIRST_LESSONS * steps else _text(later, False, rng)
            batch = waiting.setdefault(len(text.ids), [])
            batch.append(text)
            if len(batch) == BATCH:
                full.append(waiting.pop(len(text.ids)))
        rng.shuffle(full)
        yield from full


def _asker(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inside, outside), nn.GELU(), nn.LayerNorm(outside))


class _Pretrained(nn.Module):
    """The encoder and the two heads that its objectives need, with their first weights."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = Encoder(SHAPE)
        self.ask_word = _asker(SHAPE.width, SHAPE.width)
        self.ask_text = nn.Sequential(_asker(SHAPE.width, SHAPE.width), nn.Linear(SHAPE.width, len(_VERDICTS)))
        wire(self.encoder, torch.Generator().manual_seed(seed))

    def twin(self) -> _Pretrained:
        """Return a copy that shares the weights but has its own gradients."""
        twin = copy.deepcopy(self)
        for ours, theirs in zip(twin.parameters(), self.parameters(), strict=True):
            ours.data = theirs.data
        return twin

    def backward(self, texts: list[_Text]) -> None:
        """Compute the gradients of half a batch."""
        self.zero_grad(set_to_none=True)
        (0.5 * self._loss(texts)).backward()

    def join(self, twin: _Pretrained) -> None:
        """Add the gradients of the twin's half, then clip the norm of all to 1."""
        for ours, theirs in zip(self.parameters(), twin.parameters(), strict=True):
            if ours.grad is None:
                ours.grad = theirs.grad
            elif theirs.grad is not None:
                ours.grad += theirs.grad
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)

    def _loss(self, batch: list[_Text]) -> Tensor:
        """Return the cross-entropy of the verdicts at [CLS] plus that of the masked restatements, per text."""
        ids = torch.tensor([text.ids for text in batch], dtype=torch.int32)  # [B, T]
        count, length = ids.shape
        rows = torch.tensor(
            [i * length + place for i, text in enumerate(batch) for place in text.masked], dtype=torch.int64
        )
        flat = ids.reshape(-1).clone()
        hidden_words = flat[rows].long()
        flat[rows] = MASK
        segments = torch.tensor([text.segments for text in batch], dtype=torch.int8).reshape(-1)
        layout = Layout(np.full(count, length, dtype=np.int64), None, "cpu")
        tokens = TokenSet(flat, torch.arange(0, count * length + 1, length), segments)
        last = self.encoder.embed(tokens, layout)
        for layer in self.encoder.layers:
            last = layer(last, layout)
        verdicts = torch.tensor([text.verdict for text in batch])
        asked = self.ask_text(last.index_select(0, layout.first))
        loss = F.cross_entropy(asked, verdicts, ignore_index=_ABSENT, reduction="sum")
        if len(rows):
            scores = self.ask_word(last.index_select(0, rows)) @ self.encoder.word.weight[:_LAST].T
            loss = loss + RESTATED_WEIGHT * F.cross_entropy(scores, hidden_words, reduction="sum")
        return loss / count


class _Muon(torch.optim.Optimizer):
    """Muon as in :class:`torch.optim.Muon`, without weight decay, for all matrices of one shape at once.

    That one takes the matrices one by one; the miniature has 24 small ones.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, momentum: float) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        groups = [{"params": alike, "average": torch.zeros(len(alike), *shape)} for shape, alike in shapes.items()]
        super().__init__(groups, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            gradients = torch.stack([matrix.grad for matrix in group["params"]])  # [matrices, rows, columns]
            group["average"].lerp_(gradients, 1 - group["momentum"])
            rows, columns = gradients.shape[1:]
            steps = _orthogonal(gradients.lerp(group["average"], group["momentum"])) * max(1, rows / columns) ** 0.5
            torch._foreach_add_(group["params"], list(steps.unbind()), alpha=-group["lr"])


def _orthogonal(matrices: Tensor) -> Tensor:
    """Return the nearest (semi-)orthogonal matrices, roughly, by five Newton-Schulz steps: [n, rows, columns]."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


def _updates(model: _Pretrained, steps: int) -> list[Callable[[], None]]:
    """Return two functions that update one part of the weights each; they may run at the same time."""
    matrices = [p for p in model.encoder.layers.parameters() if p.ndim == 2]
    words = model.encoder.word.weight
    taken = {id(p) for p in (*matrices, words)}
    others = [p for p in model.parameters() if id(p) not in taken]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": [words], "lr": WORD_RATE}]
    adam = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    even, odd = (_Muon(matrices[k::2], lr=MUON_RATE, momentum=0.9) for k in (0, 1))
    warm = max(1, round(WARMUP * steps))

    def rate(step: int) -> float:
        return min((step + 1) / warm, max(0.02, (steps - step) / (steps - warm + 1)))

    def word_rate(step: int) -> float:
        return rate(step) * (WORD_FLOOR + (1 - WORD_FLOOR) * math.exp(-max(0, step - 50) / WORD_HALT))

    schedules = [torch.optim.lr_scheduler.LambdaLR(adam, [rate, word_rate])]
    schedules += [torch.optim.lr_scheduler.LambdaLR(muon, rate) for muon in (even, odd)]

    def update(*numbers: int) -> None:
        for number in numbers:
            (adam, even, odd)[number].step()
            schedules[number].step()

    return [partial(update, 1), partial(update, 2, 0)]


def pretrain_miniature(
    seed: int = 0, progress: bool = True, steps: int = STEPS
) -> tuple[EncoderShape, dict[str, Tensor]]:
    """Pretrain from a seed alone.

    Two threads compute the gradients of one half of a batch each. An operation of torch runs in one thread: the products are so
    small that more threads are slower, and the order of sums, hence the weights, must not depend on the number of cores.

    Args:
        seed: of weights and texts.
        progress: show a progress bar.
        steps: batches of :data:`BATCH` texts.

    Returns:
        The shape and the state of :class:`~harness.encoder.model.Encoder`, float32 on the CPU.
    """
    batches = _batches(seed, steps)
    with (
        torch.random.fork_rng(devices=[]),
        ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as threads,
    ):

        def together(*calls: Callable[[], None]) -> None:
            for done in [threads.submit(call) for call in calls]:
                done.result()

        model = threads.submit(_Pretrained, seed).result().train()
        twin = model.twin()
        updates = _updates(model, steps)
        for _ in tqdm(range(steps), desc="pretraining the embedded miniature", disable=not progress, leave=False):
            texts = next(batches)
            together(partial(model.backward, texts[: BATCH // 2]), partial(twin.backward, texts[BATCH // 2 :]))
            together(partial(model.join, twin))
            together(*updates)
    return SHAPE, {name: tensor.detach().clone() for name, tensor in model.encoder.state_dict().items()}
