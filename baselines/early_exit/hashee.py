"""HashEE (Sun et al., Findings of ACL 2022): every token exits after a layer that depends on a hash of its id."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from harness.contracts import Execution, OperatingPoint, Predictions
from harness.core.errors import ConfigError
from harness.core.text_formats import read_json
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.token_exits import TokenExits, masked_state, run_token_exits
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.distillation import take_layers
from harness.toolkit.fitted import FittedModel, load_model, reading
from harness.toolkit.method_settings import Head, MethodSettings
from harness.toolkit.training import DevScore, train

BUCKETS = 6
LAST = -1  # in place of a bucket: runs to the last layer
RESTARTS = 40  # of k-means, as in the released code


class HashEESettings(MethodSettings):
    """Settings of HashEE. Epochs and learning rate are those of the released example."""

    epochs: int = Field(4, ge=1, description="passes over the train split")
    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate of AdamW")
    head: Head = Field("fastbert", description="kind of classifier head")
    hash: Literal["frequency", "mi", "random", "clustered"] = Field("frequency", description="how ids get buckets")
    layers: int | None = Field(None, ge=1, description="layers of the backbone, from the bottom; by default all")
    buckets: int | None = Field(
        None, ge=1, description="buckets of tokens; by default 6, or as many as there are exits"
    )
    first_exit: int = Field(1, ge=1, description="layer, counted from 1, after which the first bucket exits")

    @property
    def point_names(self) -> list[str]:
        return ["hash"]


def in_equal_buckets(ranked: Tensor, vocabulary: int, buckets: int) -> Tensor:
    """Put ids into buckets of equal size, the remainder in the last one; unranked ids get :data:`LAST`.

    Args:
        ranked: int64 [M], distinct ids; the first ones exit first.

    Returns:
        int64 [V].
    """
    placed = torch.full((vocabulary,), LAST, dtype=torch.int64)
    placed[ranked] = (torch.arange(len(ranked)) // max(1, len(ranked) // buckets)).clamp(max=buckets - 1)
    return placed


def by_frequency(task: Task, words: Tensor, buckets: int, seed: int) -> Tensor:
    """Rank ids by frequency in train and dev, the most frequent first; unseen ids run to the last layer."""
    counts = sum(
        torch.bincount(split.tokens.ids.cpu().long(), minlength=len(words)) for split in (task.train, task.dev)
    )
    assert isinstance(counts, Tensor)
    ranked = counts.argsort(descending=True, stable=True)
    return in_equal_buckets(ranked[counts[ranked] > 0], len(words), buckets)


def by_information(task: Task, words: Tensor, buckets: int, seed: int) -> Tensor:
    """Rank ids by mutual information with the label in train, ``sum_c p(x, c) ln(p(x, c) / (p(x) p(c)))``, largest first.

    As in the released code, p(x, c) and p(x) are over tokens and p(c) is over samples; it has two
    classes, this any number. Ids not in train run to the last layer.
    """
    tokens, labels = task.train.tokens, task.train.labels
    owner = torch.repeat_interleave(labels.cpu(), tokens.lengths.cpu())
    cells = tokens.ids.cpu().long() * task.num_labels + owner
    joint = torch.bincount(cells, minlength=len(words) * task.num_labels).view(len(words), -1).double()
    joint /= joint.sum()
    of_word = joint.sum(1, keepdim=True)
    of_label = torch.bincount(labels.cpu(), minlength=task.num_labels).double() / len(labels)
    information = torch.special.xlogy(
        joint, joint / (of_word * of_label).clamp(min=torch.finfo(torch.float64).tiny)
    ).sum(1)
    ranked = information.argsort(descending=True, stable=True)
    return in_equal_buckets(ranked[of_word[ranked, 0] > 0], len(words), buckets)


def at_random(task: Task, words: Tensor, buckets: int, seed: int) -> Tensor:
    """Draw a bucket for every id of the vocabulary, once for training and inference."""
    return torch.randint(buckets, (len(words),), generator=torch.Generator().manual_seed(seed))


def by_cluster(task: Task, words: Tensor, buckets: int, seed: int) -> Tensor:
    """Cluster the backbone's word embeddings of the whole vocabulary with k-means.

    Clusters exit in the order of the released code: by the sum of their embeddings' norms, the smallest first.
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
    """Where tokens exit: ``exits`` are layer indices, one per bucket, of a model of ``layers`` layers."""

    hash: str
    layers: int
    exits: tuple[int, ...]

    @classmethod
    def of(cls, own: HashEESettings, depth: int) -> Plan:
        """Plan from settings. Exits are evenly spaced, ``layers // buckets`` apart from layer 1 on, as in the released code.

        Raises:
            ConfigError: the numbers do not fit the backbone.
        """
        layers, first = own.layers or depth, own.first_exit
        if layers > depth or first > layers:
            raise ConfigError(
                f"hashee: layers = {layers}, first_exit = {first} do not fit a backbone of {depth} layers: "
                f"give layers in 1..{depth} and first_exit in 1..layers"
            )
        room = layers - first + 1
        buckets = own.buckets or min(BUCKETS, room)
        if buckets > room:
            raise ConfigError(
                f"hashee: {buckets} buckets do not fit layers {first} to {layers}: give 1 to {room} buckets"
            )
        return cls(own.hash, layers, tuple(first - 1 + j * (room // buckets) for j in range(buckets)))


def token_exits(plan: Plan, task: Task, backbone: Backbone, seed: int) -> TokenExits:
    """Return the exit of every id of the vocabulary; special tokens run to the last layer."""
    words = backbone.state["word.weight"]
    special = {*task.train.tokens.special, *getattr(backbone.tokenizer, "all_special_ids", ())}
    ordinary = torch.ones(len(words), dtype=torch.bool)
    ordinary[[i for i in special if 0 <= i < len(words)]] = False
    placed = HASHES[plan.hash](_without(task, special), words, len(plan.exits), seed)
    layers = torch.tensor([*plan.exits, plan.layers - 1])[placed]  # LAST is index -1
    return TokenExits.of(torch.where(ordinary, layers, plan.layers - 1), plan.layers).to(backbone.device)


def _without(task: Task, special: set[int]) -> Task:
    """Return the task without special tokens, which belong to no bucket."""

    def strip(split: Split) -> Split:
        tokens = split.tokens
        stays = ~torch.isin(tokens.ids, torch.tensor(sorted(special), dtype=tokens.ids.dtype, device=tokens.device))
        ends = torch.cat([stays.new_zeros(1, dtype=torch.int64), stays.long().cumsum(0)])[tokens.offsets]
        return Split(TokenSet(tokens.ids[stays], ends, tokens.segments[stays], tokens.special), split.labels)

    return Task(task.name, task.language, task.num_labels, task.max_length, strip(task.train), strip(task.dev))


@dataclass
class HashedExits(FittedModel):
    """A model whose tokens exit one by one; one operating point, as the exits were in place when it was trained."""

    executor = "token-exits"

    exits: TokenExits = field(kw_only=True)

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return [OperatingPoint("hash", {"exits": " ".join(str(layer + 1) for layer in self.exits.layers)})]

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return run_token_exits(self.model, tokens, self.exits, at.execution)

    def save(self, folder: Path) -> None:
        super().save(folder)
        save_file({"table": self.exits.table.cpu().contiguous()}, folder / "exits.safetensors")
        (folder / "exits.json").write_text(json.dumps(self.exits.layers), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str) -> Self:
        model, report = load_model(folder, device)
        with reading(folder):
            layers = tuple(int(layer) for layer in read_json(folder / "exits.json"))
            exits = TokenExits(layers, load_file(folder / "exits.safetensors")["table"])
        return cls(model, report, exits=exits.to(device))


class HashEE(StagedMethod[HashEESettings]):
    """Tokens exit after the layer of their bucket and keep that state, which the others attend to; one head at the end.

    The model is trained with the exits in place, so each number of layers needs its own training: ``layers`` (how much of
    the backbone is used, as the paper's 6 of 12), ``first_exit`` and ``buckets`` make variants. Special tokens run to the
    last layer, and so do tokens that ``frequency`` or ``mi`` never saw; ``random`` and ``clustered`` cover all ids. The best
    dev epoch is kept.

    The paper's backbone is ElasticBERT, pretrained with exits; here it is the backbone of all methods. Mistakes of the
    released code are not copied: it attends to padding, skips the remainder of the vocabulary after its last bucket, and
    selects on test.
    """

    name = "hashee"
    settings = HashEESettings
    fitted = HashedExits

    def learn(self, own: HashEESettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> HashedExits:
        plan = Plan.of(own, backbone.shape.layers)
        torch.manual_seed(seed)
        encoder = take_layers(backbone.encoder(), range(plan.layers))
        model = MultiExitModel(encoder, task.num_labels, (), own.head)
        exits = token_exits(plan, task, backbone, seed)

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            hidden = masked_state(model.encoder, tokens, layout, exits)
            return F.cross_entropy(model.teacher(hidden, layout).float(), labels)

        def evaluate() -> DevScore:
            answers = run_token_exits(model, task.dev.tokens, exits, Execution(batch_size=64)).logits.argmax(-1)
            accuracy = float((answers == task.dev.labels.numpy()).mean())
            return DevScore(accuracy, (accuracy,))

        report = train(model, loss, task.train, own, seed=seed, name=f"hashee {task.name}", evaluate=evaluate)
        return HashedExits(model, report, exits=exits)
