"""A training run's folder: what it was asked, how it went, and where it goes on after a stop.

config.json       the configuration, written first
metrics.jsonl     a line every few seconds: stage, step, losses, rate
STAGE.pt          the stage's checkpoint: networks, optimizers, and the next step
losses.png        the losses over the steps
tensorboard/      the same for TensorBoard, where asked for
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccdstream.errors import ConfigError, DataError, OutputError
from trainer.compute import Compute

Say = Callable[[str], None]
_TELL_EVERY_S = 5.0
_LOG_LINES = 200
"""About how often a stage logs its losses."""
_LOG_MOST_STEPS = 50
"""And the most steps between two logs. Steps, not seconds: two equal runs log the same."""


def say_on_stderr(line: str) -> None:
    """Print a line where people look."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is."""

    stage: str
    done: int
    total: int
    per_s: float
    """Steps a second; pictures a second where they are read."""
    losses: Mapping[str, float]
    """Means since the last report."""

    def __str__(self) -> str:
        left_s = int((self.total - self.done) / max(self.per_s, 1e-9))
        return "  ".join(
            [
                f"{self.stage} {self.done}/{self.total}",
                *(f"{key} {value:.4f}" for key, value in self.losses.items()),
                f"{self.per_s:.2f}/s",
                f"{left_s // 60}m{left_s % 60:02d}s left",
            ]
        )

    @property
    def brief(self) -> str:
        """The same without the time, for beside a bar."""
        losses = (f"{key} {value:.3f}" for key, value in self.losses.items())
        return "  ".join([f"{self.stage} {self.done}/{self.total} {self.per_s:.2f}/s", *losses])


def say_progress(progress: Progress) -> None:
    """Print how far a stage is."""
    say_on_stderr(str(progress))


class Run:
    """The folder of one training run, new or resumed."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        resume: bool,
        say: Say = say_on_stderr,
        on_progress: Callable[[Progress], None] = say_progress,
        stopped: Callable[[], bool] = lambda: False,
        checkpoint_every_s: float,
        compute: Compute | None = None,
        tensorboard: bool = False,
    ) -> None:
        """Open `folder`, which must be new unless `resume`.

        Args:
            config: what the checkpoints depend on.
            stopped: asked after every step; once true, the stage saves and raises
                KeyboardInterrupt.
            compute: where; this process on a CPU if not given.
            tensorboard: also write the losses for TensorBoard.

        Raises:
            OutputError: the folder exists and `resume` is not set, or cannot be written.
            DataError: `resume` is set and the folder holds a run of another configuration.
            ConfigError: TensorBoard is asked for and not installed.
        """
        self.folder = folder
        self.compute = compute = compute or Compute()
        self.stopped = stopped
        self.checkpoint_every_s = checkpoint_every_s
        self.say: Say = say if compute.leads else lambda _: None
        self.on_progress = on_progress if compute.leads else lambda _: None
        if compute.leads:
            self._open(config, resume)
        self._tensorboard = _tensorboard(folder) if tensorboard and compute.leads else None

    def _open(self, config: Mapping[str, Any], resume: bool) -> None:
        text = json.dumps(config, indent=2, sort_keys=True)
        file = self.folder / "config.json"
        if not file.exists():
            if resume:
                missing = "holds no run" if self.folder.exists() else "is not there"
                self.say(f"nothing to resume: {self.folder} {missing}; starting anew")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            except OSError as error:
                raise OutputError(f"cannot write {self.folder}: {error.strerror}.") from error
        elif not resume:
            raise OutputError(
                f"{self.folder} holds a training run already. Pass --resume to go on with it, or "
                "remove it."
            )
        elif (before := file.read_text(encoding="utf-8")) != text:
            raise DataError(
                f"{self.folder} was made with other settings or data: "
                f"{_differences(json.loads(before), json.loads(text))}. Resume with the same ones, "
                "or remove it."
            )

    def stage(
        self, name: str, steps: int, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Any]
    ) -> "Stage":
        """The stage `name`, with what an earlier run left of it put into modules and optimizers.

        Args:
            optimizers: whatever has `state_dict` and `load_state_dict`.
        """
        return Stage(self, name, steps, modules, optimizers)

    def reading(self, what: str) -> Callable[[int, int], None]:
        """Told (done, total) after every picture that is read, tells of it every few seconds."""
        started = told = time.monotonic()

        def tell(done: int, total: int) -> None:
            nonlocal told
            now = time.monotonic()
            if now - told >= _TELL_EVERY_S:
                told = now
                rate = done / (now - started)
                self.on_progress(Progress(f"reading {what}", done, total, rate, {}))

        return tell

    def log(self, progress: Progress) -> None:
        """Append one line to metrics.jsonl, and tell whoever looks on."""
        if not self.compute.leads:
            return
        entry = {
            "stage": progress.stage,
            "step": progress.done,
            "steps_per_s": round(progress.per_s, 4),
            **progress.losses,
        }
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self._tensorboard is not None:
            for key, value in progress.losses.items():
                self._tensorboard.add_scalar(f"{progress.stage}/{key}", value, progress.done)
            self._tensorboard.flush()
        self.on_progress(progress)

    def forget(self, stage: str, step: int) -> None:
        """Drop the lines of `stage` beyond `step`: what was done after its checkpoint is done
        again."""
        if not self.compute.leads:
            return
        entries = self.metrics()
        kept = [e for e in entries if e["stage"] != stage or e["step"] <= step]
        if len(kept) < len(entries):
            text = "".join(json.dumps(entry) + "\n" for entry in kept)
            part = self.folder / "metrics.jsonl.part"
            part.write_text(text, encoding="utf-8")
            os.replace(part, self.folder / "metrics.jsonl")

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl."""
        file = self.folder / "metrics.jsonl"
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def close(self) -> None:
        """Close what was opened for TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stage:
    """One loop of a run: counts steps, reports losses, and saves so that a stop loses little.

        stage = run.stage("pretrain", 500, {"net": net}, {"opt": opt})
        for step, generator in stage.steps(seed):
            ...
            stage.report({"loss": loss})

    Every step has a generator of its own, seeded by (seed, stage, step, rank), so that a resumed
    run draws what an undisturbed one would have drawn; torch's own generator, which some networks
    draw from, is seeded alike.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        steps: int,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, Any],
    ) -> None:
        self._run = run
        self.name = name
        self.count = steps
        self._modules = modules
        self._optimizers = optimizers
        self._file = run.folder / f"{name}.pt"
        self._next = 0
        self._losses: dict[str, list[Tensor]] = {}
        if self._file.exists():
            saved = torch.load(self._file, map_location=run.compute.device, weights_only=True)
            for key, module in modules.items():
                module.load_state_dict(saved["modules"][key])
            for key, optimizer in optimizers.items():
                optimizer.load_state_dict(saved["optimizers"][key])
            self._next = saved["step"]
            self._losses = {key: list(values) for key, values in saved["losses"].items()}
            run.say(f"{name}: goes on at step {self._next} of {steps}")
        run.forget(name, self._next)
        run.compute.same_start(*modules.values())

    def steps(self, seed: int) -> Iterator[tuple[int, torch.Generator]]:
        """Yield (step, generator) for the steps left; save at intervals and at the end.

        Raises:
            KeyboardInterrupt: the run was asked to stop; what was done is saved.
        """
        started, first = time.monotonic(), self._next
        saved = started
        every = min(_LOG_MOST_STEPS, max(1, self.count // _LOG_LINES))
        for step in range(self._next, self.count):
            rank = self._run.compute.rank
            key = hash((seed, sum(self.name.encode()), step, rank)) & 0x7FFF_FFFF_FFFF_FFFF
            torch.manual_seed(key)
            yield step, self._run.compute.generator(key)
            self._next = step + 1
            now = time.monotonic()
            if self._next % every == 0 or self._next == self.count:
                self._log((self._next - first) / max(now - started, 1e-9))
            if self._run.compute.any(self._run.stopped()):
                self.save()
                raise KeyboardInterrupt
            if now - saved >= self._run.checkpoint_every_s:
                self.save()
                saved = time.monotonic()
        if self._next > first:
            self.save()

    def report(self, losses: Mapping[str, Tensor]) -> None:
        """Remember the losses of the step at hand; their means are logged every few seconds."""
        for key, value in losses.items():
            self._losses.setdefault(key, []).append(value.detach())

    def _log(self, rate: float) -> None:
        means = {key: torch.stack(v).mean().item() for key, v in self._losses.items()}
        self._losses.clear()
        self._run.log(Progress(self.name, self._next, self.count, rate, means))

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if not self._run.compute.leads:
            return
        part = self._file.with_suffix(".part")
        try:
            torch.save(
                {
                    "step": self._next,
                    "losses": {key: torch.stack(v) for key, v in self._losses.items()},
                    "modules": {key: m.state_dict() for key, m in self._modules.items()},
                    "optimizers": {key: o.state_dict() for key, o in self._optimizers.items()},
                },
                part,
            )
            os.replace(part, self._file)
        except (OSError, RuntimeError) as error:  # torch's own writer says RuntimeError
            raise OutputError(
                f"cannot write the checkpoint {self._file}: {str(error).splitlines()[0]}. "
                "Make room there, then go on with --resume."
            ) from error


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> str:
    """The settings that differ, as text."""
    said = []
    for key in sorted({*before, *after}):
        a, b = before.get(key), after.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if inner := _differences(a, b, f"{prefix}{key}."):
                said.append(inner)
        elif a != b:
            said.append("the images" if key == "data" else f"{prefix}{key} was {a}, is {b}")
    return ", ".join(said)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "TensorBoard is not installed. Leave --tensorboard out, or install it with "
            "pip install 'ccdstream[tensorboard]'."
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))
