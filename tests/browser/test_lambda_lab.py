"""The λ lab in a real browser: in JupyterLab and as a page of Voilà."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import psutil
import pytest

ARTIFACTS = Path(__file__).resolve().parents[1] / "artifacts"

# Notes when each key press reached the page, when the canvas was drawn on last, and when that was
# on the screen.
WATCH = """() => {
    window.presses = [];
    let drawn = 0;
    for (const name of ['stroke', 'fill', 'fillText', 'clearRect', 'fillRect', 'restore']) {
        const draw = CanvasRenderingContext2D.prototype[name];
        CanvasRenderingContext2D.prototype[name] = function (...all) {
            drawn = performance.now();
            return draw.apply(this, all);
        };
    }
    document.addEventListener('keydown', event => {
        const pressed = event.timeStamp;
        const look = () => requestAnimationFrame(() => {
            if (drawn < pressed) return look();
            const channel = new MessageChannel();
            channel.port1.onmessage = () =>
                window.presses.push([drawn - pressed, performance.now() - pressed]);
            channel.port2.postMessage(null);
        });
        look();
    }, true);
}"""


@pytest.fixture
def errors(page):
    """Return the errors that the page's scripts raise, as they come."""
    found: list[str] = []

    def note(error):
        found.append(str(error))

    page.on("pageerror", note)
    yield found
    page.remove_listener("pageerror", note)


class Lab:
    """The first λ lab on a page."""

    def __init__(self, page) -> None:
        self.page = page
        self.slider = page.locator("input[type=range][name=k]").first
        self.slider.wait_for()
        self.slider.scroll_into_view_if_needed()
        self.picture()

    def picture(self) -> str:
        """Return what the canvas shows once it rests."""
        canvas = self.page.locator(".vega-embed canvas").first
        canvas.wait_for()
        shown = canvas.evaluate("canvas => canvas.toDataURL()")
        while True:
            self.page.wait_for_timeout(150)
            before, shown = shown, canvas.evaluate("canvas => canvas.toDataURL()")
            if shown == before:
                return shown

    def press(self, key: str) -> None:
        self.slider.focus()
        self.slider.press(key)

    def check_keys(self) -> None:
        """Move the slider with every key that it knows, and see the picture follow."""
        last = int(self.slider.get_attribute("max"))
        self.press("Home")
        first = self.picture()
        seen = {first}
        for key, value in (("ArrowRight", 1), ("ArrowRight", 2), ("End", last), ("Home", 0)):
            self.press(key)
            assert self.slider.input_value() == str(value)
            seen.add(self.picture())
        assert len(seen) == 4
        assert self.picture() == first

    def delays(self, presses: int = 30) -> list[list[float]]:
        """Return ms from each of some key presses to the drawn and to the shown picture."""
        self.page.evaluate(WATCH)
        self.slider.focus()
        for i in range(presses):
            self.slider.press("ArrowRight" if i // 10 % 2 == 0 else "ArrowLeft")
            self.page.wait_for_timeout(67)  # no multiple of a frame: presses come at any phase
        return self.page.evaluate("window.presses")


def note_speed(lab: Lab, where: str) -> None:
    """Note the time from key press to picture; a busy machine may be slow, so nothing is tested."""
    delays = lab.delays()
    assert len(delays) >= 20
    drawn, shown = (statistics.median(values) for values in zip(*delays, strict=True))
    ARTIFACTS.mkdir(exist_ok=True)
    with (ARTIFACTS / "latency.txt").open("a") as file:
        file.write(f"{where}: key press to picture: drawn {drawn:.1f} ms, shown {shown:.1f} ms\n")


def train_and_wait(page, lab: Lab) -> None:
    """Train with the batched F, uncovered, and wait until another picture with a ghost has come."""
    page.locator(".widget-dropdown", has_text="F from").locator("select").first.select_option(
        "batched"
    )
    page.get_by_label("predict first").first.uncheck()
    lab.press("Home")
    before = lab.picture()
    button = page.get_by_role("button", name="Train").first
    button.click()
    page.get_by_text("networks trained in").first.wait_for()
    page.wait_for_function(
        "before => document.querySelector('.vega-embed canvas')?.toDataURL() !== before", arg=before
    )


def test_the_lab_in_jupyterlab(page, open_notebook, screenshot, errors):
    open_notebook("05_the_lambda_lab.ipynb")
    assert page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    failed = ".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']"
    assert page.locator(failed).count() == 0
    lab = Lab(page)
    screenshot("lambda_lab_covered")
    page.locator("input[type=checkbox][name=shown]").first.check()
    lab.check_keys()
    note_speed(lab, "JupyterLab")
    screenshot("lambda_lab")
    train_and_wait(page, lab)
    for _ in range(8):
        Lab(page).press("ArrowRight")
    screenshot("lambda_lab_trained")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export CSV and PNG").first.click()
        page.get_by_text("lambda_lab.csv").first.click()
    assert download.value.suggested_filename == "lambda_lab.csv"
    assert errors == []


def test_the_lab_as_a_page_of_voila(page, voila, screenshot, errors):
    page.goto(voila, wait_until="commit")
    lab = Lab(page)
    screenshot("lambda_lab_voila_covered")
    page.locator("input[type=checkbox][name=shown]").first.check()
    lab.check_keys()
    note_speed(lab, "Voilà")
    train_and_wait(page, lab)
    for _ in range(8):
        Lab(page).press("ArrowRight")
    screenshot("lambda_lab_voila")
    assert errors == []


def kernels_of_voila() -> set[int]:
    """Return the processes of kernels under the servers of Voilà that these tests have started."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if "ipykernel_launcher" in process.cmdline() and "voila" in process.parent().cmdline():
                found.add(process.pid)
        except (psutil.NoSuchProcess, psutil.ZombieProcess, AttributeError):
            pass  # it has just ended
    return found


def test_a_visitor_waits_for_nobody_outside_and_leaves_no_kernel_behind(visitor, voila):
    before = kernels_of_voila()
    held: list[str] = []

    def outside(url: str) -> bool:
        return not url.startswith(voila)

    # Neither answered nor refused, as by a network that swallows packets.
    visitor.route(outside, lambda route: held.append(route.request.url))

    def wait_for_kernels(wanted: int) -> None:
        deadline = time.monotonic() + 60
        while len(found := kernels_of_voila() - before) != wanted:
            assert time.monotonic() < deadline, f"{len(found)} kernels run, not {wanted}"
            visitor.wait_for_timeout(200)

    visitor.goto(voila, wait_until="commit")
    Lab(visitor)
    assert held == []
    visitor.unroute(outside)  # a page that is watched so does not get to say goodbye
    assert len(kernels_of_voila() - before) == 1
    visitor.reload(wait_until="commit")
    Lab(visitor)
    wait_for_kernels(1)
    visitor.goto("about:blank")
    wait_for_kernels(0)
