"""The λ lab as one HTML file: no kernel, no network, and the slider works.

python -m ewc_tutorial.course.explorer.page build/lambda_lab.html
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import vl_convert

from ewc_tutorial.course.explorer.chart import chart
from ewc_tutorial.course.explorer.widget import CSS, OPTIONS
from ewc_tutorial.course.sweep.result import SweepResult

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>The λ lab</title>
<style>
body {{ font: 15px/1.45 sans-serif; margin: 1.5em auto; max-width: 900px; padding: 0 1em; }}
h1 {{ font-size: 1.4em; margin-bottom: 0.3em; }}
{css}
</style>
</head>
<body>
<h1>The λ lab</h1>
<p>A small network learns the tasks {tasks}, one after the other, with Elastic Weight Consolidation.
It was trained {members} times: for each of {n} values of λ, from {seeds} random starts (the bands
show ± 1 standard error). λ says how strongly the weights that matter for an earlier task are held;
λ = 0 is plain training. Guess the best λ, uncover the answer, then turn λ with the arrow keys.</p>
<div id="lab"></div>
<script>{vega}</script>
<script>vegaEmbed("#lab", {spec}, {options});</script>
</body>
</html>
"""


def page(result: SweepResult, *, predict: bool = True) -> str:
    """Return the page of a finished sweep, with all that it needs inside."""
    spec = json.dumps(chart(result, predict=predict), ensure_ascii=False)
    return _PAGE.format(
        css=CSS,
        tasks=", ".join(result.tasks),
        members=len(result.lambdas) * len(result.seeds),
        n=len(result.lambdas),
        seeds=len(result.seeds),
        vega=vl_convert.javascript_bundle(),
        spec=spec.replace("</", "<\\/"),
        options=OPTIONS,
    )


def main() -> None:
    """Train the lab's default landscape and write its page."""
    from ewc_tutorial.course.explorer.lab import default_landscape

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the HTML file to write")
    path = parser.parse_args().path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(default_landscape()), encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, open it in any browser")


if __name__ == "__main__":
    main()
