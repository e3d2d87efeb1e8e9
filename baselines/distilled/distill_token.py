"""DeiT's distillation token (Touvron et al., ICML 2021, arXiv 2012.12877): the head on an additional token learns from the teacher.

Published, for images: one more learned token beside [CLS]; its head learns from the teacher, that of [CLS] from labels; both
answers are averaged. A hard loss (the teacher's label) at weight 0.5 works better than a soft one (temperature 3, weight 0.1), and
a teacher of another inductive bias, a convolutional network, better than a Transformer.

Our interpretation: the token stands behind [CLS] and starts as its vector; the texts' positions move up by one. The student starts
from layers of ``bert``. The teacher is a model without Transformer layers, such as ``sparse-dan`` or ``cnn``, or ``bert`` itself.
The soft loss is a sum over classes; the released code divides it by their number, too. The control without a token is
``assistants`` with the same teacher: one head, which learns both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.dev_scores import EVALUATION
from harness.toolkit.distillation import fitted_teacher, soft_kl, spread_layers, take_heads, take_layers
from harness.toolkit.method_settings import MethodSettings
from harness.toolkit.teachers.extra_token import PLACE, TokenStudent, two_heads, with_token
from harness.toolkit.teachers.teacher_answers import TeacherAnswers
from harness.toolkit.training import DevScore, total_cost, train


class DistillTokenSettings(MethodSettings):
    """Settings of the distillation token: ``(1 - alpha) CE([CLS], labels) + alpha D(token, teacher)``."""

    layers: int | None = Field(None, ge=2, description="layers of the student; by default half of bert's, at least 2")
    distillation: Literal["hard", "soft"] = Field(
        "hard", description="hard: the teacher's label; soft: its probabilities"
    )
    temperature: float = Field(
        3.0, gt=0, description="temperature of the teacher's and the student's softmax in the soft loss"
    )
    alpha: float | None = Field(
        None, ge=0, le=1, description="weight of the teacher; by default as published: hard 0.5, soft 0.1"
    )


def widened(encoder: Encoder, like: int) -> Encoder:
    """Return the encoder with one more word, whose vector starts as that of the id ``like``."""
    new = Encoder(replace(encoder.shape, vocab_size=encoder.shape.vocab_size + 1)).to(encoder.device)
    state = encoder.state_dict()
    state["word.weight"] = torch.cat([state["word.weight"], state["word.weight"][like : like + 1]])
    new.load_state_dict(state)
    return new


def token_loss(
    whole: Tensor, token: Tensor, taught: Tensor, labels: Tensor, *, hard: bool, alpha: float, temperature: float
) -> Tensor:
    """Return the loss of a batch: logits [B, C] of the head on [CLS], of that on the token, and of the teacher."""
    if hard:
        distance = F.cross_entropy(token.float(), taught.argmax(-1))
    else:
        distance = soft_kl(token, taught, temperature)
    return (1 - alpha) * F.cross_entropy(whole.float(), labels) + alpha * distance


class DistillToken(StagedMethod[DistillTokenSettings, TokenStudent]):
    """A student with a head for labels on [CLS] and one for its teacher on a distillation token. The best dev epoch is kept.

    The role ``bert`` is the model that the student starts from; the other teacher teaches, or ``bert`` if it is the only one.
    """

    name = "distill-token"
    needs: tuple[str, ...] = ("bert", "sparse-dan")
    settings = DistillTokenSettings
    fitted = TokenStudent

    def learn(
        self, own: DistillTokenSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int
    ) -> TokenStudent:
        tuned = fitted_teacher(teachers)
        first, shape = tuned.model, tuned.model.encoder.shape
        others = {name: one for name, one in teachers.items() if name != "bert"} or {"bert": teachers["bert"]}
        if len(others) > 1:
            raise ConfigError(f"{self.name}: {len(others)} teachers for one token: name one in needs, beside bert")
        if not shape.rotary and task.max_length >= shape.max_positions:
            raise ConfigError(
                f"{self.name}: samples of {task.max_length} tokens leave no position for one more of {shape.max_positions}: lower "
                "max_length by 1"
            )
        answers = TeacherAnswers(others, task.train.tokens, task, backbone, own, self.name)

        torch.manual_seed(seed)
        layers = own.layers or max(2, first.depth // 2)
        encoder = take_layers(first.encoder, spread_layers(first.depth, layers))
        extra = shape.vocab_size
        student = MultiExitModel(
            widened(encoder, int(task.train.tokens.ids[0])), task.num_labels, [PLACE], own.head or first.head_kind
        )
        take_heads(student, first)
        alpha = own.alpha if own.alpha is not None else {"hard": 0.5, "soft": 0.1}[own.distillation]

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            (taught,) = answers(tokens)
            *_, hidden = student.encoder.states(tokens, layout)
            whole, token = two_heads(student, hidden, layout)
            hard = own.distillation == "hard"
            return token_loss(whole, token, taught, labels, hard=hard, alpha=alpha, temperature=own.temperature)

        fitted = TokenStudent(student)

        def score() -> DevScore:
            (at,) = fitted.operating_points(task.dev)
            said = fitted.predict(task.dev.tokens, at=replace(at, execution=EVALUATION)).logits.argmax(-1)
            accuracy = float((torch.from_numpy(said) == task.dev.labels).float().mean())
            return DevScore(accuracy, (accuracy,))

        rows = Split(with_token(answers.rows, extra), task.train.labels)
        name = f"{task.name} {self.name}"
        report = train(student, loss, rows, own, seed=seed, name=name, evaluate=score)
        return replace(fitted, training=total_cost(tuned.training, answers.cost, report))
