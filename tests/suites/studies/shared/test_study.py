"""The command line that all studies share."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from harness.cli.main import settings_of
from harness.cli.run_options import parser
from suites.studies.shared.study import settings_from, study_parser

STUDIES = sorted(path.stem for path in (Path(__file__).parents[4] / "suites" / "studies").glob("[a-z]*.py"))
GATE = ("history", "power", "reference")


@pytest.mark.parametrize("module", [*(f"studies.{name}" for name in STUDIES), *(f"gate.{name}" for name in GATE)])
def test_every_command_has_a_help_text(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` of every study and of the gate names the command and exits with 0."""
    with pytest.raises(SystemExit) as ended:
        import_module(f"suites.{module}").main(["--help"])
    assert ended.value.code == 0
    assert f"python -m suites.{module}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--methods", "bert,geep", "--datasets", "lcqmc", "--seeds", "0,1", "--max-test", "50"],
        ["--set", "geep.epochs=2", "--set", "mine.like=bert", "--dtype", "bfloat16", "--batch-tokens", "300"],
    ],
)
def test_a_study_reads_the_options_of_a_run(options: list[str]) -> None:
    """The same options give the same profile and settings, also with the options of a study."""
    own = study_parser("latency", "text")
    own.add_argument("--out", type=Path)
    run = settings_of(parser().parse_args(["run", *options, "--device", "cpu"]))
    assert settings_from(own.parse_args([*options, "--device", "cpu", "--out", "x.json"])) == run
