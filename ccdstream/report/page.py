"""A run for people -> report.html: one file that opens offline and asks the network for nothing.

In: what run.json says, the alerts, and what `Gallery` collected; for a live session also `Live`,
which `ccdstream.live.report` makes. Pictures are data URIs; so is the overlay video where it is
small, else the page plays the file beside it. A content security policy
allows the page's own script and style, by hash, and no more. It computes no figure but shares and
sums of what stands in run.json.

Everything that comes from outside (file names, tags, warnings) is escaped.
"""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccdstream.errors import OutputError, reason_of
from ccdstream.history import SCALE_DECADES, STATES, History, on_scale, score_text, thousandths
from ccdstream.report.alerts import FINDING, AlertLike
from ccdstream.report.audit import plain
from ccdstream.report.document import (
    Facts,
    beside,
    counted,
    document,
    facts,
    frames_in,
    length,
    outline,
    percent,
    runs,
    safe,
    text_of,
)
from ccdstream.report.files import printable, write_text
from ccdstream.report.gallery import MOST_PEAKS, Gallery, Tile
from ccdstream.timecode import short_time

EMBED_BYTES = 8_000_000
"""A video up to this size is inside the page."""

MEANING = f"Marks what is {FINDING}: a lesion perhaps, or stool, an instrument, another scope."
SCORE_MEANING = (
    "A score of 0.99 means that 99 % of the bundle's normal calibration frames score lower. It is "
    "no probability of disease, and where there is no alert something may be all the same. Scores "
    "are cut to three digits, not rounded: 0.9989 is shown as 0.998."
)

REASONS = {
    "blurred": ("Blurred", "motion, or the lens on the wall"),
    "washed_out": ("Washed out", "water or mist before the lens, or too much light"),
    "too_dark": ("Too dark", "even the bright parts are dark"),
    "out_of_body": ("Out of body", "not reddish"),
    "mostly_invalid": ("Mostly hidden", "border, overlays and highlights leave too little"),
}
STATE_WORDS = {
    "NORMAL": "below the level at which alerts open",
    "WATCH": "unusual, not yet for long enough",
    "ALERT": "an alert is open",
    "UNCLEAR": "the frame tells nothing: it neither opens nor closes an alert",
}

_PLOT_TOP, _PLOT_PX = 28, 110
_MARK_TOP, _MARK_PX = 12, 9
"""Where the bars of alerts lie, below their numbers: those of short ones are wider than the bar."""
_STUB = 0.1
"""How tall an unclear frame stands in the line: it has no score of its own."""
_TICKS_S = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400),
    *(86400 * 10**k for k in range(10)),
)
_MOST_TICKS = 6
_LAG_PX = 6
"""How tall the band is where pictures were shown without heat."""
_SHORT = 18
"""Text up to so long stays on one line of its table."""
_DIGIT = 2.0
"""How wide a digit of an alert's number is, in percent of the line on a phone. A number that would
lie on the one before it is left out."""

Run = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Beside:
    """A file beside the page, as a link."""

    name: str
    """Relative to the page's folder."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A stream time, to click."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Listing:
    """A table with a title."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Beside | Moment]]


@dataclass(frozen=True, slots=True)
class Live:
    """What stands in the page of a live session only, as plain text."""

    when: str
    """When it was, by the wall clock, and why it ended."""
    wall_s: float
    """The wall clock at stream time 0, as seconds since 1970-01-01 00:00 of its own time zone."""
    tiles: Sequence[tuple[str, str, str]]
    """More of the summary: what, value, in smaller type."""
    gaps: Sequence[tuple[float, float]]
    """Stretches of stream time without a signal."""
    lags: Sequence[tuple[float, float]]
    """Stretches in which pictures were shown without heat, as it came too late."""
    flags: Sequence[tuple[float, str]]
    """Stream times that people marked, and what to call them."""
    alert_s: float
    """Stream time within alerts, also those that the page does not show."""
    clocks: Mapping[int, str]
    """From when to when an alert was, by the wall clock; by its number."""
    drops: Sequence[tuple[str, str, int]]
    """Frames that were not analysed or not shown: what, why, how many."""
    captured: int
    """Frames that were captured."""
    delays: Listing
    listings: Sequence[Listing]
    facts: Sequence[Facts]


def write_page(
    path: Path,
    run: Run,
    alerts: Sequence[AlertLike],
    gallery: Gallery,
    *,
    video: Path | None,
    abreast: int = 1,
    clips_play: bool = True,
    live: Live | None = None,
    overwrite: bool = False,
) -> None:
    """Write the report of a run.

    Args:
        path: its final name is the page's; the video is looked for beside it.
        run: what run.json says.
        alerts: in order of time.
        gallery: pictures and scores.
        video: the whole video, which browsers can play; None where there is none.
        abreast: how many pictures of the recording stand side by side in it.
        clips_play: whether browsers can play the clips that run.json names.
        live: what else there is of a live session; None for a recording.

    Raises:
        OutputError: the file exists or cannot be written, or the video cannot be read.
    """
    name = inside = None
    if video is not None:
        name = video.name
        try:
            if video.stat().st_size <= EMBED_BYTES:
                inside = video.read_bytes()
        except OSError as error:
            raise OutputError(
                f"cannot read {printable(video)}: {reason_of(error)}. "
                "Choose another --output, or --video none."
            ) from error
    text = page(
        run,
        alerts,
        gallery,
        video=name,
        inside=inside,
        abreast=abreast,
        clips_play=clips_play,
        live=live,
    )
    write_text(path, text, overwrite=overwrite)


def page(
    run: Run,
    alerts: Sequence[AlertLike],
    gallery: Gallery,
    *,
    video: str | None,
    inside: bytes | None = None,
    abreast: int = 1,
    clips_play: bool = True,
    live: Live | None = None,
) -> str:
    """The report as HTML.

    Args:
        run: what run.json says.
        alerts: in order of time.
        gallery: pictures and scores.
        video: name of the video beside the page; None where there is none.
        inside: the same video, to embed; None to play the one beside.
        abreast, clips_play, live: as for `write_page`.
    """
    run = plain(run)
    name = str(run["input"]["file"])
    kind = "report" if live is None else "live report"
    aspect = _aspect(run)
    style = text_of("page.css") + (
        f":root {{ --aspect: {aspect:.5f}; --video-aspect: {abreast * aspect:.5f}; }}\n"
    )
    body = (
        _head(run, name, kind, live)
        + "<main>\n"
        + _summary(run, alerts, gallery, live)
        + _warnings(run)
        + '<div class="watch">\n'
        + _stage(run, alerts, gallery, video, inside, live)
        + _cards(run, alerts, gallery, video is not None, clips_play, live)
        + "</div>\n"
        + ("" if live is None else _listings(live))
        + _strip(gallery)
        + ("" if live is None else _flow(live))
        + '<div class="pair">\n'
        + _quality(run)
        + _legend(run)
        + "</div>\n"
        + (facts("the run", _run_facts(run)) if live is None else facts("the session", live.facts))
        + f"</main>\n<footer><strong>{safe(run['notice'])}</strong> Marks what is {FINDING}."
        "</footer>\n"
        f'<script type="application/json" id="data">{_data(run, alerts, gallery, live)}</script>\n'
    )
    return document(
        f"{name} - ccdstream {kind}",
        body,
        style=style,
        script=text_of("page.js"),
        sources="img-src data:; media-src data: 'self' file:; ",
        attributes=f'data-video="{"yes" if video else "no"}"{" data-wide" if abreast > 1 else ""}'
        f"{' data-live' if live else ''}",
    )


# -- sections -------------------------------------------------------------------------------------


def _head(run: Run, name: str, kind: str, live: Live | None) -> str:
    when = "" if live is None else f'<p class="when">{safe(live.when)}</p>\n'
    return (
        f'<header>\n<p class="brand">ccdstream <span>{kind}</span></p>\n'
        f"<h1>{safe(name)}</h1>\n{when}"
        f'<p class="notice"><strong>{safe(run["notice"])}</strong> {safe(MEANING)}</p>\n'
        "</header>\n"
    )


def _summary(run: Run, alerts: Sequence[AlertLike], gallery: Gallery, live: Live | None) -> str:
    counts = run["counts"]
    length_s = _seen_s(run)
    if live is None:
        alert_s = math.fsum(max(alert.end_s - alert.start_s, 0.0) for alert in alerts)
    else:
        alert_s = live.alert_s
    frames = counts["frames"]
    unclear = frames - counts["informative_frames"]
    of = frames_in(frames, run["stream"].get("empty_s", 0.0))
    if live is not None:
        of = f"{frames:,} of {counted(live.captured, 'frame')}"
    used = gallery.line.score[gallery.line.state > 0]
    highest = score_text(float(used.max())) if len(used) else "none"
    tiles = (
        ("Alerts", f"{counts['alerts']:,}", ""),
        ("Time in alert", length(alert_s), percent(alert_s, length_s)),
        ("Highest score", highest, f"alerts open at {run['alert_rule']['enter']:g}"),
        ("Analysed", length(length_s), of),
        ("Uninformative", percent(unclear, frames), counted(unclear, "frame")),
        *(() if live is None else live.tiles),
    )
    return (
        '<dl class="summary">\n'
        + "".join(
            f"<div><dt>{safe(what)}</dt><dd>{safe(value)}"
            + (f" <small>{safe(more)}</small>" if more else "")
            + "</dd></div>\n"
            for what, value, more in tiles
        )
        + "</dl>\n"
    )


def _warnings(run: Run) -> str:
    said = list(run["warnings"])
    if run["interrupted"]:
        said.insert(0, "the run was ended early: what comes after the last frame was not analysed")
    if not said:
        return ""
    items = "".join(f"<li>{safe(each)}</li>" for each in said)
    return (
        '<section class="warnings" aria-labelledby="warnings-title">\n'
        f'<h2 id="warnings-title">{counted(len(said), "warning")}</h2>\n<ul>{items}</ul>\n'
        "</section>\n"
    )


def _stage(
    run: Run,
    alerts: Sequence[AlertLike],
    gallery: Gallery,
    video: str | None,
    inside: bytes | None,
    live: Live | None,
) -> str:
    player = ""
    if video is not None:
        address = beside(video)
        sources = [] if inside is None else [_data_uri("video/mp4", inside)]
        player = (
            '<div class="screen">\n'
            '<video id="video" controls playsinline preload="metadata" '
            'aria-label="The recording">'
            + "".join(f'<source src="{source}" type="video/mp4">' for source in [*sources, address])
            + "</video>\n"
            f'<p id="lost" class="lost" hidden>The video <b>{safe(printable(Path(video)))}'
            "</b> cannot be played. It belongs into the folder of this page.</p>\n</div>\n"
            '<p id="short" class="short" hidden></p>\n'
            '<div class="controls" role="group" aria-label="Playing">\n'
            '<button type="button" id="previous">Previous alert <kbd>P</kbd></button>\n'
            '<button type="button" id="next">Next alert <kbd>N</kbd></button>\n'
            '<button type="button" id="play">Play or pause <kbd>space</kbd></button>\n'
            '<button type="button" id="speed">Speed <b>1</b> <kbd>S</kbd></button>\n</div>\n'
        )
    return (
        '<section class="stage" aria-label="Recording and score">\n'
        + player
        + _deidentified(run)
        + '<div class="line">\n<h2>Score over time <span id="now" class="soft"></span></h2>\n'
        + _line(
            run, alerts, gallery, "go there" if video is not None else "read the score there", live
        )
        + "</div>\n</section>\n"
    )


def _deidentified(run: Run) -> str:
    """What is missing in the pictures of a run with --deid, and why."""
    blanked = run.get("deid")
    if blanked is None:
        return ""
    return (
        '<p class="short" id="deidentified"><strong>De-identified.</strong> Black in the video '
        "and the pictures: what lies around the field of view, and text and insets that last in it "
        f"({100 * blanked['blanked_fraction']:.0f} % of the field). Blurred: frames out of the "
        "body, with a second before and after. Scores and alerts are of the original, also where "
        "it is black or blurred here.</p>\n"
    )


def _line(
    run: Run, alerts: Sequence[AlertLike], gallery: Gallery, what: str, live: Live | None
) -> str:
    """The score against time, as SVG: what is stretched lies in an inner drawing, text does not.

    Args:
        what: what a click does.
    """
    used, span_s = _used(gallery.line)
    state, start_s = gallery.line.state[:used], gallery.start_s
    height = np.where(state == 0, _STUB, on_scale(gallery.line.score[:used]))

    def across(seconds: float) -> float:
        return min(max(100 * (seconds - start_s) / span_s, 0.0), 100.0)

    def down(place: float) -> float:
        return _PLOT_TOP + _PLOT_PX * (1 - place)

    bars = "".join(
        f'<path class="{name}" d="{outline(height, state == number)}"/>'
        for number, name in enumerate(STATES)
        if (state == number).any()
    )
    scale = words = ""
    for decade in range(1, int(SCALE_DECADES) + 1):
        y = down(decade / SCALE_DECADES)
        scale += f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        words += f'<text class="scale" x="4" y="{y + 13:.1f}">{1 - 10.0**-decade:.{decade}f}</text>'
    enter = run["alert_rule"]["enter"]
    y = down(float(on_scale(np.array(enter))))
    marks, free = "", 0.0
    for alert in alerts:
        left, right = across(alert.start_s), across(alert.end_s)
        wide = _DIGIT * len(str(alert.number))
        inside, number = min(left, 100 - wide), ""
        if inside >= free:
            number = f'<text x="{inside:.3f}%" y="{_MARK_TOP - 3}">{alert.number}</text>'
            free = inside + wide
        marks += (
            f'<a href="#alert-{alert.number}" data-alert="{alert.number}">'
            f"<title>Alert {alert.number}</title>"
            f'<rect x="{left:.3f}%" y="{_MARK_TOP}" height="{_MARK_PX}" rx="2" '
            f'width="{max(right - left, 0.4):.3f}%"/>'
            f"{number}</a>"
        )
    bottom = _PLOT_TOP + _PLOT_PX
    gaps = _hatched(_gaps(gallery) if live is None else live.gaps, across)
    lags, flags = _live_marks(live, across, bottom)
    ticks = ""
    shown = _ticks(start_s, span_s)
    digits = 1 if len(shown) > 1 and shown[1] - shown[0] < 1 else 0
    for seconds in shown:
        x = across(seconds)
        anchor = "start" if x < 4 else "end" if x > 96 else "middle"
        ticks += (
            f'<line class="tick" x1="{x:.3f}%" x2="{x:.3f}%" y1="{bottom}" y2="{bottom + 5}"/>'
            f'<text class="time" x="{x:.3f}%" y="{bottom + 18}" text-anchor="{anchor}">'
            f"{short_time(seconds, digits)}</text>"
        )
    return (
        '<div class="plot" id="plot" role="slider" tabindex="0" aria-label="Time in the recording" '
        'aria-valuemin="0" aria-valuemax="0" aria-valuenow="0">\n'
        f'<svg width="100%" height="{bottom + 24}" aria-hidden="true">'
        f'<rect class="back" x="0" y="{_PLOT_TOP}" width="100%" height="{_PLOT_PX}"/>'
        f'<svg x="0" y="{_PLOT_TOP}" width="100%" height="{_PLOT_PX}" '
        f'viewBox="0 0 {used} 1000" preserveAspectRatio="none">{bars}</svg>{gaps}{lags}'
        f'{scale}<line class="enter" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>{words}'
        f'<text class="enter-word" x="100%" dx="-4" y="{y - 4:.1f}" text-anchor="end">'
        f"alerts open at {enter:g}</text>"
        f'<g class="marks">{marks}</g>{flags}{ticks}'
        f'<line id="hair" x1="0" x2="0" y1="{_PLOT_TOP}" y2="{bottom}"/>'
        f'<line id="cursor" x1="0" x2="0" y1="{_MARK_TOP + _MARK_PX + 2}" y2="{bottom}"/></svg>\n'
        '<p id="hover" class="hover" hidden></p>\n</div>\n'
        f'<p class="keys">Click or drag to {what}. Keys: <kbd>&larr;</kbd> <kbd>&rarr;</kbd> '
        "5 s, with <kbd>shift</kbd> 1 s; <kbd>,</kbd> <kbd>.</kbd> a frame"
        + "; <kbd>N</kbd> <kbd>P</kbd> next and previous alert" * bool(alerts)
        + f".</p>\n{_signs(bool(gaps), live)}"
    )


def _gaps(gallery: Gallery) -> list[tuple[float, float]]:
    """Stretches of the line that hold no frame."""
    used, span_s = _used(gallery.line)
    at_s = [gallery.start_s + span_s * column / used for column in range(used + 1)]
    return [(at_s[first], at_s[end]) for first, end in runs(gallery.line.state[:used] < 0)]


def _hatched(stretches: Sequence[tuple[float, float]], across: Callable[[float], float]) -> str:
    """Stretches of stream time in which there is nothing to see."""
    gaps = ""
    for start_s, end_s in stretches:
        left, right = across(start_s), across(end_s)
        gaps += (
            f'<rect class="gap" fill="url(#hatch)" x="{left:.3f}%" y="{_PLOT_TOP}" '
            f'width="{max(right - left, 0.2):.3f}%" height="{_PLOT_PX}"/>'
        )
    if gaps:
        gaps = (
            '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)"><rect class="ground" width="7" height="7"/>'
            f'<rect class="stripe" width="2" height="7"/></pattern></defs>{gaps}'
        )
    return gaps


def _live_marks(
    live: Live | None, across: Callable[[float], float], bottom: int
) -> tuple[str, str]:
    """Of the line of a live session: where heat came too late, and what people marked."""
    if live is None:
        return "", ""
    lags = ""
    for start_s, end_s in live.lags:
        left, right = across(start_s), across(end_s)
        lags += (
            f'<rect class="lag" x="{left:.3f}%" y="{bottom - _LAG_PX}" '
            f'width="{max(right - left, 0.2):.3f}%" height="{_LAG_PX}"/>'
        )
    flags = "".join(
        f'<g class="flag"><title>{safe(name)}</title><line x1="{across(at_s):.3f}%" '
        f'x2="{across(at_s):.3f}%" y1="{_PLOT_TOP}" y2="{bottom}"/>'
        f'<circle cx="{across(at_s):.3f}%" cy="{bottom}" r="4.5"/></g>'
        for at_s, name in live.flags
    )
    return lags, flags


def _signs(gaps: bool, live: Live | None) -> str:
    """What the marks in the line mean, beside scores and alerts."""
    if live is None:
        return '<p class="signs">Hatched: no frames.</p>\n' * gaps
    said = ["hatched: no signal"] * gaps
    said += ["band below: shown without heat, which came too late"] * bool(live.lags)
    said += ["dots: marks and snapshots"] * bool(live.flags)
    words = "; ".join(said)
    return f'<p class="signs">{words[0].upper()}{words[1:]}.</p>\n' if said else ""


def _cards(
    run: Run,
    alerts: Sequence[AlertLike],
    gallery: Gallery,
    has_video: bool,
    clips_play: bool,
    live: Live | None,
) -> str:
    rule, total = run["alert_rule"], run["counts"]["alerts"]
    head = (
        '<section class="alerts" aria-labelledby="alerts-title">\n'
        f'<h2 id="alerts-title">{counted(total, "alert") if total else "No alerts"}</h2>\n'
    )
    if not run["counts"]["frames"]:
        return f'{head}<p class="soft">No frame was analysed.</p>\n</section>\n'
    if not alerts:
        return (
            head + f'<p class="soft">Nothing stayed {FINDING}: no score reached '
            f"{rule['enter']:g} for long enough. Something may be there all the same.</p>\n"
            "</section>\n"
        )
    note = ""
    if len(alerts) < total:
        note = (
            f'<p class="soft">The {len(alerts):,} with the highest peaks are shown; the files of '
            "alerts hold all.</p>\n"
        )
    if len(gallery.peaks) < len(alerts):
        note += (
            f'<p class="soft">Pictures are kept of the {MOST_PEAKS} alerts with the highest '
            "peaks.</p>\n"
        )
    clips = {clip["alert"]: clip for clip in run["video"]["clips"]}
    cards = "".join(
        _card(alert, rule, gallery, clips.get(alert.number), clips_play, has_video, live)
        for alert in alerts
    )
    return head + note + f'<ol id="alerts">\n{cards}</ol>\n</section>\n'


def _card(
    alert: AlertLike,
    rule: Run,
    gallery: Gallery,
    clip: Run | None,
    clip_plays: bool,
    video: bool,
    live: Live | None,
) -> str:
    peak = gallery.peaks.get(alert.number)
    pictures = ""
    if peak is not None:
        pictures = (
            f'<button type="button" class="peak" data-seek="{alert.peak_s:.6f}" '
            f'aria-label="Alert {alert.number}: go to its peak">'
            f'<img src="{_data_uri("image/jpeg", peak.plain)}" alt="The frame at its peak">'
            f'<img src="{_data_uri("image/jpeg", peak.heat)}" alt="The same with its heatmap">'
            "</button>\n"
        )
    length_s = alert.end_s - alert.start_s
    lasted = f"for {length(length_s)}" if alert.frames > 1 else "on a single frame"
    gaps = f", gaps of up to {rule['merge_gap_s']:g} s" if alert.frames > 1 else ""
    gaps += " and frames that tell nothing" * (alert.informative_frames < alert.frames)
    gaps += " aside" * bool(gaps)
    match alert.clock:
        case None:
            where, place = "no region stands out, the frame as a whole is unusual", "whole frame"
        case "centre":
            where, place = "most in the centre of the view", "centre"
        case hour:
            where, place = f"most at {hour} o'clock", f"{hour} o'clock"
    why = (
        f"The score reached {rule['enter']:g} and stayed at or above {rule['leave']:g} {lasted}"
        f"{gaps}: {FINDING}, {where}."
    )
    seen = counted(alert.frames, "frame")
    if alert.informative_frames < alert.frames:
        seen += f", {alert.informative_frames} informative"
    facts = (
        ("Peak", f"{score_text(alert.peak_score)} at {short_time(alert.peak_s, 2)}"),
        ("Length", f"{length(length_s)}, {seen}"),
        ("Where", place),
        *(() if live is None else (("Wall clock", live.clocks[alert.number]),)),
    )
    ended = "analysis ended" if live is None else "signal was lost or the session ended"
    go = ""
    if video or (clip is not None and clip_plays):
        go = (
            f'<button type="button" class="go" data-seek="{alert.start_s:.6f}" data-play="yes">'
            f"{'Play' if video else 'Play from the alert'}</button>"
        )
    return (
        f'<li class="card" id="alert-{alert.number}">\n{pictures}<div class="said">\n'
        f"<h3><b>{alert.number}</b> {short_time(alert.start_s, 2)} to {short_time(alert.end_s, 2)}"
        + go
        + "</h3>\n"
        + '<p class="open">Open from the first frame that could be judged: it may have begun '
        "before.</p>\n"
        * (live is None and alert.start_s == gallery.informed_from_s)
        + f'<p class="open">Open when the {ended}: it may go on.</p>\n' * alert.open_at_end
        + "<dl>"
        + "".join(f"<div><dt>{what}</dt><dd>{safe(value)}</dd></div>" for what, value in facts)
        + f"</dl>\n<p>{safe(why)}</p>\n{_clip(alert, clip, clip_plays)}</div>\n</li>\n"
    )


def _clip(alert: AlertLike, clip: Run | None, plays: bool) -> str:
    """The clip of an alert: to play where browsers can, its address, and where the alert begins."""
    if clip is None:
        return ""
    name, into_s = clip["file"], max(alert.start_s - clip["offset_s"], 0.0)
    address = beside(name)
    player = (
        f'<video class="clip" controls playsinline preload="metadata" src="{address}" '
        f'data-offset="{clip["offset_s"]:.6f}" '
        f'aria-label="The clip of alert {alert.number}"></video>\n'
        if plays
        else ""
    )
    return (
        f'{player}<p class="clip-name">The alert begins {length(into_s)} into its clip, '
        f'<a href="{address}">{safe(printable(Path(name)))}</a></p>\n'
    )


def _strip(gallery: Gallery) -> str:
    digits = 1 if gallery.tile_s < 1 else 0
    tiles = "".join(_tile(tile, digits) for tile in gallery.strip)
    return (
        '<section class="overview" aria-labelledby="overview-title">\n'
        '<h2 id="overview-title">Overview</h2>\n'
        f'<p class="soft">A picture every {gallery.tile_s:g} s. The bar under it is the highest '
        "score of that stretch on the scale of the line above, in the colour of its gravest state."
        f'</p>\n<ol id="strip">\n{tiles}</ol>\n</section>\n'
    )


def _tile(tile: Tile, digits: int) -> str:
    place = float(on_scale(np.array(tile.score)))
    at = short_time(tile.seconds, 1)
    score = score_text(tile.score) if tile.score else "no score"
    return (
        f'<li class="tile {tile.state}"><button type="button" data-seek="{tile.seconds:.6f}" '
        f'title="{at}, {tile.state}, {score}">'
        f'<img src="{_data_uri("image/jpeg", tile.jpeg)}" alt="">'
        '<svg viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="{tile.state}" width="{max(100 * place, 3):.1f}" height="1"/></svg>'
        f"<span>{short_time(tile.seconds, digits)}</span></button></li>\n"
    )


def _listings(live: Live) -> str:
    if not live.listings:
        return ""
    return f'<div class="listings">\n{"".join(map(_listing, live.listings))}</div>\n'


def _listing(listing: Listing) -> str:
    def cell(column: str, value: str | Beside | Moment) -> str:
        words = ""
        match value:
            case Beside(name):
                words = ' class="words"'
                inside = f'<a href="{beside(name)}">{safe(printable(Path(Path(name).name)))}</a>'
            case Moment(seconds):
                inside = (
                    f'<button type="button" class="at" data-seek="{seconds:.6f}">'
                    f"{short_time(seconds, 2)}</button>"
                )
            case text:
                words = ' class="words"' * (len(text) > _SHORT)
                inside = safe(text)
        return f'<td data-column="{safe(column)}"{words}>{inside}</td>'

    head = "".join(f'<th scope="col">{safe(column)}</th>' for column in listing.columns)
    rows = "".join(f"<tr>{''.join(map(cell, listing.columns, row))}</tr>\n" for row in listing.rows)
    return (
        f'<section class="listing">\n<h2>{safe(listing.title)}</h2>\n'
        + f'<p class="soft">{safe(listing.note)}</p>\n' * bool(listing.note)
        + f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>\n</section>\n"
    )


def _flow(live: Live) -> str:
    """How soon a live session was, and what it left out."""
    rows = "".join(
        _share_row(what, why, number, live.captured, "one") for what, why, number in live.drops
    )
    return (
        f'<div class="pair">\n{_listing(live.delays)}<section aria-labelledby="drops-title">\n'
        '<h2 id="drops-title">Frames left out</h2>\n<p class="soft">Of '
        f"{counted(live.captured, 'frame')} that were captured. The newest comes first: what "
        "arrives while another is analysed gives way.</p>\n"
        f'<table class="shares">\n<tbody>{rows}</tbody></table>\n</section>\n</div>\n'
    )


def _quality(run: Run) -> str:
    counts = run["counts"]
    frames, reasons = counts["frames"], counts["uninformative_by_reason"]
    unclear = frames - counts["informative_frames"]
    rows = _share_row("Uninformative", "for any reason", unclear, frames, "all")
    for reason, number in sorted(reasons.items(), key=lambda item: -item[1]):
        what, why = REASONS.get(reason, (reason.replace("_", " "), ""))
        rows += _share_row(what, why, number, frames, "one")
    return (
        '<section aria-labelledby="quality-title">\n'
        '<h2 id="quality-title">Uninformative frames</h2>\n'
        '<p class="soft">Such frames neither open nor close an alert. One frame may have several '
        f'reasons.</p>\n<table class="shares">\n<tbody>{rows}</tbody></table>\n</section>\n'
    )


def _share_row(what: str, why: str, number: int, frames: int, kind: str) -> str:
    share = 100 * number / max(frames, 1)
    return (
        f'<tr class="{kind}"><th scope="row">{safe(what)}<small>{safe(why)}</small></th>'
        f'<td class="share">{percent(number, frames)}</td>'
        '<td class="bar"><svg width="100%" height="10" aria-hidden="true">'
        '<rect class="back" width="100%" height="10" rx="2"/>'
        f'<rect class="UNCLEAR" width="{share:.2f}%" height="10" rx="2"/></svg></td>'
        f'<td class="number">{number:,}</td></tr>'
    )


def _legend(run: Run) -> str:
    states = "".join(
        f'<div><dt><svg width="12" height="12" aria-hidden="true"><rect class="{name}" width="12" '
        f'height="12" rx="2"/></svg> {name}</dt><dd>{safe(STATE_WORDS[name])}</dd></div>'
        for name in ("ALERT", "WATCH", "NORMAL", "UNCLEAR")
    )
    rule = run["alert_rule"]
    return (
        '<section class="legend" aria-labelledby="legend-title">\n'
        f'<h2 id="legend-title">How to read it</h2>\n<dl>{states}</dl>\n'
        '<p><svg class="ramp" viewBox="0 0 100 10" preserveAspectRatio="none" '
        'aria-hidden="true"><defs><linearGradient id="ramp">'
        '<stop offset="0" stop-color="#3c46e1"/><stop offset=".35" stop-color="#008cf0"/>'
        '<stop offset=".7" stop-color="#00dcc8"/><stop offset="1" stop-color="#8cff6e"/>'
        '</linearGradient></defs><rect width="100" height="10" fill="url(#ramp)"/></svg> In '
        "pictures, blue to green marks what is more unusual than 98 % to 99.98 % of normal "
        f"pixels.</p>\n<p>{safe(SCORE_MEANING)}</p>\n"
        "<p>The score is smoothed over time, and the scale of the line grows with each nine: "
        f"0.9, 0.99 and 0.999 stand at equal steps. An alert opens at {rule['enter']:g}, ends "
        f"where the score was last at {rule['leave']:g} or above, and goes on if it opens again "
        f"within {rule['merge_gap_s']:g} s: so long it may be NORMAL inside an "
        "alert.</p>\n</section>\n"
    )


def model_facts(run: Run) -> Facts:
    """What analysed it."""
    model, engine = run["model"], run["engine"]
    return (
        "Model",
        (
            ("Id", model["id"]),
            ("Name", model["name"]),
            ("Commit", model["commit"]),
            *(
                (f"{name} SHA-256", each.get("sha256", ""))
                for name, each in sorted(model["files"].items())
            ),
            ("Engine", f"{engine['name']} on {engine['device']}"),
            ("Why this engine", engine["taken"]),
        ),
    )


def rule_facts(run: Run) -> Facts:
    """When alerts open and close."""
    rule, limits = run["alert_rule"], run["alert_limits"]
    return (
        "Alert rule",
        (
            ("Opens at", f"{rule['enter']:g}"),
            ("Ends below", f"{rule['leave']:g}"),
            ("Least length", f"{rule['min_duration_s']:g} s"),
            ("Goes on within", f"{rule['merge_gap_s']:g} s"),
            (
                "Ends unseen",
                f"after {limits['blind_s']:g} s of frames that tell nothing, or "
                f"{limits['hole_s']:g} s without frames",
            ),
            ("None opens for", f"{rule['refractory_s']:g} s after one"),
            ("Smoothing", f"{rule['time_constant_s']:g} s"),
        ),
    )


def software_facts(run: Run) -> Facts:
    """What it ran on, and what it left."""
    return (
        "Software",
        (
            ("ccdstream", run["ccdstream"]),
            *((name, str(value)) for name, value in run["versions"].items() if value),
            ("Results", ", ".join(run["outputs"])),
        ),
    )


def _run_facts(run: Run) -> Sequence[Facts]:
    source, counts, timing = run["input"], run["counts"], run["timing"]
    colour, made = source["colour"], run["video"]
    stretch = [
        f"{word} {short_time(source[key], 2)}"
        for word, key in (("from", "start_s"), ("to", "end_s"))
        if source[key] is not None
    ]
    picture = f"{source['width']} x {source['height']}, {source['codec']}, {source['pix_fmt']}"
    shape = [
        f"pixels {source['sample_aspect_ratio']}" * (source["sample_aspect_ratio"] != "1/1"),
        f"turned by {source['rotation_deg']} degrees" * bool(source["rotation_deg"]),
        "mirrored" * bool(source["mirrored"]),
        "interlaced" * bool(source["interlaced"]),
    ]
    colours = (
        f"{colour['matrix']}, {'full' if colour['full_range'] else 'limited'} range"
        + ", assumed: the file does not say" * bool(colour["assumed"])
    )
    troubles = [
        f"{name.replace('_', ' ')}: {value if value is not True else 'yes'}"
        for name, value in counts.items()
        if value
        and name
        not in ("frames", "informative_frames", "uninformative_by_reason", "alerts", "decoded")
    ]
    return (
        (
            "Recording",
            (
                ("File", source["file"]),
                *(
                    [("SHA-256, keyed", source["sha256"])]
                    if source["bytes"] is None
                    else [
                        ("Size", f"{source['bytes']:,} bytes"),
                        ("SHA-256", source["sha256"]),
                    ]
                ),
                ("Format", source["format"]),
                ("Picture", ", ".join([picture, *filter(None, shape)])),
                ("Rate", f"{_rate(source['average_rate'])}, time base {source['time_base']}"),
                ("Colours", colours),
                ("Stretch", ", ".join(stretch) or "all of it"),
            ),
        ),
        model_facts(run),
        rule_facts(run),
        (
            "Counts",
            (
                ("Frames", f"{counts['frames']:,}"),
                ("Informative", f"{counts['informative_frames']:,}"),
                ("Alerts", f"{counts['alerts']:,}"),
                ("Trouble in the file", "; ".join(troubles) or "none"),
                ("Ended early", "yes" if run["interrupted"] else "no"),
            ),
        ),
        (
            "Timing",
            (
                ("Whole run", f"{timing['wall_s']:.1f} s, {timing['frames_per_s']:.1f} frames/s"),
                *(
                    (f"Stage {stage}", f"{seconds:.1f} s")
                    for stage, seconds in timing["stage_s"].items()
                ),
                ("Note", timing["note"]),
                ("Decoder", "; ".join([made["decoder"], *made["decoder_notes"]])),
                (
                    "Encoder",
                    "; ".join(
                        filter(
                            None,
                            [
                                made["encoder"] or "no video written",
                                made["encoder_note"],
                                *made["notes"],
                            ],
                        )
                    ),
                ),
            ),
        ),
        software_facts(run),
    )


# -- the line -------------------------------------------------------------------------------------


def _used(line: History) -> tuple[int, float]:
    """Columns of the line up to the last frame, at least 1, and the stream time that they span."""
    used = line.now + 1
    return used, used * line.span_s / len(line.state)


def _ticks(start_s: float, span_s: float) -> list[float]:
    """Round stream times within the span."""
    step = next((each for each in _TICKS_S if span_s / each <= _MOST_TICKS), _TICKS_S[-1])
    first = math.ceil(start_s / step - 1e-9)
    count = min(int((start_s + span_s) / step + 1e-9) - first + 1, _MOST_TICKS + 2)
    return [step * (first + k) for k in range(max(count, 0))]


def _data(run: Run, alerts: Sequence[AlertLike], gallery: Gallery, live: Live | None) -> str:
    """What the script needs, as JSON that cannot end its element."""
    line = gallery.line
    used, span_s = _used(line)
    data = {
        "start": gallery.start_s,
        "end": run["stream"]["last_s"],
        "span": span_s,
        "offset": run["overlay_offset_s"],
        "score": [thousandths(value) for value in line.score[:used].tolist()],
        "state": "".join("-" if each < 0 else str(each) for each in line.state[:used].tolist()),
        "states": STATES,
        "alerts": [[a.number, a.start_s, a.end_s, a.peak_s] for a in alerts],
        "frame": _frame_s(run),
        "gaps": [] if live is None else live.gaps,
        "wall": None if live is None else live.wall_s,
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("&", "\\u0026")


def _frame_s(run: Run) -> float:
    """How long a frame lasts on average, to step by."""
    frames, length_s = run["counts"]["frames"], _seen_s(run)
    return length_s / (frames - 1) if frames > 1 and length_s > 0 else 0.04


def _seen_s(run: Run) -> float:
    """Stream time with a picture."""
    stream = run["stream"]
    without_s = stream.get("lost_s", 0.0) + stream.get("empty_s", 0.0)
    return float(max(stream["last_s"] - stream["first_s"] - without_s, 0.0))


# -- words ----------------------------------------------------------------------------------------


def _aspect(run: Run) -> float:
    """Width over height of the picture as it is to be shown."""
    source = run["input"]
    numerator, _, denominator = str(source["sample_aspect_ratio"] or "1/1").partition("/")
    ratio = int(numerator) / int(denominator or 1) if int(denominator or 1) else 1.0
    aspect = float(source["width"] / source["height"] * (ratio or 1.0))
    return min(max(aspect, 0.2), 5.0)


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _rate(rate: Any) -> str:
    """Frames a second, of "numerator/denominator"."""
    numerator, _, denominator = str(rate).partition("/")
    if not numerator.isdigit() or int(denominator or 1) == 0:
        return "rate unknown"
    return f"{int(numerator) / int(denominator or 1):.3f}".rstrip("0").rstrip(".") + " frames/s"
