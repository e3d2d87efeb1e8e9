"""A run of small real methods on made-up texts, with a random backbone; made once, in a cache of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import harness
from harness.deploy import exporting
from harness.deploy.exporting import Export, export
from harness.encoder import checkpoint
from harness.encoder.backbone import Backbone
from harness.engines.choice import WHOLE
from harness.measure import diagnostics
from harness.results.run_folder import RunFolder, stem
from harness.results.schema import Result
from harness.running.measuring.timing import TimingSettings
from harness.running.profile import Profile

# Full depth, a rule on the way, exits known beforehand, an engine, borrowed weights, tables; and what cannot be exported.
METHODS = (
    *("bert", "bert-int8", "fastbert", "geep", "geep-verified", "geep-look1", "geep-zero"),
    *("control-constant", "oracle"),
)
# The other ways to fit, to store and to decide, in slow tests.
MORE = (
    *("bert", "bert-onnx", "distilbert", "fastbert", "fastbert-int8", "berxit", "hashee", "cascadebert", "exit-rule"),
    *("deebert", "edgebert", "geep", "geep-int8", "zero-on-look1", "control-sequential"),
)
VARIANTS = {
    "bert-int8": {"like": "bert", "engine": "int8"},
    "bert-onnx": {"like": "bert", "engine": "onnx"},
    "fastbert-int8": {"like": "fastbert", "engine": "int8"},
    "geep-int8": {"like": "geep", "engine": "int8"},
    "zero-on-look1": {"like": "geep-zero", "needs": {"geep": "geep-look1"}},
}
WORDS = ("good", "bad", "fine", "poor", "film", "plot", "long", "story", "actor", "music")


def table(rows: int, seed: int, pairs: bool = False) -> pd.DataFrame:
    """Return texts of two to twelve words; the first word decides the label."""
    draw = np.random.default_rng(seed)
    words = [draw.choice(WORDS, draw.integers(2, 13)).tolist() for _ in range(rows)]
    found = pd.DataFrame({"text": [" ".join(row) for row in words]})
    if pairs:
        found["text_pair"] = [" ".join(reversed(row)) + "!" for row in words]
    found["label"] = [WORDS.index(row[0]) % 3 for row in words]
    return found


@dataclass
class MeasuredRun:
    """A finished run and what it was made with.

    Attributes:
        path: of the run.
        data, backbone: folders.
        cells: by method and point.
    """

    path: Path
    data: Path
    backbone: Path
    cells: dict[tuple[str, str], Result]

    def of(self, method: str) -> Result:
        """Return the method's cell with the most exits in use."""
        own = [result for (name, _), result in self.cells.items() if name == method]
        return max(own, key=lambda result: sum(count > 0 for count in result.exit_histogram))

    def export(self, method: str, out: Path) -> Export:
        return export(self.path, stem(self.of(method).cell), out, data=self.data, backbones={"en": str(self.backbone)})


def installed(engine: str) -> bool:
    from importlib.util import find_spec

    return all(find_spec(module) for module in WHOLE[engine].modules)  # type: ignore[index]


@pytest.fixture(scope="session")
def cache_of_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache-of-runs")


@pytest.fixture
def same_cache(cache_of_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the cache that the fits of the run are in."""
    monkeypatch.setenv("GEEP_BENCH_CACHE", str(cache_of_runs))


@pytest.fixture(scope="session")
def make_run(
    tmp_path_factory: pytest.TempPathFactory, make_backbone: Callable[..., Backbone], cache_of_runs: Path
) -> Callable[..., MeasuredRun]:
    """Return a function that measures methods on made-up texts."""

    def make(*methods: str, pairs: bool = False) -> MeasuredRun:
        place = tmp_path_factory.mktemp("measured")
        made, backbone, data = make_backbone(layers=5), place / "backbone", place / "data"
        backbone.mkdir()
        checkpoint.write_folder(backbone, made.shape, made.state)
        made.tokenizer.save_pretrained(backbone)
        (data / "mine").mkdir(parents=True)
        for seed, (split, rows) in enumerate((("train", 60), ("dev", 30), ("test", 40))):
            table(rows, seed, pairs).to_parquet(data / "mine" / f"{split}.parquet")
        (data / "mine" / "card.toml").write_text('language = "en"\nlabel_names = ["no", "maybe", "yes"]\n')
        profile = Profile(
            name="deployed",
            title="small",
            source="local",
            datasets=["mine"],
            methods=list(methods),
            rounds=1,
            speeds=[0.9, 0.98, 0.997],
            max_length=24,
            backbones={"en": str(backbone)},
            training={"epochs": 1, "learning_rate": 3e-3, "batch_size": 16, "budgets": [0.5]},
            timing=TimingSettings(untimed=[name for name in methods if name != "fastbert"]),
            method={name: VARIANTS[name] for name in methods if VARIANTS.get(name)},
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GEEP_BENCH_CACHE", str(cache_of_runs))
            patch.setattr(diagnostics, "CALLS", 3)
            run = harness.run(profile, data=data, device="cpu", out=place / "run", execution={"batch_size": 8})
        results = RunFolder.open(run.path).results()
        return MeasuredRun(run.path, data, backbone, {(r.cell.method, r.cell.point): r for r in results})

    return make


@pytest.fixture(scope="session")
def measured(make_run: Callable[..., MeasuredRun]) -> MeasuredRun:
    """A run of the kinds of methods that are always tested."""
    return make_run(*METHODS)


@pytest.fixture(scope="session")
def more_measured(make_run: Callable[..., MeasuredRun]) -> MeasuredRun:
    """A run of the other kinds, for slow tests."""
    return make_run(*(name for name in MORE if name != "bert-onnx" or installed("onnx")))


def exporter(run: MeasuredRun, cache: Path, place: Path, *, graphs: bool) -> Callable[[str], Export]:
    """Return a function that exports a method's cell; each is exported once.

    Args:
        graphs: with ONNX graphs, which take seconds.
    """
    made: dict[str, Export] = {}

    def get(method: str) -> Export:
        if method not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("GEEP_BENCH_CACHE", str(cache))
                if not graphs:
                    patch.setattr(exporting, "_write_graph", lambda *_: "")
                made[method] = run.export(method, place / method)
        return made[method]

    return get


@pytest.fixture(scope="session")
def exported(
    measured: MeasuredRun, cache_of_runs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Export]:
    return exporter(measured, cache_of_runs, tmp_path_factory.mktemp("exports"), graphs=False)


@pytest.fixture(scope="session")
def more_exported(
    more_measured: MeasuredRun, cache_of_runs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Export]:
    return exporter(more_measured, cache_of_runs, tmp_path_factory.mktemp("more-exports"), graphs=True)
