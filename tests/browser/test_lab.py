"""The course in a real browser: JupyterLab opens it, runs it, and its sliders answer the keyboard.

Skipped with a reason where there is no Chromium. Screenshots go to tests/artifacts.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "tests" / "artifacts"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# The last one proves that a page needs nothing from outside this machine.
CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]
TOKEN = "browser-test"
# Resolves when the notebook in front is open and its kernel answers.
READY = """async () => {
    const app = window.jupyterapp;
    await app.restored;
    const panel = app.shell.currentWidget;
    await panel.context.ready;
    await panel.revealed;
    const session = panel.sessionContext;
    await session.ready;
    while (session.session?.kernel?.connectionStatus !== 'connected')
        await new Promise(done => setTimeout(done, 100));
    await session.session.kernel.info;
}"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    """Serve a copy of the notebooks as ``make lab`` does and yield the server's address."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folders = {
        f"JUPYTER{kind}_DIR": str(home / kind.lower().strip("_"))
        for kind in ("_CONFIG", "_DATA", "_RUNTIME", "LAB_SETTINGS", "LAB_WORKSPACES")
    }
    # No question about news in front of the screenshots.
    settings = home / "lab_settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={home / 'notebooks'}",
        f"--IdentityProvider.token={TOKEN}",
        "--LabApp.expose_app_in_browser=True",
    ]
    address = f"http://127.0.0.1:{port}"
    log = (home / "log.txt").open("w")
    with subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **folders}) as server:
        try:
            deadline = time.monotonic() + 90
            while not answers(f"{address}/api"):
                assert server.poll() is None, (home / "log.txt").read_text()
                assert time.monotonic() < deadline, (home / "log.txt").read_text()
                time.sleep(0.2)
            yield address
        finally:
            server.terminate()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def page(lab):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def open_notebook(page, lab: str, name: str) -> None:
    page.goto(f"{lab}/lab/tree/{name}?token={TOKEN}&reset")
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext")
    page.evaluate(READY)


def test_the_first_notebook_runs_and_its_slider_moves(page, lab):
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_notebook(page, lab, "00_start_here.ipynb")
    assert page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    assert (
        page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']").count()
        == 0
    )
    handle = page.locator(".jp-OutputArea .widget-hslider .noUi-handle").first
    handle.wait_for()
    picture = page.locator(".jp-OutputArea .widget-image").first
    picture.wait_for()
    handle.scroll_into_view_if_needed()
    before, readout = picture.get_attribute("src"), page.locator(".widget-readout").first
    first = readout.inner_text()
    handle.focus()
    handle.press("ArrowRight")
    page.wait_for_function(
        "([image, before]) => image.src !== before", arg=[picture.element_handle(), before]
    )
    assert readout.inner_text() != first
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / "lab_slider.png")
    assert errors == []


def test_an_answer_is_folded_until_it_is_asked_for(page, lab):
    open_notebook(page, lab, "00_start_here.ipynb")
    answer = page.locator(".jp-OutputArea details", has_text=re.compile("Answer")).first
    answer.scroll_into_view_if_needed()
    assert not answer.locator("pre").is_visible()
    answer.locator("summary").click()
    assert answer.locator("pre").is_visible()
    assert "def " in answer.locator("pre").inner_text()
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / "lab_answer.png")
