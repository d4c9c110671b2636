"""Still images become rows and maps; with the toy bundle the score is the brightness."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ccdstream.bundle import Bundle
from ccdstream.engine.select import SelectedEngine
from ccdstream.errors import CcdstreamError, ImageError, OutputError
from ccdstream.fuse import Calibration
from ccdstream.quality import measure
from ccdstream.stills import COLUMNS, find_images, map_path, read_image, score_stills
from ccdstream.view import NONE, view_of_image
from tests.bundles import write_toy_bundle
from tests.commands import ccdstream, everything_in, refusal, rows_of


def grey(path: Path, level: int, size: tuple[int, int] = (120, 160)) -> Path:
    """A flat picture without a border, height x width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size[1], size[0]), (level, level, level)).save(path)
    return path


def octagon(path: Path, size: tuple[int, int] = (200, 260)) -> Path:
    """A grey octagon on black, as a scope shows it."""
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    corners = [(30, 50), (70, 10), (190, 10), (230, 50), (230, 150), (190, 190), (70, 190)]
    cv2.fillConvexPoly(image, np.array([*corners, (30, 150)], np.int32), (120, 120, 120))
    Image.fromarray(image).save(path)
    return path


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """What a full disk is to a program: a write fails halfway."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- finding and reading ---


def test_folders_are_searched_and_files_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "deep/er/c.tiff", ".hidden.png", ".cache/d.png", "notes.txt"):
        grey(tmp_path / "frames" / name, 0) if not name.endswith("txt") else None
    (tmp_path / "frames" / "notes.txt").write_text("no image")
    (tmp_path / "frames" / "folder.png").mkdir()
    odd = tmp_path / "frames" / "notes.txt"
    found = find_images([odd, tmp_path / "frames"])
    names = [str(path.relative_to(tmp_path / "frames")) for path in found]
    assert names == ["notes.txt", "a.jpg", "b.PNG", "deep/er/c.tiff"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gone.png", "no such file: {}. Check the path."),
        ("x" * 300, "no such file: {}. Check the path."),
        ("empty", "no images in the folder {}. Expected files ending in .bmp, .jpeg, .jpg,"),
    ],
    ids=["missing", "name-too-long", "empty-folder"],
)
def test_a_path_without_images_is_refused(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError) as caught:
        find_images([tmp_path / name])
    assert str(caught.value).startswith(says.format(tmp_path / name))


def test_an_image_is_read_as_rgb(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), (200, 100, 50)).save(tmp_path / "i.png")
    image = read_image(tmp_path / "i.png")
    assert image.shape == (2, 3, 3)
    assert image[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize(
    ("mode", "value"), [("L", 77), ("RGBA", (77, 77, 77, 0)), ("I;16", 77 * 257)]
)
def test_grey_transparent_and_deep_images_become_8_bit_rgb(
    tmp_path: Path, mode: str, value: object
) -> None:
    Image.new(mode, (4, 4), value).save(tmp_path / "i.png")  # type: ignore[arg-type]
    assert read_image(tmp_path / "i.png").tolist() == [[[77, 77, 77]] * 4] * 4


def test_an_image_is_turned_upright_by_its_exif_tag(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20), (0, 0, 0))
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was held a quarter turn
    picture.save(tmp_path / "i.jpg", exif=exif)
    assert read_image(tmp_path / "i.jpg").shape == (40, 20, 3)


def test_what_is_no_image_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture\n" * 50)
    os.mkfifo(tmp_path / "pipe.png")
    says = {
        "empty.png": "it is empty",
        "text.png": "damaged, or not an image",
        "pipe.png": "there is no regular file of that name",
        "gone.png": "there is no regular file of that name",
    }
    for name, why in says.items():
        with pytest.raises(ImageError) as caught:
            read_image(tmp_path / name)
        assert str(caught.value) == f"cannot read {tmp_path / name}: {why}."


def test_an_image_that_may_not_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(np, "fromfile", denied)
    with pytest.raises(ImageError, match=r"i\.png: Permission denied\."):
        read_image(grey(tmp_path / "i.png", 1))


# --- rows ---


def test_a_row_has_the_raw_score_and_its_calibrated_fraction(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    levels = [0, 40, 77, 200]
    images = [grey(tmp_path / f"{level}.png", level) for level in levels]
    results = score_stills(images, tmp_path / "s.csv", bundle=bundle, engine=engine)
    rows = rows_of(tmp_path / "s.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == [str(image) for image in images]
    assert [float(row["raw"]) for row in rows] == pytest.approx([k / 255 for k in levels], abs=2e-3)
    curve = Calibration.from_dict(bundle.calibration["score"])
    expected = curve.apply(np.array([result.raw for result in results]))
    assert [float(row["score"]) for row in rows] == pytest.approx(expected.tolist(), abs=1e-6)
    assert all(0.9 < float(row["valid_fraction"]) <= 1 for row in rows)


def test_an_uninformative_image_is_scored_and_says_why(
    tmp_path: Path, engine: SelectedEngine
) -> None:
    images = [grey(tmp_path / "dark.png", 20), grey(tmp_path / "bright.png", 200)]
    dark, bright = (measure(view_of_image(read_image(i), NONE))["brightness"] for i in images)
    strict = write_toy_bundle(
        tmp_path / "strict", quality={"least_brightness": (dark + bright) / 2, "most_glare": -1.0}
    )
    score_stills(images, tmp_path / "s.csv", bundle=strict, engine=engine)
    assert [row["quality"] for row in rows_of(tmp_path / "s.csv")] == [
        "washed_out;too_dark",
        "washed_out",
    ]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_batch_changes_nothing(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine, batch: int
) -> None:
    sizes = [(120, 160), (33, 35), (300, 200), (64, 64)]
    images = [grey(tmp_path / f"{k}.png", 20 + 50 * k, size) for k, size in enumerate(sizes)]
    seen: list[int] = []
    score_stills(
        images,
        tmp_path / "all.csv",
        bundle=bundle,
        engine=engine,
        batch=batch,
        on_image=seen.append,
    )
    assert seen == [1, 2, 3, 4]
    alone = [
        score_stills([image], tmp_path / f"{k}.csv", bundle=bundle, engine=engine)[0]
        for k, image in enumerate(images)
    ]
    raw = [float(row["raw"]) for row in rows_of(tmp_path / "all.csv")]
    assert raw == pytest.approx([one.raw for one in alone], abs=1e-6)


def test_an_unreadable_image_is_told_and_left_out(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    images = [grey(tmp_path / "a.png", 10), bad, grey(tmp_path / "c.png", 30)]
    told: list[str] = []
    maps = tmp_path / "maps"
    results = score_stills(
        images,
        tmp_path / "s.csv",
        bundle=bundle,
        engine=engine,
        maps=maps,
        batch=2,
        on_unreadable=told.append,
    )
    assert [result.path.name for result in results] == ["a.png", "c.png"]
    assert [row["path"] for row in rows_of(tmp_path / "s.csv")] == [str(images[0]), str(images[2])]
    assert told == [f"cannot read {bad}: damaged, or not an image."]
    assert everything_in(maps) == {"a.png.npy", "c.png.npy"}


def test_nothing_readable_is_an_error_and_leaves_nothing(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(ImageError, match="nothing to score"):
        score_stills([bad], tmp_path / "s.csv", bundle=bundle, engine=engine)
    assert everything_in(tmp_path) == {"bad.png"}


# --- maps ---


def test_a_map_has_the_size_of_its_image_and_is_nan_where_nothing_was_scored(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    image = octagon(tmp_path / "o.png")
    maps = tmp_path / "new" / "maps"
    score_stills([image], tmp_path / "s.csv", bundle=bundle, engine=engine, maps=maps)
    heat = np.load(map_path(maps, image), allow_pickle=False)
    assert (heat.dtype, heat.shape) == (np.float32, (200, 260))
    assert np.isnan(heat[:, :25]).all() and np.isnan(heat[:5]).all() and np.isnan(heat[12, 32])
    inside = heat[60:140, 60:200]
    expected = Calibration.from_dict(bundle.calibration["map"]).apply(np.array(120 / 255))
    assert np.isfinite(inside).all()
    assert np.abs(inside - expected).max() < 0.01


def test_two_images_of_one_name_cannot_share_a_folder_of_maps(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    images = [grey(tmp_path / name / "i.png", 9) for name in ("a", "b")]
    before = everything_in(tmp_path)
    with pytest.raises(ImageError) as caught:
        score_stills(
            images, tmp_path / "s.csv", bundle=bundle, engine=engine, maps=tmp_path / "maps"
        )
    assert str(caught.value) == (
        f"{images[0]} and {images[1]} have the same name, so their maps would be one file. "
        "Score them apart, with a --maps folder each."
    )
    assert everything_in(tmp_path) == before
    score_stills(images, tmp_path / "s.csv", bundle=bundle, engine=engine)  # a table can hold both
    assert len(rows_of(tmp_path / "s.csv")) == 2


@pytest.mark.parametrize("there", ["s.csv", "maps/j.png.npy"])
def test_an_existing_result_is_refused_before_any_work_and_replaced_if_asked(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine, there: str
) -> None:
    images = [grey(tmp_path / name, 9) for name in ("i.png", "j.png")]
    maps = tmp_path / "maps"
    maps.mkdir()
    (tmp_path / there).write_text("mine")
    before = everything_in(tmp_path)

    def run(overwrite: bool) -> None:
        score_stills(
            images,
            tmp_path / "s.csv",
            bundle=bundle,
            engine=engine,
            maps=maps,
            batch=1,
            overwrite=overwrite,
            on_image=lambda _: None if overwrite else pytest.fail("worked"),
        )

    with pytest.raises(OutputError, match=f"{there} is there already"):
        run(overwrite=False)
    assert everything_in(tmp_path) == before
    assert (tmp_path / there).read_text() == "mine"
    run(overwrite=True)
    assert len(rows_of(tmp_path / "s.csv")) == 2
    assert np.load(maps / "j.png.npy").shape == (120, 160)


def test_a_full_disk_leaves_neither_table_nor_maps(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    images = [grey(tmp_path / f"{k}.png", 9, (32 + 32 * k, 64)) for k in range(3)]
    before = everything_in(tmp_path)
    with pytest.raises(OutputError) as caught, files_no_larger_than(20_000):
        score_stills(
            images, tmp_path / "s.csv", bundle=bundle, engine=engine, maps=tmp_path / "maps"
        )
    assert str(caught.value).startswith(
        f"cannot write {tmp_path}/maps/2.png.npy: {os.strerror(errno.EFBIG)}. "
    )
    assert everything_in(tmp_path) == before


def test_a_stop_leaves_neither_table_nor_maps(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    images = [grey(tmp_path / f"{k}.png", 9) for k in range(3)]
    before = everything_in(tmp_path)

    def stop(count: int) -> None:
        if count == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_stills(
            images,
            tmp_path / "s.csv",
            bundle=bundle,
            engine=engine,
            maps=tmp_path / "maps",
            on_image=stop,
        )
    assert everything_in(tmp_path) == before


# --- the command ---


def test_the_command_scores_folders_and_files(tmp_path: Path, bundle: Bundle) -> None:
    grey(tmp_path / "frames" / "a.png", 10)
    (tmp_path / "frames" / "b.png").write_bytes(b"no image")
    more = grey(tmp_path / "c.jpg", 200)
    result = ccdstream(
        *("score", tmp_path / "frames", more, "-o", tmp_path / "s.csv"),
        *("--maps", tmp_path / "maps", "--model", bundle.path),
    )
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines() == [
        f"warning: cannot read {tmp_path}/frames/b.png: damaged, or not an image.",
        f"2 images scored, 1 left out: {tmp_path}/s.csv",
    ]
    assert [Path(row["path"]).name for row in rows_of(tmp_path / "s.csv")] == ["a.png", "c.jpg"]
    assert everything_in(tmp_path / "maps") == {"a.png.npy", "c.jpg.npy"}


def test_the_command_takes_no_dash_for_a_file(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = grey(tmp_path / "a.png", 10)
    said = refusal(ccdstream("score", image, "-o", "-", "--model", bundle.path))
    assert said.startswith("scores cannot be written to standard output")
    assert everything_in(tmp_path) == {"a.png"}


def test_the_command_can_be_quiet_and_overwrite(tmp_path: Path, bundle: Bundle) -> None:
    image = grey(tmp_path / "a.png", 10)
    arguments = ("score", image, "-o", tmp_path / "s.csv", "--model", bundle.path, "--quiet")
    first = ccdstream(*arguments)
    assert (first.exit_code, first.stdout, first.stderr) == (0, "", "")
    assert refusal(ccdstream(*arguments)).startswith(f"{tmp_path}/s.csv is there already. ")
    assert ccdstream(*arguments, "--overwrite").exit_code == 0


def test_the_command_says_of_the_only_image_why_it_cannot_be_read(
    tmp_path: Path, bundle: Bundle
) -> None:
    (tmp_path / "b.png").touch()
    result = ccdstream(
        *("score", tmp_path / "b.png", "-o", tmp_path / "s.csv"),
        *("--quiet", "--model", bundle.path),
    )
    assert "nothing to score" in refusal(result)
    assert result.stderr.splitlines()[0] == f"warning: cannot read {tmp_path}/b.png: it is empty."
    assert everything_in(tmp_path) == {"b.png"}


@pytest.mark.parametrize(
    ("output", "maps"),
    [("no/such/s.csv", "maps"), ("i.png/s.csv", "maps"), (".", "maps"), ("s.csv", "i.png")],
    ids=["missing-folder", "below-a-file", "a-folder", "maps-is-a-file"],
)
def test_a_place_that_cannot_be_written_is_one_clear_line(
    tmp_path: Path, bundle: Bundle, output: str, maps: str
) -> None:
    image = grey(tmp_path / "i.png", 10)
    result = ccdstream(
        *("score", image, "-o", tmp_path / output, "--maps", tmp_path / maps, "--overwrite"),
        *("--model", bundle.path),
    )
    assert isinstance(refusal(result), str)
    assert everything_in(tmp_path) == {"i.png"}
    assert image.stat().st_size > 50


@pytest.mark.parametrize(
    "name",
    ["a b.png", "Kolon 大腸 é.png", "-x.png", "[/bold].png", "%03d.png", "two\nlines.png",
     os.fsdecode(b"\xff\xfe.png"), "x" * 236 + ".png"],
)  # fmt: skip
def test_a_name_is_only_a_name(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)  # "[/bold]" has a slash
    grey(tmp_path / "plain.png", 10).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    result = ccdstream("score", "-o", "s.csv", "--maps", "maps", "--model", bundle.path, "--", name)
    assert result.exit_code == 0
    assert len(result.stderr.splitlines()) == 1
    (row,) = rows_of(tmp_path / "s.csv")
    assert row["path"].isprintable()
    assert everything_in(tmp_path) == {name, "s.csv", f"maps/{Path(name).name}.npy"}


def test_a_name_with_no_room_for_its_suffix_is_one_clear_line(
    tmp_path: Path, bundle: Bundle
) -> None:
    image = grey(tmp_path / ("x" * 251 + ".png"), 10)
    result = ccdstream(
        *("score", image, "-o", tmp_path / "s.csv", "--maps", tmp_path / "maps"),
        *("--model", bundle.path),
    )
    assert "File name too long" in refusal(result)
    assert everything_in(tmp_path) == {image.name}


def test_errors_are_of_the_family_that_the_command_line_prints() -> None:
    assert issubclass(ImageError, CcdstreamError)
