"""The lecture's slides, from one file and without a network: every one fits and is drawn."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from ewc_tutorial.course import slides

pytestmark = pytest.mark.skipif(
    find_spec("sphinx_revealjs") is None or find_spec("sphinx-mathjax-offline") is None,
    reason="reveal.js or MathJax is not installed: the extra `slides`",
)


def test_every_slide_fits_and_nothing_is_asked_of_the_network(browser, tmp_path):
    file = tmp_path / "slides.html"
    file.write_text(slides.page(), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    asked, errors = [], []
    page.on("request", lambda r: None if r.url.startswith("data:") else asked.append(r.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    page.wait_for_function("document.querySelectorAll('mjx-container svg').length > 3")
    heights = page.evaluate(
        """() => Array.from({length: Reveal.getTotalSlides()}, (_, i) => {
            Reveal.slide(i);
            return Reveal.getCurrentSlide().scrollHeight;
        })"""
    )
    assert len(heights) == len(list(slides.sections()))
    assert max(heights) <= 720
    page.evaluate("Reveal.slide(1)")
    assert page.locator("section.present img").evaluate("image => image.naturalWidth") > 0
    assert (asked, errors) == ([file.as_uri()], [])
    page.close()
