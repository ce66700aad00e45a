"""Looks for the mistakes of notebook 08 in a reader's own set-up, without changing anything.

For the package's own class: ``print(diagnose(model, ewc, old_data))``. For any other program:
``diagnose(model, data=old_data, fisher=fisher, anchor=anchor, penalty=penalty, lam=100)``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ewc_tutorial.diagnosis.forms import by_name, parts_of, random_states_kept
from ewc_tutorial.diagnosis.measured import check_checkpoint, check_fisher, check_measure
from ewc_tutorial.diagnosis.moving import check_backward, check_penalty, check_step
from ewc_tutorial.diagnosis.quadratic import quadratic_of
from ewc_tutorial.diagnosis.report import NOTHING_CONSOLIDATED, Diagnosis, Finding, Tensors
from ewc_tutorial.diagnosis.retention import Retention, retention_report
from ewc_tutorial.diagnosis.statistics import check_statistics
from ewc_tutorial.diagnosis.stored import check_live, check_names, check_tensors, check_unfrozen
from ewc_tutorial.ewc import EWC

__all__ = ["Diagnosis", "Finding", "Retention", "diagnose", "retention_report"]


def diagnose(
    model: nn.Module,
    ewc: Any = None,
    data: Any = None,
    *,
    new_data: Any = None,
    fisher: Tensors | None = None,
    anchor: Tensors | None = None,
    penalty: Callable[..., Any] | None = None,
    backward: Callable[[], Any] | None = None,
    measure: Callable[..., Tensors] | None = None,
    checkpoint: Tensors | None = None,
    lam: float | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    n_samples: int | None = 2000,
    **options: Any,
) -> Diagnosis:
    """Look for known mistakes in an EWC set-up; nothing is changed, random states included.

    The best moment is right after the old task has been consolidated.

    Args:
        model: the network, as it is trained.
        ewc: an :class:`~ewc_tutorial.ewc.EWC`, or any object with mappings ``fisher`` (or
            ``importance``) and ``anchor``, and perhaps ``penalty`` and ``lam``.
        data: the old task's, in any form that :func:`~ewc_tutorial.fisher.fisher_diagonal` takes.
        new_data: the next task's, to tell whether F was measured on that.
        fisher, anchor: instead of those of ``ewc``: by parameter name, as tensors, arrays or
            objects with a tensor in ``data``, or as a flat vector of all parameters. ``fisher`` may
            hold Kronecker factors, as ``"NAME:A"`` and ``"NAME:G"``, of some layers' weights.
        penalty: returns the penalty as it enters the loss, called as ``penalty()`` or
            ``penalty(model)``. If you multiply by λ outside of it, pass ``lam=1``.
        backward: does what your training does between ``zero_grad()`` and ``optimizer.step()``, on
            fixed samples. The anchor is shifted to see how strongly the springs pull, so it has to
            use the very tensors of ``anchor``.
        measure: your own function that measures F, or factors, called as ``measure(model,
            batches)`` with a list of batches (x, y). F must not change with the size of the
            batches, the model's mode or a second copy of the data.
        checkpoint: the weights as they were saved at the end of the old task, by parameter name.
        lam: λ, instead of that of ``ewc``.
        lr: the learning rate, if the penalty enters the loss or the gradient (not for proximal
            steps): tells whether training would diverge.
        batch_size: of training; default: the data loader's, or 32.
        n_samples: use so many samples of each data set. Where F was measured on all and this takes
            all, the scale of F is checked to 0.2 %, else only to a factor of about four.
        options: ``likelihood``, ``classes``, ``ignore_index`` or ``variance``, with which F was
            measured.

    Returns:
        A :class:`Diagnosis`: true if all is well, else its findings print as one sentence each.

    Raises:
        ValueError: neither ``ewc`` nor both of ``fisher`` and ``anchor`` are given, or a flat
            vector has another length than the parameters; or ``data`` or ``new_data`` have labels
            that are none of the model's.
        TypeError: ``fisher`` or ``anchor`` has another form.
    """
    fisher, anchor, penalty, lam = parts_of(ewc, fisher, anchor, penalty, lam)
    if fisher is None or anchor is None:
        raise ValueError("give ewc, or both fisher and anchor as mappings by parameter name.")
    fisher, anchor = by_name(model, "fisher", fisher), by_name(model, "anchor", anchor)
    if isinstance(ewc, EWC) and not ewc.n_tasks:
        return Diagnosis([NOTHING_CONSOLIDATED])
    report = Diagnosis()
    if isinstance(ewc, EWC):
        values, weights = ewc.values, ewc.weights()
        check_unfrozen(report, ewc)
    else:
        weights = dict(model.named_parameters())
        values = partial(dict, weights)
    protected = values()
    with random_states_kept():
        S = quadratic_of(report, model, protected, fisher)
        fisher = S.importance(protected)
        usable = check_names(report, protected, fisher, anchor)
        usable = check_tensors(report, protected, fisher, anchor, usable)
        live = check_live(report, protected, anchor, usable)
        S = S.only(usable)
        mu = {name: anchor[name] for name in usable}
        check_fisher(
            report, model, ewc, data, new_data, S, mu, live, batch_size, n_samples, options
        )
        check_measure(report, model, data, measure, options)
        check_statistics(report, model, data, n_samples)
        check_checkpoint(report, ewc, mu, checkpoint)
        factor = check_penalty(report, model, weights, values, S, mu, penalty, lam, live)
        check_backward(report, model, weights, S, mu, backward, lam, live, factor)
        check_step(report, S, lam, lr)
    return report
