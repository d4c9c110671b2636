"""Fused scores -> scores.parquet: the rows of scores.csv, for pandas, DuckDB, R and the like.

The columns are those of `report.scores`, with types: frame and pts int64, seconds float64, every
score and share float32, state one of a few words, quality a list of words, and null for a number
that does not exist. The file's own metadata say what the rows are of:

    schema       "ccdstream.scores/1"
    notice       that this is research software
    ccdstream    version
    model        id of the bundle
    time_base    seconds per unit of pts, as "numerator/denominator"

Rows go to the file a group at a time, so memory does not grow with the recording. pyarrow writes
it: the extra `parquet`, imported only for this.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ccdstream import NOTICE, __version__
from ccdstream.errors import OutputError
from ccdstream.report.files import BytesFile
from ccdstream.report.scores import SCHEMA, Column, Kind, ScoresWriter

if TYPE_CHECKING:
    import pyarrow

GROUP_ROWS = 15_000
"""Rows in a group: ten minutes at 25 frames a second, a few megabytes while they wait."""


def require() -> None:
    """Find out, before any work, whether Parquet can be written.

    Raises:
        OutputError: pyarrow is not there.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise OutputError(
            f"Parquet needs pyarrow, which cannot be imported ({error}). "
            "Install it with: pip install 'ccdstream[parquet]'"
        ) from error


class ScoresParquet(ScoresWriter):
    """A scores.parquet in the making; a context manager.

    Raises:
        OutputError: pyarrow is not there, or the file exists or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        parts: Sequence[str],
        model: str,
        time_base: Fraction,
        overwrite: bool = False,
        group_rows: int = GROUP_ROWS,
    ) -> None:
        """
        Args:
            path: final name of the file.
            parts: names of the terms of the score, in the bundle's order.
            model: id of the bundle.
            time_base: seconds per unit of pts.
            overwrite: replace an existing file.
            group_rows: rows in a group.
        """
        super().__init__(parts)
        require()
        self._sink = _Sink(path, overwrite=overwrite)
        self._group_rows = group_rows
        self._waiting: list[list[Any]] = []  # rows of the group that is not written yet
        self._schema = _schema(
            self._columns,
            {
                "schema": SCHEMA,
                "notice": NOTICE,
                "ccdstream": __version__,
                "model": model,
                "time_base": f"{time_base.numerator}/{time_base.denominator}",
            },
        )

    def __enter__(self) -> Self:
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        self._sink.__enter__()
        file = pyarrow.PythonFile(self._sink, mode="w")
        self._writer = ParquetWriter(file, self._schema, compression="zstd")
        return self

    def _append(self, values: list[Any]) -> None:
        self._waiting.append(values)
        if len(self._waiting) == self._group_rows:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow

        cells = zip(*self._waiting, strict=True)
        arrays = [
            pyarrow.array(column, field.type)
            for column, field in zip(cells, self._schema, strict=True)
        ]
        self._waiting = []
        self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                if self._waiting:
                    self._write_group()
                self._writer.close()
        except BaseException as failure:
            self._discard(failure)
            raise
        if error is not None:
            self._discard(error)
        else:
            self._sink.__exit__(None, None, None)

    def _discard(self, error: BaseException) -> None:
        """Leave no trace. pyarrow closes the file at some time, so it does so now."""
        self._sink.given_up = True
        self._writer.close()
        self._sink.__exit__(type(error), error, None)


class _Sink(BytesFile):
    """Takes what pyarrow writes; once it is given up nothing more, without a word."""

    given_up = False
    closed = False  # pyarrow asks

    def write(self, data: bytes) -> None:
        if not self.given_up:
            super().write(data)

    def close(self) -> None:
        """Does nothing: the file is closed where it gets its name."""


def _schema(of: Sequence[Column], about: dict[str, str]) -> "pyarrow.Schema":
    import pyarrow

    types: dict[Kind, Any] = {
        "int64": pyarrow.int64(),
        "float64": pyarrow.float64(),
        "float32": pyarrow.float32(),
        "word": pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
        "words": pyarrow.list_(pyarrow.string()),
    }
    fields = [
        pyarrow.field(column.name, types[column.kind], nullable=column.kind == "float32")
        for column in of
    ]
    return pyarrow.schema(fields, metadata=about)
