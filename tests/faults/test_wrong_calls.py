"""Wrong calls of the public API: each is refused at the door, in words that name the argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import latentaug as la
from latentaug import (
    FTN,
    Compose,
    CooperativeModel,
    CooperativeTrainer,
    HardExamples,
    LatentTap,
    OneOf,
    RandomApply,
    RandomChannelMask,
    Schedule,
    TargetedChannelMask,
    augmented,
    cooperative_backward,
    find_bottleneck,
    find_codes,
    latent_saliency,
    standard_backward,
    suggest_layers,
    top_mask,
)
from latentaug.layout import Layout
from latentaug.robustness import measure
from latentaug.training.callbacks import CSVLog, Progress, Ramp, TensorBoardLog, default_callbacks
from latentaug.training.watching import HardExampleLog, ShowHardExamples

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NAN, INF = float("nan"), float("inf")
X, Y = torch.rand(2, 1, 32, 32), torch.randint(3, (2, 32, 32))
CODE = torch.rand(2, 4, 3, 3)
MASK = RandomChannelMask()
FLAT = CODE.flatten(1)


def net(classes: int = 3) -> nn.Module:
    down = (nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
    return nn.Sequential(*down, nn.ConvTranspose2d(8, classes, 4, 4))


def coop(model: Any = None, **options: Any) -> CooperativeModel:
    return CooperativeModel(net() if model is None else model, **{"num_classes": 3, "example": X, **options})


def step(model: Any = None, images: Any = X, labels: Any = Y, **options: Any) -> Any:
    return cooperative_backward(coop() if model is None else model, images, labels, **options)


def tapped(use: Callable[[LatentTap, nn.Module], Any]) -> Any:
    model = net()
    with LatentTap(model, "2") as tap:
        model(X)
        return use(tap, model)


def trainer(model: Any = None, **options: Any) -> CooperativeTrainer:
    given = {"callbacks": [], "allocator": False, **options}
    return CooperativeTrainer(coop() if model is None else model, **given)


def measured(loader: Any = ((X, Y),), **options: Any) -> Any:
    return measure(net(), loader, **{"num_classes": 3, "severities": [1], **options})


def fit(loader: Any = ((X, Y),), **options: Any) -> None:
    trainer().fit(loader, **{"epochs": 1, **options})


CALLS: dict[str, list[Callable[[], Any]]] = {
    r"\bpath\b": [
        *[lambda value=value: trainer().save(value) for value in (None, 3, b"a.pt", "")],
        *[lambda value=value: trainer().resume(value) for value in (None, ["a.pt"])],
        lambda: CSVLog(None),
    ],
    "folder": [
        *[lambda value=value: trainer(folder=value) for value in (3, b"run", ["run"], "")],
        lambda: TensorBoardLog(None),
        lambda: HardExampleLog(None, X, Y),
        lambda: default_callbacks(3),
    ],
    "device": [lambda value=value: trainer(device=value) for value in ("cudaa", "meta", ["cpu"], True)],
    "monitor": [lambda value=value: fit(monitor=value) for value in ("loss", "val_iou", None, ["iou"])],
    r"\bsteps\b": [lambda value=value: Ramp(coop(), value) for value in ("3", None, True, 0, NAN)],
    "start": [lambda: Ramp(coop(), 3, start="a"), lambda: Ramp(coop(), 3, start=-1)],
    "`model`": [lambda: Ramp(net(), 3), lambda: Ramp(None, 3)],
    r"\bevery\b": [lambda: Progress("a"), lambda: Progress(NAN), lambda: HardExampleLog("a", X, Y, every=0)],
    "show": [lambda: ShowHardExamples(X, Y, show=3)],
    "models": [
        lambda: measure({1: net(), "1": net()}, [(X, Y)], num_classes=3),
        lambda: measure(nn.Conv2d(3, 3, 1), [(X, Y)], num_classes=3),
    ],
    "shifts": [
        lambda: measured(shifts={"none": lambda images, severity, generator: 0 * images}),
        lambda: measured(shifts={"mine": lambda images, severity, generator: NAN * images}),
        lambda: measured(shifts={"mine": lambda images, severity, generator: images.long()}),
        lambda: measured(shifts={"mine": lambda images, severity, generator: images.to("meta")}),
    ],
    "seed": [
        lambda: trainer(seed=2**63),
        lambda: ShowHardExamples(X, Y, seed="a"),
        lambda: trainer(seed="a"),
        lambda: trainer(seed=1.5),
        lambda: trainer(seed=-1),
        lambda: trainer(seed=True),
        lambda: measured(seed="a"),
        lambda: measured(seed=-1),
    ],
    "severities": [lambda value=value: measured(severities=value) for value in ([], [0], [6], [True], ["1"], [1.0], 3)],
    "then": [
        lambda: measured(then=3),
        lambda: measured(then=lambda images: None),
        lambda: measured(then=lambda images: images[:1]),
        lambda: measured(then=lambda images: images[..., :16]),
        lambda: measured(then=lambda images: NAN * images),
        lambda: measured(then=lambda images: images.numpy()),
    ],
    "logits": [lambda: measured(logits="out")],
    r"\bcall\b": [lambda value=value: LatentTap(net(), "2", call=value) for value in ("a", 1.0, True, None)],
    "transform": [lambda value=value: LatentTap(net(), transform=value) for value in (3, "mix", RandomChannelMask)],
    "accumulate": [lambda value=value: trainer(accumulate=value) for value in (0, -1, 1.5, "2", True, None)],
    "clip_norm": [lambda value=value: trainer(clip_norm=value) for value in (0, -1, NAN, INF, "1", True)],
    "callback": [
        lambda: trainer(callbacks=[print]),
        lambda: trainer(callbacks=[la.Callback]),
        lambda: trainer(callbacks=3),
        lambda: trainer(callbacks=["log"]),
    ],
    "precision": [lambda: trainer(precision="float8"), lambda: trainer(precision=None), lambda: trainer(precision=16)],
    "batch": [
        *[lambda value=value: trainer(batch=value) for value in (3, "pair")],
        *[lambda value=value: trainer(batch=lambda batch: value).fit([(X, Y)], epochs=1) for value in (None, "ab", X)],
        lambda: trainer(batch=lambda batch: (*batch, 1)).evaluate([(X, Y)]),
        lambda: trainer(batch=lambda batch: [one.numpy() for one in batch]).fit([(X, Y)], epochs=1),
        lambda: CooperativeTrainer(net(), num_classes=3, batch=lambda batch: {}, callbacks=[]).fit([(X, Y)], epochs=1),
    ],
    r"\bstep\b": [
        lambda: trainer(step="cooperative"),
        *[
            lambda value=value: trainer(step=lambda *args, **options: value).fit([(X, Y)], epochs=1)
            for value in (None, X.mean(), {"loss": X.mean()})
        ],
        lambda: trainer(step=lambda model, images, labels, **options: model(images, labels)).fit([(X, Y)], epochs=1),
    ],
    "allocator": [lambda: trainer(allocator="yes"), lambda: trainer(allocator=1)],
    "optimizer": [lambda: trainer(optimizer="adam"), lambda: trainer(optimizer=torch.optim.Adam(net().parameters()))],
    "scheduler": [lambda: trainer(scheduler="cosine"), lambda: trainer(scheduler=3)],
    "epochs": [lambda value=value: fit(epochs=value) for value in (0, -1, 1.5, NAN, "2", True)],
    "max_steps": [lambda value=value: fit(max_steps=value) for value in (0, -1, 1.5, "2", True)],
    "loader": [
        lambda: fit(3),
        lambda: fit(None),
        lambda: fit(X),
        lambda: fit("train"),
        lambda: fit(val_loader=3),
        lambda: fit(val_loader=X),
        lambda: measured(None),
        lambda: measured(3),
        lambda: measured([(X[:0], Y[:0])]),
        lambda: measured([(X.mean(), Y[0, 0, 0])]),
        lambda: measured([(NAN * X, Y)]),
        *[lambda value=value: trainer().evaluate(value) for value in (None, 3, X, "test", {})],
    ],
    "images": [
        lambda: ShowHardExamples(None, Y),
        lambda: ShowHardExamples(X.numpy(), Y),
        lambda: coop().explain(X.numpy(), Y),
        lambda: coop().explain(X[:0], Y[:0]),
        lambda: coop().explain(X.repeat(1, 3, 1, 1), Y),
        lambda: step(images=X.cfloat()),
        lambda: step(images=X.half()),
        lambda: step(images=X.double()),
        lambda: step(images=X.bfloat16()),
        lambda: step(images=(255 * X).byte()),
        lambda: step(images=(255 * X).long()),
        lambda: step(images=torch.rand(2, 3, 32, 32)),
        lambda: step(images=torch.rand(2, 1, 8, 32, 32), labels=torch.zeros(2, 8, 32, 32).long()),
        lambda: step(images=X[0], labels=Y[0]),
        lambda: step(images=X[:, 0]),
        lambda: step(images=X[:0], labels=Y[:0]),
        lambda: step(images=X.numpy()),
        lambda: step(images=[X]),
        lambda: step(images=None),
        lambda: step(images=X.to("meta"), labels=Y.to("meta")),
        lambda: step(images=255 * X),
        lambda: coop().predict(X.numpy()),
        lambda: coop().predict([X]),
        lambda: coop().predict(None),
        lambda: coop().predict(X[0]),
        lambda: coop().predict(X.repeat(1, 3, 1, 1)),
        lambda: trainer().predict(None),
        lambda: trainer().predict(X.numpy()),
        lambda: coop()(X.numpy(), Y),
        lambda: standard_backward(coop(), X.numpy(), Y),
    ],
    "labels": [
        lambda: ShowHardExamples(X, None),
        lambda: HardExampleLog("run", X, Y.tolist()),
        lambda: coop().explain(X, None),
        lambda: coop().explain(X, Y.tolist()),
        lambda: measured([(X, Y + 1)]),
        lambda: measured([(X, Y - 1)]),
        lambda: measured([(X, Y + 0.5)]),
        lambda: measured([(X, Y[:, :16])]),
        lambda: step(labels=Y.numpy()),
        lambda: step(labels=[Y]),
        lambda: step(labels=Y[:1]),
        lambda: step(labels=Y.to("meta")),
        lambda: step(labels=Y + 5),
        lambda: step(labels=Y - 1),
        lambda: step(labels=Y + 0.5),
        lambda: step(labels=torch.zeros(2, 3, 32, 32).long()),
        lambda: coop()(X),
    ],
    "refine": [
        lambda: coop().predict(X, refine=1.5),
        lambda: coop().predict(X, refine=-1),
        lambda: coop().predict(X, refine="1"),
        lambda: coop().predict(X, refine=True),
        lambda: coop().refine(torch.rand(2, 3, 32, 32), steps=-1),
    ],
    "generator": [
        lambda: MASK(CODE, generator=0),
        lambda: MASK(CODE, generator="cpu"),
        lambda: coop()(X, Y, generator=1),
        lambda: step(generator=0),
        lambda: standard_backward(coop(), X, Y, generator=0),
        lambda: la.GIN().augment(X, generator=0),
    ],
    "scaler": [
        lambda: step(scaler=1),
        lambda: step(scaler="float16"),
        lambda: standard_backward(coop(), X, Y, scaler=2),
    ],
    "backward": [
        lambda: step(backward=1),
        lambda: step(backward=Tensor),
        lambda: step(backward=lambda loss: None),
        lambda: standard_backward(coop(), X, Y, backward="loss"),
    ],
    "CooperativeModel|`model`": [
        lambda: cooperative_backward(net(), X, Y),
        lambda: standard_backward(net(), X, Y),
        lambda: cooperative_backward(CooperativeModel, X, Y),
        lambda: cooperative_backward(None, X, Y),
    ],
    "model": [
        lambda: CooperativeTrainer(net, num_classes=3),
        lambda: CooperativeTrainer(None, num_classes=3),
        lambda: CooperativeModel(net, num_classes=3, example=X),
        lambda: CooperativeModel("unet", num_classes=3, example=X),
        lambda: LatentTap(net, "2"),
        lambda: LatentTap("unet"),
        lambda: find_bottleneck(net, X),
        lambda: find_codes("unet", X),
        lambda: la.describe(nn.Conv2d, X),
        lambda: suggest_layers(net, X, la.MixStyle()),
        lambda: augmented(net, {"0": la.MixStyle()}),
        lambda: la.SaliencyCalculator(net, "2"),
    ],
    "num_classes": [
        *[lambda value=value: coop(num_classes=value) for value in ("3", 3.0, True, 0, -1, None)],
        lambda: coop(num_classes=5),
        lambda: FTN(num_classes=0),
        lambda: FTN(num_classes=2.0),
        lambda: la.ShapePrior(num_classes=0),
        lambda: la.ShapePrior(num_classes="2"),
        lambda: CooperativeTrainer(net()),
        lambda: CooperativeTrainer(coop(), num_classes=4),
        lambda: CooperativeTrainer(net(), num_classes=0),
    ],
    "example": [
        lambda: coop(example=X[0]),
        lambda: coop(example=(255 * X).byte()),
        lambda: coop(example=X.numpy()),
        lambda: coop(example=None),
        lambda: coop(example=X[:0]),
        lambda: LatentTap(net(), example=X[0]),
        lambda: LatentTap(net(), example=Y),
        lambda: LatentTap(net(), example="image.png"),
        lambda: find_bottleneck(net(), Y),
        lambda: find_bottleneck(net(), X[0]),
        lambda: find_bottleneck(net(), torch.rand(2, 3, 32, 32)),
        lambda: find_bottleneck(net(), X.numpy()),
        lambda: find_codes(net(), X[0]),
        lambda: find_codes(net(), None),
        lambda: la.describe(net(), (255 * X).byte()),
        lambda: suggest_layers(net(), Y, la.MixStyle()),
        lambda: CooperativeTrainer(net(), num_classes=3, example="images"),
    ],
    "ignore_index": [
        lambda value=value, make=make: make(ignore_index=value)
        for value in ("x", 1.5, None, True)
        for make in (coop, measured)
    ],
    "image_range": [
        *[
            lambda value=value: coop(image_range=value)
            for value in (1, (0,), (0, INF), (NAN, 1), (1, 0), (0, 0), "unit")
        ],
        lambda: FTN(image_range=(1, 0)),
        lambda: FTN(image_range=3),
        lambda: la.ReconstructionHead(8, 1, (2, 2), image_range=(0, 1, 2)),
    ],
    "weight": [
        *[lambda value=value: coop(weights={"segmentation": value}) for value in (-1, NAN, INF, "1", None, True)],
        lambda: coop(weights={"dice": 1.0}),
        lambda: setattr(coop(), "weights", {"segmentation": -1}),
    ],
    "loss": [
        lambda: coop(loss="ce"),
        lambda: coop(loss=nn.CrossEntropyLoss),
        lambda: coop(loss=3),
        lambda: step(coop(loss=nn.CrossEntropyLoss(reduction="none"))),
        lambda: step(coop(loss=lambda logits, labels: 1.0)),
        lambda: step(coop(loss=lambda logits, labels: None)),
        lambda: step(coop(loss=lambda logits, labels: logits.mean().cfloat())),
        lambda: step(coop(loss=lambda logits, labels: (logits.argmax(1) != labels).sum())),
        lambda: step(coop(loss=nn.BCEWithLogitsLoss())),
        lambda: tapped(lambda tap, model: latent_saliency(model(X).sum().item(), tap.code)),
        lambda: tapped(lambda tap, model: latent_saliency(model(X), tap.code)),
        lambda: tapped(lambda tap, model: latent_saliency(torch.ones(()), tap.code)),
        lambda: tapped(lambda tap, model: latent_saliency(None, tap.code)),
    ],
    "shape_prior": [
        lambda: step(coop(shape_prior=nn.Conv2d(3, 3, 1))),
        lambda: coop(shape_prior=1),
        lambda: coop(shape_prior="stn"),
        lambda: coop(shape_prior=la.ShapePrior),
    ],
    "reconstruction": [
        lambda: coop(reconstruction=nn.Conv2d(8, 1, 1)),
        lambda: coop(reconstruction=3),
        lambda: coop(reconstruction=la.ReconstructionHead),
        lambda: coop(reconstruction=la.ReconstructionHead(8, 3, (4, 4))),
    ],
    r"\bcodes\b": [lambda: coop(codes={"mask": "2"}), lambda: coop(codes={"image": "2", "other": "2"})],
    "augment": [
        lambda: coop(augment="paper"),
        lambda: coop(augment=RandomChannelMask),
        lambda: coop(augment=(MASK, MASK, MASK)),
        lambda: coop(augment=la.ManifoldMixup()),
        lambda: coop(augment=la.MaxStyle()),
        lambda: coop(augment=la.VAT()),
    ],
    "hard": [lambda: coop(hard=0.5), lambda: coop(hard=HardExamples), lambda: setattr(coop(), "hard", None)],
    "input_noise": [lambda: coop(input_noise=-1), lambda: coop(input_noise=NAN)],
    "noise": [lambda value=value: HardExamples(noise=value) for value in (-1, NAN, INF, "0.1")],
    "mix": [
        *(lambda value=value: HardExamples(mix=value) for value in (0, 1.5, NAN, "half")),
        lambda: coop(hard=HardExamples(mix=0.5)),
    ],
    "every": [lambda value=value: HardExamples(every=value) for value in (0, 1.5, True, "2")],
    "separate_decoder": [lambda: HardExamples(separate_decoder="no")],
    "image": [lambda: coop(codes={"image": "0"}, reconstruction=False)],
    "residual": [
        lambda value=value: HardExamples(residual=value) for value in (-1, 2, NAN, "1", True, (1, 0), (0, 1, 2))
    ],
    "fraction": [lambda value=value: HardExamples(fraction=value) for value in (0, -0.5, 2, NAN, "1", True)],
    "scale": [
        *(lambda value=value: HardExamples(scale=value) for value in (0, -0.5, 2, NAN, "1", True)),
        *(lambda value=value: la.ReconstructionHead(4, 1, (4, 4), scale=value) for value in (0, 2, NAN)),
        *(lambda value=value: step(scale=value) for value in (0, -1.0, float("inf"), "1")),
    ],
    "saliency_every": [lambda value=value: HardExamples(saliency_every=value) for value in (0, -1, 1.5, "2", True)],
    "frozen_norms": [
        lambda: HardExamples(frozen_norms="model"),
        lambda: coop(hard=HardExamples(frozen_norms=["none"])),
    ],
    "style": [
        lambda: HardExamples(style="max"),
        lambda: HardExamples(style=la.MaxStyle),
        lambda: HardExamples(style=la.VAT()),
    ],
    "stage": [lambda: coop()(X, Y, stage="hard"), lambda: coop()(X, Y, stage=2)],
    r"\bp\b": [
        *[
            lambda value=value: RandomChannelMask(value)
            for value in (True, -0.1, 1.1, NAN, "0.5", None, (0.5, 0.1), (0, 1, 2))
        ],
        *[lambda value=value: la.DropBlock(value) for value in (True, -0.1, 1.1, NAN)],
        *[lambda value=value: la.MixStyle(value) for value in (True, -0.1, 1.1, NAN)],
        *[lambda value=value: RandomApply(MASK, value) for value in (True, -0.1, 1.1, NAN, "half")],
        lambda: la.DropBlock(Schedule(0.0, 2.0, iterations=10)),
    ],
    "percentile": [
        *[lambda value=value: TargetedChannelMask(value) for value in (True, -0.1, 1.1, NAN, "0.5", 50)],
        *[lambda value=value: top_mask(FLAT, torch.tensor(value), 0) for value in (5.0, -1.0, NAN, [0.5, 0.5])],
        lambda: la.TargetedSpatialMask((0.5, 0.1)),
    ],
    "annealing": [lambda value=value: TargetedChannelMask(0.5, value) for value in (True, -0.1, 1.1, NAN, "0.5")],
    "score": [
        lambda: TargetedChannelMask(score="gradient"),
        lambda: top_mask(CODE, 0.5, 0),
        lambda: top_mask(FLAT.long(), 0.5, 0),
        lambda: la.TargetDrop(score="signed?"),
    ],
    "transform|masker": [
        lambda: Compose(RandomChannelMask),
        lambda: Compose(None),
        lambda: Compose([]),
        lambda: Compose([3]),
        lambda: Compose([RandomChannelMask]),
        lambda: OneOf(MASK),
        lambda: OneOf(None),
        lambda: OneOf([MASK, "mask"]),
        lambda: RandomApply("mask"),
        lambda: augmented(net(), {}),
        lambda: augmented(net(), None),
        lambda: augmented(net(), {"2": RandomChannelMask}),
        lambda: suggest_layers(net(), X, "MixStyle"),
        lambda: suggest_layers(net(), X, la.MixStyle),
        lambda: LatentTap(net(), "2", transform=la.MixStyle()),
    ],
    "weights": [lambda: OneOf({MASK: -1.0}), lambda: OneOf({MASK: 0.0}), lambda: OneOf({MASK: NAN})],
    "layer|submodule": [
        lambda: LatentTap(net(), 3),
        lambda: LatentTap(net(), 2.5),
        lambda: LatentTap(net(), "encoder"),
        lambda: LatentTap(net(), []),
        lambda: LatentTap(net(), nn.Conv2d(1, 1, 1)),
        lambda: LatentTap(net(), nn.Conv2d),
        lambda: augmented(net(), {"encoder": la.MixStyle()}),
        lambda: la.SaliencyCalculator(net(), "encoder"),
    ],
    "(?i)layout": [
        lambda: MASK(CODE, layout="tokens"),
        lambda: MASK(CODE, layout=-1),
        lambda: MASK(CODE, layout=Layout),
        lambda: Layout(prefix_tokens=-1),
        lambda: Layout(channel_dim=0),
        lambda: Layout("last"),
        lambda: Layout(-1, "two"),
    ],
    "code": [
        *[
            lambda kind=kind: tapped(lambda tap, model: tap.replay(tap.code.to(kind)))
            for kind in (torch.long, torch.double, torch.half, torch.cfloat)
        ],
        lambda: tapped(lambda tap, model: tap.replay(tap.code[:1])),
        lambda: tapped(lambda tap, model: tap.replay(tap.code.detach().numpy())),
        lambda: tapped(lambda tap, model: tap.replay("code")),
        lambda: tapped(lambda tap, model: tap.replay([tap.code, tap.code])),
        lambda: tapped(lambda tap, model: tap.replay(lambda code: code.sum())),
        lambda: tapped(lambda tap, model: tap.replay(lambda code: None)),
        lambda: MASK(CODE.numpy()),
        lambda: MASK(CODE.long()),
        lambda: MASK(None),
        lambda: MASK(CODE).apply(torch.rand(2, 6, 3, 3)),
        lambda: MASK(CODE).apply(CODE.numpy()),
        lambda: MASK(CODE).apply(torch.rand(2, 4, 3)),
        lambda: tapped(lambda tap, model: latent_saliency(model(X).sum(), None)),
        lambda: tapped(lambda tap, model: latent_saliency(model(X).sum(), [tap.code, 3])),
    ],
    "saliency": [
        lambda: TargetedChannelMask()(CODE),
        lambda: TargetedChannelMask()(CODE, CODE[:1]),
        lambda: TargetedChannelMask()(CODE, CODE.numpy()),
        lambda: la.RSC()(CODE),
        lambda: la.FGSM()(CODE),
    ],
    "loss_at": [lambda: la.MaxStyle(p=1)(CODE), lambda: la.FGSM(steps=2)(CODE, CODE)],
    "divergence_at": [lambda: la.VAT()(CODE)],
    "objective": [
        lambda: tapped(lambda tap, model: tap.replay(TargetedChannelMask())),
        lambda: tapped(lambda tap, model: tap.draw(la.MaxStyle(p=1))),
        lambda: tapped(lambda tap, model: tap.draw(la.FGSM())),
    ],
    "in_channels": [lambda: FTN(in_channels=0), lambda: FTN(in_channels=1.0)],
    "width": [lambda: FTN(width=0), lambda: FTN(width=2.5), lambda: la.ShapePrior(3, width=0)],
    "depth": [lambda: FTN(depth=0), lambda: FTN(depth=1.5), lambda: la.ShapePrior(3, depth=0)],
    "spatial_dims": [
        lambda: FTN(spatial_dims=4),
        lambda: FTN(spatial_dims="2"),
        lambda: la.ShapePrior(3, spatial_dims=0),
        *[lambda value=value: la.CodeDecoupler(8, value) for value in (0, 4, "2")],
    ],
    "channels": [
        *[lambda value=value: la.CodeDecoupler(value) for value in (0, -1, "8")],
        lambda: la.ReconstructionHead(0, 1, (2, 2)),
        lambda: la.ReconstructionHead(8, 0, (2, 2)),
    ],
    "temperature": [lambda value=value: la.ShapePrior(3, temperature=value) for value in (0, -1, NAN, "2", True)],
    "block_size": [lambda value=value: la.DropBlock(0.1, value) for value in (0, -1, 1.5, "7", True)],
    "alpha": [lambda: la.MixStyle(alpha=0), lambda: la.ManifoldMixup(alpha=-1), lambda: la.EFDMix(alpha=NAN)],
    "partner": [lambda: la.MixStyle(partner="next"), lambda: la.EFDMix(partner=None)],
    "strength": [lambda: la.FGSM(-1), lambda: la.VAT(NAN), lambda: la.AdvStyle("1"), lambda: la.GIN(strength=2)],
    "steps": [lambda value=value: la.MaxStyle(steps=value) for value in (-1, 1.5, "5", True)],
    "iterations": [lambda value=value: Schedule(0.0, 1.0, iterations=value) for value in (0, -1, 1.5, "5", True)],
}
ROWS = [(word, i, call) for word, calls in CALLS.items() for i, call in enumerate(calls)]


def test_there_are_enough_of_them() -> None:
    assert len(ROWS) >= 200


@pytest.mark.parametrize(
    ("word", "call"), [(word, call) for word, _, call in ROWS], ids=[f"{w}-{i}" for w, i, _ in ROWS]
)
def test_a_wrong_call_is_refused_by_the_name_of_its_argument(word: str, call: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
        call()
    assert re.search(word, str(caught.value)), caught.value


def test_right_calls_are_let_through() -> None:
    """What looks like a wrong one and is none."""
    assert len(trainer(callbacks=(one for one in [la.Callback()])).callbacks) == 1
    measured([(X.double(), Y)], severities=np.array([1, 2]), then=lambda images: images.clamp(0, 1))
    assert step(coop(loss=lambda logits, labels: logits.mean()[None])).loss.shape == ()
    coop(num_classes=3, image_range=[0, 1], weights={"segmentation": np.float32(1)})
    trainer(clip_norm=np.float64(1.0), callbacks=()).fit([(X, Y)], epochs=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step()
    mask: Tensor = MASK(CODE[:1]).apply(CODE)  # one mask for all samples
    assert mask.shape == CODE.shape
