"""The λ lab as one HTML file: no kernel, no network, and the slider works.

python -m ewc_tutorial.lab_page build/lambda_lab.html
"""

from __future__ import annotations

import argparse
from io import StringIO
from pathlib import Path

from ewc_tutorial.lab_chart import CSS, EMBED_OPTIONS, chart
from ewc_tutorial.sweep_result import SweepResult

_STYLE = """
body { font: 15px/1.45 sans-serif; margin: 1.5em auto; max-width: 900px; padding: 0 1em; }
h1 { font-size: 1.4em; margin-bottom: 0.3em; }
#vis.vega-embed { flex-direction: column; align-items: flex-start; }
"""
_INTRODUCTION = """
<h1>The λ lab</h1>
<p>A small network learns the tasks {tasks}, one after the other, with Elastic Weight Consolidation.
It was trained {members} times: for each of {n} values of λ, from {seeds} random starts (the bands
show ± 1 standard error). λ says how strongly the weights that matter for an earlier task are held;
λ = 0 is plain training. Guess the best λ, uncover the answer, then turn λ with the arrow keys.</p>
"""


def page(result: SweepResult, *, predict: bool = True) -> str:
    """Return the page of a finished sweep, with all that it needs inside."""
    file = StringIO()
    chart(result, predict=predict).save(
        file, format="html", inline=True, embed_options=EMBED_OPTIONS
    )
    introduction = _INTRODUCTION.format(
        tasks=", ".join(result.tasks),
        members=len(result.lambdas) * len(result.seeds),
        n=len(result.lambdas),
        seeds=len(result.seeds),
    )
    # The page's own tags are the first <head> and the last <body>; the library's text has others.
    html = file.getvalue().replace("<html>", '<html lang="en">', 1)
    head = f"<head><title>The λ lab</title><style>{_STYLE}{CSS}</style>"
    before, after = html.replace("<head>", head, 1).rsplit("<body>", 1)
    return f"{before}<body>{introduction}{after}"


def main() -> None:
    """Train the lab's default landscape and write its page."""
    from ewc_tutorial.explorer import default_landscape

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the HTML file to write")
    path = parser.parse_args().path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(default_landscape()), encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, open it in any browser")


if __name__ == "__main__":
    main()
