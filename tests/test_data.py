"""Folders of images, by each layout; what is refused; what is held out; views and hashes."""

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ccdstream.errors import DataError
from ccdstream.view import HYPERKVASIR, NONE, view_of_image
from tests.pictures import picture, save, save_many, write_index
from trainer.data import (
    CALIBRATION_FRACTION,
    Dataset,
    Item,
    content_hash,
    difference_hash,
    find_data,
    load_views,
    near_duplicate_groups,
    read_image,
    read_mask,
)

REAL_DATA = Path(os.environ.get("CCDSTREAM_DATA", "no such folder"))


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """A folder with index.csv: 9 train, 8 calibration, 1 patch, 3 test images, one with a mask."""
    folder = tmp_path / "data"
    rows: list[dict[str, object]] = []
    for seed in range(21):
        label, split, below = "normal", "train", "normal/train"
        if seed >= 9:
            split, below = "calibration", "normal/calibration"
        if seed == 17:
            split, below = "pretrain", "normal/patches"
        if seed >= 18:
            label, split, below = ("abnormal", "test", "polyp/images")
        if seed == 20:
            label, below = "unclean", "unclean"
        path = f"{below}/{seed:03d}.png"
        save(folder / path, picture(seed))
        rows.append(
            {
                "path": path,
                "label": label,
                "split": split,
                "source": "made",
                "position_box": seed % 2,
                "group": f"g{seed}" if seed != 17 else "",
            }
        )
    mask = np.zeros((48, 64), np.uint8)
    mask[10:20, 10:20] = 255
    save(folder / "polyp" / "masks" / "018.png", mask)
    write_index(folder, rows)
    return folder


def names(items: list[Item]) -> list[str]:
    return [item.path.name for item in items]


def test_index_says_label_split_source_group_and_box(indexed: Path) -> None:
    dataset = find_data(indexed)

    assert names(dataset.train) == [f"{seed:03d}.png" for seed in range(9)]
    assert names(dataset.calibration) == [f"{seed:03d}.png" for seed in range(9, 17)]
    assert names(dataset.pretrain) == ["017.png"]
    assert names(dataset.test) == ["018.png", "019.png", "020.png"]
    assert [item.label for item in dataset.test] == ["abnormal", "abnormal", "unclean"]
    first = dataset.train[1]
    assert (first.source, first.group, first.position_box) == ("made", "g1", True)
    assert dataset.train[0].position_box is False


def test_image_without_a_group_is_a_group_of_its_own(indexed: Path) -> None:
    assert find_data(indexed).pretrain[0].group == "normal/patches/017.png"


def test_mask_lies_beside_the_images_folder(indexed: Path) -> None:
    with_mask, without_mask, unclean = find_data(indexed).test

    assert with_mask.mask == indexed / "polyp" / "masks" / "018.png"
    assert without_mask.mask is None and unclean.mask is None
    assert read_mask(with_mask.mask).sum() == 100


def test_split_folders_take_what_the_index_above_knows(indexed: Path) -> None:
    dataset = find_data(indexed / "normal")

    assert names(dataset.train) == names(find_data(indexed).train)
    assert names(dataset.pretrain) == ["017.png"]
    assert dataset.train[1].group == "g1" and dataset.train[1].position_box is True


def test_current_folder_has_an_index_above_it_too(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(indexed / "normal")

    assert find_data(Path()).train == find_data(indexed / "normal").train


def test_split_folders_need_no_index(tmp_path: Path) -> None:
    save_many(tmp_path / "train", range(10))
    save_many(tmp_path / "calibration", range(10, 18))
    save_many(tmp_path / "test" / "deeper", range(18, 20))

    dataset = find_data(tmp_path)

    assert (len(dataset.train), len(dataset.calibration), len(dataset.test)) == (10, 8, 2)
    assert all(item.label == "normal" and item.group for item in dataset.items)
    assert dataset.train[0].position_box is None


def test_without_a_calibration_folder_a_part_of_train_is_held_out_and_test_is_not_touched(
    tmp_path: Path,
) -> None:
    save_many(tmp_path / "train", range(40))
    save_many(tmp_path / "test", range(100, 103))

    dataset = find_data(tmp_path)

    assert len(dataset.train) + len(dataset.calibration) == 40
    assert len(dataset.calibration) >= 8
    assert {item.path.parent.name for item in dataset.train + dataset.calibration} == {"train"}
    assert names(dataset.test) == ["100.png", "101.png", "102.png"]


def test_plain_folder_holds_out_its_share_the_same_way_each_time(tmp_path: Path) -> None:
    save_many(tmp_path / "a", range(50))
    save_many(tmp_path / "b" / "c", range(50, 120))

    dataset = find_data(tmp_path)

    assert len(dataset.items) == 120
    share = len(dataset.calibration) / 120
    assert CALIBRATION_FRACTION <= share < CALIBRATION_FRACTION + 0.02
    assert {item.path.parent.name for item in dataset.calibration} == {"a", "c"}
    assert find_data(tmp_path) == dataset


def test_a_few_dozen_images_still_leave_enough_to_calibrate_with(tmp_path: Path) -> None:
    save_many(tmp_path, range(24))

    dataset = find_data(tmp_path)

    assert (len(dataset.train), len(dataset.calibration)) == (16, 8)


def test_near_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    for seed in range(40):
        image = picture(seed)
        save(tmp_path / "plain" / f"{seed}.png", image)
        save(tmp_path / "darker" / f"{seed}.png", (image * 0.8).astype(np.uint8))
        larger = cv2.resize(image, (96, 72), interpolation=cv2.INTER_LINEAR)
        save(tmp_path / "larger" / f"{seed}.jpg", larger)

    dataset = find_data(tmp_path)

    side = {(item.path.parent.name, item.path.stem): item for item in dataset.items}
    for seed in range(40):
        alike = [side[copy, str(seed)] for copy in ("plain", "darker", "larger")]
        assert len({item.group for item in alike}) == 1
        assert len({item.split for item in alike}) == 1
    assert len({item.group for item in dataset.items}) == 40


def test_hidden_files_and_other_files_are_no_images(tmp_path: Path) -> None:
    save_many(tmp_path, range(20))
    (tmp_path / "._001.png").write_bytes(b"left by a copy")
    (tmp_path / "notes.txt").write_text("not an image")

    assert len(find_data(tmp_path).items) == 20


def test_names_may_hold_spaces_and_unicode(tmp_path: Path) -> None:
    save_many(tmp_path, range(19))
    save(tmp_path / "Dünn darm Ω" / "bild 1.png", picture(99))

    views = load_views(find_data(tmp_path).items, NONE)

    assert len(views) == 20


def _missing(folder: Path) -> None:
    shutil.rmtree(folder)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _few_train(folder: Path) -> None:
    for path in sorted((folder / "train").iterdir())[:3]:
        path.unlink()


def _few_calibration(folder: Path) -> None:
    for path in sorted((folder / "calibration").iterdir())[:1]:
        path.unlink()


def _no_train(folder: Path) -> None:
    shutil.rmtree(folder / "train")


def _text_as_image(folder: Path) -> None:
    for number in range(7):
        (folder / "train" / f"broken{number}.jpg").write_text("not an image")


def _small(folder: Path) -> None:
    save(folder / "train" / "tiny.png", picture(0, (31, 64)))


def _masks_beside(folder: Path) -> None:
    shutil.rmtree(folder)
    save_many(folder / "images", range(20))
    save_many(folder / "masks", range(20))


def _all_alike(folder: Path) -> None:
    shutil.rmtree(folder)
    for number in range(30):
        save(folder / f"{number}.png", picture(0))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(_missing, "no data folder at", id="missing folder"),
        pytest.param(_empty, "no images in", id="no images"),
        pytest.param(_few_train, "has 15 frames to train on and calib", id="few to train on"),
        pytest.param(_few_calibration, "has 7 calibration frames", id="few to calibrate with"),
        pytest.param(_no_train, "holds calibration/ but no train/", id="calibration only"),
        pytest.param(_text_as_image, r"7 images cannot be read.*and 2 more", id="unreadable"),
        pytest.param(_small, r"smaller than 32 px: .*tiny\.png", id="small"),
        pytest.param(_masks_beside, "folder of lesion masks", id="masks beside the images"),
        pytest.param(_all_alike, "has 0 calibration frames", id="one picture thirty times"),
    ],
)
def test_unusable_folder_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "normal"
    save_many(folder / "train", range(10))
    save_many(folder / "calibration", range(10, 18))
    find_data(folder)
    damage(folder)

    with pytest.raises(DataError, match=message):
        find_data(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"label": "abnormal"}, "1 image of train is not labelled normal", id="label"),
        pytest.param({"label": "unclean"}, "1 image of train is not labelled normal", id="stool"),
        pytest.param({"label": "polyp"}, "line 2: label is 'polyp'", id="unknown label"),
        pytest.param({"split": "validation"}, "line 2: split is 'validation'", id="unknown split"),
        pytest.param({"group": "g9"}, "both train and calibration, such as 'g9'", id="leak"),
        pytest.param({"path": "gone.png"}, r"1 file that is not there: .*gone\.png", id="absent"),
    ],
)
def test_index_that_cannot_be_trusted_is_refused(
    indexed: Path, change: dict[str, object], message: str
) -> None:
    with (indexed / "index.csv").open(newline="") as file:
        rows: list[dict[str, object]] = [dict(row) for row in csv.DictReader(file)]
    rows[0] |= change
    write_index(indexed, rows)

    with pytest.raises(DataError, match=message):
        find_data(indexed)


def test_index_without_its_columns_is_refused(indexed: Path) -> None:
    write_index(indexed, [{"path": "normal/train/000.png", "label": "normal"}])

    with pytest.raises(DataError, match="lacks the columns split"):
        find_data(indexed)


def test_test_images_are_not_opened_before_they_are_asked_for(indexed: Path) -> None:
    broken = indexed / "polyp" / "images" / "018.png"
    broken.write_bytes(b"not an image")

    dataset = find_data(indexed)

    with pytest.raises(DataError, match=r"1 image cannot be read: .*018\.png"):
        load_views(dataset.test, NONE)


def test_views_are_those_of_the_runtime(indexed: Path) -> None:
    items = find_data(indexed).items
    seen: list[tuple[int, int]] = []

    views = load_views(items, HYPERKVASIR, progress=lambda done, total: seen.append((done, total)))

    assert views.images.shape == (21, 3, 256, 256) and views.images.dtype == np.uint8
    assert views.valid.shape == (21, 256, 256) and views.valid.dtype == np.bool_
    assert seen == [(done, 21) for done in range(1, 22)]
    for index, item in enumerate(items):
        with Image.open(item.path) as image:
            expected = view_of_image(np.array(image), HYPERKVASIR)
        np.testing.assert_array_equal(views.images[index], expected.image.transpose(2, 0, 1))
        np.testing.assert_array_equal(views.valid[index], expected.valid)
        assert views.fields[index].width == expected.field.width
        assert views.sizes[index] == (48, 64)


def test_views_can_be_smaller(indexed: Path) -> None:
    views = load_views(find_data(indexed).train, NONE, size=64)

    assert views.images.shape == (9, 3, 64, 64) and views.valid.shape == (9, 64, 64)


def test_no_items_make_no_views() -> None:
    assert load_views([], NONE).images.shape == (0, 3, 256, 256)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8\xff\xe0 half a JPEG"], ids=["empty", "damaged"]
)
def test_what_is_not_a_whole_image_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)

    assert read_image(path) is None
    assert read_image(tmp_path / "gone.jpg") is None
    with pytest.raises(DataError, match="cannot be read"):
        read_mask(path)


def test_images_are_read_as_rgb(tmp_path: Path) -> None:
    red = np.zeros((40, 40, 3), np.uint8)
    red[..., 0] = 200
    image = read_image(save(tmp_path / "red.png", red))

    assert image is not None
    np.testing.assert_array_equal(image, red)


def test_mask_that_was_stored_as_jpeg_is_cut_at_half(tmp_path: Path) -> None:
    grey = np.array([[0, 127, 128, 255]], np.uint8)

    mask = read_mask(save(tmp_path / "mask.png", grey))

    assert mask.tolist() == [[False, False, True, True]]


def test_content_hash_is_of_names_and_contents_and_nothing_else(
    indexed: Path, tmp_path: Path
) -> None:
    dataset = find_data(indexed)
    first = content_hash(dataset.train)

    assert content_hash(list(reversed(dataset.train))) == first
    assert content_hash(find_data(indexed / "normal").train) == first
    moved = shutil.copytree(indexed, tmp_path / "elsewhere")
    assert content_hash(find_data(moved).train) == first
    assert content_hash(dataset.train[:-1]) != first
    assert content_hash([]) != first


@pytest.mark.parametrize("what", ["content", "name"])
def test_content_hash_changes_with(indexed: Path, what: str) -> None:
    dataset = find_data(indexed)
    before = content_hash(dataset.train)
    path = dataset.train[0].path
    if what == "content":
        path.write_bytes(path.read_bytes() + b"\0")
        assert content_hash(dataset.train) != before
    else:
        path.rename(path.with_name("renamed.png"))
        assert content_hash(find_data_of(path.parent)) != before


def find_data_of(folder: Path) -> list[Item]:
    return [Item(path, "normal", "train", source="", group=path.name) for path in folder.iterdir()]


def test_groups_are_the_connected_parts_of_the_graph_of_likeness() -> None:
    random = np.random.default_rng(0)
    centres = random.random((12, 64)) < 0.5
    hashes = centres[random.integers(12, size=60)] ^ (random.random((60, 64)) < 0.03)

    groups = near_duplicate_groups(hashes, most_bits=3)

    expected = list(range(60))  # slow: give both ends of every edge the smaller name, until none
    changed = True
    while changed:
        changed = False
        for a in range(60):
            for b in range(60):
                if (hashes[a] != hashes[b]).sum() <= 3 and expected[a] != expected[b]:
                    expected[a] = expected[b] = min(expected[a], expected[b])
                    changed = True
    assert groups == expected
    assert 12 <= len(set(groups)) < 60


def test_difference_hash_does_not_see_size_or_brightness() -> None:
    grey = picture(5, (240, 320))[..., 0]

    bits = difference_hash(grey)

    assert bits.shape == (64,) and bits.dtype == np.bool_
    np.testing.assert_array_equal(difference_hash((grey * 0.5 + 10).astype(np.uint8)), bits)
    larger = cv2.resize(grey, (640, 480), interpolation=cv2.INTER_LINEAR)
    assert (difference_hash(larger) != bits).sum() <= 2
    ramp = np.tile(np.arange(0, 180, 2, dtype=np.uint8), (64, 1))
    assert difference_hash(ramp).all() and not difference_hash(ramp[:, ::-1]).any()


def test_a_split_that_is_none_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="split must be one of"):
        Dataset(Path(), ()).of_split("validation")


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real frames are not on this machine")
def test_real_frames_are_found_by_each_layout() -> None:
    whole, normal = find_data(REAL_DATA), find_data(REAL_DATA / "normal")

    assert [len(whole.of_split(s)) for s in ("train", "calibration", "pretrain", "test")] == [
        695,
        122,
        900,
        1079,
    ]
    assert len(normal.test) == 110
    assert normal.train == whole.train and normal.calibration == whole.calibration
    assert sum(item.mask is not None for item in whole.test) == 498 + 299
