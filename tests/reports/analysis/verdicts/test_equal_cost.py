"""Methods at equal cost: values by hand, who takes part, and paired tests over sets and seeds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from reports.analysis.verdicts.control_tests import AHEAD, BEHIND, NOT_FOUND
from reports.analysis.view import build_view
from tests.reports.conftest import FULL

SETS = ("ag_news", "yahoo", "lcqmc")
N = 100


def right(share: float, n: int = N) -> list[bool]:
    return (np.arange(n) < round(share * n)).tolist()


def write_profile(run, **profile):
    (run.path / "run.json").write_text(json.dumps({"profile": {"datasets": list(SETS), **profile}}), encoding="utf-8")


@pytest.fixture
def run(fabricate):
    """Three sets; "early" at 1/4 and 3/4 of the FLOPs, "slim" at half, "tiny" far below, ElasticBERT at 1/4 and full."""
    made = fabricate()
    for dataset in SETS:
        common = {"dataset": dataset, "language": "en", "label_names": ("a", "b")}
        made.cell("bert", correct=right(0.9), flops=FULL, speedup=1.0, **common)
        made.cell("early", "speed=0.8", correct=right(0.7), flops=FULL / 4, speedup=3.0, **common)
        made.cell("early", "speed=0.1", correct=right(0.9), flops=FULL * 3 / 4, speedup=1.5, **common)
        made.cell("slim", correct=right(0.82), flops=FULL / 2, speedup=2.0, **common)
        made.cell("tiny", correct=right(0.6), flops=FULL / 9, speedup=8.0, **common)
        made.cell("slow", correct=right(0.89), flops=FULL * 0.8, speedup=1.0, **common)
        made.cell("elasticbert", "budget=0.25", correct=right(0.72), flops=FULL / 4, speedup=3.0, **common)
        made.cell("elasticbert", "budget=0.75", correct=right(0.88), flops=FULL, speedup=1.0, **common)
    write_profile(made)
    return made


def ranks(run, endpoint):
    return next(one for one in build_view(run.path, samples=False).ranks if one.endpoint == endpoint)


def values(run, endpoint):
    return {one.name: one.values["ag_news (synthetic)"] for one in ranks(run, endpoint).methods}


def test_half_of_the_flops_by_hand(run):
    """Between two points a mix, above the dearest that point, below the cheapest guesses; bert is nowhere cheaper."""
    assert values(run, "flops") == pytest.approx(
        {
            "early": 0.8,
            "slim": 0.82,
            "tiny": 0.6,
            "slow": 0.89 * 0.5 / 0.8 + 0.5 * (1 - 0.5 / 0.8),
            "elasticbert": 0.72 * 2 / 3 + 0.88 / 3,
        }
    )


def test_half_of_the_time_by_hand(run):
    """At half of the time the points are mixed by their times; a method that saves none is left out."""
    found = values(run, "time")
    assert found["early"] == pytest.approx(0.8)  # 1/2 lies in the middle of 1/3 and 2/3
    assert "slow" not in found and "bert" not in found


def test_score_by_hand(run):
    """Accuracy less that of ElasticBERT's line at the same FLOPs; points that are cheaper than all of it are not scored."""
    found = values(run, "score")
    line = {0.5: 0.72 + 0.16 / 3, 0.75: 0.72 + 0.32 / 3}
    assert found["early"] == pytest.approx(((0.7 - 0.72) + (0.9 - line[0.75])) / 2)
    assert found["slim"] == pytest.approx(0.82 - line[0.5])
    assert found["elasticbert"] == pytest.approx(0)
    assert "tiny" not in found


def test_variants_of_other_depth_are_one_line(run):
    """A variant that differs in its layers alone joins the line of its method; one with other settings has its own."""
    for dataset in SETS:
        run.cell("slim-3l", dataset=dataset, correct=right(0.6), flops=FULL / 4, speedup=4.0)
        run.cell("slim-labels", dataset=dataset, correct=right(0.6), flops=FULL / 4, speedup=4.0)
    variants = {"slim-3l": {"like": "slim", "layers": 3}, "slim-labels": {"like": "slim", "alpha": 0}}
    write_profile(run, method=variants)
    names = {one.name for one in ranks(run, "flops").methods}
    assert "slim-labels" in names and "slim-3l" not in names


def test_means_are_over_sets_that_all_have(run):
    """A set that one method lacks does not count; a method on few sets has no mean; a set that the profile names is absent."""
    run.run.forget_result(next(run.path.glob("results/yahoo--tiny--*")).stem)
    run.cell("rare", dataset="ag_news", correct=right(0.99), flops=FULL / 2, speedup=2.0)
    write_profile(run, datasets=[*SETS, "weibo"])
    found = ranks(run, "flops")
    assert found.absent == ("weibo",)
    assert {one.name for one in found.methods if one.mean is None} == {"rare", "tiny"}, "two of three sets are too few"
    assert found.counted == found.sets
    assert found.ranked[0].name == "slim" and found.ranked[0].rank == 1
    for dataset in ("dbpedia", "weibo"):
        for method in ("slim", "early", "tiny"):
            run.cell(method, dataset=dataset, correct=right(0.7), flops=FULL / 2, speedup=2.0)
        run.cell("bert", dataset=dataset, correct=right(0.9))
        for method in ("slow", "elasticbert"):
            run.cell(method, "budget=0.25", dataset=dataset, correct=right(0.7), flops=FULL / 2, speedup=2.0)
    found = ranks(run, "flops")
    assert found.missing() == {"yahoo (synthetic)": ["tiny"]}
    assert len(found.counted) == 4


def test_a_missing_time_is_no_value(run):
    """Without a time on a set the method has no value there, and keeps its value at half of the FLOPs."""
    run.cell("slim", dataset="yahoo", correct=right(0.82), flops=FULL / 2, speedup=None)
    assert next(one for one in ranks(run, "time").methods if one.name == "slim").values["yahoo (synthetic)"] is None
    assert next(one for one in ranks(run, "flops").methods if one.name == "slim").values["yahoo (synthetic)"] == 0.82


def test_one_set_has_no_ranks(fabricate):
    """A run of one set has nothing to rank over sets."""
    made = fabricate()
    made.cell("bert")
    made.cell("slim", flops=FULL / 2, speedup=2.0)
    view = build_view(made.path)
    assert (view.ranks, view.equal_cost, view.set_means) == ([], [], [])


@pytest.fixture
def pairs(fabricate):
    """Two sets of 200 rows with two seeds; the predictor is right on 10 % more rows than fastbert, as right as distilbert."""
    made = fabricate()
    rng = np.random.default_rng(0)
    for dataset in SETS[:2]:
        ease = rng.random(200)
        for seed in (0, 1):
            common = {"dataset": dataset, "seed": seed, "label_names": ("a", "b")}

            def answers(share, ease=ease):
                return (ease + rng.normal(0, 0.05, 200) < share).tolist()

            made.cell("bert", correct=answers(0.9), **common)
            half = {"flops": FULL / 2, "speedup": 2.0, **common}
            made.cell("predictor", "speed=0.5", correct=answers(0.8), role="predicts-exits", **half, train_flops=3e9)
            made.cell("fastbert", "speed=0.5", correct=answers(0.7), **half, train_flops=1e9)
            made.cell("distilbert", correct=answers(0.8), **half)
    return made


def equal_cost(run):
    return {(one.cost, one.rival): one for one in build_view(run.path).equal_cost}


def test_a_planted_difference_is_found_over_sets_and_seeds(pairs):
    """Ahead of fastbert at both costs and on both sets; no difference from distilbert, with what could have been found."""
    found = equal_cost(pairs)
    for cost in ("flops", "time"):
        one = found[cost, "fastbert"]
        assert one.verdict == AHEAD and one.difference == pytest.approx(0.1, abs=0.02)
        assert len(one.ahead) == 2 and not one.behind
        assert (one.pairs, one.seeds) == (400, (2, 2))
        assert one.training == pytest.approx(3)
        same = found[cost, "distilbert"]
        assert same.verdict == NOT_FOUND and 0 < same.detectable < 0.05
    assert ("flops", "bert") not in found, "only methods that predict exits are compared, with their rivals"


def test_few_differing_rows_are_no_test(pairs):
    """With fewer than ten rows that differ there is no p, and the difference that could have been found is still stated."""
    for path in [*pairs.path.glob("results/*--distilbert--*"), *pairs.path.glob("results/*--predictor--*")]:
        pairs.run.forget_result(path.stem)
    for dataset in SETS[:2]:
        for seed in (0, 1):
            common = {"dataset": dataset, "seed": seed, "flops": FULL / 2, "speedup": 2.0, "n": 200}
            pairs.cell("predictor", "speed=0.5", correct=right(0.8, 200), role="predicts-exits", **common)
            pairs.cell("distilbert", correct=right(0.79, 200), **common)
    one = equal_cost(pairs)["flops", "distilbert"]
    assert one.p is None and one.verdict == NOT_FOUND and one.detectable > 0.01


def test_named_pairs_are_compared_both_ways(pairs):
    """A pair that the profile names is tested, too, with the opposite sign."""
    write_profile(pairs, compare={"fastbert": ["predictor"]})
    one = next(test for test in build_view(pairs.path).equal_cost if test.method == "fastbert" and test.cost == "flops")
    assert one.rival == "predictor" and one.verdict == BEHIND


def test_sides_without_a_common_seed_are_not_compared(pairs):
    """A set on which the two share no seed is named with the reason."""
    for path in pairs.path.glob("results/yahoo--fastbert--*seed0*"):
        pairs.run.forget_result(path.stem)
    for path in pairs.path.glob("results/yahoo--predictor--*seed1*"):
        pairs.run.forget_result(path.stem)
    one = equal_cost(pairs)["flops", "fastbert"]
    assert one.sets == ("ag_news (synthetic)",)
    assert "share no seed" in one.missing["yahoo (synthetic)"]
