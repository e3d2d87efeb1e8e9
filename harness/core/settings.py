"""Strict models for settings, and their errors as plain lines: what is wrong, where, and what is allowed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.core.errors import ConfigError

_LONGEST = 80  # characters of a wrong value that an error shows


class StrictSettings(BaseModel):
    """Base class of settings: frozen, without unknown keys, and without conversions.

    Text is not accepted for a number, nor a boolean for an integer; numbers are finite.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str) -> Self:
        """Validate settings.

        Args:
            where: as in :func:`explain`.

        Raises:
            ConfigError: names every unknown key and every wrong value, with what is allowed.
        """
        try:
            return cls.model_validate(dict(config))
        except ValidationError as error:
            raise ConfigError("; ".join(explain(error, cls, where))) from error


Place = tuple[int | str, ...]  # location of a problem inside the validated data, outermost key first


def explain(error: ValidationError, model: type[BaseModel], where: str | Callable[[Place], str]) -> list[str]:
    """Return one line per problem: where it is, the key, what is wrong, and what is allowed instead.

    Args:
        error: raised by ``model.model_validate``.
        where: the file and table that the settings come from, e.g. ``"profile rivals.toml, [method.tinybert]"``; or a
            function that returns it for a location, if they come from several tables.
    """
    root = model.model_json_schema()
    lines: dict[str, str] = {}
    for one in error.errors(include_url=False):
        if one["type"] == "too_short" and one["input"]:  # its items are wrong, and have lines of their own
            continue
        schema, path = _locate(root, one["loc"])
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
        problem = _problem(one, schema, root, key)
        place = where if isinstance(where, str) else where(one["loc"])
        # A value that fits no member of a union has one error per member: the first line names all that is allowed.
        lines.setdefault(key if path and one["type"] != "extra_forbidden" else problem, f"{place}: {problem}")
    return list(lines.values())


def _problem(one: Mapping[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], key: str) -> str:
    kind, value = one["type"], one["input"]
    if kind == "extra_forbidden":
        return f"unknown key '{one['loc'][-1]}': {_suggestion(str(one['loc'][-1]), schema.get('properties', {}))}"
    if kind == "missing":
        return f"key '{key}' is missing: give {describe(schema, root)}"
    if kind == "value_error":  # raised by a validator, which says how to correct the value
        text = one["msg"].removeprefix("Value error, ")
        return f"{key} = {_shown(value)}: {text}" if key else text
    unquoted = ", without quotes" if isinstance(value, str) and schema.get("type") in ("integer", "number") else ""
    return f"{key} = {_shown(value)} is not allowed: give {describe(schema, root)}{unquoted}"


def _suggestion(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    return (f"did you mean {' or '.join(near)}? " if near else "") + f"known keys: {', '.join(sorted(known))}"


def _shown(value: Any) -> str:
    """A value as a profile spells it, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema without its reference, and without the alternative ``null``, which no TOML file can hold."""
    if "$ref" in schema:
        return _resolved(root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root)
    real = [part for part in schema.get("anyOf", []) if part.get("type") != "null"]
    return _resolved(real[0], root) if len(real) == 1 else schema


def _locate(root: Mapping[str, Any], place: tuple[int | str, ...]) -> tuple[Mapping[str, Any], list[int | str]]:
    """The schema of the deepest key that an error's location names, and the path to it."""
    schema, path = _resolved(root, root), list[int | str]()
    for part in place:
        if part in schema.get("properties", {}):
            found = schema["properties"][part]
        elif isinstance(part, str) and isinstance(schema.get("additionalProperties"), dict):
            found = schema["additionalProperties"]
        elif isinstance(part, int) and "items" in schema:
            found = schema["items"]
        else:
            break
        schema = _resolved(found, root)
        path.append(part)
    return schema, path


def describe(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Describe the values that a JSON schema allows, e.g. ``"an integer of at least 1"``.

    Args:
        root: the schema of the whole model, which holds the definitions that ``schema`` refers to.
    """
    schema = _resolved(schema, root)
    if "anyOf" in schema:
        parts = [describe(part, root) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if "const" in schema:
        return _shown(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(map(_shown, schema["enum"]))
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return " ".join(filter(None, ("an integer" if kind == "integer" else "a number", _range(schema))))
    if kind == "array":
        items = schema.get("items")
        count = {None: "a list", 0: "a list"}.get(schema.get("minItems"), "a non-empty list")
        return count + (f" whose items are each {describe(items, root)}" if items else "")
    if kind == "object":
        inner = schema.get("additionalProperties")
        return "a table" + (f" whose values are each {describe(inner, root)}" if isinstance(inner, dict) else "")
    return {"boolean": "true or false", "string": "text in quotes"}.get(str(kind), "another value")


def _range(schema: Mapping[str, Any]) -> str:
    """The bounds of a number in words."""
    if "minimum" in schema and "maximum" in schema:
        return f"from {_number(schema['minimum'])} to {_number(schema['maximum'])}"
    words = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "up to", "exclusiveMaximum": "below"}
    return " and ".join(f"{text} {_number(schema[key])}" for key, text in words.items() if key in schema)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
