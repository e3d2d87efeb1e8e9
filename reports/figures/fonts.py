"""Fonts for names that DejaVu Sans cannot write, e.g. Chinese ones; without such a font, their ASCII form in PNG files.

SVG files keep every name: their readers have fonts of their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USUAL = "DejaVu Sans"  # comes with matplotlib
# Fonts with Chinese characters, by the names that matplotlib gives them on Linux, Windows and macOS.
CHINESE = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "Microsoft YaHei", "SimHei", "SimSun"),
    *("PingFang SC", "PingFang HK", "Hiragino Sans GB", "Heiti TC", "STHeiti", "Arial Unicode MS"),
)


@cache
def _characters(family: str) -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family=[family]))).get_charmap())


def families(texts: Sequence[str]) -> list[str]:
    """Return the fonts for these texts: the usual one and, if it lacks characters, the installed one that has the most of them."""
    from matplotlib.font_manager import fontManager

    if not (wanted := {ord(char) for text in texts for char in text} - _characters(USUAL)):
        return [USUAL]
    installed = set(fontManager.get_font_names())
    chinese = [name for name in CHINESE if name in installed]
    best = max(chinese, key=lambda name: len(wanted & _characters(name)), default=None)
    return [USUAL] if best is None else [USUAL, best]


@contextmanager
def fonts_for(texts: Sequence[str]) -> Iterator[None]:
    """Draw with fonts that can write these texts, without a warning for each character that none of them has."""
    import matplotlib

    with matplotlib.rc_context({"font.family": families(texts)}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        yield


def use_ascii(figure: Figure) -> None:
    """Replace characters that the fonts of a figure lack by their ASCII form, e.g. ``\\u60c5``."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        known = frozenset[int]().union(*map(_characters, text.get_fontfamily()))
        words = text.get_text()
        text.set_text(
            "".join(
                c if ord(c) in known or c == "\n" else c.encode("ascii", "backslashreplace").decode() for c in words
            )
        )
