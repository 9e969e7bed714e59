"""Nets, optimizers and ways to train, combined: what a cockpit must not change, whatever meets in one loop.

Every way of training (:data:`FEATURES`) meets every optimizer once, and the architectures of the zoo take turns, so that each is
trained in several ways::

    combination = COMBINATIONS[0]
    assert_identical(combination.train, folder)

Each way is an ordinary training function, as users write it; a ``Loop`` holds what all of them need.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from tests.identity import Watch
from tests.optimizers import OPTIMIZERS, OptimizerCase
from tests.zoo import ZOO, Architecture, Batch

STEPS = 4
BATCH_SIZE = 6


@dataclass(frozen=True)
class Loop:
    """What a way of training is made of."""

    architecture: Architecture
    case: OptimizerCase

    def model(self, seed: int = 0) -> nn.Module:
        """Return a new model."""
        return self.architecture.build(seed)

    def optimizer(self, model: nn.Module) -> Optimizer:
        """Return a new optimizer of the model."""
        return self.case.factory(model)

    def batches(self, count: int = STEPS, seed: int = 2) -> Iterator[Batch]:
        """Yield batches, the same ones each time."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            yield self.architecture.batch(BATCH_SIZE, generator)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss that the architecture is trained with."""
        return self.architecture.loss(model, batch)

    def step(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *batches: Batch,
        loss: Callable[[nn.Module, Batch], Tensor] | None = None,
        before_update: Callable[[], Any] = lambda: None,
    ) -> Any:
        """Take one step, through a closure where the optimizer wants one; return losses and gradients.

        Args:
            model: The model.
            optimizer: Its optimizer.
            batches: One, or several whose gradients are added up.
            loss: Instead of :meth:`loss`.
            before_update: Called between the backward pass and the update.
        """
        losses: list[Tensor] = []

        def evaluate() -> Tensor:
            optimizer.zero_grad()
            for batch in batches:
                value = (loss or self.loss)(model, batch) / len(batches)
                value.backward(create_graph=self.case.create_graph)
                losses.append(value.detach())
            before_update()
            return torch.stack(losses[-len(batches) :]).sum()

        if self.case.closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()
        return losses, [None if p.grad is None else p.grad.detach().clone() for p in model.parameters()]


class StopTraining(Exception):  # noqa: N818 - no failure
    """What an early-stopping callback raises."""


def _plain(loop: Loop, watch: Watch) -> Any:
    model = loop.model()
    optimizer = loop.optimizer(model)
    with watch(model, optimizer):
        return [loop.step(model, optimizer, batch) for batch in loop.batches()]


def _accumulation(loop: Loop, watch: Watch) -> Any:
    model = loop.model()
    optimizer = loop.optimizer(model)
    with watch(model, optimizer):
        batches = list(loop.batches(3 * STEPS))
        return [loop.step(model, optimizer, *batches[3 * step : 3 * step + 3]) for step in range(STEPS)]


def _clipping(loop: Loop, watch: Watch) -> Any:
    model = loop.model()
    optimizer = loop.optimizer(model)
    norms = []

    def clip() -> None:
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1))

    with watch(model, optimizer):
        seen = [loop.step(model, optimizer, batch, before_update=clip) for batch in loop.batches()]
    return seen, norms


def _scheduler(loop: Loop, watch: Watch) -> Any:
    model = loop.model()
    optimizer = loop.optimizer(model)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer, [warmup, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)], milestones=[2]
    )
    seen = []
    with watch(model, optimizer):
        for batch in loop.batches():
            seen.append((loop.step(model, optimizer, batch), scheduler.get_last_lr()))
            scheduler.step()
    return seen


def _autocast(loop: Loop, watch: Watch) -> Any:
    model = loop.model()
    optimizer = loop.optimizer(model)

    def half(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loop.loss(model, batch)

    with watch(model, optimizer):
        return [loop.step(model, optimizer, batch, loss=half) for batch in loop.batches()]


def _gradient_scaler(loop: Loop, watch: Watch) -> Any:
    model = loop.model()
    optimizer = loop.optimizer(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    seen = []
    with watch(model, optimizer):
        for step, batch in enumerate(loop.batches()):
            optimizer.zero_grad()
            loss = loop.loss(model, batch)
            scaler.scale(loss * (float("inf") if step == 1 else 1.0)).backward()  # the second step is skipped
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            seen.append((loss.detach(), scaler.get_scale()))
    return seen


def _checkpointing(loop: Loop, watch: Watch) -> Any:
    model = loop.model()
    optimizer = loop.optimizer(model)

    def recomputed(model: nn.Module, batch: Batch) -> Tensor:
        return checkpoint(loop.loss, model, batch, use_reentrant=False)  # type: ignore[return-value]

    with watch(model, optimizer):
        return [loop.step(model, optimizer, batch, loss=recomputed) for batch in loop.batches()]


def _moving_average(loop: Loop, watch: Watch) -> Any:
    model = loop.model()
    optimizer = loop.optimizer(model)
    with watch(model, optimizer):
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)  # copies it in depth
        other = None
        for step, batch in enumerate(loop.batches()):
            loop.step(model, optimizer, batch)
            average.update_parameters(model)
            if step == 2:
                other = copy.deepcopy(model)
    assert other is not None
    return dict(average.state_dict()), dict(other.state_dict()), loop.loss(other, next(loop.batches(1, 5))).detach()


def _pickling(loop: Loop, watch: Watch) -> Any:
    """Pickle between forward and backward, and go on with what was unpickled, with an optimizer that loads the other's state."""
    model = loop.model()
    optimizer = loop.optimizer(model)
    seen: list[Any] = []

    def snapshot(model: nn.Module, batch: Batch) -> Tensor:
        value = loop.loss(model, batch)
        with contextlib.suppress(AttributeError, pickle.PicklingError):  # classes inside functions cannot be
            pickled = pickle.dumps(model)
            assert b"cockpit" not in pickled
            unpickled = pickle.loads(pickled)  # its length says nothing: it holds addresses
            seen.append(([sorted(vars(module)) for module in unpickled.modules()], dict(unpickled.state_dict())))
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, io.BytesIO())
        return value

    with watch(model, optimizer):
        for step, batch in enumerate(loop.batches()):
            seen.append(loop.step(model, optimizer, batch, loss=snapshot))
            if step == 1:
                buffer = io.BytesIO()
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
            elif step == 2:
                buffer.seek(0)
                saved = torch.load(buffer, weights_only=False)
                model.load_state_dict(saved["model"])
                optimizer.load_state_dict(saved["optimizer"])
    return seen


def _workers(loop: Loop, watch: Watch) -> Any:
    model = loop.model()
    optimizer = loop.optimizer(model)
    loader = DataLoader(list(loop.batches()), batch_size=None, shuffle=True, num_workers=2)  # type: ignore[arg-type]
    with watch(model, optimizer):
        seen = [loop.step(model, optimizer, Batch(*batch)) for batch in loader]
    until = time.monotonic() + 10
    while any(thread.name == "QueueFeederThread" for thread in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.01)  # the loader's own threads end a little later
    return seen


def _early_stop(loop: Loop, watch: Watch) -> Any:
    model = loop.model()
    optimizer = loop.optimizer(model)
    with watch(model, optimizer):
        for step, batch in enumerate(loop.batches()):
            loop.step(model, optimizer, batch)
            loss = loop.loss(model, batch)
            if step == 2:
                raise StopTraining("good enough", step)
            del loss


def _interrupt(loop: Loop, watch: Watch) -> Any:
    """Ctrl-C between the backward pass and the update."""
    model = loop.model()
    optimizer = loop.optimizer(model)
    interrupt = partial(signal.raise_signal, signal.SIGINT)
    with watch(model, optimizer):
        for step, batch in enumerate(loop.batches()):
            loop.step(model, optimizer, batch, before_update=interrupt if step == 2 else lambda: None)


def _nested(loop: Loop, watch: Watch) -> Any:
    model = loop.model()
    optimizer = loop.optimizer(model)
    seen = []
    with watch(model, optimizer):
        for step, batch in enumerate(loop.batches()):
            with watch(model, optimizer) if step in (1, 2) else contextlib.nullcontext():
                seen.append(loop.step(model, optimizer, batch))
    return seen


def _repeated(loop: Loop, watch: Watch) -> Any:
    model = loop.model()
    optimizer = loop.optimizer(model)
    seen = []
    for _ in range(3):
        with watch(model, optimizer):
            seen += [loop.step(model, optimizer, batch) for batch in loop.batches(2)]
    return seen


def _two_at_once(loop: Loop, watch: Watch) -> Any:
    first, second = loop.model(0), loop.model(1)
    first_optimizer, second_optimizer = loop.optimizer(first), loop.optimizer(second)
    seen = []
    with watch(first, first_optimizer), watch(second, second_optimizer):
        for batch in loop.batches():
            seen.append(loop.step(first, first_optimizer, batch))
            seen.append(loop.step(second, second_optimizer, batch))
    return seen


def _threads(loop: Loop, watch: Watch) -> Any:
    """Two trainings in threads of their own, both watched; they take turns, since random numbers are the process's."""
    turn = threading.Condition()
    order: list[int] = [0]
    seen: dict[int, list[Any]] = {0: [], 1: []}
    errors: list[BaseException] = []

    @contextlib.contextmanager
    def my_turn(number: int) -> Iterator[None]:
        with turn:
            turn.wait_for(lambda: order[0] == number or bool(errors), timeout=250)
            try:
                yield
            finally:
                order[0] = 1 - number
                turn.notify_all()

    def train(number: int) -> None:
        try:
            with contextlib.ExitStack() as stack:
                with my_turn(number):
                    model = loop.model(number)
                    optimizer = loop.optimizer(model)
                    watching = stack.enter_context(watch(model, optimizer))
                for batch in loop.batches():
                    with my_turn(number):
                        seen[number].append(loop.step(model, optimizer, batch))
                with my_turn(number):
                    watching.log(validation_loss=1.0)
                    stack.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=train, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen, [repr(error) for error in errors]


def _validation(loop: Loop, watch: Watch) -> Any:
    model = loop.model()
    optimizer = loop.optimizer(model)
    held_out = next(loop.batches(1, 7))
    seen: list[Any] = []
    with watch(model, optimizer) as watching:
        for step, batch in enumerate(loop.batches()):
            seen.append(loop.step(model, optimizer, batch))
            model.eval()
            with torch.no_grad() if step % 2 else torch.inference_mode():
                with contextlib.suppress(RuntimeError):  # a loss that differentiates cannot
                    seen.append(float(loop.loss(model, held_out)))
                watching.log(validation_loss=float(step))
            model.train()
    return seen


def _freezing(loop: Loop, watch: Watch) -> Any:
    model = loop.model()
    optimizer = loop.optimizer(model)
    parameters = list(model.parameters())
    seen = []
    with watch(model, optimizer):
        for step, batch in enumerate(loop.batches()):
            if len(parameters) > 2 and parameters[0].requires_grad:
                parameters[0].requires_grad_(False)
            elif step == 2:
                parameters[0].requires_grad_(True)
            seen.append(loop.step(model, optimizer, batch))
    return seen


def _random_numbers(loop: Loop, watch: Watch) -> Any:
    """Augmentation from every generator, drawn at every moment of a step."""
    model = loop.model()
    optimizer = loop.optimizer(model)
    drawn: list[Any] = []

    def draw() -> None:
        drawn.append((random.random(), float(np.random.rand()), torch.rand(2)))

    def augmented(model: nn.Module, batch: Batch) -> Tensor:
        draw()
        inputs = tuple(x + 0.01 * torch.randn_like(x) if x.is_floating_point() else x for x in batch.inputs)
        return loop.loss(model, Batch(inputs, batch.targets)) * (1 + 0.1 * random.random())

    with watch(model, optimizer):
        for batch in loop.batches():
            loop.step(model, optimizer, batch, loss=augmented, before_update=draw)
            draw()
    return drawn


def _user_hooks(loop: Loop, watch: Watch) -> Any:
    model = loop.model()
    optimizer = loop.optimizer(model)
    events: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: events.append(f"forward {name}"))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: events.append(f"accumulated {name}"))
    optimizer.register_step_post_hook(lambda *_: events.append("stepped"))
    with watch(model, optimizer):
        seen = [loop.step(model, optimizer, batch) for batch in loop.batches()]
    return seen, events


def _anomaly(loop: Loop, watch: Watch) -> Any:
    with torch.autograd.set_detect_anomaly(True):
        return _plain(loop, watch)


def _two_optimizers(loop: Loop, watch: Watch) -> Any:
    """Two optimizers for halves of the parameters, stepped one after the other from one gradient."""
    model = loop.model()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    half = max(len(parameters) // 2, 1)
    optimizer = loop.optimizer(model)
    others = [torch.optim.SGD(parameters[:half], lr=0.01), torch.optim.Adam(parameters[half - 1 :], lr=0.01)]
    seen = []
    with watch(model, [optimizer, *others]):
        for batch in loop.batches():
            seen.append(loop.step(model, optimizer, batch))
            for other in others:
                other.step()
    return seen


FEATURES: dict[str, Callable[[Loop, Watch], Any]] = {
    "plain": _plain,
    "accumulation": _accumulation,
    "clipping": _clipping,
    "scheduler": _scheduler,
    "autocast": _autocast,
    "gradient scaler": _gradient_scaler,
    "checkpointing": _checkpointing,
    "moving average": _moving_average,
    "pickling": _pickling,
    "workers": _workers,
    "early stop": _early_stop,
    "interrupt": _interrupt,
    "nested": _nested,
    "repeated": _repeated,
    "two at once": _two_at_once,
    "threads": _threads,
    "validation": _validation,
    "freezing": _freezing,
    "random numbers": _random_numbers,
    "user hooks": _user_hooks,
    "anomaly detection": _anomaly,
    "two optimizers": _two_optimizers,
}


@dataclass(frozen=True)
class Combination:
    """A net, an optimizer and a way to train."""

    architecture: Architecture
    case: OptimizerCase
    feature: str

    @property
    def name(self) -> str:
        """All three."""
        return f"{self.feature}, {self.case.name}, {self.architecture.name}"

    def train(self, watch: Watch) -> Any:
        """Train, with ``watch`` in the place of the cockpit."""
        return FEATURES[self.feature](Loop(self.architecture, self.case), watch)


def _combinations() -> Iterator[Combination]:
    architectures = itertools.cycle(random.Random(0).sample(list(ZOO.values()), len(ZOO)))
    for feature in FEATURES:
        for case in OPTIMIZERS:
            if case.closure and feature == "gradient scaler":  # which refuses closures
                continue
            architecture = next(architectures)
            while feature == "autocast" and "lstm" in architecture.name:  # not every processor has LSTMs in bfloat16
                architecture = next(architectures)
            yield Combination(architecture, case, feature)


#: Every way of training with every optimizer.
COMBINATIONS: tuple[Combination, ...] = tuple(_combinations())
