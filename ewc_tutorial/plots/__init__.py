"""Every figure of the course, as functions of arrays and optional axes; one module per notebook."""

from ewc_tutorial.plots.curves import (
    accuracy_matrix,
    forgetting_curves,
    lam_ladder,
    mean_accuracy,
    overlap_by_layer,
)
from ewc_tutorial.plots.start import image_row, learning_in_sequence
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
    "accuracy_matrix",
    "axes_or_new",
    "curve_with_band",
    "forgetting_curves",
    "image_row",
    "label_panels",
    "lam_ladder",
    "learning_in_sequence",
    "mean_accuracy",
    "overlap_by_layer",
    "set_style",
]
