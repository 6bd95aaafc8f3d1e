"""All that a user may do to a model with this library, in any order: a machine that hypothesis plays.

A twin of the model sees what is the user's own: plain passes, backward passes, updates, switches. What the library
does on top of that must not show: after each operation both keep the same, and when all is closed nothing is left.
"""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn

from latentaug.augment.masks import RandomChannelMask
from latentaug.augment.style import MixStyle
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.step import cooperative_backward, standard_backward
from latentaug.discovery.bottleneck import find_bottleneck
from latentaug.discovery.codes import find_codes
from latentaug.saliency import latent_saliency
from latentaug.tap.augmented import augmented
from latentaug.tap.calculator import SaliencyCalculator
from latentaug.tap.describe import describe
from latentaug.tap.latent_tap import LatentTap
from tests.campaigns.subject import ALARM, Fault, Subject, holding, images, in_thread, labels
from tests.campaigns.trials import traces
from tests.support.belongings import belongings, differences
from tests.support.compare import same
from tests.support.random_streams import random_state, seed_all

LAYERS = ("stem", "norm", "code", "up", "memory")


seeds = st.integers(0, 9)
layers = st.sampled_from(LAYERS)


class Operations(RuleBasedStateMachine):
    """A model and its twin, and what is open on the model."""

    @initialize(
        memory=st.sampled_from(["counter", "average", "buffer in place", "last", "torch generator", "object", "cache"]),
        train=st.booleans(),
        frozen=st.sampled_from(["", "stem", "head"]),
    )
    def build(self, memory: str, train: bool, frozen: str) -> None:
        """Begin with a model in some mode, and its twin."""
        ALARM.at = None
        self.models = []
        for _ in range(2):
            torch.manual_seed(3)
            model = Subject(memory).train(train)
            model.drop.eval()
            if frozen:
                model.get_submodule(frozen).requires_grad_(False)
            for weight in model.parameters():
                weight.grad = torch.ones_like(weight) if weight.requires_grad else None
            self.models.append(model)
        self.model, self.twin = self.models
        with torch.no_grad():  # spectral normalisation adds to a module in its first pass
            seed_all(0)
            self.model(images(0))
            seed_all(0)
            self.twin(images(0))
        self.before = traces(self.model)
        self.taps: list[tuple[Any, LatentTap, ExitStack]] = []
        self.generators: list[Iterator[Any]] = []
        self.calculators: list[SaliencyCalculator] = []
        self.attached: list[Any] = []
        self.coops: list[CooperativeModel] | None = None
        self.seed_both(1)

    def seed_both(self, seed: int) -> None:
        """Let what follows begin from known random streams."""
        self.seed = seed
        seed_all(seed)

    def on_twin(self, function: Callable[[], Any]) -> Any:
        """Do on the twin what was done on the model, from the same random streams; see that both end alike."""
        stream = random_state()
        seed_all(self.seed)
        try:
            result = function()
        finally:
            ended = random_state()
        assert ended == stream, "the random streams went another way than in a plain pass"
        return result

    def both(self, act: Callable[[nn.Module], Any]) -> Any:
        """Do something of the user's on both; what one raises, the other must raise too."""
        results = []
        for model in self.models:
            seed_all(self.seed)
            try:
                results.append((act(model), random_state()))
            except (Fault, KeyboardInterrupt) as error:
                results.append((type(error), None))
        (found, stream), (expected, other) = results
        assert stream == other, "the random streams went another way than in a plain pass"
        return found, expected

    @property
    def tapped(self) -> bool:
        """Whether a tap is open."""
        return bool(self.taps or self.generators)

    # The user's own ---------------------------------------------------------------------------------------------------

    @rule(seed=seeds, grad=st.sampled_from(["grad", "no_grad", "inference"]), size=st.sampled_from([2, 3, 5]))
    def call(self, seed: int, grad: str, size: int) -> None:
        """Call the model as ever."""
        self.seed_both(seed)

        def act(model: nn.Module) -> Any:
            with torch.inference_mode(grad == "inference"), torch.set_grad_enabled(grad == "grad"):
                return model(images(seed, size))

        found, expected = self.both(act)
        if not self.attached:
            assert same(found, expected), "the model returns something else than its twin"

    @rule(seed=seeds)
    def train_once(self, seed: int) -> None:
        """Make a step of a plain training loop."""
        self.seed_both(seed)

        def act(model: nn.Module) -> Any:
            loss = F.cross_entropy(model(images(seed)), labels(seed))
            if loss.requires_grad:
                loss.backward()
            torch.optim.SGD([w for w in model.parameters() if w.requires_grad], 0.1).step()

        self.both(act)

    @rule(train=st.booleans(), name=st.sampled_from(["", "norm", "drop", "memory"]))
    def switch(self, train: bool, name: str) -> None:
        """Switch a mode."""
        for model in self.models:
            model.get_submodule(name).train(train)
        self._taken_up()

    @rule(name=layers, wanted=st.booleans())
    def freeze(self, name: str, wanted: bool) -> None:
        """Freeze a part, or let it learn again."""
        for model in self.models:
            model.get_submodule(name).requires_grad_(wanted if name != "memory" else False)
        self._taken_up()

    @rule()
    def load(self) -> None:
        """Load the weights that it has."""
        for model in self.models:
            model.load_state_dict(copy.deepcopy(model.state_dict()))

    def _taken_up(self) -> None:
        """Take what the user has just done for how the model is to be left."""
        now = traces(self.twin)
        self.before = {
            name: (*found[:2], now[name][2], found[3], {k: (i, now[name][4][k][1]) for k, (i, _) in found[4].items()})
            for name, found in self.before.items()
        }

    @rule(
        at=st.sampled_from(["stem", "code", "up"]),
        size=st.sampled_from([2, 5]),
        kind=st.sampled_from([Fault, KeyboardInterrupt]),
        seed=seeds,
    )
    def fault_in_a_pass(self, at: str, size: int, kind: type[BaseException], seed: int) -> None:
        """Call the model with a batch at which a part of it raises; of two, dry runs meet it as well."""
        self.seed_both(seed)
        planned = random_state()
        ALARM.at = (at, size, kind)
        before = belongings(self.model)
        try:
            with suppress(kind):
                self.model(images(seed, size))
            quiet = not differences(belongings(self.model), before) and random_state() == planned
            if size == 2 and quiet and (self.tapped or self.calculators):
                return  # it was raised in a dry run, which is of two samples
            self.on_twin_suppressing(kind, seed, size)
        finally:
            ALARM.at = None

    def on_twin_suppressing(self, kind: type[BaseException], seed: int, size: int) -> None:
        """Let the same happen to the twin."""
        seed_all(self.seed)
        with suppress(kind):
            self.twin(images(seed, size))

    # Taps -------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.taps) + len(self.generators) < 3)
    @rule(layer=st.one_of(layers, st.just("norm code")), kind=st.sampled_from(["with", "generator"]))
    def open_tap(self, layer: str, kind: str) -> None:
        """Open a tap, by a block or by a generator."""
        if kind == "generator":
            self.generators.append(holding(self.model, layer.split()[0]))
            next(self.generators[-1])
            return
        stack = ExitStack()
        tap = stack.enter_context(LatentTap(self.model, layer.split() if " " in layer else layer))
        self.taps.append((layer, tap, stack))

    @precondition(lambda self: self.taps)
    @rule(which=seeds, thread=st.booleans(), raising=st.booleans())
    def close_tap(self, which: int, thread: bool, raising: bool) -> None:
        """Leave a tap, whichever, from whatever thread, also by an exception."""
        _, _, stack = self.taps.pop(which % len(self.taps))

        def close() -> None:
            if raising:
                with suppress(Fault), stack:
                    raise Fault
            else:
                stack.close()

        in_thread(close) if thread else close()

    @precondition(lambda self: self.generators)
    @rule(which=seeds, how=st.sampled_from(["close", "thread", "throw", "forget"]))
    def close_generator(self, which: int, how: str) -> None:
        """End a generator that holds a tap: by closing or dropping it, by an exception, in another thread."""
        generator: Any = self.generators.pop(which % len(self.generators))
        if how == "thread":
            in_thread(generator.close)
        elif how == "throw":
            with suppress(Fault):
                generator.throw(Fault())
        elif how == "close":
            generator.close()
        del generator
        gc.collect() if how == "forget" else None

    def _captured(self, which: int) -> tuple[Any, LatentTap] | None:
        layer, tap, _ = self.taps[which % len(self.taps)]
        return (layer, tap) if tap._capture is not None else None

    @precondition(lambda self: self.taps)
    @rule(
        which=seeds,
        what=st.sampled_from(["none", "half", "mask", "style", "draw", "fault", "wrong shape"]),
        full=st.booleans(),
        detach=st.booleans(),
        grad=st.booleans(),
    )
    def replay(self, which: int, what: str, full: bool, detach: bool, grad: bool) -> None:
        """Replay a pass, if there is one: it moves nothing, or is refused by a sentence of the library's own."""
        found = self._captured(which)
        if found is None:
            return
        layer, tap = found
        kept, stream = belongings(self.model), random_state()

        def failing(code: Tensor) -> Tensor:
            raise Fault

        several = " " in layer
        given: Any = {
            "none": None,
            "half": lambda code: code * 0.5,
            "mask": RandomChannelMask(0.5),
            "style": MixStyle(),
            "draw": None,
            "fault": failing,
            "wrong shape": torch.zeros(1),
        }[what]
        generator = torch.Generator().manual_seed(0)
        try:
            with torch.set_grad_enabled(grad):
                if what == "draw":
                    given = tap.draw(RandomChannelMask(0.5), generator=generator)
                elif several and what not in ("mask", "style"):
                    given = [given] * 2
                tap.replay(given, full=full, detach=detach, generator=generator)
        except Fault:
            assert what == "fault"
        except (RuntimeError, ValueError, TypeError) as error:
            if "LatentTap" not in str(error) and "inference" not in str(error).lower():
                raise
        assert random_state() == stream, "a replay moves the random streams"
        assert not (moved := differences(belongings(self.model), kept)), f"a replay moves {moved}"

    @precondition(lambda self: self.taps)
    @rule(which=seeds)
    def saliency(self, which: int) -> None:
        """Derive by a code of the last pass."""
        found = self._captured(which)
        if found is None or not found[1].code.requires_grad or torch.is_inference_mode_enabled():
            return
        with torch.enable_grad():
            latent_saliency(found[1].code.square().mean(), found[1].code)

    # Other users of the model -----------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.calculators) < 2)
    @rule(layer=st.sampled_from(["code", "norm", None]))
    def attach_calculator(self, layer: str | None) -> None:
        """Attach a calculator of saliency."""
        self.calculators.append(SaliencyCalculator(self.model, layer))

    @precondition(lambda self: self.calculators)
    @rule(which=seeds)
    def remove_calculator(self, which: int) -> None:
        """Remove one."""
        self.calculators.pop(which % len(self.calculators)).remove()

    @precondition(lambda self: not self.attached)
    @rule(layer=st.sampled_from(["code", "norm", "up"]), transform=st.sampled_from(["style", "mask"]))
    def attach_augmentation(self, layer: str, transform: str) -> None:
        """Augment a layer, of both."""
        made = MixStyle if transform == "style" else lambda: RandomChannelMask(0.5)
        self.attached = [augmented(model, {layer: made()}).attach() for model in self.models]

    @precondition(lambda self: self.attached)
    @rule()
    def remove_augmentation(self) -> None:
        """Augment no more."""
        for one in self.attached:
            one.remove()
        self.attached = []

    @rule(look=st.sampled_from([find_bottleneck, find_codes, describe]), seed=seeds)
    def look(self, look: Callable[..., Any], seed: int) -> None:
        """Look for codes; it may find none."""
        kept, stream = belongings(self.model), random_state()
        with suppress(ValueError, RuntimeError):
            look(self.model, images(seed))
        assert random_state() == stream, "a search moves the random streams"
        assert not (moved := differences(belongings(self.model), kept)), f"a search moves {moved}"

    @rule(seed=seeds)
    def call_from_a_thread(self, seed: int) -> None:
        """Call the model from another thread, which has its own grad mode."""
        if self.attached:
            return
        self.seed_both(seed)
        found, expected = self.both(lambda model: in_thread(lambda: model(images(seed))))
        assert same(found, expected), "another thread gets something else"

    @rule(layer=layers, seed=seeds)
    def tap_in_a_thread(self, layer: str, seed: int) -> None:
        """Tap the model from another thread: at once, or, if it is tapped, once it is not."""
        if self.tapped or self.attached:
            return
        self.seed_both(seed)

        def act(model: nn.Module) -> Any:
            if model is self.twin:
                return model(images(seed))
            with LatentTap(model, layer) as tap:
                output = model(images(seed))
                with suppress(RuntimeError):
                    tap.replay(lambda code: code * 0.5)
                return output

        found, expected = self.both(lambda model: in_thread(lambda: act(model)))
        assert same(found, expected)

    @rule(how=st.sampled_from([copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]), seed=seeds)
    def copy_it(self, how: Callable[[Any], Any], seed: int) -> None:
        """Copy the model: refused while it is tapped, and plain otherwise."""
        if self.tapped:
            try:
                how(self.model)
            except RuntimeError as error:
                if "LatentTap is open" not in str(error):
                    raise
            else:
                raise AssertionError("a tapped model was copied")
            return
        try:
            twin = how(self.model)
        except RuntimeError as error:  # as spectral normalisation keeps a weight with a graph
            if "support the deepcopy protocol" not in str(error) and "serializ" not in str(error):
                raise
            return
        if how is copy.copy:  # shares all its parts with the model
            return
        moved = differences(belongings(twin), belongings(self.model))
        assert all(name.endswith(".grad") for name in moved), moved  # which PyTorch does not copy
        plain = {
            name: [*found[:3], found[3], [required for _, required in found[4].values()]]
            for name, found in self.before.items()
        }
        made = traces(twin)
        assert not any("forward" in vars(module) for module in twin.modules() if not self.attached)
        assert {name: made[name][0] for name in made} == {name: plain[name][0] for name in plain}

    # The method -------------------------------------------------------------------------------------------------------

    @rule(seed=seeds, how=st.sampled_from([cooperative_backward, standard_backward, "forward"]), fault=st.booleans())
    def cooperate(self, seed: int, how: Any, fault: bool) -> None:
        """Make a cooperative step, which may raise on its way."""
        if self.tapped or self.attached or self.calculators:
            return
        if self.coops is None:
            self.coops = []
            for model in self.models:
                seed_all(0)
                coop = CooperativeModel(model, num_classes=2, example=images(0), codes="code", reconstruction=True)
                self.coops.append(coop)
        ALARM.at = ("up", 3, Fault) if fault else None
        self.seed_both(seed)
        results = []
        try:
            for coop in self.coops:
                seed_all(seed)
                with suppress(Fault, ValueError):
                    if how == "forward":
                        output = coop(images(seed), labels(seed))
                    else:
                        output = how(coop, images(seed), labels(seed))
                    results.append([output.logits.detach()])
        finally:
            ALARM.at = None
        assert len(results) in (0, 2)
        assert not results or same(*results)

    # What holds -------------------------------------------------------------------------------------------------------

    @invariant()
    def keeps_what_its_twin_keeps(self) -> None:
        """See that the model keeps what it would without the library."""
        if not hasattr(self, "models"):
            return
        found = differences(belongings(self.model), belongings(self.twin))
        assert not found, f"the model keeps something else than its twin: {found}"
        if not (self.tapped or self.calculators or self.attached):
            self.see_no_trace()

    def see_no_trace(self) -> None:
        """See that nothing is left."""
        now = traces(self.model)
        left = {name: (now[name], was) for name, was in self.before.items() if now[name] != was}
        assert not left, f"left on the model: {left}"

    def teardown(self) -> None:
        """Close all, in whatever order, and look whether anything is left."""
        if not hasattr(self, "models"):
            return
        for generator in self.generators:
            generator.close()  # type: ignore[attr-defined]
        for _, _, stack in self.taps:
            stack.close()
        for one in [*self.calculators, *self.attached]:
            one.remove()
        self.generators, self.taps, self.calculators, self.attached = [], [], [], []
        self.see_no_trace()
        with torch.no_grad():
            seed_all(7)
            found = self.model(images(7))
            seed_all(7)
            assert same(found, self.twin(images(7))), "the model is another one now"
