"""The page in a real browser, driven over Chromium's debugging pipe; the tests are skipped without Chromium."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no Chromium on this machine: the page was not opened in a browser"
)


class Browser:
    """One page of a headless Chromium: commands, answers and events are JSON, each ended by a zero byte."""

    def __init__(self, folder: Path) -> None:
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        # Chromium reads descriptor 3 and writes descriptor 4.
        switches = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --remote-debugging-pipe"
        command = f'exec "$0" {switches} --user-data-dir="$1" about:blank 3<&{theirs_in} 4>&{theirs_out}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, str(folder)],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder)},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._number = b"", 0
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = os.read(self._in, 1 << 16)
            if not more:
                raise RuntimeError("Chromium went away")
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; keep events that arrive before it."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])
            self.events.append(answer)

    def open(self, path: Path, width: int) -> None:
        """Load a file and wait for its load event."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Click with the mouse on the centre of the first element that matches."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.ask(f"{place}.scrollIntoView({{block: 'center', inline: 'center', behavior: 'instant'}})")
        x, y = self.ask(
            f"(() => {{const r = {place}.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]}})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Type into a field."""
        self.ask(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a list."""
        field = f"document.querySelector({json.dumps(selector)})"
        self.ask(
            f"(() => {{{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))}})()"
        )

    def troubles(self) -> list[str]:
        """Return the exceptions and errors that the page reported."""
        self.ask("1")  # all pending events have arrived by then
        found = []
        for event in self.events:
            printed = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(printed["exceptionDetails"]))
            if event["method"] == "Runtime.consoleAPICalled" and printed["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(printed["args"]))
            if event["method"] == "Log.entryAdded" and printed["entry"]["level"] in ("error", "warning"):
                found.append(printed["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """Return the addresses that were requested."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def close(self) -> None:
        """Close the browser, and kill it if it does not end."""
        self.session = None
        try:
            self.call("Browser.close")
        except (OSError, RuntimeError):
            self.process.terminate()
        self.process.wait(timeout=20)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(plausible_report: Path) -> Path:
    return plausible_report


@pytest.fixture
def desk(browser: Browser, page: Path) -> Browser:
    """The page on a desktop, freshly loaded."""
    browser.open(page, 1280)
    return browser


# Texts of a column of the first summary table, visible rows only.
VISIBLE = "[...document.querySelectorAll('#summary table')].flatMap(t => [...t.tBodies[0].rows]).filter(r => !r.hidden)"
COLUMN = "[...document.querySelector('#summary table').tBodies[0].rows].map(r => r.cells[{0}].dataset.v)"


def column_of(browser: Browser, heading: str) -> int:
    heads = browser.ask("[...document.querySelector('#summary table').tHead.rows[0].cells].map(c => c.textContent)")
    return next(i for i, head in enumerate(heads) if head.startswith(heading))


def test_a_click_on_a_heading_sorts(desk):
    """The first click on a heading of numbers puts the largest first, the second the smallest."""
    at = column_of(desk, "Samples/s")
    before = desk.ask(COLUMN.format(at))
    button = f"#summary table th:nth-child({at + 1}) button"
    desk.click(button)
    down = [float(value) for value in desk.ask(COLUMN.format(at))]
    assert down == sorted(down, reverse=True) and sorted(map(float, before)) == sorted(down)
    desk.click(button)
    assert [float(value) for value in desk.ask(COLUMN.format(at))] == sorted(down)
    assert desk.ask(f"document.querySelector('{button}').closest('th').getAttribute('aria-sort')") == "ascending"
    assert desk.troubles() == []


def test_text_columns_sort_by_words(desk):
    """A click on the heading of a column of words sorts from A to Z."""
    desk.click("#summary table th:nth-child(2) button")
    names = desk.ask("[...document.querySelector('#summary table').tBodies[0].rows].map(r => r.cells[1].textContent)")
    assert names == sorted(names) and len(set(names)) > 5


def test_enter_on_a_heading_sorts(desk):
    """Headings can be used with the keyboard."""
    desk.ask("document.querySelector('#summary table th button').focus()")
    for kind in ("keyDown", "keyUp"):
        desk.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
    assert desk.ask("document.querySelector('#summary table th').getAttribute('aria-sort')") == "ascending"


def test_filters_narrow_rows_and_figures(desk):
    """Filters by method, text and controls work together, and resetting them shows all rows."""
    everything = desk.ask(f"{VISIBLE}.length")
    desk.click("#filter input[name=controls]")
    kinds = desk.ask(f"{VISIBLE}.map(r => r.dataset.kind)")
    assert set(kinds) == {"method"} and 0 < len(kinds) < everything
    desk.choose("#filter select[name=method]", "geep")
    assert set(desk.ask(f"{VISIBLE}.map(r => r.dataset.method)")) == {"geep"}
    figures = "[...document.querySelectorAll('figure[data-method]')].filter(f => !f.hidden).map(f => f.dataset.method)"
    assert set(desk.ask(figures)) == {"geep"}
    desk.type("#filter input[name=text]", "0.5/shared")
    assert all("speed=0.5/shared" in text for text in desk.ask(f"{VISIBLE}.map(r => r.textContent)"))
    assert " of " in desk.ask("document.querySelector('#filter output').textContent")
    desk.ask("document.getElementById('filter').reset()")
    desk.ask("new Promise(done => setTimeout(done, 50))")
    assert desk.ask(f"{VISIBLE}.length") == everything
    assert desk.troubles() == []


def test_choosing_a_dataset_hides_the_others(desk):
    """Choosing a dataset shows only its section and rows, even if its name contains markup."""
    desk.choose("#filter select[name=dataset]", "a_b & <c> (synthetic)")
    shown = desk.ask(
        "[...document.querySelectorAll('section[data-group]')].filter(s => !s.hidden).map(s => s.dataset.group)"
    )
    assert shown == ["a_b & <c> (synthetic)"]
    assert set(desk.ask(f"{VISIBLE}.map(r => r.cells[0].textContent)")) == {"a_b & <c>"}


def test_points_have_a_description(desk):
    """Every point of an accuracy figure has a description, and a click writes it under the figure."""
    first = "document.querySelector('section[data-group] .figures svg').querySelectorAll('.spot title')"
    spots = desk.ask(f"[...{first}].map(t => t.textContent)")
    assert len(spots) == len(set(spots)) >= 20
    assert all("accuracy" in text and "speed-up" in text for text in spots)
    desk.click("section[data-group] .figures .spot")
    assert (
        desk.ask(
            "document.querySelector('section[data-group] .figures .spot').closest('figure').querySelector('.said').textContent"
        )
        in spots
    )


def test_the_page_loads_nothing(desk, page):
    """The page loads nothing else and reports no error."""
    assert {url for url in desk.requests() if not url.startswith("data:")} == {page.as_uri()}
    assert desk.troubles() == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows(browser, page, width):
    """On a phone and on a desktop the page itself never scrolls sideways; wide tables scroll in their frames."""
    browser.open(page, width)
    browser.ask("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.ask("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_the_recommendation_needs_no_scrolling(browser, page, width, height):
    """On a phone and on a desktop the first screen has a recommendation for every dataset; the figure has readable text."""
    browser.open(page, width)
    told = "[...document.querySelectorAll('#answer .told li')]"
    assert browser.ask(f"{told}.map(t => t.textContent.split(':')[0])") == ["weibo", "a_b & <c> (synthetic)"]
    assert browser.ask(f"Math.max(...{told}.map(t => t.getBoundingClientRect().bottom))") < height
    figure = "document.querySelector('#answer figure svg text')"
    assert browser.ask(f"{figure}.getBoundingClientRect().height") > 7
    if width > 1000:
        assert browser.ask("document.querySelector('#answer figure svg').getBoundingClientRect().bottom") < height


def test_navigation_reaches_every_section(desk):
    """Each link of the contents scrolls its section to the top."""
    for link in desk.ask("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))"):
        desk.ask(f"document.querySelector('nav a[href=\"{link}\"]').click()")
        assert desk.ask("location.hash") == link
        assert desk.ask(f"document.querySelector('{link}').getBoundingClientRect().top") < 900


def test_print_opens_everything_and_hides_controls(desk):
    """In print all blocks are open, and filter and contents are hidden."""
    desk.call("Emulation.setEmulatedMedia", media="print")
    assert desk.ask("getComputedStyle(document.getElementById('filter')).display") == "none"
    desk.ask("window.dispatchEvent(new Event('beforeprint'))")
    assert desk.ask("[...document.querySelectorAll('details')].every(d => d.open)") is True
    desk.ask("window.dispatchEvent(new Event('afterprint'))")
    assert desk.ask("[...document.querySelectorAll('details')].every(d => d.open)") is False
    pdf = base64.b64decode(desk.call("Page.printToPDF", printBackground=True)["data"])
    desk.call("Emulation.setEmulatedMedia", media="")
    assert pdf.startswith(b"%PDF") and len(pdf) > 50_000
