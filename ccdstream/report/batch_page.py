"""A batch for people -> batch.report.html: every recording as a row, with a link to its report.

In: what batch.json says, so that the page can name nothing that batch.json does not, and of each
recording that has results a `Glance` at them. It is of the same making as report.html: one file
that opens offline, written as a whole or not at all; the same results give the same bytes, but for
how long things took.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccdstream.history import STATES, History, on_scale, score_text
from ccdstream.report.alerts import FINDING, read_alerts
from ccdstream.report.audit import plain
from ccdstream.report.document import (
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
from ccdstream.report.page import MEANING, SCORE_MEANING, STATE_WORDS
from ccdstream.report.scores import COLUMNS
from ccdstream.timecode import short_time

PAGE_NAME = "batch.report.html"

LINE_COLUMNS = 160
"""Of a recording's line, however long it is: about one for two pixels of a laptop's screen."""

_LINE_PX, _STRIP_PX = 34, 6
"""How tall a line is, and of it the strip at its top that marks alerts."""
_TALL = 40
"""Steps of a line's height: more would make the page longer and could not be seen."""
_STUB = 0.1
"""How tall an unclear frame stands in the line, as in report.html."""
_MOST_NAMED = 12
"""Up to so many recordings that failed are named above the table."""
_MOST_WARNINGS = 2
"""Up to so many warnings of a recording stand in its row; its report has all."""

Batch = Mapping[str, Any]
Row = Mapping[str, Any]


class _Fate(NamedTuple):
    """How a status of batch.json is said."""

    word: str
    gravity: int
    """Rows are sorted by it."""


FATES = {
    "failed": _Fate("Failed", 7),
    "crashed": _Fate("Crashed", 6),
    "interrupted": _Fate("Ended early", 5),
    "not_begun": _Fate("Not tried", 3),
    "begun": _Fate("At work", 2),
    "done": _Fate("Done", 1),
    "already_done": _Fate("Done before", 0),
}
_INCOMPLETE = _Fate("Incomplete", 4)
"""Of a recording that is done, as far as there is something of it."""


def is_incomplete(status: str, counts: Mapping[str, Any]) -> bool:
    """Whether a recording is done as far as it goes, and its file does not give all of it."""
    return status in ("done", "already_done") and bool(
        counts.get("truncated") or counts.get("unread_recording")
    )


# -- what the results of a recording say ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Glance:
    """A recording at a glance, as its results say."""

    length_s: float
    """Stream time from the first frame to the last."""
    empty_s: float
    """Of it, in gaps that hold no frame."""
    alert_s: float
    """Of it, within alerts."""
    peak: float | None
    """The highest smoothed score of an informative frame; None where there is none."""
    took_s: float
    enter: float
    """The score that alerts open at."""
    line: str
    """The score over time, as SVG of a bounded size."""


def read_glance(scores: Path, alerts: Path, run: Mapping[str, Any]) -> Glance | None:
    """A recording at a glance; None where its files are not those of a whole run.

    Args:
        scores: its scores.csv.
        alerts: its alerts.jsonl.
        run: what its run.json says.
    """
    try:
        seconds, score, state = _read_scores(scores)
        within = [(float(a["start_s"]), float(a["end_s"])) for a in read_alerts(alerts)]
        first_s, last_s = float(run["stream"]["first_s"]), float(run["stream"]["last_s"])
        enter, took_s = float(run["alert_rule"]["enter"]), float(run["timing"]["wall_s"])
        informative = score[state > 0]
        return Glance(
            length_s=max(last_s - first_s, 0.0),
            empty_s=float(run["stream"].get("empty_s", 0.0)),
            alert_s=math.fsum(max(end_s - start_s, 0.0) for start_s, end_s in within),
            peak=float(informative.max()) if len(informative) else None,
            took_s=took_s,
            enter=enter,
            line=_line(seconds, score, state, within, (first_s, last_s), enter),
        )
    except (OSError, ValueError, KeyError, TypeError):  # the page says that they cannot be read
        return None


def _read_scores(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds, float [N]; smoothed score, float [N], 0 where there is none; state, int [N], an
    index into STATES.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not one of this version.
    """
    last = COLUMNS.index("state")
    when, what = COLUMNS.index("seconds"), COLUMNS.index("smoothed")
    number = {name: k for k, name in enumerate(STATES)}
    seconds, score, state = [], [], []
    with path.open(encoding="utf-8") as file:
        if tuple(file.readline().rstrip("\n").split(","))[: last + 1] != COLUMNS[: last + 1]:
            raise ValueError("other columns than expected")
        for row in file:  # no cell of this file is quoted, and csv takes twice as long
            cells = row.split(",", last + 1)
            if len(cells) < last + 2:
                raise ValueError("a row that is cut off")
            seconds.append(float(cells[when]))
            score.append(float(cells[what] or 0))
            name = cells[last]
            if name not in number:
                raise ValueError(f"no state: {name}")
            state.append(number[name])
    return np.array(seconds), np.array(score), np.array(state, np.int8)


def _line(
    seconds: np.ndarray,
    score: np.ndarray,
    state: np.ndarray,
    alerts: Sequence[tuple[float, float]],
    span: tuple[float, float],
    enter: float,
) -> str:
    """The score against time: as in report.html, but narrow, and without words."""
    if not len(seconds):
        return ""
    start_s, end_s = span
    history = History(LINE_COLUMNS, start_s=start_s, span_s=end_s - start_s)
    for first, last in _stretches(seconds, start_s, history.span_s / LINE_COLUMNS):
        part = slice(first, last + 1)
        highest, gravest = float(score[part].max()), STATES[int(state[part].max())]
        history.add(float(seconds[first]), highest, gravest)
        history.add(float(seconds[last]), highest, gravest)
    used = history.now + 1
    step_s = history.span_s / LINE_COLUMNS
    states, height = history.state[:used], on_scale(history.score[:used])
    height = np.where(states == 0, _STUB, height)
    bars = "".join(
        f'<path class="{name}" d="{outline(height, states == number, _TALL)}"/>'
        for number, name in enumerate(STATES)
        if (states == number).any()
    )
    lit = np.zeros(used, bool)
    for from_s, to_s in alerts:
        first = min(max(int((from_s - start_s) / step_s), 0), used - 1)
        lit[first : max(math.ceil((to_s - start_s) / step_s), first + 1)] = True
    marks = f'<path class="ALERT" d="{_blocks(lit, _STRIP_PX - 2)}"/>' * bool(lit.any())
    gaps = "".join(
        f'<rect class="gap" x="{100 * first / used:.2f}%" width="{100 * (end - first) / used:.2f}%"'
        f' y="{_STRIP_PX}" height="{_LINE_PX - _STRIP_PX}"/>'
        for first, end in runs(states < 0)
    )
    plot_px = _LINE_PX - _STRIP_PX
    y = _STRIP_PX + plot_px * (1 - float(on_scale(np.array(enter))))
    drawing = f'width="100%" viewBox="0 0 {used}'
    return (
        f'<svg class="over-time" width="100%" height="{_LINE_PX}" aria-hidden="true">'
        f'<rect class="back" width="100%" y="{_STRIP_PX}" height="{plot_px}"/>'
        + (
            f'<svg {drawing} {_STRIP_PX - 2}" height="{_STRIP_PX - 2}" '
            f'preserveAspectRatio="none">{marks}</svg>'
            if marks
            else ""
        )
        + f'<svg y="{_STRIP_PX}" {drawing} {_TALL}" height="{plot_px}" preserveAspectRatio="none">'
        f'{bars}</svg>{gaps}<line class="enter" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/></svg>'
    )


def _stretches(seconds: np.ndarray, start_s: float, step_s: float) -> list[tuple[int, int]]:
    """First and last of the frames that share a column, for each: what lies between changes
    nothing in a `History`, and is most of a long recording."""
    column = np.floor((seconds - start_s) / step_s).clip(0, LINE_COLUMNS - 1)
    ends = np.flatnonzero(np.diff(column))
    firsts, lasts = [0, *(ends + 1).tolist()], [*ends.tolist(), len(seconds) - 1]
    return list(zip(firsts, lasts, strict=True))


def _blocks(shown: np.ndarray, tall: int) -> str:
    """The SVG path of a block over each run of columns."""
    return "".join(f"M{first} 0H{end}V{tall}H{first}Z" for first, end in runs(shown))


# -- the page -------------------------------------------------------------------------------------


def write_batch_page(path: Path, batch: Batch, glances: Sequence[Glance | None]) -> None:
    """Write the page of a batch, in place of an older one.

    Args:
        path: beside batch.json: reports are looked for, and linked, from its folder on.
        batch: what batch.json says.
        glances: one for each of its inputs; None where there are no results, or none to read.

    Raises:
        OutputError: it cannot be written.
    """
    reports = [_report_of(path.parent, row) for row in batch["inputs"]]
    write_text(path, batch_page(batch, glances, reports), overwrite=True)


def _report_of(folder: Path, row: Row) -> str | None:
    """Where the report of a recording is, from the folder of the batch on; None if nowhere."""
    for name in row["outputs"]:
        if name.endswith(".report.html"):
            place = os.path.normpath(os.path.join(row["folder"], name))
            return place if (folder / place).is_file() else None
    return None


def batch_page(
    batch: Batch, glances: Sequence[Glance | None], reports: Sequence[str | None]
) -> str:
    """The page as HTML.

    Args:
        batch, glances: as for `write_batch_page`.
        reports: where the report of each input is, relative to the page.
    """
    batch = plain(batch)
    rows = batch["inputs"]
    title = f"Batch of {counted(len(rows), 'recording')}"
    body = (
        '<header>\n<p class="brand">ccdstream <span>batch report</span></p>\n'
        f'<h1>{title}</h1>\n<p class="when">{_state(batch)}</p>\n'
        f'<p class="notice"><strong>{safe(batch["notice"])}</strong> {safe(MEANING)}</p>\n'
        "</header>\n<main>\n"
        + _summary(rows, glances)
        + _failed(rows)
        + _table(rows, glances, reports)
        + '<div class="pair">\n'
        + _legend()
        + _batch_facts(batch)
        + "</div>\n"
        + f"</main>\n<footer><strong>{safe(batch['notice'])}</strong> Marks what is {FINDING}."
        "</footer>\n"
    )
    return document(
        f"{title} - ccdstream batch report",
        body,
        style=text_of("page.css") + text_of("batch_page.css"),
        script=text_of("batch_page.js"),
        attributes="data-batch",
    )


def _state(batch: Batch) -> str:
    """What became of the batch as a whole, in a line or two."""
    counts = batch["counts"]
    said = [
        f"{number:,} {FATES[status].word.lower()}"
        for status in ("done", "already_done", "failed", "crashed", "interrupted", "begun",
                       "not_begun")
        if (number := counts[status])
    ]  # fmt: skip
    text = ", ".join(said) + "."
    if incomplete := sum(is_incomplete(row["status"], row["counts"]) for row in batch["inputs"]):
        text += f" {counted(incomplete, 'recording')} incomplete."
    if not batch["ended"]:
        text += (
            " The batch was at work when this was written, and writes it anew. If it was killed, "
            "the same command again does what is missing."
        )
    elif counts["not_begun"] or counts["interrupted"]:
        text += " The batch was ended before all were done: the same command again does the rest."
    return safe(text)


def _summary(rows: Sequence[Row], glances: Sequence[Glance | None]) -> str:
    seen = [glance for glance in glances if glance is not None]
    frames = sum(row["counts"].get("frames", 0) for row in rows)
    unclear = frames - sum(row["counts"].get("informative_frames", 0) for row in rows)
    alerts = [row["counts"].get("alerts", 0) for row in rows]
    length_s = math.fsum(glance.length_s for glance in seen)
    empty_s = math.fsum(glance.empty_s for glance in seen)
    alert_s = math.fsum(glance.alert_s for glance in seen)
    peaks = [glance.peak for glance in seen if glance.peak is not None]
    enters = sorted({glance.enter for glance in seen})
    warned = sum(bool(row["warnings"]) for row in rows)
    tiles = (
        ("Analysed", f"{sum(map(bool, (r['counts'] for r in rows))):,}",
         f"of {counted(len(rows), 'recording')}"),
        ("Length", length(length_s), frames_in(frames, empty_s)),
        ("Alerts", f"{sum(alerts):,}", f"in {counted(sum(map(bool, alerts)), 'recording')}"),
        ("Time in alert", length(alert_s), percent(alert_s, length_s - empty_s)),
        ("Highest score", score_text(max(peaks)) if peaks else "none",
         "alerts open at " + " and ".join(f"{e:g}" for e in enters) if enters else ""),
        ("Uninformative", percent(unclear, frames), counted(unclear, "frame")),
        ("With warnings", f"{warned:,}", "see their rows" * bool(warned)),
    )  # fmt: skip
    return (
        '<dl class="summary">\n'
        + "".join(
            f"<div><dt>{safe(what)}</dt><dd>{safe(value)}"
            + f" <small>{safe(more)}</small>" * bool(more)
            + "</dd></div>\n"
            for what, value, more in tiles
        )
        + "</dl>\n"
    )


def _failed(rows: Sequence[Row]) -> str:
    """What failed, before anything else is read; why stands in the rows."""
    failed = [(k, row) for k, row in enumerate(rows) if row["status"] in ("failed", "crashed")]
    if not failed:
        return ""
    names = [
        f'<a href="#r{k}">{safe(printable(Path(row["name"])))}</a>'
        for k, row in failed[:_MOST_NAMED]
    ]
    if (more := len(failed) - _MOST_NAMED) > 0:
        names.append(f"and {more:,} more")
    return (
        '<section class="warnings failed" aria-labelledby="failed-title">\n'
        f'<h2 id="failed-title">{counted(len(failed), "recording")} failed</h2>\n'
        f"<p>{', '.join(names)}</p>\n</section>\n"
    )


_COLUMNS = (
    ("Recording", "name", "text"),
    ("Status", "status", "number"),
    ("Alerts", "number", "number"),
    ("In alert", "number", "number"),
    ("Highest score", "number", "number"),
    ("Score over time", "plot-cell", ""),
    ("Length", "number", "number"),
    ("Uninformative", "number", "number"),
    ("Warnings", "number", "number"),
    ("Took", "number", "number"),
)
"""What stands above a column, its class, and how rows are sorted by it."""


def _table(
    rows: Sequence[Row], glances: Sequence[Glance | None], reports: Sequence[str | None]
) -> str:
    head = "".join(
        f'<th scope="col" class="{kind}"{f" data-by={by}" * bool(by)}>{what}</th>'
        for what, kind, by in _COLUMNS
    )
    body = "".join(
        _row(k, *each) for k, each in enumerate(zip(rows, glances, reports, strict=True))
    )
    return (
        '<section class="recordings" aria-labelledby="recordings-title">\n'
        '<h2 id="recordings-title">Recordings</h2>\n'
        '<svg class="shared" width="0" height="0" aria-hidden="true"><defs><pattern id="hatch" '
        'width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect class="ground" width="7" height="7"/><rect class="stripe" width="2" height="7"/>'
        "</pattern></defs></svg>\n"
        f'<table id="recordings">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table>\n</section>\n"
    )


def _row(number: int, row: Row, glance: Glance | None, report: str | None) -> str:
    """A recording. What is not known of it is an empty cell, which sorts last."""
    counts, warnings, fate = row["counts"], row["warnings"], FATES[row["status"]]
    status, before = row["status"], ""
    if is_incomplete(status, counts):
        before = f"<small>{fate.word.lower()}</small>" * (status == "already_done")
        status, fate = "incomplete", _INCOMPLETE
    name = safe(printable(Path(row["name"])))
    said = f"<b>{name}</b>" if report is None else f'<a href="{beside(report)}">{name}</a>'
    if row["reason"]:
        said += f"<small>{safe(row['reason'])}</small>"
    for warning in warnings[:_MOST_WARNINGS]:
        said += f'<small class="warned">{safe(warning)}</small>'
    if (more := len(warnings) - _MOST_WARNINGS) > 0:
        said += f'<small class="warned">and {counted(more, "more warning")}</small>'
    if counts and glance is None:
        said += '<small class="warned">its scores or alerts cannot be read</small>'
    frames, took = counts.get("frames", 0), row["seconds"]
    alerts = peak = alert_s = length_s = unclear = took_text = ""
    if counts:
        alerts = _cell(counts["alerts"], f"{counts['alerts']:,}", zero=not counts["alerts"])
    if frames:
        share = (frames - counts["informative_frames"]) / frames
        unclear = _cell(share, percent(share, 1))
    if glance is not None:
        empty = f"{length(glance.empty_s)} without frames" if glance.empty_s else ""
        length_s = _cell(glance.length_s, length(glance.length_s), more=empty)
        shown = length(glance.alert_s) if counts.get("alerts") else ""
        alert_s = _cell(glance.alert_s, shown)
        if glance.peak is not None:
            peak = _cell(glance.peak, score_text(glance.peak))
        took = glance.took_s
    if took is not None:
        on = "" if row["node"] is None else printable(Path(row["node"]))
        on += f", {row['tries']} tries" * (row["tries"] > 1)
        took_text = _cell(took, length(took), more=on.removeprefix(", "))
    warned = _cell(len(warnings), f"{len(warnings)}" if warnings else "") if counts else ""
    return (
        f'<tr id="r{number}" class="{status}">'
        f'<th scope="row" class="name">{said}</th>'
        f'<td class="status" data-v="{fate.gravity}"><span>{fate.word}</span>{before}</td>'
        + "".join(each or "<td></td>" for each in (alerts, alert_s, peak))
        + f'<td class="plot-cell">{"" if glance is None else glance.line}</td>'
        + "".join(each or "<td></td>" for each in (length_s, unclear, warned, took_text))
        + "</tr>\n"
    )


def _cell(value: float, text: str, *, zero: bool = False, more: str = "") -> str:
    """A cell with a number: what rows are sorted by, and what is read."""
    beneath = f"<small>{safe(more)}</small>" * bool(more)
    return f'<td data-v="{value:.6g}"{" class=zero" * zero}>{safe(text)}{beneath}</td>'


def _legend() -> str:
    states = "".join(
        f'<div><dt><svg width="12" height="12" aria-hidden="true"><rect class="{name}" width="12" '
        f'height="12" rx="2"/></svg> {name}</dt><dd>{safe(STATE_WORDS[name])}</dd></div>'
        for name in ("ALERT", "WATCH", "NORMAL", "UNCLEAR")
    )
    return (
        '<section class="legend" aria-labelledby="legend-title">\n'
        f'<h2 id="legend-title">How to read it</h2>\n<dl>{states}'
        '<div><dt><svg width="12" height="12" aria-hidden="true"><rect class="gap" width="12" '
        'height="12"/></svg> hatched</dt><dd>no frames</dd></div></dl>\n'
        "<p>Each line is a whole recording, however long it is, in at most "
        f"{LINE_COLUMNS} columns: each shows the highest score and the gravest state of its "
        "stretch, so of a long recording a short alert looks longer than it was. The scale grows "
        "with each nine: 0.9, 0.99 and 0.999 stand at equal steps. The dashed line is where alerts "
        "open, and red above marks each alert. A name leads to the recording's own report.</p>\n"
        f"<p>{safe(SCORE_MEANING)}</p>\n</section>\n"
    )


def _batch_facts(batch: Batch) -> str:
    asked = [
        name.replace("_", "-") if value is True else f"{name.replace('_', '-')}: {_in_words(value)}"
        for name, value in batch["options"].items()
        if value not in (None, False, [])
    ]
    return facts(
        "the batch",
        [
            (
                "What was done",
                [
                    ("ccdstream", batch["ccdstream"]),
                    ("Model", batch["model"]),
                    ("Options", "; ".join(asked)),
                    ("Command", " ".join(["ccdstream", *batch["command"]])),
                ][: None if batch["command"] else 3],
            )
        ],
    )


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return short_time(value, 2) if isinstance(value, float) else str(value)
