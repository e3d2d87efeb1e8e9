"""The options of a run on many machines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.cli.cluster_options import cluster_options
from harness.cli.main import main
from harness.cli.run_options import parser
from harness.running.cluster.preflight import ClusterOptions


def test_options_say_where_a_run_goes() -> None:
    """By default to this machine; an address goes on to Ray."""
    given = ["run", "--on", "ray://head:10001", "--measure-on", "fast", "--store", "s3://b", "--device", "cpu"]
    assert cluster_options(parser().parse_args(["run"])) is None
    assert cluster_options(parser().parse_args(given)) == ClusterOptions("ray://head:10001", "fast", "s3://b", "cpu")
    assert cluster_options(parser().parse_args(["run", "--on", "ray"])) == ClusterOptions()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--store", "s3://b"], "--store is for a cluster: add --on ray"),
        (["--measure-on", "fast"], "--measure-on is for a cluster: add --on ray"),
        (["--on", "elsewhere"], "'elsewhere' is not local, ray or ray://HOST:PORT"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and exit code 2."""
    assert main(["run", *given]) == 2
    assert words in capsys.readouterr().err


def test_without_ray_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without Ray, one line says what to install, also before a dry run."""
    monkeypatch.setitem(sys.modules, "ray", None)
    for more in ([], ["--dry-run"]):
        assert main(["run", "--profile", "quick", "--out", str(tmp_path), "--on", "ray", *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("geep-bench: ") and "geep-bench[ray]" in line
