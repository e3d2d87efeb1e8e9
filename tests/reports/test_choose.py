"""``geep-bench choose`` on run folders: what it prints, its exit codes, and input that it cannot use."""

from __future__ import annotations

import numpy as np
import pytest

from harness.cli.main import main

N = 600


@pytest.fixture
def run(fabricate):
    """A run with a reference, a method with its answers, and one that is wrong on a tenth of the rows more."""
    made = fabricate()
    right = np.arange(N) % 10 > 0
    latency = {"latency": [(1, 100, 0.01, 0.02, 0.03)], "footprint": {"disk_bytes": 50_000_000}}
    made.cell("bert", correct=right, **latency)
    quick = {"speedup": 2.5, "samples_per_s": 250.0}
    made.cell("same", "budget=0.5", correct=right, **quick, **latency)
    made.cell(
        "worse", correct=~np.isin(np.arange(N) % 20, (0, 1, 2, 10)), **{**quick, "speedup": 5.0, "samples_per_s": 500.0}
    )
    return made


def choose(capsys, *options):
    code = main(["choose", *map(str, options)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed.out, printed.err


def test_a_recommendation_with_its_evidence(run, capsys):
    """The cell is named with its speed, its loss and bound, and the file of its result; the method that is worse is listed."""
    code, out, _ = choose(capsys, run.path)
    assert code == 0
    assert "ag_news (synthetic): use same budget=0.5. 2.50× as fast as bert; on 300 test rows 0.0 points" in out
    assert "cell: ag_news--same--budget=0.5--seed0--" in out
    assert "even test rows choose, odd ones confirm" in out
    assert any(line.startswith("> same budget=0.5") for line in out.splitlines())
    assert any("worse" in line and "−10.0" in line for line in out.splitlines())


def test_bounds_that_nothing_keeps_to(run, capsys):
    """The best cell is named and the exit code is 1, for latency and for size; the message has no recommendation."""
    code, out, _ = choose(capsys, run.path, "--max-p99-ms", "5")
    assert code == 1
    assert "nothing can be recommended" in out and "p99 30.0 ms" in out and "cell: " not in out
    code, out, _ = choose(capsys, run.path, "--max-mb", "10")
    assert code == 1 and "50.0 MB" in out
    assert choose(capsys, run.path, "--max-mb", "60", "--max-p99-ms", "30")[0] == 0


def test_an_open_decision_is_not_one_for_the_reference(run, capsys):
    """Few rows cannot show that nothing is lost: this is not called keeping the reference, which is only safe until then."""
    code, out, _ = choose(capsys, run.path, "--max-loss", "0.1")
    assert code == 0 and "keep bert" not in out
    assert "not decided whether same budget=0.5 may replace bert" in out
    assert "until then, bert is the safe choice" in out and "cell: ag_news--bert--" in out


def test_runs_that_cannot_be_used(fabricate, tmp_path, capsys):
    """A run without times, without its reference, or no run at all: one line that says what to do, and exit code 2."""
    untimed = fabricate()
    for name in ("bert", "other"):
        untimed.cell(name, timed=False)
    code, _, error = choose(capsys, untimed.path)
    assert code == 2 and "has no times" in error and len(error.strip().splitlines()) == 1
    assert choose(capsys, tmp_path / "nothing")[0] == 2


def test_a_run_without_its_reference(fabricate, capsys):
    """What is missing is named."""
    lone = fabricate()
    lone.cell("other", reference=None, speedup=None)
    code, _, error = choose(capsys, lone.path)
    assert code == 2 and "reference" in error and "--methods" in error


@pytest.mark.parametrize(
    "options", [("--confidence", "1"), ("--confidence", "0.2"), ("--max-loss", "-1"), ("--max-mb", "x")]
)
def test_invalid_limits(run, capsys, options):
    """A limit out of range is refused."""
    code, _, error = choose(capsys, run.path, *options)
    assert code == 2 and options[0] in error


def test_the_report_gives_the_same_answer(run):
    """Page and Markdown open with the recommendation of the command line, before any table, and state calibration."""
    assert main(["report", str(run.path)]) == 0
    page = (run.path / "report" / "index.html").read_text(encoding="utf-8")
    text = (run.path / "report" / "report.md").read_text(encoding="utf-8")
    for one in (page, text):
        assert "use same budget=0.5" in one
        assert one.index("use same budget=0.5") < one.index("ECE %")
    assert page.index("What to deploy") < page.index("<nav") < page.index("<table")
