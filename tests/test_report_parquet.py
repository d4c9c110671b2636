"""The rows of scores.csv as Parquet, read back by another library's reader."""

import csv
import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccdstream import NOTICE, __version__
from ccdstream.errors import OutputError
from ccdstream.frames import Fused
from ccdstream.report.parquet import ScoresParquet, require
from ccdstream.report.scores import COLUMNS, ScoresCsv, ScoresWriter, columns

pq = pytest.importorskip("pyarrow.parquet")

PARTS = ("global", "local")
SEEN = Fused(
    raw=float(np.float32(1 / 3)),
    calibrated=0.99,
    smoothed=0.123456789,
    find_heat=lambda: np.zeros((2, 2), np.float32),
    quality=(),
    valid_fraction=0.5,
)


def frames(count: int) -> Iterator[tuple[Any, ...]]:
    """What is said of frames: numbers of all kinds, some that do not exist, reasons and states."""
    rng = np.random.default_rng(0)
    for number in range(count):
        raw, calibrated, smoothed, valid, *parts = rng.random(6).astype(np.float32).tolist()
        quality = (("blurred", "too_dark"), ("blurred",), (), ())[number % 4]
        fused = replace(
            SEEN,
            raw=raw,
            calibrated=calibrated,
            smoothed=smoothed,
            quality=quality,
            valid_fraction=valid,
        )
        if number % 7 == 3:
            fused = replace(fused, raw=math.nan, calibrated=math.nan)
            parts = [math.inf, -math.inf]
        state = "UNCLEAR" if quality else ("NORMAL", "ALERT")[number % 3 == 0]
        pts = 2**40 + number * 3003
        yield number, pts, pts / 90_000, fused, state, parts


def parquet(path: Path, **options: Any) -> ScoresParquet:
    about: dict[str, Any] = {"parts": PARTS, "model": "toy-1", "time_base": Fraction(1, 90_000)}
    return ScoresParquet(path, **about | options)


def written(folder: Path, count: int, **options: Any) -> Path:
    """A scores.csv and a scores.parquet of the same frames."""
    with ExitStack() as stack:
        writers: list[ScoresWriter] = [
            stack.enter_context(ScoresCsv(folder / "s.csv", parts=PARTS)),
            stack.enter_context(parquet(folder / "s.parquet", **options)),
        ]
        for frame in frames(count):
            for writer in writers:
                writer.write(*frame)
    return folder / "s.parquet"


def printed(column: Any, value: Any) -> str:
    """A value of the table as scores.csv has it."""
    if value is None:
        return ""
    return ";".join(value) if isinstance(value, list) else format(value, column.form)


def test_both_forms_have_the_same_columns_rows_and_values(tmp_path: Path) -> None:
    table = pq.read_table(written(tmp_path, 103, group_rows=10))
    with open(tmp_path / "s.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert table.column_names == list(rows[0]) == [*COLUMNS, "part_global", "part_local"]
    assert table.num_rows == len(rows) == 103
    for column in columns(PARTS):
        for value, row in zip(table[column.name].to_pylist(), rows, strict=True):
            cell = row[column.name]
            if column.kind == "float32" and value is not None and column.form != ".9g":
                digits = int(column.form.strip(".f"))
                assert float(cell) == pytest.approx(value, abs=0.5 * 10**-digits + 1e-7)
            else:
                assert printed(column, value) == cell


def test_columns_have_the_types_that_programs_expect(tmp_path: Path) -> None:
    schema = pq.read_schema(written(tmp_path, 5))
    types = {field.name: str(field.type) for field in schema}
    words = "dictionary<values=string, indices=int8, ordered=0>"
    assert types == {
        "frame": "int64",
        "pts": "int64",
        "seconds": "double",
        "state": words,
        "quality": "list<element: string>",
        **dict.fromkeys(("raw", "calibrated", "smoothed", "valid_fraction"), "float"),
        **dict.fromkeys(("part_global", "part_local"), "float"),
    }


def test_the_file_says_itself_what_its_rows_are_of(tmp_path: Path) -> None:
    metadata = pq.read_schema(written(tmp_path, 5)).metadata
    assert {key.decode(): value.decode() for key, value in metadata.items()} == {
        "schema": "ccdstream.scores/1",
        "notice": NOTICE,
        "ccdstream": __version__,
        "model": "toy-1",
        "time_base": "1/90000",
    }


def test_rows_leave_the_memory_a_group_at_a_time(tmp_path: Path) -> None:
    with parquet(tmp_path / "s.parquet", group_rows=10) as table:
        for number, frame in enumerate(frames(45)):
            table.write(*frame)
            assert len(table._waiting) == (number + 1) % 10
    groups = pq.ParquetFile(tmp_path / "s.parquet").metadata
    assert [groups.row_group(k).num_rows for k in range(groups.num_row_groups)] == [10] * 4 + [5]


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    once, again = (written(tmp_path / name, 30).read_bytes() for name in ("a", "b"))
    assert once == again


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("count", [3, 50_000], ids=["at-the-end", "while-writing"])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path, count: int) -> None:
    (tmp_path / "s.parquet.part").symlink_to("/dev/full")
    with (
        pytest.raises(OutputError, match=r"cannot write .*s\.parquet: No space left on device"),
        parquet(tmp_path / "s.parquet", group_rows=1000) as table,
    ):
        for frame in frames(count):
            table.write(*frame)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), parquet(tmp_path / "s.parquet", group_rows=2) as table:
        for frame in frames(5):
            table.write(*frame)
        raise error
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(OutputError, match=r"pip install 'ccdstream\[parquet\]'$"):
        require()
    with pytest.raises(OutputError, match="Parquet needs pyarrow"):
        parquet(tmp_path / "s.parquet")
