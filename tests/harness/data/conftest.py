"""A small folder of data."""

import json

import pandas as pd
import pytest

from harness.core.errors import DataError
from harness.data.local import load_local

ROWS = [("good film", 1), ("bad film", 0)] * 10


def table(rows=ROWS, columns=("text", "label")):
    return pd.DataFrame(rows, columns=list(columns))


def write(path, data):
    """Write a frame in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        data.to_parquet(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in data.to_dict("records")), encoding="utf-8")
    else:
        data.to_csv(path, index=False, sep="," if path.suffix == ".csv" else "\t")


@pytest.fixture
def folder(tmp_path):
    """A valid dataset ``toy``, in which each test damages one thing."""
    for split in ("train", "dev", "test"):
        write(tmp_path / "toy" / f"{split}.csv", table())
    return tmp_path


def refused(folder, message, name="toy"):
    with pytest.raises(DataError, match=message) as caught:
        load_local(folder, name)
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value)
