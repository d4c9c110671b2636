"""Measures a bundle on labelled images: the one place where the test split is opened.

In: a data folder (`trainer.data`), a bundle and an engine that runs it. Out: a document of figures
that JSON holds, a table for people, and, in a folder if asked, the score of every image and a
picture of maps. What is measured, each with a 95 % bootstrap interval over near-duplicate groups:

    image AUROC, AP    raw scores of normal test images against each set of abnormal ones, all, and
                       only those with the position box on both sides
    pixel AUROC        inside each abnormal image by itself, mean over images
    IoU, Dice          of the lesion and the largest connected part of what lies above a threshold
                       that no lesion had a say in: the 0.90 quantile of calibration pixels
    alert rate         share of images whose calibrated score is 0.95 or more, which 5 % of the
                       bundle's own calibration frames reach

Pixels are those of the 256x256 view that are valid; lesion masks are cut to the view likewise. A
lesion that no valid pixel shows cannot be found: it is counted and left out. A "set" is the first
folder of an image's path. The trivial baselines of `trainer.baselines` stand beside every figure.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ccdstream import __version__
from ccdstream.bundle import PROGRAM, Bundle
from ccdstream.engine.base import Engine
from ccdstream.errors import DataError, EngineError, OutputError
from ccdstream.frames import VIEW_SIZE
from ccdstream.fuse import Calibration
from ccdstream.score import mask_map
from ccdstream.view import Profile, map_to_image, mask_to_view, whole_frame
from trainer.baselines import centre_map, image_baselines, red_map, surfaces
from trainer.data import Dataset, Item, Views, content_hash, find_data, load_views, read_mask
from trainer.metrics import (
    auroc,
    average_precision,
    dice,
    estimate,
    iou,
    largest_component,
    mean,
    pixel_auroc,
)

FORMAT = "ccdstream-evaluation"
FORMAT_VERSION = 1
PIXEL_QUANTILE = 0.90
"""Of calibration pixels: above it a pixel counts as found."""
ALERT_FRACTION = 0.95
"""Calibrated score from which an image counts as an alert: 5 % of calibration frames."""
FILES = ("evaluation.json", "scores.csv", "maps.png")

Evaluation = dict[str, Any]
"""The document, in types that JSON holds; `evaluate` describes its keys."""
Progress = Callable[[str, int, int], None]
"""Called with (what is under way, done, total)."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What the bundle says of N images, and which pixels count."""

    views: Views
    raw: np.ndarray
    """float32 [N]."""
    calibrated: np.ndarray
    """float64 [N], fraction of the bundle's calibration frames that score lower."""
    parts: np.ndarray
    """float32 [N, k]."""
    maps: np.ndarray
    """float32 [N, h, w], raw; NaN in cells that are mostly not valid."""

    def __len__(self) -> int:
        return len(self.views)

    @property
    def groups(self) -> list[str]:
        """The near-duplicate group of each image."""
        return [item.group for item in self.views.items]

    def map_of(self, index: int) -> np.ndarray:
        """Float32 [256, 256], bilinear; NaN where a pixel does not count."""
        return map_to_image(
            self.maps[index], whole_frame(VIEW_SIZE), VIEW_SIZE, self.views.valid[index]
        )

    def counted(self, index: int) -> np.ndarray:
        """Bool [256, 256]: the pixels that count, for the bundle and for the baselines alike."""
        counted: np.ndarray = np.isfinite(self.map_of(index))
        return counted


_MAPS: Mapping[str, Callable[[Scores, int], np.ndarray]] = {
    "bundle": Scores.map_of,
    "closeness_to_centre": lambda scores, index: centre_map(),
    "redness": lambda scores, index: red_map(scores.views.images[index], scores.views.valid[index]),
}
"""float32 [256, 256] of one image, by the bundle and by what knows nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Lesion:
    """The lesion of one image, as the view sees it."""

    mask: np.ndarray
    """bool [256, 256]."""
    shown: float
    """Share of the lesion's area that lies on pixels that count, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Found:
    """How well a map finds the lesion of one image."""

    pixel_auroc: float | None
    """None where the lesion fills every pixel that counts."""
    iou: float
    dice: float


def evaluate(
    data: Path,
    bundle: Bundle,
    engine: Engine,
    out: Path | None = None,
    *,
    batch: int = 8,
    resamples: int = 1000,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Run `bundle` over the calibration and test images of `data` and measure it.

    Args:
        data: a folder that `find_data` understands.
        engine: runs `bundle`.
        out: a folder for `FILES`; nothing is written if None.
        batch: images in one call of the engine; the figures do not depend on it.
        resamples: of the bootstrap.
        overwrite: replace `FILES` that are there already.
        progress: told of every step that takes long.

    Returns:
        What was measured on what: `format`, `format_version`, `created`, `version`, `bundle`,
        `engine`, `data`, `counts` {set: images}, `notes` [sentences].
        `image` {set: {all, with_position_box: {auroc, average_precision, normal, abnormal}}}.
        `pixel` {quantile, thresholds {map: raw}, sets {set: {images, without_mask,
        lesions_out_of_sight, lesion_shown, maps {map: {auroc, iou, dice}}}}}, where the map
        "bundle" is the one measured and the others are baselines.
        `alerts` {fraction, rates {set: rate}}. `baselines` {set: {cue: AUROC}}.
        Figures are {value, low, high, n}; null where there was nothing to measure.

    Raises:
        DataError: the data is missing or not usable, or has no test images.
        EngineError: the engine failed, or gave values that are not finite.
        OutputError: a result is there already, or cannot be written.
    """
    if out is not None and not overwrite:
        _refuse_existing(out)
    dataset = find_data(data)
    if not dataset.test:
        raise DataError(
            f"{data} has no test images, so there is nothing to measure. "
            "List some in its index.csv, or put normal ones into test/."
        )

    def at(step: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(step, done, total) if progress else None

    scored = {}
    for name, items in {"calibration": dataset.calibration, **_sets(dataset)}.items():
        views = load_views(items, Profile.from_dict(bundle.profile), progress=at(f"reading {name}"))
        scored[name] = _score(views, bundle, engine, batch, at(f"scoring {name}"))
    abnormal = [name for name, s in scored.items() if s.views.items[0].label == "abnormal"]
    lesions = {name: _lesions(scored[name]) for name in abnormal}
    thresholds = {name: _pixel_threshold(scored["calibration"], name) for name in _MAPS}
    found = {
        name: {
            map_name: _find(
                scored[name], lesions[name], map_name, threshold, at(f"pixels of {name}")
            )
            for map_name, threshold in thresholds.items()
        }
        for name in abnormal
    }
    evaluation: Evaluation = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "bundle": {
            "name": bundle.name,
            "model_id": bundle.model_id,
            "program_sha256": bundle.sha256(PROGRAM),
            "commit": bundle.manifest["commit"],
        },
        "engine": {"name": engine.name, "device": engine.device, "version": engine.version},
        "data": {
            "folder": dataset.folder.name,
            "calibration_sha256": content_hash(dataset.calibration),
            "test_sha256": content_hash(dataset.test),
        },
        "counts": {name: len(scores) for name, scores in scored.items()},
        "notes": _notes(dataset, bundle, lesions),
        "image": {
            name: _image_figures(scored.get("normal"), scored[name], resamples) for name in abnormal
        },
        "pixel": {
            "quantile": PIXEL_QUANTILE,
            "thresholds": thresholds,
            "sets": {
                name: _pixel_figures(scored[name], lesions[name], found[name], resamples)
                for name in abnormal
            },
        },
        "alerts": {
            "fraction": ALERT_FRACTION,
            "rates": {
                name: asdict(estimate(mean, (_alerts(scores), scores.groups), resamples=resamples))
                for name, scores in scored.items()
            },
        },
        "baselines": _image_baselines(dataset, scored, abnormal, at),
    }
    if out is not None:
        _write(
            out,
            {
                "evaluation.json": (json.dumps(evaluation, indent=2) + "\n").encode(),
                "scores.csv": _scores_csv(dataset, bundle, scored, found, lesions).encode(),
                "maps.png": _contact_sheet(scored, lesions, found, bundle, thresholds["bundle"]),
            },
        )
    return evaluation


def table(evaluation: Evaluation) -> str:
    """The figures as lines of text for people."""
    sets = list(evaluation["image"])
    bundle, engine = evaluation["bundle"], evaluation["engine"]
    lines = [
        f"{bundle['model_id']} on {engine['name']} {engine['version']} ({engine['device']}), "
        f"{evaluation['data']['folder']}: "
        + ", ".join(f"{count} {name}" for name, count in evaluation["counts"].items()),
        "",
    ]

    def row(title: str, values: Iterable[str]) -> None:
        lines.append(f"{title:<44}" + "".join(f"{value:<22}" for value in values).rstrip())

    if sets:
        row("", sets)
        for key, title in (("all", ""), ("with_position_box", ", with position box")):
            figures = [evaluation["image"][name][key] for name in sets]
            row(f"image AUROC{title}", [_text(f and f["auroc"]) for f in figures])
            if key == "all":
                row(
                    "image average precision",
                    [_text(f and f["average_precision"]) for f in figures],
                )
        cues = [evaluation["baselines"][name] or {} for name in sets]
        for cue in dict.fromkeys(cue for some in cues for cue in some):
            row(f"  {cue.replace('_', ' ')} alone", [_text(some.get(cue)) for some in cues])
        for key, title in (("auroc", "pixel AUROC"), ("iou", "IoU"), ("dice", "Dice")):
            for map_name in _MAPS:
                known = map_name == "bundle"
                row(
                    title if known else f"  {map_name.replace('_', ' ')} alone",
                    [_text(evaluation["pixel"]["sets"][n]["maps"][map_name][key]) for n in sets],
                )
    lines.append("")
    alerts = evaluation["alerts"]
    for name, rate in alerts["rates"].items():
        row(f"alerts at {alerts['fraction']:.2f}: {name}", [_percent(rate)])
    if evaluation["notes"]:
        lines += ["", *evaluation["notes"]]
    lines += [
        "",
        "In brackets: 95 % intervals over near-duplicate groups. IoU and Dice: largest connected "
        f"part above the {evaluation['pixel']['quantile']:.2f} quantile of calibration pixels.",
    ]
    return "\n".join(lines)


# -- what is measured -----------------------------------------------------------------------------


def _sets(dataset: Dataset) -> dict[str, list[Item]]:
    """The test images by set: "normal", then others by their first folder, one label each."""
    sets: dict[str, list[Item]] = {}
    for item in dataset.test:
        folder = item.path.relative_to(dataset.folder).parts[0]
        reserved = folder in ("calibration", "normal", "test", item.path.name)
        name = "normal" if item.label == "normal" else item.label if reserved else folder
        members = sets.setdefault(name, [])
        if members and members[0].label != item.label:
            raise DataError(
                f"{dataset.folder / folder} holds test images labelled {members[0].label} and "
                f"{item.label}. Keep one label a folder."
            )
        members.append(item)
    return dict(sorted(sets.items(), key=lambda entry: (entry[0] != "normal", entry[0])))


def _score(
    views: Views, bundle: Bundle, engine: Engine, batch: int, progress: Callable[[int, int], None]
) -> Scores:
    outputs = []
    for start in range(0, len(views), batch):
        some = slice(start, start + batch)
        outputs.append(engine.run(views.images[some], views.valid[some]))
        progress(min(start + batch, len(views)), len(views))
    raw = np.concatenate([output.score for output in outputs])
    maps = np.concatenate([output.anomaly_map for output in outputs])
    if not (np.isfinite(raw).all() and np.isfinite(maps).all()):
        raise EngineError(
            f"{engine.name} on {engine.device} gave a score or a map that is not finite. "
            "Check the model here with: ccdstream model verify."
        )
    masked = [mask_map(m, v) for m, v in zip(maps, views.valid, strict=True)]
    return Scores(
        views,
        raw,
        Calibration.from_dict(bundle.calibration["score"]).apply(raw),
        np.concatenate([output.parts for output in outputs]),
        np.stack(masked),
    )


def _alerts(scores: Scores) -> np.ndarray:
    """Float64 [N], 1 where the image alerts."""
    return (scores.calibrated >= ALERT_FRACTION).astype(np.float64)


def _image_figures(
    normal: Scores | None, abnormal: Scores, resamples: int
) -> dict[str, dict[str, Any] | None]:
    if normal is None:
        return {"all": None, "with_position_box": None}

    def figures(keep: Callable[[Item], bool]) -> dict[str, Any] | None:
        samples = []
        for scores in (normal, abnormal):
            kept = [index for index, item in enumerate(scores.views.items) if keep(item)]
            samples.append((scores.raw[kept], [scores.groups[index] for index in kept]))
        if not all(len(values) for values, _ in samples):
            return None
        return {
            "auroc": asdict(estimate(auroc, *samples, resamples=resamples)),
            "average_precision": asdict(estimate(average_precision, *samples, resamples=resamples)),
            "normal": len(samples[0][0]),
            "abnormal": len(samples[1][0]),
        }

    return {
        "all": figures(lambda item: True),
        "with_position_box": figures(lambda item: item.position_box is True),
    }


def _image_baselines(
    dataset: Dataset,
    scored: Mapping[str, Scores],
    abnormal: Iterable[str],
    at: Callable[[str], Callable[[int, int], None]],
) -> dict[str, dict[str, float | None] | None]:
    names = list(abnormal)
    if "normal" not in scored or not names:
        return dict.fromkeys(names)
    train = surfaces(dataset.train, progress=at("baselines: train"))
    seen = {
        name: surfaces(scored[name].views.items, progress=at(f"baselines: {name}"))
        for name in ("normal", *names)
    }
    shares = {name: scored[name].views.valid.mean(axis=(1, 2)) for name in seen}
    return {
        name: image_baselines(train, seen["normal"], seen[name], shares["normal"], shares[name])
        for name in names
    }


def _lesions(scores: Scores) -> list[Lesion | None]:
    """The lesion of each image; None where there is no mask, or an empty one."""
    lesions: list[Lesion | None] = []
    views = scores.views
    for index, (item, field, size) in enumerate(
        zip(views.items, views.fields, views.sizes, strict=True)
    ):
        if item.mask is None:
            lesions.append(None)
            continue
        mask = read_mask(item.mask)
        if mask.shape != size:
            raise DataError(
                f"{item.mask} is {mask.shape[1]}x{mask.shape[0]} and its image is "
                f"{size[1]}x{size[0]}. Give masks at the size of their images."
            )
        if not mask.any():
            lesions.append(None)
            continue
        in_view = mask_to_view(mask, field)
        pixel_area = field.width * field.height / in_view.size  # of a view pixel, in image pixels
        shown = (in_view & scores.counted(index)).sum() * pixel_area / mask.sum()
        lesions.append(Lesion(in_view, min(1.0, float(shown))))
    return lesions


def _pixel_threshold(calibration: Scores, map_name: str) -> float:
    pixels = [
        _MAPS[map_name](calibration, index)[calibration.counted(index)]
        for index in range(len(calibration))
    ]
    together = np.concatenate(pixels)
    if not len(together):
        raise DataError(
            f"no pixel of the {len(calibration)} calibration frames counts. The bundle's profile "
            "does not fit this data; train one for it."
        )
    return float(np.quantile(together, PIXEL_QUANTILE))


def _find(
    scores: Scores,
    lesions: Iterable[Lesion | None],
    map_name: str,
    threshold: float,
    progress: Callable[[int, int], None],
) -> list[Found | None]:
    """What the map finds in each image; None where there is no lesion in sight."""
    result: list[Found | None] = []
    for index, lesion in enumerate(lesions):
        if lesion is None or not lesion.shown:
            result.append(None)
        else:
            anomaly_map, counted = _MAPS[map_name](scores, index), scores.counted(index)
            predicted = _predicted(anomaly_map, counted, threshold)
            result.append(
                Found(
                    pixel_auroc(anomaly_map, lesion.mask, counted),
                    iou(predicted, lesion.mask, counted),
                    dice(predicted, lesion.mask, counted),
                )
            )
        progress(index + 1, len(scores))
    return result


def _predicted(anomaly_map: np.ndarray, counted: np.ndarray, threshold: float) -> np.ndarray:
    """Bool [256, 256]: what the map takes for the lesion."""
    return largest_component(counted & (np.where(counted, anomaly_map, -np.inf) > threshold))


def _pixel_figures(
    scores: Scores,
    lesions: Iterable[Lesion | None],
    found: Mapping[str, list[Found | None]],
    resamples: int,
) -> dict[str, Any]:
    known = [lesion for lesion in lesions if lesion is not None]

    def figure(name: str, some: Iterable[Found | None]) -> dict[str, Any] | None:
        values = [None if found is None else getattr(found, name) for found in some]
        kept = [(v, g) for v, g in zip(values, scores.groups, strict=True) if v is not None]
        if not kept:
            return None
        sample = (np.array([v for v, _ in kept]), [g for _, g in kept])
        return asdict(estimate(mean, sample, resamples=resamples))

    return {
        "images": sum(lesion.shown > 0 for lesion in known),
        "without_mask": len(scores) - len(known),
        "lesions_out_of_sight": sum(lesion.shown == 0 for lesion in known),
        "lesion_shown": mean(np.array([lesion.shown for lesion in known])) if known else None,
        "maps": {
            map_name: {
                "auroc": figure("pixel_auroc", some),
                "iou": figure("iou", some),
                "dice": figure("dice", some),
            }
            for map_name, some in found.items()
        },
    }


def _notes(
    dataset: Dataset, bundle: Bundle, lesions: Mapping[str, list[Lesion | None]]
) -> list[str]:
    notes = []
    trained_on = {entry.get("sha256") for entry in bundle.manifest["training"].get("data", ())}
    if content_hash(dataset.train) not in trained_on:
        notes.append(
            "The bundle was not trained on all of this folder's train split: test images may be "
            "near-duplicates of frames it was trained on."
        )
    groups = {item.group for item in (*dataset.train, *dataset.calibration)}
    for name, items in _sets(dataset).items():
        if shared := sum(item.group in groups for item in items):
            notes.append(
                f"{shared} of {len(items)} {name} images share a group with training or "
                "calibration frames."
            )
    for name, some in lesions.items():
        if without := sum(lesion is None for lesion in some):
            notes.append(f"{without} {name} images have no lesion mask: no pixel figures of them.")
        if hidden := sum(lesion is not None and not lesion.shown for lesion in some):
            notes.append(
                f"{hidden} {name} lesions lie wholly where the view is not valid: left out of the "
                "pixel figures."
            )
    return notes


# -- what is written ------------------------------------------------------------------------------


def _text(figure: Mapping[str, Any] | float | None) -> str:
    if figure is None:
        return "not measured"
    if isinstance(figure, Mapping):
        return f"{figure['value']:.3f}" + _interval(figure, 1, ".3f")
    return f"{figure:.3f}"


def _percent(figure: Mapping[str, Any]) -> str:
    return f"{100 * figure['value']:.1f} %" + _interval(figure, 100, ".1f")


def _interval(figure: Mapping[str, Any], factor: float, form: str) -> str:
    if figure["low"] is None:
        return ""
    return f" ({factor * figure['low']:{form}}-{factor * figure['high']:{form}})"


def _refuse_existing(out: Path) -> None:
    for name in FILES:
        if (out / name).exists():
            raise OutputError(f"{out / name} is there already. Name another folder, or remove it.")


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    """Each file under its final name only when whole."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            part = out / f"{name}.part"
            part.write_bytes(content)
            os.replace(part, out / name)
    except OSError as error:
        raise OutputError(
            f"cannot write to {out}: {error.strerror or error}. Name a folder that can be written."
        ) from error


_COLUMNS = (
    *("path", "set", "label", "source", "group", "position_box", "raw", "calibrated", "alert"),
    *("valid_fraction", "lesion_shown", "pixel_auroc", "iou", "dice"),
)
"""Of scores.csv; the named parts of the score follow."""


def _scores_csv(
    dataset: Dataset,
    bundle: Bundle,
    scored: Mapping[str, Scores],
    found: Mapping[str, Mapping[str, list[Found | None]]],
    lesions: Mapping[str, list[Lesion | None]],
) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_COLUMNS, *bundle.parts], restval="", lineterminator="\n")
    writer.writeheader()
    for name, scores in scored.items():
        for index, item in enumerate(scores.views.items):
            row: dict[str, object] = {
                "path": item.path.relative_to(dataset.folder).as_posix(),
                "set": name,
                "label": item.label,
                "source": item.source,
                "group": item.group,
                "position_box": "" if item.position_box is None else int(item.position_box),
                "raw": f"{scores.raw[index]:.6g}",
                "calibrated": f"{scores.calibrated[index]:.6f}",
                "alert": int(_alerts(scores)[index]),
                "valid_fraction": f"{scores.views.valid[index].mean():.4f}",
            }
            if lesion := lesions[name][index] if name in lesions else None:
                row["lesion_shown"] = f"{lesion.shown:.4f}"
            if result := found[name]["bundle"][index] if name in found else None:
                row |= {k: "" if v is None else f"{v:.4f}" for k, v in asdict(result).items()}
            parts = (f"{part:.6g}" for part in scores.parts[index])
            writer.writerow(row | dict(zip(bundle.parts, parts, strict=True)))
    return text.getvalue()


_TILE_PX = 192
_CAPTION_PX = 18
_TILES_A_ROW = 4
_LESION_RGB = (80, 255, 80)
_PREDICTED_RGB = (255, 255, 255)


def _contact_sheet(
    scored: Mapping[str, Scores],
    lesions: Mapping[str, list[Lesion | None]],
    found: Mapping[str, Mapping[str, list[Found | None]]],
    bundle: Bundle,
    threshold: float,
) -> bytes:
    """PNG: best, median and worst IoU of each set, and the highest scores of normal images.

    Each image beside its map, by the bundle's calibration of pixels; the lesion outlined in green,
    what the map takes for it in white.
    """
    rows = []
    for name, results in found.items():
        ious = [(result.iou, index) for index, result in enumerate(results["bundle"]) if result]
        ranked = [index for _, index in sorted(ious, reverse=True)]
        middle = max(0, len(ranked) // 2 - _TILES_A_ROW // 2)
        for title, chosen in (
            ("best", ranked[:_TILES_A_ROW]),
            ("median", ranked[middle : middle + _TILES_A_ROW]),
            ("worst", ranked[-_TILES_A_ROW:]),
        ):
            rows.append((f"{name} {title}", name, chosen))
    if "normal" in scored:
        order = np.argsort(-scored["normal"].raw, kind="stable")
        rows.append(("normal highest", "normal", [int(index) for index in order[:_TILES_A_ROW]]))
    height = _TILE_PX + _CAPTION_PX
    sheet = np.full((max(1, len(rows)) * height, _TILES_A_ROW * 2 * _TILE_PX, 3), 24, np.uint8)
    for row, (title, name, chosen) in enumerate(rows):
        for column, index in enumerate(chosen):
            lesion = lesions[name][index] if name in lesions else None
            result = found[name]["bundle"][index] if name in found else None
            tile = _tile(scored[name], index, lesion, bundle, threshold)
            caption = f"{title}: score {scored[name].calibrated[index]:.3f}"
            if result is not None:
                caption += f", IoU {result.iou:.2f}"
            top, left = row * height, column * 2 * _TILE_PX
            sheet[top + _CAPTION_PX : top + height, left : left + 2 * _TILE_PX] = tile
            cv2.putText(
                sheet,
                caption,
                (left + 4, top + 13),
                cv2.FONT_HERSHEY_SIMPLEX,
                0.42,
                (230, 230, 230),
                1,
                cv2.LINE_AA,
            )
    return bytes(cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1])


def _tile(
    scores: Scores, index: int, lesion: Lesion | None, bundle: Bundle, threshold: float
) -> np.ndarray:
    """uint8 [192, 384, 3], RGB: the view, and its map."""
    image = np.ascontiguousarray(scores.views.images[index].transpose(1, 2, 0))
    anomaly_map, counted = scores.map_of(index), scores.counted(index)
    curve = Calibration.from_dict(bundle.calibration["map"])
    fraction = curve.apply(np.where(counted, anomaly_map, -np.inf))
    level = np.round(255 * fraction).astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    heat[~counted] = image[~counted] // 2
    predicted = _predicted(anomaly_map, counted, threshold)
    for picture in (image, heat):
        _outline(picture, predicted, _PREDICTED_RGB)
        if lesion is not None:
            _outline(picture, lesion.mask, _LESION_RGB)
    return cv2.resize(
        np.hstack([image, heat]), (2 * _TILE_PX, _TILE_PX), interpolation=cv2.INTER_AREA
    )


def _outline(picture: np.ndarray, mask: np.ndarray, rgb: tuple[int, int, int]) -> None:
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    cv2.drawContours(picture, contours, -1, rgb, 2)
