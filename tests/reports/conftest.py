"""Fabricated run folders for tests, written with RunFolder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.results.rows.sample_columns import BEFORE_BIT, SAMPLE_COLUMNS
from harness.results.run_folder import RunFolder
from harness.results.schema import (
    Binding,
    Cell,
    Checks,
    Cost,
    Factor,
    Latency,
    Loyalty,
    Overlaps,
    Quality,
    Resources,
    Result,
    Speed,
    SpeedupFactors,
    Tokenising,
    Training,
)

DEPTH = 6
# Of all cells, unless a test changes it: they belong together.
BINDING = Binding(
    test_rows="",
    train_rows="train",
    backbone="weights",
    max_length=64,
    training={"epochs": "3"},
    own=[],
    fits={"bert": "as in the profile"},
    versions={"bert": "1.1"},
    precision="float32",
    fit_threads=1,
)
FULL = 2_000_000.0


class Fabricator:
    """Write cells of a run; every number can be set."""

    def __init__(self, path: Path) -> None:
        self.run = RunFolder.create(path)
        self.path = path

    def cell(
        self,
        method: str,
        point: str = "full",
        *,
        dataset: str = "ag_news",
        kind: str = "method",
        role: str | None = None,
        layers: float = DEPTH,
        correct: Sequence[bool] | None = None,
        accuracy: float | None = None,
        n: int = 200,
        seed: int = 0,
        synthetic: bool = True,
        language: str = "en",
        speedup: float | None = 1.0,
        reference: str | None = "bert",
        heads: float = 1.0,
        rounds_agree: float = 1.0,
        samples_per_s: float = 100.0,
        histogram: list[int] | None = None,
        flops: float | None = None,
        train_flops: float | None = 7.5e9,
        samples: bool = True,
        notes: Sequence[str] = (),
        fingerprint: dict[str, Any] | None = None,
        exits: Sequence[int] | None = None,
        predicted: Sequence[int] | None = None,
        difficulty: Sequence[int] | None = None,
        factors: dict[str, float] | None = None,
        checks: dict[str, Any] | None = None,
        overlaps: dict[str, int] | None = None,
        latency: Sequence[tuple[int, int, float, float, float]] = (),
        footprint: dict[str, Any] | None = None,
        unseen_tokens: float | None = None,
        reference_seconds: Sequence[float] = (),
        depth: int = DEPTH,
        speed: dict[str, Any] | None = None,
        timed: bool = True,
        tokenising: float | None = None,
        binding: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        params: dict[str, Any] | None = None,
        right_at: np.ndarray | None = None,
        right_before: np.ndarray | None = None,
        label_names: Sequence[str] = (),
        looked_up: int | None = None,
        loyal: tuple[float, float] | None = None,
        **cell: Any,
    ) -> Result:
        """Save one result with its samples.

        ``right_at``: bool [n, depth], whether each layer's head is right, as an oracle stores it; there are two classes.
        ``right_before``: bool [n], the same of what answers before layer 1 (exit 0). Without ``timed`` there are no times.
        """
        rng = np.random.default_rng(abs(hash((method, point, dataset))) % 2**32)
        right = np.asarray(correct, dtype=bool) if correct is not None else np.arange(n) < round(n * (accuracy or 0.9))
        n = len(right)
        share = float(right.mean()) if accuracy is None else accuracy
        if exits is not None:
            exits = np.asarray(exits)
        elif histogram is None:
            exits = np.clip(np.round(rng.normal(layers, 0.0 if layers == depth else 1.0, n)), 1, depth).astype(int)
        else:
            exits = np.repeat(np.arange(1, depth + 1), histogram)[:n]
        flops = FULL * layers / DEPTH if flops is None else flops
        coordinates = {
            "backbone": "embedded-mini",
            "protocol": "modern",
            "order": "length",
            "executor": "own",
            "batch_size": 32,
            "device": "cpu",
            "dtype": "float32",
            "source": "embedded" if synthetic else "local",
            **cell,
        }
        wide = (lambda f: None) if speedup is None else (lambda f: speedup * f)
        result = Result(
            cell=Cell(method=method, dataset=dataset, seed=seed, point=point, **coordinates),
            kind=kind,
            role=role,
            synthetic=synthetic,
            language=language,
            params={"speed": 0.5} if params is None else params,
            quality=Quality(
                accuracy=share, accuracy_low=share - 0.02, accuracy_high=min(1.0, share + 0.02), macro_f1=share, n=n
            ),
            cost=Cost(
                flops_linear=flops,
                flops_full=flops * 1.1,
                params=1_000_000,
                mean_layers=layers,
                mean_heads=heads,
                depth=depth,
                valid_token_ratio=0.97,
                params_looked_up=looked_up,
            ),
            speed=Speed(
                samples_per_s=samples_per_s,
                seconds=n / samples_per_s,
                seconds_p10=0.9 * n / samples_per_s,
                seconds_p90=1.1 * n / samples_per_s,
                rounds=3,
                reference=reference,
                speedup=speedup,
                speedup_p10=wide(0.9),
                speedup_p90=wide(1.1),
                phases={"predict": 0.004, "schedule": 0.003} if method.startswith("geep") else {},
                **{
                    "round_seconds": [n / samples_per_s * wobble for wobble in (1.0, 1.01, 0.98)],
                    "reference_seconds": list(reference_seconds),
                    **(speed or {}),
                },
            )
            if timed
            else None,
            tokenising=None
            if tokenising is None
            else Tokenising(seconds=tokenising, passes=3, batch_size=32, threads=2),
            training=None
            if kind != "method"
            else Training(
                **{
                    "seconds": 12.5,
                    "steps": 100,
                    "layer_passes": 1200,
                    "passes_ratio": 1.5,
                    "dev_accuracy": share,
                    "flops": train_flops,
                    **(training or {}),
                }
            ),
            checks=Checks(**{"rounds_agree": rounds_agree, **(checks or {})}),
            exit_histogram=np.bincount(exits, minlength=depth + 1)[1:].tolist(),
            answered_before=int((exits == 0).sum()),
            latency=[Latency(batch_size=b, n=count, p50=a, p90=c, p99=d) for b, count, a, c, d in latency],
            speedup_factors=self.waterfall(factors) if factors else None,
            resources=Resources(**footprint) if footprint else None,
            loyalty=Loyalty(reference="bert", label_loyalty=loyal[0], probability_loyalty=loyal[1]) if loyal else None,
            overlaps=Overlaps(**overlaps) if overlaps else None,
            unseen_tokens=unseen_tokens,
            label_names=list(label_names),
            notes=list(notes),
            binding=BINDING.model_copy(update={"test_rows": dataset, **(binding or {})}),
            fingerprint=fingerprint or {"machine": {"cpu": "a test CPU", "cores": 2}, "versions": {"torch": "2.13.0"}},
        )
        frame = self.samples(right, exits, synthetic)
        if predicted is not None:
            frame["predicted_exit"] = np.asarray(predicted, dtype=np.int16)
        if difficulty is not None:
            frame["difficulty"] = np.asarray(difficulty, dtype=np.int8)
        if right_at is not None:
            bits = 1 << np.arange(right_at.shape[1], dtype=np.int64)
            frame["right_layers"] = (right_at * bits).sum(1)
            frame["agreeing_layers"] = ((right_at == right_at[:, -1:]) * bits).sum(1)
        if right_at is not None and right_before is not None:
            frame["right_layers"] += right_before.astype(np.int64) << BEFORE_BIT
            frame["agreeing_layers"] += (right_before == right_at[:, -1]).astype(np.int64) << BEFORE_BIT
        self.run.save(result, frame)
        if not samples:
            self.run.samples_path(result.cell).unlink()
        return result

    def edit(self, result: Result, change: Callable[[dict[str, Any]], object]) -> None:
        """Change a stored result as a file of an older version, which has no checksums."""
        path = self.run.result_path(result.cell)
        data = json.loads(path.read_text(encoding="utf-8"))
        del data["checksums"]
        change(data)
        path.write_text(json.dumps(data).replace("Infinity", "1e999"), encoding="utf-8")

    @staticmethod
    def waterfall(factors: dict[str, float]) -> SpeedupFactors:
        """Return these factors; their product counts as measured."""
        product = float(np.prod(list(factors.values())))
        steps = [Factor(name=name, ratio=ratio, what=f"about {name}") for name, ratio in factors.items()]
        return SpeedupFactors(factors=steps, product=product, measured=product)

    @staticmethod
    def samples(right: np.ndarray, exits: np.ndarray, synthetic: bool) -> pd.DataFrame:
        """Return per-sample rows; the second half of the samples is the hard one."""
        n = len(right)
        label = np.zeros(n, dtype=np.int64)
        frame = pd.DataFrame(
            {
                "index": np.arange(n, dtype=np.int64),
                "length": np.full(n, 20, dtype=np.int32),
                "label": label,
                "prediction": np.where(right, label, 1),
                "correct": right,
                "confidence": np.full(n, 0.9, dtype=np.float32),
                "exit_layer": exits.astype(np.int16),
                "predicted_exit": np.zeros(n, dtype=np.int16),
                "difficulty": (np.arange(n) * 3 // n if synthetic else np.full(n, -1)).astype(np.int8),
            }
        )
        return frame[list(SAMPLE_COLUMNS)]

    def plausible(
        self, datasets: Sequence[tuple[str, str]], seeds: Sequence[int] = (0,), n: int = 400, **cell: Any
    ) -> None:
        """Write a run as the profile ``quick`` makes it, for (dataset, language) pairs."""
        rng = np.random.default_rng(7)
        for dataset, language in datasets:
            for seed in seeds:

                def right(accuracy: float) -> list[bool]:
                    return list(rng.random(n) < accuracy)

                # Deeper heads are right more often, and mostly on the same samples.
                ease = rng.random(n)
                right_at = ease[:, None] + rng.normal(0, 0.08, (n, DEPTH)) < np.linspace(0.62, 0.9, DEPTH)

                def at(exits: np.ndarray, right_at: np.ndarray = right_at) -> np.ndarray:
                    """Return which samples are right if they exit at these layers."""
                    return right_at[np.arange(len(exits)), exits - 1]

                def passes() -> list[float]:
                    return list(np.exp(rng.normal(0, 0.03, 3)))

                def measured(speedup: float, layers: float = DEPTH) -> dict[str, Any]:
                    """Return speed, factors, latency and size of a method with this speed-up."""
                    ratio = DEPTH / layers
                    parts = {"layers": ratio, "length": 1.02, "attention and padding": 0.98, "heads": 0.97}
                    parts["prediction"], parts["sorting"] = 0.999, 0.995
                    parts["kernels"] = speedup / float(np.prod(list(parts.values()))) / 0.99
                    ms = 0.004 / speedup
                    return {
                        "layers": layers,
                        "speedup": speedup,
                        "samples_per_s": 100 * speedup,
                        "factors": {**parts, "rest": 0.99},
                        "latency": [(1, 120, ms, 1.1 * ms, 1.4 * ms), (32, 40, 20 * ms, 21 * ms, 24 * ms)],
                        "footprint": {"disk_bytes": 4_000_000, "host_peak_bytes": 900_000_000},
                        "speed": {"tokens_per_s": 2000.0 * speedup},
                        "reference_seconds": passes(),
                    }

                common: dict[str, Any] = {
                    "dataset": dataset,
                    "language": language,
                    "seed": seed,
                    "checks": {"batches_agree": 1.0, "state_unchanged": True},
                    "overlaps": {"train_test": 0, "dev_test": 0, "train_dev": 2, "within_test": 1},
                    **cell,
                }
                self.cell("bert", correct=right(0.9), reference_seconds=passes(), **common)
                self.cell("distilbert", correct=right(0.86), **measured(1.9, 3), **common)
                self.cell("tinybert", correct=right(0.83), flops=FULL / 9, **measured(5.2, 3), **common)
                for speed, layers in ((0.2, 5.1), (0.5, 3.9), (0.8, 2.4)):
                    accuracy, ratio = 0.9 - 0.02 * (6 - layers), 6 / layers
                    point = f"speed={speed}"
                    fast, good = measured(0.8 * ratio, layers), measured(0.95 * ratio, layers)
                    self.cell("fastbert", point, correct=right(accuracy), heads=layers, **fast, **common)
                    left = np.clip(np.round(rng.normal(layers, 1.2, n)), 1, DEPTH).astype(int)
                    said = np.clip(left + rng.integers(-1, 2, n), 1, DEPTH)
                    guesses = {
                        "constant": np.where(rng.random(n) < layers % 1, int(layers) + 1, int(layers)),
                        "random": rng.permutation(said),
                        "length": np.sort(said),
                    }
                    predicting = {**good, **common, "exits": said, "predicted": said, "unseen_tokens": 0.031}
                    self.cell("geep", point, correct=at(said), **predicting)
                    self.cell("geep", f"{point}/shared", correct=right(accuracy - 0.02), **predicting)
                    mix = {"shallow": int(layers), "deep": int(layers) + 1}
                    for name, exits in guesses.items():
                        control = {**good, **common, "exits": exits, "predicted": exits, "params": mix}
                        self.cell(f"control-{name}", point, kind="control", correct=at(exits), **control)
                    sequential = {**fast, **common, "exits": left, "heads": layers}
                    self.cell("control-sequential", point, kind="control", correct=at(left), **sequential)
                    for variant in ("once", "steps"):
                        verified = {**good, **common, "exits": left, "predicted": said, "unseen_tokens": 0.031}
                        self.cell("geep-verified", f"{point}/{variant}", correct=at(left), heads=1.4, **verified)
                first = (right_at == right_at[:, -1:]).argmax(1) + 1
                oracle = {**measured(4, 1.3), **common, "exits": first, "right_at": right_at}
                self.cell("oracle", "agree", kind="bound", correct=right_at[:, -1], **oracle)


@pytest.fixture(scope="session")
def fabricator() -> type[Fabricator]:
    """Return what makes run folders, for fixtures that are made once."""
    return Fabricator


@pytest.fixture
def fabricate(tmp_path: Path) -> Callable[..., Fabricator]:
    """Return a function that makes an empty run folder."""

    def make(name: str = "a-run") -> Fabricator:
        return Fabricator(tmp_path / name)

    return make


@pytest.fixture(scope="session")
def plausible_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run on a synthetic dataset with special characters in its name and a real one; do not change it."""
    fabricator = Fabricator(tmp_path_factory.mktemp("runs") / "plausible")
    fabricator.plausible([("a_b & <c>", "en")], n=120)
    fabricator.plausible([("weibo", "zh")], n=120, synthetic=False)
    return fabricator.path


@pytest.fixture(scope="session")
def plausible_report(plausible_run: Path) -> Path:
    """Return the page of the plausible run, whose report is written once."""
    from reports.build import write_report

    return write_report(plausible_run)


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write pages without figures, which take longer than all the rest, where a test does not look at them."""
    monkeypatch.setattr("reports.build.draw_run_figures", lambda view: [])
    monkeypatch.setattr("reports.build.draw_figures", lambda view, group: [])
