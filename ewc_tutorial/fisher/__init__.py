"""The Fisher information of any ``nn.Module``: its diagonal, or Kronecker factors of its layers.

From the outside in:

* ``diagonal``: :func:`fisher_diagonal`, :func:`fisher_factors` and :func:`explain_fisher`, the
  functions to call, and ``measurement``: the passes over the data that they make;
* ``samples``: batches of whatever the data is, ``inputs``: all that is done with a model's
  inputs, a tensor or a dictionary of them;
* ``likelihoods``: the gradients to start from at the model's outputs;
* ``engine``: carries them to the parameters, each by the fastest rule that is right;
* ``probe``, ``plans``: which rule that is, found out from a few samples, and remembered;
* ``closed_forms``: squared gradients without gradients, from the inputs and outputs of layers;
* ``per_sample``: what has none, by ``torch.func`` or sample by sample;
* ``groups``: a diagonal in several passes, for want of memory, and ``saved``: one that goes on
  after a kill;
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
