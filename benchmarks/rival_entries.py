"""Which packages ``rivals`` measures, and what a user must know of what they return."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import rival_calls as calls


@dataclass(frozen=True)
class Rival:
    """A call of a package, whether it draws labels, and what a user must know of the result."""

    package: str
    name: str
    call: calls.Call
    note: str
    drawn: bool = False


def laplace(backend: str, says: str) -> Rival:
    note = f"{says}; a sum over samples: divide by N."
    return Rival("laplace-torch", f"DiagLaplace.H, {backend}", calls.laplace(backend), note)


def backpack(quantity: str, attribute: str, reduction: str, note: str) -> Rival:
    call = calls.backpack(quantity, attribute, reduction)
    name = f"{quantity}, reduction {reduction!r}"
    return Rival("backpack-for-pytorch", name, call, note, drawn="MC" in quantity)


RIVALS = (
    Rival("ewc-tutorial", "fisher_diagonal, exact", calls.ours("exact"), "The default."),
    Rival("ewc-tutorial", "fisher_diagonal, empirical", calls.ours("empirical"), ""),
    Rival(
        "ewc-tutorial", "fisher_diagonal, batched", calls.ours("batched"),
        "There to compare with programs that do so.",
    ),
    Rival("torch", "func.vmap(jacrev)", calls.torch_func("exact"), "A recipe of a dozen lines."),
    Rival("torch", "func.vmap(grad)", calls.torch_func("empirical"), "A recipe of a dozen lines."),
    Rival(
        "avalanche-lib", "EWCPlugin", calls.avalanche(),
        "Squares the gradient of each batch's mean loss, and divides by the number of batches; the "
        "batch is that of training. The penalty has no ½.",
    ),
    Rival(
        "avalanche-lib", "EWCPlugin, batches of 1", calls.avalanche(1),
        "With train_mb_size=1 the same code is the empirical F.",
    ),
    Rival(
        "capymoa", "EWC (fd_compute)", calls.capymoa,
        "As Avalanche, in batches of fim_batch_size (32), from the last fim_buffer (256) samples "
        "seen. A comment there speaks of samples; the division is by batches.",
    ),
    Rival(
        "clarena", "EWC, after 1 epoch", calls.clarena(1),
        "Squared batch means weighted with the batches' sizes, although the docstring's formula is "
        "the empirical F.",
    ),
    Rival(
        "clarena", "EWC, after 10 epochs", calls.clarena(10),
        "Divided by the samples seen in all epochs of training: ten times smaller after ten.",
    ),
    Rival(
        "clearn-ai", "EWC.consolidate", calls.clearn,
        "The docstring says empirical Fisher; squared batch means weighted with their sizes, and "
        "no entry is less than 1e-8. Of all batches the first 200 samples by default.",
    ),
    Rival("modelgeometry", "diagonal_fisher", calls.modelgeometry, "Says empirical Fisher."),
    laplace("BackPackGGN", "GGN"), laplace("CurvlinopsGGN", "GGN"), laplace("AsdlGGN", "GGN"),
    laplace("BackPackEF", "Empirical Fisher"), laplace("CurvlinopsEF", "Empirical Fisher"),
    laplace("AsdlEF", "Empirical Fisher"),
    Rival("nngeometry", "FIM, PMatDiag", calls.nngeometry(), "A mean over samples."),
    Rival(
        "nngeometry", "FIM_MonteCarlo, 1 trial", calls.nngeometry(1), "Draws labels.", drawn=True
    ),
    backpack("DiagGGNExact", "diag_ggn_exact", "sum", "Added up over batches, divided by N."),
    backpack(
        "DiagGGNExact", "diag_ggn_exact", "mean",
        "With a loss that is a mean, a mean over each batch: the mean of these gives a smaller "
        "last batch the weight of a whole one.",
    ),
    backpack("DiagGGNMC", "diag_ggn_mc", "sum", "Draws labels. Added up, divided by N."),
    backpack("SumGradSquared", "sum_grad_squared", "sum", "Added up, divided by N."),
    backpack(
        "SumGradSquared", "sum_grad_squared", "mean",
        "With a loss that is a mean, gradients are divided by the batch's size B before they are "
        "squared: the mean over batches is about B times too small.",
    ),
    Rival(
        "curvlinops-for-pytorch", "GGNLinearOperator", calls.curvlinops("GGNLinearOperator"),
        "A matrix that is never formed: the diagonal takes a product per weight.",
    ),
    Rival(
        "curvlinops-for-pytorch", "EFLinearOperator", calls.curvlinops("EFLinearOperator"),
        "Likewise; scaled to a mean over all samples, unlike a squared mean gradient.",
    ),
    Rival(
        "curvlinops-for-pytorch", "KFACLinearOperator", calls.curvlinops("KFACLinearOperator"),
        "Type-2. Kronecker factors are an approximation for the diagonal of weights, too.",
    ),
    Rival(
        "curvlinops-for-pytorch", "EKFACLinearOperator", calls.curvlinops("EKFACLinearOperator"),
        "Type-2. Right in the eigenbasis of the factors, not in that of the weights.",
    ),
    Rival("asdfghjkl", "fisher_exact, diag", calls.asdl("fisher_exact"), "data_size=N: a mean."),
    Rival("asdfghjkl", "fisher_emp, diag", calls.asdl("fisher_emp"), "data_size=N: a mean."),
    Rival("asdfghjkl", "fisher_mc, diag", calls.asdl("fisher_mc"), "Draws labels.", drawn=True),
)  # fmt: skip
