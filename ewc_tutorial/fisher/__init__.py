"""The diagonal Fisher information of any ``nn.Module``, from exact per-sample gradients.

From the outside in:

* ``diagonal``: :func:`fisher_diagonal` and :func:`explain_fisher`, the two functions to call;
* ``samples``: batches of whatever the data is;
* ``seeds``, ``categorical``, ``likelihoods``: the gradients to start from at the model's outputs;
* ``engine``: carries them to the parameters, each by the fastest rule that is right;
* ``closed_forms``, ``reducers``, ``uses``, ``capture``, ``layer_rules``: closed forms per layer;
* ``per_sample``: what has none, by ``torch.func`` or sample by sample;
* ``undisturbed``: leaves the model as it was.
"""

from ewc_tutorial.fisher.diagonal import explain_fisher, fisher_diagonal
from ewc_tutorial.fisher.likelihoods import ESTIMATORS

__all__ = ["ESTIMATORS", "explain_fisher", "fisher_diagonal"]
