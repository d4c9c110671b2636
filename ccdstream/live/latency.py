"""Delays by stage, for hours, in memory that does not grow.

A histogram whose bins grow by 1 %: a quantile is that of all delays ever added, exact in rank and
to 1 % in value. The largest delay is kept as it was.
"""

import math
from collections.abc import Sequence

import numpy as np

STEP = 1.01
"""Each bin ends this much above where it begins."""
SHORTEST_S = 1e-5
"""Shorter delays share the first bin."""
LONGEST_S = 1000.0
"""Longer ones share the last."""
_BINS = math.ceil(math.log(LONGEST_S / SHORTEST_S) / math.log(STEP)) + 2


class Delays:
    """How long something took, many times over."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._sum_s = 0.0
        self.count = 0
        self.max_s = 0.0

    def add(self, seconds: float) -> None:
        """Take one in; below 0 counts as 0."""
        seconds = max(seconds, 0.0)
        self._counts[_bin_of(seconds)] += 1
        self._sum_s += seconds
        self.count += 1
        self.max_s = max(self.max_s, seconds)

    def quantile(self, share: float) -> float:
        """The smallest delay, in seconds, that `share` of them do not exceed; nan for none.

        At most 1 % above the true one, never below it.

        Args:
            share: in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        if self.count == 0:
            return math.nan
        rank = math.ceil(share * self.count)
        found = int(np.searchsorted(np.cumsum(self._counts), rank))
        return min(SHORTEST_S * STEP**found, self.max_s)

    @property
    def mean_s(self) -> float:
        """nan for none."""
        return self._sum_s / self.count if self.count else math.nan

    def summary(self) -> dict[str, float]:
        """p50, p95, p99 and max, in seconds, and how many; empty for none."""
        if self.count == 0:
            return {}
        quantiles = {f"p{round(100 * share)}": self.quantile(share) for share in (0.5, 0.95, 0.99)}
        return {**quantiles, "max": self.max_s, "mean": self.mean_s, "count": self.count}


def _bin_of(seconds: float) -> int:
    """Bin k holds delays above SHORTEST_S STEP^(k - 1), up to SHORTEST_S STEP^k."""
    if seconds <= SHORTEST_S:
        return 0
    return min(math.ceil(math.log(seconds / SHORTEST_S) / math.log(STEP)), _BINS - 1)


class StageDelays:
    """Delays of several stages, by name. Each stage may be added to in a thread of its own."""

    def __init__(self, stages: Sequence[str]) -> None:
        self._stages = {stage: Delays() for stage in stages}

    def add(self, stage: str, seconds: float) -> None:
        """Take one in of a stage."""
        self._stages[stage].add(seconds)

    def __getitem__(self, stage: str) -> Delays:
        """Those of a stage."""
        return self._stages[stage]

    def summary(self) -> dict[str, dict[str, float]]:
        """`Delays.summary` by stage, without those that never were."""
        return {stage: delays.summary() for stage, delays in self._stages.items() if delays.count}

    def counters(self) -> dict[str, float]:
        """delay.STAGE.p50, .p95, .p99 and .max, in seconds, for a board."""
        return {
            f"delay.{stage}.{name}": summary[name]
            for stage, summary in self.summary().items()
            for name in ("p50", "p95", "p99", "max")
        }
