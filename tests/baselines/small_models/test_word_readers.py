"""BiLSTM and CNN: their formulas on small tensors, texts of any length, pairs, sizes and work by hand, word vectors, teaching."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from baselines.small_models.bilstm import BiLstm, BiLstmModel, FittedBiLstm
from baselines.small_models.cnn import Cnn, CnnModel, FittedCnn
from harness.contracts import Execution, Fitted, OperatingPoint
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder import miniature
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.encoder.shape import EncoderShape
from harness.measure.validation import check_work
from harness.toolkit.fitted import FullDepth
from harness.toolkit.student_start import leading_directions, own_words
from harness.toolkit.text_models.fitted_text import FittedText
from harness.toolkit.text_models.text_model import TextLimits
from harness.toolkit.text_models.word_reader import WordReader

LIMITS = TextLimits(vocab_size=60, max_positions=32, special=(0, 1, 2))
FULL = OperatingPoint("full")
KINDS: list[type[WordReader]] = [BiLstmModel, CnnModel]
FITTED: dict[type[WordReader], type[FittedText]] = {BiLstmModel: FittedBiLstm, CnnModel: FittedCnn}
SHORT = {"width": 8, "batch_size": 8, "learning_rate": 1e-2, "epochs": 12, "precision": "float32"}


def model_of(kind: type[WordReader], pairs: bool = False, **shape: Any) -> Any:
    torch.manual_seed(0)
    return kind(LIMITS, 3, **{"width": 4, "pairs": pairs, **shape}).eval()


def said(model: WordReader, tokens: TokenSet) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens, Layout(tokens.lengths.numpy(), None, "cpu"))
    return found


def words_of(model: WordReader, ids: Sequence[int]) -> Tensor:
    return model.words.weight[torch.tensor(list(ids), dtype=torch.int64)].detach()


@torch.no_grad()
def lstm_state(model: BiLstmModel, ids: Sequence[int], direction: str) -> Tensor:
    """Return the last state of one direction, gate by gate (Hochreiter and Schmidhuber 1997, as torch orders them)."""
    w, r, b, c = (
        getattr(model.lstm, f"{name}_l0{direction}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    hidden = cell = torch.zeros(model.hidden)
    vectors = words_of(model, ids)
    for vector in vectors.flip(0) if direction else vectors:
        read, forget, new, out = (w @ vector + b + r @ hidden + c).chunk(4)
        cell = forget.sigmoid() * cell + read.sigmoid() * new.tanh()
        hidden = out.sigmoid() * cell.tanh()
    return hidden


def lstm_answer(model: BiLstmModel, texts: Sequence[Sequence[int]]) -> Tensor:
    return answer(model, [torch.cat([lstm_state(model, ids, one) for one in ("", "_reverse")]) for ids in texts])


@torch.no_grad()
def cnn_answer(model: CnnModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits of a convolution of texts with four zeros on both sides, as in Kim's preparation of data."""
    vectors = []
    for ids in texts:
        text = F.pad(words_of(model, ids), (0, 0, model.gap, model.gap))
        found = []
        for size, linear in zip(model.filters, model.maps_of, strict=True):
            kernel = linear.weight.view(model.maps, size, model.width).transpose(1, 2)
            found.append(F.relu(F.conv1d(text.T[None], kernel, linear.bias)).amax(2)[0])
        vectors.append(torch.cat(found))
    return answer(model, vectors)


@torch.no_grad()
def answer(model: Any, vectors: list[Tensor]) -> Tensor:
    """Return logits of one sample; two texts are compared as u, v, |u - v|, u v."""
    if len(vectors) == 2:
        u, v = vectors
        vectors = [u, v, (u - v).abs(), u * v]
    one = torch.cat(vectors)
    found: Tensor = model.label(F.relu(model.dense(one)) if isinstance(model, BiLstmModel) else one)
    return found


BY_HAND: dict[type[WordReader], Callable[[Any, Sequence[Sequence[int]]], Tensor]] = {
    BiLstmModel: lstm_answer,
    CnnModel: cnn_answer,
}


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@examples(max_examples=12)
@given(data=st.data())
def test_answers_are_the_published_formula_for_texts_of_any_length(
    data: st.DataObject, kind: type[WordReader], pairs: bool
) -> None:
    """One token, fewer tokens than the widest filter, and others: in a batch, every text has the answer of its own formula."""
    texts = st.lists(st.integers(0, 59), min_size=1, max_size=9)
    rows = data.draw(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
    samples = [[first, second] if pairs else [first] for first, second in rows]
    ids = [[one for text in sample for one in text] for sample in samples]
    segments = [[number for number, text in enumerate(sample) for _ in text] for sample in samples]
    model = model_of(kind, pairs)
    expected = torch.stack([BY_HAND[kind](model, sample) for sample in samples])
    torch.testing.assert_close(said(model, TokenSet.from_lists(ids, segments)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_second_text_is_answered(kind: type[WordReader]) -> None:
    """It reads nothing of its neighbours: alone and in a batch the answer is the same."""
    pairs = TokenSet.from_lists([[1], [1, 9, 2, 8, 2], [1, 7, 2]], [[0], [0, 0, 0, 1, 1], [0, 0, 0]])
    model = model_of(kind, pairs=True)
    together = said(model, pairs)
    assert torch.isfinite(together).all()
    for number in range(3):
        torch.testing.assert_close(said(model, pairs.sample(number))[0], together[number])


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_read_in_order(kind: type[WordReader]) -> None:
    """The same words in another order have another answer, and so have exchanged texts of a pair."""
    swapped = TokenSet.from_lists([[1, 9, 8, 7, 2], [1, 7, 8, 9, 2]], [[0, 0, 0, 1, 1]] * 2)
    for pairs in (False, True):
        logits = said(model_of(kind, pairs), swapped)
        assert not torch.allclose(logits[0], logits[1])


def test_parameters_have_the_published_sizes() -> None:
    """30,522 words of width 300 are looked up; an LSTM of 2 x 150 and 3 x 100 filters are multiplied."""
    limits, words = TextLimits(30_522, 512), 30_522 * 300
    lstm, cnn = BiLstmModel(limits, 2).cost(), CnnModel(limits, 2).cost()
    assert (lstm.looked_up, cnn.looked_up) == (words, words)
    assert lstm.params - words == 2 * 4 * 150 * (300 + 150 + 2) + 300 * 200 + 200 + 200 * 2 + 2
    assert cnn.params - words == (3 + 4 + 5) * 300 * 100 + 300 + 300 * 2 + 2


@pytest.mark.parametrize("pairs", [False, True])
def test_work_by_hand(pairs: bool) -> None:
    """Matrices are counted in both conventions: gates for every token, filters for every window, the rest for every text."""
    tokens = TokenSet.from_lists([[1, 5, 6, 2, 9, 2], [1, 7, 2]], [[0, 0, 0, 0, 1, 1], [0, 0, 1]])
    times, texts = (4, 4) if pairs else (1, 2)
    gates, filters = 2 * 4 * 6 * (4 + 6) * 9, (3 + 4 + 5) * 4 * 2 * (9 + texts * 4)
    expected = {
        BiLstmModel: 2 * (gates + 2 * (2 * 6 * times * 5 + 5 * 3)),
        CnnModel: 2 * (filters + 2 * 3 * 2 * times * 3),
    }
    for kind, shape in ((BiLstmModel, {"hidden": 6, "dense": 5}), (CnnModel, {"maps": 2})):
        fitted = FITTED[kind](model_of(kind, pairs, **shape))
        with FlopCounterMode(display=False) as counter:
            found = fitted.predict(tokens, at=FULL)
        assert counter.get_total_flops() == expected[kind]
        assert {fitted.cost.flops(found.work, one) for one in ("linear", "full")} == {expected[kind]}
        check_work(found, fitted.cost)


@pytest.fixture(scope="module", params=[BiLstm, Cnn])
def taught(
    request: pytest.FixtureRequest, signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth
) -> FittedText:
    """Taught by bert on pairs, with its defaults but for sizes."""
    found: FittedText = request.param().fit(
        signal_task, small_backbone, {"bert": trained_bert}, config=SHORT | SIZES[request.param], seed=0
    )
    return found


SIZES: dict[Any, Mapping[str, Any]] = {BiLstm: {"hidden": 16, "dense": 12}, Cnn: {"maps": 8, "dropout": 0.1}}


def test_it_learns_from_the_teacher(taught: FittedText, unseen: Split) -> None:
    """Test rows are answered better than by the most common label; the layers that ran are the teacher's."""
    found = taught.predict(unseen.tokens, at=FULL)
    common = torch.bincount(unseen.labels).max() / len(unseen)
    assert (torch.from_numpy(found.logits.argmax(1)) == unseen.labels).float().mean() > common + 0.15
    assert isinstance(taught.model, WordReader) and taught.model.pairs
    assert taught.training is not None and taught.training.layer_passes > 0 and taught.training.flops > 0


@examples(max_examples=8)
@given(data=st.data())
def test_answers_do_not_depend_on_order_and_batch(
    data: st.DataObject,
    taught: FittedText,
    unseen: Split,
    executions: st.SearchStrategy[Execution],
    same_however_run: Callable[[Fitted, OperatingPoint, Execution, Sequence[int]], None],
) -> None:
    """Every order, batch size, window and protocol gives the answers of samples one by one."""
    order = data.draw(st.permutations(range(len(unseen))))
    same_however_run(taught, FULL, data.draw(executions), order)


def test_saved_and_loaded_it_answers_the_same(taught: FittedText, unseen: Split, tmp_path: Path) -> None:
    """Weights and sizes are read back."""
    taught.save(tmp_path)
    loaded = type(taught).load(tmp_path, "cpu")
    assert loaded.model.facts() == taught.model.facts()
    np.testing.assert_array_equal(*(one.predict(unseen.tokens, at=FULL).logits for one in (taught, loaded)))


class Untouched(FullDepth):
    """A teacher that must not run."""

    @property
    def model(self) -> Any:
        raise AssertionError("the teacher ran")

    @model.setter
    def model(self, value: Any) -> None:
        pass


@pytest.mark.parametrize("method", [BiLstm, Cnn])
def test_axes(method: Any, signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, unseen: Split) -> None:
    """Losses kl and ce, random vectors, one joint text, rows without labels: each is used, and ce never runs the teacher."""
    small = SHORT | SIZES[method] | {"epochs": 1}

    def fit(task: Task = signal_task, teacher: Any = trained_bert, **config: Any) -> Any:
        return method().fit(task, small_backbone, {"bert": teacher}, config=small | config, seed=0)

    usual = fit()
    logits = [one.predict(unseen.tokens, at=FULL).logits for one in (usual, fit(loss="kl"), fit(embeddings="random"))]
    assert not np.allclose(logits[0], logits[1]) and not np.allclose(logits[0], logits[2])
    assert not fit(pairs="joint").model.pairs
    assert fit(loss="ce", teacher=Untouched(None)).training.layer_passes == 0  # type: ignore[arg-type]
    more = replace(signal_task, read_unlabelled=lambda: unseen.tokens)
    assert fit(more, unlabelled="yes").training.sample_passes > usual.training.sample_passes
    assert method().uses_unlabelled({}) and not method().uses_unlabelled({"loss": "ce"})
    assert method().uses_word_head({"augment": 1}) and not method().uses_word_head({})
    nothing = replace(signal_task, read_unlabelled=lambda: None)
    with pytest.raises(ConfigError, match="unlabelled = \"yes\", but dataset 'signal' has no rows without labels"):
        fit(nothing, unlabelled="yes")


def test_word_vectors_start_from_the_backbone(signal_task: Task, small_backbone: Backbone) -> None:
    """They keep the angles of the backbone's at its width, and most of its vectors' squares at a smaller one."""
    words = own_words(small_backbone.encoder()).detach()
    for width in (16, 8):
        config = {**SHORT, "width": width, "epochs": 1, "loss": "ce", "learning_rate": 1e-12}
        fitted = Cnn().fit(signal_task, small_backbone, {}, config=config, seed=0)
        vectors = fitted.model.words.weight.detach()
        assert vectors.std() == pytest.approx(1, abs=1e-3)
        scale = (words @ leading_directions(small_backbone.encoder(), width)).std()
        share = (scale * vectors).square().sum() / words.square().sum()
        assert share == pytest.approx(1, abs=1e-4) if width == 16 else 0.5 < share < 0.999
    same = torch.nn.functional.cosine_similarity(vectors[5:20], vectors[6:21])
    assert not torch.allclose(same, torch.ones(15))


def test_vectors_behind_a_matrix_have_the_width_of_the_layers() -> None:
    """Where a matrix projects narrow embeddings, as in ELECTRA-small, vectors are taken behind it."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderShape(1, 16, 2, 24, 40, 16, embedding=4))
    torch.testing.assert_close(own_words(encoder), encoder.word.weight @ encoder.project.weight.T)
    assert leading_directions(encoder, 8).shape == (16, 8)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_rows_are_augmented(language: str, signal_task: Task) -> None:
    """Copies of every row train beside it, also where the tokenizer marks no words (every Chinese character is one)."""
    torch.manual_seed(0)
    tokenizer = miniature.tokenizer(language)
    encoder = Encoder(EncoderShape(1, 16, 2, 24, len(tokenizer), 16))
    backbone = Backbone("made", encoder.shape, dict(encoder.state_dict()), tokenizer)
    config = {**SHORT, "epochs": 1, "loss": "ce", "augment": 2}
    fitted = Cnn().fit(signal_task, backbone, {}, config=config, seed=0)
    assert fitted.training is not None and fitted.training.sample_passes == 3 * len(signal_task.train)


@pytest.mark.parametrize(
    ("method", "config", "message"),
    [
        (BiLstm, {"width": 17}, "bilstm: width = 17, but the vectors of small have 16: lower width, or set embeddings"),
        (BiLstm, {"hidden": 0}, "hidden"),
        (Cnn, {"filters": [3, 3]}, "a filter is given twice"),
        (Cnn, {"filters": []}, "filters"),
        (Cnn, {"pairs": "both"}, "pairs"),
        (Cnn, {"augment": 1, "loss": "ce"}, "signal cnn: backbone 'small' has no tokenizer, which finds the words"),
    ],
)
def test_wrong_settings_are_refused(
    method: Any, config: Mapping[str, Any], message: str, signal_task: Task, small_backbone: Backbone
) -> None:
    """One line names the setting and says how to mend it."""
    with pytest.raises(ConfigError, match=message):
        method().fit(signal_task, small_backbone, {}, config=config, seed=0)


@pytest.mark.gpu
def test_a_device_answers_as_the_host_does(taught: FittedText, unseen: Split, tmp_path: Path) -> None:
    """Answers differ by rounding at most, and weights of cuDNN's LSTM are stored and read as those of the host."""
    taught.save(tmp_path)
    there = type(taught).load(tmp_path, "cuda")
    found = there.predict(unseen.tokens.to("cuda"), at=FULL).logits
    np.testing.assert_allclose(found, taught.predict(unseen.tokens, at=FULL).logits, atol=1e-3)
    there.save(tmp_path)
    type(taught).load(tmp_path, "cpu")
