"""General distillation of CMOW/CBOW-Hybrid: states of tokens, the loss by hand, the folder, a classifier that starts from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from baselines.small_models.cmow_distillation import (
    TABLES,
    CmowDistillation,
    CmowGeneralSettings,
    read_tables,
    token_states,
)
from baselines.small_models.cmow_hybrid import CmowClassifier, CmowHybrid
from baselines.small_models.cmow_tables import MatrixTables
from baselines.small_models.matrix_products import up_to_each
from harness.cli import main as cli
from harness.core.digest import content_digest
from harness.core.errors import ConfigError
from harness.core.tokens import Task, TokenSet
from harness.encoder import checkpoint, miniature
from harness.encoder.backbone import Backbone, load_backbone
from harness.encoder.layout import Layout
from harness.encoder.masked_words import ABSENT, MaskedWordModel
from harness.encoder.model import Encoder
from harness.encoder.shape import EncoderShape
from harness.pretraining import distill_command
from harness.running.profile import Profile

SIZES = ["--matrix", "3", "--width", "5"]


@examples(max_examples=20)
@given(data=st.data())
def test_products_up_to_every_place_are_those_one_after_another(data: st.DataObject) -> None:
    """Of any length, with new pieces anywhere: nothing before the beginning of a piece is in its products or sums."""
    length, size = data.draw(st.integers(1, 14)), 2
    begins = torch.tensor(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)))[None]
    matrices = torch.randn(1, length, size, size, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    products, sums = up_to_each(matrices, begins, torch.matmul), up_to_each(matrices[..., 0], begins, torch.add)
    product, total = torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for place in range(length):
        if begins[0, place]:
            product, total = torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        product, total = product @ matrices[0, place], total + matrices[0, place, :, 0]
        torch.testing.assert_close(products[0, place], product)
        torch.testing.assert_close(sums[0, place], total)


def states_by_hand(tables: MatrixTables, ids: list[int]) -> Tensor:
    """Return [sum; product] of a piece up to every token, and from it on backwards, token by token."""
    size, found = tables.matrix, []
    for place in range(len(ids)):
        before, after = ids[: place + 1], ids[place:]
        ahead = back = torch.eye(size)
        for one in before:
            ahead = ahead @ tables.ahead.weight[one].view(size, size)
        for one in after:
            back = tables.back.weight[one].view(size, size) @ back
        sums = (tables.vectors.weight[part].sum(0) for part in (before, after))
        found.append(torch.cat([next(sums), ahead.flatten(), next(sums), back.flatten()]))
    return torch.stack(found)


ROW = [[1, 7, 8, 2, 1, 9, 2, 0], [1, 5, 6, 7, 8, 9, 10, 2]]
PIECES = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0], [1] * 8])


@pytest.fixture(scope="module")
def tables() -> MatrixTables:
    torch.manual_seed(0)
    found = MatrixTables(12, 3, 5, sparse=False)
    for table in found.children():
        nn.init.normal_(table.weight, std=0.6)  # type: ignore[arg-type]
    return found


@torch.no_grad()
def test_states_stay_within_pieces(tables: MatrixTables) -> None:
    """Every token has what is before and after it in its own piece; the row of one piece is the same without numbers."""
    found = token_states(tables, torch.tensor(ROW), PIECES)
    for row, piece in ((0, slice(0, 4)), (0, slice(4, 7)), (1, slice(0, 8))):
        torch.testing.assert_close(found[row, piece], states_by_hand(tables, ROW[row][piece]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(token_states(tables, torch.tensor(ROW[1:]), None), found[1:])


@pytest.fixture(scope="module")
def teacher() -> Backbone:
    """Two layers of width 8 with a masked-word head."""
    torch.manual_seed(1)
    model = MaskedWordModel(Encoder(EncoderShape(2, 8, 2, 16, 12, 16, dropout=0.0)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    body = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    head = {name: value for name, value in state.items() if not name.startswith("encoder.")}
    return Backbone("teacher", model.encoder.shape, body, None, head=head)


@pytest.mark.parametrize("soft_on", ["all", "masked"])
def test_the_loss_by_hand(soft_on: str, teacher: Backbone) -> None:
    """5 T^2 KL(soft words) + 2 CE(masked words), means over tokens; padding has no part, and the teacher no gradient."""
    torch.manual_seed(2)
    own = CmowGeneralSettings.read({"matrix": 3, "width": 5, "soft_on": soft_on}, "test")
    model = CmowDistillation(teacher, own)
    nn.init.normal_(model.decoder.weight, std=0.3)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3], list(range(8))])
    where, labels = torch.tensor([1, 5, 11, 0]), torch.tensor([8, 4, 3, ABSENT])
    found = model(torch.tensor(ROW), positions, PIECES, None, where, labels)
    own_words, soft = [], []
    for row, piece in ((0, slice(0, 4)), (0, slice(4, 7)), (1, slice(0, 8))):
        ids = ROW[row][piece]
        own_words.append(model.decoder(states_by_hand(model.tables, ids)))
        one = TokenSet.from_lists([ids])
        *_, last = model.teacher.encoder.states(one, Layout(one.lengths.numpy(), None, "cpu"))
        soft.append(model.teacher.scores(last))
    s, t = torch.cat(own_words), torch.cat(soft)
    masked = torch.tensor([1, 5, 10])  # without the padding of the first row
    chosen = torch.arange(len(s)) if soft_on == "all" else masked
    kl = nn.KLDivLoss(reduction="batchmean")((s[chosen] / 2).log_softmax(-1), (t[chosen] / 2).softmax(-1)) * 4
    expected = 5 * kl + 2 * nn.CrossEntropyLoss()(s[masked], labels[:3])
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    # 2 rows of 8 tokens: 2 layers of width 8, two directions of products, a decoder from 28 numbers to 12 words.
    layers = 2 * (2 * 16 * (4 * 8 * 8 + 2 * 8 * 16) + 4 * 8 * 2 * 64)
    scored = 16 if soft_on == "all" else 4
    expected_flops = layers + 3 * (2 * 2 * 16 * 2 * 27 + 2 * scored * 28 * 12)
    assert model.training_flops(rows=2, length=8, share=0.25, every=False) == expected_flops


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Backbone]:
    """A student of the miniature's vocabulary from a made-up corpus by the command, and its teacher."""
    place = tmp_path_factory.mktemp("cmow")
    (place / "teacher").mkdir()
    torch.manual_seed(0)
    words = miniature.tokenizer("en")
    shape = EncoderShape(2, 16, 2, 24, len(words), 24)
    checkpoint.write_folder(place / "teacher", shape, Encoder(shape).state_dict())
    words.save_pretrained(place / "teacher")
    draw = np.random.default_rng(0)
    every = [word for word in words.get_vocab() if word.isalpha()]
    lines = [" ".join(draw.choice(every, 12)) for _ in range(300)]
    (place / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    given = ["distill", "cmow-hybrid", "--teacher", str(place / "teacher"), "--corpus", str(place / "text.txt")]
    given += ["--lang", "en", "--length", "16", "--rows", "8", "--alpha-ce", "0", "--device", "cpu", "--steps", "30"]
    given += ["--learning-rate", "1e-2", *SIZES, "--out", str(place / "student")]
    assert distill_command.run(cli.parser().parse_args(given)) == 0
    assert distill_command.run(cli.parser().parse_args(given)) == 0  # nothing is left to do
    return place / "student", load_backbone(str(place / "teacher"), "en")


def test_the_command_writes_tables(student: tuple[Path, Backbone]) -> None:
    """The loss falls; the folder has tables in float32, the teacher's vocabulary, the published recipe, and a card."""
    folder, teacher = student
    curve = (folder / "training" / "curve.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in curve]
    assert len(losses) == 30 and sum(losses[-5:]) < sum(losses[:5])
    facts, tensors = read_tables(folder, teacher, "cmow-hybrid")
    assert facts == {"matrix": 3, "width": 5, "vocab_size": teacher.shape.vocab_size}
    assert {name: value.dtype for name, value in tensors.items()} == {
        f"{name}.weight": torch.float32 for name in ("ahead", "back", "vectors")
    }
    stored = json.loads((folder / "distillation.json").read_text(encoding="utf-8"))
    assert stored["parameters"] == teacher.shape.vocab_size * (2 * 9 + 5)
    assert (stored["recipe"]["clip"], stored["recipe"]["weight_decay"], stored["recipe"]["dropout"]) == (1.0, 0.0, 0.0)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "cmow-hybrid student of `teacher`" in card and "[method.cmow-hybrid]" in card and "float32" in card


CONFIG: dict[str, Any] = {"matrix": 3, "width": 5, "hidden": 0, "loss": "ce", "epochs": 1, "learning_rate": 1e-9}


def test_a_classifier_starts_from_the_tables(student: tuple[Path, Backbone], random_task: Task) -> None:
    """Without a step to speak of, its tables are those of the folder, for the language that the setting names."""
    folder, teacher = student
    made = CmowHybrid().fit(random_task, teacher, {}, config={**CONFIG, "student": {"en": str(folder)}}, seed=0)
    assert isinstance(made.model, CmowClassifier)
    _, tensors = read_tables(folder, teacher, "cmow-hybrid")
    for name, value in made.model.words.state_dict().items():
        torch.testing.assert_close(value, tensors[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["tables", "./tables", "~/tables"])
@pytest.mark.parametrize("wrap", [lambda name: name, lambda name: {"en": name, "zh": ""}])
def test_tables_distilled_again_in_place_are_another_content(
    name: str, wrap: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit of the earlier tables is not taken again, however their folder is named, also by its bare name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    profile = Profile(
        title="t", source="embedded", datasets=[], methods=[], method={"cmow-hybrid": {"student": wrap(name)}}
    )
    found = [profile.named_content("cmow-hybrid")]
    for content in (b"first", b"again"):
        (tmp_path / "tables").mkdir(exist_ok=True)
        (tmp_path / "tables" / TABLES).write_bytes(content)
        found.append(profile.named_content("cmow-hybrid"))
        digest = content_digest(tmp_path / "tables")
        assert found[-1] == {"student": digest if wrap(name) == name else {"en": digest}}  # as in stored keys
    assert found[0] is None and found[1] != found[2]


def test_students_that_do_not_fit_are_refused(
    student: tuple[Path, Backbone], random_task: Task, tmp_path: Path
) -> None:
    """Another vocabulary, other sizes, no language, no tables, damaged tables: one line says what and how to mend it."""
    folder, teacher = student

    def refused(said: str, backbone: Backbone = teacher, **change: Any) -> None:
        with pytest.raises(ConfigError, match=said) as caught:
            CmowHybrid().fit(random_task, backbone, {}, config={**CONFIG, "student": str(folder), **change}, seed=0)
        assert "\n" not in str(caught.value)

    refused("has another vocabulary", replace(teacher, tokenizer=miniature.tokenizer("zh")))
    refused("has matrix = 3, the settings 20: set matrix = 3", matrix=20)
    refused("has width = 5, the settings 6: set width = 5", width=6)
    refused("names none for language 'en': add en", student={"zh": "x"})
    refused(f"has no {TABLES}: give a folder that geep-bench distill cmow-hybrid wrote", student=str(tmp_path))
    (tmp_path / TABLES).write_bytes(b"no tables")
    refused(r"tables.safetensors cannot be read .*: distil again", student=str(tmp_path))


def test_a_teacher_without_a_head_has_no_soft_words(student: tuple[Path, Backbone]) -> None:
    """The refusal names the option that leaves them out."""
    with pytest.raises(ConfigError, match=r"cmow-hybrid: 'teacher' has no masked-word head.*--alpha-ce 0"):
        CmowHybrid().general_distillation(student[1], config={}, dropout=0.0)
    with pytest.raises(ConfigError, match="are all 0: give one a value above 0"):
        CmowHybrid().general_distillation(student[1], config={"alpha_ce": 0, "alpha_mlm": 0}, dropout=0.0)
