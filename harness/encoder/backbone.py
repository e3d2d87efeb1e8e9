"""Pretrained encoders: the embedded miniature, a local folder or a hub id."""

from __future__ import annotations

import difflib
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import BackboneError
from harness.core.files import cache_root, write_folder
from harness.core.tokens import TokenSet
from harness.encoder import checkpoint, miniature
from harness.encoder.model import Encoder
from harness.encoder.shape import KNOWN_SHAPES, EncoderShape

EMBEDDED = "embedded"


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
    """

    name: str
    shape: EncoderShape
    state: dict[str, Tensor]
    tokenizer: Any
    device: str = "cpu"
    head: dict[str, Tensor] | None = None

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

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int = 128) -> TokenSet:
        """Tokenise to packed ids with special tokens, truncated to ``max_length`` (longest text first)."""
        max_length = min(max_length, self.shape.max_positions)
        # Very long texts are cut before tokenising: a token has at least one character, and WordPiece drops only white
        # space, so 64 characters per token of budget are more than enough.
        limit = max_length * 64
        batch = self.tokenizer(
            [text[:limit] for text in texts],
            None if pairs is None else [text[:limit] for text in pairs],
            truncation=True,
            max_length=max_length,
            return_token_type_ids=True,
            return_attention_mask=False,
        )
        special = {self.tokenizer.cls_token_id, self.tokenizer.sep_token_id, self.tokenizer.pad_token_id} - {None}
        tokens = TokenSet.from_lists(batch["input_ids"], batch["token_type_ids"], tuple(sorted(special)))
        # Some checkpoints have only one segment; the second text of a pair then uses it, too.
        return replace(tokens, segments=tokens.segments.clamp(max=self.shape.type_vocab - 1))


def embedded_folder(language: str, *, progress: bool = True) -> Path:
    """Return the embedded miniature as a Hugging Face folder; pretrained on first use (under a minute), then cached."""
    folder = cache_root() / "backbones" / f"embedded-{miniature.recipe_key()}-{language}"
    if not (folder / "model.safetensors").is_file():
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

            write_folder(target, fill)
    return folder


def _hub_folder(name: str) -> Path:
    """Download a hub repository, ``id`` or ``id@revision``, and return its folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", "model*.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json"]
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


def content_of(name: str, language: str) -> str:
    """Return the content hash of the files behind a name, without loading them; see :func:`load_backbone`."""
    return checkpoint.content_of(_folder(name, language))


def load_backbone(name: str, language: str, *, device: str = "cpu", progress: bool = True) -> Backbone:
    """Load a backbone by ``"embedded"``, folder or hub id (``id@revision`` for a revision other than the newest).

    Raises:
        BackboneError: it cannot be found or read, or its tokenizer does not fit its embeddings.
    """
    from transformers import AutoTokenizer

    folder = _folder(name, language, progress=progress)
    found = checkpoint.read(folder)
    shape = found.shape
    # Without these files transformers silently builds a tokenizer without any words.
    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.txt")):
        raise BackboneError(f"no usable tokenizer in {folder}: add tokenizer.json or vocab.txt")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    except (ValueError, OSError, KeyError) as error:
        raise BackboneError(f"no usable tokenizer in {folder}: {error}: add tokenizer.json or vocab.txt") from error
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise BackboneError(
            f"the tokenizer in {folder} has no [CLS] or no [SEP]: use the tokenizer of a BERT checkpoint"
        )
    if len(tokenizer) > shape.vocab_size:
        raise BackboneError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the embeddings {shape.vocab_size}: "
            "use the tokenizer of this checkpoint"
        )
    shown = name if name == EMBEDDED or not Path(name).expanduser().is_dir() else folder.resolve().name
    state = {k: v.contiguous() for k, v in found.state.items()}
    return Backbone(shown, shape, state, tokenizer, device, found.head)


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


def default_device() -> str:
    """Return ``"cuda"`` if there is a CUDA device, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
