"""Whether two cells were measured under equal conditions. Only then may they be paired or averaged."""

from __future__ import annotations

from collections.abc import Mapping

from harness.results.schema import Binding

NO_FINGERPRINT = "one of them was measured before results had fingerprints"
_PLAIN = {
    "test_rows": "test rows",
    "train_rows": "rows of train and dev",
    "backbone": "content of the backbone",
}
# How fits were trained; results of earlier versions do not say. Another number of threads adds in another order, which changes
# weights as much as another machine does. Two runs may differ in it, but two cells of one table may not.
_TRAINED = {"precision": "precision of training", "fit_threads": "threads per fit"}
_AS_ON_ANOTHER_MACHINE = {"fit_threads"}


def differences(one: Binding | None, other: Binding | None, *, across_code: bool = False) -> list[str]:
    """Return in words what two cells differ in although it must be equal; empty if they can be compared.

    Two results without fingerprints (earlier versions) have no known difference. A result without and one with always differ.

    Args:
        across_code: the cells come from two runs, which may have been measured by different code and with other settings of
            single methods (see :func:`other_settings`).
    """
    if one is None or other is None:
        return [] if one is other else [NO_FINGERPRINT]
    found = [words for name, words in _PLAIN.items() if getattr(one, name) != getattr(other, name)]
    if one.max_length != other.max_length:
        found.append(f"max_length ({one.max_length} and {other.max_length})")
    own = {*one.own, *other.own}
    found += [
        f"training.{key} ({one.training.get(key, 'not set')} and {other.training.get(key, 'not set')})"
        for key in sorted(({*one.training, *other.training}) - own)
        if one.training.get(key) != other.training.get(key)
    ]
    found += [
        words
        for name, words in _trained(one, other, known=across_code).items()
        if not across_code or name not in _AS_ON_ANOTHER_MACHINE
    ]
    if not across_code:
        found += [f"settings of {name}" for name in _unequal(one.fits, other.fits)]
        found += [f"version of {name}" for name in _unequal(one.versions, other.versions)]
    return found


def thread_differences(one: int | None, other: int | None) -> list[str]:
    """Return in words that two cells were measured on different numbers of threads, if both are known."""
    return [] if one == other or None in (one, other) else [_both("threads while measuring", one, other)]


def training_differences(one: Binding | None, other: Binding | None, *, known: bool = False) -> list[str]:
    """Return in words what two cells differ in of precision and threads of their fits; ``known``: only what both recorded."""
    return [] if one is None or other is None else list(_trained(one, other, known=known).values())


def _trained(one: Binding, other: Binding, *, known: bool) -> dict[str, str]:
    values = {name: (getattr(one, name), getattr(other, name)) for name in _TRAINED}
    return {
        name: _both(_TRAINED[name], *pair)
        for name, pair in values.items()
        if pair[0] != pair[1] and not (known and None in pair)
    }


def _both(words: str, one: object, other: object) -> str:
    shown = ["not recorded" if value is None else str(value) for value in (one, other)]
    return f"{words} ({' and '.join(shown)})"


def other_settings(one: Binding | None, other: Binding | None) -> list[str]:
    """Return the methods behind two cells that have other settings of their own; empty if that is unknown."""
    return [] if one is None or other is None else _unequal(one.fits, other.fits)


def _unequal(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the names that both have, with unequal values."""
    return [name for name, value in one.items() if name in other and other[name] != value]
