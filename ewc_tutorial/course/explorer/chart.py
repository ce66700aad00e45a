"""The λ lab's picture: four linked views that the browser redraws while λ is turned.

The picture is a Vega-Lite specification, a dict. All that it shows is computed beforehand and lies
in it: a row of its data holds the values for all λ as a list, and the slider's position ``k``
picks one entry of each. No kernel is asked, so the same picture is also a page without one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ewc_tutorial.course.explorer.words import earlier_accuracy, readouts, verdicts
from ewc_tutorial.course.plots.explorer import lambda_positions, lambda_text, power_of_ten
from ewc_tutorial.course.plots.style import standard_error
from ewc_tutorial.course.sweep.result import SweepResult

Spec = dict[str, Any]

#: seaborn's colorblind palette, as in the figures of the course.
COLORS = (
    "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc",
    "#ca9161", "#949494", "#ece133", "#56b4e9", "#fbafe4",
)  # fmt: skip
DASHES = ([1, 0], [6, 3], [6, 2, 1, 2], [2, 2], [8, 2, 2, 2, 2, 2])
INK, GREY, PALE, GUESS = "#222222", "#444444", "#9a9a9a", "#a3589b"
GHOST = {"color": PALE, "dash": [4, 3]}
#: What the earlier landscape is called.
PREVIOUS = "previous"
WIDTH, HEIGHT = 350, 165

_CONFIG = {
    "font": "sans-serif",
    "axis": {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal"},
    "legend": {
        "labelFontSize": 11,
        "titleFontSize": 11, "titleFontWeight": "normal", "titleOrient": "left",
        "orient": "bottom", "offset": 6, "columns": 5,
        "symbolType": "stroke", "symbolSize": 400, "symbolStrokeWidth": 2, "symbolOpacity": 1,
    },
    "title": {"fontSize": 13, "anchor": "start"},
    "view": {"stroke": "#cccccc"},
}  # fmt: skip


def chart(result: SweepResult, ghost: SweepResult | None = None, *, predict: bool = False) -> Spec:
    """Return the four linked views with their slider as a Vega-Lite specification.

    Args:
        result: what to show.
        ghost: an earlier sweep, drawn behind in dashed grey.
        predict: keep the answer covered until the reader has set a guess and uncovers it.
    """
    views = _Views(result, ghost, predict)
    apart = {"scale": {"color": "independent", "strokeDash": "independent"}}
    rows = [[views.curves(), views.against_lambda()], [views.frontier(), views.moves()]]
    return {
        "title": {"text": {"expr": views.words()}, "lineHeight": 18, "offset": 14},
        "params": views.params(),
        "vconcat": [{"hconcat": row, "spacing": 30, "resolve": apart} for row in rows],
        "spacing": 18,
        "resolve": apart,
        "config": _CONFIG,
    }


class _Views:
    """The parts of the picture, which share their λ axis and the expression for the present λ."""

    def __init__(self, result: SweepResult, ghost: SweepResult | None, predict: bool) -> None:
        self.result, self.ghost, self.predict = result, ghost, predict
        #: The index of the λ that is shown, as an expression.
        self.at = "(shown ? k : 0)" if predict else "k"
        grids = [result.lambdas] if ghost is None else [result.lambdas, ghost.lambdas]
        lambdas = np.unique(np.concatenate(grids))
        self.place = dict(zip(lambdas.tolist(), lambda_positions(lambdas).tolist(), strict=True))
        self.x = [self.place[lam] for lam in result.lambdas.tolist()]

    # --- words and controls

    def words(self) -> str:
        """Return the expression of the lines above the picture."""
        said = f"{_json(readouts(self.result))}[{self.at}]"
        if not self.predict:
            return said
        names = _json([lambda_text(lam) for lam in self.result.lambdas])
        return (
            f"shown ? [{_json(verdicts(self.result))}[guess], {said}] : "
            "['λ = 0, plain training: A is forgotten. Which λ will give the best average?', "
            f"'Your guess: λ = ' + {names}[guess] + '. Set it, then uncover the answer.']"
        )

    def params(self) -> list[Spec]:
        """Return the slider of λ and, if the answer is covered, the two controls before it."""
        index = {"input": "range", "min": 0, "max": len(self.x) - 1, "step": 1}
        turn = {"name": "k", "value": 0, "bind": index | {"name": "λ  (arrow keys, Home, End)"}}
        if not self.predict:
            return [turn]
        turn["bind"]["name"] = "3. Then turn λ  (arrow keys, Home, End)"
        # Bayes' value is what a reader would guess who has read the notebooks before this one.
        bayes = int(np.abs(self.result.lambdas - self.result.bayes_lambda).argmin())
        guess = index | {"name": "1. My guess of the best λ"}
        return [
            {"name": "guess", "value": bayes, "bind": guess},
            {"name": "shown", "value": False, "bind": {"input": "checkbox", "name": "2. Uncover"}},
            turn,
        ]

    # --- the four views

    def curves(self) -> Spec:
        """Return the forgetting curves at the present λ, the ghost's of the first task behind."""
        r = self.result
        mean, error = r.curves.mean(axis=1), standard_error(r.curves, axis=1)
        starts = [0, *r.boundaries[:-1]]
        rows = [
            {
                "step": int(step),
                "what": name,
                "ys": _short(mean[:, e, t]),
                "lows": _short(mean[:, e, t] - error[:, e, t]),
                "highs": _short(mean[:, e, t] + error[:, e, t]),
            }
            for t, name in enumerate(r.tasks)
            for e, step in enumerate(r.steps)
            if step >= starts[t]
        ]
        looks = {
            name: {"color": COLORS[t % len(COLORS)], "dash": DASHES[t % len(DASHES)]}
            for t, name in enumerate(r.tasks)
        }
        end = int(r.steps[-1])
        if self.ghost is not None:
            end = max(end, int(self.ghost.steps[-1]))
            before = f"{self.ghost.tasks[0]}, {PREVIOUS}"
            rows += self._ghost_curve(before)
            looks[before] = GHOST
        x = _axis("step", "training step", [0, end], grid=False)
        y = {"scale": {"domain": [0, 1]}, "title": "test accuracy"}
        pick = {name: f"datum.{name}s[{self.at}]" for name in ("y", "low", "high")}
        colored = {"x": x, "color": _scale(looks, "color", "accuracy on")}
        dashed = {"strokeDash": _scale(looks, "dash", "accuracy on")}
        trained = [
            {"step": (float(start) + float(stop)) / 2, "text": f"train {name}"}
            for start, stop, name in zip(starts, r.boundaries, r.tasks, strict=True)
        ]
        return _view(
            "Forgetting curves",
            _layer("rule", [{"step": int(b)} for b in starts[1:]], {"x": x}, color="#666666"),
            _layer(
                "text", trained, {"x": x, "y": {"value": -3}, "text": {"field": "text"}},
                baseline="bottom", fontSize=11, color=GREY,
            ),
            _layer(
                "area", rows, colored | {"y": _field("low") | y, "y2": {"field": "high"}}, pick,
                opacity=0.2,
            ),
            _layer("line", rows, colored | dashed | {"y": _field("y") | y}, pick, strokeWidth=2.2),
            offset=6,
        )  # fmt: skip

    def _ghost_curve(self, name: str) -> list[Spec]:
        """Return rows for the ghost's first task, at that of its λ that is nearest to each."""
        places = np.array([self.place[lam] for lam in self.ghost.lambdas.tolist()])
        nearest = [int(np.abs(places - x).argmin()) for x in self.x]
        mean = self.ghost.curves.mean(axis=1)[nearest, :, 0]
        rows = []
        for e, step in enumerate(self.ghost.steps):
            row = dict.fromkeys(("ys", "lows", "highs"), _short(mean[:, e]))
            rows.append({"step": int(step), "what": name} | row)
        return rows

    def against_lambda(self) -> Spec:
        """Return the final accuracies against λ, with Bayes' value and the reader's guess."""
        r, x = self.result, self._lambda_axis()
        series = {"average": r.average_accuracy}
        if len(r.tasks) > 1:
            series |= {"earlier tasks": r.old_accuracy, "last task": r.new_accuracy}
        text = {"x": x, "text": {"field": "text"}}
        bayes = {"x": float(np.log10(r.bayes_lambda))}
        named = bayes | {"text": f"Bayes N_A/N_B = {lambda_text(r.bayes_lambda)}"}
        marks = [
            _layer("rule", [bayes], {"x": x}, color="#555555", strokeDash=[1, 2], strokeWidth=1.5),
            _layer(
                "text", [named], text | {"y": {"value": HEIGHT - 4}},
                align="right", dx=-4, baseline="bottom", fontSize=11, color=GREY,
            ),
        ]  # fmt: skip
        if self.predict:
            row, place = [{"text": "your guess"}], {"x": f"{_json(self.x)}[guess]"}
            marks += [
                _layer("rule", row, {"x": x}, place, color=GUESS, strokeDash=[6, 3], strokeWidth=2),
                _layer(
                    "text", row, text | {"y": {"value": HEIGHT - 4}}, place,
                    align="left", dx=4, baseline="bottom", fontSize=11, color=GUESS,
                ),
            ]  # fmt: skip
        ghost = None if self.ghost is None else self.ghost.average_accuracy
        lines = self._lines(
            series, ghost, (INK, COLORS[0], COLORS[1]), "final test accuracy", [0, 1]
        )
        return _view("Accuracy against λ", *marks, *lines)

    def moves(self) -> Spec:
        """Return how far important and other weights are from where task A left them."""
        r, ghost = self.result, None
        series = {
            "important tenth": r.important_move[:, :, -1],
            "all other weights": r.unimportant_move[:, :, -1],
        }
        shown = list(series.values())
        if self.ghost is not None:
            ghost = self.ghost.important_move[:, :, -1]
            shown.append(ghost)
        top = 1.08 * max(float(runs.mean(axis=1).max()) for runs in shown)
        lines = self._lines(
            series, ghost, (COLORS[2], COLORS[4]), "movement since task A (RMS)", [0, top or 1.0]
        )
        return _view("How far the weights moved", *lines)

    def frontier(self) -> Spec:
        """Return what is learned of the last task against what is kept of the earlier ones."""
        sweeps = [self.result] if self.ghost is None else [self.result, self.ghost]
        paths = [(earlier_accuracy(s).mean(axis=1), s.new_accuracy.mean(axis=1)) for s in sweeps]
        low = [min(float(path[i].min()) for path in paths) for i in (0, 1)]
        domains = [[max(0.0, float(np.floor(20 * v - 0.5)) / 20), 1.0] for v in low]
        place = {
            "x": _axis("x", "accuracy on the earlier tasks", domains[0]),
            "y": _axis("y", "accuracy on the last task", domains[1]),
        }
        rows = [
            [
                {"x": _round(a), "y": _round(b), "i": i}
                for i, (a, b) in enumerate(zip(*path, strict=True))
            ]
            for path in paths
        ]
        in_order = place | {"order": {"field": "i"}}
        layers = []
        if self.ghost is not None:
            layers.append(
                self._covered("line", rows[1], in_order, color=PALE, strokeDash=GHOST["dash"])
            )
        layers += [
            self._covered("line", rows[0], in_order, color=INK, strokeWidth=1.2),
            self._covered(
                "point", rows[0], place, color=INK, shape="diamond", size=22, filled=True
            ),
        ]
        for i, dy in ((0, -9), (-1, 12)):
            named = rows[0][i] | {"text": f"λ = {lambda_text(self.result.lambdas[i])}"}
            text = place | {"text": {"field": "text"}}
            layers.append(self._covered("text", [named], text, dy=dy, fontSize=11, color=GREY))
        dot = {"xs": [row["x"] for row in rows[0]], "ys": [row["y"] for row in rows[0]]}
        layers.append(
            self._covered(
                "point", [dot], place, self._picked(),
                color=COLORS[3], stroke="white", size=130, filled=True,
            )
        )  # fmt: skip
        return _view("What is kept against what is learned", *layers)

    # --- what they are made of

    def _lines(
        self,
        series: Mapping[str, NDArray[np.float64]],
        ghost: NDArray[np.float64] | None,
        colors: Sequence[str],
        title: str,
        domain: list[float],
    ) -> list[Spec]:
        """Return lines with seed bands against λ, a rule at the present λ and dots on the lines.

        ``series`` are ``(L, S)``; ``ghost`` is that of the first of them.
        """
        x, y = self._lambda_axis(), _axis("y", title, domain)
        rows, dots, looks = [], [], {}
        dashes = ([1, 0], [6, 3], [2, 2])
        for index, (name, runs) in enumerate(series.items()):
            mean, error = runs.mean(axis=1), standard_error(runs, axis=1)
            rows += [
                {"x": p, "what": name, "y": _round(m), "low": _round(m - e), "high": _round(m + e)}
                for p, m, e in zip(self.x, mean, error, strict=True)
            ]
            dots.append({"what": name, "xs": self.x, "ys": _short(mean)})
            looks[name] = {
                "color": colors[index % len(colors)], "dash": dashes[index % len(dashes)]
            }  # fmt: skip
        if ghost is not None:
            before = f"{next(iter(series))}, {PREVIOUS}"
            for lam, m in zip(self.ghost.lambdas.tolist(), ghost.mean(axis=1), strict=True):
                row = dict.fromkeys(("y", "low", "high"), _round(m))
                rows.append({"x": self.place[lam], "what": before} | row)
            looks[before] = GHOST
        color = {"x": x, "color": _scale(looks, "color")}
        band = color | {"y": y | {"field": "low"}, "y2": {"field": "high"}}
        line = color | {"y": y, "strokeDash": _scale(looks, "dash")}
        return [
            self._covered("area", rows, band, opacity=0.18),
            self._covered("line", rows, line, strokeWidth=2),
            self._covered("rule", dots[:1], {"x": x}, self._picked(), color="#888888", opacity=0.5),
            self._covered(
                "point", dots, color | {"y": y}, self._picked(),
                filled=True, size=90, stroke="white", strokeWidth=1,
            ),
        ]  # fmt: skip

    def _lambda_axis(self) -> Spec:
        """Return the axis of λ: powers of ten, and 0 at the place of λ = 0."""
        low, high = min(self.place.values()) - 0.15, max(self.place.values()) + 0.15
        first = low + 0.65 if 0.0 in self.place else low
        step = int(np.ceil((high - low) / 10))
        ticks = {self.place[0.0]: "0"} if 0.0 in self.place else {}
        for exponent in range(int(np.ceil(first)), int(np.floor(high)) + 1):
            if exponent % step == 0:
                ticks[exponent] = power_of_ten(exponent)
        if not ticks:
            ticks = {place: lambda_text(lam) for lam, place in self.place.items()}
        places = _json(list(ticks))
        label = f"{_json(list(ticks.values()))}[indexof({places}, datum.value)]"
        axis = {"values": list(ticks), "labelExpr": label, "grid": False}
        return _axis("x", "λ", [low, high]) | {"axis": axis}

    def _picked(self) -> dict[str, str]:
        """Return the place of a dot at the present λ."""
        return {"x": f"datum.xs[{self.at}]", "y": f"datum.ys[{self.at}]"}

    def _covered(self, *args: Any, opacity: float = 1, **style: Any) -> Spec:
        """Return a layer that stays invisible until the reader uncovers it."""
        if self.predict:
            return _layer(*args, opacity={"expr": f"shown ? {opacity} : 0"}, **style)
        return _layer(*args, opacity=opacity, **style)


def _view(title: str, *layers: Spec, offset: int = 14) -> Spec:
    words = {"text": title, "frame": "group", "offset": offset, "fontSize": 12}
    return {"width": WIDTH, "height": HEIGHT, "title": words, "layer": list(layers)}


def _layer(
    mark: str,
    rows: list[Spec],
    encoding: Spec,
    calculate: Mapping[str, str] | None = None,
    **style: Any,
) -> Spec:
    """Return one layer; ``calculate`` gives fields of the rows new values before it is drawn."""
    layer = {"data": {"values": rows}, "mark": {"type": mark, **style}, "encoding": encoding}
    if calculate:
        layer["transform"] = [{"calculate": e, "as": name} for name, e in calculate.items()]
    return layer


def _field(name: str) -> Spec:
    return {"field": name, "type": "quantitative"}


def _axis(name: str, title: str, domain: list[float], grid: bool = True) -> Spec:
    scale = {"domain": domain, "nice": False}
    return _field(name) | {"title": title, "scale": scale, "axis": {"grid": grid, "tickCount": 6}}


def _scale(looks: Mapping[str, Spec], key: str, title: str | None = None) -> Spec:
    """Return an encoding of ``what`` by the named property of each one's look, with a legend."""
    scale = {"domain": list(looks), "range": [look[key] for look in looks.values()]}
    return {"field": "what", "type": "nominal", "scale": scale, "legend": {"title": title}}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _short(values: NDArray[np.float64]) -> list[float]:
    return [_round(float(v)) for v in values]
