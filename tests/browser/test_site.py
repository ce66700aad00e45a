"""The site from disk, with the network off: links, pictures in words, formulas, search, the lab."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import make

pytest.importorskip("sphinx", reason="Sphinx is not installed: the extra site")
from docs.site import build as builder

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
#: One page of each kind, as far as possible a short one.
KINDS = (
    "index", "notebooks/14_which_importance", "notebooks/notation", "api/unlearning", "search",
    "lab", "lambda_lab", *(["docs/glossary"] if (ROOT / "docs" / "glossary.md").exists() else []),
)  # fmt: skip


@dataclass
class Read(HTMLParser):
    """What the tests want to know of a page."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    pictures: list[str | None] = field(default_factory=list)
    headings: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := found.get(name))}
        if tag == "a" and "href" in found:
            self.links.append(found["href"] or "")
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(found["href"] or "")
        if "src" in found:
            self.loaded.append(found["src"] or "")
        if tag == "img":
            self.pictures.append(found.get("alt"))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))


def make_site(*line: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *line],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_site_takes_the_place_of_an_earlier_one_when_it_is_finished(tmp_path, monkeypatch):
    status = 0

    def sphinx(options):
        made = Path(options[-1])
        assert not made.exists()
        made.mkdir(parents=True)
        for name in (".buildinfo", "new.html"):
            (made / name).touch()
        return status

    monkeypatch.setattr(builder, "gather", lambda folder: None)
    monkeypatch.setattr(builder, "write_lab", lambda path: None)
    monkeypatch.setattr(builder, "build_main", sphinx)
    site = tmp_path / "site"
    assert builder.build(site) == 0
    (site / "page_of_a_removed_notebook.html").touch()
    status = 1
    assert builder.build(site) == 1
    assert (site / "page_of_a_removed_notebook.html").exists(), "the earlier site stays whole"
    status = 0
    assert builder.build(site) == 0
    assert sorted(path.name for path in site.iterdir()) == [".buildinfo", "new.html"]
    (site / ".buildinfo").unlink()
    with pytest.raises(SystemExit, match="something else than a site"):
        builder.build(site)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as ``make site`` writes it; a warning of Sphinx is an error."""
    folder = tmp_path_factory.mktemp("site") / "site"
    ((module, _),) = make.COMMANDS["site"].modules([])
    make_site(module, str(folder))
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Read]:
    found = {}
    for path in sorted(site.rglob("*.html")):
        if "_static" not in path.parts:
            found[path.relative_to(site).as_posix()] = page = Read()
            page.feed(path.read_text(encoding="utf-8"))
    return found


def targets(page: str, addresses: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (file in the site, anchor) of the addresses that stay in it."""
    for address in addresses:
        url = urlsplit(address)
        if not url.scheme and not url.netloc:
            path = os.path.normpath(Path(page).parent / unquote(url.path)) if url.path else page
            yield Path(path).as_posix(), unquote(url.fragment)


def test_all_that_is_written_has_a_page(pages):
    for name in LESSONS:
        assert f"notebooks/{name}.html" in pages
    for name in (ROOT / "docs").glob("*.md"):
        assert f"docs/{name.stem}.html" in pages
    aside = {"index.html", "lambda_lab.html", "genindex.html", "search.html"}
    assert set(pages) - aside - set(pages["index.html"].links) == set()


def test_every_link_leads_to_a_file_and_an_anchor_that_there_are(site, pages):
    broken = []
    for page, read in pages.items():
        for path, anchor in targets(page, [*read.links, *read.loaded]):
            known = anchor == "" or path not in pages or anchor in pages[path].ids
            if not ((site / path).is_file() and known):
                broken.append((page, path, anchor))
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(pages):
    for page, read in pages.items():
        outside = [url for url in read.loaded if urlsplit(url).scheme not in ("", "data")]
        assert outside == [], page


def test_every_picture_is_there_in_words(pages):
    assert sum(len(pages[f"notebooks/{name}.html"].pictures) for name in LESSONS) > 80
    for page, read in pages.items():
        assert all(text and len(text) > 20 for text in read.pictures), page


def test_headings_go_down_one_by_one(pages):
    for page, read in pages.items():
        levels = read.headings
        assert levels.count(1) == 1, page
        assert levels[0] == 1, page
        assert all(after <= before + 1 for before, after in pairwise(levels)), page


def test_what_stands_for_a_widget_says_so(site):
    lesson = (site / "notebooks" / "05_the_lambda_lab.html").read_text(encoding="utf-8")
    assert lesson.count('<a href="../lab.html">this page</a>') == 2
    assert "NBVAL" not in lesson
    start = (site / "notebooks" / "00_start_here.html").read_text(encoding="utf-8")
    assert start.count("here is a slider") == 1


def test_the_reference_has_every_public_name(site):
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    listed = {name for kind in ("py:class", "py:function") for name in inventory[kind]}
    listed = {name.rpartition(".")[2] for name in listed}
    wanted = set()
    for pattern in ("*.py", "*/__init__.py", "frameworks/*.py"):
        for path in (ROOT / "ewc_tutorial").glob(pattern):
            if path.parent.name not in ("course", "speech"):
                for node in ast.parse(path.read_text(encoding="utf-8")).body:
                    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                        wanted |= set(ast.literal_eval(node.value))
    constants = {"ESTIMATORS", "KINDS", "RULES", "__version__"}
    assert len(wanted) > 25
    assert wanted - constants - listed == set()


def test_lessons_can_be_taken_away_and_with_an_address_opened_elsewhere(site, tmp_path):
    name = LESSONS[0]
    page = (site / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
    assert f'href="../_sources/notebooks/{name}.ipynb"' in page
    assert not re.search("colab|mybinder|github", page)
    pages = tmp_path / "pages"
    (pages / "notebooks").mkdir(parents=True)
    (pages / "index.md").write_text(f"# Site\n\n```{{toctree}}\nnotebooks/{name}\n```\n")
    shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", pages / "notebooks")
    address = "https://github.com/somebody/course"
    line = ["--quiet", "--conf-dir", "docs/site", str(pages), str(tmp_path / "site")]
    make_site("sphinx", *line, EWC_TUTORIAL_REPOSITORY=address)
    page = (tmp_path / "site" / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
    file = f"notebooks/{name}.ipynb"
    assert f"https://colab.research.google.com/github/somebody/course/blob/HEAD/{file}" in page
    assert f"https://mybinder.org/v2/gh/somebody/course/HEAD?urlpath=lab/tree/{file}" in page


# --- in a browser -----------------------------------------------------------------------------


@pytest.fixture
def reader(browser, site):
    """Return a function that opens a page of the site; scripts must not raise, nor ask outside."""
    contexts, errors, requests = [], [], []

    def open_it(page: str, **options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(120_000)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto((site / page).as_uri())
        return tab

    yield open_it
    for context in contexts:
        context.close()
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "blob:", "data:"))] == []


def test_a_reader_searches_reads_a_lesson_and_trains(reader):
    tab = reader("index.html", viewport={"width": 1280, "height": 900})
    tab.keyboard.press("Control+k")
    tab.keyboard.type("intransigence")
    tab.keyboard.press("Enter")
    tab.locator("#search-results a", has_text="05 · The λ lab").first.click()
    assert tab.title().startswith("05 · The λ lab")
    assert formulas(tab)
    tab.locator("a", has_text="this page").first.click()
    lab = tab.frame_locator("iframe.lab")
    lab.locator("#status", has_text=" s.").wait_for()
    assert re.search(r"\d networks in [\d.]+ s", lab.locator("#status").inner_text())


def formulas(tab) -> int:
    """Return how many formulas are drawn, once all are; none may be left over or be wrong."""
    tab.wait_for_function("window.MathJax?.startup?.promise")
    tab.evaluate("MathJax.startup.promise")
    assert tab.locator("[data-mml-node='merror']").count() == 0
    found = tab.locator("mjx-container > svg").count()  # a long brace has more within
    assert found == tab.locator(".math").count()
    return found


def test_every_formula_is_drawn_and_no_page_is_wider_than_a_telephone(reader, pages):
    tab = reader("index.html", viewport={"width": 390, "height": 800})
    drawn, wide = 0, []
    for page in pages:
        tab.goto(tab.url.rpartition("/site/")[0] + f"/site/{page}")
        if tab.locator(".math").count():
            drawn += formulas(tab)
        if tab.evaluate("document.documentElement.scrollWidth") > 390:
            wide.append(page)
    assert wide == []
    assert drawn > 500


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(reader, scheme):
    """One page of each kind; what the theme gets wrong everywhere is wrong on each of them."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = []
    for page in KINDS:
        # Colours that are still on their way from one to the other are not the page's.
        tab = reader(f"{page}.html", color_scheme=scheme, reduced_motion="reduce")
        if page == "search":
            tab.goto(f"{tab.url}?q=forgetting")
            tab.locator("#search-results a").first.wait_for()
        options: dict = {"resultTypes": ["violations"], "iframes": False}
        if scheme == "dark":  # where colours alone differ
            options["runOnly"] = ["color-contrast"]
        for rule in axe.run(tab, options=options).response["violations"]:
            if rule["impact"] in ("serious", "critical"):
                found += [(page, rule["id"], node["html"][:200]) for node in rule["nodes"]]
        tab.context.close()
    assert found == []
