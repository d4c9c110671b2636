"""What is counted of a live session, and that Prometheus reads it."""

import time

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ccdstream import __version__
from ccdstream.frames import Colour, Frame
from ccdstream.live import metrics
from ccdstream.live.board import Board
from ccdstream.live.records import TIME_BASE, Shown, Status

GREY = Frame(
    np.full((4, 6), 90, np.uint8), np.full((2, 3), 128, np.uint8), np.full((2, 3), 128, np.uint8),
    0, TIME_BASE, Colour("bt601", full_range=False),
)  # fmt: skip


def shown(status: Status, *, age_s: float = 0.0, frame: Frame | None = GREY) -> Shown:
    return Shown(frame, 1, 0.0, time.monotonic() - age_s, status, "NORMAL", 0.5, 0.02)


def samples(board: Board) -> dict[tuple[str, ...], float]:
    """By name, and label values in the order of the labels' names."""
    text = metrics.exposition(board)[0].decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_totals_delays_and_status_are_exposed_under_their_names() -> None:
    board = Board()
    board.tell({"model": "m1", "recording": "live.overlay.000.mp4"})
    board.show(shown(Status("UNCLEAR", "blurred")))
    board.count(
        {metrics.CAPTURED: 10, metrics.ANALYSED: 7, metrics.DROPPED_SLOT: 2, "dropped.odd": 1}
        | {metrics.GAPS: 3, metrics.ALERTS: 4, metrics.CONNECTIONS: 5}
        | metrics.delay_figures(metrics.CAPTURE_TO_RESULT, [0.01, 0.02, 0.03])
    )
    found = samples(board)
    prefix = "ccdstream_live_"
    assert found[prefix + "frames_captured_total",] == 10
    assert found[prefix + "frames_analysed_total",] == 7
    assert found[prefix + "frames_dropped_total", "slot"] == 2
    assert found[prefix + "frames_dropped_total", "late"] == 0
    assert found[prefix + "frames_dropped_total", "odd"] == 1
    assert found[prefix + "gaps_total",] == 3
    assert found[prefix + "alerts_total",] == 4
    assert found[prefix + "connections_total",] == 5
    assert found[prefix + "delay_seconds", "0.5", "capture_to_result"] == 0.02
    assert found[prefix + "delay_seconds", "1", "capture_to_result"] == 0.03
    assert found[prefix + "status", "UNCLEAR"] == 1
    assert sum(n for name, n in found.items() if name[0] == prefix + "status") == 1
    assert found[prefix + "recording",] == 1
    assert found[prefix + "build_info", "m1", __version__] == 1
    assert 0 <= found[prefix + "picture_age_seconds",] < 60


def test_a_board_that_nobody_wrote_to_has_totals_of_zero_and_no_signal() -> None:
    found = samples(Board())
    assert found["ccdstream_live_frames_captured_total",] == 0
    assert found["ccdstream_live_status", "NO SIGNAL"] == 1
    assert ("ccdstream_live_picture_age_seconds",) not in found


def test_delay_figures_are_nearest_rank_and_none_without_delays() -> None:
    found = metrics.delay_figures("s", [k / 100 for k in range(100, 0, -1)])
    assert found == {"delay.s.p50": 0.5, "delay.s.p95": 0.95, "delay.s.p99": 0.99, "delay.s.max": 1}
    assert metrics.delay_figures("s", []) == {}


@pytest.mark.parametrize(
    ("age_s", "kind"),
    [(0.0, "READY"), (metrics.STALLED_S + 1, "NO SIGNAL")],
    ids=["fresh", "stuck"],
)
def test_a_session_that_is_stuck_has_no_signal_whatever_it_last_said(
    age_s: float, kind: str
) -> None:
    board = Board()
    board.show(shown(Status("READY"), age_s=age_s))
    assert metrics.status_now(board).kind == kind
    assert metrics.healthy(board) is (kind == "READY")


def test_a_session_that_is_over_is_not_healthy() -> None:
    board = Board()
    board.show(shown(Status("READY")))
    board.close()
    assert not metrics.healthy(board)
    assert "over" in metrics.status_now(board).detail
