"""How gradients become updates: optimizer, schedule, precision, clipping."""

from __future__ import annotations

import inspect
import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from latentaug.augment.schedule import advance
from latentaug.checks import shown
from latentaug.training.plain import without_code
from latentaug.training.settings import Asked, Wish, check_override
from latentaug.training.sharding import optimizer_state

logger = logging.getLogger(__name__)


Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]


OptimizerChoice: TypeAlias = Optimizer | Callable[[list[nn.Parameter]], Optimizer]


SchedulerChoice: TypeAlias = LRScheduler | Callable[[Optimizer], LRScheduler]


class PerStep(NamedTuple):
    """Marks a learning rate scheduler that advances with every update, not every epoch.

    Example:
        >>> from torch.optim.lr_scheduler import LinearLR
        >>> warm_up = PerStep(lambda optimizer: LinearLR(optimizer, total_iters=100))
    """

    scheduler: SchedulerChoice


def is_native(precision: Precision, device: torch.device | str) -> bool:
    """Tell whether convolutions on a device are computed in a precision, and not emulated many times as slowly.

    On a CPU, half precision needs AVX-512 or the like; oneDNN, which computes convolutions there, knows what there is.

    Raises:
        ValueError: There is no such precision.
        TypeError: The device is neither one nor its name.

    Example:
        >>> is_native("float32", "cpu")
        True
    """
    if precision not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"precision must be 'float32', 'bfloat16' or 'float16'; got {precision!r}.")
    if not isinstance(device, torch.device | str):
        raise TypeError(f"device must be a torch.device or its name; got {shown(device)}.")
    if precision == "float32" or torch.device(device).type != "cpu":
        return True
    name = {"bfloat16": "bf16", "float16": "fp16"}[precision]
    knows: Callable[[], bool] | None = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
    return knows is not None and bool(knows())


@cache
def _tell_of_emulation(precision: Precision) -> None:
    """Say once that a precision, chosen to save time, costs it."""
    logger.warning(
        "This CPU does not compute convolutions in %s: they are emulated, and a step may take ten times as long as in "
        "float32. Pass precision='float32'.",
        precision,
    )


class Optimization:
    """Turn the gradients of a model into updates of its weights.

    Args:
        optimizer: See `build_optimizer`.
        scheduler: See `build_scheduler`; inside `PerStep` it advances with every update.
        device: Where the model is.
        precision: What the forward pass is computed in.
        clip_norm: Largest norm of the gradient; None leaves it alone.

    Raises:
        ValueError: `precision` is out of range, or the optimizer can't be used here.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None

    def __init__(
        self,
        optimizer: OptimizerChoice | None,
        scheduler: SchedulerChoice | PerStep | None,
        device: torch.device,
        precision: Precision,
        clip_norm: float | None,
    ) -> None:
        if not is_native(precision, device):
            _tell_of_emulation(precision)
        for name, choice, kind in (
            ("optimizer", optimizer, "an Optimizer"),
            ("scheduler", scheduler, "an LRScheduler"),
        ):
            made = isinstance(choice, Optimizer | PerStep) or hasattr(choice, "step")
            if choice is not None and not made and not callable(choice):
                raise TypeError(f"{name} must be {kind} or a callable that returns one; got {type(choice).__name__}.")
        self.device, self.precision, self.clip_norm = device, precision, clip_norm
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self.per_step = isinstance(scheduler, PerStep)
        self._optimizer_choice = optimizer
        self._scheduler_choice = scheduler.scheduler if isinstance(scheduler, PerStep) else scheduler
        self._stepping = False
        if isinstance(optimizer, Optimizer):
            check_optimizer(optimizer)

    def attach(self, model: nn.Module) -> None:
        """Build, or check, optimizer and scheduler for a model.

        Raises:
            TypeError: The optimizer or the scheduler is something else.
            ValueError: The optimizer or the scheduler isn't this model's.
        """
        self.model = model
        self.optimizer = build_optimizer(self._optimizer_choice, model)
        before = [dict(group) for group in self.optimizer.param_groups]
        self.scheduler = build_scheduler(self._scheduler_choice, self.optimizer)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            if self.per_step:
                raise ValueError(
                    "PerStep needs a scheduler that counts updates; got ReduceLROnPlateau, which watches the score of "
                    "each epoch. Pass it without PerStep."
                )
            watch_a_rising_score(self.scheduler)
        self.asked = Asked(self.optimizer, before, self.scheduler)

    def see_that_all_is_held(self) -> None:
        """See that parameters which were unfrozen since are trained; see the function of this name."""
        see_that_all_is_held(self.optimizer, self.model)

    @property
    def needs_score(self) -> bool:
        """Whether the scheduler watches a score."""
        return isinstance(self.scheduler, ReduceLROnPlateau)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for the forward pass."""
        if self.precision == "float32":
            return nullcontext()
        # Without the cache of cast weights: filled while gradients are off, it would cut them off later in the step.
        return torch.autocast(self.device.type, dtype=getattr(torch, self.precision), cache_enabled=False)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Put an optimizer that has two sets of weights, as schedule-free ones do, into that of its steps."""
        self._switch(True)
        try:
            yield
        finally:
            self._switch(False)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put it into the set of weights that is evaluated and saved, if it is in the other one."""
        was = self._stepping
        self._switch(False)
        try:
            yield
        finally:
            self._switch(was)

    def _switch(self, stepping: bool) -> None:
        if stepping != self._stepping:
            self._stepping = stepping
            switch = getattr(self.optimizer, "train" if stepping else "eval", None)
            if callable(switch):
                switch()

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate, and those of further groups, by the names that they are logged under."""
        groups = self.optimizer.param_groups
        return {f"lr_{index}" if index else "lr": float(group["lr"]) for index, group in enumerate(groups)}

    def update(self, batches: int | Tensor) -> None:
        """Step along the summed gradients of `batches` batches, divided by their number."""
        self.scaler.unscale_(self.optimizer)
        if isinstance(batches, Tensor):
            batches = batches.clamp(min=1)
        if isinstance(batches, Tensor) or batches > 1:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(batches)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        advance(self.model)
        if self.per_step:
            self._advance()

    def end_epoch(self, score: float) -> None:
        """Advance a scheduler that counts epochs; one that watches a score sees `score`, unless that is none."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            if not math.isnan(score):
                self.scheduler.step(score)
        elif not self.per_step:
            self._advance()

    def _advance(self) -> None:
        if self.scheduler is None:
            return
        with warnings.catch_warnings():
            # An update made before resuming, or one that float16 skipped, isn't one that was forgotten.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.scheduler.step()

    def settings(self) -> dict[str, Any]:
        """Return what must be alike where a state is taken and where it is loaded; "parameters" by their names."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        groups = [group["params"] for group in self.optimizer.param_groups]
        return {
            "optimizer": type(self.optimizer).__name__,
            "parameter groups": [len(group["params"]) for group in self.optimizer.param_groups],
            "scheduler": None if self.scheduler is None else type(self.scheduler).__name__,
            "precision": self.precision,
            "device": self.device.type,
            "parameters": [[names.get(id(parameter), "") for parameter in group] for group in groups],
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the states of optimizer, scheduler and loss scaling."""
        scheduler = None if self.scheduler is None else without_code(self.scheduler.state_dict())
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": scheduler,
            "scaler": self.scaler.state_dict(),
            "asked": self.asked.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], override: Collection[str] = ()) -> None:
        """Load what `state_dict` returned, but for settings that are overridden; see `Asked.apply`."""
        self.optimizer.load_state_dict(optimizer_state(self.optimizer, state["optimizer"]))
        with warnings.catch_warnings():  # steps of a schedule that is brought to where training is
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.asked.apply(self.optimizer, self.scheduler, state["scheduler"], state.get("asked"), override)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            watch_a_rising_score(self.scheduler)  # one of an older checkpoint may not
        self.scaler.load_state_dict(state["scaler"])

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state of this very object, whatever has become of it since."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])

    def wishes(self, state: dict[str, Any]) -> list[Wish]:
        """Return the settings that this call asks for otherwise than the one that wrote a state."""
        return self.asked.differences(state.get("asked"))

    def check_override(self, override: object) -> tuple[str, ...]:
        """Return names of settings that a state may be loaded without; see `check_override`."""
        return check_override(override, self.asked)


def build_optimizer(choice: OptimizerChoice | None, model: nn.Module) -> Optimizer:
    """Return an optimizer that holds every trainable parameter of `model`.

    Args:
        choice: The optimizer, or a callable that makes it from a list of parameters; None is the paper's.
        model: Whose parameters.

    Raises:
        TypeError: `choice` is, or makes, something else.
        ValueError: A trainable parameter is missing: it would silently never train.

    Example:
        >>> build_optimizer(None, nn.Linear(2, 2)).defaults["lr"]
        0.0001
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ValueError(
            f"optimizer has nothing to train: no parameter of the {type(model).__name__} requires a gradient. Call "
            "requires_grad_() on those that are to be trained."
        )
    optimizer: object = choice
    if choice is None:
        optimizer = Adam(trainable.values(), lr=1e-4)
    elif not isinstance(choice, Optimizer) and callable(choice):
        optimizer = choice(list(trainable.values()))
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be an Optimizer or a callable that returns one; got {type(optimizer).__name__}."
        )
    check_optimizer(optimizer)
    see_that_all_is_held(optimizer, model)
    return optimizer


def see_that_all_is_held(optimizer: Optimizer, model: nn.Module) -> None:
    """See that an optimizer holds every trainable parameter, also those that were frozen before.

    Raises:
        ValueError: One is missing: it would silently never train.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, one in model.named_parameters() if one.requires_grad and id(one) not in held]
    if missing:
        raise ValueError(
            f"optimizer must hold every trainable parameter of the {type(model).__name__}; it lacks {len(missing)}: "
            f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}. "
            "Pass a callable instead: optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-4). Where parts "
            "are frozen at first, pass an instance that holds them from the start, or call its add_param_group."
        )


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer that calls the loss itself, for which a step that fills gradients once is not enough.

    Raises:
        ValueError: It is one.

    Example:
        >>> check_optimizer(torch.optim.LBFGS([nn.Parameter(torch.ones(1))]))
        Traceback (most recent call last):
        ...
        ValueError: optimizer must step along gradients that are there; LBFGS calls the loss itself, by a closure. ...
    """
    for inner in vars(optimizer).values():  # that another one wraps
        if isinstance(inner, Optimizer):
            check_optimizer(inner)
    _, *parameters = inspect.signature(type(optimizer).step).parameters.values()
    named = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    needs_closure = any(one.default is one.empty for one in named)
    in_two_steps = any(
        all(hasattr(optimizer, name) for name in pair)
        for pair in (("first_step", "second_step"), ("ascent_step", "descent_step"))
    )
    if needs_closure or in_two_steps or type(optimizer).__name__.upper().endswith("SAM"):
        raise ValueError(
            f"optimizer must step along gradients that are there; {type(optimizer).__name__} calls the loss itself, by "
            "a closure. Take another one here, such as torch.optim.AdamW, or write the loop yourself: see "
            "cooperative_backward."
        )


def watch_a_rising_score(scheduler: ReduceLROnPlateau) -> None:
    """Let a scheduler take a higher score for a better one, as all scores of `evaluate` are meant.

    Example:
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        >>> scheduler = ReduceLROnPlateau(optimizer)
        >>> watch_a_rising_score(scheduler)
        >>> scheduler.mode, scheduler.best
        ('max', -inf)
    """
    if scheduler.mode != "max":
        scheduler.mode, scheduler.mode_worse = "max", -math.inf
        scheduler.best, scheduler.num_bad_epochs = -math.inf, 0
        logger.info("ReduceLROnPlateau watches a score that is better the higher it is: mode='max' it is.")


def build_scheduler(choice: SchedulerChoice | None, optimizer: Optimizer) -> LRScheduler | None:
    """Return a scheduler on `optimizer`; None makes none.

    Raises:
        TypeError: `choice` is, or makes, something else.
        ValueError: The scheduler drives another optimizer.
    """
    if choice is None:
        return None
    scheduler: object = choice(optimizer) if callable(choice) else choice
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(
            f"scheduler must be an LRScheduler or a callable that returns one; got {type(scheduler).__name__}."
        )
    if scheduler.optimizer is not optimizer:
        raise ValueError(
            "scheduler must drive the trainer's own optimizer; got one on another. "
            "Pass a callable instead: scheduler=lambda optimizer: StepLR(optimizer, step_size=100)."
        )
    return scheduler
