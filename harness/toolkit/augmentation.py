"""Data augmentation: copies of a train split with some words replaced (TinyBERT, arXiv 1909.10351, algorithm 1).

A word is a piece and those that continue it ("##" pieces of WordPiece, those without a mark of byte-level BPE and Unigram); in
Chinese, a character. In every copy, every word with a letter in it is
replaced with probability ``p`` by one of ``M`` equally likely candidates:

* for a word of one piece, the most probable words in its place according to the backbone's masked-word head, which sees all
  other words;
* for a word of several pieces, and for every word if the backbone has no such head, the nearest neighbours (cosine) among the
  backbone's word embeddings (several pieces: their mean). The paper uses GloVe for these words.

Candidates are pieces that begin a word: no continuing, special or unused tokens, or punctuation, and never the word itself.
Each is a single piece, so no copy is longer than its original. [CLS], [SEP] and segments do not change.

The released code differs: it never replaces a list of English function words, shows the head the original sentence beside the
masked one, and drops duplicate copies. It makes 30 copies of splits of a few thousand rows, 20 of about a hundred thousand
(SST-2, QNLI) and 10 of larger ones (MNLI, QQP); p = 0.4 and M = 15 everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from harness.core import clock
from harness.core.errors import ConfigError
from harness.core.tokens import Split, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.masked_words import MaskedWordModel, masked_word_model
from harness.toolkit.training import LayerPasses, TrainingReport, training_layout

_TOKENS = 8192  # of a batch through the encoder
# Of WordPiece, before a piece that continues a word; of byte-level BPE and of Unigram, before one that begins a word.
_CONTINUES, _BYTES, _UNIGRAM = "##", "\u0120", "\u2581"
_QUERIES = 1024  # words that look for neighbours at a time


@dataclass(frozen=True)
class Augmentation:
    """How many copies to make, and how much they differ from the original.

    Attributes:
        copies: of every sample, besides the original; 0 for none.
        share: probability that a word is replaced.
        candidates: per word.
    """

    copies: int = 0
    share: float = 0.4
    candidates: int = 15


@dataclass(frozen=True)
class _Words:
    """The words of a split.

    Attributes:
        ids: int64 [T], all tokens, on the host.
        first: bool [T], whether a word begins there.
        number: int64 [T], index of the word that a token belongs to; -1 for special tokens.
        begin: int64 [W], index of the first token of a word.
        size: int64 [W], number of its pieces.
        lettered: bool [W], whether it has a letter.
    """

    ids: np.ndarray
    first: np.ndarray
    number: np.ndarray
    begin: np.ndarray
    size: np.ndarray
    lettered: np.ndarray


@dataclass(frozen=True)
class Pieces:
    """Properties of the pieces of a vocabulary; bool [V] each.

    Attributes:
        special: special tokens such as [CLS], and unused ones such as "[unused7]".
        continues: continue a word.
        lettered: have a letter (or a Chinese character).
    """

    special: np.ndarray
    continues: np.ndarray
    lettered: np.ndarray

    @classmethod
    def of(cls, tokenizer: Any) -> Pieces:
        """Read them from a tokenizer of transformers."""
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        known = set(tokenizer.all_special_ids)
        special = [i in known or (n[0] == "[" and n[-1] == "]" and len(n) > 2) for i, n in enumerate(names)]
        mark = max((_CONTINUES, _BYTES, _UNIGRAM), key=lambda one: sum(name.startswith(one) for name in names))
        # Names of byte-level pieces stand for bytes.
        texts = [tokenizer.convert_tokens_to_string([name]) for name in names] if mark == _BYTES else names
        continues = [
            name.startswith(mark)
            if mark == _CONTINUES
            else not (name.startswith(mark) or "\u3400" <= text[:1] <= "\u9fff")
            for name, text in zip(names, texts, strict=True)
        ]
        return cls(np.array(special), np.array(continues), np.array([any(map(str.isalpha, text)) for text in texts]))

    @property
    def candidates(self) -> np.ndarray:
        """Return the ids of pieces that may replace a word, int64."""
        return np.flatnonzero(self.lettered & ~self.special & ~self.continues)

    def words(self, tokens: TokenSet) -> _Words:
        """Find the words of samples. A continuation piece that follows no word (only in cut texts) is a word."""
        ids = tokens.ids.cpu().numpy().astype(np.int64)
        special = self.special[ids]
        before = np.ones(len(ids), dtype=bool)  # whether a token is the first of its text
        before[1:] = special[:-1]
        before[tokens.offsets[:-1].cpu().numpy()] = True
        first = ~special & (~self.continues[ids] | before)
        number = np.where(special, -1, np.cumsum(first) - 1)
        inside, count = number[~special], int(first.sum())
        size = np.bincount(inside, minlength=count)
        letters = np.bincount(inside, weights=self.lettered[ids[~special]], minlength=count)
        return _Words(ids, first, number, np.flatnonzero(first), size, letters > 0)


def _draws(words: _Words, how: Augmentation, most: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for every copy which words to replace (bool [W]), and the number of the candidate for each (int64 [W])."""
    for copy in range(how.copies):
        generator = np.random.default_rng([seed, copy])
        chosen = generator.random(len(words.size)) < how.share
        yield chosen & words.lettered, generator.integers(most, size=len(words.size))


def _best(scores: Tensor, own: Tensor, candidates: Tensor, most: int) -> np.ndarray:
    """Return the ids of the ``most`` best candidates, int64 [n, most], by scores [n, C]; never ``own`` [n]."""
    scores = scores.masked_fill(candidates[None, :] == own[:, None], -math.inf)
    return candidates[scores.topk(most, dim=1).indices].cpu().numpy()


@torch.no_grad()
def neighbours(table: Tensor, words: list[tuple[int, ...]], candidates: Tensor, most: int) -> np.ndarray:
    """Return the nearest candidates of words, by the cosine of embeddings.

    Args:
        table: word embeddings [V, D].
        words: the piece ids of each word.
        candidates: ids to choose from, int64 [C], on the table's device.
        most: number of candidates per word.

    Returns:
        int64 [len(words), most], nearest first.
    """
    known = F.normalize(table[candidates].float(), dim=1)
    found = [np.empty((0, most), dtype=np.int64)]
    for start in range(0, len(words), _QUERIES):
        part = words[start : start + _QUERIES]
        rows = torch.stack([table[list(pieces)].float().mean(0) for pieces in part])
        own = torch.tensor([p[0] if len(p) == 1 else -1 for p in part], device=table.device)
        found.append(_best(F.normalize(rows, dim=1) @ known.T, own, candidates, most))
    return np.concatenate(found)


@torch.no_grad()
def predicted(
    model: MaskedWordModel, tokens: TokenSet, places: np.ndarray, candidates: Tensor, most: int, *, mask: int, name: str
) -> np.ndarray:
    """Return the most probable replacements of tokens; one token is masked at a time.

    Args:
        model: in eval mode, on the device of ``tokens``.
        places: int64 [n], indices into ``tokens.ids``.
        candidates: ids to choose from, int64 [C], on that device.
        most: number of candidates per place.
        mask: id of [MASK].
        name: shown in the progress bar.

    Returns:
        int64 [n, most], most probable first.
    """
    offsets = tokens.offsets.cpu().numpy()
    sample = np.searchsorted(offsets, places, side="right") - 1
    lengths = np.diff(offsets)[sample]
    order = np.argsort(-lengths, kind="stable")  # samples of equal length together, the longest first
    found = np.empty((len(places), most), dtype=np.int64)
    start = 0
    with tqdm(total=len(places), desc=name, unit="word", leave=False, disable=None) as bar:
        while start < len(places):
            part = order[start : start + max(1, _TOKENS // int(lengths[order[start]]))]
            batch = tokens.select(sample[part])
            inside = torch.from_numpy(places[part] - offsets[sample[part]]).to(tokens.device)
            at = batch.offsets[:-1] + inside
            own, ids = batch.ids[at].long(), batch.ids.clone()
            ids[at] = mask
            layout = training_layout(batch)
            *_, hidden = model.encoder.states(replace(batch, ids=ids), layout)
            scores = model.scores(hidden.index_select(0, layout.first + inside))
            found[part] = _best(scores[:, candidates], own, candidates, most)
            start += len(part)
            bar.update(len(part))
    return found


def _table(
    words: _Words, needed: np.ndarray, backbone: Backbone, tokens: TokenSet, candidates: Tensor, most: int, name: str
) -> tuple[np.ndarray, TrainingReport]:
    """Return candidates of the words ``needed`` (int64 indices), int64 [n, most], and the cost of finding them."""
    start, passes, flops = clock.now(), 0, 0.0
    found = np.empty((len(needed), most), dtype=np.int64)
    mask = backbone.tokenizer.mask_token_id
    model = masked_word_model(backbone) if mask is not None else None
    rest = np.ones(len(needed), dtype=bool)
    if model is not None:
        rest = words.size[needed] > 1
        with LayerPasses([model]) as counted:
            places = words.begin[needed[~rest]]
            found[~rest] = predicted(model.eval(), tokens, places, candidates, most, mask=mask, name=name)
        passes, flops = counted.count, counted.flops
    spelt = [tuple(words.ids[words.begin[w] : words.begin[w] + words.size[w]].tolist()) for w in needed[rest]]
    different = {pieces: row for row, pieces in enumerate(dict.fromkeys(spelt))}
    near = neighbours(backbone.state["word.weight"].to(tokens.device), list(different), candidates, most)
    found[rest] = near[[different[pieces] for pieces in spelt]]
    return found, TrainingReport(clock.now() - start, 0, passes, 0, flops=flops)


def augment(
    split: Split, backbone: Backbone, how: Augmentation, *, seed: int, name: str
) -> tuple[Split, TrainingReport | None]:
    """Return a split with augmented copies.

    Args:
        split: its samples come first, in order; then those of the first copy, and so on.
        backbone: pretrained, with the tokenizer that made the ids.
        seed: a copy depends on the seed and its own number only.
        name: shown in the progress bar.

    Returns:
        The larger split, whose copies have the originals' labels, and the cost of making it; the same split and ``None``
        if there are to be no copies.

    Raises:
        ConfigError: the backbone has no tokenizer, or its vocabulary has fewer than two words.
    """
    if not how.copies:
        return split, None
    if backbone.tokenizer is None:
        raise ConfigError(
            f"{name}: backbone '{backbone.name}' has no tokenizer, which finds the words: set augment = 0"
        )
    pieces, tokens = Pieces.of(backbone.tokenizer), split.tokens
    if len(pieces.candidates) < 2:
        raise ConfigError(f"{name}: the vocabulary of '{backbone.name}' has fewer than two words: set augment = 0")
    words = pieces.words(tokens)
    most = min(how.candidates, len(pieces.candidates) - 1)
    wanted = np.zeros(len(words.size), dtype=bool)
    for chosen, _ in _draws(words, how, most, seed):
        wanted |= chosen
    needed = np.flatnonzero(wanted)
    candidates = torch.from_numpy(pieces.candidates).to(tokens.device)
    table, cost = _table(words, needed, backbone, tokens, candidates, most, f"{name} words")

    row_of = np.cumsum(wanted) - 1
    all_ids, lengths = [tokens.ids.cpu().numpy()], [tokens.lengths.cpu().numpy()]
    segments = tokens.segments.cpu().numpy()
    all_segments = [segments]
    sample = np.repeat(np.arange(len(split)), lengths[0])
    inside = words.number >= 0
    for chosen, pick in _draws(words, how, most, seed):
        new = words.ids.copy()
        new[words.begin[chosen]] = table[row_of[chosen], pick[chosen]]
        gone = np.zeros(len(new), dtype=bool)  # later pieces of replaced words
        gone[inside] = chosen[words.number[inside]]
        kept = ~(gone & ~words.first)
        all_ids.append(new[kept].astype(np.int32))
        all_segments.append(segments[kept])
        lengths.append(np.bincount(sample[kept], minlength=len(split)))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    larger = replace(
        tokens,
        ids=torch.from_numpy(np.concatenate(all_ids)).to(tokens.device),
        offsets=torch.from_numpy(offsets).to(tokens.device),
        segments=torch.from_numpy(np.concatenate(all_segments)).to(tokens.device),
    )
    return Split(larger, split.labels.repeat(how.copies + 1)), cost
