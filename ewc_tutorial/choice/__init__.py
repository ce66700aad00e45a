"""λ chosen by trying: how to spend a budget of trainings, and what they then say.

* ``search``: :func:`choose_lambda`, sequential halving over a logarithmic grid;
* ``springs``: where the grid begins: how far the springs can be trusted, :func:`softness`;
* ``trainings``: on any executor, resumable;
* ``rules``: which λ is best, and which cannot be told from it;
* ``result``, ``words``: the :class:`Choice`, as numbers, picture and sentence.
"""

from ewc_tutorial.choice.result import Choice, Curve
from ewc_tutorial.choice.search import choose_lambda, mean_of_both
from ewc_tutorial.choice.springs import predicted_rise, softness
from ewc_tutorial.choice.trainings import Run

__all__ = [
    "Choice",
    "Curve",
    "Run",
    "choose_lambda",
    "mean_of_both",
    "predicted_rise",
    "softness",
]
