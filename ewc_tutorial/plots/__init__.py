"""Every figure of the course, as functions of arrays and optional axes; one module per notebook."""

from ewc_tutorial.plots.style import (
    ESTIMATOR_STYLE,
    METHOD_STYLE,
    axes_or_new,
    curve_with_band,
    label_panels,
    set_style,
)

__all__ = [
    "ESTIMATOR_STYLE",
    "METHOD_STYLE",
    "axes_or_new",
    "curve_with_band",
    "label_panels",
    "set_style",
]
