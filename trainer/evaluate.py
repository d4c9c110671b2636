"""Measures a bundle on labelled images: the one place where the test split is opened.

In: a data folder (`trainer.data`), a bundle and an engine that runs it. Out: a document of figures
that JSON holds, a table for people, and, in a folder if asked, a page, the score of every image and
a picture of maps. What is measured, each with a 95 % interval over near-duplicate groups
(`trainer.metrics`):

    image AUROC, AP    raw scores of normal test images against each set of abnormal ones, all, and
                       only those with the position box on both sides
    pixel figures      of maps against lesion masks (`trainer.localisation`); the threshold of IoU
                       and Dice is the 0.90 quantile of calibration pixels: no lesion had a say
    alert rates        share of images whose calibrated score is 0.95 or more, which about 5 % of
                       the frames reach that the bundle was calibrated on; "calibration" are those
                       of the data folder, which may be others

Pixels are those of the 256x256 view that are valid; lesion masks are cut to the view likewise. A
lesion that no valid pixel shows cannot be found: it is counted and left out. A "set" is the first
folder of an image's path. The trivial baselines of `trainer.baselines` stand beside every figure.
"""

import csv
import io
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ccdstream import __version__
from ccdstream.bundle import PROGRAM, Bundle
from ccdstream.engine.base import Engine
from ccdstream.errors import DataError, OutputError, show_path
from ccdstream.frames import VIEW_SIZE
from ccdstream.fuse import Calibration
from ccdstream.score import mask_map, not_finite
from ccdstream.view import Profile, map_to_image, mask_to_view, whole_frame
from trainer.baselines import centre_map, image_baselines, red_map, surfaces
from trainer.data import (
    Dataset,
    Item,
    Views,
    content_hash,
    file_hash,
    load_views,
    read_mask,
    survey,
)
from trainer.evaluation_page import Example, Examples, contact_sheet, draw, page
from trainer.items import are, counted, named
from trainer.localisation import (
    FIGURES,
    PAPER_GROUP_IMAGES,
    PAPER_GROUPS,
    PRO_FPR,
    Lesion,
    Localisation,
    figures,
    localise,
    paper_groups,
)
from trainer.metrics import (
    auroc,
    average_precision,
    estimate,
    estimate_rate,
    largest_component,
)

FORMAT = "ccdstream-evaluation"
FORMAT_VERSION = 1
PIXEL_QUANTILE = 0.90
"""Of calibration pixels: above it a pixel counts as found."""
ALERT_FRACTION = 0.95
"""Calibrated score from which an image counts as an alert: 5 % of calibration frames."""
EXAMPLES = 4
"""Images in a row of examples."""
FILES = ("evaluation.json", "evaluation.html", "scores.csv", "maps.png")

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
    counted: np.ndarray
    """bool [N, 256, 256]: the pixels that count, for the bundle and for the baselines alike."""

    def __len__(self) -> int:
        return len(self.views)

    @property
    def groups(self) -> list[str]:
        """The near-duplicate group of each image."""
        return [item.group for item in self.views.items]

    def map_of(self, index: int) -> np.ndarray:
        """Float32 [256, 256], bilinear; NaN where a pixel does not count."""
        return _laid_over(self.maps[index], self.views.valid[index])


_MAPS: Mapping[str, Callable[[Scores, int], np.ndarray]] = {
    "bundle": Scores.map_of,
    "closeness_to_centre": lambda scores, index: centre_map(),
    "redness": lambda scores, index: red_map(scores.views.images[index], scores.views.valid[index]),
}
"""float32 [256, 256] of one image, by the bundle and by what knows nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Marked:
    """The lesions of a set, and what each map finds of them."""

    lesions: list[Lesion | None]
    """Of each image; None where there is no mask, or an empty one."""
    in_sight: list[int]
    """The images whose lesion shows on at least one pixel that counts."""
    maps: dict[str, Localisation]
    """Over the images in sight; empty where there are none."""


def evaluate(
    data: Path,
    bundle: Bundle,
    engine: Engine,
    out: Path | None = None,
    *,
    batch: int = 8,
    resamples: int = 1000,
    overwrite: bool = False,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run `bundle` over the calibration and test images of `data` and measure it.

    Args:
        data: a folder that `trainer.data.find_data` understands.
        engine: runs `bundle`.
        out: a folder for `FILES`; nothing is written if None.
        batch: images in one call of the engine; the figures do not depend on it.
        resamples: of the bootstrap.
        overwrite: replace `FILES` that are there already.
        only: the test sets to read, by name; all if None. Image figures need "normal" among them.
        progress: told of every step that takes long.

    Returns:
        What was measured on what: `format`, `format_version`, `created`, `version`, `versions`
        {python, numpy, opencv}, `bundle`, `engine`, `data`, `counts` {set: images},
        `notes` [sentences].
        `image` {set: {all, with_position_box: {auroc, average_precision, normal, abnormal}}}.
        `pixel` {quantile, pro_fpr, thresholds {map: raw}, sets {set: {images, regions,
        without_mask, lesions_out_of_sight, lesion_shown, paper_group_images, maps {map: {auroc,
        auroc_pooled, pro, iou, dice, oracle {threshold, iou, dice}, paper_groups {iou,
        oracle_iou}}}}}}, as `trainer.localisation` describes them; the map "bundle" is the one
        measured and the others are baselines; `regions` counts those of PRO,
        `paper_group_images` the images in each of the five groups.
        `alerts` {fraction, rates {set: rate}}. `baselines` {set: {cue: AUROC}} and
        `baselines_with_position_box`, on the same images as the figures beside which they stand.
        Figures are {value, low, high, n}; null where there was nothing to measure. Those of
        `paper_groups` are {mean, spread, values}.

    Raises:
        DataError: the data is missing or not usable, or has no test images, or not a set of `only`.
        EngineError: the engine failed, or gave values that are not finite.
        OutputError: a result is there already, or cannot be written.
    """
    if out is not None and not overwrite:
        _refuse_existing(out)
    dataset, problems = survey(data)
    if _holds_test_alone(dataset):
        raise DataError(
            f"{show_path(dataset.folder)} holds test/ but no train/. An evaluation also needs "
            "normal frames that are not in test/: put them into train/ beside it; a part of them "
            "calibrates, unless there is a calibration/ too."
        )
    if not dataset.test and all(problem.kind in ("empty", "few") for problem in problems):
        raise _no_test_images(dataset)  # before any word on train: an evaluation is about these
    if problems:
        raise DataError(problems[0].message)

    def at(step: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(step, done, total) if progress else None

    sets = test_sets(dataset, only)
    scored = {}
    for name, items in {"calibration": dataset.calibration, **sets}.items():
        views = load_views(items, Profile.from_dict(bundle.profile), progress=at(f"reading {name}"))
        scored[name] = _score(views, bundle, engine, batch, at(f"scoring {name}"))
    abnormal = [name for name, s in scored.items() if s.views.items[0].label == "abnormal"]
    thresholds = {name: _pixel_threshold(scored["calibration"], name) for name in _MAPS}
    marked = {name: _mark(scored[name], thresholds, at(f"pixels of {name}")) for name in abnormal}
    everything, boxed = _image_baselines(dataset, scored, abnormal, at)
    image = {
        name: _image_figures(scored.get("normal"), scored[name], resamples) for name in abnormal
    }
    evaluation: Evaluation = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
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
            "test_sha256": content_hash([item for items in sets.values() for item in items]),
        },
        "counts": {name: len(scores) for name, scores in scored.items()},
        "notes": [
            *_above_no_baseline(image, everything),
            *_also_trained_on(dataset, sets),
            *_notes(dataset, bundle, sets, marked),
        ],
        "image": image,
        "pixel": {
            "quantile": PIXEL_QUANTILE,
            "pro_fpr": PRO_FPR,
            "thresholds": thresholds,
            "sets": {
                name: _pixel_figures(scored[name], marked[name], resamples) for name in abnormal
            },
        },
        "alerts": {
            "fraction": ALERT_FRACTION,
            "rates": {
                name: asdict(estimate_rate(_alerts(scores), scores.groups, resamples=resamples))
                for name, scores in scored.items()
            },
        },
        "baselines": everything,
        "baselines_with_position_box": boxed,
    }
    if out is not None:
        examples = _examples(dataset, scored, marked, bundle, thresholds["bundle"])
        raw = {name: scores.raw for name, scores in scored.items()}
        _write(
            out,
            {
                "evaluation.json": (json.dumps(evaluation, indent=2) + "\n").encode(),
                "evaluation.html": _bytes(page(evaluation, raw, _alert_at(bundle), examples)),
                "scores.csv": _bytes(_scores_csv(dataset, bundle, scored, marked)),
                "maps.png": contact_sheet(examples),
            },
        )
    return evaluation


_PIXEL_ROWS = (
    ("pixel AUROC", "auroc"),
    ("pixel AUROC, pooled", "auroc_pooled"),
    (f"PRO to FPR {PRO_FPR}", "pro"),
    ("IoU", "iou"),
    ("Dice", "dice"),
    ("IoU, oracle threshold", "oracle", "iou"),
    ("Dice, oracle threshold", "oracle", "dice"),
    ("IoU, paper's groups", "paper_groups", "iou"),
    ("IoU, paper's groups, oracle threshold", "paper_groups", "oracle_iou"),
)
"""(title, keys) of the figures of a map, as the table shows them."""


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
        pixel = evaluation["pixel"]["sets"]
        for title, *keys in _PIXEL_ROWS:
            for map_name in _MAPS:
                row(
                    title if map_name == "bundle" else f"  {map_name.replace('_', ' ')} alone",
                    [_text(_nested(pixel[name]["maps"][map_name], keys)) for name in sets],
                )
    lines.append("")
    alerts = evaluation["alerts"]
    for name, rate in alerts["rates"].items():
        row(f"alerts at {alerts['fraction']:.2f}: {name}", [_percent(rate)])
    if evaluation["notes"]:
        lines += ["", *evaluation["notes"]]
    lines += [
        "",
        "In brackets: 95 % intervals over near-duplicate groups, of a bootstrap; those of alert "
        "rates of 0 and 100 % are the exact binomial ones. IoU and Dice: largest connected "
        f"part above the {evaluation['pixel']['quantile']:.2f} quantile of calibration pixels. "
        "Oracle: above the set's own best threshold, chosen with the masks; not a figure to quote. "
        f"Paper's groups: five of {PAPER_GROUP_IMAGES} images or fewer, mean and deviation.",
    ]
    return "\n".join(lines)


# -- what is measured -----------------------------------------------------------------------------


def test_sets(dataset: Dataset, only: Sequence[str] | None = None) -> dict[str, list[Item]]:
    """The test images by set: "normal", then others by their first folder, one label each.

    Args:
        only: names of the sets that are wanted; all if None.

    Raises:
        DataError: there are no test images, or not the sets that are wanted.
    """
    folder = show_path(dataset.folder)
    if not dataset.test:
        raise _no_test_images(dataset)
    sets: dict[str, list[Item]] = {}
    for item in dataset.test:
        first = item.path.relative_to(dataset.folder).parts[0]
        reserved = first in ("calibration", "normal", "test", item.path.name)
        name = "normal" if item.label == "normal" else item.label if reserved else first
        members = sets.setdefault(name, [])
        if members and members[0].label != item.label:
            raise DataError(
                f"{show_path(dataset.folder / first)} holds test images labelled "
                f"{members[0].label} and {item.label}. Keep one label a folder."
            )
        members.append(item)
    if unknown := [name for name in only or () if name not in sets]:
        raise DataError(
            f"{folder} has no test set {', '.join(unknown)}. It has {', '.join(sets)}; name some "
            "of these."
        )
    wanted = sets if only is None else {name: sets[name] for name in sets if name in only}
    return dict(sorted(wanted.items(), key=lambda entry: (entry[0] != "normal", entry[0])))


def _no_test_images(dataset: Dataset) -> DataError:
    return DataError(
        f"{show_path(dataset.folder)} has no test images, and an evaluation needs labelled ones. "
        "List them in an index.csv, or put them into test/normal/ and test/abnormal/."
    )


def _holds_test_alone(dataset: Dataset) -> bool:
    """Whether all images lie below test/, so that they were taken for ones to train on."""
    test = dataset.folder / "test"
    below = [item.path.is_relative_to(test) for item in dataset.items]
    others = any((dataset.folder / name).exists() for name in ("train", "index.csv"))
    return bool(below) and all(below) and not others


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
        raise not_finite(engine)
    masked = [mask_map(m, v) for m, v in zip(maps, views.valid, strict=True)]
    counted = [np.isfinite(_laid_over(m, v)) for m, v in zip(masked, views.valid, strict=True)]
    return Scores(
        views,
        raw,
        Calibration.from_dict(bundle.calibration["score"]).apply(raw),
        np.concatenate([output.parts for output in outputs]),
        np.stack(masked),
        np.stack(counted),
    )


def _laid_over(anomaly_map: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return map_to_image(anomaly_map, whole_frame(VIEW_SIZE), VIEW_SIZE, valid)


def _alerts(scores: Scores) -> np.ndarray:
    """Float64 [N], 1 where the image alerts."""
    return (scores.calibrated >= ALERT_FRACTION).astype(np.float64)


def _alert_at(bundle: Bundle) -> float:
    """The raw score whose calibrated score is `ALERT_FRACTION`."""
    curve = Calibration.from_dict(bundle.calibration["score"])
    last = curve.fraction[-1]
    if last >= ALERT_FRACTION:
        return float(np.interp(ALERT_FRACTION, curve.fraction, curve.raw))
    return float(curve.raw[-1] + curve.tail_scale * np.log((1 - last) / (1 - ALERT_FRACTION)))


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
) -> list[dict[str, dict[str, float | None] | None]]:
    """{set: {cue: AUROC}}: of all images, and of those with the position box on both sides."""
    names = list(abnormal)
    if "normal" not in scored or not names:
        return [dict.fromkeys(names), dict.fromkeys(names)]
    train = surfaces(dataset.train, progress=at("baselines: train"))
    seen = {
        name: surfaces(scored[name].views.items, progress=at(f"baselines: {name}"))
        for name in ("normal", *names)
    }
    shares = {name: scored[name].views.valid.mean(axis=(1, 2)) for name in seen}

    def cues(name: str, boxed: bool) -> dict[str, float | None] | None:
        kept = {
            side: [i for i, s in enumerate(seen[side]) if s.position_box is True or not boxed]
            for side in ("normal", name)
        }
        if not all(kept.values()):
            return None
        normal, other = ([seen[side][index] for index in some] for side, some in kept.items())
        return image_baselines(
            train, normal, other, *(shares[side][some] for side, some in kept.items())
        )

    return [{name: cues(name, boxed) for name in names} for boxed in (False, True)]


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
        shown = (in_view & scores.counted[index]).sum() * pixel_area / mask.sum()
        lesions.append(Lesion(in_view, min(1.0, float(shown))))
    return lesions


def _pixel_threshold(calibration: Scores, map_name: str) -> float:
    pixels = [
        _MAPS[map_name](calibration, index)[calibration.counted[index]]
        for index in range(len(calibration))
    ]
    together = np.concatenate(pixels)
    if not len(together):
        raise DataError(
            f"no pixel of the {len(calibration)} calibration frames counts. The bundle's profile "
            "does not fit this data; train one for it."
        )
    return float(np.quantile(together, PIXEL_QUANTILE))


def _mark(
    scores: Scores, thresholds: Mapping[str, float], progress: Callable[[int, int], None]
) -> Marked:
    lesions = _lesions(scores)
    masks = {i: lesion.mask for i, lesion in enumerate(lesions) if lesion and lesion.shown}
    in_sight = list(masks)
    maps = {}
    for map_name, threshold in thresholds.items() if masks else ():

        def map_of(index: int, name: str = map_name) -> np.ndarray:
            return _MAPS[name](scores, in_sight[index])

        counted = [scores.counted[index] for index in in_sight]
        maps[map_name] = localise(map_of, counted, list(masks.values()), threshold, progress)
    return Marked(lesions, in_sight, maps)


def _predicted(anomaly_map: np.ndarray, counted: np.ndarray, threshold: float) -> np.ndarray:
    """Bool [256, 256]: the largest connected part above the threshold."""
    return largest_component(counted & (np.where(counted, anomaly_map, -np.inf) > threshold))


def _pixel_figures(scores: Scores, marked: Marked, resamples: int) -> dict[str, Any]:
    known = [lesion for lesion in marked.lesions if lesion is not None]
    groups = [scores.groups[index] for index in marked.in_sight]
    drawn = paper_groups(len(marked.in_sight))
    return {
        "images": len(marked.in_sight),
        "regions": len(marked.maps["bundle"].regions) if marked.maps else 0,
        "without_mask": len(scores) - len(known),
        "lesions_out_of_sight": len(known) - len(marked.in_sight),
        "lesion_shown": float(np.mean([lesion.shown for lesion in known])) if known else None,
        "paper_group_images": len(drawn[0]) if drawn else 0,
        "maps": {
            name: figures(marked.maps[name], groups, resamples=resamples)
            if marked.maps
            else dict.fromkeys(FIGURES)
            for name in _MAPS
        },
    }


def _above_no_baseline(
    image: Mapping[str, Mapping[str, Any]],
    baselines: Mapping[str, Mapping[str, float | None] | None],
) -> list[str]:
    notes = []
    for name, measured in image.items():
        known = [value for value in (baselines[name] or {}).values() if value is not None]
        if not measured["all"] or not known:
            continue
        own = measured["all"]["auroc"]["value"]
        if own <= min(known):
            notes.append(f"{name}: image AUROC {own:.3f} lies above no baseline.")
    return notes


def _also_trained_on(dataset: Dataset, sets: Mapping[str, list[Item]]) -> list[str]:
    """A note on test frames that are byte for byte frames of train or calibration."""
    tested = [item for items in sets.values() for item in items]
    normal = [*dataset.train, *dataset.calibration]
    of_file = {path: file_hash(path) for path in {item.path for item in (*tested, *normal)}}
    splits: dict[tuple[str, int | None], set[str]] = {}
    for item in normal:
        splits.setdefault((of_file[item.path], item.pts), set()).add(item.split)
    again = [item for item in tested if (of_file[item.path], item.pts) in splits]
    if not again:
        return []
    used = set().union(*(splits[of_file[item.path], item.pts] for item in again))
    words = {"train": "training", "calibration": "calibration"}
    what = " or ".join(word for split, word in words.items() if split in used)
    frames = f"a {what} frame" if len(again) == 1 else f"{what} frames"
    names = named([item.path.relative_to(dataset.folder) for item in again])
    return [
        f"{counted(len(again), 'test frame')} {are(len(again))} also {frames} of this folder: "
        f"{names}."
    ]


def _notes(
    dataset: Dataset,
    bundle: Bundle,
    sets: Mapping[str, list[Item]],
    marked: Mapping[str, Marked],
) -> list[str]:
    notes = []
    trained_on = {entry.get("sha256") for entry in bundle.manifest["training"].get("data", ())}
    if content_hash(dataset.train) not in trained_on:
        notes.append(
            "The bundle was not trained on all of this folder's train split: test images may be "
            "near-duplicates of frames it was trained on."
        )
    groups = {item.group for item in (*dataset.train, *dataset.calibration)}
    for name, items in sets.items():
        if shared := sum(item.group in groups for item in items):
            notes.append(
                f"{shared} of {counted(len(items), f'{name} image')} "
                f"{'shares' if shared == 1 else 'share'} a group with training or calibration "
                "frames."
            )
    for name, some in marked.items():
        if without := some.lesions.count(None):
            notes.append(
                f"{counted(without, f'{name} image')} without a lesion mask: no pixel figures."
            )
        if hidden := len(some.lesions) - without - len(some.in_sight):
            notes.append(
                f"{counted(hidden, f'{name} lesion')} wholly where the view is not valid: left out "
                "of the pixel figures."
            )
        images = len(some.in_sight)
        if images < PAPER_GROUPS * PAPER_GROUP_IMAGES:
            size = images // PAPER_GROUPS
            notes.append(
                f"The paper measures IoU on five groups of {PAPER_GROUP_IMAGES} images; {name} has "
                f"{images} with a lesion in sight"
                + (f", so its groups have {size}." if size else ", too few for groups.")
            )
    return notes


# -- what is written ------------------------------------------------------------------------------


def _text(figure: Mapping[str, Any] | float | None) -> str:
    if figure is None:
        return "not measured"
    if isinstance(figure, Mapping):
        if "spread" in figure:
            return f"{figure['mean']:.3f} ± {figure['spread']:.3f}"
        return f"{figure['value']:.3f}" + _interval(figure, 1, ".3f")
    return f"{figure:.3f}"


def _nested(figures: Mapping[str, Any], keys: Iterable[str]) -> Any:
    """What lies under `keys`; None where nothing was measured."""
    found: Any = figures
    for key in keys:
        found = found and found[key]
    return found


def _percent(figure: Mapping[str, Any]) -> str:
    return f"{100 * figure['value']:.1f} %" + _interval(figure, 100, ".1f")


def _interval(figure: Mapping[str, Any], factor: float, form: str) -> str:
    if figure["low"] is None:
        return ""
    return f" ({factor * figure['low']:{form}}-{factor * figure['high']:{form}})"


def _refuse_existing(out: Path) -> None:
    for name in FILES:
        if (out / name).exists():
            raise OutputError(
                f"{show_path(out / name)} is there already. "
                "Replace it with --overwrite, or choose another place with --output."
            )


def _bytes(text: str) -> bytes:
    """UTF-8; the odd bytes of a file name become an escape, not an error."""
    return text.encode("utf-8", "backslashreplace")


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
            f"cannot write to {show_path(out)}: {error.strerror or error}. "
            "Name a folder that can be written."
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
    marked: Mapping[str, Marked],
) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_COLUMNS, *bundle.parts], restval="", lineterminator="\n")
    writer.writeheader()
    for name, scores in scored.items():
        lesions = marked[name].lesions if name in marked else [None] * len(scores)
        found = _found(marked[name]) if name in marked else {}
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
            if lesion := lesions[index]:
                row["lesion_shown"] = f"{lesion.shown:.4f}"
            row |= {k: f"{v:.4f}" for k, v in found.get(index, {}).items() if np.isfinite(v)}
            parts = (f"{part:.6g}" for part in scores.parts[index])
            writer.writerow(row | dict(zip(bundle.parts, parts, strict=True)))
    return text.getvalue()


def _found(marked: Marked) -> dict[int, dict[str, float]]:
    """{image: {pixel_auroc, iou, dice}} of the bundle's map, for the images in sight."""
    if not marked.maps:
        return {}
    found = marked.maps["bundle"]
    return {
        index: {"pixel_auroc": auroc, "iou": iou, "dice": dice}
        for index, auroc, iou, dice in zip(
            marked.in_sight, found.pixel_auroc, found.iou, found.dice, strict=True
        )
    }


def _examples(
    dataset: Dataset,
    scored: Mapping[str, Scores],
    marked: Mapping[str, Marked],
    bundle: Bundle,
    threshold: float,
) -> list[Examples]:
    """Best, median and worst IoU of each set, and the highest scores of normal images."""
    curve = Calibration.from_dict(bundle.calibration["map"])

    def example(name: str, index: int, iou: float | None, lesion: Lesion | None) -> Example:
        scores = scored[name]
        anomaly_map, counted = scores.map_of(index), scores.counted[index]
        return Example(
            f"score {scores.calibrated[index]:.3f}" + ("" if iou is None else f", IoU {iou:.2f}"),
            scores.views.items[index].path.relative_to(dataset.folder).as_posix(),
            draw(
                scores.views.images[index],
                curve.apply(anomaly_map),
                counted,
                _predicted(anomaly_map, counted, threshold),
                None if lesion is None else lesion.mask,
            ),
        )

    rows = []
    for name, some in marked.items():
        ious = {index: found["iou"] for index, found in _found(some).items()}
        ranked = sorted(ious, key=lambda index: (-ious[index], -index))
        middle = max(0, len(ranked) // 2 - EXAMPLES // 2)
        for title, chosen in (
            ("best", ranked[:EXAMPLES]),
            ("median", ranked[middle : middle + EXAMPLES]),
            ("worst", ranked[-EXAMPLES:]),
        ):
            members = (example(name, i, ious[i], some.lesions[i]) for i in chosen)
            rows.append(Examples(f"{name} {title}", tuple(members)))
    if "normal" in scored:
        order = np.argsort(-scored["normal"].raw, kind="stable")[:EXAMPLES]
        highest = tuple(example("normal", int(index), None, None) for index in order)
        rows.append(Examples("normal highest", highest))
    return rows
