"""The pooled verdict on made-up runs: what it finds, and what it does not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from reports.verdict_power import CURVES, DEPTH, exits_of, gain_of_knowing, heads, main, measure


def test_heads_have_the_stated_accuracies() -> None:
    """The first and the last head are as accurate as the curve says, and deeper heads are better."""
    rng = np.random.default_rng(1)
    for first, last in CURVES:
        accuracy = heads(rng, rng.random(20_000), first, last).mean(0)
        assert accuracy[[0, -1]] == pytest.approx([first, last], abs=0.015)
        assert len(accuracy) == DEPTH and accuracy[2] < accuracy[8]


def test_the_planted_effect_is_there() -> None:
    """A predictor with some knowledge is more accurate than the same mix at random by what it should gain."""
    rng = np.random.default_rng(2)
    right = heads(rng, rng.random(200_000), *CURVES[0])
    exits = exits_of(rng, right, 0.1)
    mix = right[:, 2] + (exits.mean() - 3) / 6 * (right[:, 8].astype(float) - right[:, 2])
    gained = (right[np.arange(len(exits)), exits - 1] - mix).mean()
    assert gained == pytest.approx(0.1 * gain_of_knowing(right), abs=0.003)


def test_an_effect_is_found_and_nothing_is_not() -> None:
    """Two sets of 400 rows: 2.5 points are found in at least 4 of 5 runs, and without an effect in at most 1."""
    size = {"runs": 5, "sets": 2, "seeds": 2, "rows": 400}
    with_effect, without = measure(0.025, **size), measure(0.0, **size)
    assert with_effect.ahead >= 4 and with_effect.behind == 0
    assert without.ahead + without.behind <= 1
    assert with_effect.differences is not None
    assert np.mean(with_effect.differences) == pytest.approx(0.025, abs=0.01)


def test_the_command_writes_what_it_prints(tmp_path, capsys) -> None:
    """The table is marked synthetic, and the JSON has one tally per effect and one without."""
    path = tmp_path / "power.json"
    arguments = ["--effects", "3", "--runs", "1", "--sets", "1", "--seeds", "1", "--rows", "100", "--out", str(path)]
    assert main(arguments) == 0
    assert "synthetic: 1 sets" in capsys.readouterr().out
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["data"] == "synthetic" and [one["effect"] for one in stored["tallies"]] == [0.03, 0.0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--effects", "many"], "must be numbers"),
        (["--effects", "0"], "above 0"),
        (["--rows", "10"], "--rows 50 or more"),
        (["--runs", "0"], "must be 1 or more"),
    ],
)
def test_bad_input_is_refused(arguments, said, capsys) -> None:
    """Values that make no sense are refused with one line and exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and said in capsys.readouterr().err
