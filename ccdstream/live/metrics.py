"""What a live session counts, and the same for Prometheus.

The session writes totals and figures of delay on the board under the names below; `exposition`
gives them, with the status, in Prometheus' text format.

    captured, analysed, shown       frames, since the session began
    dropped.CAUSE                   frames that were not analysed, or not recorded
    gaps, pauses                    how often there was no signal, and nothing to record
    connections, alerts             how often
    delay.STAGE.FIGURE              seconds; FIGURE is p50, p95, p99 or max
    watchers, pictures              written by the page: who watches now, JPEGs made for them
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ccdstream import __version__
from ccdstream.live.board import Board
from ccdstream.live.records import Status, StatusKind

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CAPTURED = "captured"
"""Frames that arrived from the source."""
ANALYSED = "analysed"
"""Frames that were scored."""
SHOWN = "shown"
"""Pictures that were put on the board."""
GAPS = "gaps"
"""Stretches without a signal."""
PAUSES = "pauses"
"""Times that a recording had no frame to write for long, and then went on in a new file."""
CONNECTIONS = "connections"
"""Times that the source was opened."""
ALERTS = "alerts"
"""Alerts that opened."""
WATCHERS = "watchers"
"""Browsers that watch right now."""
PICTURES = "pictures"
"""JPEGs that were made for them."""

DROPPED = "dropped."
"""Followed by the cause."""
DROPPED_SLOT = DROPPED + "slot"
"""A newer frame came before this one was taken."""
DROPPED_LATE = DROPPED + "late"
"""It was older than the bound when its turn came."""
DROPPED_RECORDER = DROPPED + "recorder"
"""The recorder could not keep up."""

DELAY = "delay."
"""Followed by the stage, a dot and the figure."""
CAPTURE_TO_RESULT = "capture_to_result"
CAPTURE_TO_SCREEN = "capture_to_screen"
"""Stage that the page measures: until the browser says that it has drawn the picture, so the way
back is in it."""
FIGURES: Mapping[str, float] = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
"""Name and quantile."""

STATUSES: tuple[StatusKind, ...] = ("READY", "NO SIGNAL", "OUT OF VIEW", "UNCLEAR", "LAG")

STALLED_S = 2.0
"""A picture that is older than two bounds of the delay by so much is no longer what the source
shows, whatever was said of it."""

_TOTALS = {
    CAPTURED: ("frames_captured", "Frames that arrived from the source."),
    ANALYSED: ("frames_analysed", "Frames that were scored."),
    SHOWN: ("pictures_shown", "Pictures put before those who watch."),
    GAPS: ("gaps", "Stretches without a signal."),
    PAUSES: ("recording_pauses", "Times that a recording had no frame for long and went on."),
    CONNECTIONS: ("connections", "Times that the source was opened."),
    ALERTS: ("alerts", "Alerts that opened."),
    PICTURES: ("pictures_encoded", "JPEGs made for the page."),
}


def delay_figures(stage: str, seconds: Sequence[float]) -> dict[str, float]:
    """Counters of one stage's delays: nearest-rank percentiles and the largest; empty for none."""
    ranked = sorted(seconds)
    return {
        f"{DELAY}{stage}.{figure}": ranked[max(math.ceil(share * len(ranked)) - 1, 0)]
        for figure, share in FIGURES.items()
        if ranked
    }


def status_now(board: Board) -> Status:
    """What may be said of the picture at this moment, also where the session itself is stuck."""
    if board.closed:
        return Status("NO SIGNAL", "the session is over")
    shown = board.shown
    if shown is not None and shown.frame is not None:
        age_s = time.monotonic() - shown.captured_at_s
        if age_s > STALLED_S + 2 * board.facts().get("max_latency_s", 0.0):
            return Status("NO SIGNAL", f"the analysis gave no picture for {age_s:.0f} s")
    return board.status


def healthy(board: Board) -> bool:
    """Whether a picture is there and the session goes on."""
    return status_now(board).kind != "NO SIGNAL"


def exposition(board: Board) -> tuple[bytes, str]:
    """The board for Prometheus: (body, its content type)."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    from prometheus_client.registry import Collector

    class FromBoard(Collector):
        def collect(self) -> "Iterator[Metric]":
            return _families(board)

    registry = CollectorRegistry()
    registry.register(FromBoard())
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _families(board: Board) -> "Iterator[Metric]":
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        InfoMetricFamily,
    )

    prefix = "ccdstream_live_"
    counters, facts, now = board.counters(), board.facts(), status_now(board)
    for name, (metric, text) in _TOTALS.items():
        yield CounterMetricFamily(prefix + metric, text, value=counters.get(name, 0.0))

    dropped = CounterMetricFamily(
        prefix + "frames_dropped", "Frames not analysed or not recorded.", labels=["cause"]
    )
    causes = {DROPPED_SLOT: 0.0, DROPPED_LATE: 0.0, DROPPED_RECORDER: 0.0}
    causes |= {name: count for name, count in counters.items() if name.startswith(DROPPED)}
    for name, count in causes.items():
        dropped.add_metric([name.removeprefix(DROPPED)], count)
    yield dropped

    delay = GaugeMetricFamily(
        prefix + "delay_seconds",
        "Delay by stage; quantile 1 is the largest.",
        labels=["stage", "quantile"],
    )
    for name, seconds in counters.items():
        stage, _, figure = name.removeprefix(DELAY).rpartition(".")
        if name.startswith(DELAY) and figure in FIGURES:
            delay.add_metric([stage, f"{FIGURES[figure]:g}"], seconds)
    yield delay

    status = GaugeMetricFamily(
        prefix + "status", "1 for what the viewer is told, else 0.", labels=["kind"]
    )
    for kind in STATUSES:
        status.add_metric([kind], float(kind == now.kind))
    yield status

    yield GaugeMetricFamily(
        prefix + "watchers", "Browsers that watch.", value=counters.get(WATCHERS, 0.0)
    )
    yield GaugeMetricFamily(
        prefix + "recording",
        "1 while a recording is written.",
        value=float(bool(facts.get("recording")) and not facts.get("recording_failed")),
    )
    shown = board.shown
    if shown is not None and shown.frame is not None:
        yield GaugeMetricFamily(
            prefix + "picture_age_seconds",
            "Time since the capture of the latest picture.",
            value=max(time.monotonic() - shown.captured_at_s, 0.0),
        )
    yield InfoMetricFamily(
        prefix + "build",
        "What runs.",
        value={"version": __version__, "model": str(facts.get("model", ""))},
    )
