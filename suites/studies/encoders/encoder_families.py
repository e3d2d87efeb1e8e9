"""Compare every family of encoders with ``transformers``, layer by layer, and what executors count with what torch counts.

::

    python -m suites.studies.encoders.encoder_families
    python -m suites.studies.encoders.encoder_families --families modernbert --length 512

Models are small and have random weights. States after the embeddings and after every layer are compared, packed and padded. Then a
model with a head after every layer runs through all executors, packed and padded, and FLOPs counted by the executor are compared
with ``torch.utils.flop_counter``. Exit code 1 if states differ by more than the tolerance, or a count is not equal.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from harness.cli.argument_types import OneLineParser, comma_separated, one_of, whole_number
from harness.contracts import Execution
from harness.core.command_line import exit_codes
from harness.core.environment import environment_facts
from harness.core.files import write_json, write_text
from harness.core.terminal_table import terminal_table
from suites.studies.shared.study_page import markdown
from suites.workloads.every_executor import counted_twice, every_executor
from suites.workloads.family_models import (
    FAMILY_MODELS,
    both_states,
    exits_of,
    family_model,
    random_texts,
    read_family,
)

NAME = "encoder_families"
TOLERANCE = 1e-4  # of states of size 1 to 10, in float32
_SHARES = (1.0, 0.06, 0.6, 0.3)  # lengths of the texts, as shares of the longest
_LOCAL = 8  # the window is an eighth of the longest text on either side


def measure(name: str, length: int) -> dict[str, Any]:
    """Return one family: largest difference per state, packed or padded, and FLOPs of every executor in both counts."""
    lengths = [max(1, round(share * length)) for share in _SHARES]
    model = family_model(name, length, max(1, length // _LOCAL))
    with tempfile.TemporaryDirectory() as folder:
        found = read_family(model, Path(folder))
    tokens = random_texts(lengths, found.shape)
    pairs = [zip(*both_states(model, found, tokens, pad_to), strict=True) for pad_to in (None, length)]
    differences = [[float((ours - theirs).abs().max()) for ours, theirs in one] for one in pairs]
    worst = np.max(differences, axis=0).tolist()
    with_exits = exits_of(found)
    flops = {}
    for protocol in ("modern", "paper"):
        execution = Execution(batch_size=3, protocol=protocol, max_length=length)
        for way, run in every_executor(with_exits, tokens, execution).items():
            flops[f"{way}, {protocol}"] = counted_twice(with_exits, run)
    return {"family": name, "differences": worst[:-1], "words": worst[-1], "flops": flops}


def _wrong(row: dict[str, Any]) -> list[str]:
    far = [f"h{number}" for number, one in enumerate(row["differences"]) if not one <= TOLERANCE]
    return far + [way for way, (ours, torchs) in row["flops"].items() if ours != torchs]


def _table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    layers = len(rows[0]["differences"]) - 1
    heads = ["family", "embeddings", *(f"layer {number}" for number in range(1, layers + 1)), "words"]
    heads.append("FLOPs equal torch's")
    body = []
    for row in rows:
        equal = sum(ours == torchs for ours, torchs in row["flops"].values())
        states = [f"{one:.0e}" if one else "0" for one in (*row["differences"], row["words"])]
        body.append([row["family"], *states, f"{equal} of {len(row['flops'])}"])
    return heads, body


@exit_codes(NAME)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = OneLineParser(prog=f"python -m suites.studies.{NAME}", description=__doc__.splitlines()[0])
    families = comma_separated(one_of(*FAMILY_MODELS))
    parser.add_argument(
        "--families", type=families, default=list(FAMILY_MODELS), metavar="A,B", help=", ".join(FAMILY_MODELS)
    )
    parser.add_argument(
        "--length", type=whole_number(8), default=64, metavar="T", help="tokens of the longest text; default 64"
    )
    parser.add_argument("--out", type=Path, default=Path(f"runs/{NAME}.json"), metavar="JSON", help="results, with .md")
    args = parser.parse_args(arguments)
    rows = [measure(name, args.length) for name in tqdm(args.families, desc=NAME, unit="family", disable=None)]
    facts = environment_facts()
    write_json(args.out, {"suite": NAME, "length": args.length, "rows": rows, "fingerprint": facts})
    heads, body = _table(rows)
    title = "Encoder families: largest difference to transformers "
    title += f"{facts['versions']['transformers']}, texts of up to {args.length} tokens"
    write_text(args.out.with_suffix(".md"), "\n".join([f"# {title}", "", *markdown(heads, body)]) + "\n")
    print(terminal_table(heads, body), end="")
    wrong = {row["family"]: found for row in rows if (found := _wrong(row))}
    for family, found in wrong.items():
        print(f"{family}: more than {TOLERANCE} apart, or other FLOPs than torch's: {', '.join(found)}")
    print(f"rows: {args.out}, table: {args.out.with_suffix('.md')}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
