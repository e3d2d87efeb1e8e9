"""The study of orders: its command and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from suites.studies import orders
from suites.studies.shared import study
from suites.studies.shared.order_tables import glance, page, times

SMALL = ["--fixed", "4", "--batch-sizes", "2,8", "--protocols", "modern"]


def main(options: list[str], out: Path, *more: str) -> int:
    return orders.main([*options, *SMALL, "--out", str(out), *more])


def test_every_method_in_every_order(
    toy_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is a row per method, order and choice of batch size, with equal labels, and tables in both formats."""
    out = tmp_path / "orders.json"
    assert main(toy_options, out, "--methods", "bert,geep,oracle", "--protocols", "modern,paper") == 0
    said = capsys.readouterr().out
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["complete"]
    rows = found["rows"]
    assert len(rows) == 2 * 2 * 4 * 5  # protocols, regimes, entries, orders
    for row in rows:
        assert (row["protocol"], row["synthetic"], row["samples"]) in (("modern", False, 24), ("paper", False, 24))
        if row["skipped"] is None:
            assert row["labels_agree"] == 1
            assert row["samples_per_s"] == pytest.approx(24 / row["seconds"]["median"])
            assert row["seconds"]["p10"] <= row["seconds"]["median"] <= row["seconds"]["p90"]
            assert len(row["round_seconds"]) == 2
    assert {row["batch_size"] for row in rows if row["regime"] == "fixed"} == {4}
    best = {(one["protocol"], one["label"]): one["best"] for one in found["sweeps"]}
    assert all(row["batch_size"] == best[row["protocol"], row["label"]] for row in rows if row["regime"] == "best")
    assert all((row["kind"] == "bound") == ("oracle" in (row["order"], row["method"])) for row in rows)
    text = (tmp_path / "orders.md").read_text(encoding="utf-8")
    for part in ("packed", "padded to 16 tokens", "geep speed=0.5 exact-k", "labels: the same in every order", "A/A"):
        assert part in said and part in text
    assert "synthetic" not in said + text


def test_a_stopped_run_resumes(
    toy_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finished parts are not measured again; a finished run does not even load the data."""
    out = tmp_path / "orders.json"
    whole, done = orders.take_turns, []

    def stops(*args: object, **more: object) -> object:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(args)
        return whole(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(orders, "take_turns", stops)
    assert main(toy_options, out) == 130
    before = json.loads(out.read_text(encoding="utf-8"))
    assert not before["complete"]
    assert {"toy/seed0/modern/fixed/rows", "toy/seed0/modern/best/round/0"} <= set(before["parts"])
    monkeypatch.setattr(orders, "take_turns", lambda *args, **more: done.append(args) or whole(*args, **more))
    assert main(toy_options, out) == 0
    assert len(done) == 4
    after = json.loads(out.read_text(encoding="utf-8"))
    assert after["rows"][:15] == before["parts"]["toy/seed0/modern/fixed/rows"]
    monkeypatch.setattr(study, "Session", None)
    capsys.readouterr()
    assert main(toy_options, out) == 0
    assert "samples/s" in capsys.readouterr().out
    assert json.loads(out.read_text(encoding="utf-8")) == after


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--methods", "berd"], "did you mean bert"),
        (["--datasets", "tob"], "toy"),
        (["--batch-sizes", "0,2"], "whole number of at least 1"),
        (["--batch-sizes", "1", "--fixed", "1"], "batches of one"),
        (["--batch-sizes", "64", "--fixed", "24"], "fit into one batch"),
        (["--protocols", "old"], "modern, paper"),
        (["--speed", "0.3"], "it has 0.1, 0.5"),
        (["--batch-size", "3"], "--batch-sizes"),
        (["--nonsense"], "unrecognized"),
        (["--rounds", "0"], "whole number of at least 1"),
        (["--markdown", "orders.json", "--out", "orders.json"], "two files"),
    ],
)
def test_bad_input_is_one_line(
    toy_options: list[str], wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input gives one line, exit code 2 and no file."""
    assert main(toy_options, tmp_path / "orders.json", *wrong) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert said in error[-1] and error[-1].startswith("orders: ")
    assert not (tmp_path / "orders.md").exists()


def test_a_file_of_other_settings_is_not_touched(
    toy_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the setting, ``--fresh`` measures again, and files of other programs are not overwritten."""
    out = tmp_path / "orders.json"
    assert main(toy_options, out, "--methods", "bert") == 0
    before = out.read_bytes()
    assert main(toy_options, out, "--methods", "bert", "--rounds", "1") == 2
    assert "other settings (rounds)" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main(toy_options, out, "--methods", "bert", "--rounds", "1", "--fresh") == 0
    for text in ('{"suite": "latency", "parts": {}}', "[1]", "{"):
        out.write_text(text, encoding="utf-8")
        assert main(toy_options, out, "--methods", "bert", "--fresh") == 2
        assert out.read_text(encoding="utf-8") == text


def test_an_unwritable_file_is_reported_before_any_work(
    toy_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error comes before any data is loaded."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(study, "Session", None)
    assert main(toy_options, tmp_path / "file" / "orders.json") == 2
    assert "choose another file with --out" in capsys.readouterr().err


def test_rounds_of_two_machines_are_not_mixed(
    toy_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file from another machine is refused."""
    out = tmp_path / "orders.json"
    assert main(toy_options, out, "--methods", "bert") == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    found["asked"]["threads"] += 1
    out.write_text(json.dumps(found), encoding="utf-8")
    assert main(toy_options, out, "--methods", "bert") == 2
    assert "other settings (threads)" in capsys.readouterr().err


COMMON = {
    "dataset": "d", "seed": 0, "source": "embedded", "synthetic": True, "protocol": "modern", "pad_to": None,
    "regime": "fixed", "samples": 10, "tokens": 50,
}  # fmt: skip


def head(label: str, order: str, skipped: str | None = None) -> dict:
    return {"label": label, "method": label, "order": order, "skipped": skipped, "kind": "method", "batch_size": 4}


def measured(seconds: float, differ: list[int] | None = None) -> dict:
    return {
        "seconds": seconds, "predicting": 0.1 * seconds, "sorting": 0.2 * seconds, "layers": 3.0, "valid": 1.0,
        "differ": differ or [],
    }  # fmt: skip


def table(differ: list[int] | None = None, wobble: float = 1) -> list[dict]:
    """Return rows of ``bert`` and another method in arrival order, by length and in its own; the second round is half as fast.

    In the second round, orders other than arrival take ``wobble`` times as long.
    """
    seconds = {("bert", "arrival"): 8, ("bert", "length"): 4, ("other", "arrival"): 4, ("other", "length"): 1}
    seconds[("other", "own")] = 2
    none = "no order"
    heads = {f"{m} | {o}": head(m, o) for m, o in seconds}
    for m, o in [("bert", "own"), *((m, o) for m in ("bert", "other") for o in ("predicted", "oracle"))]:
        heads[f"{m} | {o}"] = head(m, o, none)
    ordered = {f"{m} | {o}": heads[f"{m} | {o}"] for m in ("bert", "other") for o in orders.ORDERS}
    rounds = [
        {
            f"{m} | {o}": measured(
                s * slow * (wobble if slow == 2 and o != "arrival" else 1),
                differ if o == "length" and slow == 2 else None,
            )
            for (m, o), s in seconds.items()
        }
        for slow in (1, 2)
    ]
    rounds[0]["bert | again"], rounds[1]["bert | again"] = measured(10), measured(16)
    return orders.rows_of(ordered, rounds, COMMON, "bert", "bert")


def test_ratios_are_paired_by_round_and_order() -> None:
    """The reference runs in the same order; a method's own order is compared with the reference sorted by length."""
    rows = {(row["label"], row["order"]): row for row in table()}
    assert rows["other", "length"]["over_arrival"]["median"] == 4
    assert rows["other", "length"]["over_reference"]["median"] == 4
    assert rows["other", "arrival"]["over_reference"]["median"] == 2
    assert rows["other", "own"]["over_reference"]["median"] == 2
    assert rows["bert", "length"]["over_arrival"] == {"median": 2, "p10": 2, "p90": 2}
    assert rows["other", "own"]["seconds"]["median"] == 3
    assert rows["other", "own"]["tokens_per_s"] == pytest.approx(50 / 3)
    assert rows["other", "own"]["predicting_share"] == pytest.approx(0.1)
    assert [row["noise"] for row in rows.values()] == [pytest.approx(1.25)] * 10  # 10 against 8 in the first round
    assert "seconds" not in rows["other", "oracle"]


def test_answers_that_depend_on_the_order_are_marked() -> None:
    """A sample whose label changed in any round counts once; float32 allows none, bfloat16 1 %."""
    rows = table(differ=[7])
    wrong = orders.disagreeing(rows, "float32")
    assert [(row["label"], row["order"], row["labels_agree"]) for row in wrong] == [
        ("bert", "length", 0.9),
        ("other", "length", 0.9),
    ]
    assert len(orders.disagreeing(rows, "bfloat16")) == 2
    assert not orders.disagreeing(table(), "float32")
    said = page(rows, [], "bert", "float32").for_terminal
    assert "NOT the same" in said and "10.00% of 10 samples" in said and " !" in said


def test_tables_name_synthetic_and_missing_values() -> None:
    """Headings say "synthetic", letters explain empty cells, and a tilde marks ratios within the noise."""
    shown = page(table(), [], "bert", "float32")
    for text in (shown.for_terminal, shown.as_markdown):
        assert "d (synthetic)" in text and "all data synthetic" in text
        assert "— a: no order" in text
        assert "1.67 2.00x" in text  # samples/s of bert by length, and over its arrival order
    # Both at their best are sorted by length: 6 s against 1.5 s.
    best = next(
        line for line in shown.for_terminal.splitlines() if line.startswith("other") and "length / length" in line
    )
    assert "4.00x" in best


def test_one_batch_size_is_shown_beside_the_best() -> None:
    """The overview compares every method in its fastest order with the reference in its fastest order."""
    rows = [{**row, "regime": regime} for regime in orders.REGIMES for row in table()]
    _, body = glance(rows, "bert")
    assert body == [
        ["bert", *["4", "length", "1.67", "1.00x"] * 2],
        ["other", *["4", "length", "6.67", "4.00x"] * 2],
    ]


def test_ratios_within_the_noise_are_marked() -> None:
    """A tilde marks ratios within the noise or with contradicting rounds, but not a ratio of 1 to itself."""

    def shown(median: float, p10: float, p90: float) -> str:
        return times({"median": median, "p10": p10, "p90": p90}, 1.25)

    assert [shown(ratio, ratio, ratio) for ratio in (0.7, 0.83, 1.1, 1.3)] == ["0.70x", "0.83x~", "1.10x~", "1.30x"]
    assert shown(1.3, 0.9, 1.5) == "1.30x~"
    assert shown(1, 1, 1) == "1.00x"
    assert times(None, 1.25) == "—"


def test_noise_includes_varying_ratios() -> None:
    """Noise includes ratios that vary from round to round; the page warns of a busy machine."""
    rows = table(wobble=2)
    assert {row["noise"] for row in rows} == {2.0}
    assert "BUSY" in page(rows, [], "bert", "float32").for_terminal
