"""Timed passes on a fake clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.contracts import Execution, OperatingPoint, Predictions
from harness.core import clock
from harness.core.errors import MethodError
from harness.core.tokens import TokenSet
from harness.core.work import LayerCost, ModelCost, Tally, Work
from harness.measure import passes
from harness.measure.passes import Contender, measure, measure_together, measure_untimed, timed_pass
from harness.measure.resources import reset_host_peak

ROUNDS = 5


class Time:
    """A clock that moves only when a pass advances it."""

    def __init__(self) -> None:
        self.now = 100.0


class Fake:
    """Answer with the parity of the second word, and take the given seconds for each call."""

    cost = ModelCost({"layer": LayerCost(4, 8)}, depth=1, params=0)

    def __init__(self, name: str, time: Time, calls: list, seconds: list[float]) -> None:
        self.name, self.time, self.calls, self.seconds = name, time, calls, iter(seconds)

    def logits(self, tokens: TokenSet) -> np.ndarray:
        word = tokens.ids[tokens.offsets[:-1]].numpy() % 2
        return np.eye(2, dtype=np.float32)[word]

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        spent = next(self.seconds)
        self.time.now += spent
        self.calls.append((self.name, tokens.ids[tokens.offsets[:-1]].tolist()))
        exits = np.zeros(len(tokens), dtype=np.int16)
        work = Work()
        work.add("layer.0", Tally(len(tokens), len(tokens), len(tokens), len(tokens)))
        return Predictions(self.logits(tokens), exits, work, phases={"layers": spent / 2})


class OrderDependent(Fake):
    """Answer by the position in the batch, which methods must not do."""

    def logits(self, tokens: TokenSet) -> np.ndarray:
        return np.eye(2, dtype=np.float32)[np.arange(len(tokens)) % 2]


class Foreseeing(Fake):
    """Look up exits before the run, which takes long."""

    def foresee(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        self.time.now += 1000
        return torch.zeros(len(tokens), dtype=torch.int16)

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        assert at.foresight is not None
        return super().predict(tokens, at=at)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    fake = Time()
    monkeypatch.setattr(clock, "now", lambda: fake.now)
    return fake


@pytest.fixture
def calls() -> list:
    return []


@pytest.fixture
def samples() -> TokenSet:
    """Forty samples of one word: 100, 101, 102 ..."""
    return TokenSet.from_lists([[100 + i] for i in range(40)])


def contender(fitted: Fake, batch_size: int = 2) -> Contender:
    return Contender(fitted, OperatingPoint("p", execution=Execution(batch_size=batch_size)))  # type: ignore[arg-type]


def test_medians_and_their_spread(time: Time, calls: list, samples: TokenSet) -> None:
    """Seconds are the median of the rounds without warm-up; the speed-up is the median of the ratios per round."""
    own = Fake("own", time, calls, [50, 1, 2, 3, 4, 10])
    reference = Fake("bert", time, calls, [70, 4, 4, 6, 4, 40])
    found = measure(
        contender(own), samples, rounds=ROUNDS, seed=0, reference=contender(reference), reference_name="bert"
    )
    speed = found.speed
    assert speed is not None
    assert (speed.seconds, speed.samples_per_s, speed.rounds) == (3, pytest.approx(40 / 3), ROUNDS)
    assert (speed.seconds_p10, speed.seconds_p90) == (pytest.approx(1.4), pytest.approx(7.6))
    assert speed.reference == "bert"
    assert speed.speedup == pytest.approx(2)  # of 4, 2, 2, 1, 4
    assert (speed.speedup_p10, speed.speedup_p90) == (pytest.approx(1.4), pytest.approx(4))
    assert np.divide(speed.reference_seconds, speed.round_seconds).tolist() == pytest.approx([4, 2, 2, 1, 4])
    assert speed.tokens_per_s == pytest.approx(len(samples.ids) / 3)
    assert found.speedup_factors is not None
    assert found.speedup_factors.measured == pytest.approx(2)  # of the round in the middle
    assert found.speedup_factors.product == pytest.approx(2)
    assert speed.phases == {"layers": pytest.approx(0.5)}
    assert found.predicting == pytest.approx(50 + 20 + 70 + 58)


def test_passes_alternate_on_the_same_order(time: Time, calls: list, samples: TokenSet) -> None:
    """After a warm-up of both, reference and method alternate in changing order, on the same order of samples per round."""
    measure(
        contender(Fake("own", time, calls, [1] * 9)),
        samples,
        rounds=4,
        seed=0,
        reference=contender(Fake("bert", time, calls, [1] * 9)),
        reference_name="bert",
    )
    assert [name for name, _ in calls] == ["own", "bert", "bert", "own", "own", "bert", "bert", "own", "own", "bert"]
    assert [len(words) for _, words in calls[:2]] == [2, 2]  # one batch
    rounds = [words for _, words in calls[2:]]
    assert rounds[0::2] == rounds[1::2]
    orders = rounds[0::2]
    assert orders[0] == list(range(100, 140))
    assert all(sorted(order) == orders[0] for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_contenders_share_the_passes_of_the_reference(time: Time, calls: list, samples: TokenSet) -> None:
    """Every round has one pass of each, every second round runs backwards, and each ratio is that of its own round."""
    fakes = [Fake("a", time, calls, [9, 1, 2, 4]), Fake("b", time, calls, [9, 8, 4, 2])]
    found = measure_together(
        [contender(one) for one in fakes],
        samples,
        rounds=3,
        seed=0,
        reference=contender(Fake("bert", time, calls, [9, 4, 8, 8])),
        reference_name="bert",
    )
    assert "".join(name[0] for name, _ in calls) == "abb" + "bab" + "bab" + "bab"
    assert [name for name, _ in calls[3:9]] == ["bert", "a", "b", "b", "a", "bert"]
    assert all(calls[i][1] == calls[i + 1][1] for i in (3, 4, 6, 7, 9, 10))
    speeds = [one.speed for one in found if one.speed is not None]
    assert [one.round_seconds for one in speeds] == [[1, 2, 4], [8, 4, 2]]
    assert [one.reference_seconds for one in speeds] == [[4, 8, 8]] * 2
    assert [one.speedup for one in speeds] == [pytest.approx(4), pytest.approx(2)]  # of 4, 4, 2 and 0.5, 2, 4
    assert sum(one.predicting for one in found) == 9 * 3 + 13 + 14 + 14


@pytest.mark.parametrize(
    ("drifts", "rounds"),
    [((0.0, 0.0), 2), ((0.0, 0.05), 2), ((0.1, 0.0), 4), ((0.0, 0.1), 4), ((0.05, 0.05), 4), ((0.1, *[0.0] * 5), 2)],
)
def test_rounds_end_when_speedups_are_steady(
    time: Time, calls: list, samples: TokenSet, drifts: tuple[float, ...], rounds: int
) -> None:
    """A pooled standard error of 2 % ends the rounds: differences of 5 % in one of two contenders, or of 10 % in one of six."""
    fakes = [Fake(f"own {drift}", time, calls, [1, 1, 1 + drift, *[1] * 9]) for drift in drifts]
    bert = contender(Fake("bert", time, calls, [2] * 20))
    found = measure_together(
        [contender(one) for one in fakes],
        samples,
        rounds=4,
        seed=0,
        reference=bert,
        reference_name="bert",
        tolerance=0.02,
    )
    assert [one.speed.rounds for one in found if one.speed] == [rounds] * len(drifts)


def test_a_slow_value_does_not_end_the_rounds_later(time: Time, calls: list, samples: TokenSet) -> None:
    """The rule looks at the spread alone: a steady slow method stops as early as a steady fast one; 0 runs all rounds."""
    for seconds in (1.0, 100.0):
        fakes = [contender(Fake("own", time, calls, [seconds] * 9)) for _ in range(2)]
        (found,) = measure_together(fakes[:1], samples, rounds=6, seed=0, tolerance=0.01)
        (every,) = measure_together(fakes[1:], samples, rounds=6, seed=0)
        assert found.speed is not None and every.speed is not None
        assert (found.speed.rounds, every.speed.rounds) == (2, 6)


def test_an_untimed_cell_takes_one_pass(time: Time, calls: list, samples: TokenSet) -> None:
    """No warm-up, no time; a second pass in another order is only for the check, and finds what depends on the order."""
    found = measure_untimed(contender(Fake("own", time, calls, [1] * 9)), samples, rounds=1, seed=0)
    assert (len(calls), found.speed, found.rounds_agree, found.speedup_factors) == (1, None, None, None)
    assert found.predictions.logits.argmax(1).tolist() == [i % 2 for i in range(40)]
    wrong = measure_untimed(contender(OrderDependent("own", time, calls, [1] * 9)), samples, rounds=2, seed=0)
    assert wrong.speed is None and wrong.rounds_agree is not None and wrong.rounds_agree < 0.9


def test_predictions_are_in_file_order(time: Time, calls: list, samples: TokenSet) -> None:
    """Orders differ between rounds, stored predictions are in file order, and rounds agree sample by sample."""
    found = measure(contender(Fake("own", time, calls, [1] * 9)), samples, rounds=ROUNDS, seed=3)
    assert found.predictions.logits.argmax(1).tolist() == [i % 2 for i in range(40)]
    assert found.rounds_agree == 1.0
    assert found.speed is not None
    assert (found.speed.reference, found.speed.speedup) == (None, None)
    assert (found.speed.reference_seconds, len(found.speed.round_seconds)) == ([], ROUNDS)
    assert not found.foresees


def test_order_dependent_answers_are_detected(time: Time, calls: list, samples: TokenSet) -> None:
    """Rounds disagree for a method that uses the position of a sample in the batch."""
    found = measure(contender(OrderDependent("own", time, calls, [1] * 9)), samples, rounds=ROUNDS, seed=0)
    assert found.rounds_agree is not None and found.rounds_agree < 0.5


def test_the_same_seed_gives_the_same_orders(time: Time, samples: TokenSet) -> None:
    """The seed determines the orders."""
    seen: list[list] = [[], [], []]
    for calls, seed in zip(seen, (1, 1, 2), strict=True):
        measure(contender(Fake("own", time, calls, [1] * 9)), samples, rounds=3, seed=seed)
    assert seen[0] == seen[1] != seen[2]


def test_foresight_is_marked_and_not_timed(time: Time, calls: list, samples: TokenSet) -> None:
    """The look-up of a bound is outside the timed region, and its rows are marked as a bound."""
    found = measure(contender(Foreseeing("oracle", time, calls, [1] * 9)), samples, rounds=2, seed=0)
    assert found.foresees
    assert found.speed is not None and found.speed.seconds == 1
    assert found.predicting == 3 * (1000 + 1)  # the harness itself takes no time here


def broken(change: Callable[[Predictions], None]) -> type[Fake]:
    class Broken(Fake):
        def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
            found = super().predict(tokens, at=at)
            change(found)
            return found

    return Broken


def _exits(name: str, layer: int) -> Callable[[Predictions], None]:
    return lambda found: setattr(found, name, np.full(len(found.logits), layer, np.int16))


def _set(name: str, value: object) -> Callable[[Predictions], None]:
    return lambda found: setattr(found, name, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("logits", np.zeros((3, 2), np.float32)), "for 40 samples"),
        (_set("logits", np.zeros(40, np.float32)), "for 40 samples"),
        (_set("logits", [[0.0, 1.0]] * 40), "as list: return float32"),
        (_set("logits", np.zeros((40, 2))), "as ndarray of float64: return float32"),
        (_set("exit_layer", np.zeros(39, np.int16)), r"exit_layer \(39,\) for 40 samples"),
        (_set("exit_layer", np.zeros(40)), "exit_layer as ndarray of float64: return int16"),
        (_set("predicted_exit", np.zeros(41, np.int16)), r"predicted_exit \(41,\) for 40"),
        (_set("logits", np.full((40, 2), np.nan, np.float32)), "not finite"),
        (_set("logits", np.full((40, 2), -np.inf, np.float32)), "not finite"),
    ],
)
def test_impossible_predictions_are_rejected(
    time: Time, calls: list, samples: TokenSet, change: Callable[[Predictions], None], words: str
) -> None:
    """Missing rows, a missing dimension, another type and logits that are not numbers are reported as errors of the method."""
    with pytest.raises(MethodError, match=words):
        timed_pass(contender(broken(change)("own", time, calls, [1])), samples)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_exits("exit_layer", 1), r"exit_layer from 1 to 1 for a model of 1 layers: .*0\.\.0"),
        (_exits("exit_layer", -2), "exit_layer from -2"),
        (_exits("exit_layer", -1), "all 2 samples were answered before layer 1, but counted layer.0"),
        (_exits("predicted_exit", 7), "predicted_exit from 7"),
        (_set("work", Work()), "counted no layer"),
        (
            _set("work", Work({"layer.0": Tally(1, 1, 1, 1), "gate.0": Tally(1, 1, 1, 1)})),
            "kind gate, .*has only layer",
        ),
    ],
)
def test_work_without_flops_is_rejected(
    time: Time, calls: list, samples: TokenSet, change: Callable[[Predictions], None], words: str
) -> None:
    """Exits outside the model, no layer, and blocks without a cost are reported before a round is timed."""
    with pytest.raises(MethodError, match=words):
        measure(contender(broken(change)("own", time, calls, [1] * 9)), samples, rounds=1, seed=0)


def test_methods_predict_in_inference_mode_and_the_requested_dtype(time: Time, calls: list, samples: TokenSet) -> None:
    """predict runs without gradients, and within autocast for bfloat16."""
    seen = []

    def look(_: Predictions) -> None:
        seen.append((torch.is_inference_mode_enabled(), (torch.ones(2, 2) @ torch.ones(2, 2)).dtype))

    for dtype in ("float32", "bfloat16"):
        fake = broken(look)("own", time, calls, [1])
        timed_pass(Contender(fake, OperatingPoint("p", execution=Execution(dtype=dtype))), samples)  # type: ignore[arg-type]
    assert seen == [(True, torch.float32), (True, torch.bfloat16)]


def test_phases_add_up_by_name(time: Time) -> None:
    """Times of one name are summed, different names are separate, and the CPU needs no synchronisation."""
    phases = clock.Phases("cpu")
    for name, seconds in (("layers", 2.0), ("predict", 1.0), ("layers", 0.5)):
        with phases(name):
            time.now += seconds
    assert phases.seconds() == {"layers": 2.5, "predict": 1.0}


class Compiled(Fake):
    """Makes code for every shape when it first occurs."""

    compute = "compiled"


def test_a_compiled_reference_warms_up_on_all_samples(time: Time, calls: list, samples: TokenSet) -> None:
    """Its code for all shapes is made before the first round, even beside a method that needs one batch to warm up."""
    own, bert = Fake("own", time, calls, [1] * 9), Compiled("bert", time, calls, [1] * 9)
    measure(contender(own), samples, rounds=2, seed=0, reference=contender(bert), reference_name="bert")
    assert [(name, len(words)) for name, words in calls[:2]] == [("own", 2), ("bert", 40)]


class Large(Fake):
    """Takes memory while it runs."""

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        assert np.ones(100 * 2**20, dtype=np.uint8).any()
        return super().predict(tokens, at=at)


def test_peaks_are_those_of_own_passes(calls: list, time: Time, samples: TokenSet) -> None:
    """A small method does not get the peak of the reference, nor that of a method in the same rounds."""
    if not reset_host_peak():
        pytest.skip("this system cannot reset the peak")
    small, large, bert = (contender(kind("x", time, calls, [1] * 9)) for kind in (Fake, Large, Large))
    found = measure_together([small, large], samples, rounds=2, seed=0, reference=bert, reference_name="bert")
    low, high = (one.host_peak_bytes for one in found)
    assert low is not None and high is not None and high - low > 50 * 2**20


def test_freed_memory_is_given_back_for_all_sides_alike(
    calls: list, time: Time, samples: TokenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes the next pass slower: it happens before first passes, and before those of the reference, too."""
    monkeypatch.setattr(passes, "reset_host_peak", lambda: calls.append(("given back", [])) is None)
    one, two, bert = (contender(Fake(name, time, calls, [1] * 9)) for name in ("one", "two", "bert"))
    measure_together([one, two], samples, rounds=3, seed=0, reference=bert, reference_name="bert")
    first = ["given back", "bert", "given back", "one", "given back", "two"]
    assert [name for name, _ in calls] == ["one", "two", "bert", *first, "two", "one", "bert", "bert", "one", "two"]


class Sometimes(Fake):
    """A pass with an additional phase in some rounds."""

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        found = super().predict(tokens, at=at)
        extra = {"schedule": 0.25} if len(self.calls) in (2, 4) else {}  # after the warm-up
        return replace(found, phases={**found.phases, **extra})


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_phases_may_differ_between_rounds(samples: TokenSet, time: Time, rounds: int) -> None:
    """A phase that a round does not have took no time there; it is neither dropped nor an error."""
    contender = Contender(Sometimes("a", time, [], [1.0] * 9), OperatingPoint("p"))
    found = measure(contender, samples, rounds=rounds, seed=0)
    assert found.speed is not None
    assert found.speed.phases == {"layers": 0.5, "schedule": {1: 0.25, 2: 0.125, 3: 0.25}[rounds]}
