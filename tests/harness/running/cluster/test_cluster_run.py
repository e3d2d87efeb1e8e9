"""A run on two nodes equals a plain one, whatever is lost, fails or is resumed; bad input is refused before work starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import ConfigError, DeviceError, GeepBenchError, ResultError, format_error
from harness.results.run_folder import RunFolder
from harness.running.cluster.cluster_run import ClusterRun
from harness.running.cluster.preflight import ClusterOptions
from harness.running.grid import Grid, GridOutcome
from harness.running.run_lock import run_lock
from harness.running.run_settings import Settings
from harness.running.scheduling.scheduler import LEARNS_FROM_FAILED
from harness.running.scheduling.work_items import Node

OnCluster = Callable[..., GridOutcome]


def counts(outcome: GridOutcome) -> tuple[int, int, int]:
    return outcome.measured, outcome.kept, outcome.failed


@pytest.mark.parametrize("store", [None, "memory://geep-a"])
def test_a_cluster_finds_what_one_machine_finds(
    stage: Any,
    settings: Settings,
    nodes: Any,
    on_cluster: OnCluster,
    answers_of: Callable[[Path], Any],
    tmp_path: Path,
    store: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fits are spread, measurements are on the labelled node, results are equal, each fit is made once; again nothing is done."""
    plain = replace(settings, out=tmp_path / "plain")
    Grid(plain).execute()
    fitted = sorted(stage.fits)
    stage.fits.clear()
    for folder in (tmp_path / "geep-bench-cache").iterdir():
        folder.rename(tmp_path / f"plain-{folder.name}")
    outcome = on_cluster(settings, measure_on="timing", store=store)
    assert counts(outcome) == (12, 0, 0)
    assert answers_of(settings.out) == answers_of(plain.out)
    assert sorted(stage.fits) == fitted
    assert {node for node, text in nodes.ran if text.startswith("measure")} == {"q"}
    assert {node for node, text in nodes.ran if text.startswith("fit")} >= {"p"}
    fingerprints = [result.fingerprint for result in RunFolder.open(settings.out).results()]
    assert len({facts["node"] for facts in fingerprints}) == 1 and (settings.out / "run.json").is_file()
    said = capsys.readouterr().err
    assert "ag_news three seed 0: fitted in" in said and " left; running: " in said and "ag_news one a seed 0" in said
    nodes.ran.clear()
    assert counts(on_cluster(settings, measure_on="timing", store=store)) == (0, 12, 0)
    assert not [text for _, text in nodes.ran if text.startswith(("fit", "measure"))]


def test_lost_tasks_are_done_again_and_nothing_is_lost(
    stage: Any, settings: Settings, nodes: Any, on_cluster: OnCluster
) -> None:
    """Killed workers cost an attempt, and no cell."""
    nodes.losses = {"fit ag_news one seed 0": 2, "measure lcqmc seed 0": 1, "plan ag_news seed 0": 1}
    assert counts(on_cluster(settings)) == (12, 0, 0)
    assert len([text for _, text in nodes.ran if text == "fit ag_news one seed 0"]) == 3


def test_a_poisoned_dataset_fails_alone(
    stage: Any, settings: Settings, nodes: Any, on_cluster: OnCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task that kills its worker each time fails with that reason; so does what learns from it; the other dataset is done."""
    nodes.losses = {"fit lcqmc one seed 0": 9}
    outcome = on_cluster(settings)
    assert counts(outcome) == (6, 0, 4)  # two fits, and two cells without their reference
    reasons = {
        (one["cell"]["dataset"], one["cell"]["method"]): one["reason"]
        for one in RunFolder.open(settings.out).failures()
    }
    assert "its worker process was ended, 3 times" in reasons["lcqmc", "one"]
    assert reasons["lcqmc", "three"] == LEARNS_FROM_FAILED
    nodes.losses = {"plan lcqmc seed 0": 9}
    assert counts(on_cluster(settings)) == (0, 6, 3)
    nodes.losses = {"measure lcqmc seed 0": 9}
    assert counts(on_cluster(settings)) == (0, 6, 3)
    nodes.losses = {}
    assert counts(on_cluster(settings)) == (6, 6, 0)
    assert RunFolder.open(settings.out).failures() == []


def test_fits_alone_are_counted_as_on_one_machine(
    stage: Any, settings: Settings, nodes: Any, on_cluster: OnCluster
) -> None:
    """A method whose fit raised, and one that learns from it, fail; nothing is measured."""
    stage.raises["one fit"] = RuntimeError("on purpose")
    outcome = on_cluster(settings, fit_only=True)
    assert (outcome.fitted, outcome.failed) == (2, 4) and not [text for _, text in nodes.ran if "measure" in text]
    stage.raises.clear()
    nodes.runs.clear()  # a new driver has new processes
    assert on_cluster(settings, fit_only=True).fitted == 6


def test_a_second_driver_is_refused(stage: Any, settings: Settings, on_cluster: OnCluster) -> None:
    """The run folder is locked while the first one runs."""
    with run_lock(RunFolder.create(settings.out).path), pytest.raises(ResultError, match="in use by another run"):
        on_cluster(settings)


def test_unusable_data_is_refused_before_the_first_fit(
    stage: Any, settings: Settings, nodes: Any, on_cluster: OnCluster, tmp_path: Path
) -> None:
    """Nodes load all data before anything is fitted; one line says what is wrong, whatever the number of seeds."""
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "mine" / "train.csv").write_text("nonsense\n")
    profile = settings.profile.model_copy(update={"datasets": ["mine"], "source": "local", "seeds": [0, 1]})
    with pytest.raises(ConfigError) as error:
        on_cluster(replace(settings, profile=profile, data=tmp_path / "data"))
    assert len(format_error(error.value).splitlines()) == 1 and "mine" in str(error.value)
    assert not stage.fits


def refusal(nodes: Any, settings: Settings, **options: Any) -> str:
    with pytest.raises(GeepBenchError) as error:
        ClusterRun(settings, ClusterOptions(**options), nodes).execute()
    return format_error(error.value)


def test_what_nodes_lack_is_told_before_work_starts(
    stage: Any, settings: Settings, nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line for each node, or for what no node has."""
    nodes.facts["q"] = {"versions": {"torch": "1.0"}}
    assert "node q: differs from node p in" in (text := refusal(nodes, settings)) and "torch 1.0 (not " in text
    nodes.facts["q"] = {"code": "other"}
    assert refusal(nodes, settings).startswith("node q: has another version of geep-bench")
    nodes.facts = {
        "p": {"lacks": ["does not see /here: use folders that all machines share"]},
        "q": {"reason": "cannot load geep-bench (No module torch)"},
    }
    lines = refusal(nodes, settings).splitlines()
    assert lines == [
        "node p: does not see /here: use folders that all machines share",
        "node q: cannot load geep-bench (No module torch)",
    ]
    nodes.facts = {"q": {"cpu": "another CPU"}}
    assert "nodes are of several kinds" in refusal(nodes, settings)
    nodes.facts = {}
    assert "--measure-on fast: no node has this label (labels are timing)" in refusal(
        nodes, settings, measure_on="fast"
    )
    assert "--device cuda: no node that measures has a GPU" in refusal(nodes, settings, device="cuda")
    many = replace(settings, profile=settings.profile.model_copy(update={"fit_threads": 8}))
    assert "a fit of one asks for 8 CPUs, and the largest node has 1" in refusal(nodes, many)
    assert "--store nowhere://x" in refusal(nodes, settings, store="nowhere://x")
    nodes.machines = []
    assert "no node with a CPU" in refusal(nodes, settings)
    assert not stage.fits and not issubclass(DeviceError, ResultError)


def test_only_nodes_that_see_the_folders_take_part(
    stage: Any, settings: Settings, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that does not see the run folder is named with the folder, and not with the file that it looked for."""
    from harness.running.cluster import node_work

    monkeypatch.setattr(node_work.os.path, "exists", lambda place: "geep-bench-cache" in str(place))
    lines = refusal(nodes, settings).splitlines()
    assert [line.split(": use")[0] for line in lines] == [f"node {name}: does not see {settings.out}" for name in "pq"]


def test_a_node_that_joins_is_checked_first(
    stage: Any, settings: Settings, nodes: Any, on_cluster: OnCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gets work if it is like the others, and a line says why it does not."""
    nodes.facts["bad"] = {"code": "other"}
    start = nodes.start

    def joining(item: Any, node: Node) -> None:
        if item.message["work"] == "fit" and len(nodes.machines) == 2:
            nodes.machines += [Node("bad", 1.0), Node("good", 1.0)]
        start(item, node)

    nodes.start = joining
    assert counts(on_cluster(settings)) == (12, 0, 0)
    assert {node for node, text in nodes.ran if text.startswith("fit")} >= {"p", "good"}
    assert not [text for node, text in nodes.ran if node == "bad" and not text.startswith("probe")]
    said = capsys.readouterr().err
    assert (
        "node good has joined\n" in said
        and "node bad has joined, but gets no work: node bad: has another version" in said
    )


def test_the_forecast_starts_nothing(stage: Any, settings: Settings, nodes: Any) -> None:
    """It lists nodes, fits with their times, and measurements, and leaves no run folder."""
    text = ClusterRun(settings, ClusterOptions(), nodes).forecast()
    assert "fits: 0 of 6 cached, 6 missing" in text and "on 2 nodes" in text and "timing" in text
    assert "measurements: 2 datasets and seeds" in text
    assert not stage.fits and not settings.out.exists()


def test_making_everything_again_is_for_one_machine(settings: Settings, nodes: Any) -> None:
    """``--fresh`` is refused."""
    with pytest.raises(ConfigError, match="--fresh is for one machine"):
        ClusterRun(replace(settings, fresh=True), ClusterOptions(), nodes)
