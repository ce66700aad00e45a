"""Measure what pages of the site weigh and when they show something.

    python -m benchmarks.bench_site [build/site] [--visits 7]

A fresh browser context opens each page from the disk, the network off. Weight is that of all files
that it loads. Times are medians over the visits, which alternate the pages: the first contentful
paint, and the moment at which every formula is drawn.

Writes ``site.csv`` and ``site.md`` into ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import psutil
from playwright.sync_api import Browser, sync_playwright

RESULTS = Path(__file__).parent / "results"
PAGES = {
    "index.html": "home",
    "notebooks/00_start_here.html": "a short lesson",
    "notebooks/03_the_penalty_term.html": "the longest lesson",
    "notebooks/notation.html": "notation",
    "api/ewc.html": "reference",
    "lambda_lab.html": "the λ lab",
}
PAINT = """() => new Promise(done => new PerformanceObserver((list) => {
    const [paint] = list.getEntriesByName('first-contentful-paint');
    if (paint) done(paint.startTime / 1000);
}).observe({type: 'paint', buffered: true}))"""
FORMULAS = "async () => { await window.MathJax?.startup.promise; return performance.now() / 1000; }"


def visit(browser: Browser, site: Path, page: str) -> tuple[float, float, float]:
    """Return megabytes loaded, and the seconds of first paint and last formula."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    loaded: set[str] = set()
    tab.on("request", lambda request: loaded.add(request.url))
    tab.goto((site / page).as_uri())
    seconds = tab.evaluate(PAINT), tab.evaluate(FORMULAS)
    context.close()
    files = [Path(unquote(urlsplit(url).path)) for url in loaded if url.startswith("file:")]
    return sum(file.stat().st_size for file in files) / 1e6, *seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", nargs="?", type=Path, default=Path("build/site"))
    parser.add_argument("--visits", type=int, default=7)
    arguments = parser.parse_args()
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    )
    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        version = browser.version
        for _ in range(arguments.visits):
            for page in PAGES:
                rows.append((page, *visit(browser, arguments.site.resolve(), page)))
        browser.close()
    names = ["page", "megabytes", "first_paint_s", "formulas_s"]
    found = pd.DataFrame(rows, columns=names).groupby("page", sort=False).median().round(3)
    found.to_csv(RESULTS / "site.csv")
    lines = [
        "# Pages of the site",
        "",
        "Megabytes of all files that a page loads, and seconds until something is shown and until "
        f"all formulas are drawn: medians of {arguments.visits} visits from the disk, Chromium "
        f"{version}, {os.cpu_count()} cores, {platform.machine()}, with a load of "
        f"{psutil.getloadavg()[0]:.0f} from all that ran there. "
        "`python -m benchmarks.bench_site` makes this file.",
        "",
        "| page | MB | first paint | formulas |",
        "| --- | ---: | ---: | ---: |",
    ]
    for page, row in found.iterrows():
        times = f"{row.first_paint_s:.2f} s | {row.formulas_s:.2f} s"
        lines.append(f"| {PAGES[page]} (`{page}`) | {row.megabytes:.2f} | {times} |")
    (RESULTS / "site.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
