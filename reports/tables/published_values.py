"""Values that papers print, to stand in a column of their own beside measured ones.

Only values that were read off the paper's table itself or off its authors' repository, never recalled ones:

* Chinese datasets: Liu et al., "FastBERT: a Self-distilling BERT with Adaptive Inference Time", ACL 2020, Table 2.
* AG News, two cells: the README of the authors' FastBERT repository.

FLOPs are 2 x MACs of linear layers of BERT-base at 128 tokens, in millions. The paper's own ratios are left out, as two
of them do not follow from its FLOPs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PAPER = "Liu et al., FastBERT, ACL 2020, Table 2"
README = "README of the FastBERT repository"


@dataclass(frozen=True)
class Quoted:
    """One published cell: accuracy in 0..1, FLOPs a sample (None where only the accuracy is known), and where it stands."""

    accuracy: float
    flops: float | None
    source: str


_DATASETS = ("chnsenticorp", "book_review", "shopping_review", "lcqmc", "weibo", "thucnews")
# (method, what tells the row): accuracy in % and MFLOPs per dataset, in the order above.
_TABLE: dict[tuple[str, str], tuple[tuple[float, int], ...]] = {
    ("bert", "full"): ((95.25, 21785), (86.88, 21785), (96.84, 21785), (86.68, 21785), (97.69, 21785), (96.71, 21785)),
    ("distilbert", "6 layers"): (
        (88.58, 10918),
        (83.31, 10918),
        (95.40, 10918),
        (84.12, 10918),
        (97.69, 10918),
        (95.54, 10918),
    ),
    ("distilbert", "3 layers"): (
        (87.33, 5428),
        (81.17, 5428),
        (94.84, 5428),
        (84.07, 5428),
        (97.58, 5428),
        (95.14, 5428),
    ),
    ("distilbert", "1 layers"): (
        (81.33, 1858),
        (77.40, 1858),
        (91.35, 1858),
        (71.34, 1858),
        (96.90, 1858),
        (91.13, 1858),
    ),
    ("fastbert", "speed=0.1"): (
        (95.25, 10741),
        (86.88, 13613),
        (96.79, 4885),
        (86.59, 12930),
        (97.71, 3691),
        (96.71, 3595),
    ),
    ("fastbert", "speed=0.5"): (
        (92.00, 3191),
        (86.64, 5170),
        (96.42, 2517),
        (84.05, 6352),
        (97.72, 3341),
        (95.64, 1979),
    ),
    ("fastbert", "speed=0.8"): (
        (89.75, 2315),
        (85.14, 3012),
        (95.72, 2087),
        (77.45, 3310),
        (97.69, 1982),
        (94.97, 1854),
    ),
}
QUOTED: dict[tuple[str, str, str], Quoted] = {
    (dataset, *row): Quoted(round(accuracy / 100, 4), mflops * 1e6, PAPER)
    for row, values in _TABLE.items()
    for dataset, (accuracy, mflops) in zip(_DATASETS, values, strict=True)
}
QUOTED["ag_news", "bert", "full"] = Quoted(0.9447, None, README)
QUOTED["ag_news", "fastbert", "speed=0.5"] = Quoted(0.9314, 2108e6, README)


def quoted(row: Mapping[str, Any]) -> Quoted | None:
    """What a paper prints for a row of the view; None where nothing verified is known or it is of another kind.

    Of another kind are synthetic data and backbones that are not twelve layers deep. DistilBERT rows are told apart by
    their depth, FastBERT's by their speed; its two executions here are one row there.
    """
    if row["synthetic"] or row["reference_depth"] != 12:
        return None
    method = "fastbert" if row["method"] == "fastbert-faithful" else row["method"]
    point = f"{row['depth']:g} layers" if method == "distilbert" else row["point"]
    return QUOTED.get((row["dataset"], method, point))
