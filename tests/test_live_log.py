"""Events of a session, passed on in order, and the gaps among them."""

from pathlib import Path

import pytest

from ccdstream.live import log
from ccdstream.live.log import EventLog
from ccdstream.live.records import Event, Gap
from ccdstream.report.audit import LIVE_SCHEMA, SCHEMA, write_audit


def opened(start_s: float) -> Event:
    return Event("gap_opened", 1e9, start_s, {"start_s": start_s, "cause": "unplugged"})


def closed(start_s: float, end_s: float) -> Event:
    data = {"start_s": start_s, "end_s": end_s, "cause": "unplugged"}
    return Event("gap_closed", 1e9, end_s, data)


def test_every_event_is_kept_and_told_and_a_gap_ends_when_it_closes() -> None:
    kept: list[Event] = []
    told: list[Event] = []
    events = EventLog(kept.append, told.append)
    given = [opened(1.0), closed(1.0, 2.5), Event("mark", 1e9, 3.0), opened(4.0)]
    for event in given:
        events(event)
    assert kept == given == told
    assert events.gaps == [Gap(1.0, 2.5, "unplugged"), Gap(4.0, None, "unplugged")]


def test_gaps_of_many_hours_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MOST_GAPS", 3)
    events = EventLog(lambda _: None, lambda _: None)
    for k in range(10):
        events(opened(k))
        events(closed(k, k + 0.5))
    assert [gap.start_s for gap in events.gaps] == [0, 1, 2]


@pytest.mark.parametrize("schema", [SCHEMA, LIVE_SCHEMA])
def test_a_record_says_what_to_read_it_by(tmp_path: Path, schema: str) -> None:
    write_audit(tmp_path / "run.json", {"frames": 1}, schema=schema)
    assert f'"schema": "{schema}"' in (tmp_path / "run.json").read_text()
