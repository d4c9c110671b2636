"""The dense network that the localiser and the student share."""

import pytest
import torch

from trainer.backbone import EfficientNetLite0, TinyNet
from trainer.pyramid import Pyramid


@pytest.mark.parametrize("backbone", [TinyNet(), EfficientNetLite0(blocks=8), EfficientNetLite0()])
def test_every_backbone_ends_in_a_map_of_stride_4(backbone):
    pyramid = Pyramid(backbone, width=8).eval()
    with torch.no_grad():
        assert pyramid(torch.zeros(2, 3, 64, 96)).shape == (2, 8, 16, 24)


def test_every_map_of_the_backbone_is_listened_to():
    torch.manual_seed(0)
    pyramid = Pyramid(
        EfficientNetLite0(), width=8
    )  # a random start dies out without batch statistics
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        before = pyramid(x)
        for lateral in pyramid.laterals:
            kept = lateral[0].weight.clone()
            lateral[0].weight.zero_()
            assert not torch.allclose(pyramid(x), before, atol=1e-2)
            lateral[0].weight.copy_(kept)
        assert torch.allclose(pyramid(x), before, atol=1e-4)
