"""What a run was -> run.json: versions, hashes, model, thresholds, counts, assumptions, timings.

The caller says what; this module makes the same record the same bytes: keys sorted, two spaces,
values that JSON does not know in one written form, and the file whole or not there.
`schemas/run-1.json` describes it as JSON Schema.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ccdstream.report.files import write_text

SCHEMA = "ccdstream.run/1"
LIVE_SCHEMA = "ccdstream.live/1"


def write_audit(
    path: Path, record: Mapping[str, Any], *, schema: str = SCHEMA, overwrite: bool = False
) -> None:
    """Write `record` as run.json, under the key "schema" what to read it by.

    Paths become text, fractions "numerator/denominator", tuples and arrays lists, records objects,
    and numbers that are not finite null.

    Raises:
        OutputError: The file exists or cannot be written.
        TypeError: A value has no form in JSON.
    """
    data = plain({**record, "schema": schema})
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n", overwrite=overwrite)


def plain(value: Any) -> Any:
    """`value` in the types that JSON knows."""
    match value:
        case None | bool() | str():
            return value
        case np.generic() | np.ndarray():
            return plain(value.tolist())
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else None
        case Fraction():
            return f"{value.numerator}/{value.denominator}"
        case Path():
            return str(value)
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case Sequence() | set() | frozenset() if not isinstance(value, bytes | bytearray):
            items = sorted(value) if isinstance(value, set | frozenset) else value
            return [plain(item) for item in items]
        case _ if is_dataclass(value) and not isinstance(value, type):
            return plain(asdict(value))
    raise TypeError(f"{type(value).__name__} has no form in run.json: {value!r}")
