"""Options and hooks of the benchmark suites: ``pytest suites/ --benchmark-only --profile quick``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.cli.argument_types import names
from harness.cli.run_options import backbones
from harness.core.environment import environment_facts
from harness.core.errors import GeepBenchError
from harness.running.run_settings import Settings, make_settings, validate_settings
from suites.cells import Sessions, cells_of


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("geep", "GEEP bench")
    group.addoption("--profile", default="quick", help="profile by name or TOML file (default: quick)")
    group.addoption("--methods", metavar="a,b", help="these methods only")
    group.addoption("--datasets", metavar="x,y", help="these datasets only")
    group.addoption("--data", type=Path, help="folder of local data")
    group.addoption("--backbone", help="en=DIR_OR_ID,zh=DIR_OR_ID")
    group.addoption("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    group.addoption("--tokens", type=int, default=200_000, help="tokens of the exit table's benchmarks")
    group.addoption(
        "--shape", default="google/bert_uncased_L-4_H-256_A-4", help="backbone shape of the executors' benchmarks"
    )
    group.addoption("--samples", type=int, default=128, help="samples of the executors' benchmarks")
    group.addoption("--batch-size", type=int, default=32, help="batch size of the executors' benchmarks")
    group.addoption(
        "--compute",
        choices=("eager", "compiled", "graphs", "compiled-graphs"),
        default="eager",
        help="how the executors' benchmarks run blocks",
    )
    group.addoption("--max-train", type=int, metavar="N", help="at most N train rows")
    group.addoption("--max-dev", type=int, metavar="N", help="at most N dev rows")
    group.addoption("--max-test", type=int, metavar="N", help="at most N test rows")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to measure in several processes at once, because they would disturb each other's times."""
    if config.getoption("dist", "no") != "no" and not config.getoption("benchmark_disable"):
        raise pytest.UsageError(
            "pytest suites/ -n: several processes at once would disturb each other's times: omit -n, or add "
            "--benchmark-disable to run every benchmark once without measuring"
        )


def _settings(config: pytest.Config) -> Settings:
    given: dict[str, Any] = {
        key: config.getoption(key) for key in ("data", "device", "max_train", "max_dev", "max_test")
    }
    given |= {key: names(text) for key in ("methods", "datasets") if (text := config.getoption(key))}
    if text := config.getoption("backbone"):
        given["backbones"] = backbones(text)
    return make_settings(config.getoption("profile"), out=Path("."), **given)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" not in metafunc.fixturenames:
        return
    try:
        settings = _settings(metafunc.config)
        validate_settings(settings)
        cells = cells_of(settings)
    except GeepBenchError as error:
        raise pytest.UsageError(str(error)) from error
    metafunc.parametrize("cell", cells, ids=str)


@pytest.fixture(scope="session")
def sessions(request: pytest.FixtureRequest) -> Sessions:
    """The datasets and fitted methods of the profile. Methods are trained here, or cached, never in a timed round."""
    return Sessions(_settings(request.config))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Store facts about the machine, so that only runs on equal machines are compared; the host's name is left out."""
    machine_info["node"] = ""
    machine_info["geep"] = environment_facts()
