"""How Sphinx makes the site; ``build.py`` calls it."""

from __future__ import annotations

import hashlib
import json
import tomllib
from base64 import b64decode
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Set once in pyproject.toml; as long as it is not, nothing links to a repository.
REPOSITORY = PROJECT.get("urls", {}).get("Repository")
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
html_static_path = [str(Path(__file__).parent / "site.css"), str(MATHJAX / "tex-svg.js")]
html_css_files = ["site.css"]
mathjax_path = "tex-svg.js"
html_theme_options = {
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
