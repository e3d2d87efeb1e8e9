"""Pretrained weights for students to start from: a folder or hub id, or one per language, in a method's setting ``student``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.core.errors import ConfigError
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone, content_of, load_backbone
from harness.encoder.shape import EncoderShape


def student_identity(config: Mapping[str, Any]) -> Any:
    """Content hash of the student that a config names, or one per language, for the key of its fit; ``None``: it names none.

    Raises:
        BackboneError: there is no such folder or repository, or a file is missing.
    """
    named = config.get("student")
    if isinstance(named, Mapping):
        return {
            language: content_of(name, language) for language, name in named.items() if isinstance(name, str)
        } or None
    return content_of(named, "en") if isinstance(named, str) and named else None


def student_for(method: str, named: Any, language: str) -> str:
    """The name of the student for a language; empty where none is named.

    Args:
        named: the setting: one name for all languages, or a table such as ``{en = "A", zh = "B"}``.

    Raises:
        ConfigError: it is neither, or the table lacks the language.
    """
    if isinstance(named, Mapping) and named and language not in named:
        raise ConfigError(
            f"{method}: student = {dict(named)!r} names none for language '{language}': add {language} = \"...\""
        )
    name = named.get(language, "") if isinstance(named, Mapping) else named
    if not isinstance(name, str):
        raise ConfigError(f"{method}: student = {name!r} is no name: give a folder or a hub id in quotes")
    return name


def load_student(
    method: str, own: Mapping[str, Any], shaping: tuple[str, ...], teacher: EncoderShape, backbone: Backbone, task: Task
) -> Backbone | None:
    """The student that a method's settings name; ``None`` where they name none.

    Args:
        own: the method's settings; ``student`` among them.
        shaping: settings that shape a student made here, and have no meaning for one that is given.
        teacher: dimensions of what it learns from.
        backbone: whose tokenizer made the ids.
        task: what it learns.

    Raises:
        ConfigError: it does not go with the teacher: another vocabulary, more layers, a larger width; it has fewer positions
            than the longest sample; its shape is asked for, too; or as :func:`student_for`.
        BackboneError: it cannot be found or read.
    """
    name = student_for(method, own["student"], task.language)
    if not name:
        return None
    for key in shaping:
        if own[key] is not None:
            raise ConfigError(f"{method}: student '{name}' has a shape of its own: leave out {key} = {own[key]}")
    found = load_backbone(name, task.language, device=backbone.device)
    if backbone.tokenizer is None or found.tokenizer.get_vocab() != backbone.tokenizer.get_vocab():
        raise ConfigError(
            f"{method}: student '{name}' has another vocabulary than the teacher's backbone '{backbone.name}': the same ids "
            "would be other words; choose a student made from that backbone"
        )
    for what, own_size, most in (
        ("layers", found.shape.layers, teacher.layers),
        ("width", found.shape.width, teacher.width),
    ):
        if own_size > most:
            raise ConfigError(
                f"{method}: student '{name}' has {what} {own_size}, its teacher {most}: choose a student that is no larger"
            )
    if found.shape.max_positions < task.max_length:
        raise ConfigError(
            f"{method}: student '{name}' knows {found.shape.max_positions} positions, samples have up to {task.max_length} "
            "tokens: lower max_length"
        )
    return found
