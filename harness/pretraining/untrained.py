"""Make an untrained backbone folder: random weights and a vocabulary from a text file.

For languages or domains without a checkpoint, and as a control that shows the effect of pretraining::

    python -m harness.pretraining.untrained --texts train.txt --layers 6 --width 128 --out my-backbone
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from harness.core.command_line import exit_codes
from harness.core.errors import ConfigError
from harness.core.files import write_folder
from harness.data.tables import FORMATS
from harness.encoder import checkpoint
from harness.encoder.model import Encoder
from harness.encoder.shape import EncoderShape
from harness.pretraining.text import corpus, vocabulary


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file: of a table with a column ``text``, or of any other text file.

    Raises:
        DataError: the file cannot be read or has no text.
    """
    form = path.suffix[1:] if path.suffix[1:] in FORMATS else "txt"
    documents = corpus.read(corpus.CorpusFile(path, form))
    return [text for one in documents for text in ((one,) if isinstance(one, str) else one)]


def make_scratch(
    texts: Iterable[str], folder: Path, *, layers: int, width: int, heads: int, vocab: int, seed: int
) -> None:
    """Write ``config.json``, random ``model.safetensors`` and a trained WordPiece tokenizer into ``folder``.

    Chinese characters are tokens of their own, as in BERT.

    Raises:
        BackboneError: the dimensions do not fit together.
        WriteError: the folder cannot be written.
    """
    tokenizer = vocabulary.train(texts, vocab)
    shape = EncoderShape(layers, width, heads, 4 * width, tokenizer.get_vocab_size())
    torch.manual_seed(seed)
    state = Encoder(shape).state_dict()

    def fill(place: Path) -> None:
        checkpoint.write_folder(place, shape, state)
        vocabulary.save(tokenizer, place, shape.max_positions)

    write_folder(folder, fill)


@exit_codes("untrained")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.pretraining.untrained", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--texts", type=Path, required=True, help="text file, or a table with a column text")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=8000, help="vocabulary size at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.out.exists():
        raise ConfigError(f"{args.out} exists already: name another folder with --out")
    settings = vars(args)
    texts, out = read_texts(settings.pop("texts")), settings.pop("out")
    make_scratch(texts, out, **settings)
    print(f"untrained backbone written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
