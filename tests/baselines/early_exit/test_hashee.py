"""HashEE: exits of ids by every hash, training, running, errors and storage."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import baselines.early_exit.hashee as module
from baselines.early_exit.hashee import HASHES, LAST, HashedExits, HashEE, Plan, in_equal_buckets, token_exits
from harness.contracts import Execution, OperatingPoint
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.training import Recipe, TrainingReport

Check = Callable[[HashedExits, OperatingPoint, Execution, list[int]], None]
SPECIAL = (0, 1, 2)


@pytest.fixture(scope="session")
def fitted(signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any]) -> HashedExits:
    """HashEE on five layers with the frequency hash."""
    return HashEE().fit(signal_task, small_backbone, {}, config=quick, seed=0)


@pytest.fixture(scope="session")
def scattered(small_backbone: Backbone) -> HashedExits:
    """Random weights and random exits, so that tokens exit at every layer."""
    from harness.execution.token_exits import TokenExits

    torch.manual_seed(8)
    model = MultiExitModel(small_backbone.encoder(), 3, (), "fastbert")
    for parameter in model.teacher.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.9)
    return HashedExits(model.eval(), exits=TokenExits.of(torch.randint(5, (40,)), 5))


def plan(depth: int, **own: Any) -> Plan:
    return Plan.of(module.HashEESettings.read(own, "hashee"), depth)


def leaving(exits: Any) -> list[int]:
    """Return the exit of every id, counted from 1."""
    return (torch.tensor(exits.layers)[exits.table.long()] + 1).tolist()


@pytest.mark.parametrize(
    ("own", "layers", "exits"),
    [
        ({}, 12, [1, 3, 5, 7, 9, 11]),
        ({"layers": 6}, 6, [1, 2, 3, 4, 5, 6]),
        ({"buckets": 12}, 12, list(range(1, 13))),
        ({"first_exit": 4, "buckets": 3}, 12, [4, 7, 10]),
        ({"layers": 3}, 3, [1, 2, 3]),
        ({"layers": 1}, 1, [1]),
    ],
)
def test_buckets_exit_as_in_the_released_code(own: dict[str, Any], layers: int, exits: list[int]) -> None:
    """Six buckets exit from layer 1 on, evenly spaced over the layers that are kept."""
    found = plan(12, **own)
    assert (found.layers, [exit_layer + 1 for exit_layer in found.exits]) == (layers, exits)


@given(count=st.integers(0, 60), buckets=st.integers(1, 8))
def test_buckets_have_equal_parts_of_the_vocabulary(count: int, buckets: int) -> None:
    """Buckets have equal sizes, in order of rank; the last one has the remainder; unranked ids are in none."""
    ranked = torch.randperm(80)[:count]
    placed = in_equal_buckets(ranked, 80, buckets)
    assert (placed[ranked].diff() >= 0).all()
    assert int((placed == LAST).sum()) == 80 - count
    if count >= buckets:
        sizes = torch.bincount(placed[ranked], minlength=buckets).tolist()
        assert sizes[:-1] == [count // buckets] * (buckets - 1)
        assert sum(sizes) == count


def test_frequent_ids_exit_early(signal_task: Task, small_backbone: Backbone) -> None:
    """Ids with earlier exits occur at least as often in train and dev; special and unseen ids run to the end."""
    exits = leaving(token_exits(plan(5, buckets=4), signal_task, small_backbone, 0))
    counts = Counter(signal_task.train.tokens.ids.tolist()) + Counter(signal_task.dev.tokens.ids.tolist())
    seen = [i for i in counts if i not in SPECIAL]
    for earlier in range(1, 4):
        here, later = ([counts[i] for i in seen if exits[i] == layer] for layer in (earlier, earlier + 1))
        assert min(here) >= max(later)
        assert len(here) == len(seen) // 4
    assert all(exits[i] == 5 for i in range(40) if i in SPECIAL or i not in counts)
    assert max(exits[i] for i in seen) == 4


@pytest.mark.parametrize("name", HASHES)
def test_special_tokens_run_to_the_last_layer(name: str, signal_task: Task, small_backbone: Backbone) -> None:
    """With every hash, special tokens of the data and of the tokenizer ([UNK], [MASK]) run to the end."""
    backbone = replace(small_backbone, tokenizer=SimpleNamespace(all_special_ids=[0, 1, 2, 7]))
    exits = token_exits(plan(5, hash=name, buckets=2), signal_task, backbone, 0)
    assert [leaving(exits)[i] for i in (0, 1, 2, 7)] == [5] * 4
    assert exits.layers[-1] == 4
    assert min(leaving(exits)) == 1


def test_information_follows_its_definition(signal_task: Task) -> None:
    """Ids with the most information about the three classes exit first; ids of dev alone run to the end."""
    train = Split(
        TokenSet.from_lists([[5, 6, 9], [5, 7, 9], [6, 8, 9], [7, 8, 9], [5, 9]]), torch.tensor([0, 0, 1, 2, 0])
    )
    task = replace(signal_task, train=train, dev=Split(TokenSet.from_lists([[30]]), torch.tensor([0])))
    words = torch.zeros(40, 2)
    joint: Counter[tuple[int, int]] = Counter()
    for sample in range(5):
        part = train.tokens.ids[train.tokens.offsets[sample] : train.tokens.offsets[sample + 1]].tolist()
        joint.update((word, int(train.labels[sample])) for word in part)
    total, p_label = sum(joint.values()), {0: 3 / 5, 1: 1 / 5, 2: 1 / 5}
    worth = Counter[int]()
    for (word, label), count in joint.items():
        p_word = sum(n for (w, _), n in joint.items() if w == word) / total
        worth[word] += count / total * math.log(count / total / (p_word * p_label[label]))  # type: ignore[assignment]
    placed = HASHES["mi"](task, words, 5, 0)
    assert [int(placed[word]) for word, _ in worth.most_common()] == [0, 1, 2, 3, 4]
    assert int(placed[30]) == LAST


def test_random_exits_depend_on_the_seed(signal_task: Task, small_backbone: Backbone) -> None:
    """Random exits are the same for all data, in training and inference; they depend on the seed; all buckets occur."""
    other = replace(signal_task, train=signal_task.dev)
    one, same, another = (
        token_exits(plan(5, hash="random"), task, small_backbone, seed).table.tolist()
        for task, seed in ((signal_task, 3), (other, 3), (signal_task, 4))
    )
    assert one == same != another
    assert set(one) == set(range(5))


def test_clusters_exit_by_the_sum_of_their_norms(signal_task: Task) -> None:
    """Similar embeddings exit together, clusters in order of the sum of their norms, the smallest first."""
    centre = torch.tensor([[50.0, 0], [0, 3], [-8, -8]])
    group = torch.arange(40) % 3
    words = centre[group] + 0.1 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    assert HASHES["clustered"](signal_task, words, 3, 0).tolist() == torch.tensor([2, 0, 1])[group].tolist()


def test_exits_apply_in_training(signal_task: Task, small_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is the cross-entropy of the executor's answers; the recipe is the released example's."""
    seen: dict[str, Any] = {}

    def caught(model: MultiExitModel, loss: Any, split: Split, recipe: Recipe, **_: Any) -> TrainingReport:
        seen.update(model=model.eval(), loss=loss, recipe=recipe)
        return TrainingReport(0.0, 0, 0, 0)

    monkeypatch.setattr(module, "train", caught)
    fitted = HashEE().fit(signal_task, small_backbone, {}, config={}, seed=0)
    assert (seen["recipe"].epochs, seen["recipe"].learning_rate) == (4, 5e-5)
    tokens, labels = signal_task.train.tokens.select(range(9)), signal_task.train.labels[:9]
    found = seen["loss"](tokens, Layout(tokens.lengths.numpy(), 16, "cpu"), labels)
    (at,) = fitted.operating_points(signal_task.dev)
    said = torch.from_numpy(fitted.predict(tokens, at=at).logits)
    assert found.item() == pytest.approx(torch.nn.functional.cross_entropy(said, labels).item(), rel=1e-4)


def test_it_beats_guessing_on_dev(fitted: HashedExits, signal_task: Task) -> None:
    """It becomes better than guessing, keeps its best dev epoch, and costs five layer passes per sample and epoch."""
    assert fitted.training is not None
    assert max(fitted.training.dev_scores) > 0.5
    assert fitted.training.layer_passes == 4 * 96 * 5
    (at,) = fitted.operating_points(signal_task.dev)
    said = fitted.predict(signal_task.dev.tokens, at=at).logits.argmax(1)
    assert (said == signal_task.dev.labels.numpy()).mean() == pytest.approx(max(fitted.training.dev_scores))


def test_tokens_run_fewer_layers(fitted: HashedExits, unseen: Split) -> None:
    """Mean layers are those of a sample's tokens; a token that has exited costs its keys and values only."""
    (at,) = fitted.operating_points(unseen)
    assert at.name == "hash"
    assert at.params == {"exits": "1 2 3 4 5"}
    work = fitted.predict(unseen.tokens, at=at).work
    exits = torch.tensor(leaving(fitted.exits))[unseen.tokens.ids.long()].double()
    exits[unseen.tokens.offsets[:-1]] = 5
    mean = np.mean([part.mean().item() for part in exits.split(unseen.tokens.lengths.tolist())])
    assert work.rows("layer") / 40 == pytest.approx(mean, abs=1e-5)
    assert 1 < mean < 5
    ran, left = exits.sum().item(), (5 - exits).sum().item()
    layer, head = fitted.cost.blocks["layer"], work.blocks["head.4"]
    expected = (
        ran * 2 * (4 * 16 * 16 + 2 * 16 * 24) + left * 4 * 16 * 16 + fitted.cost.blocks["head"].flops(head, "linear")
    )
    assert fitted.cost.flops(work, "linear") == expected
    assert layer is not None


@pytest.mark.parametrize("which", ["fitted", "scattered"])
@given(data=st.data())
@settings(max_examples=25)
def test_batches_equal_batch_1(
    data: st.DataObject,
    which: str,
    fitted: HashedExits,
    scattered: HashedExits,
    unseen: Split,
    executions: Any,
    same_however_run: Check,
) -> None:
    """Answers in batches of any size, order and layout equal those of samples run one by one."""
    method = fitted if which == "fitted" else scattered
    (at,) = method.operating_points(unseen)
    same_however_run(method, at, data.draw(executions), data.draw(st.permutations(range(40))))


def test_keeps_the_lower_layers(signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any]) -> None:
    """``layers`` limits the layers of the model and of its cost."""
    config = {**quick, "layers": 3, "buckets": 1, "first_exit": 2, "epochs": 1}
    fitted = HashEE().fit(signal_task, small_backbone, {}, config=config, seed=0)
    assert (fitted.model.depth, fitted.cost.depth, fitted.exits.layers) == (3, 3, (1, 2))
    assert set(fitted.predict(signal_task.dev.tokens, at=OperatingPoint("hash")).exit_layer) == {2}


def test_same_seed_same_fit(signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any]) -> None:
    """The same seed gives the same weights and exits, bit for bit."""
    config = {**quick, "epochs": 1, "hash": "random"}
    first, second = (HashEE().fit(signal_task, small_backbone, {}, config=config, seed=2) for _ in range(2))
    assert torch.equal(first.exits.table, second.exits.table)
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key])


def test_round_trip(
    fitted: HashedExits, signal_task: Task, small_backbone: Backbone, unseen: Split, tmp_path: Path
) -> None:
    """A loaded model has the same exits, logits and training report."""
    fitted.save(tmp_path)
    loaded = HashEE().load(tmp_path, signal_task, small_backbone, {})
    assert loaded.training == fitted.training
    assert list(loaded.operating_points(unseen)) == list(fitted.operating_points(unseen))
    (at,) = loaded.operating_points(unseen)
    assert [at.name] == HashEE().point_names({})
    first, second = (model.predict(unseen.tokens, at=at) for model in (fitted, loaded))
    np.testing.assert_array_equal(first.logits, second.logits)
    assert first.work.rows("layer") == second.work.rows("layer")


@pytest.mark.parametrize("victim", ["exits.json", "exits.safetensors", "training.json", "model.safetensors"])
def test_damage_is_a_result_error(
    victim: str, fitted: HashedExits, signal_task: Task, small_backbone: Backbone, tmp_path: Path
) -> None:
    """A broken file is a ResultError, so that the method can be fitted again."""
    fitted.save(tmp_path)
    (tmp_path / victim).write_bytes(b"{")
    with pytest.raises(ResultError, match="run again"):
        HashEE().load(tmp_path, signal_task, small_backbone, {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hash": "md5"}, "frequency"),
        ({"hash": 3}, "frequency"),
        ({"layers": 6}, "1..5"),
        ({"layers": 0}, "layers = 0 is not allowed: give an integer of at least 1"),
        ({"layers": 2.5}, "layers = 2.5 is not allowed: give an integer"),
        ({"layers": "3"}, "without quotes"),
        ({"first_exit": 0}, "first_exit"),
        ({"first_exit": 4, "layers": 3}, "first_exit"),
        ({"buckets": 6}, "1 to 5"),
        ({"buckets": 0}, "buckets"),
        ({"buckets": 3, "first_exit": 4}, "1 to 2"),
        ({"bucket": 3}, "buckets"),
        ({"epochs": 0}, "epochs"),
        ({"head": "none"}, "head"),
    ],
)
def test_invalid_settings_are_refused_before_training(
    config: dict[str, Any],
    message: str,
    signal_task: Task,
    small_backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A setting that is invalid or does not fit the backbone is a ConfigError of one line that names it."""
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ConfigError) as caught:
        HashEE().fit(signal_task, small_backbone, {}, config=config, seed=0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
