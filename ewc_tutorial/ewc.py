"""Elastic Weight Consolidation: the quadratic penalty that remembers earlier tasks.

Objective on the current task B (Kirkpatrick et al. 2017, equation 3, in the course's notation):

    L_B(θ) + (λ/2) Σ_i F_i (θ_i − θ*_i)²

Whatever the rule and the number of tasks, an :class:`EWC` keeps one quadratic, (θ − μ)ᵀ S (θ − μ),
with an importance S and an anchor μ. S is diagonal in the paper and by default; which forms there
are, and what each of them keeps, is in :mod:`ewc_tutorial.curvature`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ewc_tutorial.attachment import Attachment, is_attached
from ewc_tutorial.curvature import RULES, Curvature, make_curvature
from ewc_tutorial.curvature.base import buffer_key
from ewc_tutorial.curvature.diagonal import Diagonal
from ewc_tutorial.fisher.groups import InGroups
from ewc_tutorial.fisher.undisturbed import only_trainable
from ewc_tutorial.optimizers import known_optimizer
from ewc_tutorial.path import WeightPath
from ewc_tutorial.selection import matching, select
from ewc_tutorial.sharded import check_known, is_spread, spread_like, take_apart, whole

__all__ = ["EWC", "L2", "RULES"]


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
            The default is the first that makes sense for the curvature: ``separate``, but
            ``latest`` for ``kronecker``, which has no ``separate``, and ``average`` for
            ``identity``.
        gamma: γ in [0, 1], the decay of earlier tasks; only for ``online``.
        include, exclude: shell patterns of parameter names to protect or to leave free, such as
            ``exclude="head.*"``.
        curvature: the form that the Fisher matrix is kept in.
            ``diagonal``: a number per weight.
            ``kronecker``: two small matrices per layer, which see that weights act together, and a
            diagonal where there is no such layer; see :class:`~ewc_tutorial.curvature.Kronecker`,
            of which an instance may be given as well.
            ``compact``: a number per weight in three bytes with its anchor instead of eight, and
            steps without further memory; see :class:`~ewc_tutorial.curvature.Compact`, of which an
            instance may be given as well.
            ``identity``: one for every weight; this is :class:`L2`.

    Raises:
        ValueError: an argument is out of range, a pattern matches no trainable parameter, or no
            parameter is left to protect.
    """

    _model: nn.Module
    _buffers: dict[str, Tensor]  # type: ignore[assignment]  # none of ours is None

    def __init__(
        self,
        model: nn.Module,
        lam: float = 1.0,
        rule: str | None = None,
        gamma: float = 1.0,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        curvature: str | Curvature = "diagonal",
    ) -> None:
        super().__init__()
        kept = make_curvature(curvature)
        rule = kept.rules[0] if rule is None else rule
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, not {rule!r}.")
        if rule not in kept.rules:
            raise ValueError(
                f"rule {rule!r} is none for curvature {kept.name!r}, as {kept.why_not}: take one "
                f"of {', '.join(kept.rules)}."
            )
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma must be between 0 and 1, not {gamma!r}.")
        if gamma != 1.0 and rule != "online":
            raise ValueError(f"gamma applies to the rule 'online' only, not to {rule!r}.")
        check_known(model)
        # A plain attribute assignment would make the model a submodule of this one.
        object.__setattr__(self, "_model", model)
        self.lam = lam
        self.rule = rule
        self.gamma = float(gamma)
        self.names = select(self._candidates(), include, exclude)
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        self._frozen = set(matching(frozen, include, exclude)) - set(self.names)
        #: Number of tasks consolidated so far.
        self.n_tasks = 0
        self._kept = kept
        # What is remembered lies among this module's buffers, to be saved and moved with them.
        self._kept.protect(self._buffers, model, self.values())

    @property
    def model(self) -> nn.Module:
        """The network that is protected."""
        return self._model

    @property
    def curvature(self) -> str:
        """The form that the Fisher matrix is kept in, by its name."""
        return self._kept.name

    @property
    def needs_start(self) -> bool:
        """Whether :meth:`proximal_step_` can use the values before the optimizer's step."""
        return self._kept.needs_start

    @property
    def lam(self) -> float:
        """λ, the strength of the penalty; assigning checks that it is finite and not negative."""
        return self._lam

    @lam.setter
    def lam(self, value: float) -> None:
        self._lam = _non_negative("lam", value)

    @property
    def importance(self) -> dict[str, Tensor]:
        """The diagonal of S per protected parameter, zero before the first task."""
        return self._kept.importance

    @property
    def anchor(self) -> dict[str, Tensor]:
        """μ per protected parameter, meaningful where S > 0."""
        return self._kept.anchor

    @property
    def summed(self) -> float:
        """Of how many tasks S is the sum, each counted by its weight and by what γ has left of it;
        1 under ``average``, and where nothing is summed."""
        if self.rule == "average":
            return 1.0
        return self._kept.state().get("total_weight") or 1.0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor that :meth:`measure` returns and :meth:`merge` takes."""
        return self._kept.shapes()

    def stored(self) -> dict[str, Tensor]:
        """Return S in the form of :meth:`shapes`; for ``kronecker`` the strength of a block, which
        is the weight of the tasks in it, is in its G."""
        return self._kept.stored()

    def explain(self) -> dict[str, str]:
        """Say for each protected parameter in which form its curvature is kept, and why."""
        return self._kept.explain()

    def values(self) -> dict[str, Tensor]:
        """Return what the penalty is a function of, by name: here the protected parameters.

        Raises:
            RuntimeError: one of them is gone or has changed its shape.
            NotImplementedError: they are spread over processes, which the curvature cannot be.
        """
        take_apart(self._model)
        return self._checked(dict(self._model.named_parameters()))

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters of the model that :meth:`values` is made of, by name."""
        return self.values()

    def measure(
        self,
        data: Any,
        estimator: str = "exact",
        *,
        fisher: Callable[..., dict[str, Tensor]] | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """Return the Fisher information of what is protected, at the present weights.

        Args:
            data, estimator, options: as for :func:`~ewc_tutorial.fisher.fisher_diagonal`, or as for
                ``fisher``.
            fisher: what measures, called as ``fisher(model, data, estimator, **options)``; for
                ``kronecker`` with ``layers``, and perhaps ``eigenvalues``, as well, as
                :func:`~ewc_tutorial.fisher.fisher_factors` takes them.

        Returns:
            Tensors as :meth:`shapes` says: with a diagonal, per name of :meth:`values` one of its
            shape; for ``kronecker`` what :func:`~ewc_tutorial.fisher.fisher_factors` returns.
        """
        return self._measured(self.names, data, estimator, fisher, options)

    def _measured(
        self,
        names: Sequence[str],
        data: Any,
        estimator: str,
        fisher: Callable[..., dict[str, Tensor]] | None,
        options: dict[str, Any],
    ) -> dict[str, Tensor]:
        with only_trainable(self._model, names):
            return self._kept.measure(self._model, data, estimator, fisher, options)

    def consolidate(
        self,
        data: Any,
        estimator: str = "exact",
        *,
        weight: float = 1.0,
        groups: int = 1,
        **options: Any,
    ) -> None:
        """Measure the Fisher information on ``data`` at the present weights and remember both.

        Call it with the *finished* task's training data, after its last training step. It is
        ``merge(measure(data, …), weight)``: see :meth:`measure` and :meth:`merge`.

        Args:
            data, estimator, weight, options: as there.
            groups: measure so many groups of parameters one after the other, each in a pass over
                the data of its own, where memory does not hold the sums of all weights. F is the
                same if each pass yields the same samples in the same order; a loader that shuffles
                gives each group others with ``n_samples``, and other draws with ``sampled``. With
                ``resume`` each group has a file of its own, with its number at the end.

        Raises:
            ValueError: ``groups`` is no whole number above zero, the data can be gone through but
                once, or the curvature is no number per weight.
        """
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups must be a whole number above zero, not {groups!r}.")
        if groups == 1:
            self.merge(self.measure(data, estimator, **options), weight)
        else:
            self.merge(self._in_groups(data, estimator, groups, **options), weight)

    def _in_groups(
        self,
        data: Any,
        estimator: str,
        groups: int,
        fisher: Callable[..., dict[str, Tensor]] | None = None,
        **options: Any,
    ) -> InGroups:
        if not isinstance(self._kept, Diagonal):
            raise ValueError(f"groups must be 1 for curvature {self.curvature!r}, not {groups!r}.")
        if isinstance(data, Iterator):
            raise ValueError(
                "data is gone through once for each of the groups, which an iterator cannot be: "
                "pass a list of batches or a DataLoader."
            )
        generator = options.get("generator")
        state = generator.get_state() if isinstance(generator, torch.Generator) else None

        def measure(number: int, names: list[str]) -> dict[str, Tensor]:
            if state is not None:  # the same samples and labels for all groups
                generator.set_state(state)  # type: ignore[union-attr]
            own = {"resume": f"{options['resume']}.{number}"} if options.get("resume") else {}
            return self._measured(names, data, estimator, fisher, options | own)

        sizes = {name: value.numel() for name, value in self.values().items()}
        return InGroups(sizes, groups, measure)

    @torch.no_grad()
    def merge(
        self,
        fisher: Mapping[str, Tensor],
        weight: float = 1.0,
        at: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take a task in, given its Fisher information at the model's present weights.

        Args:
            fisher: what :meth:`measure` returned: the tensors of :meth:`shapes`, finite and, for
                a diagonal, ≥ 0; further names are ignored.
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
        here = {}
        for name, value in self.values().items():
            given = value if at is None else _checked_weights(at, name, value)
            here[name] = spread_like(given.detach().to(value.device), value)
            if not whole(here[name].isfinite().all()):
                where = "of the model" if at is None else "in at"
                raise ValueError(f"Parameter {name!r} {where} is not finite.")
        self._kept.merge(fisher, weight, here, self.rule, self.gamma)
        self.n_tasks += 1

    def reset(self) -> None:
        """Forget everything that was consolidated; λ, the rule and the names stay."""
        for buffer in self.buffers():
            buffer.zero_()
        self.n_tasks = 0
        self._kept.reset()

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
        self._kept.grow_(grown)
        self.values()

    def penalty(self) -> Tensor:
        """Return λ/2 (θ − μ)ᵀ S (θ − μ) as a differentiable scalar.

        Under ``separate`` this is the true sum λ/2 Σ_t Σ_i F_t,i (θ_i − θ*_t,i)² over all tasks,
        the constant that the collapse to one quadratic leaves included. Before the first
        :meth:`consolidate` it is zero.
        """
        return 0.5 * self.lam * self._kept.quadratic(self.values())

    @torch.no_grad()
    def add_gradient_(self) -> None:
        """Add the penalty's gradient λS(θ − μ) to every ``.grad``, without an autograd graph.

        Call it between ``loss.backward()`` and ``optimizer.step()``, once per optimizer step; with
        a gradient scaler, after ``scaler.unscale_(optimizer)``.
        """
        if self.n_tasks and self.lam:
            self._kept.add_gradient_(self.values(), self.lam)

    def attach(self, optimizer: torch.optim.Optimizer, every: int | None = None) -> Attachment:
        """Make a proximal step after every step of an optimizer, in the optimizer's own scale.

        Training then ends where loss plus penalty has no gradient, with momentum and with Adam as
        with plain gradient descent (see :mod:`ewc_tutorial.optimizers`), and is stable at every λ.
        The learning rate is read anew each time, for each group of parameters, so schedulers are
        followed; with gradient accumulation there is one proximal step for each optimizer step,
        and none where a gradient scaler has skipped it. One call lasts for all later tasks.

        Args:
            optimizer: SGD, Adam, AdamW, RMSprop or Adagrad of ``torch.optim``.
            every: make one proximal step for so many of the optimizer, with the sum of their η, and
                let the penalty act as a constant force in between (see ``attachment.py``). That
                costs so many times less, is as stable, and ends at the same place. ``None`` means
                1, but 20 for ``kronecker``, whose step costs as much as several of training.

        Returns:
            A handle: ``remove()`` ends it, as does leaving ``with ewc.attach(optimizer):``.

        Raises:
            TypeError: it is no optimizer.
            ValueError: it is another one, trains nothing that is protected, or is attached already;
                or ``every`` is not a whole number above zero.
        """
        every = self._kept.every if every is None else every
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a whole number above zero, not {every!r}.")
        optimizer = known_optimizer(optimizer)
        protected = set(self.weights().values())
        if not any(p in protected for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                "optimizer trains no parameter that this EWC protects: make the EWC with the very "
                "model that is trained, not with a copy of it."
            )
        if is_attached(self, optimizer):
            raise ValueError(
                "optimizer must be one to which this EWC is not attached yet, as each handle pulls "
                "with λ: go on with the one there is, which follows later tasks, or remove() it."
            )
        self._warn_of_unfrozen()
        return Attachment(self, optimizer, every)

    @torch.no_grad()
    def proximal_step_(
        self,
        lr: float | Mapping[str, float],
        scale: Mapping[str, float | Tensor] | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Move the weights to the minimum of λ/2 (θ − μ)ᵀ S (θ − μ) + Σ d (θ − θ_now)² / 2η.

        Here η = ``lr`` and d = ``scale``. For a diagonal S that is θ ← (dθ + ηλSμ) / (d + ηλS).
        It is stable at every λ; for small ηλS it is the gradient step. :meth:`attach` calls it
        after every ``optimizer.step()`` with the η and d of that optimizer. By hand, for plain
        gradient descent, ``lr`` is enough.

        Args:
            lr: the step size, or one for each name of a parameter; others stay where they are then.
            scale: per name what the optimizer divides its step by, a number or a tensor of the
                parameter's shape, positive; 1 where there is none.
            start: per name the values before the optimizer's step, for a step that has no closed
                form (see ``curvature/subproblem.py``); used if :attr:`needs_start`.

        Raises:
            ValueError: a step size is negative or not finite.
        """
        rates = rates_by_name(lr, self.names)
        if self.n_tasks and self.lam:
            self._kept.proximal_step_(self.values(), self.lam, rates, scale or {}, start)

    @torch.no_grad()
    def path(self, fisher: Mapping[str, Tensor], damping: float = 1.0) -> WeightPath:
        """Return the way back from the present weights to the anchor, to choose λ after training.

        Train on a new task without any penalty, measure that task with :meth:`measure`, and hand
        the result over. If both tasks' losses were the parabolas that their Fisher matrices say,
        the point at λ would be where training with this EWC at that λ ends.

        Args:
            fisher: what :meth:`measure` returned for the new task at the present weights. It is
                weighed against what earlier tasks added up to, so without damping Bayes' λ is
                N_old / N_new.
            damping: so many times its mean stiffness is added to the new task's Fisher, tensor by
                tensor. Without it weights go any distance in directions in which the new task's
                parabola is flat, and far away its loss is another. 1 was best for networks (see
                ``experiments/after_training.py``).

        Raises:
            ValueError: nothing is consolidated yet, a Fisher is missing or none, damping is
                negative, or this EWC has a curvature or a kind of value without such a path.
        """
        damping = _non_negative("damping", damping)
        if not self.n_tasks:
            raise ValueError("A path leads back to an earlier task: consolidate one first.")
        values = self.values()
        if values.keys() != self.weights().keys():
            raise ValueError(
                f"What a {type(self).__name__} protects is made of other parameters, which have no "
                "path of their own: merge the adapter into the weights, or use between()."
            )
        here = {name: value.detach().clone() for name, value in values.items()}
        return WeightPath(values, self._kept.minima(here, fisher, damping))

    def extra_repr(self) -> str:
        gamma = f", gamma={self.gamma:g}" if self.rule == "online" else ""
        return (
            f"lam={self.lam:g}, rule={self.rule!r}{gamma}, n_tasks={self.n_tasks}, "
            f"parameters={len(self.names)}"
            + ("" if self.curvature == "diagonal" else f", curvature={self.curvature!r}")
        )

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "curvature": self.curvature,
            "rule": self.rule,
            "gamma": self.gamma,
            "lam": self.lam,
            "n_tasks": self.n_tasks,
            **self._kept.state(),
        }

    def set_extra_state(self, state: Any) -> None:
        self.gamma, self.lam, self.n_tasks = state["gamma"], state["lam"], state["n_tasks"]
        self._kept.load(state)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Restore what another :class:`EWC` consolidated, its λ and γ included.

        With ``strict=False`` what both protect is restored and the rest stays as it is: after a
        head was replaced, that carries all other layers over to a new EWC. Where some stays, the
        numbers of tasks are the greater ones of both.

        Raises:
            ValueError: the state was made under another rule or with another curvature, or lacks
                its ``_extra_state``, without which nobody knows how many tasks are in S.
            RuntimeError: names or shapes do not match; nothing is changed then.
        """
        if complaint := self._other_kind(state_dict):
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
        if complaint := self._other_kind(state_dict, prefix):
            error_msgs.append(complaint)
            return
        before = self.n_tasks
        some_stays = any(f"{prefix}{key}" not in state_dict for key in self._buffers)
        # What one process has saved may go on in several, and the other way round.
        state_dict = dict(state_dict)
        for key, mine in self._buffers.items():
            if (theirs := state_dict.get(f"{prefix}{key}")) is not None:
                state_dict[f"{prefix}{key}"] = spread_like(theirs, mine)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if some_stays:
            self.n_tasks = max(self.n_tasks, before)

    def _other_kind(self, state_dict: Mapping[str, Any], prefix: str = "") -> str | None:
        """Say in which way a state is of another kind of EWC than this one, or of none."""
        state = state_dict.get(f"{prefix}_extra_state")
        if state is None and (found := [k for k in self._buffers if f"{prefix}{k}" in state_dict]):
            return (
                f"state_dict has {prefix + found[0]!r}, but no '{prefix}_extra_state' with the "
                "rule and the number of tasks that it belongs to: load all that state_dict() gave."
            )
        kind = {"curvature": self.curvature, "rule": self.rule} | self._kept.kind
        for name, mine in kind.items():
            if state is not None and (other := state.get(name)) != mine:
                return (
                    f"state_dict was consolidated with {name}={other!r}: load it into an EWC of "
                    f"that kind, not into one with {name}={mine!r}."
                )
        return None if state is None else self._kept.misfit(state)

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
        if not self._kept.follows:
            return self

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
            keys = (buffer_key(kind, name) for kind in ("anchor", "importance"))
            kept = next((self._buffers[key] for key in keys if key in self._buffers), None)
            if name not in values or (kept is not None and kept.shape != values[name].shape):
                raise RuntimeError(self._gone(name, values.get(name)))
            checked[name] = values[name]
        here = checked[self.names[0]].device
        lies = next(iter(self._buffers.values())).device if self._buffers else here
        if lies != here and self._kept.follows:
            # The model has moved since: follow it.
            self.to(here)
        self._spread(checked)
        return checked

    def _spread(self, values: Mapping[str, Tensor]) -> None:
        """Follow a model that has been spread over processes."""
        for name, value in values.items():
            if not is_spread(value):
                continue
            if not self._kept.spreads:
                raise NotImplementedError(
                    f"Parameter {name!r} is spread over processes, which curvature "
                    f"{self.curvature!r} cannot be: take 'diagonal'."
                )
            for key in (buffer_key(kind, name) for kind in ("anchor", "importance")):
                if key in self._buffers and not is_spread(self._buffers[key]):
                    self._buffers[key] = spread_like(self._buffers[key], value)

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


class L2(EWC):
    """The baseline that treats all weights alike: λ/2 ‖θ − θ*‖², around the last optimum.

    This is Kirkpatrick's L2 in figure 2A: an EWC of curvature ``identity``, whose Fisher
    information is one everywhere, under the rule ``average``.
    """

    def __init__(
        self,
        model: nn.Module,
        lam: float = 1.0,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(model, lam, include=include, exclude=exclude, curvature="identity")

    def measure(
        self, data: Any = None, estimator: str = "exact", **options: Any
    ) -> dict[str, Tensor]:
        """Return ones. Arguments are checked as :meth:`EWC.measure` takes them, and not used.

        Raises:
            TypeError: an option is unknown.
            ValueError: the estimator is.
        """
        return super().measure(data, estimator, **options)

    def consolidate(self, data: Any = None, *args: Any, **options: Any) -> None:
        """Make the present weights the anchor; ``data`` is not needed."""
        super().consolidate(data, *args, **options)


def _non_negative(name: str, value: float) -> float:
    if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number that is not negative, not {value!r}.")
    return float(value)


def rates_by_name(lr: float | Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """Return the step size for each name, all of them checked."""
    if not isinstance(lr, Mapping):
        return dict.fromkeys(names, _non_negative("lr", lr))
    return {name: _non_negative(f"lr[{name!r}]", value) for name, value in lr.items()}


def _checked_weights(at: Mapping[str, Tensor], name: str, parameter: Tensor) -> Tensor:
    if name not in at:
        raise ValueError(f"at has no entry for {name!r}, which is protected.")
    if at[name].shape != parameter.shape:
        raise ValueError(
            f"at[{name!r}] has shape {tuple(at[name].shape)}, but the parameter has "
            f"{tuple(parameter.shape)}."
        )
    return at[name]
