"""The classroom: what the notebooks use beside the library.

In the order of the course:

* ``lesson``, ``exercises``: the first cell; ``check`` and ``reveal``;
* ``tasks``, ``models``, ``training``, ``recorder``, ``protocol``: what is learned, by what, how,
  kept how, and fairly;
* ``reference``: the textbook version of everything that a reader is asked to write;
* ``importances``, ``referee``: rivals of the Fisher information, and what they came to;
* ``bayes`` and ``pairs`` (01), ``squares`` (02), ``rises`` (03, 04), ``sweep`` and ``explorer``
  (05), ``metrics`` and ``parabolas`` (06), ``scenarios`` (07), ``bugs`` and ``programs`` (08),
  ``language``, ``lora_tasks`` and ``without_old_data`` (09), ``study`` (11), ``reproduction``
  (12), ``capstone`` (the last exercise);
* ``plots``: every figure; ``tables``: runs that were made beforehand; ``publish``: executes the
  notebooks; ``glossary``: the terms in four languages; ``address``: links to where they can be run;
* ``classroom``: what a teacher hands out; ``mark``: points for it; ``slides``; ``quizzes``: one at
  the end of each lesson; ``progress``: what a reader has solved.
"""

try:
    import matplotlib  # noqa: F401
    import pandas  # noqa: F401
    import seaborn  # noqa: F401
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"ewc_tutorial.course needs {error.name}: pip install 'ewc-tutorial[course]'"
    ) from error

from ewc_tutorial.course.exercises import check, reveal
from ewc_tutorial.course.lesson import below, setup
from ewc_tutorial.course.models import mlp, small_cnn
from ewc_tutorial.course.protocol import PROTOCOL
from ewc_tutorial.course.tasks import (
    Task,
    permuted_tasks,
    pick_dataset,
    rotated_tasks,
    split_tasks,
)
from ewc_tutorial.course.training import History, learn, train

__all__ = [
    "PROTOCOL",
    "History",
    "Task",
    "below",
    "check",
    "learn",
    "mlp",
    "permuted_tasks",
    "pick_dataset",
    "reveal",
    "rotated_tasks",
    "setup",
    "small_cnn",
    "split_tasks",
    "train",
]
