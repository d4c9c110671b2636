"""Chooses when alerts open and close, on pseudo-videos of the normal calibration stills.

    python tools/tune_alerts.py BUNDLE DATA [--hours 1] [--rate 25] [--scores FILE] [--out FILE]

The stills are halved by near-duplicate group. Of each half `trainer.pseudo_video` makes streams
without lesions, `--hours` in both halves together, and half as much again in which lesions are
pasted into every other still. The bundle scores each frame once (kept in `--scores`, and taken from
there next time). Then every setting of a grid is replayed through the runtime's own `Fuser` and
`AlertTracker`. The rule, fixed before any figure was seen:

    Among the settings with at most 0.5 false alerts a minute that last 0.5 s or longer, and at
    most 1 a minute of any length, on one half of the stills, take the one with the least lost time;
    of equals the one with fewer false alerts, then the one that comes first in the grid. The other
    half is what is reported. Where no setting is that quiet, take the quietest.

A passage is a stretch of a shot in which at least 25 % of the lesion is in view, from the first
frame on that nothing disturbs, of 0.5 s or longer. Its delay runs from there to the first frame
that is in state ALERT, as the overlay shows it; the lost time is the mean delay, where a delay
counts as 1 s at most and a miss as 1 s.

What this does not cover: the bundle's fractions were calibrated on all of these stills, so both
halves are a little too quiet; pasted lesions are no polyps; cuts every 2-6 s are more than a
recording has, and there is no parallax, stool or tool (see `trainer.pseudo_video`).
"""

import argparse
import hashlib
import importlib
import itertools
import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ccdstream import sample
from ccdstream.alert import Alert, AlertRule, AlertTracker, Observation, Region, hottest_region
from ccdstream.bundle import Bundle, load_bundle
from ccdstream.engine.base import Engine
from ccdstream.engine.select import open_engine
from ccdstream.errors import CcdstreamError, DataError, OutputError, show_path
from ccdstream.frames import VIEW_SIZE, Scored
from ccdstream.fuse import Calibration, Fuser
from ccdstream.packaged import find_model
from ccdstream.pipeline import Looker
from ccdstream.quality import QualityLimits, flags, measure
from ccdstream.report.files import Together, refuse_existing, write_text
from ccdstream.score import Scorer
from ccdstream.view import Profile, whole_frame
from trainer import pseudo_video
from trainer.data import content_hash, find_data, read_image
from trainer.items import Item
from trainer.metrics import Estimate, estimate
from trainer.pseudo_video import DISTURBANCES, Paste, Still, film, make_still
from trainer.truth import Box, centred_in

MOST_FALSE_A_MINUTE = 0.5
"""Of those that last `LASTING_S`: half of what the product may have, for these stills are few."""
MOST_ALERTS_A_MINUTE = 1.0
"""Of any length."""
LASTING_S = 0.5
VISIBLE = 0.25
PASSAGE_S = 0.5
LOST_AT_MOST_S = 1.0
AT_ONCE_S = 0.25
STREAM_S = 60.0
HALVES = ("choosing", "reporting")
FLAGS = ("blurred", "washed_out", "too_dark", "out_of_body", "mostly_invalid")
KINDS = tuple(DISTURBANCES)
_BATCH = 8
_NOWHERE = (-1, -1, 0, 0)

GRID: dict[str, tuple[float, ...]] = {
    "time_constant_s": (0.0, 0.1, 0.2, 0.4),
    "enter": (0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 0.998),
    "leave": (1.0, 1.5, 2.0, 4.0),
    "min_duration_s": (0.0, 0.12, 0.2, 0.32, 0.5),
    "merge_gap_s": (0.3, 1.0, 2.0),
}
"""`leave` is given by how many times as many normal frames reach it as reach `enter`."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a bundle's `alert` holds, without the refractory time."""

    time_constant_s: float
    enter: float
    leave: float
    min_duration_s: float
    merge_gap_s: float

    @property
    def rule(self) -> AlertRule:
        """Its part for the tracker."""
        return AlertRule(self.enter, self.leave, self.min_duration_s, self.merge_gap_s, 0.0)


def settings(grid: Mapping[str, Sequence[float]] | None = None) -> list[Setting]:
    """Every setting of a grid, `GRID` if none is given, in its order."""
    grid = GRID if grid is None else grid
    found = []
    for values in itertools.product(*(grid[field.name] for field in fields(Setting))):
        time_constant_s, enter, times, min_duration_s, merge_gap_s = values
        leave = round(1 - (1 - enter) * times, 6)
        found.append(Setting(time_constant_s, enter, leave, min_duration_s, merge_gap_s))
    return found


# -- scores ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stream:
    """What the bundle said of the T frames of one pseudo-video, and what they show."""

    half: int
    """Of the stills: an index of `HALVES`."""
    lesions: bool
    seconds: np.ndarray
    """float64 [T]."""
    raw: np.ndarray
    """float64 [T]."""
    flags: np.ndarray
    """bool [T, 5], by `FLAGS`."""
    hot: np.ndarray
    """int64 [T, 4], (x, y, width, height) of the hottest region in the view; x is -1 for none."""
    still: np.ndarray
    """int64 [T], which of all stills."""
    shot: np.ndarray
    """int64 [T]."""
    visible: np.ndarray
    """float64 [T], share of the lesion."""
    lesion: np.ndarray
    """int64 [T, 4], its box in the view; x is -1 for none."""
    disturbed: np.ndarray
    """bool [T, 6], by `KINDS`."""
    clear: np.ndarray
    """bool [T]: nothing disturbs at all."""


def score_stream(
    bundle: Bundle,
    engine: Engine,
    stills: Mapping[int, Still],
    rng: np.random.Generator,
    *,
    half: int,
    seconds: float,
    rate: float,
    paste: Paste | None,
) -> Stream:
    """Make a pseudo-video of some stills and score every frame of it.

    Args:
        stills: by their number among all.
        paste: puts lesions into every other still; None: no lesions.
    """
    limits = QualityLimits.from_dict(bundle.quality)
    heat = Calibration.from_dict(bundle.calibration["map"])
    scorer = Scorer(engine)
    field = whole_frame(VIEW_SIZE)
    numbers = list(stills)
    profile = Profile.from_dict(bundle.profile)
    frames = film(list(stills.values()), profile, rng, seconds=seconds, rate=rate, paste=paste)
    rows: list[dict[str, Any]] = []
    while batch := list(itertools.islice(frames, _BATCH)):
        scored = scorer.score([frame.view for frame in batch])
        for frame, score in zip(batch, scored, strict=True):
            found = flags(measure(frame.view), limits, frame.view.valid_fraction)
            region = hottest_region(heat.apply(score.anomaly_map).astype(np.float32), field)
            rows.append(
                {
                    "seconds": frame.seconds,
                    "raw": score.raw,
                    "flags": [name in found for name in FLAGS],
                    "hot": region.box if region else _NOWHERE,
                    "still": numbers[frame.still],
                    "shot": frame.shot,
                    "visible": frame.lesion_visible,
                    "lesion": frame.lesion_box or _NOWHERE,
                    "disturbed": [kind in frame.disturbances for kind in KINDS],
                    "clear": frame.clear,
                }
            )
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return Stream(half, paste is not None, **columns)


def halves_of(items: Sequence[Item], seed: int) -> list[list[int]]:
    """The numbers of the items of either half; a group lies in one of them.

    Raises:
        DataError: there is one group only.
    """
    groups = sorted({item.group for item in items})
    if len(groups) < 2:
        raise DataError(
            "the calibration stills are one near-duplicate group; expected two or more, to choose "
            "on one half and report on the other. Add normal stills."
        )
    order = np.random.default_rng(seed).permutation(len(groups))
    half = {groups[group]: place % 2 for place, group in enumerate(order)}
    return [[n for n, item in enumerate(items) if half[item.group] == side] for side in (0, 1)]


def score_all(
    bundle: Bundle,
    engine: Engine,
    items: Sequence[Item],
    *,
    hours: float,
    rate: float,
    seed: int,
    paste: Paste,
    say: Callable[[str], None],
) -> list[Stream]:
    """All streams of both halves.

    Raises:
        DataError: a still cannot be read, or is a frame of a recording.
        EngineError: the engine failed.
    """
    profile = Profile.from_dict(bundle.profile)
    stills = {}
    for number, item in enumerate(items):
        image = read_image(item.path) if item.pts is None else None
        if image is None:
            raise DataError(
                f"{show_path(item.path)} is no still that can be read. Pseudo-videos are made from "
                "stills: give a data set of images."
            )
        stills[number] = make_still(image, profile)
    plan = [
        (half, lesions, number)
        for half in (0, 1)
        for lesions, share in ((False, 1 / 2), (True, 1 / 4))
        for number in range(max(1, round(hours * share * 3600 / STREAM_S)))
    ]
    sides = halves_of(items, seed)
    streams = []
    for done, (half, lesions, number) in enumerate(plan, start=1):
        streams.append(
            score_stream(
                bundle,
                engine,
                {n: stills[n] for n in sides[half]},
                np.random.default_rng([seed, half, lesions, number]),
                half=half,
                seconds=min(STREAM_S, hours * 3600),
                rate=rate,
                paste=paste if lesions else None,
            )
        )
        say(f"stream {done} of {len(plan)}")
    return streams


def save_streams(path: Path, key: str, streams: Sequence[Stream]) -> None:
    """Write scores to one file, whole or not at all; what is there is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    arrays: dict[str, Any] = {"key": np.array(key), "streams": np.array(len(streams))}
    for number, stream in enumerate(streams):
        arrays |= {
            f"{number}.{field.name}": np.asarray(getattr(stream, field.name))
            for field in fields(Stream)
        }
    with Together(overwrite=True) as files:
        place = files.place(path)
        try:
            with place.open("wb") as file:
                np.savez_compressed(file, **arrays)
        except OSError as error:
            raise OutputError(f"cannot write {show_path(path)}: {error.strerror}.") from error


def load_streams(path: Path, key: str) -> list[Stream] | None:
    """The scores in a file; None where it is of another bundle, data or length.

    Raises:
        DataError: it holds no scores.
    """
    try:
        with np.load(path) as arrays:
            if str(arrays["key"]) != key:
                return None
            return [
                Stream(
                    half=int(arrays[f"{number}.half"]),
                    lesions=bool(arrays[f"{number}.lesions"]),
                    **{
                        field.name: arrays[f"{number}.{field.name}"]
                        for field in fields(Stream)
                        if field.name not in ("half", "lesions")
                    },
                )
                for number in range(int(arrays["streams"]))
            ]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{show_path(path)} holds no scores ({type(error).__name__}). Remove it, or name "
            "another file."
        ) from error


# -- replay ---------------------------------------------------------------------------------------


def replay(stream: Stream, calibration: Calibration, time_constant_s: float) -> list[Observation]:
    """What the tracker would get, by the runtime's own fuser."""
    fuser = Fuser(calibration, calibration, time_constant_s)
    nothing = np.zeros((1, 1), np.float32)
    observations = []
    for index, (seconds, raw) in enumerate(zip(stream.seconds, stream.raw, strict=True)):
        quality = tuple(np.array(FLAGS)[stream.flags[index]]) if stream.flags[index].any() else ()
        scored = Scored(float(raw), nothing[0], nothing)
        fused = fuser.update(float(seconds), 1.0, scored, quality)
        observations.append(
            Observation(
                float(seconds), index, fused.smoothed, fused.raw, fused.informative, _no_region
            )
        )
    return observations


def _no_region() -> Region | None:
    return None


def telling(observations: Sequence[Observation], leave: float) -> list[Observation]:
    """Without the frames that change nothing for any rule that leaves at `leave` or above.

    Of a run of informative frames below `leave` the first two and the last are enough: they pass
    the time. A grid is several times as quick without the others.
    """
    quiet = [each.informative and each.score < leave for each in observations]
    return [
        each
        for index, each in enumerate(observations)
        if not (
            quiet[index]
            and index >= 2
            and quiet[index - 1]
            and quiet[index - 2]
            and index + 1 < len(quiet)
            and quiet[index + 1]
        )
    ]


@dataclass(frozen=True, slots=True)
class Watched:
    """What a rule makes of a stream."""

    alerts: list[Alert]
    alerting: list[int]
    """Indices of the frames in state ALERT, in order."""


def watch(observations: Sequence[Observation], rule: AlertRule) -> Watched:
    """Run the runtime's tracker."""
    tracker = AlertTracker(rule, model="tuned")
    alerts, alerting = [], []
    for observation in observations:
        alerts += tracker.update(observation)
        if tracker.state == "ALERT":
            alerting.append(observation.pts)
    return Watched(alerts + tracker.finish(), alerting)


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of frames in which a lesion can be seen."""

    first: int
    last: int


def passages(stream: Stream) -> list[Passage]:
    """The passages of a stream, as the module's docstring defines them."""
    found = []
    seen = stream.visible >= VISIBLE
    changes = np.flatnonzero((np.diff(seen) != 0) | (np.diff(stream.shot) != 0)) + 1
    for start, end in itertools.pairwise([0, *changes.tolist(), len(seen)]):
        undisturbed = np.flatnonzero(~stream.disturbed[start:end].any(axis=1))
        if not seen[start] or not len(undisturbed):
            continue
        first, last = start + int(undisturbed[0]), end - 1
        if stream.seconds[last] - stream.seconds[first] >= PASSAGE_S:
            found.append(Passage(first, last))
    return found


@dataclass(frozen=True, slots=True)
class Found:
    """How a passage was found."""

    still: int
    delay_s: float | None
    """To the first frame in state ALERT; None: there is none."""
    start_delay_s: float | None
    """To the start that the alert tells, its first frame at `enter`."""
    alerts: int
    """How many share frames with it."""
    before: bool
    """The frame before it was in state ALERT already."""
    points: bool
    """On the first frame in state ALERT, the middle of the hottest region is in the lesion's
    box."""


def finds(stream: Stream, watched: Watched) -> list[Found]:
    """How the passages of a stream were found."""
    alerting = np.array(watched.alerting, int)
    found = []
    for passage in passages(stream):
        first, last = passage.first, passage.last
        inside = alerting[(alerting >= first) & (alerting <= last)]
        meeting = [a for a in watched.alerts if a.start_pts <= last and a.end_pts >= first]
        onset_s = float(stream.seconds[first])
        seen = int(inside[0]) if len(inside) else None
        found.append(
            Found(
                still=int(stream.still[first]),
                delay_s=None if seen is None else float(stream.seconds[seen]) - onset_s,
                start_delay_s=max(0.0, meeting[0].start_s - onset_s) if meeting else None,
                alerts=len(meeting),
                before=bool((alerting == first - 1).any()),
                points=seen is not None and _points(stream, seen),
            )
        )
    return found


def _points(stream: Stream, index: int) -> bool:
    hot: Box = tuple(stream.hot[index].tolist())
    lesion: Box = tuple(stream.lesion[index].tolist())
    return hot[0] >= 0 and lesion[0] >= 0 and centred_in(hot, lesion)


# -- figures --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figures:
    """How a setting does on one half of the stills."""

    minutes: float
    """Of streams without lesions."""
    false: int
    """Alerts there that last `LASTING_S` or longer."""
    false_any: int
    """Alerts there."""
    passages: int
    found: int
    delay_median_s: float
    """Of those that were found; NaN where none was."""
    delay_90_s: float
    start_delay_median_s: float
    at_once: float
    """Share of all passages with a delay of at most `AT_ONCE_S`."""
    before: float
    """Share of the found ones that were in state ALERT before."""
    points: float
    """Share of the found ones that are pointed at."""
    alerts_a_passage: float
    """Of the found ones."""
    lost_s: float

    @property
    def false_a_minute(self) -> float:
        """Those that last."""
        return self.false / self.minutes

    @property
    def false_any_a_minute(self) -> float:
        """All of them."""
        return self.false_any / self.minutes

    @property
    def quiet(self) -> bool:
        """Whether the rule may take it."""
        return (
            self.false_a_minute <= MOST_FALSE_A_MINUTE
            and self.false_any_a_minute <= MOST_ALERTS_A_MINUTE
        )


@dataclass(frozen=True, eq=False)
class Measured:
    """What a setting does on one half, before it is summed up."""

    false: list[tuple[int, float]]
    """(still, seconds) of each alert without a lesion."""
    shown_s: Mapping[int, float]
    """How long each still is shown without a lesion."""
    found: list[Found]

    def figures(self) -> Figures:
        """The sums."""
        delays = [each.delay_s for each in self.found if each.delay_s is not None]
        starts = [each.start_delay_s for each in self.found if each.start_delay_s is not None]
        hits = [each for each in self.found if each.delay_s is not None]
        lost = [
            LOST_AT_MOST_S if each.delay_s is None else min(each.delay_s, LOST_AT_MOST_S)
            for each in self.found
        ]
        return Figures(
            minutes=sum(self.shown_s.values()) / 60,
            false=sum(seconds >= LASTING_S for _, seconds in self.false),
            false_any=len(self.false),
            passages=len(self.found),
            found=len(hits),
            delay_median_s=_quantile(delays, 0.5),
            delay_90_s=_quantile(delays, 0.9),
            start_delay_median_s=_quantile(starts, 0.5),
            at_once=_share([d is not None and d <= AT_ONCE_S for d in _delays(self.found)]),
            before=_share([each.before for each in hits]),
            points=_share([each.points for each in hits]),
            alerts_a_passage=_share([each.alerts for each in hits]),
            lost_s=_share(lost),
        )


def _delays(found: Sequence[Found]) -> list[float | None]:
    return [each.delay_s for each in found]


def _quantile(values: Sequence[float], at: float) -> float:
    return float(np.quantile(values, at)) if values else float("nan")


def _share(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def measure_setting(
    streams: Sequence[Stream], observed: Sequence[Sequence[Observation]], rule: AlertRule
) -> Measured:
    """What a rule does on some streams, given what their trackers get."""
    false: list[tuple[int, float]] = []
    found: list[Found] = []
    shown_s: dict[int, float] = {}
    for stream, observations in zip(streams, observed, strict=True):
        watched = watch(observations, rule)
        if stream.lesions:
            found += finds(stream, watched)
            continue
        false += [(int(stream.still[a.start_pts]), a.duration_s) for a in watched.alerts]
        # every frame is shown as long as the others
        frame_s = float(stream.seconds[-1]) / max(1, len(stream.seconds) - 1)
        for still, count in zip(*np.unique(stream.still, return_counts=True), strict=True):
            shown_s[int(still)] = shown_s.get(int(still), 0.0) + count * frame_s
    return Measured(false, shown_s, found)


def measure_grid(
    streams: Sequence[Stream], calibration: Calibration, grid: Sequence[Setting]
) -> list[Measured]:
    """What every setting does, in order."""
    lowest = min(setting.leave for setting in grid)
    observed: dict[float, list[list[Observation]]] = {}
    for time_constant_s in dict.fromkeys(setting.time_constant_s for setting in grid):
        observed[time_constant_s] = [
            telling(replay(stream, calibration, time_constant_s), lowest) for stream in streams
        ]
    return [
        measure_setting(streams, observed[setting.time_constant_s], setting.rule)
        for setting in grid
    ]


def choose(figures: Sequence[Figures]) -> int:
    """Which setting the rule of the module's docstring takes."""
    quiet = [index for index, each in enumerate(figures) if each.quiet]
    if not quiet:
        return min(
            range(len(figures)), key=lambda index: (figures[index].false, figures[index].false_any)
        )
    return min(quiet, key=lambda index: (figures[index].lost_s, figures[index].false_any, index))


def intervals(measured: Measured, groups: Sequence[str]) -> dict[str, Estimate]:
    """95 % intervals of a bootstrap over the near-duplicate groups of stills."""
    stills = sorted(measured.shown_s)

    def a_minute(least_s: float) -> Estimate:
        counts = {still: 0 for still in stills}
        for still, seconds in measured.false:
            counts[still] += seconds >= least_s
        values = np.array([(counts[still], measured.shown_s[still] / 60) for still in stills])
        return estimate(
            lambda some: float(some[:, 0].sum() / some[:, 1].sum()),
            (values, [groups[still] for still in stills]),
        )

    found = {"false_a_minute": a_minute(LASTING_S), "false_any_a_minute": a_minute(0.0)}
    if measured.found:
        of = [groups[each.still] for each in measured.found]
        delays = np.array([np.inf if d is None else d for d in _delays(measured.found)])
        found["found"] = estimate(lambda some: float(np.isfinite(some).mean()), (delays, of))
        found["at_once"] = estimate(lambda some: float((some <= AT_ONCE_S).mean()), (delays, of))
        if np.isfinite(delays).all() or np.isfinite(delays).mean() > 0.6:
            found["delay_median_s_misses_last"] = estimate(
                lambda some: float(np.median(some)), (delays, of)
            )
    return found


# -- the gate -------------------------------------------------------------------------------------


def gate(streams: Sequence[Stream]) -> dict[str, dict[str, float]]:
    """Share of frames that each flag takes, and any: by what disturbs them alone, and of those
    that nothing disturbs."""
    together = {
        name: np.concatenate([getattr(stream, name) for stream in streams])
        for name in ("flags", "disturbed", "clear")
    }
    alone = together["disturbed"].sum(axis=1) == 1
    rows: dict[str, np.ndarray] = {"undisturbed": together["clear"]}
    rows |= {kind: alone & together["disturbed"][:, n] for n, kind in enumerate(KINDS)}
    return {
        name: {
            "frames": int(chosen.sum()),
            "any": _share(together["flags"][chosen].any(axis=1).tolist()),
            **{flag: _share(together["flags"][chosen, n].tolist()) for n, flag in enumerate(FLAGS)},
        }
        for name, chosen in rows.items()
    }


def gate_on_sample(bundle: Bundle, seconds: float = 40.0) -> dict[str, dict[str, float]]:
    """The same by kind of scene, of the rendered colon of `ccdstream sample`."""
    look = Looker(bundle)
    found: dict[str, list[tuple[str, ...]]] = {}
    for frame, truth in sample.frames(sample.SampleOptions(seconds=seconds, lesions=False)):
        found.setdefault(truth.kind, []).append(look(frame).quality)
    return {
        kind: {
            "frames": len(rows),
            "any": _share([bool(row) for row in rows]),
            **{flag: _share([flag in row for row in rows]) for flag in FLAGS},
        }
        for kind, rows in found.items()
    }


# -- the program ----------------------------------------------------------------------------------


def table_of_gate(title: str, rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """A Markdown table of `gate`."""
    yield f"| {title} | frames | any flag | {' | '.join(FLAGS)} |"
    yield "| --- " * (3 + len(FLAGS)) + "|"
    for name, row in rows.items():
        shares = " | ".join(f"{100 * row[key]:.1f} %" for key in ("any", *FLAGS))
        yield f"| {name} | {row['frames']:g} | {shares} |"


_HEAD = (
    "tau s | enter | leave | least s | merge s | false a min | of any length | found | at once | "
    "delay s, median, 90 % | start s | alerts each | points | lost s"
)


def row_of(setting: Setting, figures: Figures) -> str:
    """A row of the table of settings."""
    return (
        f"{setting.time_constant_s:g} | {setting.enter:g} | {setting.leave:g} | "
        f"{setting.min_duration_s:g} | {setting.merge_gap_s:g} | {figures.false_a_minute:.2f} | "
        f"{figures.false_any_a_minute:.2f} | {figures.found}/{figures.passages} | "
        f"{100 * figures.at_once:.0f} % | {figures.delay_median_s:.2f}, {figures.delay_90_s:.2f} | "
        f"{figures.start_delay_median_s:.2f} | {figures.alerts_a_passage:.2f} | "
        f"{100 * figures.points:.0f} % | {figures.lost_s:.3f}"
    )


def with_interval(name: str, found: Estimate) -> str:
    """A figure and its interval on a line."""
    if found.low is None or found.high is None:
        return f"{name} {found.value:.3f}"
    return f"{name} {found.value:.3f} ({found.low:.3f}-{found.high:.3f})"


def key_of(bundle: Bundle, items: Sequence[Item], **options: Any) -> str:
    """Changes with everything that scores depend on."""
    parts = [
        bundle.model_id,
        json.dumps([bundle.profile, bundle.quality, bundle.calibration["map"]], sort_keys=True),
        content_hash(items),
        hashlib.sha256(Path(pseudo_video.__file__).read_bytes()).hexdigest(),
        json.dumps(options, sort_keys=True),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def find_paste(name: str) -> Paste:
    """The function MODULE:NAME that pastes lesions.

    Raises:
        DataError: there is none.
    """
    module, _, function = name.partition(":")
    try:
        paste: Paste = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(
            f"there is no {name} that pastes lesions ({error}). Give MODULE:FUNCTION, such as "
            "trainer.relief:render_lesion."
        ) from error
    return paste


def tune(arguments: argparse.Namespace) -> None:
    """Score or load, then choose and report."""
    if arguments.out is not None:
        refuse_existing(arguments.out)
    bundle = load_bundle(find_model(arguments.bundle).path)
    items = find_data(arguments.data).calibration
    options = {name: getattr(arguments, name) for name in ("hours", "rate", "seed", "lesion")}
    key = key_of(bundle, items, **options)
    streams = None
    if arguments.scores is not None and arguments.scores.exists():
        streams = load_streams(arguments.scores, key)
    if streams is None:
        paste = find_paste(arguments.lesion)
        engine = open_engine(bundle, device="cpu", threads=arguments.threads)
        streams = score_all(
            bundle,
            engine,
            items,
            hours=arguments.hours,
            rate=arguments.rate,
            seed=arguments.seed,
            paste=paste,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        if arguments.scores is not None:
            save_streams(arguments.scores, key, streams)

    calibration = Calibration.from_dict(bundle.calibration["score"])
    names = [field.name for field in fields(Setting)]
    shipped = Setting(**{name: float(bundle.alert[name]) for name in names})
    grid = [shipped, *settings()]
    sides = [[stream for stream in streams if stream.half == half] for half in (0, 1)]
    measured = measure_grid(sides[0], calibration, grid)
    figures = [each.figures() for each in measured]
    chosen = choose(figures)
    best = sorted(range(len(grid)), key=lambda index: (figures[index].lost_s, index))
    quiet = [index for index in best if figures[index].quiet]
    shown = list(dict.fromkeys([0, chosen, *quiet[: arguments.top]]))
    reported = measure_grid(sides[1], calibration, [grid[index] for index in shown])
    groups = [item.group for item in items]

    print(f"{bundle.model_id}, {show_path(arguments.data)}: {len(items)} stills, {options}\n")
    print("\n".join(table_of_gate("disturbed by", gate(streams))))
    if arguments.sample_seconds:
        rows = gate_on_sample(bundle, arguments.sample_seconds)
        print()
        print("\n".join(table_of_gate("scene of ccdstream sample", rows)))
    for half, results in enumerate(
        ([figures[index] for index in shown], [each.figures() for each in reported])
    ):
        minutes = results[0].minutes
        print(f"\n{HALVES[half]}, {minutes:.1f} min without lesions: as shipped, chosen, next best")
        print(f"| {_HEAD} |\n{'| --- ' * (_HEAD.count('|') + 1)}|")
        for index, row in zip(shown, results, strict=True):
            print(f"| {row_of(grid[index], row)} |")
    if not figures[chosen].quiet:
        print("\nNo setting is quiet enough: the quietest was taken.")
    found = intervals(reported[shown.index(chosen)], groups)
    print(f"\nchosen: {json.dumps(asdict(grid[chosen]))}")
    for name, each in found.items():
        print(f"  {HALVES[1]}: {with_interval(name, each)}")
    if arguments.out is not None:
        document = {
            "bundle": bundle.model_id,
            "options": options,
            "chosen": asdict(grid[chosen]),
            "choosing": [
                {"setting": asdict(s), "figures": asdict(f)}
                for s, f in zip(grid, figures, strict=True)
            ],
            "reporting": [
                {"setting": asdict(grid[index]), "figures": asdict(each.figures())}
                for index, each in zip(shown, reported, strict=True)
            ],
            "intervals": {name: asdict(each) for name, each in found.items()},
            "gate": gate(streams),
        }
        write_text(arguments.out, json.dumps(document, indent=1) + "\n")


def main() -> None:
    """Tune the alerts of a bundle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", help="folder, or name of a packaged one")
    parser.add_argument("data", type=Path)
    parser.add_argument("--hours", type=float, default=1.0, help="of streams without lesions")
    parser.add_argument("--rate", type=float, default=25.0, help="frames a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--lesion", default="trainer.relief:render_lesion", help="MODULE:FUNCTION that pastes one"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--top", type=int, default=8, help="settings to show beside the chosen one")
    parser.add_argument("--sample-seconds", type=float, default=0.0, help="of ccdstream sample")
    parser.add_argument("--scores", type=Path, help="keeps the scores of every frame")
    parser.add_argument("--out", type=Path, help="all figures, as JSON")
    try:
        tune(parser.parse_args())
    except CcdstreamError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


if __name__ == "__main__":
    main()
