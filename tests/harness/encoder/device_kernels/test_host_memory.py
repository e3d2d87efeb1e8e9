"""Huge pages change no contents and no addresses."""

from __future__ import annotations

import torch

from harness.encoder.device_kernels.host_memory import use_huge_pages


def test_contents_and_addresses_stay() -> None:
    """Also if the system grants no huge page; a page that memory shares with other memory counts."""
    weights = torch.arange(3 << 20, dtype=torch.float32)
    before = weights.clone(), weights.data_ptr()
    assert 0 <= use_huge_pages(weights.data_ptr(), weights.nbytes) <= 7
    assert torch.equal(weights, before[0]) and weights.data_ptr() == before[1]
