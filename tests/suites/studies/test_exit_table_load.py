"""The study of an exit table under load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from geep.exit_table import ExitTable
from harness.kernels import host
from suites.studies.exit_table_load import chunks, main

HOST = pytest.param("host", marks=pytest.mark.skipif(host.problem() is not None, reason=str(host.problem())))


@pytest.mark.parametrize("backend", ["cpu", HOST])
def test_twenty_thousand_ngrams_are_all_found_again(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every check holds, and the file has rates, memory and facts about the machine."""
    options = ["--ngrams", "20000", "--backend", backend, "--vocab", "500", "--ngram", "3", "--seed", "7"]
    assert main([*options, "--out", str(tmp_path / "load.json")]) == 0
    facts = json.loads((tmp_path / "load.json").read_text())
    assert facts["ngrams"] >= 20_000 and facts["backend"] == backend
    assert len(facts["checks"]) == 5 and all(facts["checks"].values())
    assert facts["keys"] > 500 and facts["watched_keys"] > 500
    assert facts["peak_resident_bytes"] >= facts["table_bytes_frozen"] > 0
    assert "python" in facts["fingerprint"]
    assert "nothing lost" in capsys.readouterr().out


def test_a_lost_count_is_detected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A table that loses one count fails the check, with exit code 1."""
    export = ExitTable.counts

    def forgetful(table: ExitTable) -> tuple[np.ndarray, np.ndarray]:
        keys, counts = export(table)
        counts[0, counts[0].argmax()] -= 1
        return keys, counts

    monkeypatch.setattr(ExitTable, "counts", forgetful)
    assert main(["--ngrams", "2000", "--vocab", "50"]) == 1
    assert "FAILED: all_counted" in capsys.readouterr().out


def test_the_seed_determines_the_text() -> None:
    """A seed determines the text, because it is drawn again for the query."""
    one, two, other = (next(chunks(20, 6, 100, seed)) for seed in (1, 1, 2))
    assert one[0].ids.equal(two[0].ids) and one[1].equal(two[1])
    assert not one[0].ids.equal(other[0].ids)


def test_numbers_out_of_range_are_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A number out of range gives one line with the option, and exit code 2."""
    assert main(["--ngrams", "0"]) == 2
    assert "--ngrams: '0' is not a whole number of at least 1" in capsys.readouterr().err
    assert main(["--ngram", "4"]) == 2
    assert "--ngram 4" in capsys.readouterr().err
