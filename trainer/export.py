"""Trained descriptors -> the exported graph and the bundle that ccdstream runs.

`Program` is the graph of the design: pixels and validity in, score, map and parts out, with the
normalisation, the patch grid, both descriptors and the aggregation inside.
"""

import io
import warnings

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from trainer.augment import grid_patches
from trainer.backbone import DATA_RANGE
from trainer.config import ProgramConfig
from trainer.detectors.igd import Igd
from trainer.msssim import residual_map
from trainer.sampling import MIN_VALID, shrink

PARTS = (
    "global_reconstruction",
    "global_gaussian",
    "local_reconstruction",
    "local_gaussian",
)
MAP_PARTS = ("global_reconstruction", "local_reconstruction", "local_gaussian")
FRAME_PX, MAP_SIZE = 256, 64
_LARGEST_BATCH = 64
_SMALLEST_HALF = 256  # weights with fewer values stay float32: they are not worth a Cast


class Program(nn.Module):
    """Frames -> anomaly score, anomaly map and the named terms of the score.

    forward(frames uint8 [N, 3, 256, 256], valid bool [N, 256, 256]) ->
        score float32 [N], map float32 [N, 64, 64], parts float32 [N, 4] (`PARTS`).

    The terms of eq. 5 at both scales: mean reconstruction residual over the valid pixels, and
    d^2 / sigma of the latent, which ranks as 1 - h does and does not saturate. A local term is the
    mean over the highest valid patches. Score and map are weighted sums of terms standardised by
    the mean and deviation that calibration frames gave them (zero and one before calibration).
    The map's Gaussian term spreads each patch's d^2 / sigma over its pixels and averages where
    patches overlap: eq. 5 has it, the released heatmap code does not.
    """

    part_mean: Tensor
    part_std: Tensor
    map_mean: Tensor
    map_std: Tensor
    part_weights: Tensor
    map_weights: Tensor

    def __init__(self, whole: Igd, local: Igd, config: ProgramConfig, rho: float) -> None:
        super().__init__()
        self.whole = whole
        self.local = local
        self._rho = rho
        self._patch = local.size_px
        self._stride = config.patch_stride_px
        self._size = FRAME_PX
        if self._patch % self._stride or self._size % self._stride or self._stride % 4:
            raise ValueError(
                f"the patch stride must be a multiple of 4 that divides {self._patch}, "
                f"got {self._stride}"
            )
        grid = (self._size - self._patch) // self._stride + 1
        self._grid = grid
        self._top = max(1, round(config.local_top_fraction * grid * grid))
        self.register_buffer("part_mean", torch.zeros(len(PARTS)))
        self.register_buffer("part_std", torch.ones(len(PARTS)))
        self.register_buffer("map_mean", torch.zeros(len(MAP_PARTS)))
        self.register_buffer("map_std", torch.ones(len(MAP_PARTS)))
        self.register_buffer("part_weights", torch.tensor([config.score_weights[k] for k in PARTS]))
        self.register_buffer(
            "map_weights", torch.tensor([config.map_weights[k] for k in MAP_PARTS])
        )

    def forward(self, frames: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts, maps = self.terms(frames, valid)
        standard = (parts - self.part_mean) / self.part_std
        score = (standard * self.part_weights).sum(dim=1)
        standard = (maps - self.map_mean.view(1, -1, 1, 1)) / self.map_std.view(1, -1, 1, 1)
        anomaly_map = (standard * self.map_weights.view(1, -1, 1, 1)).sum(dim=1)
        return score, anomaly_map, parts

    def terms(self, frames: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The terms before they are standardised.

        Returns:
            parts float [N, 4] in the order of `PARTS`, and maps float [N, 3, 64, 64] in the order
            of `MAP_PARTS`; a map's value where the view is not valid means nothing.
        """
        inside = valid.float().unsqueeze(1)  # [N, 1, 256, 256]
        pixels = frames.float() / 255
        pixels = pixels * inside + (128 / 255) * (1 - inside)
        x = self.whole.normalise(pixels)

        small, small_inside = shrink(x, inside, self.whole.size_px)
        z = self.whole.embed(small)
        whole_gaussian = self.whole.gaussian(z)
        whole_map = self._residual(self.whole, small, self.whole.decoder(z), small_inside)
        whole_reconstruction = _masked_mean(whole_map, small_inside)

        p, g = self._patch, self._grid
        patches = grid_patches(x, p, self._stride).reshape(-1, 3, p, p)  # [N g g, 3, p, p]
        patches_inside = grid_patches(inside, p, self._stride).reshape(-1, 1, p, p)
        z = self.local.embed(patches)
        residual = self._residual(self.local, patches, self.local.decoder(z), patches_inside)
        scored = (patches_inside.mean(dim=(1, 2, 3)) >= MIN_VALID).float()  # [N g g]
        local_reconstruction = _masked_mean(residual, patches_inside).view(-1, g * g)
        local_gaussian = self.local.gaussian(z).view(-1, g * g)
        scored = scored.view(-1, g * g)

        maps = torch.cat(
            [
                F.avg_pool2d(whole_map, self.whole.size_px // MAP_SIZE),
                self._unfold_average(residual.view(-1, g, g, p, p), patches_inside, p // 4),
                self._spread(local_gaussian * scored, scored),
            ],
            dim=1,
        )
        parts = torch.stack(
            [
                whole_reconstruction,
                whole_gaussian,
                self._highest(local_reconstruction, scored),
                self._highest(local_gaussian, scored),
            ],
            dim=1,
        )
        return parts, maps

    def _residual(self, igd: Igd, x: Tensor, x_hat: Tensor, inside: Tensor) -> Tensor:
        """Per-pixel form of eq. 6, zero where not valid: float [N, 1, H, W]."""
        x_hat = x_hat * inside + x * (1 - inside)
        residual = residual_map(
            x,
            x_hat,
            rho=self._rho,
            window=igd.scales.window,
            weights=igd.scales.weights,
            data_range=DATA_RANGE,
        )
        return residual * inside

    def _highest(self, values: Tensor, scored: Tensor) -> Tensor:
        """Mean of a frame's highest patch values, float [N, P] -> [N]; patches not scored lose."""
        lowest = values.detach().amin(dim=1, keepdim=True)
        kept = values * scored + lowest * (1 - scored)
        return kept.topk(self._top, dim=1).values.mean(dim=1)

    def _unfold_average(self, residual: Tensor, inside: Tensor, cells: int) -> Tensor:
        """Patch residuals [N, g, g, p, p] laid back in place, overlaps averaged: [N, 1, 64, 64]."""
        g, p = self._grid, self._patch
        pooled = (F.avg_pool2d(t.reshape(-1, 1, p, p), 4) for t in (residual, inside))
        columns = [t.reshape(-1, g * g, cells * cells).transpose(1, 2) for t in pooled]
        total, weight = (
            F.fold(c, MAP_SIZE, kernel_size=cells, stride=self._stride // 4) for c in columns
        )
        return total / weight.clamp(min=1e-3)

    def _spread(self, values: Tensor, scored: Tensor) -> Tensor:
        """Patch values [N, g g] over each patch's pixels, overlaps averaged: [N, 1, 64, 64]."""
        g = self._grid
        cover = self._patch // self._stride
        ones = torch.ones(1, 1, cover, cover)
        total, weight = (F.conv_transpose2d(t.view(-1, 1, g, g), ones) for t in (values, scored))
        return F.interpolate(
            total / weight.clamp(min=1e-3),
            size=(MAP_SIZE, MAP_SIZE),
            mode="bilinear",
            align_corners=False,
        )


def _masked_mean(values: Tensor, inside: Tensor) -> Tensor:
    """Mean over the valid pixels, [N, 1, H, W] -> [N]; zero where there are none."""
    total = (values * inside).sum(dim=(1, 2, 3))
    return total / inside.sum(dim=(1, 2, 3)).clamp(min=1.0)


def round_weights(program: nn.Module) -> None:
    """Round every weight to half precision, in place, so that the file loses nothing more."""
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.copy_(parameter.half().float())


def onnx_program(program: Program) -> bytes:
    """The ONNX file of `program`: weights stored in half precision, arithmetic in single.

    Inputs `frames` and `valid`, outputs `score`, `map` and `parts`, batch dynamic.
    """
    frames = torch.zeros(2, 3, FRAME_PX, FRAME_PX, dtype=torch.uint8)
    valid = torch.ones(2, FRAME_PX, FRAME_PX, dtype=torch.bool)
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        exported = torch.onnx.export(
            program.eval(),
            (frames, valid),
            input_names=["frames", "valid"],
            output_names=["score", "map", "parts"],
            dynamic_shapes=({0: batch}, {0: batch}),
            dynamo=True,
            verbose=False,
        )
    assert exported is not None
    model: onnx.ModelProto = exported.model_proto
    _store_in_half(model)
    onnx.checker.check_model(model)
    file = io.BytesIO()
    onnx.save(model, file)
    return file.getvalue()


def _store_in_half(model: onnx.ModelProto) -> None:
    """Turn large float32 initialisers into float16 ones with a Cast; engines fold it away."""
    graph = model.graph
    casts = []
    for weight in graph.initializer:
        if weight.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(weight)
        if values.size < _SMALLEST_HALF:
            continue
        name = weight.name
        half = numpy_helper.from_array(values.astype(np.float16), f"{name}.half")
        weight.CopyFrom(half)
        casts.append(helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        graph.node.insert(0, cast)
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    del graph.metadata_props[:]
    del graph.value_info[:]
