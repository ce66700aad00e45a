"""Many λ at once: what each value makes of a network that is really trained with it.

* ``run``: :func:`lambda_sweep`, in shards, on one machine or many;
* ``stacked``: all networks of a shard as one, ``separate``: one after the other;
* ``result``: what was found, as arrays.
"""

from ewc_tutorial.course.sweep.result import SweepResult
from ewc_tutorial.course.sweep.run import lambda_sweep
from ewc_tutorial.course.sweep.stacked import StackedMLP

__all__ = ["StackedMLP", "SweepResult", "lambda_sweep"]
