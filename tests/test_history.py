"""Scores over time in a fixed number of columns."""

import numpy as np
import pytest

from ccdstream.history import HISTORY_GAP_S, STATES, UNKNOWN_SPAN_S, History, on_scale, score_text


def test_puts_frames_where_their_time_is() -> None:
    history = History(10, start_s=100.0, span_s=10.0)
    for second in range(10):
        history.add(100.0 + second, second / 10, "NORMAL")
    np.testing.assert_allclose(history.score, np.arange(10) / 10, rtol=1e-6)
    assert (history.state == STATES.index("NORMAL")).all()
    assert history.now == 9


def test_column_keeps_the_highest_score_and_the_gravest_state() -> None:
    history = History(2, start_s=0.0, span_s=10.0)
    for seconds, score, state in ((0, 0.3, "NORMAL"), (1, 0.9, "ALERT"), (2, 0.1, "UNCLEAR")):
        history.add(seconds, score, state)
    assert history.score[0] == pytest.approx(0.9)
    assert STATES[history.state[0]] == "ALERT"
    assert history.state[1] == -1


def test_fills_between_frames_but_not_across_a_gap() -> None:
    history = History(100, start_s=0.0, span_s=10.0)
    history.add(0.0, 0.5, "NORMAL")
    history.add(0.5, 0.5, "NORMAL")
    history.add(0.5 + HISTORY_GAP_S + 1, 0.5, "NORMAL")
    assert np.flatnonzero(history.state >= 0).tolist() == [0, 1, 2, 3, 4, 5, 25]


def test_the_line_can_go_on_beyond_its_last_frame_and_is_empty_there() -> None:
    history = History(100, start_s=0.0, span_s=10.0)
    history.add(1.0, 0.5, "NORMAL")
    history.reach(15.0)
    assert (history.span_s, history.now) == (20.0, 75)
    assert np.flatnonzero(history.state >= 0).tolist() == [5]
    history.reach(3.0)
    assert history.now == 75, "it never goes back"


def test_of_unknown_length_rescales_and_forgets_no_peak() -> None:
    history = History(51, start_s=0.0, span_s=None)
    for tick in range(20_000):
        seconds = tick / 10
        alert = 9000 <= tick < 9100
        history.add(seconds, 0.99 if alert else 0.1, "ALERT" if alert else "NORMAL")
    assert history.span_s == UNKNOWN_SPAN_S * 2**7  # 2000 s need 3840 s
    assert len(history.score) == len(history.state) == 51
    hot = np.flatnonzero(history.state == STATES.index("ALERT"))
    np.testing.assert_allclose(hot / 51 * history.span_s, 905, atol=history.span_s / 51 * 1.5)
    assert (history.state[: history.now + 1] >= 0).all()
    assert (history.state[history.now + 1 :] == -1).all()


def test_has_no_holes_where_it_rescaled() -> None:
    history = History(600, start_s=0.0, span_s=30.0)
    for tick in range(80):
        history.add(tick / 2, 0.5, "NORMAL")
    assert (history.state[: history.now + 1] >= 0).all()


def test_does_not_rescale_for_the_last_frame_of_a_known_length() -> None:
    history = History(100, start_s=0.0, span_s=10.0)
    history.add(10.04, 0.5, "NORMAL")
    assert (history.span_s, history.now) == (10.0, 99)
    history.add(10.2, 0.5, "NORMAL")
    assert history.span_s == 20.0


def test_survives_a_duration_that_was_wrong() -> None:
    history = History(100, start_s=0.0, span_s=10.0)
    for second in range(100):
        history.add(float(second), 0.5, "NORMAL")
    assert history.span_s == 160.0
    assert history.now == 61


def test_takes_frames_before_its_start() -> None:
    history = History(10, start_s=5.0, span_s=10.0)
    history.add(4.0, 0.5, "NORMAL")
    assert history.now == 0


def test_on_the_scale_each_decade_nearer_to_one_is_as_tall_as_the_last() -> None:
    scores = np.array([-0.5, 0.0, 0.9, 0.99, 0.999, 0.99999, 1.0])
    np.testing.assert_allclose(on_scale(scores), [0, 0, 1 / 3, 2 / 3, 1, 1, 1], atol=1e-9)


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (0.0, "0.000"), (0.9904, "0.990"), (0.9906, "0.990"), (0.9949, "0.994"), (0.995, "0.995"),
        (float(np.float32(0.57)), "0.570"), (0.998936, "0.998"), (0.9995, "0.999"),
        (0.9999999, "0.999"), (1.0, "0.999"),
    ],
)  # fmt: skip
def test_a_score_that_reads_like_a_limit_has_reached_it_and_none_reads_as_one(
    score: float, text: str
) -> None:
    assert score_text(score) == text
