"""The Fisher information of any ``nn.Module``: its diagonal, or Kronecker factors of its layers.

From the outside in:

* ``diagonal``: :func:`fisher_diagonal`, :func:`fisher_factors` and :func:`explain_fisher`, the
  functions to call;
* ``samples``: batches of whatever the data is;
* ``likelihoods``: the gradients to start from at the model's outputs;
* ``engine``: carries them to the parameters, each by the fastest rule that is right;
* ``closed_forms``: squared gradients without gradients, from the inputs and outputs of layers;
* ``per_sample``: what has none, by ``torch.func`` or sample by sample;
* ``undisturbed``: leaves the model as it was.
"""

from ewc_tutorial.fisher.diagonal import explain_fisher, fisher_diagonal, fisher_factors
from ewc_tutorial.fisher.likelihoods import (
    ESTIMATORS,
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
)

__all__ = [
    "ESTIMATORS",
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Likelihood",
    "explain_fisher",
    "fisher_diagonal",
    "fisher_factors",
]
