"""Drawings of rectangles, lines and text, written directly as SVG: small and quick, and each part can have a description."""

from __future__ import annotations

from html import escape

from reports.figures.drawing import INK


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


_TEXT = 99


class Canvas:
    """Collects shapes in pixels, origin at the top left.

    Shapes of one layer and style form one group of the file, which keeps it small. Higher layers cover lower ones; text covers
    everything.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._shapes: dict[tuple[int, str], list[str]] = {}
        self._paths: dict[tuple[int, str], list[str]] = {}

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        *,
        stroke: str = "",
        opacity: float = 1.0,
        tip: str = "",
        above: int = 0,
    ) -> None:
        """Add a rectangle; ``tip`` appears when a reader points at it."""
        wide, high = _number(max(width, 0.5)), _number(height)
        path = f"M{_number(x)} {_number(y)}h{wide}v{high}h-{wide}z"
        style = f'fill="{fill}"' + (f' stroke="{stroke}"' if stroke else "")
        style += f' opacity="{opacity:.2g}"' if opacity < 1 else ""
        if tip:
            shape = f'<path d="{path}"><title>{escape(tip)}</title></path>'
            self._shapes.setdefault((above, style), []).append(shape)
        else:
            self._paths.setdefault((above, style), []).append(path)

    def line(self, x1: float, y1: float, x2: float, y2: float, color: str = INK, *, above: int = 0) -> None:
        """Add a thin line."""
        self._paths.setdefault((above, f'fill="none" stroke="{color}"'), []).append(
            f"M{_number(x1)} {_number(y1)}L{_number(x2)} {_number(y2)}"
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 11,
        anchor: str = "start",
        color: str = INK,
        bold: bool = False,
    ) -> None:
        """Add text with its baseline at ``y``."""
        style = f'font-size="{size:g}" fill="{color}"'
        style += f' text-anchor="{anchor}"' if anchor != "start" else ""
        style += ' font-weight="600"' if bold else ""
        words = f'<text x="{_number(x)}" y="{_number(y)}">{escape(text)}</text>'
        self._shapes.setdefault((_TEXT, style), []).append(words)

    def svg(self) -> str:
        """Return the file. It has no background."""
        body = []
        for key in sorted(dict.fromkeys([*self._paths, *self._shapes]), key=lambda key: key[0]):
            style = key[1]
            if paths := self._paths.get(key):
                body.append(f'<path d="{"".join(paths)}" {style}/>')
            if shapes := self._shapes.get(key):
                body.append("\n".join([f"<g {style}>", *shapes, "</g>"]))
        return (
            '<?xml version="1.0" encoding="utf-8"?>\n'
            f'<svg xmlns="http://www.w3.org/2000/svg" height="{_number(self.height)}" width="{_number(self.width)}" '
            f'viewBox="0 0 {_number(self.width)} {_number(self.height)}" font-family="DejaVu Sans, Verdana, sans-serif">\n'
            f"<title>{escape(self.title)}</title>\n" + "\n".join(body) + "\n</svg>\n"
        )


def width_of(text: str, size: float) -> float:
    """Return about how many pixels ``text`` takes at a font size; a wide character counts nearly two."""
    return 0.58 * size * sum(1.75 if ord(char) > 0x2E7F else 1.0 for char in text)


def fitted(text: str, size: float, width: float) -> str:
    """Return ``text`` cut to about ``width`` pixels at a font size."""
    if width_of(text, size) <= width:
        return text
    while text and width_of(text + "…", size) > width:
        text = text[:-1]
    return text + "…"
