"""What users and libraries do to a finished model: hooks, weights made of others, forwards of their own."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.case import Case, entered_in
from tests.models.hostile.skips import SkipConnection
from tests.models.parts import Base, conv

CASES: dict[str, Case] = {}
hostile = entered_in(CASES)


def with_skip(change: Callable[[Base], None]) -> Callable[[], Base]:
    """Build the plain network with a skip connection, changed by its user."""

    def build() -> Base:
        model = SkipConnection()
        change(model)
        return model

    return build


def parts(model: Base) -> list[nn.Module]:
    return [model.stem, model.code, model.up, model.head]


class Squash(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.tanh()


def weight_norms(model: Base) -> None:
    for part in parts(model):
        nn.utils.parametrizations.weight_norm(part)


def old_weight_norms(model: Base) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, but such models are around
        for part in parts(model):
            nn.utils.weight_norm(part)


def squashed_weights(model: Base) -> None:
    for part in parts(model):
        nn.utils.parametrize.register_parametrization(part, "weight", Squash())


class Adapted(nn.Module):
    """A frozen layer with a small one beside it that learns."""

    def __init__(self, frozen: nn.Conv2d) -> None:
        super().__init__()
        self.frozen, self.drop = frozen.requires_grad_(False), nn.Dropout(0.2)
        self.down = nn.Conv2d(frozen.in_channels, 2, 1, frozen.stride)
        self.up = nn.Conv2d(2, frozen.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.up(self.down(self.drop(x)))


def adapters(model: Base) -> None:
    model.stem, model.code = Adapted(model.stem), Adapted(model.code)


def forwards_of_ones_own(model: Base) -> None:
    whole, code = model.forward, model.code.forward
    model.forward = lambda x: whole(x) * 2  # type: ignore[method-assign]
    model.code.forward = lambda x: code(x) + 1  # type: ignore[method-assign]


def hooks_that_change(model: Base) -> None:
    """Hooks see, and change, what goes into every module and what comes out."""
    for module in (model, *parts(model)):
        module.register_forward_pre_hook(lambda module, args: (args[0] * 2 + 1,))
        module.register_forward_hook(lambda module, args, output: output.clamp(-0.8, 0.8))


def hooks_that_draw(model: Base) -> None:
    """Hooks take random numbers, also before the model's forward begins."""
    for module in (model, *parts(model)):
        module.register_forward_pre_hook(lambda module, args: (F.dropout(args[0], 0.2),))
        module.register_forward_hook(lambda module, args, output: F.dropout(output, 0.2))


def backward_hooks(model: Base) -> None:
    """Gradients are counted on their way out of a module, and changed on their way in."""
    for module in (model, *parts(model)):
        module.register_full_backward_pre_hook(lambda module, grads: tuple(grad * 2 for grad in grads))
    model.middle.register_full_backward_hook(lambda module, grads, _: tuple(grad * 3 for grad in grads))


class WithMiddle(Base):
    """Something stands between stem and code whose gradients a hook changes."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Sequential(conv(4, 4), nn.Tanh())
        backward_hooks(self)

    def forward(self, x: Tensor) -> Tensor:
        a = self.middle(self.stem(x))
        return self.head(self.up(F.relu(self.code(a))) + a)


CASES |= {
    "WeightNorm": Case(with_skip(weight_norms), "code"),
    "OldWeightNorm": Case(with_skip(old_weight_norms), "code"),
    "SquashedWeights": Case(with_skip(squashed_weights), "code"),
    "Adapters": Case(with_skip(adapters), "code"),
    "InsideAnAdapter": Case(with_skip(adapters), "code.frozen"),
    "ForwardsOfOnesOwn": Case(with_skip(forwards_of_ones_own), "code"),
    "HooksThatChange": Case(with_skip(hooks_that_change), "code"),
    "HooksThatDraw": Case(with_skip(hooks_that_draw), "code"),
    "BackwardHooks": Case(WithMiddle, "code"),
}


@hostile("code")
class ScriptedParts(Base):
    """Submodules that Python cannot look into."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # scripting is deprecated, but scripted models are around
            self.pre = torch.jit.script(nn.Sequential(conv(3, 3), nn.ReLU()))
            self.code = torch.jit.script(nn.Sequential(conv(4, 6, 2), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(self.pre(x))
        return self.head(self.up(self.code(a)) + a)
