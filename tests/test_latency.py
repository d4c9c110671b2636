"""Delays over hours: exact in rank, within 1 % in value, in memory that does not grow."""

import math

import numpy as np
import pytest

from ccdstream.live.latency import LONGEST_S, SHORTEST_S, STEP, Delays, StageDelays


@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 0.95, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 20_000])
def test_quantiles_are_those_of_numpy_to_one_percent(count: int, share: float) -> None:
    values = np.random.default_rng(count).lognormal(-3.5, 1.0, count)
    delays = Delays()
    for value in values:
        delays.add(value)
    true = float(np.quantile(values, share, method="inverted_cdf"))
    assert true * (1 - 1e-12) <= delays.quantile(share) <= true * STEP * (1 + 1e-9)


def test_the_largest_is_kept_as_it_was() -> None:
    delays = Delays()
    for value in (0.012345, 0.3333, 0.2):
        delays.add(value)
    assert delays.max_s == 0.3333
    assert delays.quantile(1.0) == 0.3333


def test_out_of_range_values_count_in_the_first_and_last_bin() -> None:
    delays = Delays()
    for value in (-1.0, 0.0, SHORTEST_S / 10, 10 * LONGEST_S):
        delays.add(value)
    assert delays.count == 4
    assert delays.quantile(0.75) == SHORTEST_S
    assert delays.max_s == 10 * LONGEST_S
    assert LONGEST_S <= delays.quantile(1.0) <= 1.03 * LONGEST_S


def test_memory_does_not_grow_with_the_number_of_delays() -> None:
    delays = Delays()
    before = delays._counts.nbytes
    for k in range(5000):
        delays.add(k * 1e-4)
    assert delays._counts.nbytes == before < 20_000


def test_none_has_no_quantile_and_an_empty_summary() -> None:
    assert math.isnan(Delays().quantile(0.5)) and math.isnan(Delays().mean_s)
    assert Delays().summary() == {}
    with pytest.raises(ValueError, match="share must be above 0"):
        Delays().quantile(0)


def test_stages_are_told_apart_and_named_in_counters() -> None:
    stages = StageDelays(("look", "score", "never"))
    stages.add("look", 0.01)
    stages.add("score", 0.02)
    stages.add("score", 0.04)
    assert list(stages.summary()) == ["look", "score"]
    assert stages["score"].count == 2 and stages["never"].count == 0
    counters = stages.counters()
    assert counters["delay.score.max"] == 0.04
    assert set(counters) == {
        f"delay.{stage}.{name}"
        for stage in ("look", "score")
        for name in ("p50", "p95", "p99", "max")
    }
