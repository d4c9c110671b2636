import math

import numpy as np
import pytest

from ccdstream.alert import (
    LONGEST_BLIND_S,
    LONGEST_HOLE_S,
    Alert,
    AlertRule,
    AlertTracker,
    Observation,
    Region,
    clock_position,
    hottest_region,
)
from ccdstream.errors import BundleError
from ccdstream.frames import FieldOfView

FIELD = FieldOfView(100, 50, 400, 200, np.array([[100, 50], [499, 50], [499, 249], [100, 249]]))


def rule(
    min_duration_s: float = 0.0, merge_gap_s: float = 0.0, refractory_s: float = 0.0
) -> AlertRule:
    return AlertRule(0.8, 0.6, min_duration_s, merge_gap_s, refractory_s)


def observe(seconds: float, score: float | None) -> Observation:
    """A frame; None for an uninformative one. Its box tells which frame it was."""
    return Observation(
        seconds=seconds,
        pts=round(seconds * 1000),
        score=1.0 if score is None else score,
        raw=10 * (1.0 if score is None else score),
        informative=score is not None,
        evidence=lambda: Region((round(seconds * 1000), 0, 1, 1), 3),
    )


def alerts_of(
    scores: list[float | None], alert_rule: AlertRule, step_s: float = 1.0
) -> list[Alert]:
    """The alerts of one score every `step_s`."""
    tracker = AlertTracker(alert_rule, model="m")
    found = []
    for number, score in enumerate(scores):
        found += tracker.update(observe(number * step_s, score))
    return found + tracker.finish()


def spans(alerts: list[Alert]) -> list[tuple[float, float]]:
    return [(alert.start_s, alert.end_s) for alert in alerts]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], []),
        ([0.1, 0.7, 0.1], []),
        ([0.1, 0.9, 0.9, 0.1], [(1, 2)]),
        ([0.8, 0.6, 0.59], [(0, 1)]),
        ([0.9, 0.7, 0.9, 0.1], [(0, 2)]),
        ([0.9, 0.1, 0.95], [(0, 0), (2, 2)]),
        ([0.9, 0.1, 0.7, 0.7, 0.1], [(0, 0)]),
        ([0.1, 0.9, 0.9], [(1, 2)]),
    ],
    ids=[
        "empty",
        "below-enter",
        "plain",
        "thresholds-are-included",
        "dip-between-thresholds",
        "two",
        "between-thresholds-does-not-reopen",
        "open-at-end",
    ],
)
def test_hysteresis(scores: list[float | None], expected: list[tuple[float, float]]) -> None:
    assert spans(alerts_of(scores, rule())) == expected


def test_drops_alerts_shorter_than_the_minimum() -> None:
    scores = [0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.1]
    assert spans(alerts_of(scores, rule(min_duration_s=2))) == [(3, 5)]


def test_merges_across_the_gap_and_not_across_a_longer_one() -> None:
    scores = [0.9, 0.1, 0.9, 0.1, 0.1, 0.9]
    assert spans(alerts_of(scores, rule(merge_gap_s=2))) == [(0, 2), (5, 5)]


def test_short_stretches_close_together_count_as_one() -> None:
    scores = [0.9, 0.1, 0.9, 0.1, 0.9, 0.1]
    both = rule(min_duration_s=3, merge_gap_s=2)
    assert spans(alerts_of(scores, both)) == [(0, 4)]


def test_a_gap_that_only_reaches_leave_is_not_merged() -> None:
    assert spans(alerts_of([0.9, 0.1, 0.7, 0.1, 0.1], rule(merge_gap_s=3))) == [(0, 0)]


def test_refractory_keeps_the_next_alert_from_opening() -> None:
    scores = [0.9, 0.1, 0.9, 0.9, 0.9, 0.9, 0.1]
    assert spans(alerts_of(scores, rule(refractory_s=4))) == [(0, 0), (4, 5)]


def test_dropped_alerts_start_no_refractory_time() -> None:
    scores = [0.9, 0.1, 0.9, 0.9, 0.9, 0.1]
    assert spans(alerts_of(scores, rule(min_duration_s=2, refractory_s=9))) == [(2, 4)]


def test_times_are_stream_time_not_frame_counts() -> None:
    tracker = AlertTracker(rule(min_duration_s=2), model="m")
    uneven = [(0.0, 0.9), (0.1, 0.9), (0.2, 0.1), (5.0, 0.9), (7.0, 0.9), (7.1, 0.1)]
    found = [alert for t, score in uneven for alert in tracker.update(observe(t, score))]
    assert spans(found) == [(5.0, 7.0)]


def slow_spans(scores: list[float], alert_rule: AlertRule) -> list[tuple[float, float]]:
    """The rule once more, with the whole recording at hand: segments, then merge, then length."""
    segments: list[tuple[int, int]] = []
    t = 0
    while t < len(scores):
        if scores[t] < alert_rule.enter:
            t += 1
            continue
        end = t
        while end + 1 < len(scores) and scores[end + 1] >= alert_rule.leave:
            end += 1
        segments.append((t, end))
        t = end + 1
    merged: list[tuple[int, int]] = []
    for start, end in segments:
        if merged and start - merged[-1][1] <= alert_rule.merge_gap_s:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return [span for span in merged if span[1] - span[0] >= alert_rule.min_duration_s]


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_the_rule_applied_to_the_whole_recording(seed: int) -> None:
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.normal(scale=0.15, size=400))
    scores = (0.7 + 0.3 * np.sin(walk)).tolist()
    chosen = rule(min_duration_s=rng.integers(0, 5), merge_gap_s=rng.integers(0, 6))
    found = alerts_of(scores, chosen)
    assert spans(found) == slow_spans(scores, chosen)
    for alert in found:
        inside = scores[int(alert.start_s) : int(alert.end_s) + 1]
        assert alert.peak_score == max(inside)
        assert alert.frames == alert.informative_frames == len(inside)


def test_uninformative_frames_do_not_open_an_alert() -> None:
    assert alerts_of([0.1, None, None, None, 0.1], rule()) == []


def test_uninformative_frames_do_not_close_an_alert() -> None:
    (alert,) = alerts_of([0.9, None, None, 0.9, 0.1], rule())
    assert (alert.start_s, alert.end_s, alert.frames, alert.informative_frames) == (0, 3, 4, 2)


def test_uninformative_frames_after_the_last_informative_one_do_not_count() -> None:
    (alert,) = alerts_of([0.9, 0.9, None, None], rule())
    assert (alert.end_s, alert.frames, alert.informative_frames) == (1, 2, 2)


def test_frames_of_a_merged_gap_count() -> None:
    (alert,) = alerts_of([0.9, 0.1, None, 0.9], rule(merge_gap_s=5))
    assert (alert.frames, alert.informative_frames) == (4, 3)


def test_no_alert_is_carried_over_a_long_blind_stretch() -> None:
    blind: list[float | None] = [None] * round(LONGEST_BLIND_S)
    assert spans(alerts_of([0.9, *blind[1:], 0.9], rule())) == [(0, LONGEST_BLIND_S)]
    first, second = alerts_of([0.9, *blind, 0.9], rule())
    assert (first.end_s, second.start_s) == (0, LONGEST_BLIND_S + 1)


def test_a_hole_in_the_stream_ends_the_alert_too() -> None:
    tracker = AlertTracker(rule(), model="m")
    assert tracker.update(observe(0, 0.9)) == []
    assert tracker.update(observe(LONGEST_HOLE_S, 0.9)) == []
    (alert,) = tracker.update(observe(2 * LONGEST_HOLE_S + 0.1, 0.9))
    assert spans([alert, *tracker.finish()]) == [(0, LONGEST_HOLE_S), (4.1, 4.1)]


def test_time_that_runs_backwards_ends_the_alert() -> None:
    tracker = AlertTracker(rule(refractory_s=100), model="m")
    tracker.update(observe(50, 0.9))
    (first,) = tracker.update(observe(3, 0.9))
    assert spans([first, *tracker.finish()]) == [(50, 50), (3, 3)]


def test_alert_comes_as_soon_as_nothing_can_be_added() -> None:
    tracker = AlertTracker(rule(merge_gap_s=2), model="m")
    counts = [len(tracker.update(observe(t, s))) for t, s in enumerate([0.9, 0.1, 0.1, 0.1, 0.1])]
    assert counts == [0, 0, 0, 1, 0]
    assert tracker.finish() == []


def test_the_merge_gap_runs_out_on_uninformative_frames_too() -> None:
    tracker = AlertTracker(rule(merge_gap_s=2), model="m")
    counts = [len(tracker.update(observe(t, s))) for t, s in enumerate([0.9, 0.1, None, None])]
    assert counts == [0, 0, 0, 1]


def test_alert_says_why() -> None:
    scores = [0.1, 0.85, 0.97, 0.97, None, 0.7, 0.1]
    (alert,) = alerts_of(scores, rule(), step_s=0.04)
    assert alert == Alert(
        number=1,
        start_pts=40,
        start_s=0.04,
        end_pts=200,
        end_s=0.2,
        peak_pts=80,
        peak_s=0.08,
        peak_score=0.97,
        peak_raw=pytest.approx(9.7),
        box=(80, 0, 1, 1),
        clock=3,
        frames=5,
        informative_frames=4,
        model="m",
    )
    assert alert.duration_s == pytest.approx(0.16)


def test_alerts_are_numbered_in_order() -> None:
    assert [alert.number for alert in alerts_of([0.9, 0.1, 0.9, 0.1, 0.9], rule())] == [1, 2, 3]


def test_evidence_is_looked_for_only_where_a_peak_rises() -> None:
    looked = []

    def evidence_at(seconds: float) -> Region | None:
        looked.append(seconds)
        return None

    tracker = AlertTracker(rule(), model="m")
    for t, score in enumerate([0.1, 0.7, 0.9, 0.85, 0.95, 0.95, 0.1]):
        tracker.update(
            Observation(float(t), t, score, score, True, lambda t=t: evidence_at(float(t)))
        )
    assert looked == [2.0, 4.0]


def test_alert_without_a_region_has_no_box() -> None:
    tracker = AlertTracker(rule(), model="m")
    tracker.update(Observation(0.0, 0, 0.9, 9.0, True, lambda: None))
    (alert,) = tracker.finish()
    assert (alert.box, alert.clock) == (None, None)


def test_state_tells_what_the_overlay_shows() -> None:
    tracker = AlertTracker(rule(min_duration_s=2, merge_gap_s=1, refractory_s=20), model="m")
    assert tracker.state == "UNCLEAR"
    states = []
    for t, score in enumerate([0.1, 0.9, 0.9, 0.9, None, 0.7, 0.1, 0.7, 0.1, 0.9]):
        tracker.update(observe(t, score))
        states.append(tracker.state)
    assert states == [
        "NORMAL",
        "WATCH",
        "WATCH",
        "ALERT",
        "UNCLEAR",
        "ALERT",
        "NORMAL",
        "NORMAL",
        "NORMAL",
        "WATCH",
    ]


def test_an_open_alert_is_told_from_when_it_is_long_enough_until_it_is_given_back() -> None:
    tracker = AlertTracker(rule(min_duration_s=2, merge_gap_s=2), model="m")
    told: list[tuple[int, float, float] | None] = []
    closed = []
    scores = [0.1, 0.9, 0.9, 0.85, 0.95, 0.1, 0.1, 0.1, 0.1, 0.9, 0.1]
    for t, score in enumerate(scores):
        closed += tracker.update(observe(float(t), score))
        o = tracker.open
        told.append(None if o is None else (o.number, o.start_s, o.peak_s))
    first = [(1, 1.0, 1.0), (1, 1.0, 4.0), (1, 1.0, 4.0), (1, 1.0, 4.0)]
    assert told == [None, None, None, *first, None, None, None, None]
    assert [(a.number, a.start_s, a.peak_s) for a in closed] == [(1, 1.0, 4.0)]


def test_an_alert_is_open_from_its_first_frame_where_none_is_too_short() -> None:
    tracker = AlertTracker(rule(), model="m")
    tracker.update(observe(3.0, 0.9))
    assert tracker.open is not None
    assert (tracker.open.start_s, tracker.open.peak_score, tracker.open.clock) == (3.0, 0.9, 3)


def test_a_break_closes_an_alert_and_the_next_one_has_the_next_number() -> None:
    tracker = AlertTracker(rule(merge_gap_s=60), model="m")
    tracker.update(observe(0.0, 0.9))
    assert spans(tracker.finish()) == [(0, 0)] and tracker.open is None
    assert tracker.finish() == []
    tracker.update(observe(1.0, 0.9))
    assert tracker.open is not None and tracker.open.number == 2


def test_every_alert_that_was_told_open_is_given_back() -> None:
    """Whatever the scores and the rule: what a viewer saw open is never taken back."""
    random = np.random.default_rng(3)
    for _ in range(200):
        alert_rule = rule(*random.choice([0.0, 1.0, 3.0], 3))
        tracker = AlertTracker(alert_rule, model="m")
        told, closed = set(), set()
        for t in range(40):
            score = None if random.random() < 0.1 else float(random.choice([0.3, 0.7, 0.9]))
            closed |= {a.number for a in tracker.update(observe(float(t), score))}
            told |= {o.number} if (o := tracker.open) else set()
        assert told <= closed | {a.number for a in tracker.finish()}


def test_rule_is_read_from_the_manifest() -> None:
    data = {
        "enter": 0.99,
        "leave": 0.9,
        "min_duration_s": 0.4,
        "merge_gap_s": 1,
        "refractory_s": 2,
        "time_constant_s": 0.3,
    }
    assert AlertRule.from_dict(data) == AlertRule(0.99, 0.9, 0.4, 1.0, 2.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"leave": 0.995},
            "expected 0 < leave <= enter <= 1, got leave 0.995 and enter 0.99.",
        ),
        ({"enter": 1.2}, "expected 0 < leave <= enter <= 1"),
        ({"enter": math.nan}, "expected 0 < leave <= enter <= 1"),
        ({"merge_gap_s": -1}, "merge_gap_s must be 0 or more"),
        ({"min_duration_s": "long"}, "could not convert"),
        ({"hold_s": 1}, "has the keys .*hold_s.*; expected enter"),
    ],
)
def test_damaged_rule_is_refused(change: dict[str, object], says: str) -> None:
    data = {"enter": 0.99, "leave": 0.9, "min_duration_s": 0, "merge_gap_s": 0, "refractory_s": 0}
    with pytest.raises(BundleError, match=says):
        AlertRule.from_dict(data | change)


def heat_with(*patches: tuple[slice, slice, float]) -> np.ndarray:
    """A map of 20 x 40 cells, each 10 x 10 frame pixels of `FIELD`, at 0.5 but for the patches."""
    heat = np.full((20, 40), 0.5, np.float32)
    for rows, columns, value in patches:
        heat[rows, columns] = value
    return heat


def test_region_is_the_box_of_the_hot_cells_in_frame_pixels() -> None:
    heat = heat_with((slice(2, 5), slice(30, 34), 0.999))
    assert hottest_region(heat, FIELD) == Region((100 + 300, 50 + 20, 40, 30), clock=2)


def test_a_patch_outweighs_a_single_hotter_cell() -> None:
    heat = heat_with((slice(2, 5), slice(30, 34), 0.995), (slice(15, 16), slice(3, 4), 1.0))
    region = hottest_region(heat, FIELD)
    assert region is not None and region.box == (400, 70, 40, 30)


def test_hotter_patch_wins_over_an_equal_one() -> None:
    heat = heat_with((slice(2, 4), slice(2, 4), 0.995), (slice(10, 12), slice(10, 12), 0.999))
    region = hottest_region(heat, FIELD)
    assert region is not None and region.box == (200, 150, 20, 20)


def test_cells_that_touch_at_a_corner_are_one_region() -> None:
    heat = heat_with((slice(2, 3), slice(2, 3), 0.999), (slice(3, 4), slice(3, 4), 0.999))
    region = hottest_region(heat, FIELD)
    assert region is not None and region.box == (120, 70, 20, 20)


def test_invalid_cells_are_never_part_of_a_region() -> None:
    heat = heat_with((slice(2, 6), slice(2, 6), 0.999))
    heat[2:6, 2:5] = np.nan
    region = hottest_region(heat, FIELD)
    assert region is not None and region.box == (150, 70, 10, 40)


@pytest.mark.parametrize("value", [0.98, np.nan], ids=["below-threshold", "all-invalid"])
def test_no_region_where_nothing_is_hot(value: float) -> None:
    assert hottest_region(np.full((20, 40), value, np.float32), FIELD) is None


def test_region_covers_cells_that_do_not_fall_on_whole_pixels() -> None:
    field = FieldOfView(0, 0, 33, 35, np.array([[0, 0], [32, 0], [32, 34], [0, 34]]))
    region = hottest_region(np.full((64, 64), 0.999, np.float32), field)
    assert region == Region((0, 0, 33, 35), "centre")


@pytest.mark.parametrize(
    ("hour", "degrees"), [(hour, 30.0 * hour) for hour in range(1, 13)], ids=str
)
@pytest.mark.parametrize("off_degrees", [-14.0, 0.0, 14.0])
def test_clock_position_is_where_the_hand_points(
    hour: int, degrees: float, off_degrees: float
) -> None:
    angle = math.radians(degrees + off_degrees)
    x, y = 300 + 90 * math.sin(angle), 150 - 90 * math.cos(angle)
    assert clock_position(FIELD, x, y) == hour


def test_near_the_centre_there_is_no_direction() -> None:
    assert clock_position(FIELD, 305, 148) == "centre"


def test_an_alert_says_whether_the_frames_ended_before_it() -> None:
    for scores, open_at_end in (
        ([0.9, 0.9], True),
        ([0.9, 0.9, None], True),
        ([0.9, 0.9, 0.1], False),
        ([0.9, 0.9, 0.1, 0.1, 0.1, 0.1], False),
    ):
        (alert,) = alerts_of(scores, rule(merge_gap_s=2))
        assert alert.open_at_end is open_at_end, scores
