"""Elastic Weight Consolidation: the quadratic penalty that remembers earlier tasks.

Objective on the current task B (Kirkpatrick et al. 2017, equation 3, in the course's notation):

    L_B(θ) + (λ/2) Σ_i F_i (θ_i − θ*_i)²

Whatever the rule and the number of tasks, an :class:`EWC` keeps one quadratic: an importance S and
an anchor μ per parameter. Under the rule ``separate`` that is exact, not an approximation: a sum
of quadratics is a quadratic,

    Σ_t F_t (θ − θ_t)² = S (θ − μ)² + constant,   S = Σ_t F_t,   μ = Σ_t F_t θ_t / S.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.fisher import fisher_diagonal
from ewc_tutorial.precision import widest

RULES = ("separate", "latest", "online", "average")


class EWC(nn.Module):
    """Protect what a model has learned while it learns something else.

    After each task call :meth:`consolidate`; while training the next one add the penalty in one of
    three ways: :meth:`penalty` as a loss term, :meth:`add_gradient_` after ``backward()``, or
    :meth:`proximal_step_` after ``optimizer.step()``. The last is stable at every λ; the first two
    diverge under gradient descent with step η once η·λ·max S > 2.

    The model is referred to, not owned: its parameters are not parameters of this module and its
    weights are not in ``state_dict()``, which holds only what was consolidated.

    Args:
        model: the network to protect. Its trainable parameters at this moment are protected.
        lam: λ ≥ 0, the strength of the penalty. With the *mean* loss of the new task and F a mean
            over samples, Bayes' rule gives λ = N_A / N_B. It may be changed at any time.
        rule: how tasks combine.
            ``separate``: the sum of one quadratic per task (Kirkpatrick et al. 2017).
            ``latest``: S = Σ F_t around the last optimum (Huszár 2018).
            ``online``: S ← γS + F around the last optimum (Schwarz et al. 2018).
            ``average``: S the weighted mean of the F_t, around the last optimum.
        gamma: γ in [0, 1], the decay of earlier tasks; only for ``online``.
        include, exclude: shell patterns of parameter names to protect or to leave free, such as
            ``exclude="head.*"``.

    Raises:
        ValueError: an argument is out of range, a pattern matches no trainable parameter, or no
            parameter is left to protect.
    """

    def __init__(
        self,
        model: nn.Module,
        lam: float = 1.0,
        rule: str = "separate",
        gamma: float = 1.0,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, not {rule!r}.")
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma must be between 0 and 1, not {gamma!r}.")
        if gamma != 1.0 and rule != "online":
            raise ValueError(f"gamma applies to the rule 'online' only, not to {rule!r}.")
        # A plain attribute assignment would make the model a submodule of this one.
        object.__setattr__(self, "_model", model)
        self.lam = lam
        self.rule = rule
        self.gamma = float(gamma)
        self.names = _select(self._candidates(), include, exclude)
        #: Number of tasks consolidated so far.
        self.n_tasks = 0
        self._constant = 0.0
        self._total_weight = 0.0
        self._pulls, self._scaled_anchors = _Remembered(), _Remembered()
        for name, parameter in self._protected().items():
            # Sums of many small terms need float32 even where the model is stored in half of it.
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            self.register_buffer(_key("importance", name), torch.zeros_like(parameter, dtype=dtype))
            self.register_buffer(_key("anchor", name), torch.zeros_like(parameter, dtype=dtype))

    @property
    def model(self) -> nn.Module:
        """The network that is protected."""
        return self._model

    @property
    def lam(self) -> float:
        """λ, the strength of the penalty; assigning checks that it is finite and not negative."""
        return self._lam

    @lam.setter
    def lam(self, value: float) -> None:
        self._lam = _non_negative("lam", value)

    @property
    def importance(self) -> dict[str, Tensor]:
        """S per protected parameter, zero before the first task."""
        return {name: self._buffers[_key("importance", name)] for name in self.names}

    @property
    def anchor(self) -> dict[str, Tensor]:
        """μ per protected parameter, meaningful where S > 0."""
        return {name: self._buffers[_key("anchor", name)] for name in self.names}

    def consolidate(
        self, data: Any, estimator: str = "exact", *, weight: float = 1.0, **options: Any
    ) -> None:
        """Measure the Fisher information on ``data`` at the present weights and remember both.

        Call it with the *finished* task's training data, after its last training step. The
        arguments other than ``weight`` are those of
        :func:`~ewc_tutorial.fisher.fisher_diagonal`, as are the errors; :meth:`merge` has the rest.
        """
        self.merge(fisher_diagonal(self._model, data, estimator, **options), weight)

    @torch.no_grad()
    def merge(
        self,
        fisher: Mapping[str, Tensor],
        weight: float = 1.0,
        at: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take a task in, given its Fisher diagonal at the model's present weights.

        Args:
            fisher: per parameter name a tensor of the parameter's shape, finite and ≥ 0; further
                names are ignored.
            weight: multiplies this task's Fisher (its weight in the mean under ``average``). Use
                N_t over the mean number of samples for tasks of different sizes.
            at: per parameter name the weights at which the Fisher was measured, if these are not
                the model's present ones.

        Raises:
            ValueError: a protected parameter has no Fisher, or one that is not finite, negative or
                of another shape, or the same of ``at``; nothing is changed then.
        """
        weight = _non_negative("weight", weight)
        updates = []
        constant = self._constant
        total_weight = self._total_weight + weight
        for name, parameter in self._protected().items():
            S, anchor = self.importance[name], self.anchor[name]
            F = _checked_fisher(fisher, name, parameter).to(S) * weight
            here = (parameter if at is None else _checked_weights(at, name, parameter)).detach()
            here = here.to(anchor)
            if not here.isfinite().all():
                where = "of the model" if at is None else "in at"
                raise ValueError(f"Parameter {name!r} {where} is not finite.")
            if self.rule == "separate":
                total = S + F
                share = torch.where(total > 0, F / total, 1.0)
                offset = here - anchor
                # What two quadratics around different anchors still cost at their common minimum.
                constant += (S * share * offset.square()).sum(dtype=widest(S.device)).item()
                updates.append((total, anchor + share * offset))
            elif self.rule == "average":
                step = weight / total_weight if total_weight else 0.0
                updates.append((S + step * (F / weight - S) if weight else S, here))
            else:
                updates.append((self.gamma * S + F, here))
        for name, (S, anchor) in zip(self.names, updates, strict=True):
            self.importance[name].copy_(S)
            self.anchor[name].copy_(anchor)
        self._constant, self._total_weight = constant, total_weight
        self.n_tasks += 1

    def reset(self) -> None:
        """Forget everything that was consolidated; λ, the rule and the names stay."""
        for buffer in self.buffers():
            buffer.zero_()
        self.n_tasks, self._constant, self._total_weight = 0, 0.0, 0.0

    @torch.no_grad()
    def grow_(self) -> None:
        """Follow protected parameters that have got further rows at their end, as a head for more
        classes does: S and μ get zeros for the new rows, which no earlier task has used.

        Raises:
            RuntimeError: a parameter is gone or has changed in another way than by further rows.
        """
        parameters = dict(self._model.named_parameters())
        grown = {}
        for name in self.names:
            if name not in parameters:
                continue  # _protected() says so below
            new, old = parameters[name].shape, self.anchor[name].shape
            if new != old and new and new[0] > old[0] and new[1:] == old[1:]:
                grown[name] = new[0] - old[0]
        for name, extra in grown.items():
            for kind in ("importance", "anchor"):
                values = self.get_buffer(_key(kind, name))
                rows = values.new_zeros(extra, *values.shape[1:])
                self.register_buffer(_key(kind, name), torch.cat([values, rows]))
        self._protected()

    def penalty(self) -> Tensor:
        """Return λ/2 Σ_t Σ_i F_t,i (θ_i − θ*_t,i)² as a differentiable scalar.

        Under ``separate`` this is the true sum over all tasks, the constant that the collapse to
        one quadratic leaves included. Before the first :meth:`consolidate` it is zero.
        """
        total: Tensor | float = self._constant
        for name, parameter in self._protected().items():
            total = total + (self.importance[name] * (parameter - self.anchor[name]).square()).sum()
        return 0.5 * self.lam * total

    @torch.no_grad()
    def add_gradient_(self) -> None:
        """Add the penalty's gradient λS(θ − μ) to every ``.grad``, without an autograd graph.

        Call it between ``loss.backward()`` and ``optimizer.step()``, once per optimizer step; with
        a gradient scaler, after ``scaler.unscale_(optimizer)``.
        """
        if not self.n_tasks or not self.lam:
            return
        parameters, importance, anchors = self._aligned()
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        if not _same_dtypes(gradients, parameters, anchors):
            # In half precision the difference has to be taken before anything is rounded.
            offsets = torch._foreach_sub(parameters, anchors)
            torch._foreach_addcmul_(gradients, offsets, importance, value=self.lam)
            return
        # λSθ − λSμ instead of λS(θ − μ) needs no room for the differences: a third faster. It
        # costs no precision, as its rounding error is that of storing θ: λS times an ulp of θ.
        scaled = self._scaled_anchors.get(
            (self.lam,),
            importance + anchors,
            lambda: [self.lam * S * mu for S, mu in zip(importance, anchors, strict=True)],
        )
        torch._foreach_addcmul_(gradients, parameters, importance, value=self.lam)
        torch._foreach_sub_(gradients, scaled)

    @torch.no_grad()
    def proximal_step_(self, lr: float) -> None:
        """Move the weights to θ ← (θ + ηλSμ) / (1 + ηλS), with η = ``lr``.

        Call it after ``optimizer.step()`` on the task's own loss. It minimises
        (λ/2) S (θ − μ)² + (θ − θ_now)² / 2η exactly, so it is stable at every λ; for small ηλS it
        is the gradient step. With Adam, η stays the plain step: the penalty is then decoupled from
        Adam's scaling, as weight decay is in AdamW.

        Raises:
            ValueError: ``lr`` is negative or not finite.
        """
        lr = _non_negative("lr", lr)
        if not self.n_tasks or not self.lam or not lr:
            return
        parameters, importance, anchors = self._aligned()
        pulls = self._pulls.get(
            (lr, self.lam),
            importance,
            # Written as 1 / (1 + 1/x) the weight is right for x = 0 and for x = ∞.
            lambda: [1 / (1 + 1 / (lr * self.lam * S)) for S in importance],
        )
        if _same_dtypes(parameters, anchors):
            torch._foreach_lerp_(parameters, anchors, pulls)
            return
        # A model in half precision: step in the anchor's precision, then round once.
        for parameter, anchor, pull in zip(parameters, anchors, pulls, strict=True):
            parameter.copy_(parameter.to(anchor).lerp_(anchor, pull))

    def extra_repr(self) -> str:
        gamma = f", gamma={self.gamma:g}" if self.rule == "online" else ""
        return (
            f"lam={self.lam:g}, rule={self.rule!r}{gamma}, n_tasks={self.n_tasks}, "
            f"parameters={len(self.names)}"
        )

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "gamma": self.gamma,
            "lam": self.lam,
            "n_tasks": self.n_tasks,
            "constant": self._constant,
            "total_weight": self._total_weight,
        }

    def set_extra_state(self, state: Any) -> None:
        self.gamma, self.lam, self.n_tasks = state["gamma"], state["lam"], state["n_tasks"]
        self._constant, self._total_weight = state["constant"], state["total_weight"]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Restore what another :class:`EWC` consolidated, its λ and γ included.

        Raises:
            ValueError: the state was made under another rule.
            RuntimeError: names or shapes do not match; nothing is changed then.
        """
        saved_rule = state_dict.get("_extra_state", {}).get("rule", self.rule)
        if saved_rule != self.rule:
            raise ValueError(
                f"state_dict was consolidated under the rule {saved_rule!r}: build "
                f"EWC(model, rule={saved_rule!r}) to load it, not rule={self.rule!r}."
            )
        mine = self.state_dict()
        for key, value in state_dict.items():
            if key in mine and key != "_extra_state" and value.shape != mine[key].shape:
                raise RuntimeError(
                    f"{key!r} of state_dict has shape {tuple(value.shape)}, but the model's "
                    f"parameter has {tuple(mine[key].shape)}."
                )
        if kwargs.get("strict", args[0] if args else True) and mine.keys() != state_dict.keys():
            raise RuntimeError(
                "state_dict protects other parameters than this EWC: "
                f"{', '.join(sorted(mine.keys() ^ state_dict.keys()))}."
            )
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _candidates(self) -> list[str]:
        """Return the names that may be protected."""
        return [name for name, p in self._model.named_parameters() if p.requires_grad]

    def _current(self) -> dict[str, Tensor]:
        """Return what the penalty is a function of, by name: here the parameters themselves."""
        return dict(self._model.named_parameters())

    def _protected(self) -> dict[str, Tensor]:
        """Return the protected parameters, having checked that they are those of the beginning."""
        parameters = self._current()
        protected = {}
        for name in self.names:
            if name not in parameters:
                raise RuntimeError(
                    f"The model has no parameter {name!r} any more: make a new EWC, or leave that "
                    "parameter out with exclude."
                )
            buffer = self._buffers.get(_key("anchor", name))
            if buffer is not None and buffer.shape != parameters[name].shape:
                raise RuntimeError(
                    f"Parameter {name!r} has shape {tuple(parameters[name].shape)}, but was "
                    f"{tuple(buffer.shape)}: call grow_() if it has got further rows, else make a "
                    "new EWC, or leave it out with exclude."
                )
            protected[name] = parameters[name]
        if (
            self._buffers
            and (device := parameters[self.names[0]].device)
            != next(iter(self._buffers.values())).device
        ):
            # The model has moved since: follow it.
            self.to(device)
        return protected

    def _aligned(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return parameters, S and μ as lists in one order, as the fused operations need them."""
        return (
            list(self._protected().values()),
            list(self.importance.values()),
            list(self.anchor.values()),
        )


class L2(EWC):
    """The baseline that treats all weights alike: λ/2 ‖θ − θ*‖², around the last optimum.

    This is Kirkpatrick's L2 in figure 2A: an EWC whose Fisher information is one everywhere.
    """

    def __init__(
        self,
        model: nn.Module,
        lam: float = 1.0,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(model, lam, rule="average", include=include, exclude=exclude)

    def consolidate(self, data: Any = None, *args: Any, **options: Any) -> None:
        """Make the present weights the anchor; data and estimator are not needed."""
        self.merge({name: torch.ones_like(p) for name, p in self._protected().items()})


class _Remembered:
    """What every step needs of S, μ, λ and η: computed anew only when one of them has changed."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None

    def get(
        self,
        numbers: tuple[float, ...],
        tensors: list[Tensor],
        compute: Callable[[], list[Tensor]],
    ) -> list[Tensor]:
        key = (*numbers, *((id(t), t._version) for t in tensors))
        if key != self._key:
            # Holding on to the tensors keeps another one from getting the same id.
            self._value, self._key, self._tensors = compute(), key, tensors
        return self._value


def _same_dtypes(*lists: list[Tensor]) -> bool:
    return all(len({t.dtype for t in tensors}) == 1 for tensors in zip(*lists, strict=True))


@cache
def _key(kind: str, name: str) -> str:
    # A buffer's name must not contain a dot.
    return f"{kind}:{name.replace('.', '/')}"


def _non_negative(name: str, value: float) -> float:
    if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number that is not negative, not {value!r}.")
    return float(value)


def _select(
    names: list[str], include: str | Sequence[str] | None, exclude: str | Sequence[str] | None
) -> list[str]:
    if not names:
        raise ValueError("model must have at least one trainable parameter, but it has none.")

    def matching(argument: str, patterns: str | Sequence[str]) -> set[str]:
        found = set()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            hits = [name for name in names if fnmatchcase(name, pattern)]
            if not hits:
                raise ValueError(
                    f"{argument} pattern {pattern!r} matches no trainable parameter; there are "
                    f"{', '.join(names)}."
                )
            found.update(hits)
        return found

    kept = set(names) if include is None else matching("include", include)
    dropped = set() if exclude is None else matching("exclude", exclude)
    selected = [name for name in names if name in kept - dropped]
    if not selected:
        raise ValueError(
            f"include={include!r} and exclude={exclude!r} leave no parameter to protect."
        )
    return selected


def _checked_fisher(fisher: Mapping[str, Tensor], name: str, parameter: Tensor) -> Tensor:
    if name not in fisher:
        raise ValueError(
            f"fisher has no entry for {name!r}, which is protected; is the parameter frozen now?"
        )
    F = fisher[name]
    if F.shape != parameter.shape:
        raise ValueError(
            f"fisher[{name!r}] has shape {tuple(F.shape)}, but the parameter has "
            f"{tuple(parameter.shape)}."
        )
    if not F.isfinite().all() or (F < 0).any():
        raise ValueError(f"fisher[{name!r}] must be finite and not negative.")
    return F


def _checked_weights(at: Mapping[str, Tensor], name: str, parameter: Tensor) -> Tensor:
    if name not in at:
        raise ValueError(f"at has no entry for {name!r}, which is protected.")
    if at[name].shape != parameter.shape:
        raise ValueError(
            f"at[{name!r}] has shape {tuple(at[name].shape)}, but the parameter has "
            f"{tuple(parameter.shape)}."
        )
    return at[name]
