"""The model bundle: a folder that `trainer` writes and ccdstream runs. Loading it executes nothing.

    manifest.json   what the model is, and the sha256 and size of every other file (UTF-8 JSON)
    program.onnx    the whole model as one ONNX graph, weights inside:
                    frames uint8 [N, 3, 256, 256] RGB, valid bool [N, 256, 256], N free
                    -> score float32 [N], map float32 [N, h, w], parts float32 [N, k];
                    higher is more anomalous; finite for every input, also where nothing is valid
    golden.npz      inputs (frames, valid) and the outputs the exporting machine got for them
                    (score, map, parts), each with M rows; no pickled objects
    ...             further files that an engine may need, such as program.pt2

The manifest's keys, all required: `format` "ccdstream-bundle"; `format_version` 1; `name`;
`created` (ISO 8601); `version` (of ccdstream); `commit`; `command`; `files` {name: {sha256,
bytes}}; `input_size` [256, 256]; `map_size` [h, w]; `parts` [k names]; `profile` (what `view`
masks); `calibration` {score and map: {raw, fraction, tail_scale}, frames}; `quality` (limits of
`quality`); `alert` {enter, leave, min_duration_s, merge_gap_s, refractory_s, time_constant_s};
`parity` {score_abs, map_abs, calibrated_abs, calibrated_mean, alert_flips, map_correlation: how far
an engine may be from the golden outputs, see `engine.parity`};
`training`; `figures`; `licences`; `notice`. Other keys may follow and are kept.

`figures` is empty, or what was measured of the bundle: {data: entry}, where `data` is the first 12
hex digits of the sha256 of what was measured on, and an entry {kind, data {name, sha256, counts},
created, command, commit, version, machine, engine {name, version, device, precision},
program_sha256, rows, notes}. A row is {figure, set, of, value, low, high, n}: the value of a figure
on a set, of the "bundle" or of the trivial baseline that `of` names; its 95 % interval; and how
many values, or minutes of a rate, it rests on; null where there is none. An entry of another
program is refused.

A calibration maps a raw score to the fraction of normal frames that score lower: linear between
the knots (raw, fraction), both ascending, then 1 - (1 - f) exp(-(raw - r) / tail_scale) beyond the
last knot (r, f), f < 1. `model_id` is the name and the first 12 hex digits of the sha256 of the
lines "<file> <sha256>\\n" in order of file name.
"""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ccdstream import NOTICE, __version__
from ccdstream.errors import BundleError, OutputError
from ccdstream.frames import VIEW_SIZE
from ccdstream.packaged import MANIFEST, find_model

FORMAT = "ccdstream-bundle"
FORMAT_VERSION = 1
PROGRAM = "program.onnx"
GOLDEN = "golden.npz"

# A name of a file directly in the folder: nothing that could lead out of it on any system.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HEX_SHA256 = re.compile(r"[0-9a-f]{64}")
_ALERT_KEYS = (
    "enter",
    "leave",
    "min_duration_s",
    "merge_gap_s",
    "refractory_s",
    "time_constant_s",
)
_ENTRY_TEXTS = ("kind", "created", "command", "commit", "version", "machine", "program_sha256")
_ENGINE_TEXTS = ("name", "version", "device", "precision")
_PARITY_KEYS = (
    "score_abs",
    "map_abs",
    "calibrated_abs",
    "calibrated_mean",
    "alert_flips",
    "map_correlation",
)
_TYPES: dict[str, type] = {
    "name": str,
    "created": str,
    "version": str,
    "commit": str,
    "command": str,
    "files": dict,
    "input_size": list,
    "map_size": list,
    "parts": list,
    "profile": dict,
    "calibration": dict,
    "quality": dict,
    "alert": dict,
    "parity": dict,
    "training": dict,
    "figures": dict,
    "licences": list,
    "notice": str,
}
_ORDER = {key: rank for rank, key in enumerate(("format", "format_version", *_TYPES))}
"""Order of the keys in a written manifest; other keys come last."""
_JSON_NAMES: dict[type, str] = {str: "a string", dict: "an object", list: "a list"}


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Inputs and the outputs that the exporting machine got for them, to hold engines against."""

    frames: np.ndarray
    """uint8 [M, 3, 256, 256], RGB."""
    valid: np.ndarray
    """bool [M, 256, 256]."""
    score: np.ndarray
    """float32 [M]."""
    anomaly_map: np.ndarray
    """float32 [M, h, w]."""
    parts: np.ndarray
    """float32 [M, k]."""

    def __post_init__(self) -> None:
        rows = len(self.frames)
        if rows == 0:
            raise ValueError("golden must hold at least one frame, got 0")
        if self.anomaly_map.ndim != 3 or self.parts.ndim != 2:
            raise ValueError(
                "golden map must be [M, h, w] and parts [M, k], got "
                f"{list(self.anomaly_map.shape)} and {list(self.parts.shape)}"
            )
        for name, array, dtype, shape in (
            ("frames", self.frames, np.uint8, (rows, 3, *VIEW_SIZE)),
            ("valid", self.valid, np.bool_, (rows, *VIEW_SIZE)),
            ("score", self.score, np.float32, (rows,)),
            ("map", self.anomaly_map, np.float32, (rows, *self.anomaly_map.shape[1:])),
            ("parts", self.parts, np.float32, (rows, self.parts.shape[1])),
        ):
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(
                    f"golden {name} must be {np.dtype(dtype)} {list(shape)}, "
                    f"got {array.dtype} {list(array.shape)}"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"golden {name} holds a value that is not finite")


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle whose manifest and files have been checked."""

    path: Path
    manifest: Mapping[str, Any]
    """The whole manifest."""

    @property
    def name(self) -> str:
        """What the model is called."""
        return str(self.manifest["name"])

    @property
    def model_id(self) -> str:
        """Name and 12 hex digits that stand for the content of every file of the bundle."""
        table = "".join(
            f"{name} {entry['sha256']}\n" for name, entry in sorted(self.manifest["files"].items())
        )
        return f"{self.name}-{hashlib.sha256(table.encode()).hexdigest()[:12]}"

    @property
    def program(self) -> Path:
        """The ONNX graph."""
        return self.path / PROGRAM

    def file(self, name: str) -> Path | None:
        """Path of a further file, such as program.pt2; None where the bundle has none."""
        return self.path / name if name in self.manifest["files"] else None

    def sha256(self, name: str) -> str:
        """Checked hash of a file of the bundle, for instance to key a cache of compiled engines."""
        return str(self.manifest["files"][name]["sha256"])

    @property
    def map_size(self) -> tuple[int, int]:
        """(height, width) of the anomaly map, in cells."""
        height, width = self.manifest["map_size"]
        return height, width

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the terms of the score, in the order of the program's third output."""
        return tuple(self.manifest["parts"])

    @property
    def profile(self) -> dict[str, Any]:
        """What `view` masks on stills, and on a stream until it has told."""
        return dict(self.manifest["profile"])

    @property
    def calibration(self) -> dict[str, Any]:
        """Knots of the calibration of score and map, for `fuse`."""
        return dict(self.manifest["calibration"])

    @property
    def quality(self) -> dict[str, Any]:
        """Limits that tell an uninformative frame, for `quality`."""
        return dict(self.manifest["quality"])

    @property
    def alert(self) -> dict[str, float]:
        """Thresholds and times of the alert rule."""
        return dict(self.manifest["alert"])

    @property
    def parity(self) -> dict[str, float]:
        """How far from the golden outputs an engine may be; see `engine.parity`."""
        return dict(self.manifest["parity"])

    @cached_property
    def golden(self) -> Golden:
        """The golden frames and outputs, read when first asked for.

        Raises:
            BundleError: golden.npz cannot be read as such, or does not fit the manifest.
        """
        path = self.path / GOLDEN
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                golden = Golden(
                    frames=arrays["frames"],
                    valid=arrays["valid"],
                    score=arrays["score"],
                    anomaly_map=arrays["map"],
                    parts=arrays["parts"],
                )
        except Exception as error:  # a forged archive fails in as many ways as its readers have
            raise BundleError(
                f"{path} does not hold golden frames ({_one_line(error)}). Export the bundle again."
            ) from error
        if problem := _golden_problem(golden, self.manifest):
            raise BundleError(f"{path}: {problem}. Export the bundle again.")
        return golden


def load_bundle(path: Path | None = None) -> Bundle:
    """Read a bundle's manifest and check every file against it. No code of the bundle is run.

    Args:
        path: the bundle's folder; None for the default bundle.

    Raises:
        BundleError: there is no bundle at `path`, or it is damaged, or it is of a format version
            that this ccdstream does not read.
    """
    if path is None:
        path = find_model(None).path
    manifest = _read_manifest(path)
    if problem := _manifest_problem(manifest):
        raise BundleError(f"{path / MANIFEST}: {problem}. Export the bundle again.")
    if problem := _files_problem(path, manifest["files"]):
        raise BundleError(f"{path}: {problem}. Copy or export the bundle again.")
    return Bundle(path, manifest)


def write_bundle(
    path: Path,
    *,
    program: bytes,
    golden: Golden,
    manifest: Mapping[str, Any],
    extra_files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle: into a folder beside `path`, which takes that name when it is whole.

    Args:
        path: the bundle's folder to be.
        program: the ONNX graph, serialised.
        golden: frames and the outputs of the exporting model for them.
        manifest: every key of the format but `format`, `format_version` and `files`, which are
            added. `created`, `version` and `notice` are added where they are not given.
        extra_files: further files, by name.
        overwrite: replace a bundle that is at `path`. Nothing but a bundle is ever replaced.

    Returns:
        The bundle, loaded from where it was written.

    Raises:
        ValueError: the manifest lacks a key or holds a wrong value, or `golden` does not fit it.
        OutputError: something is at `path` already, or the folder cannot be written.
    """
    contents = {PROGRAM: program, GOLDEN: _golden_bytes(golden), **(extra_files or {})}
    entries = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in sorted(contents.items())
    }
    whole = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "notice": NOTICE,
        **manifest,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "files": entries,
    }
    text = _manifest_text(whole)
    whole = json.loads(text)  # as it will be read: tuples have become lists
    if problem := _manifest_problem(whole) or _golden_problem(golden, whole):
        raise ValueError(f"the bundle's {problem}")

    try:
        refuse_to_replace(path, overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            fresh = Path(scratch) / "fresh"
            fresh.mkdir()
            for name, data in contents.items():
                (fresh / name).write_bytes(data)
            (fresh / MANIFEST).write_text(text, encoding="utf-8")
            if path.exists():
                # a folder cannot be replaced in one step: keep the old one until the new is there
                old = Path(scratch) / "old"
                os.replace(path, old)
                try:
                    os.replace(fresh, path)
                except OSError:
                    os.replace(old, path)
                    raise
            else:
                os.replace(fresh, path)
    except OSError as error:
        raise OutputError(f"cannot write the bundle {path}: {_one_line(error)}.") from error
    return load_bundle(path)


def record_figures(bundle: Bundle, entry: Mapping[str, Any]) -> Bundle:
    """Write what was measured into a bundle's manifest, in the place of what stood there for the
    same data. No other file is touched, so that the model's id stays what it is.

    The manifest is read anew, replaced in one step, and keeps every other figure.

    Args:
        entry: of `figures`, as this module describes it.

    Returns:
        The bundle as it is now.

    Raises:
        ValueError: `entry` is not of that form, or was measured with another program.
        BundleError: the bundle on disk is not the one that was measured any more.
        OutputError: the manifest cannot be written.
    """
    entry = json.loads(json.dumps(entry, allow_nan=False))  # as it will be read
    sha256 = bundle.sha256(PROGRAM)
    if problem := _entry_problem(entry, sha256):
        raise ValueError(f"a figure's {problem}")
    now = load_bundle(bundle.path)
    if now.model_id != bundle.model_id:
        raise BundleError(
            f"{bundle.path} is now {now.model_id}, and {bundle.model_id} was measured. "
            "Measure it again."
        )
    figures = {**now.manifest["figures"], entry["data"]["sha256"][:12]: entry}
    _replace_manifest(bundle.path, {**now.manifest, "figures": dict(sorted(figures.items()))})
    return load_bundle(bundle.path)


def refuse_unwritable(path: Path) -> None:
    """See that figures may be recorded in the bundle at `path`, before they are measured.

    Raises:
        OutputError: its folder cannot be written to.
    """
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _not_recorded(path, error) from error


def refuse_to_replace(path: Path, overwrite: bool) -> None:
    """See that a bundle may be written at `path`.

    Raises:
        OutputError: something is there, and `overwrite` is not set or it is not a bundle.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise OutputError(f"{path} is there already. Name another folder, or pass --overwrite.")
    if not (path / MANIFEST).is_file():
        raise OutputError(f"{path} is not a bundle, so it is not replaced. Name another folder.")


def _manifest_text(manifest: Mapping[str, Any]) -> str:
    """A manifest as it is written: its known keys in the order of the format, then the others."""
    keys = sorted(manifest, key=lambda key: _ORDER.get(key, len(_ORDER)))
    ordered = {key: manifest[key] for key in keys}
    return json.dumps(ordered, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _replace_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Give a bundle another manifest in one step: it is the old one until it is the new one."""
    file = path / MANIFEST
    try:
        # hidden, as everything that is no file of the bundle has to be
        with tempfile.TemporaryDirectory(prefix=".manifest-", dir=path) as scratch:
            fresh = Path(scratch) / MANIFEST
            with fresh.open("w", encoding="utf-8", newline="\n") as stream:
                stream.write(_manifest_text(manifest))
                stream.flush()
                os.fsync(stream.fileno())
            shutil.copymode(file, fresh)
            os.replace(fresh, file)
    except OSError as error:
        raise _not_recorded(path, error) from error


def _not_recorded(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot record figures in {path / MANIFEST}: {error.strerror or error}. "
        "Copy the bundle to a folder that can be written, and name that with --model."
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest as JSON of this format and version, its keys not yet checked."""
    file = path / MANIFEST
    try:
        if not path.exists():
            raise BundleError(
                f"no bundle at {path}. Check the path, or train one: ccdstream train."
            )
        if not path.is_dir() or not file.is_file():
            raise BundleError(f"{path} is not a bundle: expected a folder that holds {MANIFEST}.")
        manifest = json.loads(file.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise BundleError(f"cannot read {file}: {_one_line(error)}.") from error
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise BundleError(
            f"{file} is not valid JSON ({_one_line(error)}). Copy or export the bundle again."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f'{path} is not a bundle: its manifest lacks "format": "{FORMAT}".')
    version = manifest.get("format_version")
    if not isinstance(version, int) or not _is_count(version):
        raise BundleError(
            f"{file}: format_version must be a whole number, got {version!r}. "
            "Export the bundle again."
        )
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{path} is a version {version} bundle and this ccdstream ({__version__}) reads "
            f"version {FORMAT_VERSION}. Upgrade ccdstream."
        )
    if version < FORMAT_VERSION:
        raise BundleError(
            f"{path} is a version {version} bundle and this ccdstream ({__version__}) reads "
            f"version {FORMAT_VERSION}. Export it again with the matching trainer."
        )
    return manifest


def _manifest_problem(manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with the form of a manifest, in words; None for nothing.

    Whether a value makes sense is for the stage that uses it: `fuse` its knots, `alert` its rule.
    """
    if missing := [key for key in _TYPES if key not in manifest]:
        return f"manifest lacks {', '.join(missing)}"
    for key, kind in _TYPES.items():
        if not isinstance(manifest[key], kind):
            return f"{key} must be {_JSON_NAMES[kind]}, got {_shown(manifest[key])}"
    if not manifest["name"] or not all(map(str.isprintable, manifest["name"])):
        return f"name must be printable and not empty, got {_shown(manifest['name'])}"
    if manifest["input_size"] != list(VIEW_SIZE):
        return f"input_size must be {list(VIEW_SIZE)}, got {_shown(manifest['input_size'])}"
    size = manifest["map_size"]
    if len(size) != 2 or not all(_is_count(cells) and cells > 0 for cells in size):
        return f"map_size must be two counts [h, w], got {_shown(size)}"
    parts = manifest["parts"]
    if not all(isinstance(part, str) for part in parts) or len(set(parts)) != len(parts):
        return f"parts must be different names, got {_shown(parts)}"
    return (
        _entries_problem(manifest["files"])
        or _calibration_problem(manifest["calibration"])
        or _alert_problem(manifest["alert"])
        or _parity_problem(manifest["parity"])
        or _figures_problem(manifest["figures"], manifest["files"][PROGRAM]["sha256"])
    )


def _entries_problem(files: dict[str, Any]) -> str | None:
    for name, entry in files.items():
        if not _PLAIN_NAME.fullmatch(name) or name == MANIFEST:
            return f"files names {_shown(name)}, which is not a plain file name"
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("sha256"), str)
            or not _HEX_SHA256.fullmatch(entry["sha256"])
            or not _is_count(entry.get("bytes"))
        ):
            return f"files must give sha256 and bytes of {name}, got {_shown(entry)}"
    if missing := [name for name in (PROGRAM, GOLDEN) if name not in files]:
        return f"files lacks {', '.join(missing)}"
    return None


def _calibration_problem(calibration: dict[str, Any]) -> str | None:
    if not _is_count(calibration.get("frames")):
        return f"calibration.frames must be a count, got {_shown(calibration.get('frames'))}"
    for key in ("score", "map"):
        table = calibration.get(key)
        if not isinstance(table, dict):
            return f"calibration.{key} must be an object, got {_shown(table)}"
        for name in ("raw", "fraction"):
            knots = table.get(name)
            if not isinstance(knots, list) or not all(_is_number(knot) for knot in knots):
                return f"calibration.{key}.{name} must be a list of numbers, got {_shown(knots)}"
        if not _is_number(table.get("tail_scale")):
            return (
                f"calibration.{key}.tail_scale must be a number, "
                f"got {_shown(table.get('tail_scale'))}"
            )
    return None


def _alert_problem(alert: dict[str, Any]) -> str | None:
    for key in _ALERT_KEYS:
        if not _is_number(alert.get(key)):
            return f"alert.{key} must be a number, got {_shown(alert.get(key))}"
    return None


def _parity_problem(parity: dict[str, Any]) -> str | None:
    for key in _PARITY_KEYS:
        if not _is_number(parity.get(key)) or parity[key] <= 0:
            return f"parity.{key} must be a positive number, got {_shown(parity.get(key))}"
    return None


def _figures_problem(figures: dict[str, Any], program_sha256: str) -> str | None:
    for key, entry in figures.items():
        if problem := _entry_problem(entry, program_sha256):
            return f"figures {_shown(key)}: {problem}"
        if key != entry["data"]["sha256"][:12]:
            return f"figures names {_shown(key)} what was measured on {entry['data']['sha256']}"
    return None


def _entry_problem(entry: Any, program_sha256: str) -> str | None:
    """What is wrong with an entry of `figures`, in words; None for nothing."""
    if not isinstance(entry, dict):
        return f"entry must be an object, got {_shown(entry)}"
    for key in _ENTRY_TEXTS:
        if not isinstance(entry.get(key), str):
            return f"{key} must be a string, got {_shown(entry.get(key))}"
    if entry["program_sha256"] != program_sha256:
        return f"program_sha256 is of another program, {_shown(entry['program_sha256'])}"
    data, engine = entry.get("data"), entry.get("engine")
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        return f"data must be an object with a name, got {_shown(data)}"
    if not isinstance(data.get("sha256"), str) or not _HEX_SHA256.fullmatch(data["sha256"]):
        return f"data.sha256 must be 64 hex digits, got {_shown(data.get('sha256'))}"
    counts = data.get("counts")
    if not isinstance(counts, dict) or not all(map(_is_count, counts.values())):
        return f"data.counts must be counts by set, got {_shown(counts)}"
    if not isinstance(engine, dict) or not all(
        isinstance(engine.get(k), str) for k in _ENGINE_TEXTS
    ):
        return f"engine must give {', '.join(_ENGINE_TEXTS)}, got {_shown(engine)}"
    notes, rows = entry.get("notes"), entry.get("rows")
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        return f"notes must be a list of strings, got {_shown(notes)}"
    if not isinstance(rows, list):
        return f"rows must be a list, got {_shown(rows)}"
    return next((f"row {_shown(row)} is damaged" for row in rows if not _is_row(row)), None)


def _is_row(row: Any) -> bool:
    """Whether it is a figure with its interval: {figure, set, of, value, low, high, n}."""
    if not isinstance(row, dict) or not {"low", "high", "n"} <= row.keys():
        return False
    low, high, n = row["low"], row["high"], row["n"]
    return (
        all(isinstance(row.get(key), str) for key in ("figure", "set", "of"))
        and _is_number(row.get("value"))
        and (n is None or (_is_number(n) and n >= 0))
        and (low is high is None or (_is_number(low) and _is_number(high) and low <= high))
    )


def _golden_problem(golden: Golden, manifest: Mapping[str, Any]) -> str | None:
    """Where the golden outputs do not have the sizes of the manifest."""
    map_size = list(golden.anomaly_map.shape[1:])
    if map_size != manifest["map_size"]:
        return f"golden maps are {map_size} and its map_size is {manifest['map_size']}"
    if golden.parts.shape[1] != len(manifest["parts"]):
        return f"golden parts are {golden.parts.shape[1]} and its parts are {manifest['parts']}"
    return None


def _files_problem(path: Path, files: Mapping[str, Any]) -> str | None:
    """Where the folder does not hold exactly the files of the manifest."""
    try:
        # hidden files are left alone: desktops drop them into every folder that is looked at
        found = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
        if missing := sorted(files.keys() - found):
            return f"{', '.join(missing)} is missing"
        if extra := sorted(found - files.keys() - {MANIFEST}):
            return f"it holds {_shown(', '.join(extra))}, which its manifest does not name"
        for name, entry in files.items():
            file = path / name
            if not file.is_file():
                return f"{name} is not a file"
            # the size first: a cut copy is the commonest damage, and quickest to see
            if (size := file.stat().st_size) != entry["bytes"]:
                return f"{name} has {size} bytes and its manifest says {entry['bytes']}"
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != entry["sha256"]:
                return f"{name} is damaged: its sha256 is not that of the manifest"
    except OSError as error:
        return f"cannot be read ({_one_line(error)})"
    return None


def _golden_bytes(golden: Golden) -> bytes:
    with tempfile.TemporaryFile() as file:
        np.savez_compressed(
            file,
            frames=golden.frames,
            valid=golden.valid,
            score=golden.score,
            map=golden.anomaly_map,
            parts=golden.parts,
        )
        file.seek(0)
        return file.read()


def _is_number(value: object) -> bool:
    """A JSON number that a float can hold; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON's whole numbers have no bound
        return False


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _shown(value: object) -> str:
    """A value for a message: as JSON shows it, on one line, not endless."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
