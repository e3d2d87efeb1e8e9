"""The setting ``executor`` of a method: variants share fits, cells and executions follow it, and what cannot be is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.contracts import ASSIGNED, BY_RULE, Execution
from harness.core.errors import ConfigError, MethodError
from harness.engines.choice import check_executor, execution_on
from harness.results.run_folder import RunFolder
from harness.running import profile
from harness.running.grid import Grid
from harness.running.run_settings import Settings, validate_settings
from harness.running.session import Session

TABLES = {"two": {"rate": 0.5}, "two-refilled": {"like": "two", "executor": "rebatch"}}


def having(settings: Settings, method: dict[str, Any], *names: str) -> Settings:
    """Return settings with these tables that measure these names on one dataset."""
    changes = {"method": method, "methods": list(names), "datasets": ["ag_news"]}
    return Settings(settings.profile.model_copy(update=changes), settings.out, device="cpu")


def ruled(stage: Any) -> None:
    """Let the fake method follow an exit rule."""
    stage.add("two", fitted=type("Ruled", (stage.add("two").fitted,), {"executor": BY_RULE}))


def test_executors_share_one_fit(stage: Any, grid_settings: Settings) -> None:
    """A method is trained once for both of its executors; cells state them and are measured once."""
    ruled(stage)
    settings = having(grid_settings, TABLES, "one", "two", "two-refilled")
    assert Grid(settings).execute().failed == 0
    assert stage.fits == ["one ag_news 0", "two ag_news 0"]
    assert stage.configs["two"] == {"speeds": [0.1, 0.5, 0.8], "rate": 0.5}  # an executor is no setting
    results = RunFolder.open(settings.out).results()
    found = {result.cell.method: result.cell.executor for result in results}
    assert found == {"one": "full", "two": "shrink", "two-refilled": "rebatch"}
    again = Grid(settings).execute()
    assert (again.measured, again.kept) == (0, len(results))
    assert Grid(having(grid_settings, {"two": {"rate": 0.5, "executor": "rebatch"}}, "two")).execute().measured == 2


def test_the_executor_of_the_run_and_of_a_method(stage: Any, grid_settings: Settings) -> None:
    """A method's own executor replaces the run's; each kind of executor has its own key in the execution."""
    ruled(stage)
    session = Session(having(grid_settings, TABLES), "ag_news", 0)
    ways = [session.contender(name, session.points(name)[0]).point.execution for name in TABLES]
    assert [way.rule_executor for way in ways] == ["shrink", "rebatch"]
    assert execution_on("bfloat16", Execution(7), "exact-k") == Execution(7, dtype="bfloat16", executor="exact-k")
    assert execution_on(None, Execution(rule_executor="rebatch"), None).rule_executor == "rebatch"
    assert execution_on(None, Execution(), "verified") == Execution()


@pytest.mark.parametrize(
    ("own", "executor", "words"),
    [
        (
            ASSIGNED,
            "rebatch",
            "m: executor 'rebatch' follows an exit rule, and this method is of another kind: choose ladder or exact-k",
        ),
        (
            BY_RULE,
            "ladder",
            "m: executor 'ladder' needs exits that are known beforehand, and this method is of another kind: choose sh",
        ),
        (
            "full",
            "shrink",
            "and this method is of another kind: remove that key, as it always runs its own executor, 'full'",
        ),
        (ASSIGNED, "exact-k", None),
        (BY_RULE, "rebatch", None),
    ],
)
def test_executors_that_a_method_cannot_use(own: str, executor: Any, words: str | None) -> None:
    """The error says what the executor needs and what to choose."""
    if words is None:
        check_executor(executor, "m", SimpleNamespace(executor=own))
        return
    with pytest.raises(MethodError) as caught:
        check_executor(executor, "m", SimpleNamespace(executor=own))
    assert words in str(caught.value)


def test_a_wrong_executor_fails_its_cells_before_training(
    stage: Any, grid_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the cells of that variant fail, in one line, and nothing is trained for it."""
    outcome = Grid(having(grid_settings, TABLES, "one", "two-refilled")).execute()
    assert (outcome.failed, stage.fits) == (1, ["one ag_news 0"])
    assert "ag_news two-refilled fit: two-refilled: executor 'rebatch' follows an exit rule" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "like", "executor"), [("g", "geep", "rebatch"), ("r", "fastbert-faithful", "rebatch")]
)
def test_methods_of_this_project_are_refused_before_their_data_is_read(
    name: str, like: str, executor: str, tmp_path: Path
) -> None:
    """GEEP assigns exits, and the released loop has its own executor."""
    chosen = profile.load("quick").model_copy(update={"method": {name: {"like": like, "executor": executor}}})
    with pytest.raises(MethodError, match=f"^{name}: executor '{executor}'"):
        Session(Settings(chosen, tmp_path), "no such data", 0).fitted(name)


def test_unknown_executors_are_refused_before_anything_runs(tmp_path: Path) -> None:
    """The line names the table, the key, and what is allowed."""
    changes = {"method": {"fastbert": {"executor": "refill"}}, "name": "t"}
    chosen = profile.load("quick").model_copy(update=changes)
    chosen._origin = "t"
    with pytest.raises(ConfigError) as caught:
        validate_settings(Settings(chosen, tmp_path))
    assert 'profile t, [method.fastbert]: executor = "refill" is not allowed' in str(caught.value)
    assert '"ladder", "exact-k", "shrink", "rebatch"' in str(caught.value)
