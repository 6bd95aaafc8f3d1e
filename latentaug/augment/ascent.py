"""Ascent: parameters that are learned against the model, before a change is made with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from latentaug.augment.base import Change, Context, LatentTransform
from latentaug.augment.ranges import Range, as_range
from latentaug.checks import number, whole
from latentaug.layout import Layout

Rule: TypeAlias = Literal["adam", "sign", "gradient", "power"]
"""How a step follows the gradient; see `ascend`."""
Variables: TypeAlias = Mapping[str, Tensor]

_HALF_SCALE = 2.0**12
"""What the objective is multiplied by where it passes through float16; no rule sees the length of a gradient."""


def ascend(
    objective: Callable[[dict[str, Tensor]], Tensor],
    start: Variables,
    *,
    steps: int,
    lr: float,
    rule: Rule = "adam",
    radius: float | Tensor | None = None,
    project: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    first: Variables | None = None,
    half: bool = False,
) -> dict[str, Tensor]:
    """Climb an objective, from given variables on; nothing but these variables is differentiated by.

    No `.grad` of the network is filled and no weight changes. Each step costs one call of the objective, forward and
    backward, and none is left over; no graph is kept.

    Args:
        objective: Returns a scalar for variables; differentiable with respect to them.
        start: Where to begin; [B, …] each.
        steps: Number of steps; 0 returns the start.
        lr: Length of a step.
        rule: "adam" steps as Adam does; "sign" by `lr` along the sign of the gradient; "gradient" by `lr` along the
            gradient of each sample, scaled to length 1; "power" puts that, times `lr`, in place of the variables, as
            the power iteration does.
        radius: How far variables may go from their start: each entry, or with "gradient" each sample as a whole, [B]
            if it is a tensor. Default None: as far as the steps go.
        project: Returns variables that are allowed, after each step.
        first: The gradient at the start where it is known already; saves the first call of the objective.
        half: Whether the objective passes through float16, whose small gradients are lost unless it is scaled up.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of another kind.

    Example:
        >>> top = ascend(lambda v: -(v["x"] - 3).square().sum(), {"x": torch.zeros(1)}, steps=200, lr=0.1)
        >>> round(top["x"].item(), 2)
        3.0
        >>> ascend(lambda v: v["x"].sum(), {"x": torch.zeros(2)}, steps=3, lr=1.0, rule="sign", radius=2.0)["x"]
        tensor([2., 2.])
    """
    whole("steps", steps, least=0)
    number("lr", lr, least=0)
    if radius is not None and not isinstance(radius, Tensor):
        number("radius", radius, least=0)
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {', '.join(map(repr, get_args(Rule)))}; got {rule!r}.")
    variables = {name: value.detach().clone() for name, value in start.items()}
    origin = {name: value.clone() for name, value in variables.items()}
    adam = torch.optim.Adam(variables.values(), lr=lr, maximize=True) if rule == "adam" and steps else None
    for step in range(steps):
        known = first if step == 0 else None
        gradients = _gradients(objective, variables, half) if known is None else known
        for name, variable in variables.items():
            gradient = gradients[name].to(variable.dtype)
            gradient = torch.where(gradient.isfinite(), gradient, 0.0)
            if adam is not None:
                variable.grad = gradient
            elif rule == "sign":
                variable += lr * gradient.sign()
            elif rule == "gradient":
                variable += lr * unit(gradient, otherwise=torch.zeros_like(gradient))
            else:
                variable.copy_(lr * unit(gradient, otherwise=variable))
        if adam is not None:
            adam.step()
        for name, variable in variables.items():
            if radius is not None:
                variable.copy_(_within(variable, origin[name], radius, entries=rule != "gradient"))
        if project is not None:
            for name, value in project(variables).items():
                variables[name].copy_(value)
    return {name: variable.detach() for name, variable in variables.items()}


class Adversarial(LatentTransform):
    """Start somewhere, and climb: the base of transforms whose parameters are learned against the model.

    Subclasses name what is learned (`learned`) and write `start`; a `transform` that begins as the identity says so
    (`starts_at_identity`), so that the saliency serves as the gradient of the first step, which then costs no replay.

    Of several codes of one pass, a tap that is given one such transform for all climbs over all of them together.

    Args:
        steps: Steps of the ascent. Each costs a replay, forward and backward.
        lr: Length of a step.
        radius: How far what is learned may go from its start, in each entry; a pair is sampled from uniformly.
        p: Chance that it acts.

    Shape:
        code: [B, C, *S] (any layout given by `layout`).   output: the same.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of another kind.

    Example:
        >>> class HardestShift(Adversarial):
        ...     learned, starts_at_identity = ("shift",), True
        ...
        ...     def start(self, code, context):
        ...         return {"shift": torch.zeros(*code.shape[:2], *[1] * (code.ndim - 2))}
        ...
        ...     def transform(self, code, *, shift):
        ...         return code + shift
        >>> HardestShift(steps=1, lr=0.1, radius=0.1).needs
        ('saliency',)
    """

    learned: tuple[str, ...] = ()
    starts_at_identity = False
    rule: Rule = "adam"

    def __init__(self, steps: int, lr: float, radius: Range | None, *, p: Range = 1.0) -> None:
        super().__init__(p=p)
        self.steps = whole("steps", steps, least=0)
        self.lr = number("lr", lr, least=0)
        self.radius = None if radius is None else as_range("radius", radius, most=math.inf)
        first = ("saliency",) if self.starts_at_identity and steps else ()
        self.needs = (*first, "loss_at") if steps > len(first) else first

    def start(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample the parameters to begin with; those to be learned are [B, …] and at least float32."""
        raise NotImplementedError(f"{type(self).__name__} needs a method start(code, context) -> dict.")

    def allowed(self, learned: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what is learned, put back where it must be after a step."""
        return learned

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample a start, and climb from there."""
        begun = self.start(code, context)
        if isinstance(context, _OnlyStart):
            return begun
        first = self._first(code, begun, context.saliency()) if self.starts_at_identity and self.steps else None
        return self._climbed(
            [begun],
            lambda all_params: context.loss_at(self.transform(code, **all_params[0]).to(code.dtype)),
            self._sampled_radius(context),
            first,
            half=code.dtype == torch.float16,
        )[0]

    def draw_together(
        self,
        codes: Sequence[Tensor],
        loss_at: Callable[[list[Change]], Tensor],
        *,
        layouts: Sequence[Layout],
        generator: torch.Generator | None = None,
        training: bool | None = None,
    ) -> list[Change]:
        """Sample a change of each of several codes of one pass, and climb over all of them together.

        Args:
            codes: The codes, in the order in which the pass computes them.
            loss_at: Returns the loss of the pass with these changes of its codes.
            layouts: Their layouts.
            generator: Source of the random numbers.
            training: Whether to act as in train mode. Default: as the transform's own flag says.
        """
        name = type(self).__name__
        contexts = [
            _OnlyStart(name, layout.to_channels_first(code.detach()), code, layout, generator, {}, training)
            for code, layout in zip(codes, layouts, strict=True)
        ]
        changes: list[Change] = [
            self(code, context, layout=layout) for code, context, layout in zip(codes, contexts, layouts, strict=True)
        ]
        acting = [change for change in changes if not change.is_identity]
        if not acting:
            return changes

        def loss(all_params: Sequence[dict[str, Any]]) -> Tensor:
            for change, params in zip(acting, all_params, strict=True):
                change.params = params
            return loss_at(changes)

        half = any(code.dtype == torch.float16 for code in codes)
        radius = self._sampled_radius(contexts[0])
        learned = self._climbed([change.params for change in acting], loss, radius, half=half)
        for change, params in zip(acting, learned, strict=True):
            change.params = params
        return changes

    def _sampled_radius(self, context: Context) -> float | Tensor | None:
        return None if self.radius is None else context.uniform(self.radius)

    def _first(self, code: Tensor, begun: dict[str, Any], saliency: Tensor) -> dict[str, Tensor]:
        """Return the gradient at the start: what the saliency is, passed back through the transform."""
        variables = {name: begun[name].detach().requires_grad_() for name in self.learned}
        with torch.enable_grad():
            changed = self.transform(code, **begun | variables)
        gradients = torch.autograd.grad(changed, [*variables.values()], saliency.to(changed.dtype))
        return {f"0 {name}": gradient for name, gradient in zip(variables, gradients, strict=True)}

    def _climbed(
        self,
        begun: list[dict[str, Any]],
        loss: Callable[[list[dict[str, Any]]], Tensor],
        radius: float | Tensor | None,
        first: Variables | None = None,
        *,
        half: bool,
    ) -> list[dict[str, Any]]:
        places = range(len(begun))

        def filled(variables: dict[str, Tensor]) -> list[dict[str, Any]]:
            return [begun[i] | {name: variables[f"{i} {name}"] for name in self.learned} for i in places]

        def project(variables: dict[str, Tensor]) -> dict[str, Tensor]:
            allowed = [self.allowed({name: variables[f"{i} {name}"] for name in self.learned}) for i in places]
            return {f"{i} {name}": value for i in places for name, value in allowed[i].items()}

        top = ascend(
            lambda variables: loss(filled(variables)),
            {f"{i} {name}": begun[i][name] for i in places for name in self.learned},
            steps=self.steps,
            lr=self.lr,
            rule=self.rule,
            radius=radius,
            project=project,
            first=first,
            half=half,
        )
        return filled(top)


class _OnlyStart(Context):
    """The context of a code that is climbed together with others."""


def _gradients(objective: Callable[[dict[str, Tensor]], Tensor], variables: Variables, half: bool) -> dict[str, Tensor]:
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "A transform climbs a loss by its gradient, which torch.inference_mode() has none of. Leave it; "
            "torch.no_grad() will do."
        )
    with torch.enable_grad():
        live = {name: value.detach().requires_grad_() for name, value in variables.items()}
        value = objective(live)
    if value.numel() != 1:
        raise ValueError(f"ascend needs a scalar to climb; got shape {tuple(value.shape)}. Return a mean.")
    if not value.requires_grad:  # what is climbed does not reach it: there is nowhere to go
        return {name: torch.zeros_like(one) for name, one in variables.items()}
    scaled = value.float() * _HALF_SCALE if half else value
    gradients = torch.autograd.grad(scaled, [*live.values()], allow_unused=True, materialize_grads=True)
    return dict(zip(live, gradients, strict=True))


def unit(gradient: Tensor, *, otherwise: Tensor) -> Tensor:
    """Scale each sample to length 1; what has none becomes something else."""
    length = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.ndim - 1))
    return torch.where(length > 0, gradient / torch.where(length > 0, length, 1.0), otherwise)


def _within(variable: Tensor, origin: Tensor, radius: float | Tensor, *, entries: bool) -> Tensor:
    """Put variables back to within a distance from their origin."""
    away = variable - origin
    if isinstance(radius, Tensor) and radius.ndim:
        radius = radius.view(-1, *[1] * (variable.ndim - 1))
    if entries:
        limit = torch.as_tensor(radius, dtype=away.dtype, device=away.device)
        return origin + away.clamp(-limit, limit)
    length = away.flatten(1).norm(dim=1).view(-1, *[1] * (variable.ndim - 1))
    nearer: Tensor = origin + away * (radius / length.clamp_min(torch.finfo(away.dtype).tiny)).clamp_max(1.0)
    return nearer
