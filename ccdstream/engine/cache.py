"""Compiled engines, kept so that a machine compiles once: a cache, never an artefact.

A compiled engine is good for the program, library, GPU and driver that it was made with, and for
nothing else. An entry says what it was made for; one that does not fit, or is damaged, counts as
none, and a line says why. Deleting the folder loses nothing but time.
"""

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from platformdirs import user_cache_path

from ccdstream import __version__
from ccdstream.engine.base import BuildOptions
from ccdstream.engine.gpu import Gpu, driver_version
from ccdstream.errors import show_path

FOLDER_VARIABLE = "CCDSTREAM_CACHE"
"""Environment variable: the folder that stands for the user's cache folder of ccdstream."""

_MAGIC = b"ccdstream engine 1\n"
_LENGTH = struct.Struct("<I")
_LONGEST_HEADER = 1 << 16


@dataclass(frozen=True, slots=True)
class EngineKey:
    """All that a compiled engine depends on."""

    program: str
    """sha256 of the program it was compiled from, as hex."""
    library: str
    """Name of the library that compiled it."""
    version: str
    gpu: str
    """Name of the GPU."""
    compute_capability: str
    driver: str
    precision: str
    batch: str
    """Least, usual and most views in a call."""
    recipe: str
    """Version of ccdstream, which sets the library's options."""

    def slot(self) -> str:
        """File name of its entry. A newer library or driver takes the place of the older; GPUs of
        another name have their own, since one machine can have both."""
        return f"{_digest(self.program, self.library, self.precision, self.batch)}-" + (
            f"{_digest(self.gpu)[:8]}.engine"
        )

    def differs_from(self, made_for: "EngineKey") -> str:
        """In what an entry is not for this machine, for people; empty where it is."""
        for what, theirs, ours in (
            ("", made_for.gpu, self.gpu),
            ("compute capability ", made_for.compute_capability, self.compute_capability),
            ("driver ", made_for.driver, self.driver),
            (f"{self.library} ", made_for.version, self.version),
            ("", made_for.recipe, self.recipe),
        ):
            if theirs != ours:
                return f"it was made for {what}{theirs}, this is {ours}"
        return "" if made_for == self else "it was made for another program"


def engine_key(
    program: bytes, *, library: str, version: str, gpu: Gpu, options: BuildOptions
) -> EngineKey:
    """What `program` compiled by a library for this machine's `gpu` depends on."""
    return EngineKey(
        program=hashlib.sha256(program).hexdigest(),
        library=library,
        version=version,
        gpu=gpu.name,
        compute_capability="{}.{}".format(*gpu.compute_capability),
        driver=driver_version(),
        precision=options.precision,
        batch=",".join(map(str, options.batch)),
        recipe=f"ccdstream {__version__}",
    )


class EngineCache:
    """A folder of compiled engines."""

    def __init__(self, folder: Path | None, say: Callable[[str], None]) -> None:
        """Use a folder; None for the user's own.

        Args:
            say: told why an entry is not used, and where one cannot be kept; a line each.
        """
        self.folder = default_folder() if folder is None else folder
        self._say = say

    def load(self, key: EngineKey) -> bytes | None:
        """The engine that was stored for `key`; None where there is none that fits."""
        path = self.folder / key.slot()
        made_for: EngineKey | None
        try:
            if path.exists():
                made_for, engine = _read(path)
            else:
                made_for, engine = self._sibling(key), b""
        except OSError as error:
            self._say(f"engine rebuilt: {show_path(path)} cannot be read ({error.strerror})")
            return None
        except ValueError:
            self._say(f"engine rebuilt: {show_path(path)} is damaged")
            return None
        if made_for is None:
            return None
        if why := key.differs_from(made_for):
            self._say(f"engine rebuilt: {why}")
            return None
        return engine

    def store(self, key: EngineKey, engine: bytes) -> None:
        """Keep an engine under `key`. Where the folder cannot be written, that is said, and the
        next start compiles again."""
        path = self.folder / key.slot()
        header = json.dumps(
            asdict(key) | {"sha256": hashlib.sha256(engine).hexdigest()}, indent=1
        ).encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # a reader, or another process that stores the same, never sees half a file
            with tempfile.TemporaryDirectory(prefix=".", dir=self.folder) as scratch:
                fresh = Path(scratch) / "fresh"
                fresh.write_bytes(_MAGIC + _LENGTH.pack(len(header)) + header + engine)
                os.replace(fresh, path)
        except OSError as error:
            self._say(
                f"the engine is not kept: {show_path(self.folder)} cannot be written "
                f"({error.strerror}). Set {FOLDER_VARIABLE} to a folder that can."
            )

    def _sibling(self, key: EngineKey) -> EngineKey | None:
        """What an engine of the same program for another GPU was made for; None for none."""
        pattern = f"{key.slot().partition('-')[0]}-*.engine"
        for path in sorted(self.folder.glob(pattern)):
            try:
                with path.open("rb") as file:
                    return _read_header(file.read(_LONGEST_HEADER))[0]
            except (OSError, ValueError):
                continue  # it is another GPU's, which will tell of it
        return None


def default_folder() -> Path:
    """Where compiled engines are kept unless told otherwise."""
    given = os.environ.get(FOLDER_VARIABLE)
    return (Path(given) if given else user_cache_path("ccdstream")) / "engines"


def _read(path: Path) -> tuple[EngineKey, bytes]:
    """An entry: what it was made for, and the engine.

    Raises:
        OSError: it cannot be read.
        ValueError: it is cut short or otherwise damaged.
    """
    content = path.read_bytes()
    key, digest, start = _read_header(content)
    engine = content[start:]
    if hashlib.sha256(engine).hexdigest() != digest:
        raise ValueError("the engine is not what was stored")
    return key, engine


def _read_header(content: bytes) -> tuple[EngineKey, str, int]:
    """The key of an entry, the sha256 of its engine and where that begins.

    Raises:
        ValueError: this is not the head of an entry.
    """
    start = len(_MAGIC) + _LENGTH.size
    if len(content) < start or not content.startswith(_MAGIC):
        raise ValueError("not an entry of the cache")
    (length,) = _LENGTH.unpack_from(content, len(_MAGIC))
    fields = json.loads(content[start : start + length])
    try:
        digest = fields.pop("sha256")
        return EngineKey(**fields), digest, start + length
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("its header is not one") from error


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32]
