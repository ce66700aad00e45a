"""How Sphinx makes the site; ``build.py`` calls it."""

from __future__ import annotations

import json
import os
import tomllib
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Set once, in pyproject.toml; the workflow that publishes the site knows it. Where it is not set,
#: nothing links to a repository.
REPOSITORY = os.environ.get("EWC_TUTORIAL_REPOSITORY") or PROJECT.get("urls", {}).get("Repository")
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"

project = "EWC Tutorial"
author = PROJECT["authors"][0]["name"]
copyright = author
version = release = PROJECT["version"]
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["**/.ipynb_checkpoints"]
source_suffix = {".ipynb": "myst-nb", ".md": "myst-nb"}

# Pages: what was executed is committed.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4

# Reference.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = ["avalanche", "lightning", "peft", "transformers"]
python_use_unqualified_type_names = True
napoleon_use_rtype = False

# Look. Formulas are drawn by one file.
html_theme = "sphinx_book_theme"
html_title = project
html_domain_indices = False
templates_path = ["_templates"]
QUIZ = ROOT / "ewc_tutorial" / "course" / "quizzes" / "quiz.js"
html_static_path = [str(Path(__file__).parent / "site.css"), str(MATHJAX / "tex-svg.js"), str(QUIZ)]
html_css_files = ["site.css"]
# A page from the disk may not read the others, of which a search would show the beginning.
FROM_DISK = "if (location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;"
html_js_files = [(None, {"body": FROM_DISK}), (QUIZ.name, {"defer": "defer"})]
mathjax_path = "tex-svg.js"
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navbar_persistent": [],
    "use_download_button": True,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
}
if REPOSITORY:
    html_theme_options |= {
        "repository_url": REPOSITORY,
        "repository_branch": "HEAD",
        "use_repository_button": True,
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
            "notebook_interface": "jupyterlab",
        },
    }

WIDGET = "application/vnd.jupyter.widget-view+json"
SLIDER = (
    "<p>In a running notebook here is a slider; the next figure shows some of its positions.</p>"
)
LAB = (
    '<p>In a running notebook here is the lab; <a href="../lab.html">this page</a> has it, too.</p>'
)


def without_kernel(app: Sphinx, page: str, content: list[str]) -> None:
    """Say what stands in place of a widget, and leave out marks that are for the tests."""
    if app.env.doc2path(page).suffix != ".ipynb":
        return
    notebook = json.loads(content[0])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["source"] = [line for line in cell["source"] if "NBVAL_CHECK_OUTPUT" not in line]
            for output in cell["outputs"]:
                if WIDGET in output.get("data", {}):
                    lab = "lambda_lab(" in "".join(cell["source"])
                    output["data"] = {"text/html": LAB if lab else SLIDER}
    content[0] = json.dumps(notebook)


def add_descriptions(app: Sphinx, page: nodes.document) -> None:
    """Give each figure of a lesson its alternative text, which its PNG carries."""
    for image in page.findall(nodes.image):
        if "alt" not in image:
            image["alt"] = Image.open(Path(app.srcdir) / image["uri"]).text["Description"]


def setup(app: Sphinx) -> None:
    app.connect("source-read", without_kernel)
    app.connect("doctree-read", add_descriptions)
