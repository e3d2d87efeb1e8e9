"""FLOPs equal FastBERT's published count and torch's count of the executed operations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

from harness.cli.main import main
from harness.contracts import Execution
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.core.work import FastBertHeadCost, LayerCost, ModelCost, Tally, Work
from harness.encoder.flops import closed_form
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import KNOWN_SHAPES, EncoderShape
from harness.execution.executors import run_full
from suites.workloads.every_executor import counted_twice, every_executor

BASE = ["flops", "--backbone", "bert-base-uncased", "--labels", "2", "--seq-len", "128"]


def facts(capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    assert main([*BASE, *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_bert_base_equals_fastberts_number(capsys: pytest.CaptureFixture[str]) -> None:
    """BERT-base at 128 tokens with FastBERT's head has 21,785,247,744 FLOPs, computed without a network."""
    assert facts(capsys)["linear"] == 21_785_247_744


@pytest.mark.parametrize("layer", [1, 2, 7, 12])
def test_every_head_costs_the_same_per_layer(capsys: pytest.CaptureFixture[str], layer: int) -> None:
    """Exiting at layer k after k heads costs k x 1,853,915,136 FLOPs, FastBERT's unit."""
    assert facts(capsys, "--exit", str(layer))["linear_every_head"] == layer * 1_853_915_136


def test_the_published_parts_add_up() -> None:
    """At 128 tokens a layer has 1,811,939,328 FLOPs and a head 41.98 M; one layer with head is 11.75 times cheaper."""
    shape, tokens = KNOWN_SHAPES["bert-base-uncased"], Tally(1, 128, 128, 128**2)
    layer = LayerCost(shape.width, shape.intermediate).flops(tokens, "linear")
    head = FastBertHeadCost(shape.width, 128, 2).flops(tokens, "linear")
    assert layer == 1_811_939_328
    assert head == 25_165_824 + 16_777_216 + 32_768  # narrow, attention, dense: 41.98 M
    every = [closed_form(shape, 2, 128, exit_layer=k, heads="every")["linear"] for k in range(1, 13)]
    assert every == [k * 1_853_915_136 for k in range(1, 13)]
    assert round((12 * layer + head) / every[0], 2) == 11.75


def test_the_text_output_names_both_conventions(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json, the output has the number and the counting convention."""
    assert main(BASE) == 0
    out = capsys.readouterr().out
    assert "21,785,247,744" in out
    assert "linear layers only" in out
    assert "every matrix product" in out


@pytest.mark.parametrize(
    ("labels", "seq_len", "exit_layer", "word"),
    [(2, 128, 13, "--exit 13"), (2, 128, 0, "--exit 0"), (1, 128, None, "--labels 1"), (2, 513, None, "--seq-len 513")],
)
def test_numbers_out_of_range_are_rejected(labels: int, seq_len: int, exit_layer: int | None, word: str) -> None:
    """The message names the option and its allowed values."""
    with pytest.raises(ConfigError, match=word):
        closed_form(KNOWN_SHAPES["bert-base-uncased"], labels, seq_len, exit_layer=exit_layer)


SMALL = EncoderShape(layers=4, width=16, heads=2, intermediate=24, vocab_size=50, max_positions=16)
SHAPES = {
    "a": SMALL,
    "b": replace(SMALL, layers=3, width=24, heads=3, intermediate=20),
    "c": replace(SMALL, layers=5, width=8, heads=1, intermediate=40),
    "narrow embeddings, shared layers": replace(SMALL, embedding=8, shared=True),
    "gates, windows": replace(
        SMALL,
        type_vocab=0,
        norm_first=True,
        bare_start=True,
        gated=True,
        biases=False,
        rotary=(1e5, 1e4),
        windows=(0, 2, 2, 0),
    ),
    "unlike layers": replace(
        SMALL,
        width=14,
        unpruned_width=16,
        sizes=(((7, 7), (7, 7), 24), ((), (), 5), ((2,), (3,), 0), ((0, 8), (8, 1), 1)),
    ),
}
LENGTHS = [5, 1, 12, 9, 12, 2, 7, 7]


@pytest.mark.parametrize("sizes", SHAPES)
def test_the_closed_form_equals_a_pass_over_one_sample(
    make_model: Callable[..., MultiExitModel], make_tokens: Callable[..., TokenSet], sizes: str
) -> None:
    """The closed form and a pass over one sample of that length give the same two numbers, also where windows save pairs."""
    shape = replace(SHAPES[sizes], max_positions=99)
    model = make_model(labels=5, shape=shape)
    for length in (9, 99):
        work = run_full(model, make_tokens([length]), Execution()).work
        expected = closed_form(shape, 5, length)
        assert expected == {kind: model.cost().flops(work, kind) for kind in ("linear", "full")}  # type: ignore[arg-type]


# One shape with both heads in both layouts; a head's count does not depend on the shape of the layers below it.
CASES = [("a", "modern", "linear"), ("a", "paper", "fastbert"), ("b", "modern", "linear"), ("c", "paper", "fastbert")]
CASES += [(sizes, protocol, "linear") for sizes in list(SHAPES)[3:] for protocol in ("modern", "paper")]
CASES += [("unlike layers", "modern", "fastbert")]
OTHERS = [case for case in product(SHAPES, ("modern", "paper"), ("fastbert", "linear")) if case not in CASES]


@pytest.mark.parametrize(
    ("sizes", "protocol", "head"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)]
)
def test_full_equals_torchs_flop_counter(
    make_model: Callable[..., MultiExitModel],
    make_tokens: Callable[..., TokenSet],
    sizes: str,
    protocol: str,
    head: str,
) -> None:
    """The executors' counts equal torch's for every executor, layout, head and shape."""
    model = make_model(labels=3, head=head, shape=SHAPES[sizes])
    execution = Execution(batch_size=3, protocol=protocol, max_length=13)  # type: ignore[arg-type]
    for name, run in every_executor(model, make_tokens(LENGTHS), execution).items():
        counted, by_torch = counted_twice(model, run)
        assert counted == by_torch > 0, name


def test_parameters_are_counted_once(tiny_model: MultiExitModel) -> None:
    """The parameter count has all numbers that must be kept in memory."""
    assert tiny_model.cost().params == sum(p.numel() for p in tiny_model.parameters())


def test_work_adds_up() -> None:
    """Merging adds tallies block by block and keeps kinds separate; no layers means no waste."""
    one, other = Work(), Work()
    one.add("layer.0", Tally(2, 10, 8, 50))
    other.add("layer.0", Tally(1, 5, 5, 25))
    other.add("layer.1", Tally(1, 5, 5, 25))
    other.add("head.teacher", Tally(3, 5, 5, 5))
    one.merge(other)
    assert one.blocks["layer.0"] == Tally(3, 15, 13, 75)
    assert (one.rows("layer"), one.rows("head"), one.rows("other")) == (4, 3, 0)
    assert one.valid_token_ratio() == pytest.approx(18 / 20)
    assert Work().valid_token_ratio() == 1.0
    with pytest.raises(KeyError):
        ModelCost({"layer": LayerCost(4, 8)}, 1, 1).flops(one, "full")
