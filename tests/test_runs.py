"""A run's folder: it is never overwritten, and a stop loses nothing that was saved."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ccdstream.errors import DataError, OutputError
from trainer.pictures import plot_losses
from trainer.runs import Run


def open_run(folder: Path, *, resume: bool = False, **config: int) -> Run:
    return Run(folder, config, resume=resume, say=lambda _: None, checkpoint_every_s=0.0)


def train(run: Run, net: nn.Linear, steps: int, *, stop_after: int | None = None) -> None:
    """A loop like those of the trainer, on drawn numbers; may be killed in the middle."""
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    stage = run.stage("fit", steps, {"net": net}, {"adam": optimizer})
    for step, generator in stage.steps(seed=1):
        if step == stop_after:
            return
        loss = net(torch.randn(4, 2, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        stage.report({"loss": loss})


def fresh_net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(2, 1)


def test_a_resumed_run_ends_bit_for_bit_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    whole, halved = fresh_net(), fresh_net()
    train(open_run(tmp_path / "a"), whole, 9)
    train(open_run(tmp_path / "b"), halved, 9, stop_after=4)
    resumed = fresh_net()
    train(open_run(tmp_path / "b", resume=True), resumed, 9)
    assert torch.equal(resumed.weight, whole.weight)
    assert not torch.equal(halved.weight, whole.weight)


def test_a_finished_stage_is_loaded_and_not_run_again(tmp_path: Path) -> None:
    net, again = fresh_net(), fresh_net()
    train(open_run(tmp_path), net, 3)
    written = (tmp_path / "fit.pt").stat().st_mtime_ns
    train(open_run(tmp_path, resume=True), again, 3)
    assert torch.equal(net.weight, again.weight)
    assert (tmp_path / "fit.pt").stat().st_mtime_ns == written


def test_an_existing_run_is_refused_without_resume(tmp_path: Path) -> None:
    open_run(tmp_path)
    with pytest.raises(OutputError, match=r"holds a training run already\. Pass --resume"):
        open_run(tmp_path)


@pytest.mark.parametrize(("made", "missing"), [(False, "is not there"), (True, "holds no run")])
def test_resuming_where_no_run_is_says_that_it_starts_anew(
    tmp_path: Path, made: bool, missing: str
) -> None:
    lines: list[str] = []
    folder = tmp_path / "my.run"
    if made:
        folder.mkdir()
    for _ in range(2):  # the second time there is one
        Run(folder, {}, resume=True, say=lines.append, checkpoint_every_s=0.0)
    assert lines == [f"nothing to resume: {folder} {missing}; starting anew"]


def test_a_run_of_another_configuration_is_not_resumed(tmp_path: Path) -> None:
    open_run(tmp_path, seed=1)
    with pytest.raises(DataError, match=r"made with other settings or data: seed was 1, is 2\."):
        open_run(tmp_path, resume=True, seed=2)


def test_metrics_hold_the_mean_losses_and_can_be_drawn(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    train(run, fresh_net(), 3)
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert entries[-1]["stage"] == "fit"
    assert entries[-1]["step"] == 3
    assert entries[-1]["loss"] > 0
    assert plot_losses(run).read_bytes().startswith(b"\x89PNG")


def test_what_was_done_after_the_checkpoint_is_told_once(tmp_path: Path) -> None:
    def steps() -> list[int]:
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines]

    run = open_run(tmp_path)
    run.checkpoint_every_s = 1e9  # killed before it saved anything
    train(run, fresh_net(), 9, stop_after=4)
    assert steps() == [1, 2, 3, 4]
    train(open_run(tmp_path, resume=True), fresh_net(), 9)
    assert steps() == list(range(1, 10))


def test_equal_runs_log_equal_losses_whatever_the_time(tmp_path: Path) -> None:
    logged = []
    for name, stop in (("a", None), ("b", 120)):
        train(open_run(tmp_path / name), fresh_net(), 500, stop_after=stop)
        if stop:
            train(open_run(tmp_path / name, resume=True), fresh_net(), 500)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        logged.append([(entry["step"], entry["loss"]) for entry in entries])
    assert logged[0] == logged[1]
    assert len(logged[0]) == 250
