"""Cockpit: the context manager around an unchanged training loop."""

from __future__ import annotations

import datetime
import itertools
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from cockpit_lite.alert import Alert
from cockpit_lite.black_box.box import DEFAULT_LIMIT, BlackBox
from cockpit_lite.data_parallel import reduced_and_local
from cockpit_lite.diagnosis import known_rules
from cockpit_lite.diagnosis.ignore import Ignored
from cockpit_lite.errors import RunExistsError, SetupError
from cockpit_lite.instrument import CURVATURE, Instrument
from cockpit_lite.isolation import warn
from cockpit_lite.observer import Observer
from cockpit_lite.presets import resolve
from cockpit_lite.probes import loss_scale, tensor_hooks
from cockpit_lite.probes.backward import listen, stop_listening
from cockpit_lite.probes.optimizer import OptimizerProbe
from cockpit_lite.probes.parameters import named_parameters
from cockpit_lite.probes.processes import OF_CALLS, OF_ONE_PROCESS, OF_WHOLE_PARAMETERS, TIMEOUT, Processes
from cockpit_lite.recorder import Recorder
from cockpit_lite.report import Report
from cockpit_lite.report.terminal import print_alert
from cockpit_lite.resume import Earlier, find_earlier
from cockpit_lite.run import load_run
from cockpit_lite.run_log import RunWriter, wait_for_ranks
from cockpit_lite.schedule import Budget, Every, Schedule
from cockpit_lite.sharded import any_is_sharded, unsharded_class, whole_in_calls
from cockpit_lite.sink import Sink, resolve_sinks
from cockpit_lite.watchdog import Watchdog

if TYPE_CHECKING:
    from cockpit_lite.live import Viewer
    from cockpit_lite.preflight import Preflight

LIVE_MODES = (None, "window", "notebook", "terminal")

Instruments = str | Instrument | Iterable[str | Instrument | type[Instrument]]


class Cockpit:
    """Watches the training that happens inside its ``with`` block; the loop stays as it was.

    ::

        with Cockpit(model, optimizer, loss_fn) as cockpit:
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss_fn(model(inputs), targets).backward()
                optimizer.step()

    Weights, gradients, buffers and random numbers of the training are bit for bit what they would have been. On
    leaving, also by an exception, everything is put back, and the report is written into the run folder.

    Args:
        model: The module that is trained.
        optimizer: Its optimizer, or a list of them.
        loss_fn: Not needed: the loss is found where ``backward()`` is called. Its class is named in the report.
        run: Folder of the run. Default: ``runs/<UTC time>-<model class>``.
        resume: Go on with the run in ``run``, after a crash or from a checkpoint, on this machine or another: the number of the
            next step (``cockpit.step`` when the checkpoint was made); what had been recorded from that step on is left out. True:
            after the last recorded step. Where there is no run yet, it begins.
        instruments: ``"light"``, ``"standard"`` or ``"full"``, an instrument name, or a list of these and of Instrument objects.
        schedule: At which steps to measure: ``Every(n)``, ``LogSpaced(...)`` or a callable ``step -> bool``.
        Default: every step that the
            budget allows. Loss, learning rate and step time are recorded at every step in any case.
        budget: Greatest share of training time that measuring may cost; None follows the schedule exactly.
        live: ``None``, ``"window"``, ``"notebook"`` or ``"terminal"``: watch while it trains.
        on_alert: Called once with each :class:`~cockpit_lite.alert.Alert`.
        ignore: Codes or names of findings that are not wanted, ``"CL305"``; of some modules only: ``"CL305@encoder.*"``.
        sinks: Where readings and alerts go besides the run folder: ``"tensorboard"``, ``"wandb"``, ``"mlflow"``, ``"trackio"``,
            ``"csv"``, ``"parquet"``, or :class:`~cockpit_lite.sink.Sink` objects.
        black_box: Whether to keep the first step whose loss or gradient is not finite, for ``cockpit-lite replay``; or how many
            bytes the kept steps of the run may take, by default a gibibyte.
        process_group: The group of ``torch.distributed`` whose processes train together, data-parallel, such as
            ``torch.distributed.group.WORLD``: loss and per-sample statistics are then those of all samples. Every process opens
            its cockpit with it; one run is written, the first process reports. All must measure at the same steps: the schedule
            is followed exactly, by default ``Every(10)``, and there is no budget. Without it each process sees its own part.

    Raises:
        SetupError: if the model has no parameters, the optimizer holds none of them, or an option is not understood.
        RunExistsError: on entering, if ``run`` already holds a run.
        OSError: on entering, if the run folder cannot be written.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        loss_fn: Callable[..., Any] | None = None,
        *,
        run: str | os.PathLike[str] | None = None,
        resume: bool | int = False,
        instruments: Instruments = "standard",
        schedule: Schedule | None = None,
        budget: float | None = 0.05,
        live: str | None = None,
        on_alert: Callable[[Alert], Any] | None = None,
        ignore: Iterable[str] = (),
        sinks: str | Sink | Iterable[str | Sink] = (),
        black_box: bool | int = True,
        process_group: Any = None,
    ):
        given = model
        # Passes of ours through the wrapper itself would take part in its communication.
        model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self._model = _check_model(model)
        self._data_parallel = reduced_and_local(given, process_group is not None)
        self._optimizers = _check_optimizers(optimizer)
        self._parameters = named_parameters(model, self._optimizers)
        _check_shared(model, self._optimizers)
        self._loss_fn = loss_fn
        self._folder = _new_folder(unsharded_class(model).__name__) if run is None else Path(run)
        self._folder_is_ours = run is None
        if not isinstance(resume, int) or resume < 0:
            raise SetupError(f"resume= takes True or the number of the next step, not {resume!r}.")
        if resume is not False and run is None:
            raise SetupError("resume= goes on with a run: say where it is with run=.")
        self._resume = resume
        self._earlier: Earlier | None = None
        self._instruments = resolve(instruments)
        if schedule is not None and not callable(schedule):
            raise SetupError(f"schedule= takes Every(n), LogSpaced(...) or a callable step -> bool, not {schedule!r}.")
        self._schedule = schedule
        try:
            self._budget = None if budget is None else Budget(budget)
        except (ValueError, TypeError) as error:
            raise SetupError(f"budget= takes a share such as 0.05, or None: {error}") from error
        if live not in LIVE_MODES:
            raise SetupError(f"live= takes {', '.join(map(repr, LIVE_MODES))}, not {live!r}.")
        self._live = live
        if on_alert is not None and not callable(on_alert):
            raise SetupError(f"on_alert= takes a callable, not {on_alert!r}.")
        self._on_alert = on_alert
        self._processes = None if process_group is None else Processes(process_group)
        if self._processes is not None:
            self._budget = None
            self._schedule = schedule or Every(10)
        self._rules = known_rules()
        self._ignored = Ignored(ignore, self._rules)
        self._sinks = resolve_sinks(sinks) if self._rank == 0 else []
        if not isinstance(black_box, int) or black_box < 0:
            raise SetupError(f"black_box= takes True, False or a number of bytes, not {black_box!r}.")
        self._black_box_limit = DEFAULT_LIMIT if black_box is True else int(black_box)
        self._black_box: BlackBox | None = None
        self._viewer: Viewer | None = None
        self._recorder: Recorder | None = None
        self._observer: Observer | None = None
        self._optimizer_probe: OptimizerProbe | None = None

    def __enter__(self) -> Cockpit:
        if self._observer is not None:
            raise SetupError("A Cockpit watches one training run: make a new one for the next.")
        writer = self._open_run() if self._processes is None else self._open_run_together(self._processes)
        earlier = self._earlier
        announce = self._announce if self._rank == 0 else _say_nothing
        # Others may be slow, too, and to wait for them has a time limit of its own.
        watchdog = Watchdog(0.0 if self._processes is None else 10 * TIMEOUT.total_seconds())
        self._recorder = Recorder(writer, self._rules, self._on_alert, announce, self._ignored, self._sinks, earlier, watchdog)
        instruments = self._instruments_of_the_run(writer)
        try:
            for instrument in instruments:
                (instrument.start if earlier is None else instrument.resume)(self._parameters)
            self._observer = Observer(
                self._model,
                self._parameters,
                self._optimizers,
                instruments,
                self._schedule,
                self._budget,
                self._recorder,
                first_step=0 if earlier is None else earlier.step,
                processes=self._processes,
            )
        except Exception as error:  # an instrument or a schedule of the user's own: nothing has begun yet, so it may be raised
            self._recorder.close(status="failed", ended=_now().isoformat(timespec="seconds"), steps=0, exception=_spelled(error))
            if self._processes is not None:
                self._processes.end()
            raise
        self._optimizer_probe = OptimizerProbe(self._optimizers, self._observer)
        if self._black_box_limit and self._rank == 0:
            self._black_box = self._start_black_box(self._observer, self._recorder)
        listen(self._observer)
        loss_scale.watch()
        tensor_hooks.watch()
        self._optimizer_probe.start()
        if self._live is not None and self._rank == 0:
            from cockpit_lite.live import start_viewer  # nothing of it is needed without

            self._viewer = start_viewer(self._folder, self._live)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        observer, recorder = self._observer, self._recorder
        if observer is None or recorder is None or self._optimizer_probe is None:
            return
        if self._black_box is not None:
            stop_listening(self._black_box)
            self._black_box.stop()
        stop_listening(observer)
        loss_scale.stop_watching()
        tensor_hooks.stop_watching()
        self._optimizer_probe.stop()
        if self._processes is not None:
            self._processes.end()
        try:
            observer.close()
            recorder.close(
                status="completed" if kind is None else "interrupted" if kind is KeyboardInterrupt else "failed",
                ended=_now().isoformat(timespec="seconds"),
                steps=observer.index,
                **({} if error is None else {"exception": _spelled(error)}),
                cost=observer.costs.summary(),
            )
            if self._rank == 0:
                if self._processes is not None:
                    wait_for_ranks(self._folder)
                self._write_results()
        except Exception as failure:  # the user's own exception, if any, must pass through unchanged
            warn(f"The report of the run in {self._folder} could not be written; its readings are there.", failure)
        if self._viewer is not None:
            self._viewer.close()

    @property
    def step(self) -> int:
        """How many optimizer steps have been completed: the number of the step under way, counted from 0."""
        return 0 if self._observer is None else self._observer.index

    @property
    def alerts(self) -> list[Alert]:
        """The alerts raised so far."""
        return [] if self._recorder is None else list(self._recorder.alerts)

    @property
    def folder(self) -> Path:
        """The run folder. Where ``run`` was left out it is settled on entering the ``with`` block."""
        return self._folder

    def log(self, **values: float) -> None:
        """Record numbers of your own beside the readings, such as ``validation_loss`` or ``validation_accuracy``.

        They belong to the last completed step. A value that is no number is left out with a warning.
        """
        if self._recorder is None:
            return
        numbers: dict[str, float] = {}
        for name, value in values.items():
            try:
                numbers[name] = float(value)
            except (TypeError, ValueError) as error:
                warn(f"cockpit.log({name}=...) takes a number and was ignored.", error)
        if numbers:
            self._recorder.log(max(self.step - 1, 0), numbers)

    def keep_step(self) -> None:
        """Keep the step under way, or the next one, for ``cockpit-lite replay``: its batch, weights and random numbers.

        Call it before ``backward()``. The files lie in the run folder under ``black_box``, as far as there is room for them.
        """
        if self._black_box is None:
            warn("keep_step() was ignored: the black box is open inside the with block only, and black_box=False closes it.")
        else:
            self._black_box.ask()

    def report(self) -> Report:
        """Return the diagnostic report of the run: of all of it after the block, inside of what has been recorded so far.

        Raises:
            SetupError: before the ``with`` block was entered.
        """
        if self._recorder is None:
            raise SetupError("There is no run yet: call report() inside the with block or after it.")
        self._recorder.flush()
        return load_run(self._folder).report()

    def _start_black_box(self, observer: Observer, recorder: Recorder) -> BlackBox:
        black_box = BlackBox(
            self._model,
            self._parameters,
            self._optimizers,
            self._folder,
            self._black_box_limit,
            step=lambda: observer.index,
            measuring=observer.measuring,
            measured=observer.measured,
            kept=lambda step: recorder.log(step, {"step_kept": 1.0}),
        )
        black_box.start()
        listen(black_box)  # before the observer, whose own passes over the graph come between its two calls
        return black_box

    @property
    def _rank(self) -> int:
        return 0 if self._processes is None else self._processes.rank

    def _left_out(self) -> tuple[list[Instrument], str]:
        """Return the instruments that cannot measure here, and why."""
        sharded = any_is_sharded(self._parameters.values())
        unknown = OF_ONE_PROCESS if sharded or self._processes is not None else frozenset()
        unknown = unknown | OF_WHOLE_PARAMETERS if sharded else unknown
        if sharded and self._processes is not None:
            whole = whole_in_calls(self._model, self._parameters.values(), self._processes.size)
            unknown = unknown - OF_CALLS if whole else unknown
        left_out = [i for i in self._instruments if unknown & (set(i.needs) - set(i.can_do_without))]
        return left_out, f"it is not measured {'of sharded parameters' if sharded else 'over several processes'}"

    def _instruments_of_the_run(self, writer: RunWriter) -> list[Instrument]:
        """Return the instruments that can measure, and write down why the others cannot."""
        left_out, reason = self._left_out()
        if not left_out:
            return self._instruments
        writer.not_measured(0, {name: reason for instrument in left_out for name in (instrument.readings or (instrument.name,))})
        return [instrument for instrument in self._instruments if instrument not in left_out]

    def _open_run_together(self, processes: Processes) -> RunWriter:
        """Open the run on the first process, then beside it on the others."""
        left_out, _ = self._left_out()
        curvature = [i.name for i in self._instruments if CURVATURE in i.needs and i not in left_out]
        processes.open(self._parameters, curvature)
        if processes.rank == 0:
            try:
                writer = self._open_run()
            except Exception as error:
                processes.same(error)
                raise
            processes.same((self._folder, self._earlier))
            return writer
        opened = processes.same(None)
        if isinstance(opened, Exception):
            raise opened
        self._folder, self._earlier = opened
        earlier = self._earlier
        if earlier is None:
            return RunWriter(self._folder, self._info(), rank=processes.rank)
        return RunWriter(self._folder, self._info(), resumed=earlier.step, seconds=earlier.seconds, rank=processes.rank)

    def _open_run(self) -> RunWriter:
        self._earlier = earlier = find_earlier(self._folder, self._resume)
        if earlier is not None:
            info = self._info()
            kept = {key: value for key, value in earlier.info.items() if key not in ("ended", "exception", "cost", "steps")}
            resumed = [*_listed(kept.get("resumed")), {"step": earlier.step, "at": info["created"], "versions": info["versions"]}]
            info.update({"created": kept.get("created", info["created"]), "resumed": resumed})
            return RunWriter(self._folder, {**kept, **info}, resumed=earlier.step, seconds=earlier.seconds)
        while True:
            try:
                return RunWriter(self._folder, self._info())
            except RunExistsError:
                if not self._folder_is_ours:
                    raise
                self._folder = _new_folder(unsharded_class(self._model).__name__)  # another run began in the same second

    def preflight(self, batch: Any, loss: Callable[[nn.Module, Any], torch.Tensor] | None = None) -> Preflight:
        """Check on one batch whether everything is ready to train; nothing of yours is changed.

        A copy of model and optimizer is trained for three steps and tried out: what the rules say, whether samples stay apart,
        whether backward agrees with differences of the loss, whether a few samples can be learnt by heart.

        ::

            cockpit.preflight((inputs, targets)).print()

        Args:
            batch: Inputs and targets; for anything else give ``loss``.
            loss: Called with the model and the batch, instead of ``loss_fn``.

        Raises:
            SetupError: if there is neither ``loss`` nor ``loss_fn``, or the model cannot be called with the batch.
        """
        from cockpit_lite.preflight import preflight  # it makes a cockpit of its own

        return preflight(self._model, self._optimizers, batch, self._loss_fn, loss)

    @staticmethod
    def _announce(alert: Alert) -> None:
        print_alert(alert)

    def _write_results(self) -> None:
        report = load_run(self._folder).report()
        report.save()
        report.print()

    def _info(self) -> dict[str, Any]:
        return {
            "created": _now().isoformat(timespec="seconds"),
            "status": "running",
            "pid": os.getpid(),
            "model": {
                "class": unsharded_class(self._model).__name__,
                "parameters": sum(parameter.numel() for parameter in self._parameters.values()),
                "trainable_parameters": sum(
                    parameter.numel() for parameter in self._parameters.values() if parameter.requires_grad
                ),
                "device": str(next(iter(self._parameters.values())).device),
            },
            "shapes": {name: list(parameter.shape) for name, parameter in self._parameters.items()},
            "optimizer": [_describe(optimizer) for optimizer in self._optimizers],
            "loss_fn": None if self._loss_fn is None else getattr(self._loss_fn, "__name__", type(self._loss_fn).__name__),
            "instruments": [instrument.name for instrument in self._instruments],
            "schedule": "every step" if self._schedule is None else repr(self._schedule),
            "budget": None if self._budget is None else self._budget.share,
            "seed": torch.initial_seed(),
            **({} if self._processes is None else {"processes": self._processes.size}),
            **({"data_parallel": self._data_parallel} if self._data_parallel else {}),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "backpack": metadata.version("backpack-for-pytorch"),
                "cockpit_lite": metadata.version("cockpit-lite"),
                "platform": sys.platform,
            },
        }


def _say_nothing(alert: Alert) -> None:
    """The first process says it."""


def _check_model(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise SetupError(f"Cockpit(model, optimizer): the model must be a torch.nn.Module, not {type(model).__name__}.")
    if next(model.parameters(), None) is None:
        raise SetupError(f"{type(model).__name__} has no parameters, so there is nothing to watch.")
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):  # its import takes seconds
        raise SetupError(
            "FullyShardedDataParallel keeps parts of several parameters in one flat tensor, of which nothing can be said. "
            "torch.distributed.fsdp.fully_shard, which follows it, can be watched."
        )
    if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in model.parameters()):
        raise SetupError(
            f"{type(model).__name__} has lazy parameters without a shape: run one batch through it before the with block."
        )
    return model


def _check_optimizers(optimizer: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    given = [optimizer] if not isinstance(optimizer, Iterable) else list(optimizer)
    if not given:
        raise SetupError("Cockpit(model, optimizer): the list of optimizers is empty.")
    optimizers = []
    for item in given:
        # Accelerate and similar libraries wrap the optimizer whose step() is really called.
        inner = getattr(item, "optimizer", item)
        found = item if isinstance(item, Optimizer) and not isinstance(inner, Optimizer) else inner
        if not isinstance(found, Optimizer):
            raise SetupError(
                f"Cockpit(model, optimizer): the optimizer must be a torch.optim.Optimizer, not {type(item).__name__}."
            )
        optimizers.append(found)
    return optimizers


def _check_shared(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    of_model = {id(parameter) for parameter in model.parameters()}
    for optimizer in optimizers:
        if not any(id(parameter) in of_model for group in optimizer.param_groups for parameter in group["params"]):
            raise SetupError(
                f"{type(optimizer).__name__} holds no parameter of {type(model).__name__}, so its steps cannot train it. Was it "
                "made for another model, or before the model was copied or moved? Make it with model.parameters()."
            )


def _describe(optimizer: Optimizer) -> dict[str, Any]:
    settings = {
        key: value
        for key, value in optimizer.param_groups[0].items()
        if key != "params" and isinstance(value, (bool, int, float, str, tuple, list))
    }
    return {"class": type(optimizer).__name__, "groups": len(optimizer.param_groups), **settings}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _spelled(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _new_folder(model_name: str) -> Path:
    base = Path("runs") / f"{_now():%Y%m%d-%H%M%S}-{model_name}"
    candidates = itertools.chain([base], (base.with_name(f"{base.name}-{number}") for number in itertools.count(2)))
    return next(folder for folder in candidates if not folder.exists())
