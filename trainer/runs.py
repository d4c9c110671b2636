"""A training run's folder: what it was asked, how it went, and where it goes on after a stop.

config.json       the configuration, written first
metrics.jsonl     a line every few seconds: stage, step, losses, rate
STAGE.pt          the stage's checkpoint; `done` once it is finished
losses.png        the losses over the steps
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccdstream.errors import DataError, OutputError

Say = Callable[[str], None]
_LOG_EVERY_S = 5.0


def say_on_stderr(line: str) -> None:
    """Print a progress line where people look."""
    print(line, file=sys.stderr, flush=True)


class Run:
    """The folder of one training run, new or resumed."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        resume: bool,
        say: Say,
        checkpoint_every_s: float,
    ) -> None:
        """Open `folder`, which must be new unless `resume`.

        Raises:
            OutputError: the folder exists and `resume` is not set, or cannot be written.
            DataError: `resume` is set and the folder holds a run of another configuration.
        """
        self.folder = folder
        self.say = say
        self._checkpoint_every_s = checkpoint_every_s
        text = json.dumps(config, indent=2, sort_keys=True)
        file = folder / "config.json"
        if file.exists():
            if not resume:
                raise OutputError(
                    f"{folder} holds a training run already. Pass --resume to go on with it, or "
                    "remove it."
                )
            if file.read_text(encoding="utf-8") != text:
                raise DataError(
                    f"{folder} was made with another configuration or other data. Resume with the "
                    "same ones, or remove it."
                )
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            except OSError as error:
                raise OutputError(f"cannot write {folder}: {error.strerror}.") from error

    def stage(
        self, name: str, steps: int, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Any]
    ) -> "Stage":
        """The stage `name`, with what an earlier run left of it put into modules and optimizers."""
        return Stage(self, name, steps, modules, optimizers)

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl."""
        file = self.folder / "metrics.jsonl"
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


class Stage:
    """One loop of a run: counts steps, reports losses, and saves so that a stop loses little.

        stage = run.stage("pretrain", 500, {"net": net}, {"opt": opt})
        for step, generator in stage.steps(seed):
            ...
            stage.report({"loss": loss})

    Every step has a generator of its own, seeded by (seed, stage, step), so that a resumed run
    draws what an undisturbed one would have drawn.
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
            saved = torch.load(self._file, map_location="cpu", weights_only=True)
            for key, module in modules.items():
                module.load_state_dict(saved["modules"][key])
            for key, optimizer in optimizers.items():
                optimizer.load_state_dict(saved["optimizers"][key])
            self._next = saved["step"]
            run.say(f"{name}: goes on at step {self._next} of {steps}")

    @property
    def finished(self) -> bool:
        """Whether every step was done, in this run or an earlier one."""
        return self._next >= self.count

    def steps(self, seed: int) -> Iterator[tuple[int, torch.Generator]]:
        """Yield (step, generator) for the steps left; save at intervals and at the end."""
        started, first = time.monotonic(), self._next
        logged = saved = started
        for step in range(self._next, self.count):
            generator = torch.Generator().manual_seed(
                hash((seed, sum(self.name.encode()), step)) & 0x7FFF_FFFF_FFFF_FFFF
            )
            yield step, generator
            self._next = step + 1
            now = time.monotonic()
            rate = (self._next - first) / max(now - started, 1e-9)
            if now - logged >= _LOG_EVERY_S or self._next == self.count:
                self._log(rate)
                logged = now
            if now - saved >= self._run._checkpoint_every_s:
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
        left_s = (self.count - self._next) / rate
        self._run.log(
            {"stage": self.name, "step": self._next, "steps_per_s": round(rate, 4), **means}
        )
        losses = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
        self._run.say(
            f"{self.name} {self._next}/{self.count}  {losses}  {rate:.2f} steps/s  "
            f"{int(left_s // 60)}m{int(left_s % 60):02d}s left"
        )

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        part = self._file.with_suffix(".part")
        torch.save(
            {
                "step": self._next,
                "modules": {key: m.state_dict() for key, m in self._modules.items()},
                "optimizers": {key: o.state_dict() for key, o in self._optimizers.items()},
            },
            part,
        )
        os.replace(part, self._file)


def plot_losses(run: Run) -> Path:
    """Draw every stage's losses over its steps into losses.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages: dict[str, list[dict[str, Any]]] = {}
    for entry in run.metrics():
        stages.setdefault(entry["stage"], []).append(entry)
    figure = Figure(figsize=(9, 2.6 * max(len(stages), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (name, entries) in enumerate(stages.items()):
        axes = figure.add_subplot(len(stages), 1, index + 1)
        keys = [k for k in entries[-1] if k not in ("stage", "step", "steps_per_s")]
        for key in keys:
            points = [(e["step"], e[key]) for e in entries if key in e]
            axes.plot(*zip(*points, strict=True), label=key)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    path = run.folder / "losses.png"
    figure.savefig(path, dpi=120)
    return path
