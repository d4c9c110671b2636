"""Measures a bundle on recordings whose lesions are marked.

In: videos with their truth beside them (`trainer.truth`), a bundle and an engine that runs it. Out:
a document of figures that JSON holds, a table for people and, in a folder if asked, `FILES`. The
scores are those of the product itself (`trainer.clips`); every time is stream time, pts *
time_base.

A frame is *called* where it is informative and its smoothed score reaches a threshold: the bundle's
`enter`, or the one that calls 4.5 % of lesion-free frames. A call *overlaps* a lesion where the box
in which the frame is hottest meets the lesion's box, by however little (IoU > 0); a frame in which
nothing stands out points at all of itself. A confident box beside the lesion is no false call: that
is TRUE-Colon's rule, too (arXiv 2608.13711).

    sensitivity          share of frames with a lesion that are called
    overlap sensitivity  share of them whose call overlaps a lesion
    specificity          share of frames without a lesion that are not called
    latency              from the first frame that shows a lesion to the first call that overlaps it
    alert latency        ... to the first frame that shows it while the product is in state ALERT
    false run            consecutive called frames without a lesion, shown for 0.1, 0.5, 1, 2 s or
                         longer (Holzwanger et al. count such traces); uninformative frames end one
    false alert          an alert of the product during which no lesion can be seen
    an alert opens       at its first frame that reaches `enter`, and is shown from its first frame
                         in state ALERT on, once it has lasted for `min_duration_s`
    it is on a lesion    where its box, that of its peak, has its middle in the box of a lesion that
                         this frame shows; an alert without a box is on none

Uninformative frames are counted as not called, and left out, in figures side by side. Intervals are
of a bootstrap over videos; there is none for a single one.
"""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ccdstream import __version__
from ccdstream.bundle import PROGRAM, Bundle
from ccdstream.engine.base import Engine
from ccdstream.errors import DataError, OutputError, show_path
from ccdstream.report.coco import frame_name
from ccdstream.report.files import TextFile, Together, refuse_existing, write_text
from trainer.clips import Clip, check_size, watch
from trainer.coco import ground_truth, predictions
from trainer.items import counted
from trainer.metrics import auroc, average_precision, estimate, mean
from trainer.timeline import draw_timelines, runs_of
from trainer.truth import LINK_GAP_S, Truth, centred_in, find_truth, iou, no_truth, read_truth

T = TypeVar("T")

FORMAT = "ccdstream-video-evaluation"
FORMAT_VERSION = 1
TARGET_FPR = 0.045
"""Share of lesion-free frames that may be called at the matched operating point: TRUE-Colon's."""
PERSISTENCE_S = ("0.1", "0.5", "1", "2")
"""How long a false run must be shown at least, in seconds. Texts, for 0.1 is no binary fraction."""
FILES = ("evaluation.json", "frames.csv", "predictions.json", "ground_truth.json", "timeline.png")

Evaluation = dict[str, Any]
"""The document, in types that JSON holds; `evaluate` describes its keys."""
Progress = Callable[[int, int | None], None]
"""Called with (frames done, about how many there are in all)."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameScores:
    """A score for each frame of a clip, 0 for what cannot be called."""

    positive: np.ndarray
    """float64, frames with a lesion."""
    overlapping: np.ndarray
    """float64, the same frames; 0 where the call would overlap no lesion."""
    negative: np.ndarray
    """float64, frames without a lesion."""


@dataclass(frozen=True, slots=True)
class Lesion:
    """How one lesion was found. Seconds are of the recording's clock, latencies differences."""

    video: str
    lesion: str
    visible_frames: int
    detected_frames: int
    """Called, and the call overlaps this lesion."""
    whole_frame: int
    """Those of them in which nothing stands out, so that the call overlaps whatever is there."""
    first_visible_s: float
    first_detected_s: float | None
    latency_s: float | None
    """None: never detected."""
    first_alert_s: float | None
    alert_latency_s: float | None
    """None: no frame that shows it is in state ALERT."""
    called_before: bool
    """The frame before its first one was called already: its latency may be no merit."""


@dataclass(frozen=True, slots=True)
class AlertSeen:
    """An alert of the product. Seconds are of the recording's clock, `_after_s` since its first
    frame."""

    video: str
    number: int
    start_s: float
    end_s: float
    peak_s: float
    opens_after_s: float
    shown_after_s: float
    box: list[int] | None
    """[x, y, width, height] in frame pixels, at the peak; None where nothing stands out."""
    iou: float
    """With the lesion of the peak frame that the box overlaps most; 0 with none."""
    on_lesion: bool


def evaluate(
    videos: Sequence[Path],
    bundle: Bundle,
    engine: Engine,
    out: Path | None = None,
    *,
    batch: int = 4,
    resamples: int = 1000,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Run `bundle` over `videos` and measure it. Videos without a truth are named and left out.

    Args:
        engine: runs `bundle`.
        out: a folder for `FILES`; nothing is written if None.
        batch: frames in one call of the engine; the figures do not depend on it.
        resamples: of the bootstrap.
        overwrite: replace `FILES` that are there already.
        progress: told after every frame.

    Returns:
        What was measured on what: `format`, `format_version`, `created`, `version`, `bundle`,
        `engine`, `alert_rule`, `notes` [sentences], `videos` [{file, truth, lesions_by, width,
        height, average_rate, warnings, frames, called, uninformative, lesion_frames, lesions,
        alerts, whole_frame, seconds, lesion_free_s}], `counts` {videos and the numbers, over all};
        `whole_frame` counts called frames in which nothing stands out.
        `frames` {counted, left_out: {positive, negative, auroc, average_precision, at_enter,
        matched}}, where the last two are {threshold, sensitivity, overlap_sensitivity, specificity}
        and `counted`, `left_out` say what was done with uninformative frames.
        `lesions` {visible, detected, missed, called_before, alerted, detection_rate,
        detected_share, latency_s, alert_latency_s, each [`Lesion`]}; latencies are {median, q1,
        q3, n}, of the lesions that were found at all.
        `alerts` {count, on_lesion, each [`AlertSeen`]}.
        `false_alerts` {lesion_free_s, runs {seconds: {count, a_minute}}, product {alerts, count,
        a_minute, share_of_time}}.
        Figures are {value, low, high, n, videos}; null where there was nothing to measure.

    Raises:
        DataError: no video has a truth, or one does not fit its video.
        VideoOpenError, VideoDecodeError: a video cannot be read.
        EngineError: the engine failed, or gave values that are not finite.
        OutputError: a result is there already, or cannot be written.
    """
    if out is not None and not overwrite:
        for name in FILES:
            refuse_existing(out / name)
    truths = _truths(videos)
    hints = [check_size(video, truth) for video, truth in truths.items()]
    total = None if None in hints else sum(hint or 0 for hint in hints)
    done = 0

    def on_frame() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    clips = [
        watch(video, truth, bundle, engine, batch=batch, on_frame=on_frame)
        for video, truth in truths.items()
    ]
    enter = float(bundle.alert["enter"])
    lesions = [_lesions_of(clip, enter) for clip in clips]
    rows = [_counts(clip, len(found), enter) for clip, found in zip(clips, lesions, strict=True)]
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
        "alert_rule": dict(bundle.alert),
        "notes": _notes(videos, clips, enter),
        "counts": {key: sum(row[key] for row in rows) for key in rows[0]} | {"videos": len(clips)},
        "videos": [_about(clip) | row for clip, row in zip(clips, rows, strict=True)],
        "frames": {
            treatment: _frame_figures(
                [_frame_scores(clip, left_out=treatment == "left_out") for clip in clips],
                enter,
                resamples,
            )
            for treatment in ("counted", "left_out")
        },
        "lesions": _lesion_figures(lesions, resamples),
        "alerts": _alert_figures(clips),
        "false_alerts": _false_alert_figures(clips, enter, resamples),
    }
    if out is not None:
        _write(out, evaluation, clips, enter, overwrite)
    return evaluation


def table(evaluation: Evaluation) -> str:
    """The figures as lines of text for people."""
    bundle, engine = evaluation["bundle"], evaluation["engine"]
    counts, rule = evaluation["counts"], evaluation["alert_rule"]
    lines = [
        f"{bundle['model_id']} on {engine['name']} {engine['version']} ({engine['device']})",
        f"videos {counts['videos']} ({counts['seconds']:.1f} s), frames {counts['frames']}, "
        f"with a marked lesion {counts['lesion_frames']}, uninformative {counts['uninformative']}",
        "",
    ]

    def row(title: str, *values: str) -> None:
        lines.append(f"{title:<44}" + "".join(f"{value:<26}" for value in values).rstrip())

    row("", "uninformative counted", "left out")
    frames = [evaluation["frames"][treatment] for treatment in ("counted", "left_out")]
    for point, title in (
        ("at_enter", f"alert threshold {rule['enter']:g}"),
        ("matched", f"specificity {1 - TARGET_FPR:g} or more"),
    ):
        row(f"frames, {title}")
        for key in ("sensitivity", "overlap_sensitivity", "specificity"):
            row(f"  {key.replace('_', ' ')}", *(_percent(some[point][key]) for some in frames))
    for key, title in (("auroc", "frame AUROC"), ("average_precision", "frame average precision")):
        row(title, *(_text(some[key]) for some in frames))
    lines.append("")

    lesions = evaluation["lesions"]
    if lesions["visible"]:
        row("marked lesions pointed at", f"{lesions['detected']} of {lesions['visible']}")
        row("  share of their frames", _percent(lesions["detected_share"]))
        row("  latency", _latency(lesions["latency_s"]))
        row(
            "  called before they can be seen",
            f"{lesions['called_before']} of {lesions['visible']}",
        )
        row(
            "marked lesions in view during an alert",
            f"{lesions['alerted']} of {lesions['visible']}",
        )
        row("  alert latency", _latency(lesions["alert_latency_s"]))
    else:
        row("marked lesions", "none")
    lines.append("")

    alerts = evaluation["alerts"]
    row("alerts of the product", str(alerts["count"]))
    if alerts["count"]:
        row("  on a lesion", f"{alerts['on_lesion']} of {alerts['count']}")
    if alerts["count"] and counts["videos"] == 1:
        first = alerts["each"][0]
        row("  the first opens after", f"{first['opens_after_s']:.2f} s")
        row("  ... is shown after", f"{first['shown_after_s']:.2f} s")
        row("  ... box, IoU with a lesion", _place(first))
    lines.append("")

    false = evaluation["false_alerts"]
    if free_s := false["lesion_free_s"]:
        row("without a marked lesion", f"{free_s:.1f} s of stream")

        def rate(counts: Mapping[str, Any]) -> str:
            under = f", extrapolated from {free_s:.1f} s" if free_s < 60 else ""
            return f"{counts['count']}; {_text(counts['a_minute'], '.2f')} a minute{under}"

        for seconds, runs in false["runs"].items():
            row(f"  called for {seconds} s or longer", rate(runs))
        row("  alerts of the product", rate(false["product"]))
        row("  share of that time in state ALERT", _percent(false["product"]["share_of_time"]))
    else:
        row("without a marked lesion", "not measured: every frame shows a lesion")
    lines += ["", *evaluation["notes"]] if evaluation["notes"] else []
    lines += [
        "",
        "Called: an informative frame so unusual that its smoothed score reaches the threshold. "
        "Pointed at: called, and the hottest box meets the marked one at all (overlap, IoU > 0).",
        "On a lesion: the middle of the alert's box, at its peak, lies in a marked one. An alert "
        "is shown once it has lasted long enough.",
        f"The threshold for specificity {1 - TARGET_FPR:g} is fitted to the frames that it is "
        "reported on.",
        "In brackets: 95 % intervals over videos."
        if counts["videos"] > 1
        else "One video: no intervals.",
    ]
    return "\n".join(lines)


# -- what is measured -----------------------------------------------------------------------------


def _truths(videos: Sequence[Path]) -> dict[Path, Truth]:
    """The videos that have a truth, with it."""
    found = {video: path for video in videos if (path := find_truth(video)) is not None}
    if not found:
        raise no_truth(videos[0])
    stems: dict[str, Path] = {}
    for video in found:
        if (other := stems.setdefault(video.stem, video)) != video:
            raise DataError(
                f"{show_path(other)} and {show_path(video.name)} share their truth and the names "
                "of their frames. Rename one, and its truth."
            )
    return {video: read_truth(path) for video, path in found.items()}


def _about(clip: Clip) -> dict[str, Any]:
    return {
        "file": show_path(clip.video.name),
        "truth": show_path(clip.truth.path.name),
        "lesions_by": clip.truth.lesions_by,
        "width": clip.size[1],
        "height": clip.size[0],
        "average_rate": float(clip.average_rate),
        "warnings": list(clip.warnings),
    }


def _counts(clip: Clip, lesions: int, enter: float) -> dict[str, float]:
    called = clip.scores >= enter
    return {
        "frames": len(clip),
        "called": int(called.sum()),
        "uninformative": int((~clip.informative).sum()),
        "lesion_frames": int(clip.visible.sum()),
        "lesions": lesions,
        "alerts": len(clip.alerts),
        "whole_frame": sum(clip.regions[index] is None for index in np.flatnonzero(called)),
        "seconds": _shown_s(clip, np.ones(len(clip), bool)),
        "lesion_free_s": _shown_s(clip, ~clip.visible),
    }


def _shown_s(clip: Clip, frames: np.ndarray) -> float:
    """Stream time for which some frames, bool [T], are shown."""
    return float(int(clip.shown[frames].sum()) * clip.time_base)


def _frame_scores(clip: Clip, *, left_out: bool) -> FrameScores:
    """The scores of a clip's frames; uninformative ones count as 0, or are left out."""
    kept = clip.informative if left_out else np.ones(len(clip), bool)
    positive, negative = kept & clip.visible, kept & ~clip.visible
    overlapping = np.where(clip.overlapping, clip.scores, 0.0)
    return FrameScores(clip.scores[positive], overlapping[positive], clip.scores[negative])


def _frame_figures(
    clips: Sequence[FrameScores], enter: float, resamples: int
) -> dict[str, int | dict[str, Any] | None]:
    with_positive = [clip for clip in clips if len(clip.positive)]
    with_negative = [clip for clip in clips if len(clip.negative)]

    def ranked(statistic: Callable[[np.ndarray, np.ndarray], float]) -> dict[str, Any] | None:
        if not with_positive or not with_negative:
            return None
        return _figure(
            lambda some: statistic(_together(some, "negative"), _together(some, "positive")),
            clips,
            _together(clips, "negative").size + _together(clips, "positive").size,
            resamples,
            stratum=lambda clip: (len(clip.positive) > 0, len(clip.negative) > 0),
        )

    def share(name: str, some: Sequence[FrameScores], threshold: float) -> dict[str, Any] | None:
        return _figure(
            lambda drawn: float((_together(drawn, name) >= threshold).mean()),
            some,
            _together(some, name).size,
            resamples,
        )

    def point(threshold: float | None) -> dict[str, Any]:
        figures: dict[str, Any] = dict.fromkeys(
            ("threshold", "sensitivity", "overlap_sensitivity", "specificity")
        )
        if threshold is None:
            return figures
        called = share("negative", with_negative, threshold)
        return {
            "threshold": threshold,
            "sensitivity": share("positive", with_positive, threshold),
            "overlap_sensitivity": share("overlapping", with_positive, threshold),
            "specificity": called and _complement(called),
        }

    return {
        "positive": _together(clips, "positive").size,
        "negative": _together(clips, "negative").size,
        "auroc": ranked(auroc),
        "average_precision": ranked(average_precision),
        "at_enter": point(enter),
        "matched": point(matched_threshold(_together(clips, "negative"))),
    }


def matched_threshold(negative: np.ndarray, target: float = TARGET_FPR) -> float | None:
    """The lowest score of a lesion-free frame at which no more than `target` of them are called.

        tau* = min { t in negative, t > 0 : mean(negative >= t) <= target }

    TRUE-Colon's matched operating point, found by sorting once.

    Args:
        negative: float [N], scores of lesion-free frames.

    Returns:
        None where no score is that selective: too few frames, or the highest of them too often.
    """
    ordered = np.sort(negative)
    candidates = np.unique(ordered[ordered > 0])
    reached = len(ordered) - np.searchsorted(ordered, candidates, side="left")
    selective = candidates[reached / max(1, len(ordered)) <= target]
    return float(selective[0]) if len(selective) else None


def _lesions_of(clip: Clip, enter: float) -> list[Lesion]:
    """How each lesion of a clip was found, in the order in which they appear."""
    called = clip.scores >= enter
    shown: dict[str, list[int]] = {}
    detected: dict[str, list[int]] = {}
    for index, marks in enumerate(clip.lesions):
        for lesion in {name for name, _ in marks}:
            shown.setdefault(lesion, []).append(index)
        if called[index]:
            for lesion in clip.overlapped(index):
                detected.setdefault(lesion, []).append(index)

    def after(first: int, index: int | None) -> float | None:
        if index is None:
            return None
        return float(int(clip.pts[index] - clip.pts[first]) * clip.time_base)

    def at(index: int | None) -> float | None:
        return None if index is None else float(clip.seconds[index])

    found = []
    for lesion, frames in shown.items():
        first = frames[0]
        detections = detected.get(lesion, [])
        detection = detections[0] if detections else None
        alert = next((index for index in frames if clip.alerting[index]), None)
        found.append(
            Lesion(
                video=show_path(clip.video.name),
                lesion=lesion,
                visible_frames=len(frames),
                detected_frames=len(detections),
                whole_frame=sum(clip.regions[index] is None for index in detections),
                first_visible_s=float(clip.seconds[first]),
                first_detected_s=at(detection),
                latency_s=after(first, detection),
                first_alert_s=at(alert),
                alert_latency_s=after(first, alert),
                called_before=first > 0 and bool(called[first - 1]),
            )
        )
    return found


def _lesion_figures(clips: Sequence[Sequence[Lesion]], resamples: int) -> dict[str, Any]:
    lesions = [lesion for clip in clips for lesion in clip]

    def figure(
        statistic: Callable[[np.ndarray], float], value_of: Callable[[Lesion], float | None]
    ) -> dict[str, Any] | None:
        """A statistic of a value that lesions may have."""
        values = [[v for lesion in clip if (v := value_of(lesion)) is not None] for clip in clips]
        known = [some for some in values if some]
        return _figure(
            lambda drawn: statistic(np.concatenate(drawn)),
            known,
            sum(map(len, known)),
            resamples,
        )

    def latency(value_of: Callable[[Lesion], float | None]) -> dict[str, Any] | None:
        values = [v for lesion in lesions if (v := value_of(lesion)) is not None]
        if not values:
            return None
        low, high = np.quantile(values, (0.25, 0.75))
        median = figure(lambda some: float(np.median(some)), value_of)
        return {"median": median, "q1": float(low), "q3": float(high), "n": len(values)}

    detected = sum(lesion.detected_frames > 0 for lesion in lesions)
    return {
        "visible": len(lesions),
        "detected": detected,
        "missed": len(lesions) - detected,
        "called_before": sum(lesion.called_before for lesion in lesions),
        "alerted": sum(lesion.first_alert_s is not None for lesion in lesions),
        "detection_rate": figure(mean, lambda lesion: float(lesion.detected_frames > 0)),
        "detected_share": figure(
            mean, lambda lesion: lesion.detected_frames / lesion.visible_frames
        ),
        "latency_s": latency(lambda lesion: lesion.latency_s),
        "alert_latency_s": latency(lambda lesion: lesion.alert_latency_s),
        "each": [asdict(lesion) for lesion in lesions],
    }


def _alerts_of(clip: Clip) -> list[AlertSeen]:
    """The alerts of a clip, in order of time."""

    def after(pts: int) -> float:
        return float((pts - int(clip.pts[0])) * clip.time_base)

    found = []
    for alert in clip.alerts:
        during = (clip.pts >= alert.start_pts) & (clip.pts <= alert.end_pts)
        peak = clip.lesions[int(np.flatnonzero(clip.pts == alert.peak_pts)[0])]
        boxes = [box for _, box in peak]
        found.append(
            AlertSeen(
                video=show_path(clip.video.name),
                number=alert.number,
                start_s=alert.start_s,
                end_s=alert.end_s,
                peak_s=alert.peak_s,
                opens_after_s=after(alert.start_pts),
                # an alert is one since it was long enough: then its state was ALERT
                shown_after_s=after(int(clip.pts[during & clip.alerting][0])),
                box=list(alert.box) if alert.box else None,
                iou=max((iou(alert.box, box) for box in boxes if alert.box), default=0.0),
                on_lesion=any(centred_in(alert.box, box) for box in boxes if alert.box),
            )
        )
    return found


def _alert_figures(clips: Sequence[Clip]) -> dict[str, Any]:
    alerts = [alert for clip in clips for alert in _alerts_of(clip)]
    return {
        "count": len(alerts),
        "on_lesion": sum(alert.on_lesion for alert in alerts),
        "each": [asdict(alert) for alert in alerts],
    }


def false_runs(clip: Clip, threshold: float) -> list[Fraction]:
    """How long, in seconds, each run of called frames without a lesion is shown."""
    false = (clip.scores >= threshold) & ~clip.visible
    return [int(clip.shown[a : b + 1].sum()) * clip.time_base for a, b in runs_of(false)]


def _false_alert_figures(clips: Sequence[Clip], enter: float, resamples: int) -> dict[str, Any]:
    free = [clip for clip in clips if not clip.visible.all()]
    minutes = [_shown_s(clip, ~clip.visible) / 60 for clip in free]
    runs = [false_runs(clip, enter) for clip in free]
    false_alerts = [
        sum(_is_false(clip, a.start_pts, a.end_pts) for a in clip.alerts) for clip in free
    ]
    alerting = [_shown_s(clip, clip.alerting & ~clip.visible) / 60 for clip in free]

    def a_minute(counts: Sequence[float]) -> dict[str, Any] | None:
        return _figure(
            lambda drawn: float(np.sum(drawn, axis=0)[0] / np.sum(drawn, axis=0)[1]),
            list(zip(counts, minutes, strict=True)),
            sum(minutes),
            resamples,
        )

    lasting = {
        seconds: [sum(run >= Fraction(seconds) for run in some) for some in runs]
        for seconds in PERSISTENCE_S
    }
    return {
        "lesion_free_s": sum(minutes) * 60,
        "runs": {
            seconds: {"count": sum(counts), "a_minute": a_minute(counts)}
            for seconds, counts in lasting.items()
        },
        "product": {
            "alerts": sum(len(clip.alerts) for clip in clips),
            "count": sum(false_alerts),
            "a_minute": a_minute(false_alerts),
            "share_of_time": a_minute(alerting),
        },
    }


def _is_false(clip: Clip, start_pts: int, end_pts: int) -> bool:
    """Whether no frame between two times, both included, shows a lesion."""
    during = (clip.pts >= start_pts) & (clip.pts <= end_pts)
    return not clip.visible[during].any()


def _figure(
    statistic: Callable[[Sequence[T]], float],
    clips: Sequence[T],
    n: float,
    resamples: int,
    *,
    stratum: Callable[[T], object] = lambda _: None,
) -> dict[str, Any] | None:
    """A statistic of clips, with the 95 % interval of a bootstrap that draws whole clips.

    Args:
        n: how much it rests on: frames, lesions, or minutes.
        stratum: clips are drawn among their like, so that no resample lacks a kind of frame.

    Returns:
        {value, low, high, n, videos}; None without clips.
    """
    if not clips:
        return None
    strata: dict[object, list[int]] = {}
    for index, clip in enumerate(clips):
        strata.setdefault(stratum(clip), []).append(index)
    found = estimate(
        lambda *drawn: statistic([clips[int(index)] for index in np.concatenate(drawn)]),
        *((np.array(members), list(map(str, members))) for members in strata.values()),
        resamples=resamples,
    )
    return asdict(found) | {"n": n, "videos": len(clips)}


def _complement(figure: Mapping[str, Any]) -> dict[str, Any]:
    """The figure of 1 - value."""
    low, high = figure["low"], figure["high"]
    return {
        **figure,
        "value": 1 - figure["value"],
        "low": None if high is None else 1 - high,
        "high": None if low is None else 1 - low,
    }


def _together(clips: Sequence[FrameScores], name: str) -> np.ndarray:
    """One array of all clips."""
    return np.concatenate([np.zeros(0), *(getattr(clip, name) for clip in clips)])


def _notes(videos: Sequence[Path], clips: Sequence[Clip], enter: float) -> list[str]:
    notes = []
    measured = {clip.video for clip in clips}
    if without := [show_path(video.name) for video in videos if video not in measured]:
        notes.append(f"Left out, for there is no truth beside them: {', '.join(without)}.")
    if any(clip.truth.lesions_by == "scene" for clip in clips):
        notes.append("A sample of ccdstream is rendered: its figures are no evidence of accuracy.")
    if linked := [clip for clip in clips if clip.truth.lesions_by == "place"]:
        count = len(
            {(clip.video, name) for clip in linked for marks in clip.lesions for name, _ in marks}
        )
        notes.append(
            f"{counted(count, 'lesion')} without a name in the truth, told apart by place: a box "
            f"near one of the last {LINK_GAP_S:g} s is the same lesion."
        )
    if whole := sum(
        clip.regions[index] is None
        for clip in clips
        for index in np.flatnonzero((clip.scores >= enter) & clip.visible)
    ):
        notes.append(
            f"{counted(whole, 'called frame')} with a lesion where no place stands out: the call "
            "points at the whole frame, which overlaps every lesion."
        )
    notes += [f"{show_path(clip.video.name)}: {w}." for clip in clips for w in clip.warnings]
    return notes


# -- what is written ------------------------------------------------------------------------------


def _text(figure: Mapping[str, Any] | None, form: str = ".3f") -> str:
    return "not measured" if figure is None else _with_interval(figure, 1, form, "")


def _percent(figure: Mapping[str, Any] | None) -> str:
    return "not measured" if figure is None else _with_interval(figure, 100, ".1f", " %")


def _with_interval(figure: Mapping[str, Any], factor: float, form: str, unit: str) -> str:
    text = f"{factor * figure['value']:{form}}{unit}"
    if figure["low"] is None:
        return text
    return f"{text} ({factor * figure['low']:{form}}-{factor * figure['high']:{form}})"


def _place(alert: Mapping[str, Any]) -> str:
    if alert["box"] is None:
        return "none, the whole frame is unusual"
    x, y, width, height = alert["box"]
    where = "on a lesion" if alert["on_lesion"] else "beside"
    return f"{width}x{height} at ({x}, {y}), {alert['iou']:.2f}, {where}"


def _latency(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "not measured"
    return (
        f"median {_text(figure['median'], '.2f')} s, quartiles {figure['q1']:.2f} and "
        f"{figure['q3']:.2f} s, of {figure['n']}"
    )


_COLUMNS = (
    *("frame", "video", "number", "pts", "seconds", "raw", "calibrated", "smoothed"),
    *("informative", "alerting", "called", "x", "y", "width", "height", "lesions", "overlapped"),
)
"""Of frames.csv: `frame` as in the COCO files; the box where the frame is hottest, empty where
nothing stands out; the lesions that it shows, and those that the box overlaps, joined with ";"."""


def _write(
    out: Path, evaluation: Evaluation, clips: Sequence[Clip], enter: float, overwrite: bool
) -> None:
    """All of `FILES`, or none."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {show_path(out)}: {error.strerror}. Choose another --output."
        ) from error
    with Together(overwrite=overwrite) as results:
        places = {name: results.place(out / name) for name in FILES}
        for name, document in (
            ("evaluation.json", evaluation),
            ("predictions.json", predictions(clips)),
            ("ground_truth.json", ground_truth(clips)),
        ):
            indent = 2 if name == "evaluation.json" else None
            write_text(places[name], json.dumps(document, indent=indent, allow_nan=False) + "\n")
        with TextFile(places["frames.csv"]) as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(_COLUMNS)
            for clip in clips:
                rows.writerows(_row(clip, index, enter) for index in range(len(clip)))
        draw_timelines(places["timeline.png"], clips, enter)


def _row(clip: Clip, index: int, enter: float) -> list[object]:
    raw, calibrated = float(clip.raw[index]), float(clip.calibrated[index])
    return [
        frame_name(clip.video.stem, index),
        show_path(clip.video.name),
        index,
        int(clip.pts[index]),
        f"{clip.seconds[index]:.6f}",
        f"{raw:.9g}" if math.isfinite(raw) else "",
        f"{calibrated:.6f}" if math.isfinite(calibrated) else "",
        f"{clip.smoothed[index]:.6f}",
        int(clip.informative[index]),
        int(clip.alerting[index]),
        int(clip.scores[index] >= enter),
        *(clip.regions[index] or ("",) * 4),
        ";".join(name for name, _ in clip.lesions[index]),
        ";".join(sorted(clip.overlapped(index))),
    ]
