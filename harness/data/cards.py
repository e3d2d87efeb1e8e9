"""Dataset cards: what a dataset asks, where it is and how it is split, read from ``cards.toml``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from harness.core.errors import DataError, UnknownNameError
from harness.core.names import Label, Name
from harness.core.settings import StrictSettings, explain
from harness.core.text_formats import read_toml

Model = TypeVar("Model", bound=StrictSettings)


class Columns(StrictSettings):
    """Columns of a hub copy.

    Attributes:
        text: one, or several that are joined with a space; empty values are left out.
        text_pair: the second text of a pair; ``None`` for single texts.
        label: the class.
    """

    text: tuple[str, ...] = Field(default=("text",), min_length=1)
    text_pair: str | None = None
    label: str = "label"


class DatasetCard(StrictSettings):
    """One dataset.

    Attributes:
        name: as on the command line.
        title: as in tables and figures.
        language: of the texts.
        task: what is classified, in a few words.
        label_names: in the order of the labels, 0 first.
        columns: of the hub copy; a dataset with a ``text_pair`` has pairs of texts as samples.
        label_offset: subtracted from the labels of the hub copy, which may count from 1.
        hub_id: repository of a copy without loading script; ``None`` if no faithful copy is known.
        hub_revision: pinned commit; ``None`` if none has been verified.
        hub_config: configuration of that repository, if it has several.
        hub_splits: our split name -> name on the hub. A missing ``dev`` or ``test`` is carved from train.
        split_rule: where the three splits come from.
        expected_sizes: published numbers of rows, as far as they are certain.
        licence: of the data.
        citation: of the paper that introduced it.
        notes: what is uncertain about it; they go into every result.
    """

    name: Name
    title: str
    language: Literal["en", "zh"]
    task: str
    label_names: tuple[Label, ...] = Field(min_length=2)
    columns: Columns = Columns()
    label_offset: int = 0
    hub_id: str | None = None
    hub_revision: str | None = None
    hub_config: str | None = None
    hub_splits: dict[Literal["train", "dev", "test"], str] = {"train": "train", "test": "test"}
    split_rule: str = "train and test of the hub; dev is 10 % of train, stratified, seed 0"
    expected_sizes: dict[Literal["train", "dev", "test"], int] = {}
    licence: str
    citation: str
    notes: tuple[str, ...] = ()

    @property
    def num_labels(self) -> int:
        """Number of classes C; labels are 0 .. C - 1."""
        return len(self.label_names)

    @property
    def pair(self) -> bool:
        """Whether samples are pairs of texts."""
        return self.columns.text_pair is not None


def read_card_file(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        DataError: the file cannot be read or is not valid TOML.
    """
    try:
        return read_toml(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not valid TOML ({error}): correct the file, or delete it") from error


def parse_card(model: type[Model], table: dict[str, Any], where: str) -> Model:
    """Validate a TOML table as a card.

    Args:
        where: the file and the table, for error messages.

    Raises:
        DataError: lists every problem with its place, its key and the allowed values.
    """
    try:
        return model.model_validate_json(json.dumps(table, default=str))  # as JSON: a list is accepted for a tuple
    except ValidationError as error:
        raise DataError("; ".join(explain(error, model, where))) from error


def read_cards(path: Path) -> dict[str, DatasetCard]:
    """Read a file of cards, one TOML table per dataset, in the order of the file.

    Raises:
        DataError: the file is not valid TOML, or a card is not valid. All problems are listed, each with file, card and key.
    """
    cards: dict[str, DatasetCard] = {}
    problems: list[str] = []
    for name, table in read_card_file(path).items():
        try:
            if not isinstance(table, dict):
                raise DataError(f"{path}: key '{name}' is outside a card: write it below a line [NAME]")
            cards[name] = parse_card(DatasetCard, {**table, "name": name}, f"{path}, [{name}]")
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("; ".join(problems))
    return cards


CARDS = read_cards(Path(__file__).with_name("cards.toml"))


def card(name: str) -> DatasetCard:
    """Return the card of a dataset.

    Raises:
        UnknownNameError: there is no such card; the message suggests the nearest name.
    """
    if name not in CARDS:
        raise UnknownNameError("dataset", name, CARDS)
    return CARDS[name]
