"""EWC Tutorial: why neural networks forget, and how Elastic Weight Consolidation prevents it.

On a model of your own::

    from ewc_tutorial import EWC

    ewc = EWC(model, lam=100)          # before the first task
    ewc.consolidate(old_data)          # after each task
    ewc.proximal_step_(lr)             # while training the next, after optimizer.step()
"""

from ewc_tutorial.diagnosis import diagnose
from ewc_tutorial.ewc import EWC, L2
from ewc_tutorial.exercises import check, reveal
from ewc_tutorial.fisher import fisher_diagonal
from ewc_tutorial.lesson import setup
from ewc_tutorial.models import mlp, small_cnn
from ewc_tutorial.tasks import Task, permuted_tasks, pick_dataset, rotated_tasks, split_tasks
from ewc_tutorial.training import History, learn, train

__all__ = [
    "EWC",
    "L2",
    "History",
    "Task",
    "check",
    "diagnose",
    "fisher_diagonal",
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
