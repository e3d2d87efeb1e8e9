"""A small model of ``transformers`` with random weights for every family of encoders, and its states beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from harness.core.tokens import TokenSet
from harness.encoder import checkpoint
from harness.encoder.layout import Layout
from harness.encoder.masked_words import MaskedWordModel
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape

WORDS, POSITIONS, WINDOW = 50, 16, 2
FIRST = 3  # ids of words: RoBERTa takes 1 for padding
_SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
_DISTILBERT = {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 24}
_ROBERTA = {**_SIZES, "type_vocab_size": 1, "pad_token_id": 1}
_MODERNBERT = {**_SIZES, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
# Names of classes without "Config" and "ForMaskedLM", and what configs have beside words and positions.
_MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bert": ("Bert", _SIZES),
    "roberta": ("Roberta", _ROBERTA),
    "xlm-roberta": ("XLMRoberta", _ROBERTA),
    "electra": ("Electra", {**_SIZES, "embedding_size": 8}),
    "electra, wide": ("Electra", {**_SIZES, "embedding_size": 16}),
    "distilbert": ("DistilBert", _DISTILBERT),
    "albert": ("Albert", {**_SIZES, "embedding_size": 8}),
    "modernbert": ("ModernBert", _MODERNBERT),
}
FAMILY_MODELS = tuple(_MODELS)


def family_model(name: str, positions: int = POSITIONS, window: int = WINDOW, words: int = WORDS) -> Any:
    """Return a model of four layers with a masked-word head, in eval mode; the same weights every time.

    Args:
        name: one of :data:`FAMILY_MODELS`.
        positions: tokens of the longest text.
        window: tokens on either side that a token of ModernBERT attends to, in two of three layers.
        words: size of the vocabulary.
    """
    kind, sizes = _MODELS[name]
    local = {"local_attention": 2 * window} if kind == "ModernBert" else {}
    rows = positions + (2 if sizes is _ROBERTA else 0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=words, max_position_embeddings=rows, **sizes, **local)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForMaskedLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


def read_family(model: Any, folder: Path) -> checkpoint.Checkpoint:
    """Save a model of ``transformers`` and read it as any checkpoint is read."""
    model.save_pretrained(folder)
    return checkpoint.read(folder)


def encoder_of(found: checkpoint.Checkpoint) -> Encoder:
    """Return our encoder with the weights of a checkpoint, in eval mode."""
    encoder = Encoder(found.shape)
    encoder.load_state_dict(found.state)
    return encoder.eval()


def exits_of(found: checkpoint.Checkpoint, labels: int = 3) -> MultiExitModel:
    """Return a model with random heads after every layer on such an encoder, in eval mode."""
    torch.manual_seed(1)
    return MultiExitModel(encoder_of(found), labels, range(found.shape.layers - 1)).eval()


def random_texts(lengths: Sequence[int], shape: EncoderShape) -> TokenSet:
    """Return random texts with segments that an encoder has; the second halves of texts are in the second one."""
    draw = np.random.default_rng(0)
    ids = [draw.integers(FIRST, shape.vocab_size, size=length).tolist() for length in lengths]
    segments = [[int(place >= (length + 1) // 2) for place in range(length)] for length in lengths]
    return fitting(TokenSet.from_lists(ids, segments), shape)


def fitting(tokens: TokenSet, shape: EncoderShape) -> TokenSet:
    """Return samples with segments that the encoder has, as a backbone makes them."""
    return replace(tokens, segments=tokens.segments.clamp(max=max(shape.type_vocab, 1) - 1))


def both_states(
    theirs: Any, found: checkpoint.Checkpoint, tokens: TokenSet, pad_to: int | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return our states and those of ``transformers`` after the embeddings and every layer, and scores of words behind them.

    Args:
        pad_to: of ours; theirs are always padded.

    Returns:
        Two lists of h^0 .. h^L, [valid, D] each, and at the end the scores [valid, V].
    """
    lengths = tokens.lengths.numpy()
    grid = torch.from_numpy(np.arange(lengths.max())[None, :] < lengths[:, None])  # [B, T]
    ids, kinds = torch.zeros(2, *grid.shape, dtype=torch.int64).unbind(0)
    ids[grid], kinds[grid] = tokens.ids.long(), tokens.segments.long()
    if found.family.skipped:
        ids[~grid] = found.family.skipped - 1  # of padding, by which RoBERTa counts positions
    given = {"token_type_ids": kinds} if found.shape.type_vocab > 1 else {}
    encoder = encoder_of(found)
    words = MaskedWordModel(encoder)
    assert found.head is not None
    words.load_state_dict({**words.state_dict(), **found.head})
    layout = Layout(lengths, pad_to, "cpu")
    with torch.no_grad():
        expected = theirs(ids, attention_mask=grid.long(), output_hidden_states=True, **given)
        rows = [layout.tokens(state) for state in encoder.states(tokens, layout)]
        scores = words.eval().scores(rows[-1])
        ours = [*rows[:-1], encoder.final_norm(rows[-1])]  # transformers normalises the last ones only
    return [*ours, scores], [state[grid] for state in (*expected.hidden_states, expected.logits)]
