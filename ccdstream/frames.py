"""Records that travel between the stages. They hold data and check it; they do no work."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

VIEW_SIZE = (256, 256)
"""(height, width) of the model's view, in pixels: the paper's image size."""

Matrix = Literal["bt601", "bt709", "bt2020"]


@dataclass(frozen=True, slots=True)
class Colour:
    """How the three planes of a frame mean colour."""

    matrix: Matrix
    full_range: bool
    """True: luma spans 0 to 255; False: 16 to 235."""
    assumed: bool = False
    """True where the file did not say and the rule in `decode` decided."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded picture, upright and progressive, and the moment it is shown.

    The picture stays in 8-bit YUV 4:2:0, as nearly every recording holds it: the model's view is
    scaled straight from these planes and the overlay is blended into them.
    """

    y: np.ndarray
    """uint8 [H, W], luma."""
    u: np.ndarray
    """uint8 [ceil(H / 2), ceil(W / 2)], blue difference."""
    v: np.ndarray
    """uint8 [ceil(H / 2), ceil(W / 2)], red difference."""
    pts: int
    """Presentation timestamp, in units of `time_base`."""
    time_base: Fraction
    """Seconds per unit of `pts`, exact."""
    colour: Colour

    def __post_init__(self) -> None:
        height, width = self.y.shape
        chroma = ((height + 1) // 2, (width + 1) // 2)
        for name, plane, shape in (
            ("y", self.y, (height, width)),
            ("u", self.u, chroma),
            ("v", self.v, chroma),
        ):
            if plane.dtype != np.uint8 or plane.shape != shape:
                raise ValueError(
                    f"{name} must be uint8 {list(shape)}, got {plane.dtype} {list(plane.shape)}"
                )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), in pixels."""
        height, width = self.y.shape
        return height, width

    @property
    def seconds(self) -> float:
        """Presentation time in seconds: to show or compare, never to rebuild a pts from."""
        # as float(pts * time_base), correctly rounded too, without a Fraction in between
        return self.pts * self.time_base.numerator / self.time_base.denominator


@dataclass(frozen=True, slots=True, eq=False)
class DeviceFrame:
    """A `Frame` in the memory of a GPU, as its decoder leaves it: NV12, chroma interleaved."""

    y: "Tensor"
    """uint8 [H, W], luma."""
    uv: "Tensor"
    """uint8 [ceil(H / 2), ceil(W / 2), 2], blue and red difference."""
    pts: int
    """Presentation timestamp, in units of `time_base`."""
    time_base: Fraction
    """Seconds per unit of `pts`, exact."""
    colour: Colour

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), in pixels."""
        height, width = self.y.shape
        return height, width

    @property
    def seconds(self) -> float:
        """Presentation time in seconds: to show or compare, never to rebuild a pts from."""
        # as float(pts * time_base), correctly rounded too, without a Fraction in between
        return self.pts * self.time_base.numerator / self.time_base.denominator

    def on_host(self) -> Frame:
        """The same picture in the host's memory, by one copy; waits for the GPU."""
        import torch

        planes = (self.y, self.uv[..., 0], self.uv[..., 1])
        planar = torch.cat([plane.flatten() for plane in planes])
        host = torch.empty(planar.shape, dtype=planar.dtype, pin_memory=planar.is_cuda)
        host.copy_(planar)
        parts = host.split([plane.numel() for plane in planes])
        y, u, v = (p.view(q.shape).numpy() for p, q in zip(parts, planes, strict=True))
        return Frame(y, u, v, self.pts, self.time_base, self.colour)


@dataclass(frozen=True, slots=True, eq=False)
class FieldOfView:
    """Where the scope's picture lies in the frame, inside its black border."""

    x: int
    y: int
    width: int
    height: int
    outline: np.ndarray
    """int32 [K, 2], the corners (x, y) of the visible area in frame pixels, in order: an octagon,
    a disc as a polygon, or the four corners of the box."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What the model sees of a frame: the field of view, squashed to 256x256."""

    image: np.ndarray
    """uint8 [256, 256, 3], RGB; neutral grey where not valid."""
    valid: np.ndarray
    """bool [256, 256]: False on the border, insets, burned-in text and saturated highlights."""
    field: FieldOfView

    @property
    def valid_fraction(self) -> float:
        """Share of the view that is scored, in [0, 1]."""
        return np.count_nonzero(self.valid) / self.valid.size


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What the model says of one view, before calibration."""

    raw: float
    """Raw anomaly score; higher is more anomalous."""
    parts: np.ndarray
    """float32 [k], the terms of the score, named by the bundle's manifest."""
    anomaly_map: np.ndarray
    """float32 [h, w] over the field of view, raw; NaN where the view is not valid."""


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """Scores that mean the same for every bundle, and what the frame is worth."""

    raw: float
    calibrated: float
    """Fraction of normal calibration frames that score lower, in [0, 1]."""
    smoothed: float
    """`calibrated`, smoothed over time and causal, in [0, 1]."""
    find_heat: Callable[[], np.ndarray]
    """Finds `heat`, which most frames of a run without a video never need."""
    quality: tuple[str, ...]
    """Why the frame is uninformative; empty for an informative frame."""
    valid_fraction: float

    @property
    def heat(self) -> np.ndarray:
        """float32 [h, w], fraction of normal calibration pixels that score lower; NaN where the
        view is not valid."""
        return self.find_heat()

    @property
    def informative(self) -> bool:
        """Whether the frame may open, hold or close an alert."""
        return not self.quality
