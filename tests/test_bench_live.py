"""The tool that measures a live session, with the toy bundle. Never how late it was."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ccdstream.bundle import load_bundle
from ccdstream.live.records import Shown, Status
from tests.bundles import ToyEngine, write_toy_bundle
from tests.live import grey
from tools import bench_live
from tools.bench_live import NumberedSource, burn, number_in, speed_of

SIZE = (240, 480)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "toy"
    write_toy_bundle(folder)
    return folder


@pytest.mark.parametrize("number", [0, 1, 12_345, 2**24 - 1])
def test_a_number_is_read_back_through_noise_and_not_out_of_a_plain_picture(number: int) -> None:
    luma = np.full(SIZE, 90, np.uint8)
    with pytest.raises(ValueError, match="no frame number"):
        number_in(luma)
    burn(luma, number)
    noise = np.random.default_rng(0).integers(-25, 25, SIZE)
    assert number_in(np.clip(luma + noise, 0, 255).astype(np.uint8)) == number
    luma[:8, 300:] = 126
    with pytest.raises(ValueError, match="no frame number"):
        number_in(luma)


def test_the_source_numbers_its_frames_and_ends() -> None:
    source = NumberedSource([grey(50, SIZE), grey(80, SIZE)], Fraction(1000), 6)
    numbers = []
    with source.connect() as connection:
        while (frame := connection.read()) is not None:
            numbers.append(number_in(frame.y))
    assert numbers == sorted(set(numbers)) and numbers[-1] < 6
    assert len(numbers) + source.missed == 6 and source.over


@pytest.mark.parametrize("record", [False, True])
def test_a_case_proves_order_and_age_from_the_pictures_themselves(
    bundle: Path, record: bool
) -> None:
    case = bench_live.measure(
        SIZE,
        Fraction(20),
        [grey(50, SIZE)],
        load_bundle(bundle),
        ToyEngine(),  # type: ignore[arg-type]
        seconds=1.0,
        bound_s=60.0,
        record=record,
    )
    counts = case.result.counts
    assert counts.captured + case.missed == 20
    assert case.pictures == counts.shown > 0 and case.disordered == 0
    assert case.oldest_shown_s >= case.result.delays["capture_to_overlay"].max_s * 0.5
    assert case.in_file == (counts.shown - counts.dropped_recorder if record else None)
    head, _, row = bench_live.table([case]).splitlines()
    assert head.count("|") == row.count("|")
    assert row.startswith(f"| 480x240, 20{', recorded' * record} |")
    assert json.loads(json.dumps(bench_live.as_json(case)))["counts"]["captured"] > 0


def test_a_picture_that_is_out_of_order_is_seen() -> None:
    source = NumberedSource([grey(50, SIZE)], Fraction(1000), 3)
    with source.connect() as connection:
        first, second = connection.read(), connection.read()
    board = bench_live.ProvingBoard(source)
    for k, frame in enumerate((second, first)):
        board.show(Shown(frame, k, 0.0, 0.0, Status("READY"), "NORMAL", 0.1, 0.0))
    assert (board.pictures, board.disordered) == (2, 1)


def test_a_speed_is_taken_as_it_is_written() -> None:
    assert speed_of("1.8") == Fraction(9, 5)
    for wrong in ("0", "-1", "fast", "nan"):
        with pytest.raises(ValueError):
            speed_of(wrong)


def test_a_soak_samples_what_the_process_holds(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_live, "LOSE_EVERY", 40)
    monkeypatch.setattr("ccdstream.live.session.COUNT_EVERY_S", 0.0)
    report = bench_live.soak(
        100 / 25 / 3600,
        speed_of("1.8"),
        load_bundle(bundle),
        ToyEngine(),  # type: ignore[arg-type]
        60.0,
    )
    assert report["counts"]["gaps"] >= 2 and report["disordered"] == 0
    assert len(report["held"]) >= 3
    assert all(at["threads"] > 1 and at["files"] > 2 for at in report["held"])
    assert bench_live.soak_table(report).count("\n") == 4
