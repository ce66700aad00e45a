"""The textbook versions: slow, short, obviously right.

Each is the answer to an exercise of the course (``reveal`` shows its source) and an oracle for the
tests of the fast version elsewhere in the package. They are in the order of the course. Networks
take inputs ``x`` ``(N, …)`` to logits ``(N, C)``; labels ``y`` are ``(N,)``; a gradient or a
Fisher diagonal is a dict with one tensor per parameter name.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

# --- 00 Start here --------------------------------------------------------------------------


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Return the share of samples whose largest logit is that of their label."""
    right = 0
    for scores, label in zip(logits, y, strict=True):
        if scores.argmax() == label:
            right += 1
    return right / len(y)


def permute_pixels(x: Tensor, order: Tensor) -> Tensor:
    """Return images ``(N, D)`` in which pixel j is the original's pixel ``order[j]``."""
    permuted = torch.empty_like(x)
    for j, source in enumerate(order):
        permuted[:, j] = x[:, source]
    return permuted


# --- 01 From Bayes to Fisher ----------------------------------------------------------------


def gaussian_kl(mean_p: Tensor, precision_p: Tensor, mean_q: Tensor, precision_q: Tensor) -> Tensor:
    """KL(p ‖ q) = ½ [ tr(Q P⁻¹) − D + (m_q − m_p)ᵀ Q (m_q − m_p) + log det P − log det Q ].

    Means are ``(D,)``, precision matrices P and Q ``(D, D)``.
    """
    gap = mean_q - mean_p
    spread = torch.trace(precision_q @ torch.linalg.inv(precision_p)) - len(gap)
    distance = gap @ precision_q @ gap
    log_volumes = torch.logdet(precision_p) - torch.logdet(precision_q)
    return (spread + distance + log_volumes) / 2


def laplace_precision(theta: Tensor, x: Tensor, prior_precision: float) -> Tensor:
    """P = Σ_n p_n (1 − p_n) x_n x_nᵀ + τ I, the Hessian of −log posterior of logistic regression.

    ``theta`` is ``(D,)``, ``x`` is ``(N, D)``, τ is ``prior_precision``, p_n = σ(θᵀx_n).
    """
    precision = prior_precision * torch.eye(len(theta), dtype=theta.dtype)
    for x_n in x:
        p = torch.sigmoid(theta @ x_n)
        precision = precision + p * (1 - p) * torch.outer(x_n, x_n)
    return precision


def logistic_fisher(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """F_i = (1/N) Σ_n E_label[((label − p_n) x_ni)²]: the diagonal, ``(D,)``.

    The expectation is over the labels that the model itself would give, so ``y`` is not used.
    """
    total = torch.zeros_like(theta)
    for x_n in x:
        p = torch.sigmoid(theta @ x_n)
        for label, probability in ((0, 1 - p), (1, p)):
            score = (label - p) * x_n
            total = total + probability * score**2
    return total / len(x)


def nearest_lambda(
    F: Tensor,
    theta_a: Tensor,
    H: Tensor,
    theta_b: Tensor,
    n_a: int,
    n_b: int,
    lambdas: Tensor,
) -> float:
    """Return the λ of ``lambdas`` ``(L,)`` at which EWC ends nearest to the joint optimum.

    The mean losses of A and B, over N_A and N_B samples, are parabolas around θ_A and θ_B ``(D,)``
    with the curvatures F and H ``(D, D)``. Of F, EWC knows the diagonal. The distance is in
    standard deviations of the joint posterior.
    """
    P = n_a * F + n_b * H
    joint = torch.linalg.solve(P, n_a * F @ theta_a + n_b * H @ theta_b)
    distances = []
    for lam in lambdas:
        spring = lam * torch.diag(F.diag())
        end = torch.linalg.solve(H + spring, H @ theta_b + spring @ theta_a)
        distances.append((end - joint) @ P @ (end - joint))
    return float(lambdas[torch.stack(distances).argmin()])


# --- 02 Squared gradients -------------------------------------------------------------------


def logit_fisher(logits: Tensor) -> Tensor:
    """Return E_y[s sᵀ] ``(C, C)`` for the logits ``(C,)`` of one sample.

    s = e_y − p is the score at the logits: the gradient of log p(y), with p = softmax(logits).
    """
    p = logits.softmax(0)
    total = torch.zeros(len(p), len(p), dtype=p.dtype)
    for y in range(len(p)):
        s = -p
        s[y] = s[y] + 1
        total = total + p[y] * torch.outer(s, s)
    return total


def score(model: nn.Module, x: Tensor, y: int | Tensor) -> dict[str, Tensor]:
    """Return the gradient of log p(y | x) of one sample: ``x`` has no batch dimension."""
    log_p = model(x.unsqueeze(0)).log_softmax(1)[0, y]
    gradients = torch.autograd.grad(log_p, list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), gradients, strict=True))


def fisher_exact(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return 1/N Σ_n Σ_c p(c | x_n) (∂ log p(c | x_n))²: every class, as often as it would occur.

    Source: Martens 2020, section 5, whose expectation over y is written out here.
    """
    fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for xi in x:
        p = model(xi.unsqueeze(0)).softmax(1)[0].detach()
        for label in range(len(p)):
            for name, g in score(model, xi, label).items():
                fisher[name] += p[label] * g**2 / len(x)
    return fisher


def fisher_sampled(
    model: nn.Module, x: Tensor, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Return 1/N Σ_n (∂ log p(y | x_n))², with one label y per sample drawn from the model."""
    fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for xi in x:
        p = model(xi.unsqueeze(0)).softmax(1)[0].detach()
        label = torch.multinomial(p, 1, generator=generator)[0]
        for name, g in score(model, xi, label).items():
            fisher[name] += g**2 / len(x)
    return fisher


def fisher_empirical(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return 1/N Σ_n (∂ log p(y_n | x_n))², with the data's labels. It is not the Fisher."""
    fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for xi, yi in zip(x, y, strict=True):
        for name, g in score(model, xi, yi).items():
            fisher[name] += g**2 / len(x)
    return fisher


def fisher_argmax(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return 1/N Σ_n (∂ log p(y | x_n))², with y the model's own top class. It is biased."""
    fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for xi in x:
        label = model(xi.unsqueeze(0)).argmax(1)[0]
        for name, g in score(model, xi, label).items():
            fisher[name] += g**2 / len(x)
    return fisher


def fisher_batched(
    model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 32
) -> dict[str, Tensor]:
    """Return the mean over batches of the squared gradient of their mean loss: a mistake.

    A smaller last batch counts in proportion to its size.
    """
    fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for xs, ys in zip(x.split(batch_size), y.split(batch_size), strict=True):
        loss = functional.cross_entropy(model(xs), ys)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for name, g in zip(fisher, gradients, strict=True):
            fisher[name] += g**2 * len(xs) / len(x)
    return fisher


def fisher_from_batches(
    model: nn.Module, x: Tensor, y: Tensor, batch_size: int
) -> dict[str, Tensor]:
    """Return the empirical Fisher of :func:`fisher_empirical`, whatever the batch size is.

    The data comes in batches, but each sample has a gradient of its own, squared by itself.
    """
    fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for xs, ys in zip(x.split(batch_size), y.split(batch_size), strict=True):
        for loss in functional.cross_entropy(model(xs), ys, reduction="none"):
            gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            for name, g in zip(fisher, gradients, strict=True):
                fisher[name] += g**2 / len(x)
    return fisher


# --- 03 The penalty term --------------------------------------------------------------------


def ewc_penalty(
    theta: dict[str, Tensor], anchor: dict[str, Tensor], fisher: dict[str, Tensor], lam: float
) -> Tensor:
    """Return λ/2 Σ_i F_i (θ_i − θ*_i)², over all entries of all parameters.

    Source: Kirkpatrick et al. 2017, the second term of equation 3.
    """
    total = 0.0
    for name in theta:
        stretch = theta[name] - anchor[name]
        total = total + (fisher[name] * stretch**2).sum()
    return lam / 2 * total


def ewc_gradient(
    theta: dict[str, Tensor], anchor: dict[str, Tensor], fisher: dict[str, Tensor], lam: float
) -> dict[str, Tensor]:
    """Return the gradient of the penalty, λ F_i (θ_i − θ*_i), one tensor per parameter."""
    gradient = {}
    for name in theta:
        gradient[name] = lam * fisher[name] * (theta[name] - anchor[name])
    return gradient


def proximal_step(
    theta: dict[str, Tensor],
    anchor: dict[str, Tensor],
    fisher: dict[str, Tensor],
    lam: float,
    lr: float,
) -> dict[str, Tensor]:
    """Return the θ' that minimises λ/2 Σ F (θ' − θ*)² + Σ (θ' − θ)² / 2η, with η = ``lr``."""
    stepped = {}
    for name in theta:
        x = lr * lam * fisher[name]
        stepped[name] = (theta[name] + x * anchor[name]) / (1 + x)
    return stepped


def convert_lambda(
    lam: float, theirs: dict[str, bool], ours: dict[str, bool], n_old: int, n_new: int
) -> float:
    """Return the λ that means in our convention what ``lam`` means in theirs.

    A convention is a dict of three booleans: ``half`` (is there a ½ before λ?), ``sum_loss`` (is
    the loss the sum over the ``n_new`` samples of the new task, not their mean?) and
    ``sum_fisher`` (is F the sum over the ``n_old`` samples of the old one?).
    """

    def spring(convention: dict[str, bool]) -> float:
        """Return what λ has to be multiplied by, beside a mean loss: ½ or 1, N_old or 1, …"""
        factor = 0.5 if convention["half"] else 1.0
        factor *= n_old if convention["sum_fisher"] else 1
        return factor / (n_new if convention["sum_loss"] else 1)

    return lam * spring(theirs) / spring(ours)


def collapse_quadratics(
    fishers: list[Tensor], anchors: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return S, μ and c with Σ_t Σ_i F_t,i (θ_i − θ*_t,i)² = Σ_i S_i (θ_i − μ_i)² + c for all θ.

    Args:
        fishers, anchors: one tensor ``(P,)`` per task. Every entry needs an F > 0 in some task.

    Returns:
        S ``(P,)``, μ ``(P,)`` and the scalar c.
    """
    S = torch.zeros_like(fishers[0])
    weighted = torch.zeros_like(fishers[0])
    for F, anchor in zip(fishers, anchors, strict=True):
        S = S + F
        weighted = weighted + F * anchor
    mu = weighted / S
    c = torch.zeros(())
    for F, anchor in zip(fishers, anchors, strict=True):
        c = c + (F * (mu - anchor) ** 2).sum()
    return S, mu, c


# --- 04 Forgetting curves -------------------------------------------------------------------


def average_accuracy(R: Tensor) -> float:
    """Return the mean of the last row of the accuracy matrix ``(T, T)``.

    Source: Lopez-Paz and Ranzato 2017, equation 2.
    """
    total = 0.0
    for j in range(len(R)):
        total += float(R[-1, j])
    return total / len(R)


def forgetting(R: Tensor) -> float:
    """Return the mean over all tasks but the last of: best accuracy so far − accuracy at the end.

    R[i, j] is the accuracy on task j after learning task i. Source: Chaudhry et al. 2018,
    equation 3.
    """
    n_tasks = len(R)
    total = 0.0
    for j in range(n_tasks - 1):
        best = max(float(R[i, j]) for i in range(n_tasks - 1))
        total += best - float(R[n_tasks - 1, j])
    return total / (n_tasks - 1)


def backward_transfer(R: Tensor) -> float:
    """Return the mean over all tasks but the last of: accuracy at the end − once it was learned.

    Source: Lopez-Paz and Ranzato 2017, equation 3.
    """
    n_tasks = len(R)
    total = 0.0
    for j in range(n_tasks - 1):
        total += float(R[n_tasks - 1, j] - R[j, j])
    return total / (n_tasks - 1)


def fisher_overlap(F1: Tensor, F2: Tensor) -> Tensor:
    """Return 1 − ½ Σ_i (√F̂1_i − √F̂2_i)², where F̂ is F divided by its sum; both are ``(P,)``.

    Source: Kirkpatrick et al. 2017, appendix 4.3, for diagonal Fisher matrices.
    """
    first = torch.sqrt(F1 / F1.sum())
    second = torch.sqrt(F2 / F2.sum())
    return 1 - ((first - second) ** 2).sum() / 2


def descend_with_ewc(
    gradient: Callable[[Tensor], Tensor],
    anchor: Tensor,
    fisher: Tensor,
    lam: float,
    lr: float,
    steps: int,
) -> Tensor:
    """Learn task B by gradient descent from A's optimum, held by EWC; return the weights ``(P,)``.

    Args:
        gradient: takes weights θ ``(P,)`` to the gradient of task B's mean loss there.
        anchor: θ* after task A, ``(P,)``.
        fisher: F of task A, ``(P,)``.
        lam: λ.
        lr: η.
        steps: number of steps.
    """
    theta = anchor.clone()
    x = lr * lam * fisher
    for _ in range(steps):
        theta = theta - lr * gradient(theta)
        theta = (theta + x * anchor) / (1 + x)
    return theta


def run_and_bug(R: Tensor) -> tuple[int, int]:
    """Return which of the runs is wrong, counted from 0, and which of four bugs it has.

    ``R`` ``(runs, 3, 3)`` are accuracy matrices of EWC on permuted pixels. The bugs: 0, nothing is
    ever consolidated; 1, only task A is; 2, from task B on the learning rate is nearly zero; 3, all
    test images have the pixels of the task just learned. A right run loses less than 0.2 at a time.
    """
    for run, accuracy in enumerate(R):
        if accuracy[0, 1] > 0.5:  # it knows B before it has seen it
            return run, 3
        if accuracy[1, 1] < 0.5:  # it does not learn B
            return run, 2
        if accuracy[0, 0] - accuracy[1, 0] > 0.2:  # B destroys A
            return run, 0
        if accuracy[1, 1] - accuracy[2, 1] > 0.2:  # C destroys B
            return run, 1
    raise ValueError("R must hold a run with one of the four bugs, but none has.")


# --- 05 The λ lab ---------------------------------------------------------------------------


def smallest_good_lambda(lambdas: Tensor, accuracies: Tensor) -> float:
    """Return the smallest λ whose mean accuracy is within one standard error of the best mean.

    ``lambdas`` are ``(L,)``, ``accuracies`` ``(L, S)`` for S seeds; the standard error is that of
    the best λ.
    """
    means = accuracies.mean(dim=1)
    best = means.argmax()
    error = accuracies[best].std(correction=1) / accuracies.shape[1] ** 0.5
    good = [lam for lam, mean in zip(lambdas, means, strict=True) if mean >= means[best] - error]
    return float(min(good))


def predicted_accuracy(lambdas: Tensor, values: Tensor, smaller_by: float, lam: float) -> Tensor:
    """Return the accuracy that a sweep over λ predicts for a run whose F is smaller.

    ``lambdas`` ``(L,)`` ascend and ``values`` ``(L,)`` are the accuracies that they gave. The new
    F is the old one divided by ``smaller_by``, and ``lam`` is the λ of the new run. Between two
    points of the sweep the line is straight in log λ; next to 0, which has no logarithm, in λ.
    """
    felt = lam / smaller_by  # λF is all that the network feels
    for i in range(len(lambdas) - 1):
        low, high = float(lambdas[i]), float(lambdas[i + 1])
        if low <= felt <= high:
            t = math.log(felt / low) / math.log(high / low) if low > 0 else felt / high
            return (1 - t) * values[i] + t * values[i + 1]
    raise ValueError(f"lam / smaller_by must be in {lambdas[0]} to {lambdas[-1]}, not {felt}.")


# --- 06 Many tasks --------------------------------------------------------------------------


def one_task_more(
    S: Tensor, mu: Tensor, c: Tensor, F: Tensor, here: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return S', μ', c' with S'(θ − μ')² + c' = S (θ − μ)² + c + F (θ − θ_here)² for all θ.

    All are ``(P,)`` but the scalar c; sums over the entries are understood. S + F > 0 everywhere.
    """
    new_S = S + F
    new_mu = (S * mu + F * here) / new_S
    new_c = c + (S * (new_mu - mu) ** 2).sum() + (F * (new_mu - here) ** 2).sum()
    return new_S, new_mu, new_c


def run_with_the_bug(
    paths: Tensor, optima: Tensor, fishers: Tensor, gamma: float
) -> tuple[int, int]:
    """Return which run does not follow the rule `online`, and at which task that first shows.

    ``paths`` ``(R, T, P)`` are the weights of R runs after each of T tasks, ``optima`` and
    ``fishers``, of the same shape, what their tasks are: losses ½ Σ F (θ − m)², λ = 1. A right run
    ends each task within 0.01 of where it should. Runs are counted from 0, tasks from 1.
    """
    S, mu = torch.zeros_like(optima[:, 0]), torch.zeros_like(optima[:, 0])
    for t in range(paths.shape[1]):
        F, m, here = fishers[:, t], optima[:, t], paths[:, t]
        expected = (S * mu + F * m) / (S + F)
        off = (here - expected).abs().amax(dim=1)
        if off.max() > 0.01:
            return int(off.argmax()), t + 1
        S, mu = gamma * S + F, here
    raise ValueError("paths must hold a run that does not follow the rule, but all do.")


def share_free(S: Tensor, lr: float, lam: float, steps: int) -> float:
    """Return the share of weights that a constant push moves at least half as far as if S were 0.

    ``S`` is ``(P,)``. Each of the ``steps`` steps is a gradient step and a proximal step; the
    weights begin at the anchor 0.
    """
    theta = torch.zeros_like(S)
    for _ in range(steps):
        theta = theta + lr  # the gradient is −1
        theta = theta / (1 + lr * lam * S)  # the pull towards 0
    way_of_a_free_weight = lr * steps
    return (theta >= way_of_a_free_weight / 2).double().mean().item()


# --- 07 Three scenarios ---------------------------------------------------------------------


def masked_log_probs(logits: Tensor, active: Tensor) -> Tensor:
    """Return log p(class | x, the class is active), ``(N, number of active classes)``.

    ``logits`` are ``(N, C)``; ``active`` is boolean ``(C,)``. p is the softmax of the active
    logits alone.
    """
    rows = []
    for scores in logits:
        kept = scores[active]
        rows.append(kept - torch.logsumexp(kept, dim=0))
    return torch.stack(rows)


def three_accuracies(logits: Tensor, y: Tensor, per_task: int) -> tuple[float, float, float]:
    """Return the accuracies of one network's logits ``(N, C)`` under three questions.

    Task-incremental: which class of its task? Domain-incremental: which place within its task,
    whatever the task? Class-incremental: which class of all? Task t has the classes
    t·per_task … (t + 1)·per_task − 1; its places are counted from 0.
    """
    task_right = domain_right = class_right = 0
    for scores, label in zip(logits, y, strict=True):
        first = label // per_task * per_task
        own = scores[first : first + per_task]
        task_right += own.argmax() == label - first
        domain_right += scores.argmax() % per_task == label % per_task
        class_right += scores.argmax() == label
    return task_right.item() / len(y), domain_right.item() / len(y), class_right.item() / len(y)


def grow_head(weight: Tensor, fisher: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
    """Return a head's weight and its Fisher information after new classes have come.

    ``weight`` and ``fisher`` are ``(C, D)``, ``fresh`` ``(K, D)`` holds the initial rows of the K
    new classes. The old rows stay what they are; the new ones have no spring.
    """
    return torch.cat([weight, fresh]), torch.cat([fisher, torch.zeros_like(fresh)])


def design_head(
    tasks: list[tuple[int, ...]], told: bool
) -> list[tuple[list[int], list[int], list[int]]]:
    """Return for each task the rows of its classes, those that compete, and those with a spring.

    ``tasks`` are the classes of each task; a class may come again later. ``told`` is whether the
    task is known when an answer is asked for. Rows are numbered as their classes first come.
    """
    row_of: dict[int, int] = {}
    plan = []
    for classes in tasks:
        before = list(row_of.values())
        for label in classes:
            row_of.setdefault(label, len(row_of))
        rows = [row_of[label] for label in classes]
        competing = sorted(rows) if told else list(row_of.values())
        plan.append((rows, competing, [row for row in before if row in competing]))
    return plan


# --- 08 Bugs in the wild --------------------------------------------------------------------


def accumulated_gradient(
    task_gradients: list[Tensor], theta: Tensor, anchor: Tensor, fisher: Tensor, lam: float
) -> Tensor:
    """Return the gradient ``(P,)`` of one optimizer step that is spread over k micro-batches.

    ``task_gradients`` are the k gradients of the micro-batches' mean losses, all of equal size.
    """
    total = torch.zeros_like(theta)
    for g in task_gradients:
        total = total + g / len(task_gradients)
    return total + lam * fisher * (theta - anchor)


def grown_head_penalty(weight: Tensor, anchor: Tensor, fisher: Tensor, lam: float) -> Tensor:
    """Return the penalty on a head ``(new classes, features)`` whose first rows are the old ones.

    ``anchor`` and ``fisher`` are ``(old classes, features)``; the further rows are free.
    """
    total = 0.0
    for row in range(len(anchor)):
        total = total + (fisher[row] * (weight[row] - anchor[row]) ** 2).sum()
    return lam / 2 * total


# --- 09 A language model that forgets ---------------------------------------------------------


def sequence_log_prob(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability that a causal language model gives to one sequence.

    ``logits`` is ``(T, V)``, ``labels`` ``(T,)``: the sequence itself, −100 where a token does not
    count. The logits at place t are about the token at place t + 1.
    """
    total = torch.zeros(())
    for t in range(len(labels) - 1):
        if labels[t + 1] != -100:
            total = total + logits[t].log_softmax(dim=0)[labels[t + 1]]
    return total


def fisher_of_sequences(token_gradients: list[Tensor]) -> Tensor:
    """Return the Fisher diagonal ``(P,)``: the mean over sequences of the squared score.

    ``token_gradients`` holds, for each sequence, the gradients ``(T_n, P)`` of its tokens'
    log-probabilities.
    """
    total = 0.0
    for gradients in token_gradients:
        score = gradients.sum(dim=0)
        total = total + score**2
    return total / len(token_gradients)


def lambda_of_a_program(
    program: Callable[[list[Tensor], int], Tensor],
    lam: float,
    n_sequences: int,
    length: int,
    batch_size: int,
) -> float:
    """Return the λ in our convention that does what ``lam`` does in a program, by an experiment.

    ``program(token_gradients, batch_size)`` returns what it calls F, ``(P,)``, of a list of
    gradients ``(T, P)``, one per sequence.
    """
    generator = torch.Generator().manual_seed(0)
    # Independent, with mean zero: what scores are near an optimum.
    scores = [torch.randn(length, 1000, generator=generator) for _ in range(n_sequences)]
    theirs = program(scores, batch_size).sum()
    return float(lam * theirs / fisher_of_sequences(scores).sum())


def lora_gradients(G: Tensor, A: Tensor, B: Tensor, s: float) -> tuple[Tensor, Tensor]:
    """Return the gradients by A ``(r, in)`` and B ``(out, r)`` of a loss that depends on W + s·BA.

    ``G`` ``(out, in)`` is its gradient by the weight W.
    """
    return s * B.T @ G, s * G @ A.T


# --- 10 A speech recogniser that learns -----------------------------------------------------


def ctc_collapse(path: list[int], blank: int) -> list[int]:
    """Return the text of a CTC path: symbols that repeat are merged, then blanks removed.

    A symbol may come twice in the text only if a blank stands between the two in the path.
    """
    text = []
    previous = blank
    for symbol in path:
        if symbol != previous and symbol != blank:
            text.append(symbol)
        previous = symbol
    return text


def word_error_rate(text: list[str], heard: list[str]) -> float:
    """Return the least number of changes per word of ``text`` that turn it into ``heard``.

    A change replaces, deletes or inserts one word. ``errors[i][j]`` counts them for the first i
    words of the text and the first j of what was heard.
    """
    errors = [[i + j for j in range(len(heard) + 1)] for i in range(len(text) + 1)]
    for i in range(1, len(text) + 1):
        for j in range(1, len(heard) + 1):
            replaced = errors[i - 1][j - 1] + (text[i - 1] != heard[j - 1])
            errors[i][j] = min(replaced, errors[i - 1][j] + 1, errors[i][j - 1] + 1)
    return errors[-1][-1] / len(text)


def lam_by_drift(lambdas: Tensor, new: Tensor, drift: Tensor, most: float) -> float:
    """Return the λ with the least error on the new voice that drifts no further than is allowed.

    Args:
        lambdas: (L,), in any order.
        new: (L,), error rate on held-out corrections at each λ.
        drift: (L,), how often the trained model disagrees with the base model on other sound.
        most: the drift that is allowed. If every λ drifts further, the largest is the safest.
    """
    allowed = drift <= most
    if not allowed.any():
        return lambdas.max().item()
    return lambdas[allowed][new[allowed].argmin()].item()


# --- 11 Forgetting on purpose ---------------------------------------------------------------


def left_of_update(delta: Tensor, H: Tensor, lr: float, steps: int) -> Tensor:
    """Return what is left of an earlier task's update after gradient descent on a later task.

    The later task's loss is a bowl, ½ (θ − b)ᵀ H (θ − b). Two descents on it, one from θ and one
    from θ + Δ, differ after k steps of size η by (I − ηH)ᵏ Δ.

    ``delta`` is Δ ``(D,)``, ``H`` is ``(D, D)``, ``lr`` is η, ``steps`` is k.
    """
    for _ in range(steps):
        delta = delta - lr * H @ delta
    return delta


def drop_task(S: Tensor, mu: Tensor, F: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Take one task's spring F around θ_t out of S = Σ F_t around μ = Σ F_t θ_t / S; all ``(P,)``.

    Return S′ and μ′. Where no other task has a spring, S′ is 0; μ′ is set to 0 there.
    """
    kept, anchor = [], []
    for i in range(len(S)):
        stiffness = S[i] - F[i]
        pull = S[i] * mu[i] - F[i] * theta[i]
        kept.append(stiffness)
        anchor.append(pull / stiffness if stiffness > 0 else torch.zeros_like(pull))
    return torch.stack(kept), torch.stack(anchor)


def disagreement_in_spreads(answers: Tensor, retrained: Tensor) -> float:
    """Return how far a network is from retrained ones, in units of their own spread.

    ``answers`` ``(N,)`` are its classes for N inputs, ``retrained`` ``(R, N)`` those of R networks
    that were retrained in the same way. The mean share of inputs on which it disagrees with a
    retrained one is divided by the mean over all pairs of *different* retrained ones.
    """
    R = len(retrained)
    to_them = [(answers != one).double().mean() for one in retrained]
    among_them = [
        (retrained[i] != retrained[j]).double().mean() for i in range(R) for j in range(i)
    ]
    return (sum(to_them) / len(to_them) / (sum(among_them) / len(among_them))).item()


# --- 12 Does it reproduce? ------------------------------------------------------------------


def standard_errors_apart(values: list[float], published: float, published_se: float) -> float:
    """Return how many standard errors the mean of ``values`` lies above a published mean.

    ``published_se`` is the published mean's own standard error, independent of ours.
    """
    n = len(values)
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return (mean - published) / math.sqrt(variance / n + published_se**2)


def paired_difference(a: list[float], b: list[float]) -> tuple[float, float]:
    """Return the mean of a − b and its standard error; ``a[i]`` and ``b[i]`` share a seed."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    return mean, math.sqrt(variance / n)


# --- 13 Beyond the diagonal -----------------------------------------------------------------


def mean_over_signs(F: Tensor, step: Tensor) -> float:
    """Return the mean of ½ vᵀFv over all v that have the entries of ``step``, each with any sign.

    F is ``(P, P)`` and symmetric. Of F_ij v_i v_j the mean over the signs is zero for i ≠ j.
    """
    total = 0.0
    for i in range(len(step)):
        total += F[i, i].item() * step[i].item() ** 2
    return 0.5 * total


def blindness(F: Tensor) -> float:
    """Return how many times at most vᵀFv is larger than what the diagonal of F says of it.

    F is ``(P, P)``, symmetric, with a diagonal above zero. In the unit of each weight's own
    stiffness, u = √F_ii v, the diagonal says uᵀu, and F becomes a matrix of correlations.
    """
    scale = F.diagonal().sqrt()
    correlations = F / torch.outer(scale, scale)
    return torch.linalg.eigvalsh(correlations)[-1].item()


def layer_factors(a: Tensor, g: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Kronecker factors A ``(I + 1, I + 1)`` and G ``(O, O)`` of a linear layer.

    Args:
        a: ``(N, I)`` what went into the layer.
        g: ``(N, C, O)`` the gradient of log p(c | x_n) by what came out of it, for each class c.
        p: ``(N, C)`` the probabilities of the classes.
    """
    a = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], dim=1)  # the bias has the input 1
    A = torch.zeros(a.shape[1], a.shape[1], dtype=a.dtype)
    G = torch.zeros(g.shape[2], g.shape[2], dtype=g.dtype)
    for n in range(len(a)):
        A = A + torch.outer(a[n], a[n]) / len(a)
        for c in range(p.shape[1]):
            G = G + p[n, c] * torch.outer(g[n, c], g[n, c]) / len(a)
    return A, G


def kronecker_step(
    W: Tensor, anchor: Tensor, A: Tensor, G: Tensor, lam: float, lr: float
) -> Tensor:
    """Return the W' that minimises λ/2 Σ Δ ∘ (GΔA) + Σ (W' − W)² / 2η, Δ = W' − W*, η = ``lr``.

    All weights are ``(O, I)``, with the bias as a column; A is ``(I, I)``, G ``(O, O)``.
    """
    a, U_a = torch.linalg.eigh(A)
    g, U_g = torch.linalg.eigh(G)
    rotated = U_g.T @ (W - anchor) @ U_a
    rotated = rotated / (1 + lr * lam * torch.outer(g, a))
    return anchor + U_g @ rotated @ U_a.T


# --- 14 Which importance? -------------------------------------------------------------------


def path_importance(gradients: list[Tensor], weights: list[Tensor], damping: float) -> Tensor:
    """Return how much each weight has brought the loss down, over how far it has gone (SI).

    ``gradients`` has one ``(P,)`` per step, taken before it; ``weights`` one more, the start first.
    """
    gain = torch.zeros_like(weights[0])
    for t, g in enumerate(gradients):
        gain -= g * (weights[t + 1] - weights[t])
    distance = weights[-1] - weights[0]
    return (gain / (distance**2 + damping)).clamp(min=0)


def held_against(
    a_search: Tensor, a_report: Tensor, b_search: Tensor, b_report: Tensor
) -> tuple[float, float]:
    """Return by how much method a beats b on the reported seeds, and the standard error of that.

    Each is ``(settings, seeds)`` of accuracies: rows are learning rates and λ, columns are seeds,
    the same for a and b. Each method has the setting that is best on the seeds of its search.
    """
    a = a_report[a_search.mean(1).argmax()]
    b = b_report[b_search.mean(1).argmax()]
    return paired_difference(a.tolist(), b.tolist())
