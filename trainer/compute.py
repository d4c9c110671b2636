"""Where a training computes and in which precision, alone or with other processes.

Every loop has one path: on one CPU core in float32 and on several GPUs in half precision it is the
same code, and what differs is here. Started by `torchrun`, each process takes its share of every
batch, and gradients are averaged over the processes before every step, which is what
`DistributedDataParallel` does; that wrapper does not support the second derivatives of a gradient
penalty, nor networks that are called twice before a step, and both happen here.
"""

import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.distributed
import torch.distributed.nn.functional as collective
from torch import Tensor, nn

from ccdstream.errors import ConfigError
from trainer.config import ComputeConfig

M = TypeVar("M", bound=nn.Module)

_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """A device, a precision, and this process among those that train together."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    half: torch.dtype | None = None
    """What autocast computes in; None: float32 throughout."""
    compiles: bool = False
    rank: int = 0
    processes: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that logs and writes files."""
        return self.rank == 0

    @property
    def description(self) -> str:
        """For the log and the manifest."""
        name = "cpu"
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        precision = next(key for key, dtype in _PRECISIONS.items() if dtype is self.half)
        return f"{name}, {precision}, {self.processes} process{'es' if self.processes > 1 else ''}"

    def place(self, module: M) -> M:
        """Bring `module` here, its convolutions in channels_last: twice as fast on a CPU too."""
        return module.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def compiled(self, module: M) -> M:
        """`module` for use in a loop: the same weights, through torch.compile where that is on."""
        return cast(M, torch.compile(module)) if self.compiles else module

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the networks' arithmetic, for the forward pass of a step."""
        return torch.autocast(self.device.type, self.half, enabled=self.half is not None)

    def generator(self, seed: int) -> torch.Generator:
        """A source of random numbers on the device, so that drawing copies nothing."""
        return torch.Generator(self.device).manual_seed(seed)

    def share(self, batch_size: int, key: str = "batch_size") -> int:
        """This process's part of a batch of `batch_size`, the setting `key`.

        Raises:
            ConfigError: it cannot be shared out evenly.
        """
        if batch_size < self.processes or batch_size % self.processes:
            raise ConfigError(
                f"{key} is {batch_size}. Expected a multiple of the {self.processes} processes "
                "that share it."
            )
        return batch_size // self.processes

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process: all get the same answer."""
        if self.processes == 1:
            return flag
        flags = torch.tensor([int(flag)], device=self.device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return bool(flags.item())

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of every process, in the order of ranks, with gradients: [n, D] -> [P n, D]."""
        if self.processes == 1:
            return rows
        return torch.cat(collective.all_gather(rows.contiguous()))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every parameter's gradient the mean over the processes, in one message."""
        if self.processes == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.processes
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def same_start(self, *modules: nn.Module) -> None:
        """Give every process the weights and statistics of the first."""
        if self.processes == 1:
            return
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                torch.distributed.broadcast(tensor.data, 0)


class Minimiser:
    """An optimizer with what belongs around its step: loss scaling, averaging, the step.

    float16 gradients underflow unless the loss is scaled; in the other precisions the scaler
    passes everything through.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, compute: Compute) -> None:
        self._optimizer = optimizer
        self._compute = compute
        self._scaler = torch.amp.GradScaler(
            compute.device.type, enabled=compute.half is torch.float16
        )

    def minimise(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`, float32 []."""
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        # before the scaler looks for overflow, so that all processes find it and skip the step
        self._compute.average_gradients(
            p for group in self._optimizer.param_groups for p in group["params"]
        )
        self._scaler.unscale_(self._optimizer)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def set_learning_rate(self, rate: float) -> None:
        """Of every parameter."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self._optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where nothing is scaled
            self._scaler.load_state_dict(state["scaler"])


@contextmanager
def open_compute(config: ComputeConfig) -> Iterator[Compute]:
    """What `config` asks for, on this machine; joins the processes that torchrun started.

    Raises:
        ConfigError: a GPU is asked for and there is none, or a precision that the device lacks.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    gpu = torch.cuda.is_available()
    if config.device == "cuda" and not gpu:
        raise ConfigError(
            "compute.device is cuda and torch sees no GPU here. Check `ccdstream doctor`, or set "
            "compute.device to cpu."
        )
    device = torch.device("cpu")
    if gpu and config.device != "cpu":
        number = int(os.environ.get("LOCAL_RANK", "0"))
        if number >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started more processes than the {torch.cuda.device_count()} GPUs here. "
                "Give --nproc-per-node their number."
            )
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    half = _PRECISIONS.get(config.precision)
    if config.precision == "auto" and device.type == "cuda":
        half = (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float16
        )
    if half is torch.float16 and device.type == "cpu":
        raise ConfigError(
            "compute.precision is fp16, which needs a GPU. Set it to bf16, fp32 or auto."
        )
    has_triton = importlib.util.find_spec("triton") is not None  # torch.compile's on a GPU
    compiles = config.compile == "on" or (
        config.compile == "auto" and device.type == "cuda" and has_triton
    )
    if processes == 1:
        yield Compute(device, half, compiles)
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Compute(device, half, compiles, torch.distributed.get_rank(), processes)
    finally:
        torch.distributed.destroy_process_group()
