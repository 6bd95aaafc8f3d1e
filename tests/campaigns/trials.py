"""What is done to a random network, and the verdict: its replays equal whole passes, or are refused by name.

The oracle knows nothing of replays. A twin of the network, built alike and with the same past, makes one whole pass
from the same random state, in which a plain forward hook returns the changed code.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import latentaug
from latentaug.tap.latent_tap import LatentTap
from latentaug.tracing.fast_path import without_fast_path
from tests.campaigns.networks import network
from tests.campaigns.pieces import Checkpointed
from tests.support.belongings import belongings, differences
from tests.support.compare import close, gradients, same
from tests.support.random_streams import random_state, seed_all
from tests.support.trees import at, swapped

Path_ = tuple[Any, ...]
Change = Callable[[Tensor], Tensor] | list[Tensor]  # of each code, or what is put in their places


@dataclass(frozen=True)
class Trial:
    """One random network, in one of its lives, and the places of the codes that are tapped."""

    seed: int
    train: bool
    past: int  # passes before
    grad: bool
    autocast: bool
    frozen: float
    mixed: float
    spots: tuple[tuple[str, Path_, int], ...] = ()  # layer, place in what it returns, call
    call: int = -1

    def build(self) -> tuple[nn.Module, Tensor]:
        """Build the network with its past; the same every time."""
        rng = random.Random(self.seed)
        model, shape = network(rng)
        modules = [module for _, module in model.named_modules()][1:]
        model.train(self.train)
        for module in modules:
            if rng.random() < self.mixed:
                module.train(not module.training)
        for module in modules:
            if rng.random() < self.frozen:
                module.requires_grad_(False)
        if self.autocast:
            model.float()
        images = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        images = images.float() if self.autocast else images
        for number in range(self.past):
            seed_all(number)
            with self.context(), torch.no_grad():
                model(0.5 * images.flip(0))
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight) if weight.requires_grad else None
        return model, images

    def context(self) -> Any:
        """Return a context like that of the user's pass."""
        return torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext()

    def run(self, model: nn.Module, images: Tensor, **grad: bool) -> Any:
        """Run the user's pass."""
        seed_all(11)
        with self.context(), torch.set_grad_enabled(grad.get("grad", self.grad)):
            return model(images.clone())


def trial(seed: int) -> Trial | None:
    """Draw a trial; None if PyTorch itself refuses the network, as for a tensor that is changed and needed."""
    rng = random.Random(f"trial {seed}")
    found = Trial(
        seed=seed,
        train=rng.random() < 0.65,
        past=rng.choice([0, 0, 1, 2]),
        grad=rng.random() < 0.85,
        autocast=rng.random() < 0.07,
        frozen=rng.choice([0, 0, 0, 0.1]),
        mixed=rng.choice([0, 0, 0, 0.15]),
    )
    try:
        places = list(_places(found))
    except RuntimeError:
        return None
    first = rng.choice(places)
    call = rng.choice([first[2], first[2] - 1 - max(n for name, _, n in places if name == first[0])])
    spots = [first]
    if rng.random() < 0.15 and call == -1:
        last = {name: n for name, _, n in places}
        others = [p for p in places if p[0] != first[0] and p[2] == last[p[0]]]
        spots += [rng.choice(others)] if others else []
    return Trial(**{**vars(found), "spots": tuple(spots), "call": call})


def _places(found: Trial) -> Iterator[tuple[str, Path_, int]]:
    """Yield where a pass returns tensors that may be tapped."""
    model, images = found.build()
    seen: list[tuple[str, Path_]] = []
    for name, module in model.named_modules():
        if name and not any(_now_and_then(model.get_submodule(outer)) for outer in _outer(name)):
            module.register_forward_hook(
                lambda module, args, output, name=name: seen.extend((name, path) for path in _paths(output))
            )
    output = found.run(model, images)
    called = list(seen)  # before checkpointed parts are called again
    gradients(model, output)
    counts: dict[Any, int] = {}
    for place in called:
        number = counts[place] = counts.get(place, -1) + 1
        yield (*place, number)


def _outer(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts)))


def _now_and_then(module: nn.Module) -> bool:
    """Tell whether a module calls those inside it in some passes only, or again in the backward pass."""
    return getattr(module, "how", "") in ("depth", "choice") or isinstance(module, Checkpointed)


def _paths(tree: Any, path: Path_ = ()) -> Iterator[Path_]:
    if isinstance(tree, Tensor):
        if tree.is_floating_point() and tree.ndim > 1:
            yield path
    elif isinstance(tree, dict):
        for key, child in tree.items():
            yield from _paths(child, (*path, key))
    elif isinstance(tree, list | tuple):
        for index, child in enumerate(tree):
            yield from _paths(child, (*path, index))


# The oracle -----------------------------------------------------------------------------------------------------------
@dataclass
class Pass:
    """A whole pass: what came of it."""

    output: Any = None
    codes: dict[int, Tensor] = field(default_factory=dict)  # as returned, kept by value
    leaves: dict[int, Tensor] = field(default_factory=dict)  # what was put in their places
    by_weights: list[Tensor | None] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)  # what the model keeps then
    model: Any = None
    images: Any = None


def whole_pass(case: Trial, change: Change | None, *, grad: bool, detached: bool = False) -> Pass:
    """Run a twin with the codes changed by plain hooks; without a change, hooks that only look."""
    made = Pass()
    made.model, made.images = case.build()
    for index, place in enumerate(case.spots):
        _hook(made, index, place, change[index] if isinstance(change, list) else change, grad)
    weights = [weight for weight in made.model.parameters() if weight.requires_grad]
    constant = detached and grad
    if constant:
        _constant_until(made.model, case, weights)
    with without_fast_path() if constant else nullcontext():  # which the pass with gradients has not taken
        made.output = case.run(made.model, made.images, grad=grad)
    made.kept = belongings(made.model)
    if grad:
        made.by_weights = gradients(made.model, made.output, _in_order(made.leaves))
    return made


def _hook(
    made: Pass,
    index: int,
    place: tuple[str, Path_, int],
    change: Callable[[Tensor], Tensor] | Tensor | None,
    grad: bool,
) -> None:
    name, path, number = place
    calls = iter(range(10**6))

    def hook(module: Any, args: Any, output: Any) -> Any:
        if next(calls) != number:
            return None
        code = at(output, path)
        made.codes[index] = code.detach().clone()
        if change is None:
            return None
        if isinstance(change, Tensor):
            made.leaves[index] = change.clone().requires_grad_(grad)
        with torch.set_grad_enabled(grad):  # also within a part that runs without gradients
            new = made.leaves[index] if isinstance(change, Tensor) else change(code)
            return swapped(output, code, new.clone())

    made.model.get_submodule(name).register_forward_hook(hook, prepend=True)


def _in_order(tensors: dict[int, Tensor]) -> list[Tensor]:
    return [tensors[index] for index in sorted(tensors)]


def _constant_until(model: nn.Module, case: Trial, weights: list[Tensor]) -> None:
    """Let weights be constants until the first code is reached."""
    for weight in weights:
        weight.requires_grad_(False)
    for name, _, number in case.spots:
        calls = iter(range(10**6))

        def thaw(module: Any, args: Any, output: Any, calls: Any = calls, number: int = number) -> None:
            if next(calls) == number:
                for weight in weights:
                    weight.requires_grad_(True)

        model.get_submodule(name).register_forward_hook(thaw, prepend=True)


def halved(code: Tensor) -> Tensor:
    """Change a code within its graph."""
    return code * 0.5 + 0.1


def as_it_is(code: Tensor) -> Tensor:
    """Leave a code as it is."""
    return code


# The verdict ----------------------------------------------------------------------------------------------------------
class Wrong(AssertionError):
    """The library has done something else than it promises."""


@dataclass
class Verdict:
    """What became of a trial."""

    seed: int
    refused: str = ""  # the reason, where the library refuses a replay
    fast: bool = False  # whether replays skipped something


def judge(case: Trial) -> Verdict:
    """Hold the replays of a network against whole passes.

    Raises:
        Wrong: One differs; something is left behind; or what is raised is none of the library's own.
    """
    plain = whole_pass(case, None, grad=case.grad)
    stream = random_state()
    model, images = case.build()
    for name, _, _ in case.spots:  # as in the twin: with a hook, transformer encoders take no fast path
        model.get_submodule(name).register_forward_hook(lambda *_: None)
    before = traces(model)
    verdict = Verdict(case.seed)
    layers = [name + "".join(f"[{key!r}]" for key in path) for name, path, _ in case.spots]
    with refusals(verdict), LatentTap(model, layers, call=case.call) as tap:
        output = case.run(model, images)
        _see(same(output, plain.output), "the captured pass differs from a plain one")
        _see(random_state() == stream, "the random streams are not as after a plain pass")
        _see_kept(model, plain.kept, "after the captured pass")
        _see(same(list(tap.codes), _in_order(plain.codes)), "the codes differ from a plain pass's")
        if case.grad:
            _see(_close(case, gradients(model, output), plain.by_weights), "gradients of the captured pass differ")
            _see_kept(model, belongings(plain.model), "after the backward pass")
        verdict.fast = bool(tap._capture is not None and tap._capture.can_skip() and tap._capture.plan.kept)
        for change in (as_it_is, halved, [0.7 * code.flip(-1) for code in _in_order(plain.codes)]):
            expected = [whole_pass(case, change, grad=case.grad)]
            cut = isinstance(change, list)  # whose gradients alone tell what was cut off
            expected += [whole_pass(case, change, grad=True, detached=True)] if case.grad and cut else []
            for full in (False, True):
                for detach in (False, True) if cut else (False,):
                    _judge_replay(case, model, tap, change, expected, full=full, detach=detach)
        _see(same(list(tap.codes), _in_order(plain.codes)), "replays have changed the codes")
    _see(traces(model) == before, "something is left on the model")
    if verdict.refused or _is_checkpointed(model):
        return verdict
    seed_all(5)
    again = plain.model(plain.images.clone())
    seed_all(5)
    _see(same(model(images.clone()), again), "the next plain pass differs")
    _see_kept(model, belongings(plain.model), "after the next plain pass")
    return verdict


def _is_checkpointed(model: nn.Module) -> bool:
    return any(isinstance(module, Checkpointed) for module in model.modules())


def _judge_replay(
    case: Trial, model: nn.Module, tap: LatentTap, change: Change, expected: list[Pass], *, full: bool, detach: bool
) -> None:
    what = _name(change, full=full, detach=detach)
    # With weights that are constants PyTorch takes other kernels here and there, which round otherwise.
    outputs = [one.output for one in (expected if detach else expected[:1])]
    given = [one.clone().requires_grad_(case.grad) for one in change] if isinstance(change, list) else []
    new: Any = given or [change] * len(case.spots)
    # Backward passes have moved what checkpointed parts keep, as they run these again; and oracles the random streams.
    kept, stream = belongings(model), random_state()
    output = tap.replay(new, full=full, detach=detach)
    _see(random_state() == stream, f"{what} moves the random streams")
    _see(any(same(output, one) for one in outputs), f"{what} differs from a whole pass")
    _see_kept(model, kept, f"after {what}")
    if case.grad and (given or not detach):
        found = gradients(model, output, given)
        _see(_close(case, found, expected[detach].by_weights), f"gradients of {what} differ from a whole pass's")


def _name(change: Change, **how: bool) -> str:
    what = "of other codes" if isinstance(change, list) else f"of codes {change.__name__}"
    return f"a replay {what} ({', '.join(f'{key}={value}' for key, value in how.items())})"


def _close(case: Trial, found: list[Tensor | None], expected: list[Tensor | None]) -> bool:
    return close(found, expected, 2e-2) if case.autocast else close(found, expected)


@contextmanager
def refusals(verdict: Verdict) -> Iterator[None]:
    """Note a refusal, if it is the library's own and says so."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        ours = Path(latentaug.__file__).parent in raised_in.parents and "LatentTap" in str(error)
        if not ours:
            raise Wrong(f"what is raised is none of the library's own: {type(error).__name__}: {error}") from error
        verdict.refused = str(error)


def traces(model: nn.Module) -> dict[str, Any]:
    """Return what a tap might leave on a model, beside values."""
    return {
        name: (
            type(module),
            sorted(vars(module)),
            module.training,
            [len(hooks) for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)],
            {
                key: (id(weight), weight.requires_grad)
                for key, weight in module._parameters.items()
                if weight is not None
            },
        )
        for name, module in model.named_modules()
    }


def _see(right: bool, message: str) -> None:
    if not right:
        raise Wrong(message)


def _see_kept(model: nn.Module, expected: dict[str, Any], when: str) -> None:
    if found := differences(belongings(model), expected):
        raise Wrong(f"the model keeps something else than after a plain pass, {when}: {', '.join(found)}")


def described(case: Trial) -> str:
    """Print a trial, to be read by whoever mends what it shows."""
    return f"{case}\n{case.build()[0]}"
