"""More text from a train split: copies in which some words are replaced (TinyBERT, arXiv 1909.10351, algorithm 1).

A word is a piece and the "##" pieces that follow it; in Chinese, a character. Every word with a letter in it is replaced in
every copy with probability ``p``, by one of ``M`` candidates, each as likely as the others:

* a word of one piece by what the backbone's masked-word head finds most probable in its place, all other words seen;
* a word of several pieces, and every word where the backbone has no such head, by its nearest neighbours (cosine) among the
  backbone's word embeddings; of several pieces their mean. This stands in for GloVe, which the paper asks for those.

Candidates begin words: no "##" pieces, special or unused tokens, or signs; and never the word itself. Every one is a single
piece, so that no copy is longer than its original. [CLS], [SEP] and segments stay.

The released code differs: it leaves a list of English function words alone, shows the head the original sentence beside the
masked one, and drops copies that are there already. It makes 30 copies of splits of a few thousand rows, 20 of about a hundred
thousand (SST-2, QNLI) and 10 of larger ones (MNLI, QQP); p = 0.4 and M = 15 everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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

# A method's settings, off by default.
SETTINGS: dict[str, Any] = {"augment": 0, "augment_p": 0.4, "augment_candidates": 15}
_TOKENS = 8192  # of a batch through the encoder
_QUERIES = 1024  # words that look for neighbours at a time


@dataclass(frozen=True)
class Augmentation:
    """How many copies, and how far from the original.

    Attributes:
        copies: of every sample, beside the original; 0 for none.
        share: probability that a word is replaced.
        candidates: to choose from, per word.
    """

    copies: int = 0
    share: float = 0.4
    candidates: int = 15

    @classmethod
    def of(cls, method: str, own: Mapping[str, Any]) -> Augmentation:
        """From a method's settings, see :data:`SETTINGS`.

        Raises:
            ConfigError: one is out of its range.
        """
        copies, share, candidates = (own[key] for key in SETTINGS)
        right = (
            isinstance(copies, int)
            and copies >= 0
            and isinstance(share, int | float)
            and 0 < share <= 1
            and isinstance(candidates, int)
            and candidates >= 1
        )
        if not right:
            raise ConfigError(
                f"{method}: augment = {copies}, augment_p = {share}, augment_candidates = {candidates} make no sense: choose "
                "a number of copies of at least 0, a probability above 0 and at most 1, and at least 1 candidate"
            )
        return cls(copies, float(share), candidates)


@dataclass(frozen=True)
class _Words:
    """The words of a split.

    Attributes:
        ids: int64 [T], all tokens, on the host.
        first: bool [T], where words begin.
        number: int64 [T], of the word a token belongs to; -1 for special tokens.
        begin: int64 [W], token at which a word begins.
        size: int64 [W], its pieces.
        lettered: bool [W], whether there is a letter in it.
    """

    ids: np.ndarray
    first: np.ndarray
    number: np.ndarray
    begin: np.ndarray
    size: np.ndarray
    lettered: np.ndarray


@dataclass(frozen=True)
class Pieces:
    """What the pieces of a vocabulary are; bool [V] each.

    Attributes:
        special: [CLS] and its like, and those kept for later use ("[unused7]").
        continues: begin with "##".
        lettered: hold a letter (or a Chinese character).
    """

    special: np.ndarray
    continues: np.ndarray
    lettered: np.ndarray

    @classmethod
    def of(cls, tokenizer: Any) -> Pieces:
        """Those of a tokenizer of transformers."""
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        known = set(tokenizer.all_special_ids)
        special = [i in known or (n[0] == "[" and n[-1] == "]" and len(n) > 2) for i, n in enumerate(names)]
        return cls(
            np.array(special),
            np.array([name.startswith("##") for name in names]),
            np.array([any(map(str.isalpha, name)) for name in names]),
        )

    @property
    def candidates(self) -> np.ndarray:
        """Ids of pieces that may replace a word, int64."""
        return np.flatnonzero(self.lettered & ~self.special & ~self.continues)

    def words(self, tokens: TokenSet) -> _Words:
        """Find the words of samples. A continuation that follows no word (never so in whole texts) is one by itself."""
        ids = tokens.ids.cpu().numpy().astype(np.int64)
        special = self.special[ids]
        before = np.ones(len(ids), dtype=bool)  # whether nothing of this text stands before a token
        before[1:] = special[:-1]
        before[tokens.offsets[:-1].cpu().numpy()] = True
        first = ~special & (~self.continues[ids] | before)
        number = np.where(special, -1, np.cumsum(first) - 1)
        inside, count = number[~special], int(first.sum())
        size = np.bincount(inside, minlength=count)
        letters = np.bincount(inside, weights=self.lettered[ids[~special]], minlength=count)
        return _Words(ids, first, number, np.flatnonzero(first), size, letters > 0)


def _draws(words: _Words, how: Augmentation, most: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For every copy: which words to replace (bool [W]), and by which of ``most`` candidates (int64 [W])."""
    for copy in range(how.copies):
        generator = np.random.default_rng([seed, copy])
        chosen = generator.random(len(words.size)) < how.share
        yield chosen & words.lettered, generator.integers(most, size=len(words.size))


def _best(scores: Tensor, own: Tensor, candidates: Tensor, most: int) -> np.ndarray:
    """Ids of the ``most`` best candidates, int64 [n, most], from scores [n, C]; never ``own`` [n]."""
    scores = scores.masked_fill(candidates[None, :] == own[:, None], -math.inf)
    return candidates[scores.topk(most, dim=1).indices].cpu().numpy()


@torch.no_grad()
def neighbours(table: Tensor, words: list[tuple[int, ...]], candidates: Tensor, most: int) -> np.ndarray:
    """Nearest candidates of words by the cosine of embeddings.

    Args:
        table: word embeddings [V, D].
        words: the ids of each one's pieces.
        candidates: ids to choose from, int64 [C], on the table's device.
        most: of them to return per word.

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
    model: MaskedWordModel,
    tokens: TokenSet,
    places: np.ndarray,
    candidates: Tensor,
    most: int,
    *,
    mask: int,
    name: str,
) -> np.ndarray:
    """Most probable candidates in the place of tokens, each masked by itself.

    Args:
        model: in eval mode, on the device of ``tokens``.
        places: of the tokens, int64 [n], numbers in ``tokens.ids``.
        candidates: ids to choose from, int64 [C], on that device.
        most: of them to return per place.
        mask: id of [MASK].
        name: shown in the progress bar.

    Returns:
        int64 [n, most], most probable first.
    """
    offsets = tokens.offsets.cpu().numpy()
    sample = np.searchsorted(offsets, places, side="right") - 1
    lengths = np.diff(offsets)[sample]
    order = np.argsort(-lengths, kind="stable")  # samples of one length together, the longest first
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
    """Candidates of the words numbered in ``needed``, int64 [n, most], and what finding them cost."""
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
    """A split and copies of it with other words.

    Args:
        split: its samples come first, in their order; then those of the first copy, and so on.
        backbone: pretrained, with the tokenizer that made the ids.
        seed: every copy follows from it and from the copy's number.
        name: shown in the progress bar.

    Returns:
        The larger split, whose copies have the originals' labels, and what making it cost; the same split and ``None``
        where no copies are asked for.

    Raises:
        ConfigError: the backbone has no tokenizer, or its vocabulary has fewer than two words.
    """
    if not how.copies:
        return split, None
    if backbone.tokenizer is None:
        raise ConfigError(f"{name}: backbone '{backbone.name}' has no tokenizer to tell words by: set augment = 0")
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
        gone = np.zeros(len(new), dtype=bool)  # the further pieces of words that are replaced
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
