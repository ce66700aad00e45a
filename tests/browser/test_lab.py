"""The course in JupyterLab: it opens, it runs, and its sliders answer the keyboard."""

from __future__ import annotations

import re


def test_the_first_notebook_runs_and_its_slider_moves(page, open_notebook, screenshot):
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_notebook("00_start_here.ipynb")
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
    screenshot("lab_slider")
    assert errors == []


def test_an_answer_is_folded_until_it_is_asked_for(page, open_notebook, screenshot):
    open_notebook("00_start_here.ipynb")
    answer = page.locator(".jp-OutputArea details", has_text=re.compile("Answer: accuracy")).first
    answer.scroll_into_view_if_needed()
    assert not answer.locator("pre").is_visible()
    answer.locator("summary").click()
    assert answer.locator("pre").is_visible()
    assert "def " in answer.locator("pre").inner_text()
    screenshot("lab_answer")


def test_the_server_shows_the_readme_that_lessons_speak_of(contents):
    assert contents("README.md").startswith("# EWC Tutorial")
