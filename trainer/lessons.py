"""What a student learns from: augmented views, and what a reference bundle says of each.

A reference takes long over a view, so each is answered for once, on exactly the pixels that the
student will see, and kept in the run's folder in chunks: a stopped run goes on with the next chunk.
A view depends on the seed and its own number alone.
"""

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ccdstream.engine.base import Engine
from ccdstream.errors import OutputError
from trainer.calibrate import batches, valid_cells
from trainer.config import StudentConfig
from trainer.items import Item
from trainer.runs import Run
from trainer.sampling import Pool

Paste = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""(image uint8 [H, W, 3], valid bool [H, W], generator) -> the image with a lesion, and its mask
bool [H, W]."""

CHUNK = 32
"""Views in a file: what a stop may lose, a few seconds."""
_BATCH = 8
_NEUTRAL = 128
"""What pixels that are not valid hold, as in a view."""
_LEAST_VALID = 0.3
"""Of a crop; one with less is drawn again."""
_CROP_TRIES = 8


@dataclass(frozen=True, slots=True)
class Look:
    """The widest ranges that the look of an augmented view is drawn from.

    Each view draws its own share of them, from nothing to all: a reference calls most views of the
    full strength anomalous, and a student must follow it among normal ones first.
    """

    as_it_is: float = 0.25
    """Share of views that keep place, colour and sharpness."""
    turned_p: float = 0.5
    """Turned by quarters and mirrored."""
    zoom: float = 2.8
    stretch: float = 0.15
    """Largest relative change of width over height."""
    gain: float = 0.3
    """Largest change of the logarithm of brightness; a third of it for each channel alone."""
    gamma: float = 0.3
    """Largest change of the exponent's logarithm."""
    saturation: float = 0.4
    soft_p: float = 0.25
    soft_px: float = 2.0
    noise_p: float = 0.25
    noise: float = 8.0
    """Standard deviation, in grey levels."""
    jpeg_p: float = 0.25
    jpeg_quality: int = 30
    """The lowest; the highest is 95."""

    def weakened(self, share: float) -> "Look":
        """With `share` of its ranges."""
        return replace(
            self,
            zoom=self.zoom**share,
            stretch=self.stretch * share,
            gain=self.gain * share,
            gamma=self.gamma * share,
            saturation=self.saturation * share,
            soft_px=self.soft_px * share,
            noise=self.noise * share,
            jpeg_quality=round(95 - (95 - self.jpeg_quality) * share),
        )


@dataclass(frozen=True, eq=False)
class Sources:
    """The frames that views are made of."""

    normal: Pool
    patches: Pool
    """For pre-training alone: other optics, no border."""
    unclean: Pool
    """Stool and poor preparation, as food without a label."""


@dataclass(frozen=True, eq=False)
class Answers:
    """A bundle's outputs for N views."""

    scores: Tensor
    """float32 [N]."""
    maps: Tensor
    """float32 or float16 [N, 64, 64]."""


@dataclass(frozen=True, eq=False)
class Lessons:
    """Augmented views and the reference's answers."""

    views: Pool
    answers: Answers

    def __len__(self) -> int:
        return len(self.views)


@dataclass(frozen=True, slots=True)
class Scale:
    """Mean and deviation of a reference's outputs over calibration frames."""

    score_mean: float
    score_std: float
    map_mean: float
    map_std: float

    @classmethod
    def of(cls, answers: Answers, valid: Tensor) -> "Scale":
        """Of `answers` for views of which `valid`, bool [N, 256, 256], counts."""
        cells = answers.maps.float()[valid_cells(valid)]
        scores = answers.scores
        return cls(
            float(scores.mean()),
            max(float(scores.std()), 1e-6),
            float(cells.mean()),
            max(float(cells.std()), 1e-6),
        )

    def apply(self, answers: Answers) -> Answers:
        """`answers` in deviations from the mean."""
        return Answers(
            (answers.scores - self.score_mean) / self.score_std,
            (answers.maps - self.map_mean) / self.map_std,
        )


def is_food(item: Item) -> bool:
    """Whether an unclean frame may be learned from without its label: about half of them may.

    By the hash of its near-duplicate group, so that the others are like nothing that was seen, on
    every machine and whatever else the data holds.
    """
    return hashlib.sha256(item.group.encode("utf-8", "surrogateescape")).digest()[0] % 2 == 0


def unclean_food(items: Sequence[Item]) -> list[Item]:
    """The unclean frames among `items` that may be learned from."""
    return [item for item in items if item.label == "unclean" and is_food(item)]


def answer(engine: Engine, pool: Pool) -> Answers:
    """What `engine` says of every view of `pool`.

    Raises:
        EngineError: it failed.
    """
    scores, maps = [], []
    for frames, valid in batches(pool, _BATCH):
        output = engine.run(frames.numpy(), valid.numpy())
        scores.append(torch.from_numpy(output.score))
        maps.append(torch.from_numpy(output.anomaly_map))
    return Answers(torch.cat(scores), torch.cat(maps))


def make_lessons(
    run: Run,
    sources: Sources,
    engine: Engine,
    scale: Scale,
    config: StudentConfig,
    paste: Paste,
    *,
    seed: int,
) -> Lessons:
    """Views and answers, in the folder `lessons` of `run`; chunks that are there are not made
    again.

    Processes that train together share the work. Answers are in deviations of `scale`.

    Raises:
        KeyboardInterrupt: the run was asked to stop; whole chunks are kept.
        EngineError: the reference failed.
        OutputError: a chunk cannot be written.
    """
    folder = run.folder / "lessons"
    files = [folder / f"{start:06}.npz" for start in range(0, config.views, CHUNK)]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    compute = run.compute
    compute.any(False)  # nobody writes before everybody has looked
    tell = run.reading("the reference's answers")
    for first in range(0, len(missing), compute.processes):
        for number in missing[first + compute.rank : first + compute.rank + 1]:
            start = number * CHUNK
            rows = range(start, min(start + CHUNK, config.views))
            views = _draw(rows, sources, config, paste, seed)
            _write(files[number], Lessons(views, scale.apply(answer(engine, views))))
        tell(min(first + compute.processes, len(missing)) * CHUNK, len(missing) * CHUNK)
        if compute.any(run.stopped()):
            raise KeyboardInterrupt
    return _read(files, config.views)


def _draw(
    rows: Iterable[int], sources: Sources, config: StudentConfig, paste: Paste, seed: int
) -> Pool:
    drawn = [
        lesson_view(sources, config, paste, np.random.default_rng((seed, row))) for row in rows
    ]
    return Pool(
        torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image, _ in drawn])),
        torch.from_numpy(np.stack([valid for _, valid in drawn])),
    )


def lesson_view(
    sources: Sources, config: StudentConfig, paste: Paste, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one view: uint8 [256, 256, 3] and what of it is valid, bool [256, 256]."""
    kind, pool = rng.random(), sources.normal
    if kind < config.patch_share and len(sources.patches):
        pool = sources.patches
    elif kind >= 1 - config.unclean_share and len(sources.unclean):
        pool = sources.unclean
    chosen = int(rng.integers(len(pool)))
    image = np.ascontiguousarray(pool.images[chosen].numpy().transpose(1, 2, 0))
    lesion = pool is not sources.unclean and rng.random() < config.lesion_share
    return augment(image, pool.valid[chosen].numpy(), rng, paste if lesion else None)


def augment(
    image: np.ndarray,
    valid: np.ndarray,
    rng: np.random.Generator,
    paste: Paste | None = None,
    look: Look = Look(),
) -> tuple[np.ndarray, np.ndarray]:
    """Another view of a view: nearer, turned by quarters, mirrored, with a lesion, in another
    light.

    Turned and mirrored here and not while the student learns: the reference need not answer alike
    for a turned view.

    Args:
        image: uint8 [256, 256, 3], RGB. valid: bool [256, 256].
        paste: puts a lesion where the view is valid; None for none.

    Returns:
        As `image` and `valid`; neutral grey where not valid.
    """
    kept = rng.random() < look.as_it_is
    look = look.weakened(rng.random())
    if not kept:
        image, valid = _moved(image, valid, rng, look)
    if paste is not None and valid.any():
        image, _ = paste(image, valid, rng)
    if not kept:
        image = _through_optics(_in_light(image, rng, look), rng, look)
    image = np.where(valid[..., None], image, np.uint8(_NEUTRAL))
    return image, valid


def _moved(
    image: np.ndarray, valid: np.ndarray, rng: np.random.Generator, look: Look
) -> tuple[np.ndarray, np.ndarray]:
    if rng.random() < look.turned_p:
        turns, step = int(rng.integers(4)), int(rng.choice([1, -1]))
        image, valid = (np.rot90(each, turns)[:, ::step] for each in (image, valid))
    image, mask = np.ascontiguousarray(image), np.ascontiguousarray(valid).astype(np.uint8)
    height, width = mask.shape
    for _ in range(_CROP_TRIES):
        zoom = look.zoom ** float(rng.random())
        stretch = float(np.exp(rng.uniform(-look.stretch, look.stretch) / 2))
        across, down = max(zoom * stretch, 1.0), max(zoom / stretch, 1.0)
        left = rng.uniform(0, width * (1 - 1 / across))
        top = rng.uniform(0, height * (1 - 1 / down))
        matrix = np.array([[across, 0, -left * across], [0, down, -top * down]])
        inside = cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST)
        if inside.mean() >= _LEAST_VALID:
            return cv2.warpAffine(image, matrix, (width, height)), inside.astype(bool)
    return image, mask.astype(bool)


def _in_light(image: np.ndarray, rng: np.random.Generator, look: Look) -> np.ndarray:
    """Other brightness, white balance, gamma and saturation: uint8 to float32 [H, W, 3]."""
    x = image.astype(np.float32) / 255
    x = x ** np.float32(np.exp(rng.uniform(-look.gamma, look.gamma)))
    channels = rng.uniform(-look.gain, look.gain, 3) / 3 + rng.uniform(-look.gain, look.gain)
    x = x * np.exp(channels).astype(np.float32)
    grey = x.mean(axis=2, keepdims=True)
    saturation = np.float32(1 + rng.uniform(-look.saturation, look.saturation))
    return np.asarray(grey + saturation * (x - grey)) * 255


def _through_optics(x: np.ndarray, rng: np.random.Generator, look: Look) -> np.ndarray:
    """Blur, noise and compression: float32 to uint8 [H, W, 3]."""
    if rng.random() < look.soft_p:
        x = cv2.GaussianBlur(x, (0, 0), 0.2 + look.soft_px * float(rng.random()))
    if rng.random() < look.noise_p:
        x = x + look.noise * float(rng.random()) * rng.standard_normal(x.shape, np.float32)
    image: np.ndarray = np.clip(np.rint(x), 0, 255).astype(np.uint8)
    if rng.random() < look.jpeg_p:
        quality = int(rng.integers(look.jpeg_quality, 95, endpoint=True))
        bgr = np.ascontiguousarray(image[..., ::-1])
        packed = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        image = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))[..., ::-1]
    return image


def _write(file: Path, lessons: Lessons) -> None:
    """Write a chunk, whole or not at all."""
    part = file.with_suffix(".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            np.savez(
                stream,
                images=lessons.views.images.numpy(),
                valid=np.packbits(lessons.views.valid.numpy(), axis=2),
                scores=lessons.answers.scores.numpy(),
                maps=lessons.answers.maps.numpy().astype(np.float16),
            )
        os.replace(part, file)
    except OSError as error:
        raise OutputError(
            f"cannot write the reference's answers {file}: {error.strerror}. Make room there, "
            "then go on with --resume."
        ) from error


def _read(files: Sequence[Path], count: int) -> Lessons:
    images = torch.empty(count, 3, 256, 256, dtype=torch.uint8)
    valid = torch.empty(count, 256, 256, dtype=torch.bool)
    scores, maps = torch.empty(count), torch.empty(count, 64, 64, dtype=torch.float16)
    for number, file in enumerate(files):
        rows = slice(number * CHUNK, (number + 1) * CHUNK)
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as chunk:
                images[rows] = torch.from_numpy(chunk["images"])
                unpacked = np.unpackbits(chunk["valid"], axis=2).astype(bool)
                valid[rows] = torch.from_numpy(unpacked)
                scores[rows] = torch.from_numpy(chunk["scores"])
                maps[rows] = torch.from_numpy(chunk["maps"])
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise OutputError(
                f"{file} does not hold the reference's answers any more. Remove it, then go on "
                "with --resume: it is made again."
            ) from error
    return Lessons(Pool(images, valid), Answers(scores, maps))
