"""Frames in a GPU's memory in -> views there out: `ccdstream.view` and `.quality`, batch by batch.

On the device stands what touches pixels: shrinking, crop and squash, colour, highlights, masks and
the sums behind the quality measures. On the host stands what decides, since it is branches and
contours over a few thousand cells: where the field is and what is overlay, by the same `FieldWatch`
and `OverlayWatch` as on the CPU path. Only small copies go between them, so many a batch, however
many frames are in it:

    to the host        luma in cells, of the frames that the field is watched in
    to the host        green in cells, of the frames that the overlay is watched in
    to the device      the mask of border and overlay, when it has changed
    to the host        histograms and sums of every frame; waited for when `quality` is asked

Every step rounds where the CPU path rounds, so the views are its views but where a sum in another
order rounds the other way. Weighted sums are gathered products, not matrix products: those could be
TF32, and could round otherwise in another batch size. A view does not depend on its batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ccdstream.frames import VIEW_SIZE, Colour, DeviceFrame, FieldOfView
from ccdstream.gpu.transfer import ToHost, to_device
from ccdstream.quality import (
    COARSE_PX,
    FEWEST_PX,
    INNER_PX,
    MEASURES,
    QualityLimits,
    flags,
    measures_from,
)
from ccdstream.view import (
    GLINT_RISE,
    GLINT_SIZE_PX,
    GLINT_VALUE,
    GLINT_WHITENESS,
    GRID,
    HIGHLIGHT_RIM_PX,
    HIGHLIGHT_SPREAD,
    HIGHLIGHT_VALUE,
    NEUTRAL,
    FieldWatch,
    OverlayWatch,
    Profile,
    ball,
    full_range,
    rgb_matrix,
    search_factor,
    whole_steps,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ViewQuality:
    """What a view is worth."""

    measures: dict[str, float]
    """What `ccdstream.quality.measure` says of it."""
    flags: tuple[str, ...]
    """Why the frame is uninformative; empty for an informative one."""
    valid_fraction: float
    """Share of the view that is scored, in [0, 1]."""


@dataclass(frozen=True, slots=True, eq=False)
class DeviceViews:
    """The views of a batch of frames, in the memory of their GPU: what an engine takes."""

    frames: "Tensor"
    """uint8 [N, 3, 256, 256], RGB; neutral grey where not valid."""
    valid: "Tensor"
    """bool [N, 256, 256]: False on the border, insets, burned-in text and saturated highlights."""
    fields: tuple[FieldOfView, ...]
    """Where each view lies in its frame."""
    sums: ToHost
    """What the quality is worked out from: float64 [N, 522], see `_sums`."""
    limits: QualityLimits
    """Beyond which a frame is uninformative."""

    def quality(self) -> list[ViewQuality]:
        """What each view is worth. Waits for the device: ask when the engine has been started."""
        qualities = []
        for row in self.sums.array():
            measures, valid_fraction = _measures(row)
            found = flags(measures, self.limits, valid_fraction)
            qualities.append(ViewQuality(measures, found, valid_fraction))
        return qualities


class DeviceViewTracker:
    """Views of a stream, batch by batch; causal, deterministic, and of bounded state.

    A frame has the same view however the stream is cut into batches.
    """

    def __init__(self, profile: Profile, limits: QualityLimits, device: "torch.device") -> None:
        """
        Args:
            profile: what is burned in, until the stream itself tells.
            limits: beyond which a frame is uninformative.
            device: whose memory the frames are in.
        """
        self._profile = profile
        self._limits = limits
        self._device = device
        self._fields: FieldWatch | None = None
        self._overlay: OverlayWatch | None = None
        self._clear: tuple[np.ndarray, Tensor] | None = None  # the last mask, here and there
        # Constants of each size of plane and of each colour: a stream has few.
        self._squash = lru_cache(maxsize=16)(partial(_squash, device))
        self._rgb = lru_cache(maxsize=4)(partial(_rgb, device))

    def update(self, frames: Sequence[DeviceFrame]) -> DeviceViews:
        """The views of the next frames, in presentation order.

        Queues its work on the current stream; the host waits for the device twice in between.

        Raises:
            ValueError: there is no frame.
        """
        if not frames:
            raise ValueError("a batch must hold at least one frame, got 0")
        seconds = [frame.seconds for frame in frames]
        fields = self._find_fields(frames)
        images = self._images(frames, fields)
        watches, looked_at = self._plan_overlay(fields, seconds)
        greens = _Cells({at: images[at, 1] for at in looked_at}, VIEW_SIZE[0] // GRID[0])
        highlights = _highlights(images)  # queued before waiting for the greens
        valid = self._learn_overlay(watches, seconds, greens.arrived()) & ~highlights
        views = images.masked_fill(~valid[:, None], NEUTRAL)
        sums = ToHost(_sums(views, valid))
        return DeviceViews(views, valid, tuple(fields), sums, self._limits)

    def _find_fields(self, frames: Sequence[DeviceFrame]) -> list[FieldOfView]:
        """The field of view of each frame."""
        fields: list[FieldOfView] = []
        for size, run in groupby(frames, lambda frame: frame.size):
            if self._fields is None or self._fields.size != size:
                self._fields = FieldWatch(size)
            fields += _watch_field(self._fields, list(run))
        return fields

    def _images(self, frames: Sequence[DeviceFrame], fields: Sequence[FieldOfView]) -> "Tensor":
        """uint8 [N, 3, 256, 256], RGB, of the fields, not yet masked."""
        import torch

        def crop(at: int) -> tuple[slice, slice, Colour]:
            field = fields[at]
            rows = slice(field.y, field.y + field.height)
            columns = slice(field.x, field.x + field.width)
            return rows, columns, frames[at].colour

        images = []
        for (rows, columns, colour), run in groupby(range(len(frames)), crop):
            alike = [frames[at] for at in run]
            luma = torch.stack([frame.y[rows, columns] for frame in alike])
            rows, columns = _of_chroma(rows), _of_chroma(columns)
            chroma = torch.stack([frame.uv[rows, columns] for frame in alike])
            planes = self._squashed(luma[:, None]), self._squashed(chroma.permute(0, 3, 1, 2))
            images.append(self._rgb(colour)(torch.cat(planes, dim=1)))
        return torch.cat(images)

    def _squashed(self, planes: "Tensor") -> "Tensor":
        """uint8 [n, c, 256, 256] of planes uint8 [n, c, H, W]."""
        count, channels, height, width = planes.shape
        squashed = self._squash((height, width))(planes.flatten(0, 1))
        return squashed.reshape(count, channels, *VIEW_SIZE)

    def _plan_overlay(
        self, fields: Sequence[FieldOfView], seconds: Sequence[float]
    ) -> tuple[list[OverlayWatch], list[int]]:
        """The watch of each frame, and which frames the watches look at."""
        watches: list[OverlayWatch] = []
        looked_at: list[int] = []
        for _, run in groupby(range(len(fields)), lambda at: id(fields[at])):
            stretch = list(run)
            field = fields[stretch[0]]
            if self._overlay is None or field is not self._overlay.field:
                self._overlay = OverlayWatch(self._profile, field)
            watches += [self._overlay] * len(stretch)
            looks = self._overlay.looks_at([seconds[at] for at in stretch])
            looked_at += [at for at, looked in zip(stretch, looks, strict=True) if looked]
        return watches, looked_at

    def _learn_overlay(
        self,
        watches: Sequence[OverlayWatch],
        seconds: Sequence[float],
        greens: Mapping[int, np.ndarray],
    ) -> "Tensor":
        """bool [N, 256, 256]: what is clear of border and overlay in each frame."""
        import torch

        clear = []
        for at, (watch, now_s) in enumerate(zip(watches, seconds, strict=True)):
            watch.update(now_s, partial(greens.__getitem__, at))
            clear.append(self._on_device(watch.clear))
        return torch.stack(clear)

    def _on_device(self, clear: np.ndarray) -> "Tensor":
        """The mask on the device: copied there when it is another one than the last."""
        if self._clear is None or not np.array_equal(clear, self._clear[0]):
            self._clear = clear, to_device(clear, self._device)
        return self._clear[1]


class _Cells:
    """Planes of some frames, averaged in square cells, on their way to the host in one copy."""

    def __init__(self, planes: Mapping[int, "Tensor"], cell_px: int) -> None:
        """
        Args:
            planes: uint8 [H, W], all of one size, by the number of their frame.
            cell_px: side of a cell.
        """
        import torch

        self._numbers = list(planes)
        self._sent: ToHost | None = None
        if planes:
            self._sent = ToHost(_mean_of_cells(torch.stack([*planes.values()]), cell_px, cell_px))

    def arrived(self) -> dict[int, np.ndarray]:
        """uint8 [h, w] by the number of its frame; waits for the copy."""
        if self._sent is None:
            return {}
        return dict(zip(self._numbers, self._sent.array(), strict=True))


def _watch_field(watch: FieldWatch, frames: Sequence[DeviceFrame]) -> list[FieldOfView]:
    """The field of view of each of the next frames, all of the size that is watched."""
    seconds = [frame.seconds for frame in frames]
    looks = watch.may_look_at(seconds)
    lumas = {at: frame.y for at, frame in enumerate(frames) if looks[at]}
    cells = _Cells(lumas, search_factor(watch.size)).arrived()

    def look(at: int) -> np.ndarray:
        return full_range(cells[at], frames[at].colour)

    return [watch.update(now_s, partial(look, at)) for at, now_s in enumerate(seconds)]


def _of_chroma(pixels: slice) -> slice:
    """Rows or columns of the chroma planes, from those of luma."""
    return slice(pixels.start // 2, (pixels.stop + 1) // 2)


# -- pixels ---------------------------------------------------------------------------------------

Taps = tuple["Tensor", "Tensor"]
"""Which pixels of the old axis make each of the new, int64 [new, k], and their weights [new, k]."""


def _squash(device: "torch.device", size: tuple[int, int]) -> Callable[["Tensor"], "Tensor"]:
    """What takes planes uint8 [n, H, W] of this size to uint8 [n, 256, 256].

    By whole numbers first, as on the CPU path, and then by the arithmetic of `cv2.resize`.
    """
    height, width = VIEW_SIZE
    down, across = whole_steps(size)
    rows, columns = size[0] // down, size[1] // across
    if rows % height == 0 and columns % width == 0:
        rest = partial(_mean_of_cells, down=rows // height, across=columns // width)
    else:
        shrinks = rows >= height and columns >= width
        taps, sums = (_area_taps, _area) if shrinks else (_linear_taps, _linear)
        rest = partial(sums, down=taps(rows, height, device), across=taps(columns, width, device))
    return lambda planes: rest(_mean_of_cells(planes, down, across))


def _mean_of_cells(planes: "Tensor", down: int, across: int) -> "Tensor":
    """uint8 [n, H / down, W / across]; pixels that fill no cell are left out."""
    import torch

    if down == across == 1:
        return planes
    rows, columns = planes.shape[1] // down, planes.shape[2] // across
    whole = planes[:, : rows * down, : columns * across]
    cells = whole.reshape(-1, rows, down, columns, across)
    sums = cells.sum(dim=(2, 4), dtype=torch.int32)
    if down == across == 2:  # where OpenCV rounds halves up, and not to even
        return ((sums + 2) >> 2).to(torch.uint8)
    return (sums.float() * (1 / (down * across))).round().to(torch.uint8)


def _area_taps(old: int, new: int, device: "torch.device") -> Taps:
    """Each new pixel is the mean of what it covers: OpenCV's weights, float32."""
    shares = cv2.resize(np.eye(old, dtype=np.float32), (old, new), interpolation=cv2.INTER_AREA)
    count = int(np.count_nonzero(shares, axis=1).max())
    first = np.minimum((shares > 0).argmax(axis=1), old - count)
    index = first[:, None] + np.arange(count)
    weights = np.take_along_axis(shares, index, axis=1)
    return to_device(index, device), to_device(weights, device)


def _area(planes: "Tensor", down: Taps, across: Taps) -> "Tensor":
    """Means of areas, in single precision, rounded."""
    index, weights = across
    rows = (planes[..., index] * weights).sum(dim=-1)
    index, weights = down
    means = (rows[:, index] * weights[..., None]).sum(dim=2)
    return means.round().to(planes.dtype)


_LINEAR_ONE = 2048
"""OpenCV interpolates bytes in whole numbers: weights in units of 1 / 2048, and cut, not rounded,
to 16 bits before and after the weights of the second axis."""


def _linear_taps(old: int, new: int, device: "torch.device") -> Taps:
    """Each new pixel lies between two old ones, its centre between their centres; int32."""
    place = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(place)
    share = place - first
    index = np.clip(first[:, None] + (0, 1), 0, old - 1).astype(np.int64)
    weights = np.rint(np.stack([1 - share, share], axis=1) * _LINEAR_ONE).astype(np.int32)
    return to_device(index, device), to_device(weights, device)


def _linear(planes: "Tensor", down: Taps, across: Taps) -> "Tensor":
    """Linear interpolation, in whole numbers."""
    import torch

    index, weights = across
    rows = (planes[..., index] * weights).sum(dim=-1, dtype=torch.int32) >> 4
    index, weights = down
    pairs = (rows[:, index] * weights[..., None]) >> 16
    return ((pairs.sum(dim=2, dtype=torch.int32) + 2) >> 2).to(planes.dtype)


def _rgb(device: "torch.device", colour: Colour) -> Callable[["Tensor"], "Tensor"]:
    """What takes Y, U, V, uint8 [n, 3, h, w], to R, G, B of the same type and shape."""
    matrix = to_device(rgb_matrix(colour), device)
    weights, offset = matrix[:, :3, None, None], matrix[:, 3, None, None]

    def rgb(yuv: "Tensor") -> "Tensor":
        channels = (yuv[:, None] * weights).sum(dim=2) + offset
        return channels.round().clamp(0, 255).to(yuv.dtype)

    return rgb


def _highlights(images: "Tensor") -> "Tensor":
    """bool [N, 256, 256]: True on reflections and their rim; see `ccdstream.view`."""
    brightest, darkest = images.amax(dim=1).float(), images.amin(dim=1).float()
    burned = (brightest >= HIGHLIGHT_VALUE) & (brightest - darkest <= HIGHLIGHT_SPREAD)
    window = (GLINT_SIZE_PX, GLINT_SIZE_PX)
    rise = darkest - _dilate(_erode(darkest, window), window)
    whitish = darkest >= (brightest * GLINT_WHITENESS).round()
    glint = (rise > GLINT_RISE) & (brightest >= GLINT_VALUE) & whitish
    found = (burned | glint).float()
    rim = found
    for box in _boxes(ball(HIGHLIGHT_RIM_PX)):
        rim = rim.maximum(_dilate(found, box))
    return rim > 0


def _boxes(kernel: np.ndarray) -> list[tuple[int, int]]:
    """(height, width) of the boxes about its centre that a ball, uint8 [k, k], is made up of."""
    widths = kernel.sum(axis=1)
    return [(int((widths >= width).sum()), int(width)) for width in np.unique(widths)]


def _dilate(planes: "Tensor", box: tuple[int, int]) -> "Tensor":
    """float32 [n, h, w]: the largest value in a box (height, width), of odd sides, about each pixel
    of planes float32 [n, h, w]; what lies outside does not count."""
    from torch.nn.functional import max_pool2d

    height, width = box
    tallest = max_pool2d(planes, (height, 1), stride=1, padding=(height // 2, 0))
    return max_pool2d(tallest, (1, width), stride=1, padding=(0, width // 2))


def _erode(planes: "Tensor", box: tuple[int, int]) -> "Tensor":
    """The smallest value, likewise."""
    return -_dilate(-planes, box)


# -- quality --------------------------------------------------------------------------------------


def _sums(images: "Tensor", valid: "Tensor") -> "Tensor":
    """What the quality measures are worked out from; see `ccdstream.quality.measure`.

    Args:
        images: uint8 [N, 3, 256, 256], masked.
        valid: bool [N, 256, 256].

    Returns:
        float64 [N, 522]. Over the valid pixels: how many have each level of luma [256] and of the
        darkest channel [256], and the sums of red, green and blue [3]. Over the inner pixels: the
        energy of fine detail in each direction [4], and their number. Over the inner cells: the
        energy of coarse detail, and their number.
    """
    import torch

    red, green, blue = images.int().unbind(dim=1)
    # BT.601 in 15 bits, as OpenCV has it
    luma = (9798 * red + 19235 * green + 3735 * blue + (1 << 14)) >> 15
    levels = torch.stack([luma, images.amin(dim=1).int()], dim=1).flatten(2).long()
    counted = valid.int().flatten(1)[:, None].expand_as(levels)
    counts = counted.new_zeros(len(images), 2, 256).scatter_add_(2, levels, counted)
    colours = (images * valid[:, None]).sum(dim=(2, 3))

    inner = _erode(valid.float(), (INNER_PX, INNER_PX)) > 0
    details = [_energy(detail, inner) for detail in _fine_detail(luma.float())]
    coarse = _in_cells(luma.float()).mean(dim=(2, 4))
    whole = _in_cells(valid.float()).amin(dim=(2, 4))
    inner_cells = _erode(whole, (3, 3)) > 0
    coarse_detail = _energy(_laplacian(coarse), inner_cells)
    rest = [*details, inner.sum(dim=(1, 2)), coarse_detail, inner_cells.sum(dim=(1, 2))]
    columns = [counts.flatten(1), colours, *(each[:, None] for each in rest)]
    return torch.cat([column.double() for column in columns], dim=1)


def _in_cells(planes: "Tensor") -> "Tensor":
    """[n, rows, k, columns, k]: planes cut into cells of k = `COARSE_PX`."""
    rows, columns = planes.shape[1] // COARSE_PX, planes.shape[2] // COARSE_PX
    return planes.reshape(-1, rows, COARSE_PX, columns, COARSE_PX)


def _energy(values: "Tensor", where: "Tensor") -> "Tensor":
    """float64 [n]: the sum of squares over a part of each plane."""
    return (values.double().square() * where).sum(dim=(1, 2))


def _fine_detail(luma: "Tensor") -> list["Tensor"]:
    """Second differences of the smoothed luma, float32 [n, h, w], in four directions."""
    above, below = _neighbours(luma, dim=1)
    smooth = (above + 2 * luma + below) / 4
    left, right = _neighbours(smooth, dim=2)
    smooth = (left + 2 * smooth + right) / 4
    left, right = _neighbours(smooth, dim=2)
    above, below = _neighbours(smooth, dim=1)
    above_left, above_right = _neighbours(above, dim=2)
    below_left, below_right = _neighbours(below, dim=2)
    return [
        left + right - 2 * smooth,
        above + below - 2 * smooth,
        (above_left + below_right) / 2 - smooth,
        (above_right + below_left) / 2 - smooth,
    ]


def _laplacian(planes: "Tensor") -> "Tensor":
    above, below = _neighbours(planes, dim=1)
    left, right = _neighbours(planes, dim=2)
    return above + below + left + right - 4 * planes


def _neighbours(planes: "Tensor", dim: int) -> tuple["Tensor", "Tensor"]:
    """What lies before each pixel and behind it. Edges wrap round: there nothing is ever valid,
    since a view is masked to some pixels inside the field's outline."""
    return planes.roll(1, dim), planes.roll(-1, dim)


def _measures(sums: np.ndarray) -> tuple[dict[str, float], float]:
    """The measures of a view and its valid fraction, from its row of `_sums`."""
    luma, darkest, colours, rest = np.split(sums, (256, 512, 515))
    *details, inner, coarse_detail, inner_cells = rest.tolist()
    count = float(luma.sum())
    valid_fraction = count / math.prod(VIEW_SIZE)
    if inner < FEWEST_PX:
        return dict.fromkeys(MEASURES, float("nan")), valid_fraction
    measures = measures_from(
        fine=[math.sqrt(energy / inner) for energy in details],
        coarse=math.sqrt(coarse_detail / max(inner_cells, 1)),
        luma=luma / count,
        darkest=darkest / count,
        mean_rgb=(colours / count).tolist(),
    )
    return measures, valid_fraction
