"""Elastic Weight Consolidation for any PyTorch model.

    from ewc_tutorial import EWC

    ewc = EWC(model, lam=100)          # before the first task
    ewc.consolidate(old_data)          # after each task
    ewc.attach(optimizer)              # while training the next: pulls after every step

Three wings. The library, this package itself, needs PyTorch, NumPy and tqdm only:

* ``ewc``: :class:`EWC` and :class:`L2`, what a network remembers of its tasks, with ``selection``:
  which of its parameters;
* ``choice``: λ chosen by trying: :func:`choose_lambda`;
* ``path``: λ chosen after training: :func:`between` and ``EWC.path``;
* ``curvature``: the forms in which it does: a diagonal, Kronecker factors per layer, or ones;
* ``fisher``: the Fisher information that says what matters, of any model;
* ``diagnosis``: :func:`diagnose`, what is wrong with a set-up of your own, and
  :func:`retention_report`, what a training kept and learned;
* ``unlearning``: a network that can forget one of its tasks;
* ``huggingface``: the Trainer, sequences, LoRA (wants the extra ``huggingface``);
* ``frameworks``: Lightning and Avalanche (wants the extra ``frameworks``).

``ewc_tutorial.course`` is the classroom behind the notebooks (the extra ``course``), and
``ewc_tutorial.speech`` a service around a speech recogniser (the extra ``speech``). The library
imports neither.
"""

from importlib.metadata import PackageNotFoundError, version

from ewc_tutorial.choice import choose_lambda
from ewc_tutorial.diagnosis import diagnose, retention_report
from ewc_tutorial.ewc import EWC, L2
from ewc_tutorial.fisher import explain_fisher, fisher_diagonal
from ewc_tutorial.path import between

try:
    __version__ = version("ewc-tutorial")
except PackageNotFoundError:  # a checkout that is on the path without being installed
    __version__ = "0+unknown"

__all__ = [
    "EWC",
    "L2",
    "__version__",
    "between",
    "choose_lambda",
    "diagnose",
    "explain_fisher",
    "fisher_diagonal",
    "retention_report",
]
