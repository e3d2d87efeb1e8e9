"""Fonts of figures."""

from __future__ import annotations

import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from reports.analysis.view import build_view
from reports.figures import fonts
from reports.figures.dataset_figures import draw_figures


@pytest.fixture
def chinese_font(tmp_path, monkeypatch):
    """Install a font whose only characters are 情 and 感, as squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((900, 0), (900, 800), (100, 800)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "one", "two"])
    builder.setupCharacterMap({ord("情"): "one", ord("感"): "two"})
    builder.setupGlyf({".notdef": square, "one": square, "two": square})
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", "one", "two"), (1000, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Made-up Hei", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "made-up.ttf")
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(tmp_path / "made-up.ttf")
    monkeypatch.setattr(fonts, "CHINESE", ("Not Installed Hei", "Made-up Hei"))
    yield "Made-up Hei"
    font_manager.fontManager.ttflist = before


@pytest.fixture
def drawn(fabricate):
    """Return a function that draws the first figure of a dataset with a Chinese name, and fails on any warning."""
    run = fabricate()
    run.cell("bert", dataset="情感", histogram=[0, 0, 0, 0, 0, 200])
    view = build_view(run.path)

    def draw():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return draw_figures(view, view.groups[0])[0]

    return draw


def texts_of_png(monkeypatch):
    """Return a list that gets the texts of every figure just before its PNG file is written."""
    from matplotlib.text import Text

    from reports.figures import drawing

    found: list[str] = []

    def watched(figure):
        fonts.use_ascii(figure)
        found.extend(text.get_text() for text in figure.findobj(Text))

    monkeypatch.setattr(drawing, "use_ascii", watched)
    return found


def test_a_chinese_name_is_drawn_with_a_font_that_has_it(drawn, chinese_font, monkeypatch):
    """The usual font comes first, then one with Chinese characters; no warning appears."""
    texts = texts_of_png(monkeypatch)
    figure = drawn()
    assert fonts.families(["情感 bert"]) == ["DejaVu Sans", chinese_font]
    assert "情感" in figure.svg and chinese_font in figure.svg
    assert any("情感" in text for text in texts)


def test_without_such_a_font_png_files_have_the_ascii_name(drawn, monkeypatch):
    """The SVG file keeps the name, for readers with fonts of their own; the PNG file has no empty boxes."""
    monkeypatch.setattr(fonts, "CHINESE", ())
    texts = texts_of_png(monkeypatch)
    figure = drawn()
    assert "情感" in figure.svg
    assert not any("情" in text for text in texts)
    assert any(r"\u60c5\u611f" in text for text in texts)


def test_other_names_need_no_further_font():
    """Figures without Chinese names are the same on every machine."""
    assert fonts.families(["ag_news (synthetic)", "speed=0.5 × 2 ▾ − …"]) == ["DejaVu Sans"]
