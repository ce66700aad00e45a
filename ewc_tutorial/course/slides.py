"""Slides for the lecture, from cells of the lessons that carry ``slideshow`` metadata.

    python -m ewc_tutorial.course.slides build/slides.html

Of a tagged text cell a slide shows what fits: its heading, formulas, lists, tables, questions to
predict and lines in bold; the whole text goes into the speaker's notes (key S). Of a tagged code
cell it shows the output. The page is one file and needs no network; reveal.js and MathJax come from
the packages of the extra ``slides``.
"""

from __future__ import annotations

import argparse
import html
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import nbformat

from ewc_tutorial.course.classroom.questions import LESSONS

_SHOWN = re.compile(r"#|\$\$|> |\| |- |\d\. |\*\*")
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>EWC: the lecture</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{css}
.reveal {{ font-size: 26px; }}
.reveal h1 {{ font-size: 1.8em; }} .reveal h2, .reveal h3 {{ font-size: 1.3em; }}
.reveal h1, .reveal h2, .reveal h3 {{ text-transform: none; }}
.reveal img {{ max-height: 540px; width: 100%; object-fit: contain; }}
.reveal figcaption {{ font-size: 0.7em; }} .anchor-link {{ display: none; }}
.reveal section pre {{ font-size: 0.75em; box-shadow: none; white-space: pre-wrap; width: 100%; }}
.reveal blockquote {{ width: 90%; font-style: normal; text-align: left; padding: 0 1em; }}
.reveal table {{ font-size: 0.7em; }}
</style></head><body><div class="reveal"><div class="slides">
{sections}
</div></div>
<script>window.MathJax = {{tex: {{inlineMath: [["$", "$"]], processEscapes: true}}}};</script>
<script>{mathjax}</script><script>{reveal}</script><script>{notes}</script>
<script>Reveal.initialize({{hash: true, slideNumber: true, plugins: [RevealNotes],
width: 1100, height: 720, transition: "none"}});</script></body></html>
"""


def sections() -> Iterator[str]:
    """Yield a slide for each tagged cell, in the order of the lessons."""
    for path in sorted(LESSONS.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        for cell, after in zip(cells, [*cells[1:], None], strict=True):
            if cell.metadata.get("slideshow", {}).get("slide_type") != "slide":
                continue
            inside = _text(cell) if cell.cell_type == "markdown" else _output(cell, after)
            yield f"<section>{inside}</section>"


def shown(text: str) -> str:
    """Return the parts of a text cell that a slide has room for."""
    blocks = re.split(r"\n\s*\n", text)
    return "\n\n".join(block for block in blocks if _SHOWN.match(block))


def page() -> str:
    """Return the lecture as one HTML page.

    Raises:
        ModuleNotFoundError: a package of the extra ``slides`` is missing.
    """
    reveal = _folder("sphinx_revealjs") / "_static" / "revealjs"
    mathjax = _folder("sphinx-mathjax-offline") / "static" / "mathjax" / "tex-svg.js"
    css = [reveal / "dist" / "reveal.css", reveal / "dist" / "theme" / "white.css"]
    # The theme's own typeface is a file of its own; the fallback is on every machine.
    styles = re.sub(r"@import[^;]*;", "", "\n".join(path.read_text("utf-8") for path in css))
    return _PAGE.format(
        css=styles,
        sections="\n".join(sections()),
        mathjax=_script(mathjax),
        reveal=_script(reveal / "dist" / "reveal.js"),
        notes=_script(reveal / "plugin" / "notes" / "notes.js"),
    )


def _text(cell: nbformat.NotebookNode) -> str:
    from nbconvert.filters import markdown2html

    links = re.compile(r"\[([^\]]*)\]\([^)]*\)")  # they lead to files beside the notebook
    visible, notes = (markdown2html(links.sub(r"\1", t)) for t in (shown(cell.source), cell.source))
    return f'{visible}<aside class="notes">{notes}</aside>'


def _output(cell: nbformat.NotebookNode, after: nbformat.NotebookNode | None) -> str:
    """Return what a code cell prints and draws, with the caption that follows it."""
    parts = []
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            alt = output.metadata.get("image/png", {}).get("alt", "")
            source = data["image/png"].replace("\n", "")
            parts.append(f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{source}">')
        elif "text" in output:
            parts.append(f"<pre>{html.escape(output.text)}</pre>")
    caption = re.match(r"\*(Figure.+?)\*(?:\n|$)", after.source if after else "", flags=re.S)
    if caption and parts and "<img" in parts[-1]:
        parts.append(f"<figcaption>{html.escape(caption[1])}</figcaption>")
    return "\n".join(parts)


def _script(path: Path) -> str:
    return path.read_text(encoding="utf-8").replace("</script", "<\\/script")


def _folder(package: str) -> Path:
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            f"The slides need the package {package}: pip install 'ewc-tutorial[slides]'"
        )
    return Path(found.origin).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="the file to write")
    target = parser.parse_args().page
    try:
        text = page()
    except ModuleNotFoundError as error:
        sys.exit(str(error))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(f"{target}: open it in any browser; S shows the notes")


if __name__ == "__main__":
    main()
