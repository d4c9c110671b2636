"""Seconds of stream time as text, the one way everywhere: overlay, sidecars, chapters, messages."""

import math
import re

_LONGEST_S = 1e9
"""Longer than any recording, 31 years, and still exact in every container's clock."""


def timecode(seconds: float) -> str:
    """`seconds` as HH:MM:SS.mmm, rounded to the millisecond; a minus sign in front before zero."""
    milliseconds = round(abs(seconds) * 1000)
    sign = "-" if seconds < 0 and milliseconds else ""
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{sign}{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"


def short_time(seconds: float, digits: int = 0) -> str:
    """`seconds` as M:SS or H:MM:SS, rounded to so many digits of the second."""
    scale = 10**digits
    units = math.floor(abs(seconds) * scale + 0.5)
    whole, fraction = divmod(units, scale)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    text = f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
    return (
        ("-" if seconds < 0 and units else "") + text + (f".{fraction:0{digits}d}" * bool(digits))
    )


def parse_timecode(text: str) -> float:
    """Seconds from what a person types: "90", "90.5", "90s", "1:30" or "00:01:30.250".

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(
        r"(?:(?:(\d+):)?([0-5]?\d):)?(\d+(?:\.\d+)?)s?", text.strip(), flags=re.ASCII
    )
    if match is not None:
        hours, minutes, seconds = (float(group or 0) for group in match.groups())
        total = hours * 3600 + minutes * 60 + seconds
        if (match[2] is None or seconds < 60) and total <= _LONGEST_S:
            return total
    raise ValueError(f"{text!r} is not a time. Write 90, 90s, 1:30 or 00:01:30.250.")
