"""Modes of networks that are put back by construction."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put `models` in eval mode for the block, then every submodule back as it was."""
    before = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def learning(model: nn.Module) -> Iterator[None]:
    """Put `model` in train mode and let every weight have a gradient for the block; then eval mode,
    and gradients for those that had them before."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.train().requires_grad_(True)
    try:
        yield
    finally:
        model.eval()
        for parameter, had in before:
            parameter.requires_grad_(had)
