"""Changes that are learned against the model: styles and noise that it is worst at."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from latentaug.augment.ascent import Adversarial, Rule, ascend, unit
from latentaug.augment.base import Context, LatentTransform
from latentaug.augment.ranges import Range, as_range
from latentaug.augment.style import along, at_least_float32, moments, restyled
from latentaug.checks import number, whole

Norm: TypeAlias = Literal["inf", "2"]
"""What measures what is added: its largest entry, or its length."""


class MaxStyle(Adversarial):
    """Give samples the style, between and beyond those of the batch, that the model is worst at.

    Mixes the mean μ and the deviation σ of each channel with those of a partner, adds noise to both, and climbs the
    loss over the mixture λ and the noise ε: n·(λσ + (1 - λ)σ' + ε₁Γ) + λμ + (1 - λ)μ' + ε₂Β, where n is the normalised
    code, and Γ and Β are the deviations over the batch of σ and μ. No gradient passes through μ, σ, Γ and Β.

    The paper puts it at late levels of an image decoder and segments the images that come out: see
    `HardExamples(style=MaxStyle())`. On the levels of a segmentation network, use a tap: of several layers, one
    `MaxStyle` climbs over all of them together.

    Args:
        p: Chance that it acts at a layer, in [0, 1]. Default 0.5, as in the paper, as are all defaults.
        steps: Steps of the ascent. Default 5; each costs a replay, forward and backward. 0 leaves it at random styles.
        lr: Learning rate of Adam. Default 0.1.
        noise: Whether styles go beyond mixtures; without it λ alone is learned.
        radius: How far λ and ε may go from where they were sampled. Default None: as far as the steps take them.
        eps: Added to variances.

    Shape:
        code: [B, C, *S] (any layout given by `layout`).   output: the same.

    Samples:
        Whether to act, the partners, nobody with oneself, once per batch; λ ~ U(0, 1) for each sample; ε ~ N(0, 1) for
        each sample and channel; all from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of another kind.

    References:
        Chen et al., MICCAI 2022, arXiv:2206.01737.

    Example:
        >>> code = torch.randn(4, 8, 6, 6)
        >>> change = MaxStyle(p=1)(code, loss_at=lambda code: code.square().mean())
        >>> change.apply(code).square().mean() > code.square().mean()
        tensor(True)
    """

    needs_partner = True
    learned: tuple[str, ...] = ("own", "scale_noise", "shift_noise")
    place = "late decoder"

    def __init__(
        self,
        p: Range = 0.5,
        *,
        steps: int = 5,
        lr: float = 0.1,
        noise: bool = True,
        radius: Range | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(steps, lr, radius, p=p)
        self.noise = noise
        self.eps = number("eps", eps, above=0)
        if not noise:
            self.learned = ("own",)

    def start(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample partners, λ and ε; measure Γ and Β."""
        batch, channels = code.shape[:2]
        mean, deviation = moments(at_least_float32(code), self.eps)
        order = _nobody_stays(batch, context)
        begun = {"order": order, "own": context.rand(batch)}
        for name, statistic in (("scale", deviation), ("shift", mean)):
            noise = context.randn(batch, channels) if self.noise else torch.zeros(batch, channels, device=code.device)
            begun |= {f"{name}_noise": noise, f"{name}_spread": statistic.flatten(1).std(0)}
        return begun

    def allowed(self, learned: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep λ a fraction."""
        return learned | {"own": learned["own"].clamp(0, 1)}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Exchange means and deviations."""
        values = at_least_float32(code)
        mean, deviation = (one.detach() for one in moments(values, self.eps))
        own = along(params["own"], values)
        new = {
            name: own * one
            + (1 - own) * one[params["order"]]
            + along(params[f"{name}_noise"] * params[f"{name}_spread"], values)
            for name, one in (("scale", deviation), ("shift", mean))
        }
        return restyled(values, mean, deviation, new["shift"], new["scale"])


class AdvStyle(Adversarial):
    """Shift and scale each channel of each sample the way that raises the loss.

    Takes the mean μ and the deviation σ of each channel as variables and lets them climb the loss: returns
    (f - μ)·(1 + a) + μ + bσ, where a and b start at 0 and go by `strength` along the sign of their gradients. With one
    step the saliency gives these, so that nothing is replayed. No gradient passes through μ and σ.

    Args:
        strength: How far a and b go, 0 or more; a pair is sampled from uniformly, once per batch. Default 0.3.
        steps: Steps of the ascent. Default 1, as in the paper; each after the first costs a replay.
        p: Chance that it acts, in [0, 1].
        eps: Added to variances.

    Shape:
        code: [B, C, *S] (any layout given by `layout`).   output: the same.

    Samples:
        Whether to act, and the strength; from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of another kind.

    References:
        After Zhong et al., NeurIPS 2022, arXiv:2207.04892, who do so to images.

    Example:
        >>> code = torch.randn(4, 8, 6, 6)
        >>> change = AdvStyle(0.1)(code, 2 * code, loss_at=lambda code: code.square().sum())
        >>> change.apply(code).square().sum() > code.square().sum()
        tensor(True)
    """

    learned = ("scale", "shift")
    starts_at_identity = True
    rule: Rule = "sign"
    place = "early"

    def __init__(self, strength: Range = 0.3, *, steps: int = 1, p: Range = 1.0, eps: float = 1e-6) -> None:
        super().__init__(steps, 1.0 / max(whole("steps", steps, least=0), 1), 1.0, p=p)
        self.strength = as_range("strength", strength, most=math.inf)
        self.eps = number("eps", eps, above=0)

    def start(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Begin at the code's own statistics."""
        zeros = torch.zeros(code.shape[:2], dtype=at_least_float32(code[:0]).dtype, device=code.device)
        return {"scale": zeros, "shift": zeros, "strength": context.uniform(self.strength)}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Shift and scale."""
        values = at_least_float32(code)
        mean, deviation = (one.detach() for one in moments(values, self.eps))
        scale, shift = (along(params["strength"] * params[name], values) for name in ("scale", "shift"))
        changed: Tensor = values + (values - mean) * scale + deviation * shift
        return changed


class FGSM(Adversarial):
    """Add to a code what raises the loss most: the fast gradient sign method, in latent space.

    Adds ε·s·sign(g) for the saliency g, where s is the root mean square of the sample's code, so that ε means the same
    on every layer; with `norm="2"` the gradient itself, with ε times the length of the sample's code. Nothing is
    replayed for it unless there are several steps.

    Args:
        strength: ε, 0 or more; a pair is sampled from uniformly, for each sample. Default 0.1.
        norm: "inf" or "2".
        steps: Steps of the ascent, each of ε / `steps`. Default 1; each after the first costs a replay.
        p: Chance that it acts, in [0, 1].

    Shape:
        code, saliency: [B, C, *S] (any layout given by `layout`).   output: the same.

    Samples:
        Whether to act, and ε; from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range, or the saliency is missing.
        TypeError: An argument is of another kind.

    References:
        Goodfellow et al., ICLR 2015, arXiv:1412.6572.

    Example:
        >>> code, saliency = torch.ones(1, 2, 2), torch.tensor([[[1.0, -2.0], [0.0, 3.0]]])
        >>> FGSM(0.5)(code, saliency).apply(code)
        tensor([[[1.5000, 0.5000],
                 [1.0000, 1.5000]]])
    """

    learned = ("direction",)
    starts_at_identity = True

    def __init__(self, strength: Range = 0.1, *, norm: Norm = "inf", steps: int = 1, p: Range = 1.0) -> None:
        if norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(map(repr, get_args(Norm)))}; got {norm!r}.")
        super().__init__(steps, 1.0 / max(whole("steps", steps, least=0), 1), 1.0, p=p)
        self.strength = as_range("strength", strength, most=math.inf)
        self.norm = norm
        self.rule = "sign" if norm == "inf" else "gradient"

    def start(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Begin at the code itself."""
        values = at_least_float32(code)
        entries = math.prod(code.shape[1:]) if self.norm == "inf" else 1
        length = values.flatten(1).norm(dim=1) / entries**0.5
        step = context.uniform(self.strength, len(code)) * length
        return {"direction": torch.zeros_like(values), "step": step.view(-1, *[1] * (code.ndim - 1))}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Add it."""
        changed: Tensor = code + params["step"] * params["direction"]
        return changed


class VAT(LatentTransform):
    """Add to a code what changes the prediction most: virtual adversarial training, in latent space. Needs no labels.

    Finds the direction d by power iteration on the divergence of the prediction, from a random one on, and adds
    ε·‖f‖·d to each sample's code f. Train on the divergence itself: see `latentaug.kl_divergence`.

    Args:
        strength: ε, 0 or more; a pair is sampled from uniformly, for each sample. Default 0.1.
        steps: Power iterations. Default 1, as in the paper; each costs a replay.
        xi: Length of the trial step, relative to the code's. Default 0.01: much smaller ones vanish in float16.
        p: Chance that it acts, in [0, 1].

    Shape:
        code: [B, C, *S] (any layout given by `layout`).   output: the same.

    Samples:
        Whether to act, ε, and a direction for each sample; from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range, or the divergence is missing.
        TypeError: An argument is of another kind.

    References:
        Miyato et al., TPAMI 2019, arXiv:1704.03976.

    Example:
        >>> code = torch.randn(2, 4, 5)
        >>> change = VAT(0.1)(code, divergence_at=lambda new: (new - code).square().sum())
        >>> (change.apply(code) - code).norm() / code.norm()
        tensor(0.1000)
    """

    needs = ("divergence_at",)

    def __init__(self, strength: Range = 0.1, *, steps: int = 1, xi: float = 1e-2, p: Range = 1.0) -> None:
        super().__init__(p=p)
        self.strength = as_range("strength", strength, most=math.inf)
        self.steps = whole("steps", steps)
        self.xi = number("xi", xi, above=0)

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Find the direction."""
        values = at_least_float32(code)
        length = values.flatten(1).norm(dim=1).view(-1, *[1] * (code.ndim - 1))
        random = context.randn(*code.shape).to(values.dtype)
        direction = ascend(
            lambda one: context.divergence_at((values + self.xi * length * one["direction"]).to(code.dtype)),
            {"direction": unit(random, otherwise=random)},
            steps=self.steps,
            lr=1.0,
            rule="power",
            half=code.dtype == torch.float16,
        )["direction"]
        strength = context.uniform(self.strength, len(code)).to(values.dtype).view_as(length)
        return {"added": strength * length * direction}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Add it."""
        changed: Tensor = code + params["added"]
        return changed


def _nobody_stays(batch: int, context: Context) -> Tensor:
    """Sample an order in which nobody is at its own place: one cycle through all, each as likely."""
    round_trip = context.permutation(batch)
    order = torch.empty_like(round_trip)
    order[round_trip] = round_trip.roll(1)
    return order
