"""Execute the code of the page how-to/python-api.md and show what it prints.

::

    python docs/example_api.py            # print code and output; takes a few minutes, in the current folder
    python docs/example_api.py --write    # also store the output in the page
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent / "how-to" / "python-api.md"
_BLOCK = re.compile(
    r"(?<=^```python\n)(?P<code>.*?)(?P<between>^```\n\n```text\n)(?P<output>.*?)(?=^```)", re.MULTILINE | re.DOTALL
)


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the code blocks of a page, each with the output that is stored below it."""
    return [(match["code"], match["output"]) for match in _BLOCK.finditer(page)]


def execute(codes: list[str]) -> Iterator[str]:
    """Execute blocks in one namespace. Yield what each prints; the value of a last expression is printed, as in a notebook."""
    # exec and eval run the code of our own page only.
    names: dict[str, Any] = {"__name__": "__example__"}
    for code in codes:
        body = ast.parse(code).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module(body, []), str(PAGE), "exec"), names)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), str(PAGE), "eval"), names)
                if value is not None:
                    print(value)
        yield printed.getvalue().rstrip() + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Execute the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="store the output in the page")
    write = parser.parse_args(arguments).write
    page = PAGE.read_text(encoding="utf-8")
    codes = [code for code, _ in blocks(page)]
    outputs = []
    for code, output in zip(codes, execute(codes), strict=True):
        print("\n".join(f">>> {line}" for line in code.splitlines()))
        print(output)
        outputs.append(output)
    if write:
        new = iter(outputs)
        PAGE.write_text(_BLOCK.sub(lambda match: match["code"] + match["between"] + next(new), page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
