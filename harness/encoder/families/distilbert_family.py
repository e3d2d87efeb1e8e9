"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): other names, and no segments; it gets one, of zeros."""

from __future__ import annotations

from dataclasses import replace

from harness.encoder.families.bert_family import BERT

DISTILBERT = replace(
    BERT,
    name="DistilBERT",
    kind="distilbert",
    prefix="distilbert.",
    dimensions={
        "layers": "n_layers",
        "width": "dim",
        "heads": "n_heads",
        "intermediate": "hidden_dim",
        "vocab_size": "vocab_size",
        "max_positions": "max_position_embeddings",
        "activation": "activation",
        "dropout": "dropout",
    },
    fixed={"type_vocab": 1, "norm_eps": 1e-12},
    embeddings={ours: theirs for ours, theirs in BERT.embeddings.items() if ours != "segment.weight"},
    layer="transformer.layer.{}.",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    parts={
        "out": "attention.out_lin",
        "norm_attention": "sa_layer_norm",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
        "norm_output": "output_layer_norm",
    },
    head={
        "dense": "vocab_transform",
        "norm": "vocab_layer_norm",
        "bias": "vocab_projector.bias",
        "decoder": "vocab_projector",
    },
    architecture="",
)
