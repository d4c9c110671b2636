"""Names of recordings -> pseudonyms, and the file kept aside that knows both, for `--deid`.

    pseudonym = "rec-" and 12 hexadecimal digits of HMAC-SHA256(key, absolute path)

The key is random and made once; it lies in the file with the names, so the same file gives the
same recording the same pseudonym again, and without it nobody can try names until one fits. The
file is a CSV: `kind,value,original`, with one row `key` and a row `name` for each recording.
Whoever holds it can tell whose results are whose: it belongs nowhere near them.
"""

import csv
import hashlib
import hmac
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from ccdstream.errors import OutputError, reason_of, show_path
from ccdstream.report.files import Lock, lock_path

HEAD = ["kind", "value", "original"]
_KEY_BYTES = 32
_SHOWN_DIGITS = 12
"""48 bits: among ten thousand recordings two share a pseudonym once in five million maps; the batch
then refuses to write one's results over the other's."""
_WAIT_S, _AGAIN_S = 10.0, 0.05
"""How long another process may hold the file, which takes milliseconds; between two looks."""


@dataclass(frozen=True, slots=True)
class Alias:
    """What a recording is called where its name may not stand."""

    name: str
    key: bytes = field(repr=False)

    def keyed(self, kind: str, text: str) -> str:
        """64 hexadecimal digits that only the holder of the key can find out from `text`.

        Args:
            kind: what the text is, so that equal texts of two kinds do not look equal.
        """
        return _hmac(self.key, kind, text.encode())


def default_map(output: Path) -> Path:
    """Where the map lies if nobody says: beside the folder of results, never in it."""
    return Path(f"{os.path.abspath(output)}.names.csv")


class NameMap:
    """The file of pseudonyms, held while new names are entered; a context manager.

        with NameMap(path) as names:
            alias = names.alias(Path("case12.mp4"))

    Leaving the block without an error writes new names: the file is replaced as a whole, and only
    its owner may read it.

    Raises:
        OutputError: on entering, the file is none of this kind, cannot be read, or another process
            holds it; on leaving, it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names: dict[str, str] = {}  # pseudonym: absolute path
        self._key = b""
        self._new = False
        busy = f"another process is writing {show_path(path)}. Wait for it to end."
        self._lock = Lock(lock_path(path.parent, path.name), busy)

    def __enter__(self) -> Self:
        patience = time.monotonic() + _WAIT_S
        while True:
            try:
                self._lock.__enter__()
                break
            except OutputError as error:
                if error.__cause__ is not None or time.monotonic() > patience:
                    raise
                time.sleep(_AGAIN_S)
        try:
            self._read()
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._new:
                self._write()
        finally:
            self._lock.__exit__()

    def alias(self, recording: Path) -> Alias:
        """The pseudonym of a recording, by its absolute path; the same one every time."""
        original = os.path.abspath(recording)
        digits = _hmac(self._key, "name", os.fsencode(original))
        name = f"rec-{digits[:_SHOWN_DIGITS]}"
        if self._names.setdefault(name, original) != original:
            raise OutputError(
                f"two recordings get the pseudonym {name}. Choose another --deid-map for one."
            )
        self._new |= name not in self._kept
        return Alias(name, self._key)

    def __contains__(self, name: str) -> bool:
        """Whether it holds this pseudonym."""
        return name in self._names

    def _read(self) -> None:
        try:
            with open(self.path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                rows = list(csv.reader(file))
        except FileNotFoundError:
            self._key = secrets.token_bytes(_KEY_BYTES)
            self._kept: frozenset[str] = frozenset()
            return
        except OSError as error:
            raise OutputError(
                f"cannot read {show_path(self.path)}: {reason_of(error)}. "
                "Choose another --deid-map."
            ) from error
        except csv.Error as error:
            raise self._damaged() from error
        try:
            if rows[0] != HEAD:
                raise self._damaged()
            for kind, value, original in rows[1:]:
                if kind == "key":
                    self._key = bytes.fromhex(value)
                elif kind == "name":
                    self._names[value] = original
                else:
                    raise self._damaged()
        except (IndexError, ValueError) as error:
            raise self._damaged() from error
        if len(self._key) != _KEY_BYTES:
            raise self._damaged()
        self._kept = frozenset(self._names)

    def _damaged(self) -> OutputError:
        return OutputError(
            f"{show_path(self.path)} is no whole list of pseudonyms (a CSV with the columns "
            f"{','.join(HEAD)} and a key). Restore it, or choose another --deid-map."
        )

    def _write(self) -> None:
        rows = [HEAD, ["key", self._key.hex(), ""]]
        rows += [["name", name, original] for name, original in self._names.items()]
        written = self.path.with_name(f".{self.path.name}.part")
        try:
            with suppress(FileNotFoundError):  # of a process that was killed: the lock is held
                written.unlink()
            # its owner's alone from the first moment on
            descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(
                descriptor, "w", encoding="utf-8", errors="surrogateescape", newline=""
            ) as file:
                # its own ends of lines: with others Python 3.11 leaves a name with "\r" unquoted
                csv.writer(file).writerows(rows)
                file.flush()
                os.fsync(file.fileno())
            os.replace(written, self.path)
        except OSError as error:
            with suppress(OSError):  # what is told is why it could not be written
                written.unlink()
            raise OutputError(
                f"cannot write {show_path(self.path)}: {reason_of(error)}. "
                "Check that its folder exists and is writable, or choose another --deid-map."
            ) from error


def _hmac(key: bytes, kind: str, text: bytes) -> str:
    return hmac.new(key, kind.encode() + b"\0" + text, hashlib.sha256).hexdigest()
