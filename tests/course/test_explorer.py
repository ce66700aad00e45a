"""The λ lab without a browser: what its picture holds, and every callback of its widgets."""

from __future__ import annotations

import base64
import io
import json
import re
import threading

import numpy as np
import pandas as pd
import pytest
import vl_convert

from ewc_tutorial.course import plots
from ewc_tutorial.course.explorer import LAMBDAS, LambdaExplorer, figure_slider, lambda_lab
from ewc_tutorial.course.explorer import lab as lab_module
from ewc_tutorial.course.explorer.chart import chart
from ewc_tutorial.course.explorer.page import page
from ewc_tutorial.course.explorer.words import readouts, verdicts
from ewc_tutorial.course.plots.style import standard_error
from ewc_tutorial.course.sweep.result import SweepResult

GRID = [0.0, 0.1, 1.0, 10.0, 1000.0]


def made_up(
    lambdas=GRID, seeds=2, tasks=("A", "B"), evaluations=3, shift=0.0, seed=0
) -> SweepResult:
    """Return a sweep that nobody trained, with its best average accuracy at λ = 10."""
    lambdas = np.asarray(lambdas, dtype=float)
    L, S, T = len(lambdas), seeds, len(tasks)
    rng = np.random.default_rng(seed)
    steps = np.arange(0, evaluations * T + 1) * 10
    curves = rng.uniform(0.2, 0.6, (L, S, len(steps), T))
    peak = np.exp(-((plots.lambda_positions(lambdas) - 1 - shift) ** 2) / 8)
    curves[..., -1, :] = (0.5 + 0.4 * peak)[:, None, None] + rng.uniform(0, 0.01, (L, S, T))
    return SweepResult(
        lambdas=lambdas,
        seeds=np.arange(S),
        tasks=tuple(tasks),
        n_train=np.full(T, 100),
        steps=steps,
        boundaries=steps[np.arange(1, T + 1) * evaluations],
        curves=curves,
        drift=rng.uniform(size=(L, S, T, 3)),
        fisher_drift=rng.uniform(size=(L, S, T)),
        important_move=rng.uniform(size=(L, S, T)),
        unimportant_move=rng.uniform(size=(L, S, T)),
    )


@pytest.fixture(scope="module")
def result() -> SweepResult:
    return made_up()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Let the lab's sweeps take a moment: few images, few λ."""
    monkeypatch.setattr(lab_module, "LAMBDAS", (0.0, 1.0, 1e6))
    tasks = lab_module._tasks
    monkeypatch.setattr(
        lab_module, "_tasks", lambda kind, n, dataset: [_few(t) for t in tasks(kind, n, dataset)]
    )


def _few(task):
    from torch.utils.data import TensorDataset

    from ewc_tutorial.course.tasks import Task

    train = TensorDataset(*(t[:40] for t in task.train.tensors))
    test = TensorDataset(*(t[:20] for t in task.test.tensors))
    return Task(task.name, train, test, task.classes)


def views(spec: dict) -> list[dict]:
    return [view for row in spec["vconcat"] for view in row["hconcat"]]


def rows(spec: dict, view: int, mark: str) -> list[dict]:
    """Return the data of the first layer of a view that is drawn with this mark."""
    return layer(spec, view, mark)["data"]["values"]


def layer(spec: dict, view: int, mark: str) -> dict:
    return next(part for part in views(spec)[view]["layer"] if part["mark"]["type"] == mark)


# --- the chart --------------------------------------------------------------------------------


def test_there_are_four_views_and_one_slider(result):
    spec = chart(result)
    assert len(views(spec)) == 4
    (param,) = spec["params"]
    assert param["bind"] == {
        "input": "range", "min": 0, "max": 4, "step": 1, "name": param["bind"]["name"],
    }  # fmt: skip


def test_the_curves_hold_the_mean_and_the_band_of_every_lambda(result):
    spec = chart(result)
    last_b = [row for row in rows(spec, 0, "line") if row["what"] == "B"][-1]
    wanted = result.curves[:, :, -1, 1]
    np.testing.assert_allclose(last_b["ys"], wanted.mean(1), rtol=1e-3)
    half = wanted.std(1, ddof=1) / np.sqrt(2)
    np.testing.assert_allclose(
        np.subtract(last_b["highs"], last_b["lows"]), 2 * half, rtol=0.05, atol=2e-4
    )


@pytest.mark.parametrize("predict", [False, True])
def test_no_list_of_values_is_overwritten_by_the_one_picked_from_it(result, predict):
    spec = chart(result, made_up(shift=1), predict=predict)
    for part in (part for view in views(spec) for part in view["layer"]):
        for change in part.get("transform", ()):
            assert f"datum.{change['as']}[" not in change["calculate"]


def test_a_task_is_drawn_from_the_moment_its_training_begins(result):
    spec = chart(result)
    steps = {
        name: [row["step"] for row in rows(spec, 0, "line") if row["what"] == name] for name in "AB"
    }
    assert min(steps["A"]) == 0
    assert min(steps["B"]) == result.boundaries[0]


def test_the_dots_stand_on_the_lines(result):
    dots = rows(chart(result), 1, "point")
    average = next(row for row in dots if row["what"] == "average")
    np.testing.assert_allclose(average["xs"], plots.lambda_positions(result.lambdas), atol=1e-3)
    np.testing.assert_allclose(average["ys"], result.average_accuracy.mean(1), rtol=1e-3)


def test_the_bayes_value_is_marked_and_lambda_zero_has_its_place(result):
    spec = chart(result)
    assert rows(spec, 1, "text") == [{"x": 0.0, "text": "Bayes N_A/N_B = 1"}]
    axis = views(spec)[1]["layer"][0]["encoding"]["x"]["axis"]
    assert axis["values"][0] == plots.lambda_positions(result.lambdas)[0] == -2
    names = json.loads(re.match(r"\[.*?\]", axis["labelExpr"])[0])
    assert names[:4] == ["0", "0.1", "1", "10"]
    assert "tickCount" not in axis  # Vega would leave out values to come near it


def test_the_ghost_is_grey_and_dashed_and_named(result):
    plain, haunted = (chart(result, ghost) for ghost in (None, made_up(shift=1)))
    text = json.dumps(haunted)
    for view in (0, 1, 3):
        dash = layer(haunted, view, "line")["encoding"]["strokeDash"]["scale"]
        assert dash["domain"][-1].endswith(", previous")
        assert dash["range"][-1] == [4, 3]
    assert len(views(haunted)[2]["layer"]) == len(views(plain)[2]["layer"]) + 1
    for name in ("A, previous", "average, previous", "important tenth, previous"):
        assert name in text
    assert "previous" not in json.dumps(plain)


@pytest.mark.parametrize(
    "ghost",
    [
        made_up(lambdas=[0.0, 5.0], seeds=1),
        made_up(lambdas=[1e-6, 1e8], tasks=("A", "B", "C")),
        made_up(tasks=("A",), evaluations=9),
    ],
    ids=["other grid", "wider grid", "one task, longer"],
)
def test_a_ghost_may_be_of_another_shape(result, ghost):
    x = views(chart(result, ghost))[1]["layer"][0]["encoding"]["x"]
    low, high = x["scale"]["domain"]
    both = np.union1d(result.lambdas, ghost.lambdas)
    places = plots.lambda_positions(both)
    assert low < places.min()
    assert high > places.max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [
        made_up(lambdas=[0.0]),
        made_up(lambdas=[3.0], seeds=1),
        made_up(lambdas=[1e-30, 1e30]),
        made_up(tasks=[f"task {i}" for i in range(12)]),
        made_up(tasks=("only",)),
        made_up(seeds=1),
    ],
    ids=["only zero", "one λ", "60 decades", "12 tasks", "1 task", "1 seed"],
)
@pytest.mark.parametrize("predict", [False, True])
def test_extreme_sweeps_make_valid_charts_of_finite_numbers(other, predict):
    spec = chart(other, predict=predict)
    assert json.dumps(spec, allow_nan=False)
    assert vl_convert.vegalite_to_vega(spec)["marks"]


def test_nothing_gives_the_answer_away_before_it_is_uncovered(result):
    spec = chart(result, predict=True)
    assert [p["name"] for p in spec["params"]] == ["guess", "shown", "k"]
    assert not spec["params"][1]["value"]
    for view in views(spec)[1:]:
        for part in view["layer"]:
            # What is not covered does not depend on the accuracies: Bayes' value and the guess.
            covered = part["mark"].get("opacity")
            if covered is None:
                assert set(part["data"]["values"][0]) <= {"x", "text"}, part
            else:
                assert covered["expr"].startswith("shown ? ")
                assert covered["expr"].endswith(": 0")
    line = layer(spec, 0, "line")
    assert line["transform"][0]["calculate"] == "datum.ys[(shown ? k : 0)]"


# --- what it says -----------------------------------------------------------------------------


def test_the_readout_says_lambda_and_the_three_accuracies(result):
    lines = readouts(result)
    assert len(lines) == len(GRID)
    assert lines[4].startswith("λ = 1,000:   average accuracy 0.")
    assert f"last task {result.new_accuracy[4].mean():.3f}" in lines[4]
    assert "±" not in readouts(made_up(seeds=1))[0]


def test_the_verdict_says_how_far_off_the_guess_was(result):
    said = verdicts(result)
    assert re.fullmatch(
        r"The best λ is 10 \(average accuracy 0\.9\d\d\): exactly your guess\.", said[3]
    )
    assert "Your guess 0.1: 100 times too small" in said[1]
    assert "Your guess 1,000: 100 times too large" in said[4]
    assert "no factor apart" in said[0]
    mean = result.average_accuracy.mean(1)
    assert f"{100 * (mean[3] - mean[1]):.1f} points below" in said[1]


def test_a_guess_within_the_standard_error_is_called_so():
    result = made_up(lambdas=[1.0, 2.0])
    result.curves[0, :, -1] = [[0.80, 0.80], [0.90, 0.90]]
    result.curves[1, :, -1] = [[0.81, 0.81], [0.91, 0.91]]
    assert "1.0 points below, within one standard error" in verdicts(result)[0]


def test_the_standard_error_is_that_of_the_mean():
    runs = np.array([[0.1, 0.3], [0.5, 0.5]])
    np.testing.assert_allclose(standard_error(runs, axis=1), [0.1, 0.0])
    np.testing.assert_allclose(standard_error(runs[:, :1], axis=1), [0.0, 0.0])


# --- the explorer -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_explorer_needs_no_network(result):
    widget = LambdaExplorer(result)
    code = widget._chart._esm
    assert "esm.sh" not in str(code)
    assert len(str(code)) > 100_000


@pytest.mark.slow
def test_lambda_is_where_the_slider_points(result):
    widget = LambdaExplorer(result)
    assert widget.lam == 0.0
    for k, lam in ((0, 0.0), (4, 1000.0), (2, 1.0)):
        widget._chart.k = k
        assert widget.lam == lam
        widget.lam = lam
        assert widget._chart.k == k
    with pytest.raises(ValueError, match=r"7\.0 is not on the grid of λ; the nearest is 10"):
        widget.lam = 7.0


def test_another_sweep_makes_the_present_one_the_ghost(result):
    widget = LambdaExplorer(result)
    before = widget._chart
    other = made_up(shift=1)
    widget.show(other, predict=True)
    assert (widget.result, widget.ghost) == (other, result)
    assert widget._chart is not before
    assert widget._view.children == (widget._chart,)
    assert [param["name"] for param in widget._chart.spec["params"]] == ["guess", "shown", "k"]


def test_the_table_is_tidy_and_the_picture_a_png(result, tmp_path):
    widget = LambdaExplorer(result)
    frame = pd.read_csv(io.StringIO(widget.csv()))
    assert list(frame.columns) == ["lam", "seed", "step", "task", "accuracy", "seen"]
    assert len(frame) == result.curves.size
    csv, png = widget.save(tmp_path)
    assert csv.read_text() == widget.csv()
    assert png.read_bytes().startswith(b"\x89PNG")


def test_export_offers_both_files_as_links(result):
    widget = LambdaExplorer(result)
    assert widget._links.value == ""
    widget._export.click()
    links = dict(
        re.findall(r'download="(lambda_lab\.\w+)".*?base64,([A-Za-z0-9+/=]+)', widget._links.value)
    )
    assert base64.b64decode(links["lambda_lab.csv"]).decode() == widget.csv()
    assert base64.b64decode(links["lambda_lab.png"]).startswith(b"\x89PNG")
    widget.show(result)
    assert widget._links.value == ""


# --- the lab ----------------------------------------------------------------------------------

SMALL = {"width": 8, "epochs": 1, "seeds": 1}


@pytest.fixture(scope="module")
def lab():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab_module, "LAMBDAS", (0.0, 1.0))
        lab = lambda_lab(**SMALL)
    return lab


def reset(lab):
    lab.wait()
    for name, control in lab_module._controls(SMALL).items():
        lab.controls[name].value = control.value
    return lab


def trained(lab, **values):
    for name, value in values.items():
        lab.controls[name].value = value
    lab._train.click()
    assert lab.wait(60)
    return lab


def test_the_lab_opens_with_a_trained_landscape(lab):
    assert lab.result.tasks == ("A", "B")
    assert lab.ghost is None
    assert lab.error is None


def test_train_replaces_the_landscape_and_keeps_the_old_one_as_ghost(lab):
    before = reset(lab).result
    trained(lab, estimator="batched")
    assert lab.error is None
    assert lab.ghost is before
    assert lab.result.settings["estimator"] == "batched"
    assert "3 networks trained in" in lab._status.value
    assert lab._bar.value == 1
    assert not lab._train.disabled
    assert lab._stop.disabled


EXTREMES = [
    *({"tasks": kind} for kind in lab_module._TASKS),
    *({"tasks": kind, "n_tasks": 10} for kind in ("permuted", "rotated", "split, own outputs")),
    *({"estimator": name} for name in lab_module.ESTIMATORS),
    *({"rule": name, "n_tasks": 3} for name in lab_module.RULES),
    {"rule": "online", "gamma": 0.0, "n_tasks": 3},
    {"rule": "online", "gamma": 1.0, "n_tasks": 3},
    {"width": 8}, {"width": 256}, {"lr": 0.01}, {"lr": 1.0}, {"epochs": 50}, {"seeds": 10},
    {"predict": True},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("values", EXTREMES, ids=str)
def test_every_control_takes_its_extreme_values(lab, values):
    trained(reset(lab), **values)
    if lab.error is not None:
        raise lab.error
    assert np.isfinite(lab.result.curves).all()
    for name in ("estimator", "rule", "gamma", "lr", "epochs"):
        assert lab.result.settings[name] == lab.controls[name].value
    assert lab.result.settings["hidden"] == (lab.controls["width"].value,) * 2
    assert len(lab.result.seeds) == lab.controls["seeds"].value
    assert len(lab.result.tasks) == lab.controls["n_tasks"].value


def test_what_goes_wrong_is_said_in_one_sentence_and_kept(lab):
    shown = reset(lab).result
    trained(lab, tasks="split, own outputs", n_tasks=3)
    assert isinstance(lab.error, ValueError)
    assert "n_tasks must divide the ten classes (1, 2, 5 or 10), not 3." in lab._status.value
    assert lab.result is shown
    assert not lab._train.disabled
    trained(reset(lab))
    assert lab.error is None


def test_one_class_per_task_is_nothing_to_learn(lab):
    trained(reset(lab), tasks="split, same outputs", n_tasks=10)
    assert "have one class each: nothing to learn." in lab._status.value


def test_a_missing_mnist_is_said_in_one_sentence(lab, monkeypatch, tmp_path):
    monkeypatch.setenv("EWC_TUTORIAL_DATA", str(tmp_path))
    trained(reset(lab), dataset="mnist")
    assert isinstance(lab.error, FileNotFoundError)
    assert "MNIST is not in" in lab._status.value


def test_a_message_cannot_smuggle_html_in(lab, monkeypatch):
    def fail(*_):
        raise RuntimeError("<script>")

    monkeypatch.setattr(lab_module, "_tasks", fail)
    trained(reset(lab))
    assert "RuntimeError: &lt;script&gt;" in lab._status.value


def test_stop_ends_the_sweep_and_leaves_the_landscape(lab, monkeypatch):
    shown = reset(lab).result
    begun, go_on = threading.Event(), threading.Event()
    tick = lab._tick

    def slow(share):
        begun.set()
        assert go_on.wait(30)
        tick(share)

    monkeypatch.setattr(lab, "_tick", slow)
    lab._train.click()
    assert begun.wait(30)
    assert lab.training
    assert lab._train.disabled
    assert not lab._stop.disabled
    lab.train()  # a second press while it runs does nothing
    lab._stop.click()
    go_on.set()
    assert lab.wait(30)
    assert lab.result is shown
    assert lab.error is None
    assert "Stopped" in lab._status.value
    assert not lab._train.disabled


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 3}, "The lab has no control 'depth'; it has tasks, n_tasks"),
        ({"width": 33}, "width cannot be 33 in the lab"),
        ({"epochs": 0}, "epochs cannot be 0 in the lab"),
        ({"seeds": "many"}, "seeds cannot be 'many' in the lab"),
        ({"estimator": None}, "estimator cannot be None in the lab"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        lambda_lab(**options)


def test_the_grid_begins_with_zero_and_has_half_decades():
    assert LAMBDAS[0] == 0
    assert LAMBDAS[5] == 1
    np.testing.assert_allclose(np.diff(np.log10(LAMBDAS[1:])), 0.5)
    assert LAMBDAS[-1] == pytest.approx(1e6)


# --- the page without a kernel ----------------------------------------------------------------


def test_the_page_is_whole(result):
    html = page(result)
    assert html.startswith("<!DOCTYPE html>")
    assert '<html lang="en">' in html
    assert "10 that were trained before: 5 values of λ with 2 random starts" in " ".join(
        html.split()
    )
    assert "class Learner" in html
    assert len(html.encode()) < 3e6
    assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=", html)


# --- the small slider -------------------------------------------------------------------------


def test_figure_slider_redraws_its_picture():
    drawn = []

    def draw(ax, value):
        drawn.append(value)
        ax.plot([0, value])

    box = figure_slider(draw, [1, 2, 3], "n", start=1)
    slider, picture = box.children
    before = bytes(picture.value)
    assert before.startswith(b"\x89PNG")
    for index in (0, 2):
        slider.value = index
    assert drawn == [2, 1, 3]
    assert bytes(picture.value) != before
    with pytest.raises(ValueError, match="start must be an index of the 1 values, not 1"):
        figure_slider(draw, [1], "n", start=1)
    with pytest.raises(ValueError, match="0 values"):
        figure_slider(draw, [], "n")


def test_figure_slider_passes_errors_on():
    def draw(ax, value):
        if value == 2:
            raise ZeroDivisionError("two")

    box = figure_slider(draw, [1, 2], "n")
    with pytest.raises(ZeroDivisionError, match="two"):
        box.children[0].value = 1


# --- the static figures -----------------------------------------------------------------------


def test_static_figures_draw_what_they_are_given(result):
    import matplotlib.pyplot as plt

    ax = plots.lambda_curves(
        result.lambdas, {"average": result.average_accuracy}, bayes=1.0, best=True
    )
    np.testing.assert_allclose(ax.lines[0].get_ydata(), result.average_accuracy.mean(1))
    star = ax.lines[1]
    assert star.get_xdata()[0] == 1.0  # log₁₀ of the best λ, 10
    assert [t.get_text() for t in ax.get_xticklabels()][:2] == ["0", "0.1"]
    axes = plots.curves_by_lambda(
        result.lambdas, result.steps, result.curves, result.boundaries, result.tasks, columns=3
    )
    assert axes.shape == (2, 3)
    assert not axes[1, 2].get_visible()
    assert axes[1, 1].get_title() == "λ = 1,000"
    ax = plots.frontier(
        result.lambdas, {"EWC": (result.old_accuracy, result.new_accuracy)}, at=10.0
    )
    dot = ax.lines[-1]
    np.testing.assert_allclose(dot.get_xdata(), result.old_accuracy[3].mean())
    ax = plots.best_lambda_chart({"narrow": (10.0, [1.0, 10.0], 1.0), "wide": (5.0, [5.0], 1.0)})
    assert [t.get_text() for t in ax.get_yticklabels()] == ["narrow", "wide"]
    plt.close("all")


@pytest.mark.parametrize(
    ("lam", "text"),
    [(0, "0"), (0.0316227766, "0.032"), (1.0, "1"), (3162.27766, "3,200"), (1e8, "100,000,000")],
)
def test_lambda_is_written_with_two_digits(lam, text):
    assert plots.lambda_text(lam) == text


@pytest.mark.parametrize(
    ("exponent", "text"), [(-3, "10⁻³"), (-2, "0.01"), (0, "1"), (3, "1,000"), (12, "10¹²")]
)
def test_powers_of_ten(exponent, text):
    assert plots.power_of_ten(exponent) == text
