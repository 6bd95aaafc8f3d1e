"""CooperativeTrainer: a convenience over the training loop you could have typed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from latentaug import ranks
from latentaug.checks import file_path
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.step import cooperative_backward
from latentaug.tracing.isolation import preserved_modes
from latentaug.training.agreement import agreed_to_stop, drawn_together, scored_together
from latentaug.training.allocator import tell_of_allocator, tune_allocator
from latentaug.training.arguments import check_fit, check_images, check_loader, check_monitor, check_options
from latentaug.training.average import Average
from latentaug.training.batches import agreed_length, grouped, planned_steps
from latentaug.training.best import Best
from latentaug.training.callbacks import Callback, default_callbacks
from latentaug.training.checkpoint import Position, load_checkpoint, save_checkpoint, weights_for
from latentaug.training.drawing import Drawing, rest_of_epoch
from latentaug.training.evaluation import evaluate, overlaps_of, scores_of, tell_of_no_score
from latentaug.training.finite import FiniteGuard
from latentaug.training.interrupt import undisturbed
from latentaug.training.kept import Kept
from latentaug.training.metrics import means_of, over_ranks
from latentaug.training.modes import put_in_train_mode, tell_of_modes
from latentaug.training.optimization import Optimization, OptimizerChoice, PerStep, Precision, SchedulerChoice
from latentaug.training.random_streams import preserved_random_streams, random_state, restore_random_state
from latentaug.training.rank_states import parts_of_ranks, tell_of_ranks
from latentaug.training.resuming import all_or_nothing, checked, tell_of_resume, tell_of_seed
from latentaug.training.sharding import load_weights, take_weights_from_first, whole
from latentaug.training.updating import Batch, TrainingStep, Updates
from latentaug.training.wrapping import Wrapped

_ADVICE = (
    "Lower the learning rate, clip gradients (clip_norm=), or allow for more (max_skipped=); load_best() brings back "
    "the best epoch that was evaluated."
)
_CHECKPOINT_KEYS = {"settings", "model", "optimization", "generator", "random", "position", "best"}


class CooperativeTrainer:
    """Train, evaluate, save and resume a cooperative model.

    Args:
        model: A `CooperativeModel`, also inside `DistributedDataParallel` or sharded by `fully_shard`; or any
            segmentation model, which is wrapped.
        optimizer: An instance that holds every trainable parameter of the cooperative model, or a callable that makes
            one from a list of them. Default: the paper's Adam with a learning rate of 1e-4.
        num_classes: Classes of the segmentation; only for a model that is to be wrapped. For regions, which may
            overlap, pass a `CooperativeModel`.
        example: Images to size the heads with; without them the first batch that `fit` sees serves.
        scheduler: A learning rate scheduler on that optimizer, or a callable that makes one from it. It advances once
            per epoch; inside `PerStep` with every update.
        batch: Callable that turns what a loader yields into (images, labels). Default: it yields such pairs.
        step: What fills the gradients from a batch. Default: `cooperative_backward`.
        precision: float32, or autocast to bfloat16 or float16 (with loss scaling; float16 waits for the device). A CPU
            that emulates the other two takes ten times as long with them, which is said once.
        accumulate: Batches per update; the gradient is their mean.
        clip_norm: Largest norm of the gradient; a larger one is scaled down.
        ema: Part that an update leaves of an exponential moving average of the weights, such as 0.999. The average
            begins with the first update; it is what `evaluate`, `predict` and `deployed` use, and what the best epoch
            keeps. `model` holds the weights that are trained. Running statistics are the model's in both.
        device: Where to train. Default: where the model is.
        seed: Seeds the generator that the step draws from, under `torch.distributed` with the rank added. Default: the
            step draws from the global stream.
        folder: Keeps `last.pt`, `best.pt` and the logs; without it the best weights stay in memory. One trainer at a
            time: another one that fits in it is refused.
        max_skipped: Batches in a row that may come out infinite or not a number before a fit stops. Such a batch is
            skipped and named, and never reaches the weights.
        callbacks: What to tell about the fit. Default: `default_callbacks(folder)`.
        allocator: Whether to call `tune_allocator` when training on a CPU, and say so once.

    Attributes:
        device: Where it trains.
        generator: What the step draws from, or None.

    Shape:
        images: [B, C, *S], floating point.   labels: [B, *S] or [B, 1, *S], class indices; of regions [B, k, *S].

    Raises:
        ValueError: The optimizer lacks a trainable parameter, or an option is out of range.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079 (section 2).

    Example:
        >>> unet = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.ReLU(), nn.ConvTranspose2d(8, 2, 4, 4))
        >>> loader = [(torch.rand(2, 1, 16, 16), torch.randint(2, (2, 16, 16))) for _ in range(3)]
        >>> trainer = CooperativeTrainer(unet, num_classes=2, seed=0, callbacks=[])
        >>> trainer.fit(loader, loader, epochs=2)
        >>> trainer.epoch, trainer.global_step
        (2, 6)
        >>> trainer.predict(loader[0][0], refine=1).shape
        torch.Size([2, 16, 16])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerChoice | None = None,
        *,
        num_classes: int | None = None,
        example: Tensor | None = None,
        scheduler: SchedulerChoice | PerStep | None = None,
        batch: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
        step: TrainingStep = cooperative_backward,
        precision: Precision = "float32",
        accumulate: int = 1,
        clip_norm: float | None = None,
        ema: float | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
        folder: str | Path | None = None,
        callbacks: Sequence[Callback] | None = None,
        allocator: bool = True,
        max_skipped: int = 10,
    ) -> None:
        given = list(callbacks) if isinstance(callbacks, Iterable) else callbacks  # a generator can be read only once
        check_options(
            model=model,
            num_classes=num_classes,
            example=example,
            batch=batch,
            step=step,
            device=device,
            accumulate=accumulate,
            clip_norm=clip_norm,
            seed=seed,
            callbacks=given,
            allocator=allocator,
            max_skipped=max_skipped,
        )
        self._wrapped = Wrapped(model, num_classes, example, device, batch)
        self.device = self._wrapped.device
        # On the CPU: drawn elsewhere, a choice between maskers would wait for the device.
        self.generator = None if seed is None else torch.Generator().manual_seed(seed + ranks.rank())
        writes = ranks.rank() == 0
        self.callbacks = given if given is not None else default_callbacks(folder) if writes else []
        self.planned_steps: int | None = None
        self._optimization = Optimization(optimizer, scheduler, self.device, precision, clip_norm)
        self._average = None if ema is None else Average(ema)
        self._guard = FiniteGuard(max_skipped, _ADVICE)
        self._updates = Updates(step, self._optimization, self._guard, self._average, self.generator)
        self._kept = Kept(folder)
        self._accumulate, self._allocator = accumulate, allocator
        self._batch, self._step = batch, step
        self._told_of_modes = False
        self._position = Position()
        self._resumed_random: dict[str, Any] | None = None
        self._loader: Iterable[Any] = ()
        self._drawing = Drawing()
        self._stopping = self._fitting = False
        self._saved_step = 0

        if self._wrapped.inner is not None:
            self._optimization.attach(self._wrapped.inner)

    @property
    def model(self) -> nn.Module:
        """The model that is trained, as it was passed or wrapped."""
        return self._wrapped.outer

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer; there once the model is built."""
        return self._optimization.optimizer

    @property
    def scheduler(self) -> LRScheduler | None:
        """The learning rate scheduler, if any; there once the model is built."""
        return self._optimization.scheduler

    @property
    def best(self) -> Best | None:
        """The best epoch by the monitored metric, or None."""
        return self._kept.best

    @property
    def epoch(self) -> int:
        """Epochs finished so far, in earlier and resumed fits too."""
        return self._position.epoch

    @property
    def global_step(self) -> int:
        """Updates of the weights so far, in earlier and resumed fits too."""
        return self._position.step

    @property
    def history(self) -> list[dict[str, float]]:
        """One row of metrics per epoch, from the first."""
        return self._position.history

    def fit(
        self,
        loader: Iterable[Any],
        val_loader: Iterable[Any] | None = None,
        *,
        epochs: int | None = None,
        max_steps: int | None = None,
        monitor: str = "refined_iou",
    ) -> None:
        """Train until `epochs` epochs or `max_steps` updates are done, whichever comes first.

        Both count from the start of training: after a resume, the same call ends where it would have ended. Modules
        train in the modes they are in, so that a frozen one stays frozen; only a model that is in eval mode as a whole
        is put in train mode, but for parts without a trainable parameter. Afterwards all modes are as before. With a
        folder, `last.pt` is written after each epoch, and at Ctrl-C, which takes effect after the running update; a
        second Ctrl-C stops at once. SIGTERM, which clusters send before they kill, does the same and exits with 143.

        Args:
            loader: Batches of one epoch, afresh whenever it is iterated: a `DataLoader`, a list, …
            val_loader: Likewise, evaluated after each epoch. It doesn't disturb the random streams of training.
            epochs: Epochs in all.
            max_steps: Updates in all. An epoch cut short by them is evaluated and logged, and a later fit continues it.
            monitor: Score of `evaluate` whose highest value marks the best epoch.

        Raises:
            ValueError: An argument is out of range, or a batch doesn't fit.
            TypeError: The loader yields something else than pairs of tensors.
            RuntimeError: Another trainer uses the folder; or `max_skipped` batches in a row were not finite, and
                `last.pt` has the weights before them.
            OSError: The folder can't be written to.
            KeyboardInterrupt: Ctrl-C was pressed.
            SystemExit: SIGTERM arrived.
        """
        self._see_that_no_fit_runs("fit")
        check_fit(loader, val_loader, epochs, max_steps)
        if self._wrapped.inner is None:
            self._optimization.attach(self._wrapped.wrap(self._wrapped.first_images(loader)))
        check_monitor(monitor, scores_of(overlaps_of(self._built("fit"))))
        if val_loader is None and self._optimization.needs_score:
            raise ValueError("ReduceLROnPlateau needs a score to watch; got no val_loader. Pass one to fit.")
        length = agreed_length(loader)
        self.planned_steps = planned_steps(length, self._accumulate, epochs, max_steps)
        self._position.begin(length)
        with self._session(loader):
            if self._done(epochs, max_steps) and self._unlogged():  # interrupted between its last update and its scores
                started = time.monotonic() - self._position.seconds
                self._end_epoch(val_loader, monitor, self._position.batches == length, started)
            self._beat()
            while not self._done(epochs, max_steps):
                started, complete = time.monotonic() - self._position.seconds, True
                self._optimization.see_that_all_is_held()
                self._position.length = length
                rest = rest_of_epoch(loader, self._position, self.device, self._others)
                drawn = self._drawing.batches(loader, rest, self._position)
                groups = grouped(map(self._checked, drawn), self._accumulate)
                for group in drawn_together(groups, self._drawing.interruption):
                    with undisturbed(), self._drawing.wholly():
                        losses = self._updates(self.model, group, self._position)
                    self._position.seconds = time.monotonic() - started
                    for callback in self.callbacks if losses else ():
                        callback.on_step(self, losses)
                    self._beat()
                    if self._done(epochs, max_steps) and self._position.batches != length:
                        complete = False
                        break
                self._end_epoch(val_loader, monitor, complete, started)
                self._beat()

    def evaluate(self, loader: Iterable[Any]) -> dict[str, float]:
        """Score the model, alone and refined by the shape prior, in eval mode; with `ema`, by its average.

        Modes and random streams are left as they were. Under `torch.distributed`, to be called on all ranks, the scores
        are those of the batches of all, and running statistics are those of rank 0, which the others take over: so what
        is scored is what is saved. A batch that several ranks have counts several times.

        Returns:
            `loss` and its standard terms, means over samples; `iou` and `dice`, means over classes, then `iou_0`,
            `dice_0`, …; the same with `refined_` in front for the refined output. With one logit the only class scored
            is 1. A class that occurs neither in labels nor in predictions is NaN, and the means leave it out.

        Raises:
            ValueError: The loader is empty, or a batch doesn't fit.
        """
        model = self._built("evaluate")
        check_loader("loader", loader)
        with (
            self._scored(),
            preserved_modes(model),
            preserved_random_streams(self.device, loader, *self._others),
            torch.no_grad(),
        ):
            return evaluate(model, self._scored_batches(loader), self.device, self._optimization.autocast)

    def predict(self, images: Tensor, refine: int = 1) -> Tensor:
        """Return label maps, after `refine` passes through the shape prior; 0 takes the model's own output.

        With `ema`, the average predicts.

        Shape:
            images: [B, C, *S].   output: [B, *S], on the trainer's device.
        """
        model = self._built("predict")
        check_images(images)
        with self._scored(), self._optimization.autocast():
            return model.predict(images.to(self.device), refine=refine)

    def deployed(self, refine: int = 1) -> nn.Module:
        """Return what `predict` predicts with as a plain module, with `ema` the average; see `CooperativeModel`."""
        with self._scored():
            return self._built("deployed").deployed(refine)

    def save(self, path: str | Path) -> None:
        """Write everything that training depends on; the file at `path` is replaced whole or not at all.

        A fit may be resumed from it, also in the middle of an epoch (when called from `Callback.on_step`). It has a
        digest, so that damage is seen, and holds numbers of NumPy as Python's.

        Under `torch.distributed`, to be called on all ranks, rank 0 writes one file: weights and states of the
        optimizer as a whole, also where they are spread over ranks, and the random streams of every rank.

        Raises:
            TypeError: The optimizer, the scheduler or the history holds something that couldn't be read back.
            OSError: The file can't be written, for lack of room for instance; what was there before still is.
        """
        model, path = self._built("save"), file_path("path", path)
        with undisturbed(), self._optimization.evaluating():
            state = {
                "settings": self._settings(),
                "model": model.state_dict(),
                "optimization": self._optimization.state_dict(),
                "generator": None if self.generator is None else self.generator.get_state(),
                "random": random_state(self.device, self._loader, *self._others),
                "position": vars(self._position),
                "best": None if self.best is None else self.best._asdict(),
                "average": None if self._average is None else self._average.state_dict(),
                "run": self._kept.run,
            }
            state = whole(state | {"ranks": parts_of_ranks(state)})
            with ranks.failing_together("a checkpoint to write"):
                if ranks.rank() == 0:
                    save_checkpoint(state, path)

    def resume(self, path: str | Path, *, override: Collection[str] = ()) -> None:
        """Continue from a checkpoint: the next `fit` gives bit for bit what an uninterrupted one would have given.

        The loader of that fit must be the same. In the middle of an epoch, the batches that were already used are drawn
        again and dropped; if the first of them is another one, a warning says so. Generators that the loader, its
        samplers, its data set and their transforms hold go on where they were, and so do those that `batch`, `step` and
        the model hold, or read from their modules. Loader workers that outlive an epoch (`persistent_workers`) keep
        random streams that nobody can restore.

        Under `torch.distributed`, to be called on all ranks, each goes on with its own random streams. Another number
        of ranks may go on, also of sharded models; a warning says what becomes of the streams then.

        Optimizer and schedule go on as the checkpoint has them. Where this trainer was built with other settings, such
        as another learning rate or `T_max`, a warning names them, unless `override` does. Everything else is taken from
        this trainer: the loss and its weights, hard examples, `accumulate`, `clip_norm`, the loader.

        Args:
            path: The checkpoint.
            override: Settings to take from this trainer: "optimizer", or one of its options, such as "optimizer.lr";
                "scheduler", which is then brought to where training is. Under a schedule another learning rate scales
                it.

        Raises:
            OSError: The file can't be opened.
            ValueError: The file is damaged or isn't such a checkpoint, or was written by a trainer that differs in
                model, optimizer, scheduler, device, precision or seeding. This trainer is then as it was.
        """
        self._see_that_no_fit_runs("resume")
        model, path = self._built("resume"), file_path("path", path)
        override = self._optimization.check_override(override)
        with ranks.failing_together("a checkpoint to read"):
            state = load_checkpoint(path, _CHECKPOINT_KEYS)
            contents = checked(state, path, model, self._settings(), self.device)
        with all_or_nothing(path, model, self._optimization, self.generator):
            wishes = self._optimization.wishes(state["optimization"])
            load_weights(model, contents.weights)
            self._optimization.load_state_dict(state["optimization"], override)
            if self.generator is not None:
                seed = self.generator.initial_seed()
                self.generator.set_state(contents.generator)
                tell_of_seed(path, self.generator.initial_seed(), seed)
            if self._average is not None:
                self._average.load_state_dict(state["average"], model, str(path))
        self._kept.best, self._position, self._kept.run = contents.best, contents.position, contents.run
        self._resumed_random, self._kept.resumed_from = contents.random, path.parent
        tell_of_resume(path, self._position, wishes, override, older="asked" not in state["optimization"])
        tell_of_ranks(path, state)

    def load_best(self) -> None:
        """Load the weights of the best epoch of this run into the model; after a resume, also from the folder before.

        With `ema` these are its average, which then begins anew with the next update.

        Raises:
            RuntimeError: There is none: no fit had a validation loader.
            FileNotFoundError: The file with its weights is not there.
            ValueError: The file that is there is damaged, or of another run.
        """
        model = self._built("load_best")
        weights, source = self._kept.best_weights()
        load_weights(model, weights_for(model, weights, source))
        if self._average is not None:
            self._average.begin_anew()

    def stop(self) -> None:
        """End the running fit after the current update, in the middle of the epoch if need be.

        Under `torch.distributed` all ranks end with the one on which it is called.
        """
        self._stopping = True

    def _see_that_no_fit_runs(self, verb: str) -> None:
        if self._fitting:
            raise RuntimeError(
                f"CooperativeTrainer.{verb} was called while a fit of this trainer runs, by a callback for instance. "
                "Call stop(), and do so after the fit, or take another trainer."
            )

    # What fit is made of ----------------------------------------------------------------------------------------------

    @contextmanager
    def _session(self, loader: Iterable[Any]) -> Iterator[None]:
        """Set up what lasts for a fit, and undo it whatever happens."""
        self._loader, self._drawing, self._stopping = loader, Drawing(), False
        self._saved_step = self.global_step
        self._kept.see_that_it_can_be(self._optimization.state_dict(), self.history)
        if self._allocator and self.device.type == "cpu" and tune_allocator() and ranks.rank() == 0:
            tell_of_allocator()
        with ExitStack() as stack:
            self._fitting = True
            self._guard.begin()
            stack.callback(self._drawing.news.release)
            stack.callback(setattr, self, "_fitting", False)
            stack.enter_context(self._kept.locked())
            take_weights_from_first(self.model)
            if self._resumed_random is not None:
                restore_random_state(self._resumed_random, self.device, loader, *self._others)
                self._resumed_random = None
            stack.enter_context(preserved_modes(self.model))
            put = put_in_train_mode(self.model, self._built("fit").model)
            if not self._told_of_modes and ranks.rank() == 0:
                tell_of_modes(self.model, put)
            self._told_of_modes = True
            stack.enter_context(self._optimization.stepping())
            for callback in self.callbacks:
                callback.on_start(self)
                stack.callback(callback.on_end, self)
            stack.enter_context(self._drawing.stoppable(self._keep_what_there_is, self._keep_unsaved))
            yield

    def _keep_unsaved(self) -> None:
        """Save a fit that failed, where there are updates that no file has."""
        if self.global_step > self._saved_step:
            self._keep_what_there_is()

    def _keep_what_there_is(self) -> None:
        """Save a fit that is stopped."""
        if self._position.batches == 0 and self._position.epoch_start:  # the epoch begins anew
            restore_random_state(self._position.epoch_start, self.device, self._loader, *self._others)
        self._save_last()

    def _beat(self) -> None:
        """Do what is to be done now and then: stop if asked to, and tell others that this trainer lives."""
        self._kept.beat()
        self._stopping = agreed_to_stop(self._stopping, self._drawing.interruption, self._guard)

    def _end_epoch(self, val_loader: Iterable[Any] | None, monitor: str, complete: bool, started: float) -> None:
        """Evaluate, log and save an epoch, or what there is of it."""
        position = self._position
        if position.batches == 0:
            raise ValueError(
                "fit needs a loader that yields at least one batch in every epoch; got an empty one. "
                "A generator can be read only once: pass a DataLoader or a list."
            )
        sums, counted = over_ranks("losses of an epoch", position.sums, position.counted)
        losses = means_of(sums, counted) if sums else {"loss": math.nan}
        self._guard.end_epoch(position.epoch + 1, position.batches)
        seconds = time.monotonic() - started  # taken now, when the device has done what it was told
        metrics = {"epoch": position.epoch + 1, "step": position.step, **self._optimization.rates}
        metrics |= {"seconds": seconds, **losses}
        if val_loader is not None:
            metrics |= {f"val_{name}": score for name, score in self.evaluate(val_loader).items()}
            self._keep_best(position.epoch + 1, metrics, monitor)
        position.history[position.epoch :] = [metrics]  # the row of an epoch cut short gives way to the whole one's
        if complete:
            with self._drawing.wholly():
                self._optimization.end_epoch(metrics.get(f"val_{monitor}", math.nan))
                self._position = Position(position.epoch + 1, position.step, history=position.history)
        self._save_last()
        for callback in self.callbacks:
            callback.on_epoch(self, metrics)

    def _keep_best(self, epoch: int, metrics: Mapping[str, float], monitor: str) -> None:
        value = metrics[f"val_{monitor}"]
        if math.isnan(value):
            tell_of_no_score(epoch, monitor)
        if not value > self._best_so_far(monitor):
            return
        with undisturbed(), self._scored():
            self._kept.keep_best(epoch, value, self._built("fit"))

    def _best_so_far(self, monitor: str) -> float:
        """Return the score of the best epoch, by what is monitored now: an earlier fit may have watched another one."""
        if self.best is None:
            return -math.inf
        row = next((row for row in self.history if row.get("epoch") == self.best.epoch), {})
        return row.get(f"val_{monitor}", self.best.value)

    def _save_last(self) -> None:
        self._kept.keep_last(self.model, self.save)
        self._saved_step = self.global_step

    def _done(self, epochs: int | None, max_steps: int | None) -> bool:
        finished = epochs is not None and self.epoch >= epochs
        return self._stopping or finished or (max_steps is not None and self.global_step >= max_steps)

    def _unlogged(self) -> bool:
        """Whether there are updates that no row of the history counts."""
        return self.global_step > (self.history[-1]["step"] if self.history else 0)

    @contextmanager
    def _scored(self) -> Iterator[None]:
        """Let the model have the weights that are evaluated and kept, for as long as the context lasts."""
        with self._optimization.evaluating(), ExitStack() as stack:
            if self._average is not None:
                stack.enter_context(self._average.weights(self._built("evaluate")))
            yield

    def _scored_batches(self, loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor] | None]:
        """Yield the batches that the model is scored on."""
        drawn = map(self._checked, self._drawing.batches(loader, iter(loader)))
        for batch in scored_together(drawn, self._drawing.interruption):
            if batch is None:
                yield None
            else:
                images, labels = (one.to(self.device, non_blocking=True) for one in batch[:2])
                yield images, labels
            self._kept.beat()

    @property
    def _others(self) -> tuple[object, ...]:
        """What may draw from random streams of its own, beside a loader."""
        return self._batch, self._step, self.model

    def _checked(self, drawn: Any) -> Batch:
        return self._wrapped.checked(drawn, self._guard)

    def _built(self, verb: str) -> CooperativeModel:
        return self._wrapped.built(verb)

    def _settings(self) -> dict[str, Any]:
        """Return what must be alike where a checkpoint is written and where it is resumed."""
        given = {"seed": self.generator, "ema": self._average}
        return self._optimization.settings() | {name: None if one is None else "given" for name, one in given.items()}
