"""Untrained backbones from texts."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from harness.encoder.backbone import load_backbone
from harness.pretraining import untrained


def test_a_chinese_folder_loads_with_its_characters(tmp_path: Path) -> None:
    """Chinese characters are separate tokens, and no training text is unknown."""
    texts = ["这本书很好看", "太难看了", "书 不错 good"] * 3
    pd.DataFrame({"text": texts}).to_parquet(tmp_path / "t.parquet")
    arguments = ["--texts", str(tmp_path / "t.parquet"), "--layers", "3", "--width", "16", "--heads", "2"]
    assert untrained.main([*arguments, "--out", str(tmp_path / "b")]) == 0
    backbone = load_backbone(str(tmp_path / "b"), "zh")
    tokens = backbone.encode(["这本书很好看"])
    assert len(tokens.ids) == 6 + 2
    assert backbone.tokenizer.unk_token_id not in tokens.ids.tolist()
    assert (backbone.shape.layers, backbone.shape.width) == (3, 16)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00bad", b" \n \n"])
def test_unusable_texts_are_one_line(content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing, a broken and an empty file each end with exit code 2."""
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content)
    assert untrained.main(["--texts", str(path), "--out", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An existing folder is not overwritten."""
    (tmp_path / "texts.txt").write_text("a b c\n", encoding="utf-8")
    assert untrained.main(["--texts", str(tmp_path / "texts.txt"), "--out", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
