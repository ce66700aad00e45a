"""Sliders, and the λ lab. A static figure stands beside each, for pages without a kernel.

* ``slider``: a slider under any figure;
* ``lab``: the λ lab with its controls;
* ``chart``, ``words``: what it shows of a sweep, as linked views and in sentences;
* ``widget``: the chart in a notebook;
* ``page``, ``web``: the lab as a page of its own, which trains in the browser.
"""

from ewc_tutorial.course.explorer.lab import (
    LAMBDAS,
    LambdaExplorer,
    LambdaLab,
    default_landscape,
    lambda_lab,
)
from ewc_tutorial.course.explorer.slider import figure_slider

__all__ = [
    "LAMBDAS",
    "LambdaExplorer",
    "LambdaLab",
    "default_landscape",
    "figure_slider",
    "lambda_lab",
]
