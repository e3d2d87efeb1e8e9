"""A fabricated run folder, written through the store: data made up for tests only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.results import SAMPLE_COLUMNS, Cell, Checks, Cost, Quality, Result, Speed, Training
from harness.store import Run

DEPTH = 6
FULL = 2_000_000.0


class Fabricator:
    """Writes cells of a run; every number can be set."""

    def __init__(self, path: Path) -> None:
        self.run = Run.create(path)
        self.path = path

    def cell(
        self,
        method: str,
        point: str = "full",
        *,
        dataset: str = "ag_news",
        kind: str = "method",
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
        samples: bool = True,
        notes: Sequence[str] = (),
        fingerprint: dict[str, Any] | None = None,
        **cell: Any,
    ) -> Result:
        """Save one result with its samples."""
        rng = np.random.default_rng(abs(hash((method, point, dataset))) % 2**32)
        right = np.asarray(correct, dtype=bool) if correct is not None else np.arange(n) < round(n * (accuracy or 0.9))
        n = len(right)
        share = float(right.mean()) if accuracy is None else accuracy
        if histogram is None:
            exits = np.clip(np.round(rng.normal(layers, 0.0 if layers == DEPTH else 1.0, n)), 1, DEPTH).astype(int)
        else:
            exits = np.repeat(np.arange(1, DEPTH + 1), histogram)[:n]
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
            synthetic=synthetic,
            language=language,
            params={"speed": 0.5},
            quality=Quality(
                accuracy=share, accuracy_low=share - 0.02, accuracy_high=min(1.0, share + 0.02), macro_f1=share, n=n
            ),
            cost=Cost(
                flops_linear=flops,
                flops_full=flops * 1.1,
                params=1_000_000,
                mean_layers=layers,
                mean_heads=heads,
                depth=DEPTH,
                valid_token_ratio=0.97,
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
            ),
            training=None
            if kind != "method"
            else Training(seconds=12.5, steps=100, layer_passes=1200, passes_ratio=1.5, dev_accuracy=share),
            checks=Checks(rounds_agree=rounds_agree),
            exit_histogram=np.bincount(exits, minlength=DEPTH + 1)[1:].tolist(),
            notes=list(notes),
            fingerprint=fingerprint or {"machine": {"cpu": "a test CPU", "cores": 2}, "versions": {"torch": "2.13.0"}},
        )
        if samples:
            self.run.save(result, self.samples(right, exits, synthetic))
        else:
            self.run.save(result, self.samples(right, exits, synthetic))
            self.run.samples_path(result.cell).unlink()
        return result

    @staticmethod
    def samples(right: np.ndarray, exits: np.ndarray, synthetic: bool) -> pd.DataFrame:
        """Per-sample rows; the second half of the samples is the hard one."""
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
        """A run as the profile ``quick`` makes it, for (dataset, language) pairs."""
        rng = np.random.default_rng(7)
        for dataset, language in datasets:
            for seed in seeds:

                def right(accuracy: float) -> list[bool]:
                    return list(rng.random(n) < accuracy)

                common: dict[str, Any] = {"dataset": dataset, "language": language, "seed": seed, **cell}
                self.cell("bert", correct=right(0.9), **common)
                self.cell("distilbert", layers=3, correct=right(0.86), speedup=1.9, samples_per_s=190, **common)
                self.cell(
                    "tinybert", layers=3, correct=right(0.83), speedup=5.2, samples_per_s=520, flops=FULL / 9, **common
                )
                for speed, layers in ((0.2, 5.1), (0.5, 3.9), (0.8, 2.4)):
                    accuracy, ratio = 0.9 - 0.02 * (6 - layers), 6 / layers
                    at = f"speed={speed}"
                    fast = {**common, "layers": layers, "speedup": 0.8 * ratio, "samples_per_s": 80 * ratio}
                    good = {**common, "layers": layers, "speedup": 0.95 * ratio, "samples_per_s": 95 * ratio}
                    self.cell("fastbert", at, correct=right(accuracy), heads=layers, **fast)
                    for variant in ("", "/shared"):
                        self.cell("geep", at + variant, correct=right(accuracy - 0.02), **good)
                        for name, loss in (("constant", 0.05), ("random", 0.02), ("length", 0.09)):
                            self.cell(
                                f"control-{name}", at + variant, kind="control", correct=right(accuracy - loss), **good
                            )
                    self.cell("control-sequential", at, kind="control", correct=right(accuracy), heads=layers, **fast)
                    for variant in ("once", "steps"):
                        self.cell("geep-verified", f"{at}/{variant}", correct=right(accuracy), heads=1.4, **good)
                    self.cell("oracle", at, kind="bound", correct=right(0.97), **good)


@pytest.fixture
def fabricate(tmp_path: Path) -> Callable[..., Fabricator]:
    """Make an empty run folder to be filled."""

    def make(name: str = "a-run") -> Fabricator:
        return Fabricator(tmp_path / name)

    return make


@pytest.fixture(scope="session")
def plausible_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one synthetic dataset whose name is hard to escape and one real one; read it, do not change it."""
    fabricator = Fabricator(tmp_path_factory.mktemp("runs") / "plausible")
    fabricator.plausible([("a_b & <c>", "en")], n=120)
    fabricator.plausible([("weibo", "zh")], n=120, synthetic=False)
    return fabricator.path
