"""Compiled engines are found again where they fit, and a line says why where they do not."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ccdstream.engine.base import BuildOptions
from ccdstream.engine.cache import (
    FOLDER_VARIABLE,
    EngineCache,
    EngineKey,
    default_folder,
    engine_key,
)
from ccdstream.engine.gpu import Gpu

KEY = EngineKey(
    program="0" * 64,
    library="tensorrt",
    version="11.1.0",
    gpu="NVIDIA H100",
    compute_capability="9.0",
    driver="580.95.05",
    precision="fp16",
    batch="1,8,32",
    recipe="ccdstream 0.1.0",
)


class Kept:
    """A cache that has one engine, and what it says."""

    def __init__(self, folder: Path) -> None:
        self.lines: list[str] = []
        self.cache = EngineCache(folder, self.lines.append)
        self.cache.store(KEY, b"an engine")
        (self.path,) = folder.glob("*.engine")


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "engines")


def test_an_engine_is_found_under_what_it_was_made_for(kept) -> None:
    assert kept.cache.load(KEY) == b"an engine"
    assert kept.lines == []


def test_an_empty_cache_has_nothing_and_says_nothing(tmp_path) -> None:
    lines: list[str] = []
    assert EngineCache(tmp_path / "none", lines.append).load(KEY) is None
    assert lines == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"driver": "590.1"}, "it was made for driver 580.95.05, this is 590.1"),
        ({"version": "11.4.0"}, "it was made for tensorrt 11.1.0, this is 11.4.0"),
        ({"gpu": "NVIDIA A100"}, "it was made for NVIDIA H100, this is NVIDIA A100"),
        ({"compute_capability": "9.1"}, "it was made for compute capability 9.0, this is 9.1"),
        (
            {"recipe": "ccdstream 0.2.0"},
            "it was made for ccdstream 0.1.0, this is ccdstream 0.2.0",
        ),
        ({"gpu": "NVIDIA A100", "driver": "1"}, "it was made for NVIDIA H100, this is NVIDIA A100"),
    ],
    ids=["driver", "version", "gpu", "compute capability", "ccdstream", "the first of two"],
)
def test_an_engine_made_for_something_else_is_rebuilt_and_a_line_says_why(
    kept, change, why
) -> None:
    assert kept.cache.load(replace(KEY, **change)) is None
    assert kept.lines == [f"engine rebuilt: {why}"]


@pytest.mark.parametrize(
    "change",
    [{"program": "1" * 64}, {"library": "tensorrt_rtx"}, {"precision": "fp32"}, {"batch": "1,1,1"}],
    ids=lambda change: next(iter(change)),
)
def test_other_engines_lie_beside_it_without_a_word(kept, change) -> None:
    other = replace(KEY, **change)
    assert kept.cache.load(other) is None
    kept.cache.store(other, b"another")
    assert (kept.cache.load(other), kept.cache.load(KEY)) == (b"another", b"an engine")
    assert kept.lines == []


def test_a_newer_driver_takes_the_place_of_the_older_and_another_gpu_does_not(kept) -> None:
    newer, other_gpu = replace(KEY, driver="590.1"), replace(KEY, gpu="NVIDIA A100")
    kept.cache.store(newer, b"newer")
    kept.cache.store(other_gpu, b"other")
    assert len(list(kept.cache.folder.iterdir())) == 2
    assert (kept.cache.load(newer), kept.cache.load(other_gpu)) == (b"newer", b"other")
    assert kept.cache.load(KEY) is None


@pytest.mark.parametrize(
    "content", ["empty", "cut", "flipped", "foreign", "header cut", "not json"]
)
def test_a_damaged_entry_is_rebuilt_and_a_line_says_so(kept, content) -> None:
    whole = kept.path.read_bytes()
    kept.path.write_bytes(
        {
            "empty": b"",
            "cut": whole[:-1],
            "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
            "foreign": b"\x00" * 100,
            "header cut": whole[:60],
            "not json": whole.replace(b'"program"', b"'program'"),
        }[content]
    )
    assert kept.cache.load(KEY) is None
    assert kept.lines == [f"engine rebuilt: {kept.path} is damaged"]
    kept.cache.store(KEY, b"again")
    assert kept.cache.load(KEY) == b"again"


def test_an_entry_that_cannot_be_read_is_rebuilt_and_a_line_says_so(kept) -> None:
    kept.path.unlink()
    kept.path.mkdir()
    assert kept.cache.load(KEY) is None
    assert kept.lines == [f"engine rebuilt: {kept.path} cannot be read (Is a directory)"]


def test_a_folder_that_cannot_be_written_costs_a_line_and_no_more(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    lines: list[str] = []
    cache = EngineCache(tmp_path / "file" / "engines", lines.append)
    cache.store(KEY, b"an engine")
    assert cache.load(KEY) is None
    assert lines[0].startswith(f"the engine is not kept: {cache.folder} cannot be written (")
    assert len(lines) == 1


def test_nothing_half_written_is_left_behind(kept, monkeypatch) -> None:
    def full(*paths: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    kept.cache.store(KEY, b"longer than what was there before")
    assert [path.name for path in kept.cache.folder.iterdir()] == [kept.path.name]
    assert "No space left on device" in kept.lines[0]
    assert kept.cache.load(KEY) == b"an engine"


def test_engines_are_kept_in_the_users_cache_unless_told_otherwise(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert default_folder().parts[-2:] == ("ccdstream", "engines")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert default_folder() == EngineCache(None, print).folder == tmp_path / "engines"


def test_a_key_names_all_that_an_engine_depends_on() -> None:
    gpu = Gpu("NVIDIA H100", (9, 0), 80 << 30)
    options = BuildOptions("fp32", (1, 2, 4))
    keys = [
        engine_key(b"program", library="tensorrt", version="11", gpu=gpu, options=options),
        engine_key(b"another", library="tensorrt", version="11", gpu=gpu, options=options),
        engine_key(b"program", library="tensorrt", version="12", gpu=gpu, options=options),
        engine_key(b"program", library="tensorrt_rtx", version="11", gpu=gpu, options=options),
        engine_key(
            b"program",
            library="tensorrt",
            version="11",
            gpu=replace(gpu, compute_capability=(8, 0)),
            options=options,
        ),
        *(
            engine_key(b"program", library="tensorrt", version="11", gpu=gpu, options=changed)
            for changed in (replace(options, precision="fp16"), replace(options, batch=(1, 2, 8)))
        ),
    ]
    assert len(set(keys)) == len(keys)
    assert (keys[0].compute_capability, keys[0].batch) == ("9.0", "1,2,4")
