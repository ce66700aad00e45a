"""Elastic Weight Consolidation: the quadratic penalty that remembers earlier tasks.

Objective on the current task B (Kirkpatrick et al. 2017, equation 3, in the course's notation):

    L_B(θ) + (λ/2) Σ_i F_i (θ_i − θ*_i)²

Whatever the rule and the number of tasks, an :class:`EWC` keeps one quadratic: an importance S and
an anchor μ per parameter. Under the rule ``separate`` that is exact, not an approximation: a sum
of quadratics is a quadratic,

    Σ_t F_t (θ − θ_t)² = S (θ − μ)² + constant,   S = Σ_t F_t,   μ = Σ_t F_t θ_t / S.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ewc_tutorial.fisher import fisher_diagonal
from ewc_tutorial.fisher.likelihoods import ESTIMATORS
from ewc_tutorial.fisher.undisturbed import only_trainable
from ewc_tutorial.optimizers import known_optimizer, steps_of
from ewc_tutorial.precision import widest

RULES = ("separate", "latest", "online", "average")


class EWC(nn.Module):
    """Protect what a model has learned while it learns something else.

    After each task call :meth:`consolidate`; while training the next one add the penalty in one of
    three ways: let :meth:`attach` make a proximal step after every step of the optimizer, call
    :meth:`add_gradient_` after ``backward()``, or add :meth:`penalty` to the loss. The first is
    stable at every λ; the others diverge under gradient descent with step η once η·λ·max S > 2.

    The model is referred to, not owned: its parameters are not parameters of this module and its
    weights are not in ``state_dict()``, which holds only what was consolidated.

    What is protected, and how it is measured, a subclass says in :meth:`values`, :meth:`weights`
    and :meth:`measure`; whoever works with an EWC asks these three and never the model.

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

    #: What stands for the Fisher information: its diagonal, or ``"identity"`` in :class:`L2`.
    curvature = "diagonal"

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
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        self._frozen = set(_matching(frozen, include, exclude)) - set(self.names)
        #: Number of tasks consolidated so far.
        self.n_tasks = 0
        self._constants = dict.fromkeys(self.names, 0.0)
        self._total_weight = 0.0
        self._remembered, self._scaled_anchors = _Remembered(), _Remembered()
        for name, value in self.values().items():
            # Sums of many small terms need float32 even where the model is stored in half of it.
            zeros = torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
            self.register_buffer(_key("importance", name), zeros.detach())
            self.register_buffer(_key("anchor", name), zeros.detach().clone())

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

    def values(self) -> dict[str, Tensor]:
        """Return what the penalty is a function of, by name: here the protected parameters.

        Raises:
            RuntimeError: one of them is gone or has changed its shape.
        """
        return self._checked(dict(self._model.named_parameters()))

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters of the model that :meth:`values` is made of, by name."""
        return self.values()

    def measure(
        self,
        data: Any,
        estimator: str = "exact",
        *,
        fisher: Callable[..., dict[str, Tensor]] = fisher_diagonal,
        **options: Any,
    ) -> dict[str, Tensor]:
        """Return the Fisher information of what is protected, at the present weights.

        Args:
            data, estimator, options: as for :func:`~ewc_tutorial.fisher.fisher_diagonal`, or as for
                ``fisher``.
            fisher: what measures, called as ``fisher(model, data, estimator, **options)``.

        Returns:
            Per name of :meth:`values` a tensor of its shape.
        """
        with only_trainable(self._model, self.names):
            return fisher(self._model, data, estimator, **options)

    def consolidate(
        self, data: Any, estimator: str = "exact", *, weight: float = 1.0, **options: Any
    ) -> None:
        """Measure the Fisher information on ``data`` at the present weights and remember both.

        Call it with the *finished* task's training data, after its last training step. It is
        ``merge(measure(data, …), weight)``: see :meth:`measure` and :meth:`merge`.
        """
        self.merge(self.measure(data, estimator, **options), weight)

    @torch.no_grad()
    def merge(
        self,
        fisher: Mapping[str, Tensor],
        weight: float = 1.0,
        at: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take a task in, given its Fisher information at the model's present weights.

        Args:
            fisher: per name of :meth:`values` a tensor of its shape, finite and ≥ 0; further names
                are ignored.
            weight: multiplies this task's Fisher (its weight in the mean under ``average``). Use
                N_t over the mean number of samples for tasks of different sizes.
            at: per name the values at which the Fisher was measured, if these are not the present
                ones.

        Raises:
            ValueError: a protected parameter has no Fisher, or one that is not finite, negative or
                of another shape, or the same of ``at``; nothing is changed then.

        Warns:
            UserWarning: layers that were frozen when the EWC was made are trained now, without any
                protection.
        """
        weight = _non_negative("weight", weight)
        self._warn_of_unfrozen()
        updates = []
        constants = dict(self._constants)
        total_weight = self._total_weight + weight
        for name, parameter in self.values().items():
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
                constants[name] += (S * share * offset.square()).sum(dtype=widest(S.device)).item()
                updates.append((total, anchor + share * offset))
            elif self.rule == "average":
                step = weight / total_weight if total_weight else 0.0
                updates.append((S + step * (F / weight - S) if weight else S, here))
            else:
                updates.append((self.gamma * S + F, here))
        for name, (S, anchor) in zip(self.names, updates, strict=True):
            self.importance[name].copy_(S)
            self.anchor[name].copy_(anchor)
        self._constants, self._total_weight = constants, total_weight
        self.n_tasks += 1

    def reset(self) -> None:
        """Forget everything that was consolidated; λ, the rule and the names stay."""
        for buffer in self.buffers():
            buffer.zero_()
        self.n_tasks, self._total_weight = 0, 0.0
        self._constants = dict.fromkeys(self.names, 0.0)

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
                continue  # values() says so below
            new, old = parameters[name].shape, self.anchor[name].shape
            if new != old and new and new[0] > old[0] and new[1:] == old[1:]:
                grown[name] = new[0] - old[0]
        for name, extra in grown.items():
            for kind in ("importance", "anchor"):
                values = self.get_buffer(_key(kind, name))
                rows = values.new_zeros(extra, *values.shape[1:])
                self.register_buffer(_key(kind, name), torch.cat([values, rows]))
        self.values()

    def penalty(self) -> Tensor:
        """Return λ/2 Σ_t Σ_i F_t,i (θ_i − θ*_t,i)² as a differentiable scalar.

        Under ``separate`` this is the true sum over all tasks, the constant that the collapse to
        one quadratic leaves included. Before the first :meth:`consolidate` it is zero.
        """
        total: Tensor | float = sum(self._constants.values())
        for name, value in self.values().items():
            total = total + (self.importance[name] * (value - self.anchor[name]).square()).sum()
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

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Make a proximal step after every step of an optimizer, in the optimizer's own scale.

        Training then ends where loss plus penalty has no gradient, with momentum and with Adam as
        with plain gradient descent (see :mod:`ewc_tutorial.optimizers`), and is stable at every λ.
        The learning rate is read anew each time, for each group of parameters, so schedulers are
        followed; with gradient accumulation there is one proximal step for each optimizer step,
        and none where a gradient scaler has skipped it.

        Args:
            optimizer: SGD, Adam, AdamW, RMSprop or Adagrad of ``torch.optim``.

        Returns:
            A handle: ``remove()`` ends it, as does leaving ``with ewc.attach(optimizer):``.

        Raises:
            TypeError: it is no optimizer.
            ValueError: it is another one, or it trains nothing that is protected.
        """
        optimizer = known_optimizer(optimizer)
        protected = set(self.weights().values())
        if not any(p in protected for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                "optimizer trains no parameter that this EWC protects: make the EWC with the very "
                "model that is trained, not with a copy of it."
            )
        self._warn_of_unfrozen()
        names = {p: name for name, p in self._model.named_parameters()}

        def after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            skipped = getattr(optimizer, "found_inf", None)  # a fused step under a gradient scaler
            if not self.n_tasks or not self.lam or (skipped is not None and skipped.item()):
                return
            steps = {names[p]: step for p, step in steps_of(optimizer).items() if p in names}
            self.proximal_step_(
                {name: step.lr for name, step in steps.items()},
                {name: step.scale for name, step in steps.items()},
            )

        return optimizer.register_step_post_hook(after_step)

    @torch.no_grad()
    def proximal_step_(
        self,
        lr: float | Mapping[str, float],
        scale: Mapping[str, float | Tensor] | None = None,
    ) -> None:
        """Move the weights to θ ← (dθ + ηλSμ) / (d + ηλS), with η = ``lr`` and d = ``scale``.

        It minimises (λ/2) S (θ − μ)² + d (θ − θ_now)² / 2η exactly, so it is stable at every λ; for
        small ηλS it is the gradient step. :meth:`attach` calls it after every ``optimizer.step()``
        with the η and d of that optimizer. By hand, for plain gradient descent, ``lr`` is enough.

        Args:
            lr: the step size, or one for each name of a parameter; others stay where they are then.
            scale: per name what the optimizer divides its step by, a number or a tensor of the
                parameter's shape, positive; 1 where there is none.

        Raises:
            ValueError: a step size is negative or not finite.
        """
        rates = rates_by_name(lr, self.names)
        if not self.n_tasks or not self.lam:
            return
        scale = scale or {}
        values, importance, anchors = self.values(), self.importance, self.anchor
        names = [name for name in values if rates.get(name)]
        parameters = [values[name] for name in names]
        S, mu = [importance[name] for name in names], [anchors[name] for name in names]
        lrs, scales = [rates[name] for name in names], [scale.get(name, 1.0) for name in names]

        def stiffness() -> list[Tensor]:
            # Not infinite, so that the share of it below is 1 there, and not NaN.
            largest = [torch.finfo(s.dtype).max / 2 for s in S]
            products = [lr * (self.lam * s) for lr, s in zip(lrs, S, strict=True)]
            return [c.clamp_max_(top) for c, top in zip(products, largest, strict=True)]

        def pulls(stiffness: list[Tensor]) -> list[Tensor]:
            return [c / (d + c) for c, d in zip(stiffness, scales, strict=True)]

        if any(isinstance(d, Tensor) for d in scales):
            shares = pulls(self._remembered.get((self.lam, *lrs), S, stiffness))
        else:
            numbers = (self.lam, *lrs, *scales)
            shares = self._remembered.get(numbers, S, lambda: pulls(stiffness()))
        if _same_dtypes(parameters, mu):
            torch._foreach_lerp_(parameters, mu, shares)
            return
        # A model in half precision: step in the anchor's precision, then round once.
        for parameter, anchor, share in zip(parameters, mu, shares, strict=True):
            parameter.copy_(parameter.to(anchor).lerp_(anchor, share))

    def extra_repr(self) -> str:
        gamma = f", gamma={self.gamma:g}" if self.rule == "online" else ""
        return (
            f"lam={self.lam:g}, rule={self.rule!r}{gamma}, n_tasks={self.n_tasks}, "
            f"parameters={len(self.names)}"
        )

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "curvature": self.curvature,
            "rule": self.rule,
            "gamma": self.gamma,
            "lam": self.lam,
            "n_tasks": self.n_tasks,
            "constants": dict(self._constants),
            "total_weight": self._total_weight,
        }

    def set_extra_state(self, state: Any) -> None:
        self.gamma, self.lam, self.n_tasks = state["gamma"], state["lam"], state["n_tasks"]
        self._constants = {name: state["constants"].get(name, 0.0) for name in self.names}
        self._total_weight = state["total_weight"]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Restore what another :class:`EWC` consolidated, its λ and γ included.

        With ``strict=False`` what both protect is restored and the rest stays as it is: after a
        head was replaced, that carries all other layers over to a new EWC.

        Raises:
            ValueError: the state was made under another rule or with another curvature.
            RuntimeError: names or shapes do not match; nothing is changed then.
        """
        if complaint := self._other_kind(state_dict.get("_extra_state")):
            raise ValueError(complaint)
        strict = kwargs.get("strict", args[0] if args else True)
        for complaint in self._misfits(state_dict, strict):
            raise RuntimeError(complaint)
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # A parent module that loads its own state comes this way, past load_state_dict().
        if complaint := self._other_kind(state_dict.get(f"{prefix}_extra_state")):
            error_msgs.append(complaint)
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _other_kind(self, state: Mapping[str, Any] | None) -> str | None:
        """Say in which way a state is of another kind of EWC than this one."""
        for name in ("curvature", "rule"):
            mine = getattr(self, name)
            if state is not None and (other := state[name]) != mine:
                return (
                    f"state_dict was consolidated with {name}={other!r}: load it into an EWC of "
                    f"that kind, not into one with {name}={mine!r}."
                )
        return None

    def _misfits(self, state: Mapping[str, Any], strict: bool) -> Iterator[str]:
        mine = self.state_dict()
        for key, value in state.items():
            if key in mine and key != "_extra_state" and value.shape != mine[key].shape:
                yield (
                    f"{key!r} of state_dict has shape {tuple(value.shape)}, but the model's "
                    f"parameter has {tuple(mine[key].shape)}."
                )
        if strict and mine.keys() != state.keys():
            yield (
                "state_dict protects other parameters than this EWC: "
                f"{', '.join(sorted(mine.keys() ^ state.keys()))}."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EWC:
        # A parent module in half precision takes its parts along; sums of squares stay as they are.
        def without_narrowing(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            wide = torch.promote_types(new.dtype, tensor.dtype)
            return new if new.dtype == wide else tensor.to(new.device)

        return super()._apply(without_narrowing, recurse)

    def _candidates(self) -> list[str]:
        """Return the names that may be protected."""
        return [name for name, p in self._model.named_parameters() if p.requires_grad]

    def _checked(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the protected ones of ``values``, which are those of the beginning."""
        checked = {}
        for name in self.names:
            anchor = self._buffers.get(_key("anchor", name))
            if name not in values or (anchor is not None and anchor.shape != values[name].shape):
                raise RuntimeError(self._gone(name, values.get(name)))
            checked[name] = values[name]
        here = checked[self.names[0]].device
        if self._buffers and next(iter(self._buffers.values())).device != here:
            # The model has moved since: follow it.
            self.to(here)
        return checked

    def _gone(self, name: str, value: Tensor | None) -> str:
        carry = (
            f"make a new one with exclude={name!r} and give it what this one knows of the others, "
            "new.load_state_dict(old.state_dict(), strict=False)."
        )
        if value is None:
            return f"The model has no parameter {name!r} any more, which this EWC protects: {carry}"
        return (
            f"Parameter {name!r} has shape {tuple(value.shape)}, but was "
            f"{tuple(self.anchor[name].shape)} when this EWC was made: call grow_() if it has got "
            f"further rows, else {carry}"
        )

    def unfrozen(self) -> list[str]:
        """Return the names of parameters that were frozen when the EWC was made, and that
        ``include`` and ``exclude`` would have let it protect, but that are trained now."""
        trained = {name for name, p in self._model.named_parameters() if p.requires_grad}
        return sorted(self._frozen & trained)

    def _warn_of_unfrozen(self) -> None:
        if names := self.unfrozen():
            warnings.warn(
                f"{len(names)} parameters, such as {names[0]!r}, were frozen when this EWC was "
                "made and are trained now without any protection: make the EWC after unfreezing, "
                "or name them in exclude.",
                stacklevel=3,
            )

    def _aligned(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return parameters, S and μ as lists in one order, as the fused operations need them."""
        return (
            list(self.values().values()),
            list(self.importance.values()),
            list(self.anchor.values()),
        )


class L2(EWC):
    """The baseline that treats all weights alike: λ/2 ‖θ − θ*‖², around the last optimum.

    This is Kirkpatrick's L2 in figure 2A: an EWC whose Fisher information is one everywhere.
    """

    curvature = "identity"

    def __init__(
        self,
        model: nn.Module,
        lam: float = 1.0,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(model, lam, rule="average", include=include, exclude=exclude)

    def measure(
        self, data: Any = None, estimator: str = "exact", **options: Any
    ) -> dict[str, Tensor]:
        """Return ones. Arguments are checked as :meth:`EWC.measure` takes them, and not used.

        Raises:
            TypeError: an option is unknown.
            ValueError: the estimator is.
        """
        if estimator not in ESTIMATORS:
            raise ValueError(
                f"estimator must be one of {', '.join(ESTIMATORS)}, not {estimator!r}."
            )
        inspect.signature(options.pop("fisher", fisher_diagonal)).bind(None, None, **options)
        return {name: torch.ones_like(value) for name, value in self.values().items()}

    def consolidate(self, data: Any = None, *args: Any, **options: Any) -> None:
        """Make the present weights the anchor; ``data`` is not needed."""
        super().consolidate(data, *args, **options)


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


def rates_by_name(lr: float | Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """Return the step size for each name, all of them checked."""
    if not isinstance(lr, Mapping):
        return dict.fromkeys(names, _non_negative("lr", lr))
    return {name: _non_negative(f"lr[{name!r}]", value) for name, value in lr.items()}


def _select(
    names: list[str], include: str | Sequence[str] | None, exclude: str | Sequence[str] | None
) -> list[str]:
    if not names:
        raise ValueError("model must have at least one trainable parameter, but it has none.")
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in _patterns(patterns):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"{argument} pattern {pattern!r} matches no trainable parameter; there are "
                    f"{', '.join(names)}."
                )
    selected = _matching(names, include, exclude)
    if not selected:
        raise ValueError(
            f"include={include!r} and exclude={exclude!r} leave no parameter to protect."
        )
    return selected


def _matching(
    names: list[str], include: str | Sequence[str] | None, exclude: str | Sequence[str] | None
) -> list[str]:
    def match(name: str, patterns: str | Sequence[str] | None) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in _patterns(patterns))

    return [n for n in names if (include is None or match(n, include)) and not match(n, exclude)]


def _patterns(patterns: str | Sequence[str] | None) -> Sequence[str]:
    return [patterns] if isinstance(patterns, str) else patterns or []


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
