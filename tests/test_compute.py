"""Where a training computes: precisions, the step, and processes that share the work."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ccdstream.errors import ConfigError
from trainer.compute import Compute, Minimiser, open_compute
from trainer.config import ComputeConfig
from trainer.losses import contrastive

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


STEPS = """
import sys, torch
sys.path.insert(0, "tests")
from test_compute import share_of_steps
from trainer.compute import open_compute
from trainer.config import ComputeConfig
with open_compute(ComputeConfig(device="cpu")) as compute:
    print(share_of_steps(compute).tolist())
"""


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


def test_two_processes_take_the_steps_that_one_takes_on_the_whole_batch() -> None:
    alone = share_of_steps(Compute())
    for printed in two_processes(STEPS):
        together = torch.tensor(eval(printed))
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
