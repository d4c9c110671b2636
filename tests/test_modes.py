"""Train and eval modes come back as they were."""

import pytest
from torch import nn

from trainer.modes import evaluating


def test_every_submodule_returns_to_the_mode_it_had() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    model.train()
    model[0].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, False, True]


def test_an_error_inside_does_not_leave_the_model_in_eval_mode() -> None:
    model = nn.Dropout()
    with pytest.raises(RuntimeError, match="inside"), evaluating(model):
        raise RuntimeError("inside")
    assert model.training
