"""The λ lab's picture: four linked views that the browser redraws while λ is turned.

Everything is computed beforehand and lies in the chart; a row of the data holds the values for all
λ as a list, and moving the slider picks one entry of each list. No kernel is asked, so the same
chart also works as a page without one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import altair as alt
import anywidget
import numpy as np
import traitlets
import vl_convert
from numpy.typing import NDArray

from ewc_tutorial.plots.explorer import lambda_positions, lambda_text, power_of_ten
from ewc_tutorial.sweep_result import SweepResult

#: seaborn's colorblind palette, as in the figures of the course.
COLORS = (
    "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc",
    "#ca9161", "#949494", "#ece133", "#56b4e9", "#fbafe4",
)  # fmt: skip
DASHES = ([1, 0], [6, 3], [6, 2, 1, 2], [2, 2], [8, 2, 2, 2, 2, 2])
GHOST = "#9a9a9a"
GUESS = "#cc78bc"
WIDTH, HEIGHT = 350, 165
#: What the earlier landscape is called.
PREVIOUS = "previous"
_GHOST_DASH = [4, 3]


def readouts(result: SweepResult) -> list[str]:
    """Return for each λ the line above the picture."""
    average, error = result.average_accuracy, standard_error(result.average_accuracy)
    old, new = _old(result), result.new_accuracy
    spread = [f" ± {e:.3f}" if len(result.seeds) > 1 else "" for e in error]
    return [
        f"λ = {lambda_text(lam)}:   average accuracy {average[i].mean():.3f}{spread[i]}"
        f"   (earlier tasks {old[i].mean():.3f}, last task {new[i].mean():.3f})"
        for i, lam in enumerate(result.lambdas)
    ]


def verdicts(result: SweepResult) -> list[str]:
    """Return for each λ what the lab says to a reader who guessed that it is the best."""
    average = result.average_accuracy
    mean, error = average.mean(axis=1), standard_error(average)
    best = int(mean.argmax())
    top = f"The best λ is {lambda_text(result.lambdas[best])} (average accuracy {mean[best]:.3f})"
    sentences = []
    for i, lam in enumerate(result.lambdas):
        if i == best:
            sentences.append(f"{top}: exactly your guess.")
            continue
        if lam == 0 or result.lambdas[best] == 0:
            distance = "0 and a positive λ are no factor apart"
        else:
            factor = max(lam, result.lambdas[best]) / min(lam, result.lambdas[best])
            side = "small" if lam < result.lambdas[best] else "large"
            distance = f"{lambda_text(factor)} times too {side}"
        cost = 100 * (mean[best] - mean[i])
        close = ", within one standard error" if mean[i] >= mean[best] - error[best] else ""
        sentences.append(
            f"{top}. Your guess {lambda_text(lam)}: {distance}, {cost:.1f} points below{close}."
        )
    return sentences


def standard_error(runs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard error of the mean over axis 1, the seeds; 0 for a single one."""
    if runs.shape[1] < 2:
        return np.zeros_like(runs[:, 0])
    return runs.std(axis=1, ddof=1) / np.sqrt(runs.shape[1])


def chart(
    result: SweepResult, ghost: SweepResult | None = None, *, predict: bool = False
) -> alt.VConcatChart:
    """Return the four linked views with their slider.

    Args:
        result: what to show.
        ghost: an earlier sweep, drawn behind in dashed grey.
        predict: keep the answer covered until the reader has set a guess and uncovers it.
    """
    last = len(result.lambdas) - 1
    params = [
        alt.param(
            name="k",
            value=0,
            bind=alt.binding_range(min=0, max=last, step=1, name="λ  (arrow keys, Home, End)"),
        )
    ]
    at = "k"
    if predict:
        # Bayes' value is what a reader would guess who has read the notebooks before this one.
        bayes = int(np.abs(result.lambdas - result.bayes_lambda).argmin())
        params = [
            alt.param(
                name="guess",
                value=bayes,
                bind=alt.binding_range(min=0, max=last, step=1, name="1. My guess of the best λ"),
            ),
            alt.param(name="shown", value=False, bind=alt.binding_checkbox(name="2. Uncover")),
            params[0],
        ]
        params[2].param.bind.name = "3. Turn λ  (arrow keys, Home, End)"
        at = "(shown ? k : 0)"
    views = _Views(result, ghost, at, predict)
    rows = [
        _apart(alt.hconcat(views.curves(), views.against_lambda(), spacing=30)),
        _apart(alt.hconcat(views.frontier(), views.moves(), spacing=30)),
    ]
    picture = (
        _apart(alt.vconcat(*rows, spacing=18, title=views.title()))
        .add_params(*params)
        .configure(font="sans-serif")
        .configure_axis(labelFontSize=11, titleFontSize=12, titleFontWeight="normal")
        .configure_legend(
            labelFontSize=11, symbolStrokeWidth=2, symbolSize=60, orient="bottom", title=None
        )
        .configure_title(fontSize=13, anchor="start")
        .configure_view(stroke="#cccccc")
    )
    picture.datasets = views.datasets
    return picture


def _apart(views: Any) -> Any:
    """Let each view keep its own colours and line styles."""
    return views.resolve_scale(color="independent", strokeDash="independent")


class _Views:
    def __init__(
        self, result: SweepResult, ghost: SweepResult | None, at: str, predict: bool
    ) -> None:
        self.result, self.ghost, self.at, self.predict = result, ghost, at, predict
        self.datasets: dict[str, list[dict[str, Any]]] = {}
        grids = [result.lambdas, *([ghost.lambdas] if ghost is not None else [])]
        both = np.unique(np.concatenate(grids))
        places = lambda_positions(both)
        self.domain = [float(places.min()) - 0.15, float(places.max()) + 0.15]
        self.zero = float(places.min())
        self.bayes = float(np.log10(result.bayes_lambda))
        self.place = dict(zip(both.tolist(), places.tolist(), strict=True))

    def _data(self, rows: list[dict[str, Any]]) -> alt.NamedData:
        """Keep the rows aside under a name: Altair copies what lies in a view many times."""
        name = f"rows {len(self.datasets)}"
        self.datasets[name] = rows
        return alt.NamedData(name=name)

    # --- texts

    def title(self) -> alt.TitleParams:
        lines = json.dumps(readouts(self.result), ensure_ascii=False)
        text = f"{lines}[{self.at}]"
        if self.predict:
            said = json.dumps(verdicts(self.result), ensure_ascii=False)
            names = json.dumps([lambda_text(lam) for lam in self.result.lambdas])
            text = (
                f"shown ? [{said}[guess], {text}] : "
                "['λ = 0, plain training: A is forgotten. Which λ will give the best average?', "
                f"'Your guess: λ = ' + {names}[guess] + '. Set it, then uncover the answer.']"
            )
        return alt.TitleParams(text=alt.ExprRef(text), lineHeight=18, offset=14)

    def lambda_axis(self) -> alt.X:
        low, high = int(np.ceil(self.zero + 0.5)), int(np.floor(self.domain[1]))
        values = list(range(low, high + 1, 1 if high - low <= 10 else 2))
        names = {str(v): power_of_ten(v) for v in values}
        if 0.0 in self.place:
            values = [self.zero, *values]
            names[f"{self.zero:g}"] = "0"
        return alt.X(
            "x:Q",
            scale=alt.Scale(domain=self.domain, nice=False),
            title="λ",
            axis=alt.Axis(
                values=values,
                labelExpr=f"({json.dumps(names, ensure_ascii=False)})[datum.value]",
                grid=False,
            ),
        )

    # --- A: forgetting curves

    def curves(self) -> alt.LayerChart:
        r = self.result
        mean = r.curves.mean(axis=1)
        error = _error_of(r.curves)
        starts = [0, *r.boundaries[:-1]]
        rows = [
            {
                "step": int(step),
                "task": name,
                "a": _short(mean[:, t, e]),
                "lo": _short(mean[:, t, e] - error[:, t, e]),
                "hi": _short(mean[:, t, e] + error[:, t, e]),
            }
            for t, name in enumerate(r.tasks)
            for e, step in enumerate(r.steps)
            if step >= starts[t]
        ]
        end = int(r.steps[-1])
        if self.ghost is not None:
            end = max(end, int(self.ghost.steps[-1]))
        x = alt.X(
            "step:Q", title="training step", scale=alt.Scale(domain=[0, end]),
            axis=alt.Axis(grid=False, tickCount=6),
        )  # fmt: skip
        names = list(r.tasks)
        colors = [COLORS[i % len(COLORS)] for i in range(len(names))]
        dashes = [DASHES[i % len(DASHES)] for i in range(len(names))]
        if self.ghost is not None:
            names.append(f"{self.ghost.tasks[0]}, {PREVIOUS}")
            colors.append(GHOST)
            dashes.append(_GHOST_DASH)
        legend = _legend("accuracy on")
        look = {
            "color": alt.Color(
                "task:N", scale=alt.Scale(domain=names, range=colors), legend=legend
            ),
            "strokeDash": alt.StrokeDash(
                "task:N", scale=alt.Scale(domain=names, range=dashes), legend=legend
            ),
        }
        base = alt.Chart(self._data(rows)).encode(x=x)
        scale = alt.Scale(domain=[0, 1])
        band = (
            base.transform_calculate(low=f"datum.lo[{self.at}]", high=f"datum.hi[{self.at}]")
            .mark_area(opacity=0.2)
            .encode(
                y=alt.Y("low:Q", scale=scale, title="test accuracy"),
                y2="high:Q",
                color=look["color"],
            )
        )
        line = (
            base.transform_calculate(y=f"datum.a[{self.at}]")
            .mark_line(strokeWidth=2.2)
            .encode(y=alt.Y("y:Q", scale=scale, title="test accuracy"), **look)
        )
        bounds = (
            alt.Chart(self._data([{"step": int(b)} for b in r.boundaries[:-1]]))
            .mark_rule(color="#666666")
            .encode(x=x)
        )
        words = alt.Chart(
            self._data(
                [
                    {"step": (float(a) + float(b)) / 2, "text": f"train {name}"}
                    for a, b, name in zip(starts, r.boundaries, r.tasks, strict=True)
                ]
            )
        ).mark_text(baseline="bottom", fontSize=11, color="#444444").encode(
            x=x, y=alt.value(-3), text="text:N"
        )  # fmt: skip
        layers = [bounds, words, band, line]
        if self.ghost is not None:
            layers.insert(0, self._ghost_curve(x, look))
        return alt.layer(*layers).properties(
            width=WIDTH, height=HEIGHT, title=_title("Forgetting curves", offset=6)
        )

    def _ghost_curve(self, x: alt.X, look: dict[str, Any]) -> alt.Chart:
        """Return the earlier landscape's curve of the first task, at the λ nearest to each."""
        ghost = self.ghost
        places = np.array([self.place[lam] for lam in ghost.lambdas.tolist()])
        nearest = [int(np.abs(places - p).argmin()) for p in self._own_places()]
        mean = ghost.curves.mean(axis=1)[nearest, 0]
        name = f"{ghost.tasks[0]}, {PREVIOUS}"
        rows = [
            {"step": int(step), "a": _short(mean[:, e]), "task": name}
            for e, step in enumerate(ghost.steps)
        ]
        return (
            alt.Chart(self._data(rows))
            .transform_calculate(y=f"datum.a[{self.at}]")
            .mark_line(strokeWidth=1.6)
            .encode(x=x, y="y:Q", **look)
        )

    def _own_places(self) -> list[float]:
        return [self.place[lam] for lam in self.result.lambdas.tolist()]

    # --- B and D: something against λ

    def against_lambda(self) -> alt.LayerChart:
        r = self.result
        series = {"average": r.average_accuracy}
        if len(r.tasks) > 1:
            series |= {"earlier tasks": r.old_accuracy, "last task": r.new_accuracy}
        ghost = None if self.ghost is None else self.ghost.average_accuracy
        layers = self._series(
            series, ghost, ["#222222", COLORS[0], COLORS[1]], "final test accuracy", [0, 1]
        )
        bayes = lambda_text(r.bayes_lambda)
        marks = [
            alt.Chart(self._data([{"x": self.bayes}]))
            .mark_rule(color="#555555", strokeDash=[1, 2], strokeWidth=1.5)
            .encode(x=self.lambda_axis()),
            alt.Chart(self._data([{"x": self.bayes, "text": f"Bayes N_A/N_B = {bayes}"}]))
            .mark_text(align="right", dx=-4, fontSize=11, color="#444444", baseline="bottom")
            .encode(x=self.lambda_axis(), y=alt.value(HEIGHT - 4), text="text:N"),
        ]
        if self.predict:
            places = json.dumps([round(p, 4) for p in self._own_places()])
            guess = alt.Chart(self._data([{"u": 0}])).transform_calculate(x=f"{places}[guess]")
            marks += [
                guess.mark_rule(color=GUESS, strokeDash=[6, 3], strokeWidth=2.5).encode(
                    x=self.lambda_axis()
                ),
                guess.mark_text(
                    text="your guess",
                    align="left",
                    dx=4,
                    baseline="top",
                    fontSize=11,
                    color="#7a3d6d",
                ).encode(x=self.lambda_axis(), y=alt.value(3)),
            ]
        return alt.layer(*marks, *layers).properties(
            width=WIDTH, height=HEIGHT, title=_title("Accuracy against λ")
        )

    def moves(self) -> alt.LayerChart:
        r = self.result
        series = {
            "important tenth": r.important_move[:, :, -1],
            "all other weights": r.unimportant_move[:, :, -1],
        }
        top = max(float(v.mean(axis=1).max()) for v in series.values())
        ghost = None
        if self.ghost is not None:
            ghost = self.ghost.important_move[:, :, -1]
            top = max(top, float(ghost.mean(axis=1).max()))
        layers = self._series(
            series, ghost, [COLORS[2], COLORS[4]], "movement since task A (RMS)", [0, 1.08 * top]
        )
        return alt.layer(*layers).properties(
            width=WIDTH, height=HEIGHT, title=_title("How far the weights moved")
        )

    def _series(
        self,
        series: dict[str, NDArray[np.float64]],
        ghost: NDArray[np.float64] | None,
        colors: Sequence[str],
        y_title: str,
        domain: list[float],
    ) -> list[alt.Chart]:
        """Return lines with seed bands against λ, the rule at the present λ and its dots.

        ``ghost`` is that of the first series.
        """
        names = list(series)
        colors, dashes = list(colors[: len(names)]), [[1, 0], [6, 3], [2, 2]][: len(names)]
        if ghost is not None:
            before = f"{names[0]}, {PREVIOUS}"
            names.append(before)
            colors.append(GHOST)
            dashes.append(_GHOST_DASH)
        x, scale = self.lambda_axis(), alt.Scale(domain=domain, nice=False)
        y = alt.Y("y:Q", scale=scale, title=y_title, axis=alt.Axis(tickCount=6))
        places = self._own_places()
        rows, dots = [], []
        for name, runs in series.items():
            mean, error = runs.mean(axis=1), standard_error(runs)
            rows += [
                {"x": p, "what": name, "y": _round(m), "lo": _round(m - e), "hi": _round(m + e)}
                for p, m, e in zip(places, mean, error, strict=True)
            ]
            dots.append({"what": name, "xs": _short(np.array(places)), "ys": _short(mean)})
        color = alt.Color(
            "what:N",
            scale=alt.Scale(domain=names, range=colors),
            legend=_legend(),
        )
        dash = alt.StrokeDash(
            "what:N", scale=alt.Scale(domain=names, range=dashes), legend=_legend()
        )
        base = alt.Chart(self._data(rows)).encode(x=x, color=color)
        band = base.mark_area(opacity=self._faded(0.18)).encode(
            y=alt.Y("lo:Q", scale=scale, title=y_title), y2="hi:Q"
        )
        line = base.mark_line(strokeWidth=2, opacity=self._faded(1)).encode(y=y, strokeDash=dash)
        moving = alt.Chart(self._data(dots)).transform_calculate(
            x=f"datum.xs[{self.at}]", y=f"datum.ys[{self.at}]"
        )
        rule = moving.mark_rule(color="#888888", opacity=self._faded(0.5)).encode(x=x)
        dot = moving.mark_point(
            filled=True, size=90, opacity=self._faded(1), stroke="white", strokeWidth=1
        ).encode(x=x, y=y, color=color)
        layers = [band, line, rule, dot]
        if ghost is not None:
            grid = [self.place[lam] for lam in self.ghost.lambdas.tolist()]
            rows = [
                {"x": p, "y": _round(m), "what": before}
                for p, m in zip(grid, ghost.mean(axis=1), strict=True)
            ]
            layers.insert(
                0,
                alt.Chart(self._data(rows))
                .mark_line(strokeWidth=1.6, opacity=self._faded(1))
                .encode(x=x, y=y, color=color, strokeDash=dash),
            )
        return layers

    # --- C: the frontier

    def frontier(self) -> alt.LayerChart:
        r = self.result
        both = [r, *([self.ghost] if self.ghost is not None else [])]
        points = [(_old(s).mean(axis=1), s.new_accuracy.mean(axis=1)) for s in both]
        low = [min(float(p[i].min()) for p in points) for i in (0, 1)]
        domains = [[max(0.0, np.floor(20 * v - 0.5) / 20), 1.0] for v in low]
        x = alt.X(
            "x:Q", title="accuracy on earlier tasks: stability",
            scale=alt.Scale(domain=domains[0], nice=False), axis=alt.Axis(tickCount=6),
        )  # fmt: skip
        y = alt.Y(
            "y:Q", title="on the last task: plasticity",
            scale=alt.Scale(domain=domains[1], nice=False), axis=alt.Axis(tickCount=6),
        )  # fmt: skip

        def path(old: NDArray[np.float64], new: NDArray[np.float64]) -> alt.Chart:
            rows = [
                {"x": _round(a), "y": _round(b), "i": i}
                for i, (a, b) in enumerate(zip(old, new, strict=True))
            ]
            return alt.Chart(self._data(rows)).encode(x=x, y=y, order="i:Q")

        layers = []
        if self.ghost is not None:
            layers.append(
                path(*points[1]).mark_line(
                    color=GHOST, strokeDash=_GHOST_DASH, strokeWidth=1.6, opacity=self._faded(1)
                )
            )
        own = path(*points[0])
        layers += [
            own.mark_line(color="#222222", strokeWidth=1.2, opacity=self._faded(1)),
            own.mark_point(
                filled=True, size=22, color="#222222", shape="diamond", opacity=self._faded(1)
            ).encode(order=alt.Undefined),
        ]
        for i, dy in ((0, -9), (-1, 12)):
            old, new = float(points[0][0][i]), float(points[0][1][i])
            row = {"x": _round(old), "y": _round(new), "text": f"λ = {lambda_text(r.lambdas[i])}"}
            layers.append(
                alt.Chart(self._data([row]))
                .mark_text(fontSize=11, color="#444444", opacity=self._faded(1), dy=dy)
                .encode(x=x, y=y, text="text:N")
            )
        dot = {"xs": _short(points[0][0]), "ys": _short(points[0][1])}
        moving = alt.Chart(self._data([dot])).transform_calculate(
            x=f"datum.xs[{self.at}]", y=f"datum.ys[{self.at}]"
        )
        layers.append(
            moving.mark_point(
                filled=True, size=130, color=COLORS[3], opacity=self._faded(1), stroke="white"
            ).encode(x=x, y=y)
        )
        return alt.layer(*layers).properties(
            width=WIDTH, height=HEIGHT, title=_title("What is kept against what is learned")
        )

    def _faded(self, opacity: float) -> Any:
        return alt.ExprRef(f"shown ? {opacity} : 0") if self.predict else opacity


def _title(text: str, offset: int = 14) -> alt.TitleParams:
    return alt.TitleParams(
        text=text, anchor="start", frame="group", offset=offset, fontWeight="bold", fontSize=12
    )


def _legend(title: str | None = None) -> alt.Legend:
    return alt.Legend(
        title=title, orient="bottom", symbolType="stroke", symbolSize=400, symbolOpacity=1,
        columns=5, offset=6, titleFontWeight="normal", titleOrient="left", titleFontSize=11,
    )  # fmt: skip


def _old(result: SweepResult) -> NDArray[np.float64]:
    return result.old_accuracy if len(result.tasks) > 1 else result.new_accuracy


def _error_of(curves: NDArray[np.float64]) -> NDArray[np.float64]:
    shape = curves.shape
    flat = np.moveaxis(curves, 1, -1).reshape(-1, shape[1])
    return standard_error(flat).reshape(shape[0], *shape[2:])


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _short(values: NDArray[np.float64]) -> list[float]:
    return [_round(float(v)) for v in values]


#: The slider stands above the views; its number is an index, so the picture's title says λ instead.
CSS = """
.vega-embed {
  display: flex; flex-direction: column; align-items: flex-start; overflow: visible;
}
.vega-bindings { order: -1; font: 13px sans-serif; margin: 0 0 6px 4px; }
.vega-bind { margin: 2px 0; }
.vega-bind label { display: flex; align-items: center; gap: 8px; }
.vega-bind-name { min-width: 210px; }
.vega-bind input[type=range] { width: 420px; max-width: 60vw; }
.vega-bind input[type=range] + * { display: none; }
"""
#: Canvas is redrawn in a few milliseconds, SVG is not.
EMBED_OPTIONS = {"renderer": "canvas", "actions": False}


#: The front end of :class:`LabChart`; vl-convert adds Vega and vegaEmbed to it.
_SCRIPT = """
async function render({ model, el }) {
  const chart = await vegaEmbed(el, structuredClone(model.get("spec")), model.get("options"));
  // In JupyterLab the arrow keys would otherwise go to the notebook, not to the slider.
  for (const input of el.querySelectorAll("input"))
    input.setAttribute("data-lm-suppress-shortcuts", "true");
  // The kernel hears of k once it rests, so that a busy one cannot push the slider back.
  let rest;
  chart.view.addSignalListener("k", (name, k) => {
    clearTimeout(rest);
    rest = setTimeout(() => { model.set("k", k); model.save_changes(); }, 250);
  });
  model.on("change:k", () => {
    const k = model.get("k");
    if (chart.view.signal("k") !== k) chart.view.signal("k", k).runAsync();
  });
  return () => { clearTimeout(rest); chart.finalize(); };
}
export default { render };
"""


class LabChart(anywidget.AnyWidget):
    """The chart as a widget: it carries its own JavaScript and needs no network.

    Altair's own ``JupyterChart`` nearly does this, but JupyterLab takes the arrow keys from its
    slider, and what it last knew of every control it writes back into all of them.

    Attributes:
        k: the index that the slider points at.
    """

    spec = traitlets.Dict().tag(sync=True)
    options = traitlets.Dict(EMBED_OPTIONS).tag(sync=True)
    k = traitlets.Int().tag(sync=True)

    _esm = ""  # made when the first chart is: it takes a second

    def __init__(self, picture: alt.TopLevelSpec, **options: Any) -> None:
        if not LabChart._esm:
            LabChart._esm = vl_convert.javascript_bundle(_SCRIPT)
        super().__init__(spec=picture.to_dict(), **options)
