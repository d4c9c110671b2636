"""Where a training computes: precisions, the step, and processes that share the work."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from ccdstream.errors import ConfigError
from trainer import losses
from trainer.backbone import TinyNet
from trainer.compute import Compute, Minimiser, open_compute
from trainer.config import ComputeConfig, PretrainConfig
from trainer.losses import contrastive
from trainer.pretrain import pretrain
from trainer.runs import Run

ROOT = Path(__file__).parent.parent


def test_a_cpu_computes_in_float32_alone_unless_told_otherwise() -> None:
    with open_compute(ComputeConfig(device="cpu")) as compute:
        assert compute.description == "cpu, fp32, 1 process"
        assert (compute.half, compute.compiles, compute.leads) == (None, False, True)
    with open_compute(ComputeConfig(device="cpu", precision="bf16")) as half, half.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line() -> None:
    with (
        pytest.raises(ConfigError, match="torch sees no GPU here"),
        open_compute(ComputeConfig(device="cuda")),
    ):
        pass


def test_half_precision_that_a_cpu_lacks_is_refused() -> None:
    with (
        pytest.raises(ConfigError, match="fp16, which needs a GPU"),
        open_compute(ComputeConfig(device="cpu", precision="fp16")),
    ):
        pass


def test_a_step_is_the_optimizers_and_goes_on_from_a_checkpoint() -> None:
    def trained(steps: int, state: dict[str, object] | None = None, start: float = 1.0) -> tuple:
        weight = nn.Parameter(torch.tensor([start]))
        descent = Minimiser(torch.optim.SGD([weight], 0.1, momentum=0.9), Compute())
        if state is not None:
            descent.load_state_dict(state)
        for _ in range(steps):
            descent.minimise(weight.square().sum())
        return weight.item(), descent.state_dict()

    plain = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([plain], 0.1, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        plain.square().sum().backward()
        optimizer.step()
    assert trained(4)[0] == plain.item()
    halfway, state = trained(2)
    assert trained(2, state, halfway)[0] == plain.item()


def test_every_parameter_gets_the_learning_rate() -> None:
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    descent = Minimiser(torch.optim.SGD([{"params": [w]} for w in weights], 0.1), Compute())
    descent.set_learning_rate(1.0)
    descent.minimise(sum(w.sum() for w in weights))  # type: ignore[arg-type]
    assert [w.item() for w in weights] == [0.0, 0.0]


def two_processes(code: str, *arguments: object) -> list[str]:
    """Run `code` in two processes that find each other as torchrun's do; what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    printed = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        printed.append(out.strip())
    return printed


TOGETHER = """
import json, sys
from pathlib import Path
sys.path.insert(0, "tests")
import test_compute as test
from trainer.compute import open_compute
from trainer.config import ComputeConfig
with open_compute(ComputeConfig(device="cpu")) as compute:
    print(json.dumps({
        "steps": test.share_of_steps(compute).tolist(),
        "overflow": test.steps_of_which_one_overflows(compute),
        "any": [compute.any(compute.rank == 1), compute.any(False)],
        "strong": test.strong_classes_contrasted(compute, Path(sys.argv[1])),
    }))
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("together")
    return [json.loads(printed.splitlines()[-1]) for printed in two_processes(TOGETHER, folder)]


def share_of_steps(compute: Compute) -> torch.Tensor:
    """Weights after three contrastive steps on this process's rows of a batch of eight."""
    torch.manual_seed(compute.rank)  # another start in every process
    net = nn.Linear(4, 3, bias=False)
    if compute.processes == 1:
        torch.manual_seed(0)
        net = nn.Linear(4, 3, bias=False)
    compute.same_start(net)
    descent = Minimiser(torch.optim.SGD(net.parameters(), 0.5), compute)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        views = torch.randn(2, 8, 4, generator=generator)
        count = compute.share(8)
        mine = views[:, compute.rank * count : (compute.rank + 1) * count]
        z1, z2 = (compute.gather(net(view)) for view in mine)
        own = net(mine[0]).square().mean()  # a loss that each process has of its own rows
        descent.minimise(contrastive(z1, z2, temperature=0.2) + own)
    return net.weight.detach().flatten()


def steps_of_which_one_overflows(compute: Compute) -> list[list[float]]:
    """Weight and loss scale after each of three steps; in the second, one process overflows.

    float16's loss scaling on a CPU: the arithmetic itself stays float32.
    """
    compute = replace(compute, half=torch.float16)
    weight = nn.Parameter(torch.ones(1))
    descent = Minimiser(torch.optim.SGD([weight], 0.25), compute)
    after = []
    for slope in (1.0, float("inf") if compute.rank == 1 else 1.0, 1.0):
        descent.minimise((weight * slope).sum())
        after.append([weight.item(), descent.state_dict()["scaler"]["scale"]])
    return after


def strong_classes_contrasted(compute: Compute, folder: Path) -> dict[str, list[Any]]:
    """Strong classes of this process's items, and of all that pre-training contrasts."""
    config = PretrainConfig(negatives="same_strong", position_weight=0.0, batch_size=16, steps=1)

    def items(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.rand(count, 3, 16, 16, generator=generator), torch.ones(count, 1, 16, 16)

    def no_pairs(count: int, generator: torch.Generator) -> Any:
        raise AssertionError

    run = Run(folder, {}, resume=False, say=lambda _: None, checkpoint_every_s=60, compute=compute)
    run.on_progress = lambda _: None
    torch.manual_seed(0)
    net = TinyNet()
    with (
        mock.patch.object(losses, "contrastive", wraps=losses.contrastive) as contrasted,
        mock.patch.object(losses, "view_labels", wraps=losses.view_labels) as labelled,
    ):
        pretrain("p", net, items, no_pairs, config, 1, run, size_px=16, seed=0)
    return {
        "own": labelled.call_args_list[0].args[0].tolist(),
        "all": contrasted.call_args.kwargs["strong"].tolist(),
        "rows": [len(z) for z in contrasted.call_args.args],
        "weight": net.state_dict()["layers.0.weight"].flatten()[:8].tolist(),
    }


def test_two_processes_take_the_steps_that_one_takes_on_the_whole_batch(
    together: list[dict[str, Any]],
) -> None:
    alone = share_of_steps(Compute())
    for found in together:
        torch.testing.assert_close(torch.tensor(found["steps"]), alone, rtol=1e-5, atol=1e-6)


def test_a_step_that_overflows_in_one_process_is_skipped_in_both(
    together: list[dict[str, Any]],
) -> None:
    full = 2.0**16
    expected = [[0.75, full], [0.75, full / 2], [0.5, full / 2]]
    assert [found["overflow"] for found in together] == [expected, expected]


def test_what_is_true_in_one_process_is_true_in_any(together: list[dict[str, Any]]) -> None:
    assert [found["any"] for found in together] == [[True, False], [True, False]]


def test_items_of_every_process_are_contrasted_by_their_own_strong_class(
    together: list[dict[str, Any]],
) -> None:
    first, second = (found["strong"] for found in together)
    assert first["own"] != second["own"]
    assert first["all"] == second["all"] == first["own"] + second["own"]
    assert first["rows"] == second["rows"] == [16, 16]
    assert first["weight"] == second["weight"]


@pytest.mark.parametrize("batch_size", [3, 1, 0])
def test_a_batch_that_does_not_divide_is_refused(batch_size: int) -> None:
    assert Compute(processes=2).share(4) == 2
    with pytest.raises(ConfigError, match=f"batch_size is {batch_size}. .*of the 2 processes"):
        Compute(processes=2).share(batch_size)
