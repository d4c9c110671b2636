"""Trained detectors -> the exported graph that ccdstream runs.

`Program` is the graph of the design: pixels and validity in, score, map and parts out, with the
normalisation, the patch grid, the detectors and the aggregation inside.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ccdstream.errors import ConfigError
from trainer.augment import grid_patches
from trainer.backbone import Normalise, fold_batch_norm
from trainer.config import ProgramConfig
from trainer.detectors.base import Detector, highest_mean
from trainer.sampling import MIN_VALID, shrink

FRAME_PX, MAP_SIZE = 256, 64
_LARGEST_BATCH = 64
_SMALLEST_HALF = 256  # weights with fewer values stay float32: they are not worth a Cast


class Program(nn.Module):
    """Frames -> anomaly score, anomaly map and the named terms of the score.

    forward(frames uint8 [N, 3, 256, 256], valid bool [N, 256, 256]) ->
        score float32 [N], map float32 [N, 64, 64], parts float32 [N, k] (`parts`).

    One detector sees the whole frame, another its patches, or only one of them is there. A term of
    the patches is the mean over the highest valid ones. Score and map are weighted sums of terms
    standardised by the mean and deviation that calibration frames gave them (zero and one before
    calibration). A term of the patches that has no value per pixel is spread over each patch's
    pixels and averaged where patches overlap, so that IGD's map has its Gaussian term: eq. 5 has
    it, the released heatmap code does not.
    """

    part_mean: Tensor
    part_std: Tensor
    map_mean: Tensor
    map_std: Tensor
    part_weights: Tensor
    map_weights: Tensor

    def __init__(
        self,
        whole: Detector | None,
        local: Detector | None,
        config: ProgramConfig,
        *,
        local_size_px: int = FRAME_PX,
        features: Detector | None = None,
    ) -> None:
        """Join detectors.

        Args:
            features: takes whole frames.
            whole: takes frames averaged down to its size.
            local: takes patches, cut from frames averaged down to `local_size_px`.

        Raises:
            ConfigError: a stride that does not fit, a weight of an unknown term, or no term for
                the map.
        """
        super().__init__()
        self.normalise = Normalise()
        self.whole = whole
        self.local = local
        self.features = features
        self.parts: list[str] = []
        self.map_parts: list[str] = []
        if whole is not None:
            self.parts += [f"global_{term}" for term in whole.terms]
            self.map_parts += [f"global_{term}" for term in whole.map_terms]
        if local is not None:
            self.parts += [f"local_{term}" for term in local.terms]
            self.map_parts += [f"local_{term}" for term in local.terms]
            self._patch, self._stride = local.size_px, config.patch_stride_px
            self._local_size = local_size_px
            self._cell = local_size_px // MAP_SIZE  # side of a map cell in the patches' pixels
            if self._patch % self._stride or self._stride % self._cell:
                raise ConfigError(
                    f"program.patch_stride_px is {self._stride}. Expected a multiple of "
                    f"{self._cell} that divides {self._patch}."
                )
            self._grid = (local_size_px - self._patch) // self._stride + 1
            self._top = max(1, round(config.local_top_fraction * self._grid**2))
        if features is not None:
            self.parts += features.terms
            self.map_parts += features.map_terms
        for name, parts in (("part", self.parts), ("map", self.map_parts)):
            self.register_buffer(f"{name}_mean", torch.zeros(len(parts)))
            self.register_buffer(f"{name}_std", torch.ones(len(parts)))
        self.register_buffer("part_weights", _weights("score", config.score_weights, self.parts))
        self.register_buffer("map_weights", _weights("map", config.map_weights, self.map_parts))

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
            parts float [N, k] in the order of `parts`, and maps float [N, m, 64, 64] in the order
            of `map_parts`; a map's value where the view is not valid means nothing.
        """
        inside = valid.float().unsqueeze(1)  # [N, 1, 256, 256]
        pixels = frames.float() / 255
        x = self.normalise(pixels * inside + (128 / 255) * (1 - inside))
        parts, maps = [], []
        if self.whole is not None:
            small, small_inside = shrink(x, inside, self.whole.size_px)
            scores, pictures = self.whole(small, small_inside)
            parts.append(scores)
            maps.append(_to_map_size(pictures, small_inside))
        if self.local is not None:
            scores, pictures = self._local_terms(*shrink(x, inside, self._local_size))
            parts.append(scores)
            maps.append(pictures)
        if self.features is not None:
            scores, pictures = self.features(*shrink(x, inside, self.features.size_px))
            parts.append(scores)
            if self.features.map_terms:
                maps.append(_to_map_size(pictures, inside))
        return torch.cat(parts, dim=1), torch.cat(maps, dim=1)

    def _local_terms(self, x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Terms of the patches of float [N, 3, S, S]: float [N, k], and float [N, k, 64, 64]."""
        assert self.local is not None
        p, g = self._patch, self._grid
        patches = grid_patches(x, p, self._stride).reshape(-1, 3, p, p)  # [N g g, 3, p, p]
        patches_inside = grid_patches(inside, p, self._stride).reshape(-1, 1, p, p)
        scores, pictures = self.local(patches, patches_inside)
        scored = (patches_inside.mean(dim=(1, 2, 3)) >= MIN_VALID).float().view(-1, g * g)
        parts, maps = [], []
        for index, term in enumerate(self.local.terms):
            values = scores[:, index].reshape(-1, g * g)
            parts.append(highest_mean(values, scored, self._top))
            if term in self.local.map_terms:
                at = self.local.map_terms.index(term)
                maps.append(self._laid_back(pictures[:, at : at + 1], patches_inside))
            else:
                maps.append(self._spread(values * scored, scored))
        return torch.stack(parts, dim=1), torch.cat(maps, dim=1)

    def _laid_back(self, pictures: Tensor, inside: Tensor) -> Tensor:
        """Maps of patches [N g g, 1, p, p] in place, overlaps averaged: [N, 1, 64, 64]."""
        g, side = self._grid, self._patch // self._cell
        total, weight = (
            F.fold(
                F.avg_pool2d(each, self._cell).reshape(-1, g * g, side * side).transpose(1, 2),
                MAP_SIZE,
                kernel_size=side,
                stride=self._stride // self._cell,
            )
            for each in (pictures, inside)
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


def _weights(kind: str, weights: dict[str, float], terms: list[str]) -> Tensor:
    """The weight of each term, float [k]: all the same where none is given."""
    if not terms:
        raise ConfigError(
            f"no term gives a {kind}: this detector has none on whole frames. Set scales to both "
            "or local."
        )
    if unknown := sorted(set(weights) - set(terms)):
        raise ConfigError(
            f"program.{kind}_weights names {unknown[0]}, which this detector does not give. "
            f"Known terms: {', '.join(terms)}."
        )
    if not weights:
        return torch.full((len(terms),), 1 / len(terms))
    return torch.tensor([weights.get(term, 0.0) for term in terms])


def _to_map_size(pictures: Tensor, inside: Tensor) -> Tensor:
    """Maps of whole frames at the map's size, the mean of what is valid in a cell.

    float [N, m, s, s], inside float [N, 1, S, S] -> [N, m, 64, 64].
    """
    if pictures.shape[-1] < MAP_SIZE:
        return F.interpolate(
            pictures, size=(MAP_SIZE, MAP_SIZE), mode="bilinear", align_corners=False
        )
    inside = F.avg_pool2d(inside, inside.shape[-1] // pictures.shape[-1])
    factor = pictures.shape[-1] // MAP_SIZE
    total, weight = F.avg_pool2d(pictures * inside, factor), F.avg_pool2d(inside, factor)
    return total / weight.clamp(min=1e-3)


def prepare(program: nn.Module) -> None:
    """Fold batch norms into convolutions and round every weight to half precision, in place.

    The file then loses nothing more: the exporter would fold what is left of the batch norms after
    the rounding.
    """
    program.eval()
    fold_batch_norm(program)
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
    with warnings.catch_warnings(), _quiet("onnxscript"):
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


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a library's log to errors: it tells of constants that it does not fold."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _store_in_half(model: onnx.ModelProto) -> None:
    """Turn large float32 initialisers into float16 ones with a Cast; engines fold it away.

    Only those that lose nothing by it: what a detector keeps in full precision stays so.
    """
    graph = model.graph
    casts = []
    for weight in graph.initializer:
        if weight.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):  # what overflows is not kept
            rounded = values.astype(np.float16)
        if values.size < _SMALLEST_HALF or not np.array_equal(rounded, values):
            continue
        name = weight.name
        half = numpy_helper.from_array(rounded, f"{name}.half")
        weight.CopyFrom(half)
        casts.append(helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        graph.node.insert(0, cast)
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    del graph.metadata_props[:]
    del graph.value_info[:]
