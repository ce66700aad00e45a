"""The λ lab: a sweep as linked views, and the controls that train another one."""

from __future__ import annotations

import base64
import html
import threading
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ewc_tutorial.course.explorer.chart import chart
from ewc_tutorial.course.explorer.widget import CSS, LabChart
from ewc_tutorial.course.sweep import SweepResult, lambda_sweep
from ewc_tutorial.course.tasks import Task, permuted_tasks, rotated_tasks, split_tasks
from ewc_tutorial.ewc import RULES
from ewc_tutorial.fisher import ESTIMATORS

#: The λ of the lab: 0, and half decades from 0.01 to a million.
LAMBDAS = (0.0, *(10.0 ** (half / 2) for half in range(-4, 13)))

#: MNIST in the lab: as many images as train in seconds.
_MNIST_SUBSET = {"n_train": 3000, "n_test": 1000}


class LambdaExplorer(widgets.VBox):
    """A finished sweep over λ as four linked views and a slider that the browser itself answers.

    Args:
        result: the sweep.
        ghost: an earlier one, drawn behind in dashed grey.
        predict: keep the answer covered until the reader has guessed the best λ.
    """

    def __init__(
        self, result: SweepResult, ghost: SweepResult | None = None, *, predict: bool = False
    ) -> None:
        super().__init__(layout=widgets.Layout(align_items="flex-start"))
        self._view = widgets.VBox()
        self._export = widgets.Button(
            description="Export CSV and PNG", icon="download", layout=widgets.Layout(width="180px")
        )
        self._links = widgets.HTML()
        self._export.on_click(lambda _: self._offer())
        # Not as the chart's own style sheet: that goes when the first of two charts is closed.
        style = widgets.HTML(f"<style>{CSS}</style>", layout=widgets.Layout(height="0", margin="0"))
        self.children = [style, self._view, widgets.HBox([self._export, self._links])]
        self._draw(result, ghost, predict)

    def show(self, result: SweepResult, *, predict: bool = False) -> None:
        """Show another sweep; the one shown until now becomes the ghost."""
        self._draw(result, self.result, predict)

    def __repr__(self) -> str:
        lambdas, seeds, _, tasks = self.result.curves.shape
        return f"{type(self).__name__}({lambdas} λ, {seeds} seeds, {tasks} tasks)"

    @property
    def lam(self) -> float:
        """The λ that the slider points at."""
        return float(self.result.lambdas[int(self._chart.k)])

    @lam.setter
    def lam(self, value: float) -> None:
        at = np.flatnonzero(np.isclose(self.result.lambdas, value))
        if not len(at):
            near = self.result.lambdas[np.abs(self.result.lambdas - value).argmin()]
            raise ValueError(f"{value!r} is not on the grid of λ; the nearest is {near:g}.")
        self._chart.k = int(at[0])

    def csv(self) -> str:
        """Return the curves as a tidy table: lam, seed, step, task, accuracy, seen."""
        return self.result.to_frame().to_csv(index=False)

    def png(self) -> bytes:
        """Return the four views at the present λ as a picture."""
        figure = static_views(self.result, self.lam)
        buffer = BytesIO()
        FigureCanvasAgg(figure).print_png(buffer)
        return buffer.getvalue()

    def save(self, folder: str | Path = ".") -> list[Path]:
        """Write ``lambda_lab.csv`` and ``lambda_lab.png`` and return their paths."""
        paths = [Path(folder) / f"lambda_lab.{kind}" for kind in ("csv", "png")]
        paths[0].write_text(self.csv(), encoding="utf-8")
        paths[1].write_bytes(self.png())
        return paths

    def _draw(self, result: SweepResult, ghost: SweepResult | None, predict: bool) -> None:
        self.result, self.ghost = result, ghost
        self._chart = LabChart(chart(result, ghost, predict=predict))
        old, self._view.children = self._view.children, [self._chart]
        for widget in old:
            widget.close()
        self._links.value = ""

    def _offer(self) -> None:
        """Show links to the two files; their bytes are in the links, so any front end will do."""
        files = (("csv", "text/csv", self.csv().encode()), ("png", "image/png", self.png()))
        self._links.value = " ".join(
            f'<a download="lambda_lab.{kind}" style="text-decoration: underline; margin: 0 8px" '
            f'href="data:{mime};base64,{base64.b64encode(data).decode()}">lambda_lab.{kind}</a>'
            for kind, mime, data in files
        )


class _StoppedError(Exception):
    """The reader pressed Stop."""


class LambdaLab(LambdaExplorer):
    """The explorer with controls for all that changes the landscape, and a button that trains it.

    Training runs in a thread of its own, so that the page stays alive and Stop works.
    """

    def __init__(self, **options: Any) -> None:
        self.controls = _controls(options)
        self.error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._stop_asked = threading.Event()
        super().__init__(self._sweep(), predict=self.controls["predict"].value)
        self._train = widgets.Button(
            description="Train", button_style="primary", icon="play",
            tooltip="Train one network for every λ and seed with these settings",
        )  # fmt: skip
        self._stop = widgets.Button(description="Stop", icon="stop", disabled=True)
        self._bar = widgets.FloatProgress(min=0, max=1, layout=widgets.Layout(width="180px"))
        self._status = widgets.HTML()
        self._train.on_click(lambda _: self.train())
        self._stop.on_click(lambda _: self.stop())
        grid = widgets.Layout(flex_flow="row wrap", align_items="center", max_width="900px")
        self.children = [
            widgets.HBox(list(self.controls.values()), layout=grid),
            widgets.HBox([self._train, self._stop, self._bar, self._status], layout=grid),
            *self.children,
        ]

    @property
    def training(self) -> bool:
        """Whether a sweep is running."""
        return self._thread is not None and self._thread.is_alive()

    def train(self) -> None:
        """Start the sweep that the controls describe; what is shown now becomes its ghost."""
        if self.training:
            return
        self.error = None
        self._stop_asked.clear()
        self._train.disabled, self._stop.disabled = True, False
        self._bar.value = 0
        self._say("Training …")
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End a running sweep at its next step; the landscape that is shown stays."""
        self._stop_asked.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the sweep that is running has ended, and return whether it has."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.training

    def _work(self) -> None:
        start = time.perf_counter()
        try:
            result = self._sweep(on_progress=self._tick)
            self.show(result, predict=self.controls["predict"].value)
        except _StoppedError:
            self._say("Stopped. The landscape below is the previous one.")
        except Exception as error:
            # A thread has nobody to raise to: the reader is told, and `error` keeps it.
            self.error = error
            self._say(f"{type(error).__name__}: {error}", color="#b00020")
        else:
            seconds = time.perf_counter() - start
            networks = len(result.lambdas) * len(result.seeds)
            self._bar.value = 1
            self._say(f"{networks} networks trained in {seconds:.1f} s.")
        finally:
            self._train.disabled, self._stop.disabled = False, True

    def _tick(self, share: float) -> None:
        if self._stop_asked.is_set():
            raise _StoppedError
        if share >= self._bar.value + 0.02 or share == 1:
            self._bar.value = share

    def _sweep(self, **options: Any) -> SweepResult:
        return _landscape(
            {name: control.value for name, control in self.controls.items()}, **options
        )

    def _say(self, text: str, color: str = "inherit") -> None:
        self._status.value = f'<span style="color: {color}">{html.escape(text)}</span>'


def lambda_lab(**options: Any) -> LambdaLab:
    """Train the default landscape and return the whole lab: display it as a cell's last line.

    Args:
        options: other values of the controls to begin with: ``n_tasks``, ``tasks``, ``dataset``,
            ``estimator``, ``rule``, ``gamma``, ``width``, ``lr``, ``epochs``, ``seeds`` and
            ``predict``.

    Raises:
        ValueError: there is no such control, or it cannot have that value.
    """
    return LambdaLab(**options)


def default_landscape() -> SweepResult:
    """Train what the lab shows first."""
    return _landscape({name: control.value for name, control in _controls({}).items()})


def _landscape(chosen: dict[str, Any], **options: Any) -> SweepResult:
    """Train a network for every λ and seed with the values of the lab's controls."""
    return lambda_sweep(
        _tasks(chosen["tasks"], chosen["n_tasks"], chosen["dataset"]),
        LAMBDAS,
        seeds=range(chosen["seeds"]),
        hidden=(chosen["width"], chosen["width"]),
        lr=chosen["lr"],
        epochs=chosen["epochs"],
        rule=chosen["rule"],
        gamma=chosen["gamma"],
        estimator=chosen["estimator"],
        **{"progress": False, **options},
    )


def _split_with_same_outputs(n_tasks: int, dataset: str, **options: Any) -> list[Task]:
    if n_tasks == 10:
        raise ValueError("Ten tasks with the same outputs have one class each: nothing to learn.")
    return split_tasks(n_tasks, dataset, relabel=True, **options)


#: How the lab calls its sequences of tasks.
_TASKS: dict[str, Callable[..., list[Task]]] = {
    "permuted": permuted_tasks,
    "rotated": rotated_tasks,
    "split, same outputs": _split_with_same_outputs,
    "split, own outputs": split_tasks,
}


def _tasks(kind: str, n_tasks: int, dataset: str) -> list[Task]:
    return _TASKS[kind](n_tasks, dataset, **(_MNIST_SUBSET if dataset == "mnist" else {}))


def _controls(options: dict[str, Any]) -> dict[str, Any]:
    """Return the lab's controls by name, with the reader's values in place of the defaults."""

    def dropdown(label: str, choices: Sequence[Any], value: Any) -> widgets.Dropdown:
        return widgets.Dropdown(
            description=label, options=choices, value=value, layout=size, style=style
        )

    def whole(label: str, low: int, high: int, value: int) -> widgets.BoundedIntText:
        return widgets.BoundedIntText(
            description=label, min=low, max=high, value=value, layout=size, style=style
        )

    size, style = widgets.Layout(width="215px"), {"description_width": "100px"}
    controls = {
        "tasks": dropdown("tasks", list(_TASKS), "permuted"),
        "n_tasks": whole("how many", 2, 10, 2),
        "dataset": dropdown("images", [("digits", "digits"), ("MNIST", "mnist")], "digits"),
        "width": dropdown("width", [8, 16, 32, 64, 128, 256], 32),
        "estimator": dropdown("F from", list(ESTIMATORS), "exact"),
        "rule": dropdown("rule", list(RULES), "separate"),
        "gamma": widgets.BoundedFloatText(
            description="γ (online)", min=0, max=1, step=0.1, value=1.0, layout=size, style=style
        ),
        "lr": dropdown("learning rate η", [0.01, 0.03, 0.1, 0.3, 1.0], 0.3),
        "epochs": whole("epochs", 1, 50, 5),
        "seeds": whole("seeds", 1, 10, 5),
        "predict": widgets.Checkbox(
            description="predict first", value=False, indent=False, layout=size
        ),
    }
    for name, value in options.items():
        if name not in controls:
            raise ValueError(f"The lab has no control {name!r}; it has {', '.join(controls)}.")
        try:
            controls[name].value = value
        except Exception as error:
            raise ValueError(f"{name} cannot be {value!r} in the lab.") from error
        if value is None or controls[name].value != value:
            raise ValueError(f"{name} cannot be {value!r} in the lab: it is out of range.")
    return controls


def static_views(result: SweepResult, lam: float) -> Figure:
    """Return the lab's four views at one λ as a matplotlib figure."""
    from ewc_tutorial.course import plots

    one = result.at(lam)
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    axes = figure.subplots(2, 2)
    plots.curves_at(one.steps, one.curves[0], one.boundaries, one.tasks, ax=axes[0, 0])
    series = {"average": result.average_accuracy}
    if len(result.tasks) > 1:
        series |= {"earlier tasks": result.old_accuracy, "last task": result.new_accuracy}
        plots.frontier(
            result.lambdas, {"": (result.old_accuracy, result.new_accuracy)}, axes[1, 0], at=lam
        )
    plots.lambda_curves(result.lambdas, series, axes[0, 1], bayes=result.bayes_lambda, at=lam)
    plots.lambda_curves(
        result.lambdas,
        {
            "important tenth": result.important_move[:, :, -1],
            "all other weights": result.unimportant_move[:, :, -1],
        },
        axes[1, 1],
        ylabel="movement since task A (RMS)",
        ylim=None,
        at=lam,
    )
    figure.suptitle(f"λ = {plots.lambda_text(lam)}")
    return figure
