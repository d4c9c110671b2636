"""Stream time as people read and type it."""

import pytest

from ccdstream.timecode import parse_timecode, short_time, timecode


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "00:00:00.000"),
        (61.5, "00:01:01.500"),
        (59.9996, "00:01:00.000"),
        (3599.9999, "01:00:00.000"),
        (362_439.001, "100:40:39.001"),
        (-0.0001, "00:00:00.000"),
        (-61.5, "-00:01:01.500"),
    ],
)
def test_seconds_are_shown_to_the_millisecond(seconds: float, text: str) -> None:
    assert timecode(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("90.5", 90.5),
        ("90s", 90.0),
        (" 90 ", 90.0),
        ("0", 0.0),
        ("1:30", 90.0),
        ("1:05", 65.0),
        ("59:59.999", 3599.999),
        ("00:01:30.250", 90.25),
        ("2:00:00", 7200.0),
        ("100:00:00", 360_000.0),
    ],
)
def test_a_time_can_be_typed_in_several_ways(text: str, seconds: float) -> None:
    assert parse_timecode(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "s", "-1", "+1", "1e3", "nan", "inf", "1.", ".5", "1,5", "1:60", "1:2:60"),
        *("60:00", "1:75:00", "1:2:3:4", "1::2", "1:", ":1", "1 30", "1m30s", "90ss", "٣", "²"),
        *("9" * 17, "9" * 400, "9" * 400 + ":00:00", "[/bold]"),
    ],
)
def test_what_is_no_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a time\. Write 90, 90s, 1:30 or 00:01:30\.250"):
        parse_timecode(text)


@pytest.mark.parametrize("milliseconds", [0, 1, 999, 1000, 59_999, 60_000, 3_599_999, 86_400_001])
def test_what_is_shown_can_be_typed_back(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_timecode(timecode(seconds)) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize(
    ("seconds", "digits", "text"),
    [
        (0, 0, "0:00"), (59.4, 0, "0:59"), (59.999, 0, "1:00"), (59.994, 2, "0:59.99"),
        (3.567, 2, "0:03.57"), (3661.25, 1, "1:01:01.3"), (-1.5, 1, "-0:01.5"),
        (-0.001, 0, "0:00"), (0.29, 2, "0:00.29"), (3599.999, 2, "1:00:00.00"),
    ],
)  # fmt: skip
def test_short_times_are_rounded_as_timecodes_are(seconds: float, digits: int, text: str) -> None:
    assert short_time(seconds, digits) == text
