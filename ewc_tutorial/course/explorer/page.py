"""The λ lab as one HTML file that trains in the browser: no kernel and no network.

python -m ewc_tutorial.course.explorer.page build/lambda_lab.html
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ewc_tutorial.course.explorer import web
from ewc_tutorial.course.explorer.words import earlier_accuracy
from ewc_tutorial.course.plots.style import standard_error
from ewc_tutorial.course.sweep.result import SweepResult
from ewc_tutorial.course.tasks import permuted_tasks


def page(result: SweepResult, *, predict: bool = True) -> str:
    """Return the page, with all that it needs inside.

    Args:
        result: a sweep over two to five permuted tasks of the digits, drawn behind what is trained
            on the page.
        predict: keep the answer covered until the reader has guessed the best λ.
    """
    defaults = _defaults(result)
    stored = "{tasks} tasks, width {width}, η = {lr:g}, {epochs} epochs and a diagonal F".format(
        **defaults
    )
    data = {
        "images": _images(),
        "landscape": _landscape(result),
        "defaults": defaults | {"shown": not predict},
    }
    return web.read("page.html").format(
        css=web.read("page.css"),
        members=len(result.lambdas) * len(result.seeds),
        n=len(result.lambdas),
        seeds=len(result.seeds),
        stored=stored,
        data=json.dumps(data).replace("</", "<\\/"),
        engine=web.engine(),
        worker=web.read("worker.js"),
        page=web.page(),
    )


def _images() -> dict[str, Any]:
    """Return the digits, whose pixels are whole numbers up to 16, as bytes in base 64."""
    (task,) = permuted_tasks(1)
    (x, y), (x_test, y_test) = task.train.tensors, task.test.tensors
    pixels = np.concatenate([(16 * part).round().byte().numpy() for part in (x, x_test)])
    labels = np.concatenate([part.byte().numpy() for part in (y, y_test)])
    return {"pixels": _base64(pixels), "labels": _base64(labels), "train": len(y)}


def _base64(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _landscape(result: SweepResult) -> dict[str, Any]:
    """Return what the page shows of the stored sweep: means over its seeds."""
    average = result.average_accuracy
    means = {
        "average": average,
        "old": earlier_accuracy(result),
        "latest": result.new_accuracy,
        "important": result.important_move[:, :, -1],
        "curves": result.curves,
    }
    return {
        "lambdas": [float(f"{lam:.6g}") for lam in result.lambdas],
        "tasks": result.tasks,
        "steps": result.steps.tolist(),
        "boundaries": result.boundaries.tolist(),
        "error": standard_error(average, axis=1).round(4).tolist(),
        **{name: values.mean(axis=1).round(4).tolist() for name, values in means.items()},
    }


def _defaults(result: SweepResult) -> dict[str, Any]:
    """Return the settings of the sweep, which the page begins with."""
    settings: dict[str, Any] = {"hidden": (32, 32), "lr": 0.3, "epochs": 5} | result.settings
    return {
        "tasks": len(result.tasks),
        "width": settings["hidden"][0],
        "lr": settings["lr"],
        "epochs": settings["epochs"],
        "seeds": len(result.seeds),
        "curvature": "diagonal",
    }


def main() -> None:
    """Train the lab's default landscape and write its page."""
    from ewc_tutorial.course.explorer.lab import default_landscape

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the HTML file to write")
    path = parser.parse_args().path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(default_landscape()), encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, open it in any browser")


if __name__ == "__main__":
    main()
