"""The training loop: epochs of steps, evaluations, checkpoints, and a stop that loses nothing."""

from __future__ import annotations

import math
import signal
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fastvicreg.config import TrainConfig
from fastvicreg.contracts import Cursor
from fastvicreg.datasets import names_digest
from fastvicreg.errors import DivergedError, UserError
from fastvicreg.evaluate.online import OnlineEvaluation
from fastvicreg.show.display import Display
from fastvicreg.show.metrics import recorder_of
from fastvicreg.show.spread import SpreadLog
from fastvicreg.show.watch import CollapseWatch, DataWaitWatch
from fastvicreg.stalls import FIRST, StalledError, Watchdog
from fastvicreg.train import checkpoint as checkpoints
from fastvicreg.train.assemble import Run, assemble
from fastvicreg.train.background import Background
from fastvicreg.train.checkpoint import Progress
from fastvicreg.train.distributed import Agreement, gather, together
from fastvicreg.train.failures import device_failure, diverged, explained
from fastvicreg.train.initial import begin_with_weights
from fastvicreg.train.run_folder import claim, require_apart, save_config
from fastvicreg.train.schedules import schedules_of
from fastvicreg.train.signals import stop_signals
from fastvicreg.train.stragglers import Told, Waits, pace, tell_epoch

LATE = 2
"""Steps of a device that the log stays behind: reading the newest would wait until it is idle."""
SCALER_PATIENCE = 50
"""Steps in a row with a non-finite loss that fp16's gradient scaler is given to find a scale."""


@dataclass
class Outcome:
    """What a finished or stopped run leaves: its folder, its last rows, and the signal that stopped it."""

    folder: Path
    step: int
    last: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    signal: int | None = None
    no_knn: str | None = None
    """Why evaluation gave no kNN."""
    total: int = 0
    """Steps of the whole run, before whose end --steps may stop it."""


class Trainer:
    """One run, from its config to its last checkpoint; ``run`` are its parts, by default those of ``config``."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        *,
        resume: bool,
        display: Display,
        run: Run | None = None,
        watch: Watchdog | None = None,
    ) -> None:
        """``watch`` hears of every stage that the run comes to."""
        config.check()
        self._watch = watch or Watchdog(0)
        self._config = config
        self._folder = folder
        self._display = display
        self._run = run or assemble(config)
        processes = self._run.processes
        self._lock = None
        try:
            if not resume:
                require_apart(folder, self._run.data.train, self._run.data.validation)
            self._lock = together(lambda: claim(folder, config, resume=resume) if processes.main else None, processes)
            self._prepare(resume=resume)
        except BaseException:
            self._release()
            raise

    def _prepare(self, *, resume: bool) -> None:
        """Everything that needs the folder to be this run's alone."""
        config, folder, processes = self._config, self._folder, self._run.processes
        if self._lock and self._lock.missing:
            self._display.note(self._lock.missing)
        horizon = self._run.horizon(config)
        self._steps, self._per_epoch = horizon.steps, horizon.steps_per_epoch
        self._schedules, shortened = schedules_of(self._run.method, config.optim, horizon)
        if shortened:
            self._display.note(shortened)
        if not resume and (check := getattr(self._run.method, "check_length", None)):
            check(horizon)
        self._probe_scale = config.run.probe_lr / config.optim.base_lr  # of the run's, which follows its schedule
        if self._run.probe:
            self._run.probe.listen(self._run.encoder)
        images = self._run.data.train
        self._progress = Progress(Cursor(0, 0), 0, len(images), names_digest(images))
        self._writing = Background(checkpoints.NoRoomError, lambda why: self._display.note(f"{why} Training goes on."))
        self._saving, self._not_finite, self._halted = 0.0, 0, False
        self._agreed = Agreement(processes)
        self._waits = Waits()
        spare = 0 < config.data.workers < processes.cores
        self._data_watch = DataWaitWatch(config.data.pipeline, more_workers=spare)
        self._collapse_watch = CollapseWatch(self._run.method.spread, base_lr=config.optim.base_lr)
        self._spread = SpreadLog(self._run.method if processes.main else None)
        if resume:
            self._restore()
        if config.run.init and not self._progress.step:
            for note in begin_with_weights(config, self._run.module, self._run.encoder):
                self._display.note(note)
        if processes.main:
            # Only now: a resume that is refused leaves the saved settings as they were.
            save_config(folder, config, self._run.data.vocabulary)
        self._recorder = recorder_of(config, folder, self._progress.step, self._display.note, writes=processes.main)
        self._evaluate = OnlineEvaluation.build(self._run, config) if config.run.eval_every else None
        self._no_evaluation = ""  # why the last one could not be made: said once
        self._outcome = Outcome(folder, self._progress.step, total=self._steps)

    def train(self) -> Outcome:
        """Run to the end, or to a stopping signal: then a checkpoint is written at the next batch's end."""
        last = min(self._steps, self._config.run.steps or self._steps)
        for note in self._run.data.notes:
            self._display.note(note)
        self._display.start(
            self._run.described(self._config),
            columns=self._run.columns,
            schedules=tuple(self._schedules),
            total=last,
            done=self._progress.step,
            per_epoch=self._per_epoch,
        )
        self._outcome.no_knn = self._evaluate.no_knn if self._evaluate else None
        if self._outcome.no_knn:
            self._display.note(f"no kNN while training: {self._outcome.no_knn}")
        try:
            with stop_signals() as stopped:
                while self._progress.step < last and not self._halted:
                    self._epoch(last, stopped)
            self._agreed.settle()
            together(self._writing.wait, self._run.processes)
            self._outcome.signal = stopped[0] if stopped else None
        except StalledError as error:
            if self._run.processes.world_size == 1:  # nobody else is needed for it
                self._save()
                self._writing.wait()
            raise UserError(f"{error} Continue with --resume --out {self._folder}.") from error
        except (RuntimeError, MemoryError) as error:
            if failure := device_failure(self._run.device):
                self._recorder.forget()
            processes, last_finite = self._run.processes.world_size, self._diverged(self._progress.step)
            if told := explained(error, failure, self._config, processes=processes, diverged=last_finite):
                raise told from error
            raise
        finally:
            self._display.stop()
            self._writing.close()
            self._run.engine.close()
            self._run.step.close()
            try:
                self._recorder.close()
            finally:
                self._release()
        self._outcome.step = self._progress.step
        return self._outcome

    def _release(self) -> None:
        self._run.data.close()
        if self._lock:
            self._lock.release()

    def _diverged(self, step: int) -> str:
        return diverged(self._config, self._run.precision, self._folder, step)

    def _epoch(self, last: int, stopped: list[int]) -> None:
        config, run = self._config.run, self._run
        cursor, step = self._progress.cursor, self._progress.step
        feed = run.feed.epoch(cursor)
        self._recorder.start_clock(owed=self._saving)
        self._saving = 0.0
        try:
            for fed in feed:
                self._watch(f"step {step + 1}", factor=1 if step > self._outcome.step else FIRST)
                scalars = {name: schedule(step) for name, schedule in self._schedules.items()}
                terms = run.step(fed.batch, scalars)
                if run.probe:
                    terms = run.probe.learn(terms, fed.batch.label_B, scalars["lr"] * self._probe_scale)
                at = fed.batch.cursor
                step += 1
                waited = fed.data_wait.seconds
                self._recorder.step(step, at, terms, scalars, images=config.batch_size, data_wait=waited)
                ends = at.batch + 1 == self._per_epoch
                following = Cursor(at.epoch + 1, 0) if ends else Cursor(at.epoch, at.batch + 1)
                self._progress = replace(self._progress, cursor=following, step=step)
                halt = self._stops(stopped) or step == last
                saves = halt or ends or step % config.checkpoint_every == 0
                if step % config.log_every == 0:
                    self._spread.take(step, at)
                if saves or step % config.log_every == 0:
                    # All before a checkpoint: a run killed after it resumes with every row up to it on disk.
                    self._show(self._recorder.flush(late=0 if saves else LATE), self._spread.rows(late=not saves))
                    self._writing.check()
                if ends or step == self._steps:
                    self._end_epoch(at.epoch, step, fed.batch.views[0])
                if saves:
                    began = time.perf_counter()
                    self._save()
                    # The clock starts anew with an epoch, but what a checkpoint costs is a step's.
                    self._saving = time.perf_counter() - began if ends else 0.0
                if halt:
                    self._halted = True
                    return
        finally:
            feed.close()

    def _stops(self, stopped: list[int]) -> bool:
        """Whether a signal ends the run here, in whichever process it came."""
        if not self._agreed(bool(stopped)):
            return False
        if not stopped:
            stopped.append(signal.SIGTERM)
        return True

    def _end_epoch(self, epoch: int, step: int, view: Tensor) -> None:
        run = self._run
        taken = pace(run.encoder, view, run.precision) if run.processes.world_size > 1 else 0.0
        told = gather(Told(run.engine.faults(), self._waits.take(), taken), run.processes)
        tell_epoch(epoch, self._progress.step, told, self._display, self._recorder, device=run.device)
        every = self._config.run.eval_every
        if self._evaluate and ((epoch + 1) % every == 0 or step == self._steps):
            self._watch(f"the evaluation after epoch {epoch}", factor=FIRST)  # each of its waits has its own limit
            try:
                values = self._evaluate(self._run.encoder, self._run.probe)
            except StalledError:
                raise
            except UserError as error:  # what cannot be evaluated can still be trained
                if str(error) != self._no_evaluation:
                    self._no_evaluation = str(error)
                    self._display.note(f"epoch {epoch}: no evaluation: {error}")
                return
            if replaced := values.get("replaced"):
                self._display.note(f"epoch {epoch}: {replaced:.0f} images of the evaluation replaced by a neighbour.")
            self._outcome.evaluation = self._recorder.evaluation(self._progress.step, epoch, values)
            self._display.evaluation(self._outcome.evaluation)

    def _show(self, rows: list[dict[str, Any]], spreads: list[dict[str, Any]]) -> None:
        self._recorder.spread(spreads)
        scaled = self._run.step.updater.scaler.is_enabled()
        for row in rows:
            self._not_finite = 0 if math.isfinite(row["total"]) else self._not_finite + 1
            if self._not_finite >= (SCALER_PATIENCE if scaled else 1):
                raise DivergedError(self._diverged(row["step"] if scaled else row["step"] - 1))
        if rows:
            self._outcome.last = rows[-1]
            self._display.step(rows, spreads)
            self._waits.see(rows)
        for warning in (self._data_watch.see(rows), self._collapse_watch.see(rows, spreads)):
            if warning:
                self._display.note(warning)

    def _save(self) -> None:
        together(self._begin_checkpoint, self._run.processes)

    def _begin_checkpoint(self) -> None:
        if not self._run.processes.main:
            return
        self._writing.clear()  # before the copy: memory for one at a time
        state = checkpoints.snapshot(self._progress, self._run.module, self._run.step.updater)
        folder, keep = self._folder / "checkpoints", self._config.run.keep
        self._writing.start(partial(checkpoints.write, folder, state, keep=keep))

    def _restore(self) -> None:
        """From the newest checkpoint that is whole; says so where one had to be passed over, or there is none."""
        run = self._run
        found = checkpoints.listed(self._folder / "checkpoints")
        for path in reversed(found):
            try:
                saved = checkpoints.restore(path, run.module, run.step.updater)
            except checkpoints.CheckpointError as error:
                self._display.note(f"{error}: trying the one before it.")
                continue
            if other := checkpoints.compare_data(saved, self._progress, self._folder):
                self._display.note(other)
            self._progress = replace(self._progress, cursor=saved.cursor, step=saved.step)
            cursor = saved.cursor
            self._display.note(f"resumed {path}: epoch {cursor.epoch}, batch {cursor.batch}.")
            return
        if found:
            raise UserError(
                f"none of the {len(found)} checkpoints in {self._folder} is whole: nothing was changed; "
                f"start a new run in another --out."
            )
        self._display.note(f"nothing to resume in {self._folder}: starting at step 0.")
