"""Backbones: shapes, start weights, and what happens where there are none."""

from pathlib import Path

import pytest
import torch

from ccdstream.errors import ConfigError
from trainer import backbone
from trainer.backbone import DATA_RANGE, EfficientNetLite0, Normalise, make_backbone
from trainer.config import BackboneConfig


@pytest.mark.parametrize(
    ("name", "blocks", "dim", "size"),
    [
        ("efficientnet_lite0", 0, 320, 64),
        ("efficientnet_lite0", 8, 80, 32),
        ("resnet18", 0, 512, 32),
        ("tiny", 0, 32, 32),
    ],
)
def test_a_backbone_gives_one_vector_an_image(name: str, blocks: int, dim: int, size: int) -> None:
    net, start = make_backbone(BackboneConfig(name=name, blocks=blocks, weights="none"))  # type: ignore[arg-type]
    assert net.eval()(torch.zeros(2, 3, size, size)).shape == (2, dim)
    assert net.dim == dim
    assert start.description == "random start"


def test_the_data_range_is_that_of_normalised_pixels() -> None:
    black, white = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    normalise = Normalise()
    assert float(normalise(white).max() - normalise(black).min()) == pytest.approx(
        DATA_RANGE, abs=1e-3
    )


def test_published_weights_are_found_by_their_order(tmp_path: Path) -> None:
    published = EfficientNetLite0()
    names = [f"_blocks.{i}.x" for i, _ in enumerate(published.state_dict())]
    state = dict(zip(names, published.state_dict().values(), strict=True))
    state["_fc.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "lite0.pth")
    config = BackboneConfig(
        name="efficientnet_lite0", blocks=3, weights=str(tmp_path / "lite0.pth")
    )
    net, start = make_backbone(config)
    assert start.description == "weights from lite0.pth"
    for name, value in net.state_dict().items():
        assert torch.equal(value, published.state_dict()[name])


def test_absent_imagenet_weights_are_said_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "LITE0_WEIGHTS_PACKAGE", "no_such_package")
    _, start = make_backbone(BackboneConfig(name="efficientnet_lite0"))
    assert start.description == "random start (no ImageNet weights on this machine)"
    with pytest.raises(ConfigError, match="no ImageNet weights for efficientnet_lite0"):
        make_backbone(BackboneConfig(name="efficientnet_lite0", weights="imagenet"))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_weights_of_another_network_are_refused(tmp_path: Path, name: str) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="these weights are not"):
        make_backbone(BackboneConfig(name=name, weights=str(tmp_path / "other.pth")))  # type: ignore[arg-type]


def test_a_file_that_holds_no_weights_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot read backbone weights") as error:
        make_backbone(BackboneConfig(weights=str(tmp_path / "x.pth")))
    assert "\n" not in str(error.value)
