"""What of an evaluation a bundle keeps: the main figures, and how they came about.

In: the document of `trainer.evaluate` or `trainer.evaluate_video`. Out: an entry of the manifest's
`figures`; `ccdstream.bundle` describes, checks and writes it. Values are rounded to 4 decimals, and
what was not measured has no row.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccdstream.errors import DataError, show_path
from trainer.truth import find_truth

Row = dict[str, Any]
"""{figure, set, of, value, low, high, n}."""

_IMAGE_FIGURES = (
    ("image AUROC", "all", "baselines"),
    ("image AUROC, with position box", "with_position_box", "baselines_with_position_box"),
)
"""(figure, key of the images, key of the baselines on the same images)."""
_PIXEL_FIGURES = (("pixel AUROC", "auroc"), ("PRO", "pro"), ("IoU", "iou"))
_BUNDLE = "bundle"


@dataclass(frozen=True, slots=True)
class Made:
    """How an evaluation was made, as far as its document does not say."""

    command: str
    commit: str
    """Of the code that measured."""
    machine: str
    precision: str
    """What the engine computed in."""


def of_frames(evaluation: Mapping[str, Any], made: Made) -> dict[str, Any]:
    """The entry of labelled frames, from what `trainer.evaluate.evaluate` gave."""
    data, pixel = evaluation["data"], evaluation["pixel"]
    notes = [
        f"IoU: the largest connected part above the {pixel['quantile']:.2f} quantile of "
        f"calibration pixels; PRO: up to a false positive rate of {pixel['pro_fpr']:g}. Alert "
        f"rate: share of images whose calibrated score is {evaluation['alerts']['fraction']:.2f} "
        "or more.",
        *evaluation["notes"],
    ]
    rows = [*_image_rows(evaluation), *_pixel_rows(pixel["sets"]), *_alert_rows(evaluation)]
    about = {
        "name": data["folder"],
        "sha256": data["test_sha256"],
        "calibration_sha256": data["calibration_sha256"],
        "counts": evaluation["counts"],
    }
    return _entry("frames", about, evaluation, made, rows, notes)


def of_videos(videos: Sequence[Path], evaluation: Mapping[str, Any], made: Made) -> dict[str, Any]:
    """The entry of marked videos, from what `trainer.evaluate_video.evaluate` gave for `videos`.

    Raises:
        DataError: a video or its truth cannot be read.
    """
    measured = [(video, truth) for video in videos if (truth := find_truth(video)) is not None]
    counts, lesions = evaluation["counts"], evaluation["lesions"]
    at_enter, false = evaluation["frames"]["counted"]["at_enter"], evaluation["false_alerts"]
    figures = {
        "frame sensitivity": at_enter["sensitivity"],
        "frame overlap sensitivity": at_enter["overlap_sensitivity"],
        "frame specificity": at_enter["specificity"],
        "lesions pointed at": lesions["detection_rate"],
        "alert latency (s)": (lesions["alert_latency_s"] or {}).get("median"),
        "false alerts a minute": false["product"]["a_minute"],
    }
    rows = [_row(figure, "videos", _BUNDLE, value) for figure, value in figures.items() if value]
    only = measured[0][0]
    about = {
        "name": only.name if len(measured) == 1 else only.absolute().parent.name,
        "sha256": _hash_of([path for pair in measured for path in pair]),
        "counts": {key: counts[key] for key in ("videos", "frames", "lesion_frames", "lesions")},
    }
    return _entry("videos", about, evaluation, made, rows, evaluation["notes"])


def _entry(
    kind: str,
    data: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    made: Made,
    rows: Sequence[Row],
    notes: Sequence[str],
) -> dict[str, Any]:
    return {
        "kind": kind,
        "data": dict(data),
        "created": evaluation["created"],
        "command": made.command,
        "commit": made.commit,
        "version": evaluation["version"],
        "machine": made.machine,
        "engine": {**evaluation["engine"], "precision": made.precision},
        "program_sha256": evaluation["bundle"]["program_sha256"],
        "rows": list(rows),
        "notes": list(notes),
    }


def _image_rows(evaluation: Mapping[str, Any]) -> Iterator[Row]:
    for figure, images, cues in _IMAGE_FIGURES:
        for name, figures in evaluation["image"].items():
            if figures[images]:
                yield _row(figure, name, _BUNDLE, figures[images]["auroc"])
                for cue, value in (evaluation[cues][name] or {}).items():
                    if value is not None:
                        yield _row(figure, name, cue, {"value": value})


def _pixel_rows(sets: Mapping[str, Any]) -> Iterator[Row]:
    for figure, key in _PIXEL_FIGURES:
        for name, some in sets.items():
            for of, figures in some["maps"].items():
                if figures[key]:
                    yield _row(figure, name, of, figures[key])


def _alert_rows(evaluation: Mapping[str, Any]) -> Iterator[Row]:
    for name, rate in evaluation["alerts"]["rates"].items():
        if name != "calibration":  # whose rate the calibration itself has fixed
            yield _row("alert rate", name, _BUNDLE, rate)


def _row(figure: str, on: str, of: str, estimate: Mapping[str, Any]) -> Row:
    numbers = {key: estimate.get(key) for key in ("value", "low", "high", "n")}
    rounded = {key: round(n, 4) if isinstance(n, float) else n for key, n in numbers.items()}
    return {"figure": figure, "set": on, "of": of, **rounded}


def _hash_of(files: Sequence[Path]) -> str:
    """SHA-256, in hex, of the names and contents of files, whatever their order."""
    lines = []
    for path in files:
        try:
            with path.open("rb") as file:
                lines.append(f"{path.name}\t{hashlib.file_digest(file, 'sha256').hexdigest()}\n")
        except OSError as error:
            raise DataError(
                f"{show_path(path)} cannot be read any more: {error.strerror}. "
                "Keep it where it is until it is measured."
            ) from error
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()
