"""Pretrained encoders: the embedded miniature, a local folder or a hub id."""

from __future__ import annotations

import difflib
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.core.digest import check_seal, seal
from harness.core.errors import BackboneError, ConfigError, ResultError, first_line
from harness.core.files import cache_root, write_folder
from harness.core.text_formats import read_json
from harness.core.tokens import TokenSet
from harness.encoder import checkpoint, miniature
from harness.encoder.families.bert_family import BERT
from harness.encoder.families.family import Family
from harness.encoder.model import Encoder
from harness.encoder.shape import KNOWN_SHAPES, EncoderShape

EMBEDDED = "embedded"
_CHARACTERS = 64  # texts with more characters per token of the budget are shortened before they are truncated
# Files of vocabularies, each set enough: any kind, WordPiece, byte-level BPE, and two names of Unigram's.
_VOCABULARIES = (
    {"tokenizer.json"},
    {"vocab.txt"},
    {"vocab.json", "merges.txt"},
    {"sentencepiece.bpe.model"},
    {"spiece.model"},
)
_MARGIN = 8  # tokens that a shortened text keeps beyond the budget: at its ends, tokenizers may mark words


def _content(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name].numpy()).data)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Backbone:
    """A pretrained encoder with its tokenizer; methods take fresh copies of it.

    Attributes:
        name: as requested (folder name, hub id or ``"embedded"``), shown in tables.
        shape: dimensions.
        state: weights of :class:`~harness.encoder.model.Encoder`, float32 on the CPU.
        tokenizer: a fast tokenizer of transformers.
        device: where methods train and predict.
        head: state of the checkpoint's masked-word head, if it has one (see
            :class:`~harness.encoder.checkpoint.Checkpoint`); not part of the fingerprint.
        tokenizer_fingerprint: content hash of the tokenizer's files; empty for a tokenizer that was made in memory.
        family: of the checkpoint.
    """

    name: str
    shape: EncoderShape
    state: dict[str, Tensor]
    tokenizer: Any
    device: str = "cpu"
    head: dict[str, Tensor] | None = None
    tokenizer_fingerprint: str = ""
    family: Family = BERT

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of shape and weights, without the masked-word head, which few methods use."""
        return _content(repr(self.shape), self.state)

    @cached_property
    def head_fingerprint(self) -> str:
        """Content hash of the masked-word head; empty if there is none."""
        return "" if self.head is None else _content("", self.head)

    def encoder(self) -> Encoder:
        """Return a new copy of the encoder on :attr:`device`."""
        encoder = Encoder(self.shape)
        encoder.load_state_dict(self.state)
        return encoder.to(self.device)

    def check_words(self, tokenizer: Any, what: str) -> None:
        """Check that another tokenizer has the same vocabulary.

        Args:
            what: the student that it belongs to, for the error.

        Raises:
            ConfigError: it has another one.
        """
        if self.tokenizer is None or tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise ConfigError(
                f"{what} has another vocabulary than the teacher's backbone '{self.name}', so that token ids differ: "
                "choose a student made from that backbone"
            )

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int = 128) -> TokenSet:
        """Tokenise to packed ids with special tokens.

        Samples are truncated to ``max_length`` tokens, the longer text of a pair first, at the side that the tokenizer says.
        """
        max_length = min(max_length, self.shape.max_positions)
        batch = self.tokenizer(
            *self._shortened([list(texts)] if pairs is None else [list(texts), list(pairs)], max_length),
            truncation=True,
            max_length=max_length,
            return_token_type_ids=True,
            return_attention_mask=False,
        )
        special = {self.tokenizer.cls_token_id, self.tokenizer.sep_token_id, self.tokenizer.pad_token_id} - {None}
        tokens = TokenSet.from_lists(batch["input_ids"], batch["token_type_ids"], tuple(sorted(special)))
        # Some checkpoints have only one segment; the second text of a pair then uses it, too.
        return replace(tokens, segments=tokens.segments.clamp(max=max(self.shape.type_vocab, 1) - 1))

    def _shortened(self, columns: list[list[str]], max_length: int) -> list[list[str]]:
        """Return texts (and second texts); very long ones without most of what truncation removes, which takes quadratic time.

        The longer text of a pair stays the longer one, as it gets the odd token of the budget.
        """
        for number, sample in enumerate(zip(*columns, strict=True)):
            if max(map(len, sample)) <= _CHARACTERS * max_length or not self.tokenizer.is_fast:
                continue
            whole = [
                self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
                for text in sample
            ]
            keep = max_length + _MARGIN
            for part in sorted(range(len(sample)), key=lambda part: len(whole[part]["input_ids"])):
                text, kept = self._cut(sample[part], whole[part]["offset_mapping"], whole[part].word_ids(), keep)
                columns[part][number] = text
                keep = max(keep, kept + 1)
        return columns

    def _cut(self, text: str, places: list[tuple[int, int]], words: list[int], keep: int) -> tuple[str, int]:
        """Cut a text between two words, since a cut inside a word could change its tokens.

        Args:
            places: first character of every token, and the one after its last.
            words: number of every token's word.
            keep: at least so many tokens are kept, if there are so many.

        Returns:
            The text and its number of tokens.
        """
        if self.tokenizer.truncation_side == "left":
            first = next((i for i in range(len(words) - keep, 0, -1) if words[i - 1] != words[i]), 0)
            return text[places[first][0] :] if first else text, len(words) - first
        end = next((i for i in range(keep, len(words)) if words[i - 1] != words[i]), len(words))
        return text[: places[end - 1][1]] if end < len(words) else text, end


def embedded_folder(language: str, *, progress: bool = True) -> Path:
    """Return the embedded miniature as a Hugging Face folder; pretrained on first use (under a minute), then cached.

    Damaged files are found by their checksums, reported, and made again.
    """
    folder = cache_root() / "backbones" / f"embedded-{miniature.recipe_key()}-{language}"
    damaged = False
    try:
        if folder.is_dir():
            check_seal(folder)
            return folder
    except ResultError as error:
        print(f"{error}; pretraining the embedded miniature again", file=sys.stderr)
        damaged = True
    bar = progress and sys.stderr.isatty()
    if progress and not bar:
        print("pretraining the embedded miniature, once, about a minute", file=sys.stderr, flush=True)
    shape, state = miniature.pretrain_miniature(progress=bar)
    # Both languages share the weights: their vocabularies list the same concepts in the same order.
    for other in miniature.LANGUAGES:
        target = folder.with_name(f"embedded-{miniature.recipe_key()}-{other}")
        tokenizer = miniature.tokenizer(other)

        def fill(place: Path, tokenizer: Any = tokenizer) -> None:
            checkpoint.write_folder(place, shape, state)
            tokenizer.save_pretrained(place)
            seal(place)

        write_folder(target, fill, replace=damaged and other == language)
    return folder


def _hub_folder(name: str) -> Path:
    """Download a hub repository, ``id`` or ``id@revision``, and return its folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    weights = [checkpoint.WEIGHTS, checkpoint.INDEX, "model-*-of-*.safetensors"]
    wanted = ["config.json", "adapter_config.json", *weights, *checkpoint.TOKENIZER_FILES]
    repository, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        near = difflib.get_close_matches(name, [EMBEDDED, *KNOWN_SHAPES], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise BackboneError(
            f"backbone '{name}' is neither a folder here nor reachable on the hub ({type(error).__name__}): "
            f"{hint}give a local folder, or 'embedded'; shapes known by name: {', '.join(KNOWN_SHAPES)}"
        ) from error
    if (folder / "config.json").is_file() and not any(folder.glob("model*.safetensors")):
        raise BackboneError(
            f"hub repository '{name}' has no safetensors (a pytorch_model.bin may hold code and is never read): take a "
            f"converted revision if its page lists one, as {repository}@refs/pr/1, or convert it with transformers' "
            "AutoModelForMaskedLM.from_pretrained(ID).save_pretrained(DIR) and give DIR"
        )
    return folder


def _folder(name: str, language: str, *, progress: bool = True) -> Path:
    """Return the folder of a backbone's files."""
    if name == EMBEDDED:
        return embedded_folder(language, progress=progress)
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else _hub_folder(name)


def shown_name(name: str) -> str:
    """Return the name that tables show for a backbone: a folder without its path."""
    folder = Path(name).expanduser()
    return folder.resolve().name if name != EMBEDDED and folder.is_dir() else name


def content_of(name: str, language: str) -> str:
    """Return the content hash of the files behind a name, without loading them; see :func:`load_backbone`."""
    return checkpoint.content_of(_folder(name, language))


def _check_tokenizer_class(folder: Path) -> None:
    """Check the tokenizer's class if nothing else says how to tokenise.

    Raises:
        BackboneError: ``tokenizer_config.json`` is damaged or names a class that transformers does not have.
    """
    import transformers

    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    try:
        kind = read_json(path).get("tokenizer_class")
    except (OSError, ValueError, AttributeError) as error:
        raise BackboneError(f"{path} is not a valid JSON object ({first_line(error)}): fetch it again") from error
    known = not kind or kind in dir(transformers)
    if not isinstance(kind, str | None) or not (known or (folder / "tokenizer.json").is_file()):
        raise BackboneError(
            f"{path} has tokenizer_class = {kind!r}, which transformers {transformers.__version__} does not know: correct it, "
            "or add a tokenizer.json"
        )


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a folder as transformers does.

    Raises:
        BackboneError: it is missing or damaged, needs a library that is missing, or does not put special tokens around texts.
    """
    from transformers import AutoTokenizer

    names = [path.name for path in checkpoint.tokenizer_files(folder)]
    # Without these files transformers silently builds a tokenizer without any words.
    if not any(need <= set(names) for need in _VOCABULARIES):
        raise BackboneError(
            f"no usable tokenizer in {folder}: add tokenizer.json, or the vocabulary: vocab.txt, or vocab.json and merges.txt, or "
            "sentencepiece.bpe.model, or spiece.model"
        )
    _check_tokenizer_class(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
        tokenizer("x" * 1000)  # too long for a word, thus [UNK]: fails where the vocabulary has none
    except ImportError as error:
        raise BackboneError(
            f"the tokenizer in {folder} needs a library that is missing ({first_line(error).split('. ')[0]}): install it, or "
            "give a folder with another tokenizer"
        ) from error
    except Exception as error:  # the tokenizers library raises plain Exception
        raise BackboneError(
            f"no usable tokenizer in {folder} ({first_line(error)}): fetch {' and '.join(names)} again"
        ) from error
    read = set(tokenizer.vocab_files_names.values())
    if not read & set(names):
        raise BackboneError(
            f"the tokenizer in {folder} is a {type(tokenizer).__name__}, which reads {' or '.join(sorted(read))}, not "
            f"{' and '.join(names)}: correct tokenizer_class in tokenizer_config.json"
        )
    around = tokenizer("a")["input_ids"]
    if None in (ends := (tokenizer.cls_token_id, tokenizer.sep_token_id)) or (around[0], around[-1]) != ends:
        raise BackboneError(
            f"the tokenizer in {folder} does not put special tokens around a text, one like [CLS] before and one like [SEP] after "
            "it: use the tokenizer of the checkpoint that the weights are from"
        )
    return tokenizer


def load_backbone(name: str, language: str, *, device: str = "cpu", progress: bool = True) -> Backbone:
    """Load a backbone by ``"embedded"``, folder or hub id (``id@revision`` for a revision other than the newest).

    Raises:
        BackboneError: it cannot be found or read, or its tokenizer does not fit its embeddings.
    """
    folder = _folder(name, language, progress=progress)
    found = checkpoint.read(folder)
    tokenizer = load_tokenizer(folder)
    _make_threads(tokenizer)
    size = 1 + max(tokenizer.get_vocab().values())
    if size > found.shape.vocab_size:
        raise BackboneError(
            f"the tokenizer in {folder} has {size} tokens, the embeddings {found.shape.vocab_size}: "
            "use the tokenizer of this checkpoint"
        )
    state = {k: v.contiguous() for k, v in found.state.items()}
    words = checkpoint.tokenizer_content_of(folder)
    return Backbone(shown_name(name), found.shape, state, tokenizer, device, found.head, words, found.family)


def _make_threads(tokenizer: Any) -> None:
    """Let the library of fast tokenizers make its threads, as many as torch has.

    It makes them in the first parallel call of a process, by default one per core, and keeps their number. Tokenising is timed
    beside passes on torch's threads, long after the first call.
    """
    given = "RAYON_NUM_THREADS" in os.environ
    os.environ.setdefault("RAYON_NUM_THREADS", str(torch.get_num_threads()))
    tokenizer(["a", "b"])
    if not given:
        del os.environ["RAYON_NUM_THREADS"]


def shape_of(name: str) -> EncoderShape:
    """Return the dimensions only, of a known name (offline), a folder or a hub id.

    Raises:
        BackboneError: it cannot be found or read.
    """
    if name in KNOWN_SHAPES:
        return KNOWN_SHAPES[name]
    if name == EMBEDDED:
        return miniature.SHAPE
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _hub_folder(name)
    return checkpoint.read_shape(folder)


def check_length(name: str, shape: EncoderShape, max_length: int) -> None:
    """Check that a backbone has enough positions for texts of ``max_length`` tokens.

    Raises:
        BackboneError: it has fewer positions.
    """
    if max_length > shape.max_positions:
        raise BackboneError(
            f"max_length = {max_length}, but backbone '{shown_name(name)}' reads at most {shape.max_positions} tokens: lower "
            "max_length (--max-length), or choose another backbone"
        )


def default_device() -> str:
    """Return ``"cuda"`` if there is a CUDA device, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
