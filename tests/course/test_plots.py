"""A figure draws what it is given: as many series as there are, told apart, named in its legend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes

from ewc_tutorial.course import plots
from ewc_tutorial.course.plots.description import MOST
from ewc_tutorial.course.plots.style import looks

NAMES = ("one", "two", "three", "four", "five")
K, SEEDS = 6, 3
X = np.arange(1.0, K + 1)


@pytest.fixture(autouse=True)
def _closed():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def table(*shape: int) -> dict[str, np.ndarray]:
    """Return positive values for five series, all different."""
    rng = np.random.default_rng(0)
    return {name: rng.uniform(0.2, 0.9, shape) for name in NAMES}


def pairs(*shape: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    first, second = table(2, *shape), table(*shape)
    return {name: (first[name][0], second[name]) for name in NAMES}


def in_rows(draw: Callable[..., Any], *arguments: Any) -> Any:
    return draw(*arguments, plt.subplots()[1])


FIGURES: dict[str, Callable[[], Axes | Sequence[Axes]]] = {
    "accuracy_by_lambda": lambda: plots.accuracy_by_lambda(X, table(K, 2)),
    "accuracy_by_task": lambda: plots.accuracy_by_task(table(SEEDS, K)),
    "accuracy_per_task": lambda: plots.accuracy_per_task(table(SEEDS, K), 4),
    "collapsed_springs": lambda: plots.collapsed_springs(X, table(5, K)["one"], (1.0, 0.0)),
    "curves_at": lambda: plots.curves_at(X, table(SEEDS, K, 5)["one"], X[:5], NAMES),
    "error_trade_off": lambda: plots.error_trade_off(pairs(SEEDS, K)),
    "fisher_along_training": lambda: plots.fisher_along_training(X, table(K)),
    "forgetting_curves": lambda: plots.forgetting_curves(X, table(SEEDS, K, 1), [6], ["A"]),
    "free_by_layer": lambda: plots.free_by_layer(
        {"EWC": table(SEEDS, K, 5)["one"]}, NAMES, [plt.subplots()[1]]
    ),
    "frontier": lambda: plots.frontier(X, pairs(K, SEEDS)),
    "lambda_choice": lambda: plots.lambda_choice(
        {name: (X, values) for name, values in table(K).items()}
    ),
    "lambda_curves": lambda: plots.lambda_curves(X, table(K, SEEDS)),
    "lambda_ladder": lambda: plots.lambda_ladder(X, table(SEEDS, K)),
    "learning_in_sequence": lambda: plots.learning_in_sequence(X, table(K, 5)["one"], X[:5], NAMES),
    "learning_losses": lambda: plots.learning_losses(
        {name: [{"step": 1, "loss": 2.0, "penalty": 1.0}] * 2 for name in NAMES}
    ),
    "logit_paths": lambda: plots.logit_paths(X, table(K)),
    "mean_accuracy": lambda: plots.mean_accuracy(table(SEEDS, K)),
    "old_against_new": lambda: plots.old_against_new(table(K, 2)),
    "orders": lambda: plots.orders(X, table(SEEDS, K), -1, xlabel="", ylabel=""),
    "overlap_by_layer": lambda: plots.overlap_by_layer(table(SEEDS, K), list("abcdef")),
    "paired_dots": lambda: plots.paired_dots({"row": table(SEEDS)}),
    "penalty_traces": lambda: plots.penalty_traces(table(K), 2),
    "perplexity_over_time": lambda: plots.perplexity_over_time(
        {name: {"step": X, "A": values} for name, values in table(K).items()}, [], axes=[plt.gca()]
    ),
    "protection": lambda: plots.protection(
        {name: (*both, X) for name, both in pairs(SEEDS, K).items()}
    ),
    "recovery": lambda: plots.recovery({name: {"none": [0.4, 0.5]} for name in NAMES}),
    "returning": lambda: plots.returning(X, table(K)),
    "scenario_dots": lambda: plots.scenario_dots({"task": table(SEEDS)}, {"task": table(1)})[0],
    "spring_steps": lambda: plots.spring_steps(table(K)),
    "step_against_kl": lambda: in_rows(plots.step_against_kl, X, table(K), table(K)),
    "stretch_over_steps": lambda: plots.stretch_over_steps(table(K)),
    "task_weights": lambda: plots.task_weights(table(K)),
    "trade_off": lambda: plots.trade_off(table(K, 2)),
}


def ours(label: str) -> bool:
    return any(name in label for name in NAMES) or label.startswith("task ")


@pytest.mark.parametrize("figure", FIGURES)
def test_five_series_are_drawn_told_apart_and_named(figure):
    returned = FIGURES[figure]()
    axes = [plt.gca()] if returned is None else np.atleast_1d(returned)
    expected = {"accuracy_by_lambda": 10, "step_against_kl": 10}.get(figure, 5)
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        found = [h for h, label in zip(handles, labels, strict=True) if ours(label)]
        assert len(found) == expected
        lines = [h if hasattr(h, "get_linestyle") else h.lines[0] for h in found]
        seen = {
            (line.get_color(), line.get_linestyle(), line.get_marker(), line.get_markerfacecolor())
            for line in lines
        }
        assert len(seen) == expected
        if (legend := ax.get_legend()) is not None:
            assert sum(ours(text.get_text()) for text in legend.get_texts()) == expected


@pytest.mark.parametrize("figure", ["accuracy_by_lambda", "lambda_ladder", "mean_accuracy"])
@pytest.mark.parametrize("values", [0.05, 1.0])
def test_accuracies_near_none_and_all_lie_within_the_axes(figure, values):
    flat = {"one": np.full((2, 2), values)}
    ax = {
        "accuracy_by_lambda": lambda: plots.accuracy_by_lambda([1, 10], flat),
        "lambda_ladder": lambda: plots.lambda_ladder([1, 10], flat),
        "mean_accuracy": lambda: plots.mean_accuracy(flat),
    }[figure]()
    low, high = ax.get_ylim()
    assert low <= values <= high


def test_damage_and_gain_are_shares_of_each_seeds_own_change():
    old, new = np.array([[1.0, 2.0, 5.0], [0.0, 3.0, 6.0]]), np.array([[9.0, 3.0, 1.0]])
    lines = {}
    for line in plots.damage_and_gain([0.0, 0.5, 1.0], old, new).get_lines():
        lines[line.get_label()] = line.get_ydata()
    np.testing.assert_allclose(lines["damage to the old voices"], [0, 37.5, 100])
    np.testing.assert_allclose(lines["gain on the new voice, missing"], [100, 25, 0])


@pytest.mark.parametrize("markers", [True, False])
@pytest.mark.parametrize("count", [1, 5, 12, 26])
@pytest.mark.parametrize("own", [(), ("EWC",), ("EWC", "L2", "plain", "joint")])
def test_no_two_looks_are_alike(own, count, markers):
    names = [*own, *map(str, range(count))]
    found = looks(names, plots.METHOD_STYLE, first=("C3", "C0"), markers=markers)
    keys = ("color", "linestyle", "marker") if markers else ("color", "linestyle")
    assert len({tuple(look[key] for key in keys) for look in found}) == len(names)
    assert found[len(own)]["color"] == "C3"
    assert all(("marker" in look) == markers for look in found)


def test_nobody_else_gets_the_look_of_a_name_that_has_one():
    (a, ewc, b) = looks(["a", "EWC", "b"], plots.METHOD_STYLE)
    assert ewc == plots.METHOD_STYLE["EWC"]
    styles = plots.METHOD_STYLE.values()
    for other in (a, b):  # nor that of a name that might have been there
        assert all(other["color"] != style["color"] for style in styles)
        assert all(other[key] != ewc[key] for key in ("color", "linestyle", "marker", "label"))


def test_rules_and_methods_keep_their_looks():
    ax = plots.accuracy_by_task({"latest, γ = 1": np.ones((1, 2)), "other": np.ones((1, 2))})
    colors = [line.get_color() for line in ax.get_lines()]
    assert colors == [plots.RULE_STYLE["latest"]["color"], "C5"]


def test_seven_tasks_have_seven_springs():
    ax = plots.collapsed_springs(X, np.ones((7, K)), (1.0, 0.0))
    assert [t.get_text() for t in ax.get_legend().get_texts()][-2:] == ["task G", "sum"]


def test_alternative_text_tells_what_was_drawn():
    values = {"EWC": [[0.1, 0.9, 0.6]] * 3, "L2": [[0.1, 0.2, 0.3]] * 3}
    plots.lambda_ladder([1, 10, 100], values, chosen=10)
    text = plots.alternative_text(plt.gcf())
    assert text == (
        "Accuracies against λ on a logarithmic axis. Across λ, logarithmic; up test accuracy. "
        "EWC begins at 0.1, is highest at 10 with 0.9, ends at 0.6; L2 rises from 0.1 to 0.3."
    )


def test_alternative_text_names_panels_and_rows():
    shares = {name: {"as trained": [0.2], "task is told": [0.9]} for name in ("λ = 100", "none")}
    text = plots.alternative_text(plots.recovery(shares, joint=0.95)[0].figure)
    assert text.startswith("2 panels. Accuracies of networks")
    assert "λ = 100: as trained 0.2" in text
    assert "λ = 100: task is told 0.9" in text
    assert "joint training at 0.95" in text


def test_alternative_text_of_many_curves_tells_less_of_each():
    _, axes = plt.subplots(3, 3)
    for n, ax in enumerate(axes.flat):
        plots.lambda_ladder(X, {k: v * (1 - n / 20) for k, v in table(SEEDS, K).items()}, ax)
        ax.set_title(f"panel number {n}")
    text = plots.alternative_text(plt.gcf())
    assert len(text) < 1.5 * MOST
    assert "begins" not in text
    assert all(f"anel number {n}" in text for n in range(9))


@pytest.mark.slow
@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_has_an_alternative_text_of_its_own(figure):
    FIGURES[figure]()
    text = plots.alternative_text(plt.gcf())
    assert len(text) > 60
    assert "None" not in text
    assert "nan" not in text
