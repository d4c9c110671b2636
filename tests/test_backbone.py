"""Backbones: shapes, maps, start weights, what happens where there are none, and folding."""

import io
import pickle
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from ccdstream.errors import ConfigError
from trainer import backbone
from trainer.backbone import (
    DATA_RANGE,
    Backbone,
    EfficientNetLite0,
    Normalise,
    TinyNet,
    TorchvisionNet,
    fold_batch_norm,
    make_backbone,
)
from trainer.config import BackboneConfig

NAMES = get_args(get_type_hints(BackboneConfig)["name"])


def make(name: str, blocks: int = 0) -> Backbone:
    return make_backbone(BackboneConfig(name=name, blocks=blocks, weights="none"))[0]  # type: ignore[arg-type]


@torch.no_grad()
def randomise_norms(module: nn.Module) -> None:
    """Running statistics and scales as training leaves them: not zero and one."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)


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


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_backbone_takes_a_patch_in_both_modes_and_gives_a_map_at_each_stride(
    name: str,
) -> None:
    torch.manual_seed(0)
    net = make(name)
    x = torch.randn(2, 3, 32, 32)
    for mode in (True, False):
        assert net.train(mode)(x).shape == (2, net.dim)
        maps = net.maps(x)
        assert {stride: tuple(m.shape) for stride, m in maps.items()} == {
            stride: (2, c, 32 // stride, 32 // stride) for stride, c in net.channels.items()
        }
    coarsest = max(maps)
    assert list(maps) == ([4, 8, 16] if name == "tiny" else [4, 8, 16, 32])
    torch.testing.assert_close(net(x), maps[coarsest].mean(dim=(2, 3)))
    assert list(net.maps(x, coarsest=8)) == [4, 8]
    torch.testing.assert_close(net.maps(x, coarsest=8)[8], maps[8])


@torch.no_grad()
def test_a_map_is_the_last_at_its_stride_and_nothing_later_writes_over_it() -> None:
    torch.manual_seed(0)
    net, x = TorchvisionNet("resnet18").eval(), torch.randn(1, 3, 64, 64)
    layers = dict(net.layers.named_children())
    expected = layers["maxpool"](layers["relu"](layers["bn1"](layers["conv1"](x))))
    maps = net.maps(x)
    for stride, name in ((4, "layer1"), (8, "layer2"), (16, "layer3"), (32, "layer4")):
        expected = layers[name](expected)
        torch.testing.assert_close(maps[stride], expected)


def test_a_cut_network_has_the_strides_of_what_is_left() -> None:
    assert make("efficientnet_lite0", blocks=8).channels == {4: 24, 8: 40, 16: 80}
    assert make("efficientnet_lite0").channels == {4: 24, 8: 40, 16: 112, 32: 320}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0"])
@torch.no_grad()
def test_torchvisions_weights_give_torchvisions_features(name: str, tmp_path: Path) -> None:
    from torchvision.models import get_model

    torch.manual_seed(0)
    theirs = get_model(name, weights=None).eval()
    randomise_norms(theirs)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    for head in ("fc", "classifier"):
        if hasattr(theirs, head):
            setattr(theirs, head, nn.Identity())
    config = BackboneConfig(name=name, weights=str(tmp_path / "theirs.pth"))  # type: ignore[arg-type]
    net, _ = make_backbone(config)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(net.eval()(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_training_a_backbone_draws_nothing_from_the_global_generator() -> None:
    net = make("efficientnet_b0").train()
    torch.manual_seed(0)
    net(torch.zeros(2, 3, 32, 32))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


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


def test_of_the_tiny_network_no_imagenet_weights_are_missed() -> None:
    _, start = make_backbone(BackboneConfig(name="tiny"))
    assert start.description == "random start"
    with pytest.raises(ConfigError, match="there are no ImageNet weights for tiny") as refused:
        make_backbone(BackboneConfig(name="tiny", weights="imagenet"))
    assert "download" not in str(refused.value)


def test_torchvisions_file_is_found_by_the_name_of_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="no ImageNet weights for resnet50"):
        make_backbone(BackboneConfig(name="resnet50", weights="imagenet"))
    old, new = (tmp_path / "checkpoints" / f"resnet50-{h}.pth" for h in ("0676ba61", "11ad3fa6"))
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").touch()
    old.touch()
    assert make("resnet50").imagenet_file() == old
    new.touch()
    assert make("resnet50").imagenet_file() == new
    torch.save(make("mobilenet_v3_small").state_dict(), old)
    old.replace(tmp_path / "checkpoints" / "mobilenet_v3_small-047dcff4.pth")
    _, start = make_backbone(BackboneConfig(name="mobilenet_v3_small"))
    assert start == (
        "ImageNet weights, mobilenet_v3_small-047dcff4.pth",
        "BSD-3-Clause (torchvision)",
    )


@pytest.mark.parametrize("name", ["tiny", "efficientnet_lite0", "mobilenet_v3_small"])
def test_a_backbones_own_state_dict_loads_again(name: str, tmp_path: Path) -> None:
    saved = make(name)
    torch.save(saved.state_dict(), tmp_path / "own.pth")
    net, _ = make_backbone(BackboneConfig(name=name, weights=str(tmp_path / "own.pth")))  # type: ignore[arg-type]
    for key, value in net.state_dict().items():
        assert torch.equal(value, saved.state_dict()[key]), key


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "tiny"])
def test_weights_of_another_network_are_refused(tmp_path: Path, name: str) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="these weights are not"):
        make_backbone(BackboneConfig(name=name, weights=str(tmp_path / "other.pth")))  # type: ignore[arg-type]


def test_the_first_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    torch.save(make("resnet34").state_dict(), tmp_path / "34.pth")
    with pytest.raises(ConfigError, match=r"not resnet18's: layers.layer1.2.\S+ is not known") as e:
        make_backbone(BackboneConfig(name="resnet18", weights=str(tmp_path / "34.pth")))
    assert "\n" not in str(e.value)
    torch.save(make("resnet18").state_dict(), tmp_path / "18.pth")
    with pytest.raises(ConfigError, match=r"layers.layer1.0.conv1.weight is \[64, 64, 3, 3\], exp"):
        make_backbone(BackboneConfig(name="resnet50", weights=str(tmp_path / "18.pth")))


def test_a_checkpoint_around_the_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"step": 3, "state_dict": make("tiny").state_dict()}, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="holds no plain state dict"):
        make_backbone(BackboneConfig(name="tiny", weights=str(tmp_path / "x.pth")))


def test_a_file_that_holds_no_weights_is_one_line(tmp_path: Path) -> None:
    saved = io.BytesIO()
    torch.save(make("tiny").state_dict(), saved, _use_new_zipfile_serialization=False)
    file = tmp_path / "x.pth"
    for content in (b"", b"nothing", b"..", pickle.dumps([1], 4), saved.getvalue()[:-700]):
        file.write_bytes(content)
        with pytest.raises(ConfigError) as error:
            make_backbone(BackboneConfig(name="tiny", weights=str(file)))
        why = f"cannot read backbone weights {file}: not a file that torch.save wrote. Name one"
        assert str(error.value).startswith(why) and "\n" not in str(error.value)


def test_a_whole_network_in_a_file_is_not_unpickled_nor_advised_to_be(tmp_path: Path) -> None:
    torch.save(make("tiny"), tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="holds no plain state dict") as error:
        make_backbone(BackboneConfig(name="tiny", weights=str(tmp_path / "x.pth")))
    assert "weights_only" not in str(error.value)


def test_a_file_of_weights_that_is_not_there_is_named_once(tmp_path: Path) -> None:
    file = tmp_path / "gone.pth"
    with pytest.raises(ConfigError, match="there is no file") as error:
        make_backbone(BackboneConfig(name="tiny", weights=str(file)))
    assert str(error.value).count(str(file)) == 1
    assert "No such file" not in str(error.value)


def norms_after_a_convolution(module: nn.Module) -> int:
    """Slow and by data: batch norms whose input is a convolution's output, as it was computed."""
    from_convolution: list[torch.Tensor] = []
    found = 0

    def watch(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal found
        if isinstance(layer, nn.Conv2d):
            from_convolution.append(output)
        elif isinstance(layer, nn.BatchNorm2d):
            found += any(inputs[0] is kept for kept in from_convolution)

    hooks = [layer.register_forward_hook(watch) for layer in module.modules()]
    module(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_folding_leaves_no_batch_norm_after_a_convolution_and_the_same_output(name: str) -> None:
    torch.manual_seed(0)
    net, x = make(name).eval(), torch.randn(2, 3, 64, 64)
    randomise_norms(net)
    before, maps = net(x), net.maps(x)
    assert norms_after_a_convolution(net)
    fold_batch_norm(net)
    assert norms_after_a_convolution(net) == 0
    for a, b in [(before, net(x)), *zip(maps.values(), net.maps(x).values(), strict=True)]:
        assert float((a - b).abs().max()) <= 1e-5 * max(1.0, float(a.abs().max()))


@torch.no_grad()
def test_folding_keeps_the_uneven_padding_of_lite0() -> None:
    net, x = EfficientNetLite0(blocks=3).eval(), torch.randn(1, 3, 32, 32)
    kind, shapes = type(net.layers[0]), {s: m.shape for s, m in net.maps(x).items()}
    fold_batch_norm(net)
    assert type(net.layers[0]) is kind
    assert net.layers[0].bias is not None
    assert {s: m.shape for s, m in net.maps(x).items()} == shapes


@torch.no_grad()
def test_a_batch_norm_before_a_convolution_or_of_its_own_stays() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1),
        nn.ReLU(),
        nn.BatchNorm2d(4),
    ).eval()
    randomise_norms(net)
    x = torch.randn(1, 4, 5, 5)
    before = net(x)
    fold_batch_norm(net)
    kinds = [type(layer) for layer in net]
    assert [i for i, kind in enumerate(kinds) if kind is nn.BatchNorm2d] == [0, 5, 8]
    assert kinds[3] is nn.Identity
    torch.testing.assert_close(net(x), before)


def test_folding_in_train_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        fold_batch_norm(TinyNet())
