"""A drawing made of rectangles, lines and words, written as SVG by hand: small, quick, and each part can name itself."""

from __future__ import annotations

from html import escape

from reports.palette import INK


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


class Canvas:
    """Collects shapes in pixels, origin at the top left."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

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
        says: str = "",
    ) -> None:
        """A rectangle; ``says`` shows when it is pointed at."""
        attributes = f'fill="{fill}"' + (f' stroke="{stroke}"' if stroke else "")
        attributes += f' opacity="{opacity:g}"' if opacity < 1 else ""
        shape = (
            f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(max(width, 0.5))}" height="{_number(height)}" '
            f"{attributes}"
        )
        self.parts.append(f"{shape}><title>{escape(says)}</title></rect>" if says else f"{shape}/>")

    def line(self, x1: float, y1: float, x2: float, y2: float, color: str = INK, *, dashed: bool = False) -> None:
        """A thin line."""
        dash = ' stroke-dasharray="2 2"' if dashed else ""
        self.parts.append(
            f'<line x1="{_number(x1)}" y1="{_number(y1)}" x2="{_number(x2)}" y2="{_number(y2)}" stroke="{color}"{dash}/>'
        )

    def text(
        self, x: float, y: float, text: str, *, size: float = 11, anchor: str = "start", color: str = INK, bold: bool = False
    ) -> None:
        """Words, their baseline at ``y``."""
        weight = ' font-weight="600"' if bold else ""
        at = f' text-anchor="{anchor}"' if anchor != "start" else ""
        self.parts.append(
            f'<text x="{_number(x)}" y="{_number(y)}" font-size="{size:g}" fill="{color}"{at}{weight}>{escape(text)}</text>'
        )

    def svg(self) -> str:
        """The file. Its background is left out: the paper shows through."""
        body = "\n".join(self.parts)
        return (
            '<?xml version="1.0" encoding="utf-8"?>\n'
            f'<svg xmlns="http://www.w3.org/2000/svg" height="{_number(self.height)}" width="{_number(self.width)}" '
            f'viewBox="0 0 {_number(self.width)} {_number(self.height)}" font-family="DejaVu Sans, Verdana, sans-serif" '
            f'stroke-width="1">\n<title>{escape(self.title)}</title>\n{body}\n</svg>\n'
        )


def fitted(text: str, size: float, width: float) -> str:
    """``text`` cut to about ``width`` pixels at a font size; a wide character counts two."""
    room = width / (0.58 * size)
    taken = 0.0
    for number, char in enumerate(text):
        taken += 1.75 if ord(char) > 0x2E7F else 1.0
        if taken > room:
            return text[: max(number - 1, 0)] + "…"
    return text
