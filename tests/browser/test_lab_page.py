"""The λ lab as one file: it trains in the browser, to the weights of the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ewc_tutorial import EWC
from ewc_tutorial.course.explorer.page import page as lab_page
from ewc_tutorial.course.explorer.words import verdicts
from ewc_tutorial.course.models import mlp
from ewc_tutorial.course.sweep import SweepResult, lambda_sweep
from ewc_tutorial.course.tasks import permuted_tasks
from ewc_tutorial.course.training import batches, train

ARTIFACTS = Path(__file__).resolve().parents[1] / "artifacts"
FINISHED = "document.getElementById('status').textContent.includes(' s.')"


@pytest.fixture(scope="module")
def landscape() -> SweepResult:
    return lambda_sweep(
        permuted_tasks(2), [0.0, 1.0, 10.0, 1000.0], seeds=range(2), hidden=(16, 16), lr=0.3,
        epochs=2, progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def file(landscape, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "lambda_lab.html"
    path.write_text(lab_page(landscape), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, file):
    """Return a function that opens the file at a width; scripts must not raise, nor ask outside."""
    contexts, errors, requests = [], [], []

    def open_it(fragment: str = "", width: int = 1000, scheme: str = "light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri() + fragment)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "blob:"))] == []


def status(page) -> str:
    """Return what the page says once a training has ended."""
    page.wait_for_function(FINISHED)
    return page.inner_text("#status")


# --- what is trained --------------------------------------------------------------------------


def test_the_tasks_are_those_of_the_course(opened):
    found = opened().evaluate(
        """() => lab.permutedTasks(5).map(({train, test}) => [train, test].map(({x, y}) =>
            [[...x.subarray(0, 640)], [...columnSums(x, y.length, 64)], [...y]]))"""
    )
    for task, parts in zip(permuted_tasks(5), found, strict=True):
        for part, (first, sums, labels) in zip((task.train, task.test), parts, strict=True):
            x, y = part.tensors
            assert torch.equal(torch.tensor(first).view(10, 64), x[:10])
            assert torch.equal(torch.tensor(sums), x.sum(0))  # exact: sixteenths
            assert torch.equal(torch.tensor(labels), y)


# Given weights and batches go to a worker, and its weights come back.
TRAIN = """async ([settings, start, lam]) => {
    start.parameters = start.parameters.map(p => Float32Array.from(p));
    const [member] = await lab.train(settings, [start], lam);
    return [member.parameters.map(p => [...p]), member.points.map(point => point.step)];
}"""


# Not everywhere is this possible: at λ = 1000 the package's own float32 and float64 part by 0.03 on
# the way, with Kronecker factors sooner, where a unit's ReLU is just about to open or close.
@pytest.mark.parametrize(
    ("curvature", "lam", "width", "n_tasks", "steps"),
    [
        ("diagonal", 0.0, 32, 2, 105),
        ("diagonal", 1.0, 32, 3, 210),
        ("diagonal", 100.0, 15, 2, 105),
        ("diagonal", 1e6, 32, 2, 210),
        ("kronecker", 1.0, 32, 3, 110),
        ("kronecker", 3.0, 15, 2, 50),
    ],
)
def test_training_ends_at_the_weights_of_the_package(opened, curvature, lam, width, n_tasks, steps):
    model = mlp(64, [width, width], 10, seed=3)
    tasks = permuted_tasks(n_tasks)
    streams = [batches(len(task.train), 32, 100 + i) for i, task in enumerate(tasks)]
    settings = {
        "tasks": n_tasks, "sizes": [64, width, width, 10], "lr": 0.3, "steps": steps, "batch": 32,
        "evaluations": 10, "curvature": curvature,
    }  # fmt: skip
    start = {
        "parameters": [p.flatten().tolist() for p in model.parameters()],
        "orders": [[next(stream).tolist() for _ in range(steps)] for stream in streams],
    }
    found, at = opened().evaluate(TRAIN, [settings, start, lam])
    ewc = EWC(model, lam=lam, curvature=curvature)
    for i, task in enumerate(tasks):
        train(model, task, steps=steps, lr=0.3, ewc=ewc, generator=100 + i)
        ewc.consolidate(task)
    for mine, theirs in zip(found, model.parameters(), strict=True):
        difference = (torch.tensor(mine) - theirs.detach().flatten()).abs().max()
        assert difference < 1e-5
    assert at[0] == 0
    assert at[-1] == n_tasks * steps


def test_a_seed_on_the_page_is_that_seed_of_the_course(opened, landscape):
    page = opened("#shown=true&lam=10&guess=10")
    said = status(page)
    i = landscape.lambdas.tolist().index(10.0)
    wanted = (landscape.average_accuracy, landscape.old_accuracy, landscape.new_accuracy)
    average, old, new = (f"{values[i].mean():.3f}" for values in wanted)
    assert said.startswith(f"λ = 10: average accuracy {average} ")
    assert f"(earlier tasks {old}, last task {new})" in said


def test_the_first_picture_and_the_first_results_come_soon(opened):
    """Aims on two free cores: 1 s, 2 s and 5 s; the test allows for a machine that is busy."""
    page = opened("#seeds=5&width=32&epochs=5")
    said = status(page)
    picture = page.evaluate("performance.getEntriesByName('picture')[0].startTime") / 1000
    first = page.evaluate("performance.getEntriesByName('result')[0].startTime") / 1000
    five = float(re.search(r"5 networks in ([\d.]+) s", said)[1])
    ARTIFACTS.mkdir(exist_ok=True)
    with (ARTIFACTS / "latency.txt").open("a") as notes:
        notes.write(f"lab page: picture {picture:.2f} s, first result {first:.2f} s, ")
        notes.write(f"5 networks {five:.1f} s\n")
    assert picture < 3
    assert first < 8
    assert five < 20


def test_more_tasks_and_kronecker_factors_train_as_well(opened):
    page = opened("#shown=true&lam=1&tasks=3&curvature=kronecker&width=8&epochs=1&seeds=1")
    assert "last task" in status(page)
    assert page.locator("#curves + ul li").all_inner_texts()[1:] == ["task A", "task B", "task C"]


def test_a_network_that_learned_nothing_is_pointed_out(opened):
    page = opened("#lr=2&epochs=1&width=8&seeds=1")
    assert status(page).endswith("Task A was not learned: take a lower η, or more epochs.")


# --- what is shown and said -------------------------------------------------------------------


def test_everything_works_from_the_keyboard(opened, landscape):
    page = opened()
    status(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "turn"
    page.keyboard.press("Home")
    assert page.get_attribute("#turn", "aria-valuetext") == "λ = 0"
    for _ in range(11):
        page.keyboard.press("ArrowRight")
    assert page.get_attribute("#turn", "aria-valuetext") == "λ = 0.1"
    # The guess moves in the picture, but nothing is given away.
    assert page.locator("#against path.guess").count() == 1
    assert page.locator("#against path.line, #frontier path.line").count() == 0
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    best = f"{landscape.average_accuracy.mean(1).max():.3f}"
    assert f"(average accuracy {best}). Your guess 0.1: " in page.inner_text("#verdict")
    assert page.evaluate("document.activeElement.id") == "turn"
    assert status(page).startswith("λ = 0.1:")
    page.keyboard.press("End")
    assert status(page).startswith("λ = 1,000,000:")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "all"
    page.keyboard.press("Enter")
    page.wait_for_function(
        "document.querySelectorAll('#against circle:not(.spot)').length === 3 * 6"
    )
    page.get_by_text("4 values of λ trained. Best: λ = ").wait_for()


def test_the_verdict_is_that_of_the_notebook(opened, landscape):
    page = opened()
    for lam, theirs in zip(landscape.lambdas.tolist(), verdicts(landscape), strict=True):
        mine = page.evaluate("lam => verdict(lam, landscape)", lam)
        assert mine.split("(average accuracy")[1] == theirs.split("(average accuracy")[1]


def test_a_link_carries_the_settings(opened):
    junk = "&lr=junk&curvature=toString"
    page = opened("#width=8&epochs=1&seeds=1&lam=0.5&shown=true&guess=3&tasks=2" + junk)
    assert page.input_value("#width") == "8"
    assert page.input_value("#lam") == "0.5"
    assert page.input_value("#lr") == "0.3"
    assert page.input_value("#curvature") == "diagonal"
    page.locator("summary").click()
    page.fill("#tasks", "4")
    page.fill("#lam", "7")
    page.keyboard.press("Enter")
    link = page.get_attribute("#link", "href")
    assert page.url.endswith(link)
    assert {"tasks=4", "lam=7", "guess=3", "shown=true"} <= set(link[1:].split("&"))
    assert status(page).startswith("λ = 7:")


def test_what_cannot_be_is_refused_in_a_sentence(opened):
    page = opened()
    status(page)  # the first training has said what it has to say
    page.fill("#lam", "-3")
    page.keyboard.press("Tab")
    assert "λ must be a number from 0" in page.inner_text("#status")
    assert page.input_value("#lam") == "1"
    page.locator("summary").click()
    page.fill("#tasks", "9")
    assert page.inner_text("#status") == "tasks must be between 2 and 5."


@pytest.mark.parametrize(
    ("typed", "taken"),
    [("3,200", "3200"), ("1,000,000", "1000000"), ("0,5", "0.5"), ("0,500", "0.5"), ("3,2", "3.2")],
)
def test_a_lambda_may_be_typed_as_the_page_writes_it_or_with_a_comma_for_the_point(
    opened, typed, taken
):
    page = opened()
    page.fill("#lam", typed)
    page.keyboard.press("Tab")
    assert page.input_value("#lam") == taken


FORBIDDEN = '<head><meta http-equiv="Content-Security-Policy" content="worker-src \'none\'">'
THROWS = "<head><script>window.Worker = function () { throw new Error('none here.'); };</script>"


@pytest.mark.parametrize(
    ("head", "words"), [(FORBIDDEN, "may not start a worker."), (THROWS, "none here.")]
)
def test_a_page_that_may_not_start_workers_says_so(opened, file, head, words, tmp_path):
    copy = tmp_path / "forbidden.html"
    text = file.read_text(encoding="utf-8")
    assert text.count("<head>") == 1
    copy.write_text(text.replace("<head>", head), encoding="utf-8")
    page = opened()
    page.goto(copy.as_uri())
    failed = "document.getElementById('status').textContent.startsWith('The training failed: ')"
    page.wait_for_function(failed)
    assert page.inner_text("#status").endswith(words)


def test_a_training_that_diverged_leaves_the_charts_as_they_are(opened):
    page = opened("#shown=true&lam=10&guess=10&seeds=1&epochs=1&width=8")
    status(page)
    page.evaluate(
        """() => {
            results.set(10, { ...results.get(10), important: NaN, other: Infinity });
            draw();
        }"""
    )
    drawn = page.inner_html("#moves")
    assert "<path" in drawn or "<polyline" in drawn
    assert not re.search(r' (d|points|cx|cy|x|y|x1|y1|x2|y2|transform)="[^"]*(NaN|Inf)', drawn)


def test_a_training_can_be_stopped(opened):
    page = opened("#epochs=50&width=128&tasks=5")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Training')")
    page.get_by_role("button", name="Stop").click()
    assert page.inner_text("#status") == "Stopped."
    page.wait_for_timeout(500)
    assert page.inner_text("#status") == "Stopped."


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 592, 1200])
def test_the_page_fits_every_width_and_has_words_for_its_pictures(opened, width, scheme):
    page = opened("#shown=true&lam=10&guess=1", width=width, scheme=scheme)
    status(page)
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"lab_page_{width}_{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    titles = page.locator("figure svg[role=img] > title").all_text_contents()
    assert len(titles) == 4
    assert all("λ = 10" in title for title in titles)


def test_a_page_may_begin_uncovered(opened, landscape, tmp_path):
    page = opened()
    path = tmp_path / "uncovered.html"
    path.write_text(lab_page(landscape, predict=False), encoding="utf-8")
    page.goto(path.as_uri())
    assert status(page).startswith("λ = 1:")
    assert page.locator("#uncover").is_hidden()


def test_the_page_trains_in_a_frame_as_jupyterlab_shows_files(opened, file):
    page = opened()
    page.goto("about:blank")
    page.set_content("<iframe sandbox='allow-scripts' width='900' height='900'></iframe>")
    page.evaluate("html => { document.querySelector('iframe').srcdoc = html; }", file.read_text())
    frame = page.frame_locator("iframe")
    frame.locator("#status", has_text=" s.").wait_for()
    frame.locator("#uncover").click()
    frame.locator("#status", has_text="λ = 1:").wait_for()
