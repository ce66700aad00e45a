"""The course as a web site: pages of what is committed, which need no server and no network.

    python -m docs.site.build build/site

The pages, and the files that they link to, are gathered in a folder with the paths that they have
in the repository, so that every link in them leads where it does there. Sphinx does the rest.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from sphinx.cmd.build import build_main

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CODE_OF_CONDUCT.md",
    "CHANGELOG.md",
    "data/README.md",
    "docs/*.md",
    "notebooks/*.ipynb",
    "notebooks/*.md",
    "benchmarks/results/*.md",
)
#: The end of a link in Markdown or in a notebook: all but the addresses elsewhere.
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s\\]+)")


def gather(folder: Path) -> None:
    """Copy every page, and what the pages link to, into a folder that is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("*.py", "_*"))
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    for path in {*pages, *(linked for page in pages for linked in links(page))}:
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


def links(page: Path) -> Iterator[Path]:
    """Yield the files of the repository that a page links to; Sphinx complains of the others."""
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve()
        if path.is_file() and path.is_relative_to(ROOT):
            yield path


def write_lab(path: Path) -> None:
    """Train the λ lab's landscape and write its page."""
    from ewc_tutorial.course.explorer.lab import default_landscape
    from ewc_tutorial.course.explorer.page import page

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(default_landscape()), encoding="utf-8")


def build(site: Path) -> int:
    """Write the site into a folder and return Sphinx's exit status; a warning is an error.

    It is built beside and takes the folder's place when it is finished: no page of an earlier site
    stays in it, and where Sphinx fails the earlier site stays whole.

    Raises:
        SystemExit: the folder holds something else than a site.
    """
    if site.exists() and any(site.iterdir()) and not (site / ".buildinfo").exists():
        raise SystemExit(f"{site} holds something else than a site: name another folder.")
    work = site.with_name(site.name + "-work")
    made = work / "site"
    shutil.rmtree(made, ignore_errors=True)
    gather(work / "pages")
    write_lab(work / "extra" / "lambda_lab.html")
    options = ["--quiet", "--fail-on-warning", "--fresh-env", "--conf-dir", str(HERE)]
    options += ["-D", f"html_extra_path={work / 'extra'}", "-d", str(work / "doctrees")]
    status = build_main([*options, str(work / "pages"), str(made)])
    if not status:
        shutil.rmtree(site, ignore_errors=True)
        made.replace(site)
    return status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path, help="the folder to write to")
    site = parser.parse_args().site.resolve()
    status = build(site)
    if not status:
        print(f"{site / 'index.html'}: open it in any browser")
    sys.exit(status)


if __name__ == "__main__":
    main()
