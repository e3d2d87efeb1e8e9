"""RoBERTa (Liu et al. 2019, arXiv 1907.11692) and XLM-R (Conneau et al. 2020, arXiv 1911.02116): BERT with other positions.

The table of positions begins with a row for each id up to that of padding, which is 1: texts use it from row 2, so an encoder with
514 rows reads 512 tokens. There is one segment, and the masked-word head has other names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.core.errors import BackboneError
from harness.encoder.families.bert_family import BERT

PADDING = 1  # its id in all published checkpoints


def _checked(config: Mapping[str, Any]) -> Mapping[str, Any]:
    padding = config.get("pad_token_id", PADDING)
    if padding != PADDING:
        raise BackboneError(
            f"config.json has pad_token_id {padding!r}, from which RoBERTa counts its positions; only {PADDING} is supported: "
            "choose another checkpoint"
        )
    return {}


ROBERTA = replace(
    BERT,
    name="RoBERTa",
    kind="roberta",
    prefix="roberta.",
    differences=_checked,
    skipped=PADDING + 1,
    head={"dense": "lm_head.dense", "norm": "lm_head.layer_norm", "bias": "lm_head.bias", "decoder": "lm_head.decoder"},
    head_activation="gelu",
    architecture="Roberta",
    written=lambda shape: {"pad_token_id": PADDING, "bos_token_id": 0, "eos_token_id": 2},
)
XLM_R = replace(ROBERTA, name="XLM-R", kind="xlm-roberta", architecture="XLMRoberta")
