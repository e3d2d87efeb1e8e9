"""Parts of knowledge distillation: teachers, which layer teaches which, and losses between student and teacher.

Losses are scalars, in float32 also under autocast; the teacher gets no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.contracts import Fitted
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.layout import Layout, Scored
from harness.encoder.local_attention import in_window
from harness.encoder.model import Encoder, EncoderLayer
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.fitted import FittedModel, FullDepth
from harness.toolkit.method_settings import Head

K = TypeVar("K")
Unlabelled = Literal["auto", "yes", "no"]  # whether a teacher also answers rows without labels; auto: if there are any
NO_LABEL = -1
_UNSEEN = -1e30  # a score whose probability is 0, also in a row of nothing else


def teacher_of_kind(kind: type[K], teachers: Mapping[str, Fitted], name: str, needs: str, advice: str) -> K:
    """Return a teacher.

    Args:
        needs: for the error message, e.g. ``"geep-verified needs the method 'geep' of this project"``.
        advice: for the error.

    Raises:
        ConfigError: there is none, or it is of another kind.
    """
    fitted = teachers.get(name)
    if not isinstance(fitted, kind):
        raise ConfigError(f"{needs}, got {type(fitted).__name__}: {advice}")
    return fitted


def fitted_teacher(teachers: Mapping[str, Fitted], name: str = "bert") -> FittedModel:
    """Return a fitted teacher, its model in eval mode.

    Raises:
        ConfigError: there is no such teacher, or it has no :class:`MultiExitModel`.
    """
    fitted = teachers.get(name)
    if not isinstance(fitted, FittedModel) or not fitted.is_stack:
        raise ConfigError(
            f"teacher '{name}' is {type(fitted).__name__}, not a model of this project's encoder: add one to the method's needs"
        )
    fitted.model.eval()
    return fitted


def fine_tuned(
    method: str, teachers: Mapping[str, Fitted], name: str = "bert", *, head: Head | None = None
) -> FullDepth:
    """Return the full-depth model that a method starts from, in eval mode.

    Raises:
        ConfigError: there is none, it is of another kind, or ``head`` is given and not its kind of head.
    """
    needs = f"{method} needs a fine-tuned full-depth '{name}'"
    fitted = teacher_of_kind(FullDepth, teachers, name, needs, "name one in its needs")
    fitted_teacher(teachers, name)
    if head not in (None, fitted.model.head_kind):
        raise ConfigError(f"{method}: head '{head}' is not '{name}'s '{fitted.model.head_kind}': set both alike")
    return fitted


def rows_to_teach(task: Task, unlabelled: Unlabelled, method: str) -> Split:
    """Return the rows that a teacher answers: train, then rows without labels, whose label is :data:`NO_LABEL`.

    Args:
        method: for the error. It must declare :class:`~harness.contracts.UsesUnlabelled`, except for ``"no"``.

    Raises:
        ConfigError: rows without labels are wanted, and there are none.
    """
    more = None if unlabelled == "no" else task.unlabelled
    if more is None or not len(more):
        if unlabelled == "yes":
            raise ConfigError(
                f"{method}: unlabelled = \"yes\", but dataset '{task.name}' has no rows without labels: set --max-train below its "
                "train rows (and --max-unlabelled above 0), or add a file unlabelled.csv to its folder"
            )
        return task.train
    return Split(task.train.tokens.joined(more), torch.cat([task.train.labels, torch.full((len(more),), NO_LABEL)]))


def hard_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy with labels, mean over rows that have one; 0 if none has. Logits [B, C], labels int64 [B]."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=NO_LABEL, reduction="sum")
    return total / (labels != NO_LABEL).sum().clamp(min=1)


def states_and_logits(model: MultiExitModel, tokens: TokenSet, layout: Layout) -> tuple[list[Tensor], Tensor]:
    """Return hidden states h^0 .. h^L, each [rows, width], and the last head's logits [B, C]."""
    states = list(model.encoder.states(tokens, layout))
    return states, model.teacher(states[-1], layout)


def spread_layers(teacher: int, student: int) -> list[int]:
    """Return the teacher layers to start ``student`` layers from: evenly spread, first and last included, halves rounded up.

    ``round(i * (N - 1) / (M - 1))`` gives DistilBERT's 0, 2, 4, 7, 9, 11 for 6 of 12 (its ``extract_distilbert.py``). A
    single layer starts from the first, the only one that was trained to read embeddings.

    Raises:
        ConfigError: fewer than 1 layer, or more than the teacher has.
    """
    if not 1 <= student <= teacher:
        raise ConfigError(
            f"a student of {student} layers cannot start from a teacher of {teacher}: choose 1 to {teacher} layers"
        )
    gaps = max(1, student - 1)
    return [(2 * i * (teacher - 1) + gaps) // (2 * gaps) for i in range(student)]


def uniform_map(teacher: int, student: int) -> list[int]:
    """Return TinyBERT's ``g(m) = m N / M`` for m = 0 .. M: h^g(m) teaches h^m, embeddings (0) included.

    Raises:
        ConfigError: M does not divide N.
    """
    if student < 1 or teacher % student:
        divisors = [m for m in range(1, teacher + 1) if teacher % m == 0]
        raise ConfigError(f"{student} student layers do not divide the teacher's {teacher}: choose one of {divisors}")
    return [m * teacher // student for m in range(student + 1)]


def take_heads(student: MultiExitModel, teacher: MultiExitModel) -> None:
    """Start all heads of a student from the teacher's last one, if they are of its kind; otherwise leave them as they are."""
    if student.head_kind == teacher.head_kind:
        for layer in student.answers:
            student.student(layer).load_state_dict(teacher.teacher.state_dict())


def take_layers(encoder: Encoder, layers: Sequence[int], dropout: float | None = None) -> Encoder:
    """Return a new encoder with copies of the embeddings and the given layers, in that order. ``dropout``: None keeps it."""
    shape = encoder.shape.of_layers(layers)
    student = Encoder(shape if dropout is None else replace(shape, dropout=dropout)).to(encoder.device)
    for part in (*encoder.tables(), "norm", "project", "final_norm"):
        getattr(student, part).load_state_dict(getattr(encoder, part).state_dict())
    for new, old in zip(student.layers, layers, strict=True):
        new.load_state_dict(encoder.layers[old].state_dict())
    return student


def layer_scores(
    encoder: Encoder, index: int, states: Mapping[int, Tensor] | Sequence[Tensor], layout: Scored
) -> Tensor:
    """Return the attention scores of layer ``index`` before softmax, [B, heads, T, T]; ``states`` have h^index, its input."""
    layer = encoder.layers[index]
    assert isinstance(layer, EncoderLayer)
    return layer.scores(states[index], layout)


def layer_pairs(encoder: Encoder, index: int, layout: Scored) -> Tensor:
    """Return the pairs of tokens that attend to each other in layer ``index``: bool [B, 1, T, T]."""
    reach, pairs = encoder.shape.reach(index), layout.pairs
    longest = pairs.shape[-1]
    if reach is None or reach.within(longest):
        return pairs
    return pairs & in_window(torch.arange(longest, device=pairs.device), longest, reach.window)


def soft_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 KL(softmax(t / T) || softmax(s / T))``, mean over samples; logits [B, C] (Hinton et al. 2015, section 2).

    T^2 keeps the size of the gradient independent of T.
    """
    log_p = F.log_softmax(teacher.detach().float() / temperature, -1)
    log_q = F.log_softmax(student.float() / temperature, -1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean") * temperature**2


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return ``-sum_c softmax(t / T)_c log softmax(s / T)_c``, mean over samples; logits [B, C] (TinyBERT, equation 10).

    TinyBERT's released code also averages over classes, which divides this by C.
    """
    p = F.softmax(teacher.detach().float() / temperature, -1)
    return -(p * F.log_softmax(student.float() / temperature, -1)).sum(-1).mean()


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``1 - cos(s, t)``, mean over rows; [rows, width] each (DistilBERT, section 3)."""
    target = torch.ones(len(student), device=student.device)
    return F.cosine_embedding_loss(student.float(), teacher.detach().float(), target)


def score_distance(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """Return the mean squared difference of attention scores over heads and pairs of valid tokens (TinyBERT, equation 7).

    Args:
        student: [B, heads, T, T], before softmax.
        teacher: the same shape.
        pairs: bool [B, 1, T, T], true where query and key are tokens (:attr:`Layout.pairs`).
    """
    squares = (student.float() - teacher.detach().float()).square()
    return torch.where(pairs, squares, 0.0).sum() / (pairs.sum() * student.shape[1])


def attention_divergence(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """Return ``KL(teacher's attention || student's)``, summed over samples, heads and queries.

    Args:
        student: scores before softmax, [B, heads, T, T].
        teacher: the same shape.
        pairs: bool [B, 1, T, T], true where query and key are tokens (:attr:`Layout.pairs`). Other queries do not count.
    """
    log_p, log_q = (
        F.log_softmax(scores.float().masked_fill(~pairs, _UNSEEN), -1) for scores in (teacher.detach(), student)
    )
    return torch.where(pairs, F.kl_div(log_q, log_p, log_target=True, reduction="none"), 0.0).sum()


def attention_kl(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """Return ``KL(teacher's attention || student's)``, mean over heads, queries and keys (CompactBioBERT's released code).

    The mean over keys, those outside the text and padding included, divides by T: ``KLDivLoss(reduction="mean")``. Arguments
    are those of :func:`attention_divergence`.
    """
    _, heads, _, keys = student.shape
    return attention_divergence(student, teacher, pairs) / (pairs.any(-1).sum() * heads * keys)
