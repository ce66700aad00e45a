"""A plugin for the strategies of Avalanche."""

from __future__ import annotations

from typing import Any

try:
    from avalanche.core import SupervisedPlugin
    from avalanche.models import MultiTaskModule
except ImportError as error:
    raise ImportError(
        "ewc_tutorial.frameworks.avalanche needs Avalanche: pip install 'ewc-tutorial[frameworks]'"
    ) from error
from torch import Tensor
from torch.utils.data import Dataset

from ewc_tutorial.attachment import Attachment
from ewc_tutorial.ewc import EWC

__all__ = ["EWCPlugin"]


class EWCPlugin(SupervisedPlugin):
    """Let an EWC pull while an experience is learned, and consolidate each one that ends.

        ewc = EWC(model, lam=100)
        strategy = Naive(model=model, optimizer=optimizer, plugins=[EWCPlugin(ewc)])

    Avalanche's own plugin of this name squares the gradient of a batch; this one measures the
    Fisher information itself, so its λ is another: Bayes' value is N_old / N_new.

    Args:
        ewc: made with the strategy's model. A head that has grown by further classes is followed.
        every: as for :meth:`EWC.attach <ewc_tutorial.ewc.EWC.attach>`.
        options: for :meth:`EWC.consolidate <ewc_tutorial.ewc.EWC.consolidate>`, as ``estimator``
            and ``n_samples``.

    Raises:
        ValueError: when training begins, the strategy trains another model, or one with a head per
            task label, which needs to be told the task.
    """

    def __init__(self, ewc: EWC, every: int | None = None, **options: Any) -> None:
        super().__init__()
        self.ewc, self.every, self.options = ewc, every, options
        self._attached: Attachment | None = None

    def before_training_exp(self, strategy: Any, *_: Any, **__: Any) -> None:
        if strategy.model is not self.ewc.model:
            raise ValueError("ewc must be made with the strategy's model, not with another one.")
        if isinstance(strategy.model, MultiTaskModule):
            raise ValueError(
                "model must predict from the input alone, but a MultiTaskModule wants the task "
                "label as well: give EWC and the strategy a model without heads per task."
            )
        self._end()  # of a training that ended with an error
        self.ewc.grow_()
        self._attached = self.ewc.attach(strategy.optimizer, self.every)

    def after_training_exp(self, strategy: Any, *_: Any, **__: Any) -> None:
        self._end()
        self.ewc.consolidate(_Pairs(strategy.experience.dataset), **self.options)

    def before_eval(self, strategy: Any, *_: Any, **__: Any) -> None:
        if self._attached is not None:
            self._attached.complete()

    def _end(self) -> None:
        if self._attached is not None:
            self._attached.remove()
            self._attached = None


class _Pairs(Dataset):
    """A dataset of Avalanche without the task labels that it adds to each sample."""

    def __init__(self, samples: Any) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        x, y, *_ = self._samples[index]
        return x, y
