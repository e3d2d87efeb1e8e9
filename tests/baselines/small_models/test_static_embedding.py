"""Static embeddings: the recipe step by step, pairs, sizes and costs by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from baselines.small_models.static_embedding import (
    FittedStatic,
    MeanOfVectors,
    StaticEmbedding,
    token_outputs,
    zipf_weights,
)
from harness.contracts import Execution, Fitted, OperatingPoint
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.toolkit.text_models.text_model import TextLimits

FULL = OperatingPoint("full")


@pytest.fixture(scope="module")
def static(signal_task: Task, small_backbone: Backbone) -> FittedStatic:
    """Fitted on labels, which needs no teacher."""
    config = {"width": 12, "batch_size": 8, "precision": "float32"}
    return StaticEmbedding().fit(signal_task, small_backbone, {}, config=config, seed=0)


def test_it_learns(static: FittedStatic, unseen: Split) -> None:
    """Test rows are answered better than by the most common label; the backbone runs once, over the vocabulary."""
    found = static.predict(unseen.tokens, at=FULL)
    common = torch.bincount(unseen.labels).max() / len(unseen)
    assert (torch.from_numpy(found.logits.argmax(1)) == unseen.labels).float().mean() > common + 0.1
    assert static.training is not None and static.training.layer_passes == 5 * 40


def test_a_tokens_vector_is_its_own_output_between_special_tokens(small_backbone: Backbone) -> None:
    """It equals the state at the token's place of [CLS] token [SEP], and of the token alone if there are none."""
    encoder = small_backbone.encoder().eval()
    for special, row, place in (((0, 1, 2), [0, 7, 1], 1), ((), [7], 0)):
        tokens = TokenSet.from_lists([row])
        with torch.no_grad():
            *_, hidden = encoder.states(tokens, Layout(np.array([len(row)]), None, "cpu"))
        torch.testing.assert_close(token_outputs(encoder, special)[7], hidden[place])


def test_weights_follow_zipfs_law() -> None:
    """log(1 + rank) by falling frequency in train; what does not occur there has the rank after the last."""
    found = zipf_weights(torch.tensor([3, 3, 3, 1, 1, 4]), 6)
    torch.testing.assert_close(found, torch.tensor([math.log(1 + rank) for rank in (4, 2, 4, 1, 3, 4)]))


def test_a_text_is_the_mean_of_its_words_and_a_pair_has_four_parts() -> None:
    """[CLS], [SEP] and the other text have no part in a mean; the head of a pair reads u, v, |u - v| and u v."""
    limits = TextLimits(8, 16, special=(0, 1, 2))
    for pairs, width in ((False, 2), (True, 8)):
        model = MeanOfVectors(limits, 3, 2, pairs)
        seen: list[torch.Tensor] = []
        model.label.register_forward_hook(lambda module, given, output, seen=seen: seen.append(given[0]))
        tokens = TokenSet.from_lists([[0, 4, 5, 1, 6, 1], [0, 7, 1]], [[0, 0, 0, 0, 1, 1], [0, 0, 0]])
        model(tokens, Layout(np.array([6, 3]), None, "cpu"))
        table = model.table.weight
        u, v = (table[4] + table[5]) / 2, table[6]
        expected = torch.cat([u, v, (u - v).abs(), u * v]) if pairs else (table[4] + table[5] + table[6]) / 3
        assert seen[0].shape == (2, width)
        torch.testing.assert_close(seen[0][0], expected)
        torch.testing.assert_close(seen[0][1][:2], table[7])
        assert not pairs or not seen[0][1][2:4].any()  # an empty second text


def test_sizes_and_work_by_hand(static: FittedStatic, unseen: Split) -> None:
    """Pairs of this task: four times the width in the label layer; additions count in full only."""
    n, tokens, weights = len(unseen), len(unseen.tokens.ids), 4 * 12 * 3
    found = static.predict(unseen.tokens, at=FULL)
    assert (static.cost.params, static.cost.looked_up) == (41 * 12 + weights + 3, 41 * 12)
    assert static.cost.flops(found.work, "linear") == 2 * weights * n
    assert static.cost.flops(found.work, "full") == 2 * weights * n + 12 * tokens


@examples(max_examples=10)
@given(data=st.data())
def test_answers_do_not_depend_on_order_and_batch(
    data: st.DataObject,
    static: FittedStatic,
    unseen: Split,
    executions: st.SearchStrategy[Execution],
    same_however_run: Callable[[Fitted, OperatingPoint, Execution, Sequence[int]], None],
) -> None:
    """Every order, batch size, window and protocol gives the answers of samples one by one."""
    order = data.draw(st.permutations(range(len(unseen))))
    same_however_run(static, FULL, data.draw(executions), order)


def test_saved_and_loaded_it_answers_the_same(static: FittedStatic, unseen: Split, tmp_path: Path) -> None:
    """The vectors and the head are read back."""
    static.save(tmp_path)
    loaded = FittedStatic.load(tmp_path, "cpu")
    np.testing.assert_array_equal(*(one.predict(unseen.tokens, at=FULL).logits for one in (static, loaded)))


def test_more_directions_than_the_backbone_has_are_refused(signal_task: Task, small_backbone: Backbone) -> None:
    """The message has both numbers."""
    with pytest.raises(ConfigError, match="static: width = 17, but the vectors of small have 16: lower width"):
        StaticEmbedding().fit(signal_task, small_backbone, {}, config={"width": 17}, seed=0)
