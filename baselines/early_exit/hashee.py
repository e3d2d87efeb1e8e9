"""HashEE (Sun et al., Findings of ACL 2022): every token leaves after a layer that a hash of its id names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from harness.contracts import Execution, Fitted, Kind, OperatingPoint, Predictions
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.token_exits import TokenExits, masked_state, run_token_exits
from harness.registry import register
from harness.toolkit.distillation import take_layers
from harness.toolkit.fitted import FittedModel, load_model
from harness.toolkit.training import Recipe, own_settings, train

DEFAULTS: dict[str, Any] = {
    "hash": "frequency",
    "layers": None,  # of the backbone, from the bottom; all of them
    "buckets": None,  # 6 as in the released code, or as many as there are layers to leave after
    "first_exit": 1,  # layer, counted from 1, after which the first bucket leaves
}
BUCKETS = 6
LAST = -1  # in place of a bucket: runs to the last layer
RESTARTS = 40  # of k-means, as in the released code


def in_equal_buckets(ranked: Tensor, vocabulary: int, buckets: int) -> Tensor:
    """Buckets of as many ids each, the remainder in the last; ids that are not ranked are :data:`LAST`.

    Args:
        ranked: int64 [M], distinct ids, those that leave first at first.

    Returns:
        int64 [V].
    """
    placed = torch.full((vocabulary,), LAST, dtype=torch.int64)
    placed[ranked] = (torch.arange(len(ranked)) // max(1, len(ranked) // buckets)).clamp(max=buckets - 1)
    return placed


def by_frequency(task: Task, words: Tensor, buckets: int, seed: int) -> Tensor:
    """Ids by how often they occur in train and dev, the frequent ones first; unseen ones run to the end."""
    counts = sum(
        torch.bincount(split.tokens.ids.cpu().long(), minlength=len(words)) for split in (task.train, task.dev)
    )
    assert isinstance(counts, Tensor)
    ranked = counts.argsort(descending=True, stable=True)
    return in_equal_buckets(ranked[counts[ranked] > 0], len(words), buckets)


def by_information(task: Task, words: Tensor, buckets: int, seed: int) -> Tensor:
    """Ids by what they tell of the label in train, ``sum_c p(x, c) ln(p(x, c) / (p(x) p(c)))``, the telling ones first.

    As in the released code, p(x, c) and p(x) are over tokens and p(c) is over samples; that code knows two classes, this
    one any number. Ids not in train run to the end.
    """
    tokens, labels = task.train.tokens, task.train.labels
    owner = torch.repeat_interleave(labels.cpu(), tokens.lengths.cpu())
    cells = tokens.ids.cpu().long() * task.num_labels + owner
    joint = torch.bincount(cells, minlength=len(words) * task.num_labels).view(len(words), -1).double()
    joint /= joint.sum()
    of_word = joint.sum(1, keepdim=True)
    of_label = torch.bincount(labels.cpu(), minlength=task.num_labels).double() / len(labels)
    told = torch.special.xlogy(joint, joint / (of_word * of_label).clamp(min=torch.finfo(torch.float64).tiny)).sum(1)
    ranked = told.argsort(descending=True, stable=True)
    return in_equal_buckets(ranked[of_word[ranked, 0] > 0], len(words), buckets)


def at_random(task: Task, words: Tensor, buckets: int, seed: int) -> Tensor:
    """Every id of the vocabulary its own bucket, drawn once, for training and inference alike."""
    return torch.randint(buckets, (len(words),), generator=torch.Generator().manual_seed(seed))


def by_cluster(task: Task, words: Tensor, buckets: int, seed: int) -> Tensor:
    """k-means of the backbone's word embeddings, of the whole vocabulary.

    Clusters leave in the order of the released code: by the sum of their embeddings' norms, the smallest first.
    """
    from sklearn.cluster import KMeans

    points = words.detach().float().cpu().numpy()
    found = KMeans(buckets, n_init=RESTARTS, random_state=seed).fit_predict(points)
    sums = np.bincount(found, np.linalg.norm(points, axis=1), buckets)
    return torch.from_numpy(sums.argsort(kind="stable").argsort(kind="stable")[found].astype(np.int64))


HASHES: dict[str, Callable[[Task, Tensor, int, int], Tensor]] = {
    "frequency": by_frequency,
    "mi": by_information,
    "random": at_random,
    "clustered": by_cluster,
}


@dataclass(frozen=True)
class Plan:
    """Where tokens may leave: ``exits``, layer indices, one per bucket, of a model of ``layers`` layers."""

    hash: str
    layers: int
    exits: tuple[int, ...]

    @classmethod
    def of(cls, own: Mapping[str, Any], depth: int) -> Plan:
        """From settings. Buckets leave at even distances, ``layers // buckets`` from layer 1 on as in the released code.

        Raises:
            ConfigError: an unknown hash; numbers that are no whole ones or do not fit the backbone.
        """
        if own["hash"] not in HASHES:
            raise ConfigError(f"hashee: hash {own['hash']!r} is unknown: choose one of {', '.join(HASHES)}")
        layers = depth if own["layers"] is None else own["layers"]
        first = own["first_exit"]
        wrong = [n for n in (layers, first, own["buckets"]) if n is not None and not isinstance(n, int)]
        if wrong or not 1 <= layers <= depth or not 1 <= first <= layers:
            raise ConfigError(
                f"hashee: layers = {layers}, first_exit = {first}, buckets = {own['buckets']} do not fit a backbone of "
                f"{depth} layers: give whole numbers, layers in 1..{depth} and first_exit in 1..layers"
            )
        room = layers - first + 1
        buckets = min(BUCKETS, room) if own["buckets"] is None else own["buckets"]
        if not 1 <= buckets <= room:
            raise ConfigError(
                f"hashee: {buckets} buckets do not fit layers {first} to {layers}: give 1 to {room} buckets"
            )
        return cls(own["hash"], layers, tuple(first - 1 + j * (room // buckets) for j in range(buckets)))


def token_exits(plan: Plan, task: Task, backbone: Backbone, seed: int) -> TokenExits:
    """The exit of every id of the vocabulary; special tokens run to the last layer."""
    words = backbone.state["word.weight"]
    special = {*task.train.tokens.special, *getattr(backbone.tokenizer, "all_special_ids", ())}
    ordinary = torch.ones(len(words), dtype=torch.bool)
    ordinary[[i for i in special if 0 <= i < len(words)]] = False
    placed = HASHES[plan.hash](_without(task, special), words, len(plan.exits), seed)
    layers = torch.tensor([*plan.exits, plan.layers - 1])[placed]  # LAST is the last one
    return TokenExits.of(torch.where(ordinary, layers, plan.layers - 1), plan.layers).to(backbone.device)


def _without(task: Task, special: set[int]) -> Task:
    """The task without special tokens, which neither fill buckets nor tell of labels."""

    def strip(split: Split) -> Split:
        tokens = split.tokens
        stays = ~torch.isin(tokens.ids, torch.tensor(sorted(special), dtype=tokens.ids.dtype, device=tokens.device))
        ends = torch.cat([stays.new_zeros(1, dtype=torch.int64), stays.long().cumsum(0)])[tokens.offsets]
        return Split(TokenSet(tokens.ids[stays], ends, tokens.segments[stays], tokens.special), split.labels)

    return Task(task.name, task.language, task.num_labels, task.max_length, strip(task.train), strip(task.dev))


@dataclass(kw_only=True)
class HashedExits(FittedModel):
    """A model whose tokens leave one by one; one operating point, as the exits were there when it was trained."""

    executor = "token-exits"

    exits: TokenExits

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return [OperatingPoint("hash", {"exits": " ".join(str(layer + 1) for layer in self.exits.layers)})]

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return run_token_exits(self.model, tokens, self.exits, at.execution)

    def save(self, folder: Path) -> None:
        super().save(folder)
        save_file({"table": self.exits.table.cpu().contiguous()}, folder / "exits.safetensors")
        (folder / "exits.json").write_text(json.dumps(self.exits.layers), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str) -> HashedExits:
        """What :meth:`save` wrote.

        Raises:
            ResultError: a file is missing or damaged.
        """
        model, report = load_model(folder, device)
        try:
            layers = tuple(int(layer) for layer in json.loads((folder / "exits.json").read_text(encoding="utf-8")))
            exits = TokenExits(layers, load_file(folder / "exits.safetensors")["table"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ResultError(f"cannot load {folder}: {error}: delete that folder and run again") from error
        return cls(model, report, exits=exits.to(device))


@register
class HashEE:
    """Tokens leave after the layer of their bucket, keep that state, and are attended to by the others; one head at the end.

    Trained with the exits in place, so a budget of layers needs a training of its own: ``layers`` (how much of the backbone
    there is, as the paper's 6 of 12), ``first_exit`` and ``buckets`` make variants. Special tokens run to the last layer,
    and so do those that ``frequency`` or ``mi`` never saw; ``random`` and ``clustered`` know all ids.

    The paper's backbone is ElasticBERT, pretrained with exits; here it is that of every other method.

    Slips of the released code are not copied: it attends to padding, leaves the remainder of the vocabulary beyond its last
    bucket, and selects on test.

    Config: :data:`DEFAULTS`, the keys of :class:`~harness.toolkit.training.Recipe` (4 epochs at 5e-5 as in its example), and
    ``head``.
    """

    name = "hashee"
    kind: Kind = "method"
    needs: tuple[str, ...] = ()
    version = 1

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> HashedExits:
        """Hash the vocabulary, then fine-tune with cross-entropy; the best dev epoch is kept.

        Raises:
            ConfigError: a setting that makes no sense, does not fit the backbone or is read by nobody.
        """
        plan = Plan.of(own_settings(self.name, config, DEFAULTS), backbone.shape.layers)
        recipe = Recipe.of(config, epochs=4, learning_rate=5e-5)
        torch.manual_seed(seed)
        encoder = take_layers(backbone.encoder(), range(plan.layers))
        model = MultiExitModel(encoder, task.num_labels, (), config.get("head", "fastbert"))
        exits = token_exits(plan, task, backbone, seed)

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            hidden = masked_state(model.encoder, tokens, layout, exits)
            return F.cross_entropy(model.teacher(hidden, layout).float(), labels)

        def evaluate() -> float:
            said = run_token_exits(model, task.dev.tokens, exits, Execution(batch_size=64)).logits.argmax(-1)
            return float((said == task.dev.labels.numpy()).mean())

        report = train(model, loss, task.train, recipe, seed=seed, name=f"hashee {task.name}", evaluate=evaluate)
        return HashedExits(model, report, exits=exits)

    def point_names(self, config: Mapping[str, Any]) -> list[str]:
        return ["hash"]

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> HashedExits:
        return HashedExits.load(folder, backbone.device)
