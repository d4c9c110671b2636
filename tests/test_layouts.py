"""Every public layout, and what is refused by its names: tiny trees of made-up images."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ccdstream.errors import DataError
from ccdstream.view import NONE
from tests.pictures import picture, save, save_many, write_index
from tests.videos import make_video
from trainer import layouts
from trainer.data import Dataset, find_data, load_views, read_mask, survey
from trainer.layouts import says_abnormal


def splits(dataset: Dataset) -> dict[tuple[str, str], int]:
    """How many items of each split and label."""
    return dict(Counter((item.split, item.label) for item in dataset.items))


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """pytest names its folder after the test, and names count here."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def hyperkvasir(tmp_path: Path) -> Path:
    """HyperKvasir: 42 normals, 3 unclean, 4 segmented and 8 images of other classes."""
    folder = tmp_path / "hyper-kvasir"
    lower = folder / "labeled-images" / "lower-gi-tract"
    save_many(lower / "anatomical-landmarks" / "cecum", range(20))
    save_many(lower / "anatomical-landmarks" / "ileum", range(20, 22))
    save_many(lower / "quality-of-mucosal-views" / "bbps-2-3", range(22, 42))
    save_many(lower / "quality-of-mucosal-views" / "bbps-0-1", range(50, 52))
    save_many(lower / "quality-of-mucosal-views" / "impacted-stool", range(52, 53))
    save_many(lower / "pathological-findings" / "polyps", range(60, 64))
    save_many(folder / "labeled-images" / "upper-gi-tract" / "pylorus", range(64, 68))
    segmented = folder / "segmented-images"
    save_many(segmented / "images", range(60, 64))
    for seed in range(60, 64):
        mask = np.zeros((48, 64), np.uint8)
        mask[8:24, 8:24] = 255
        save(segmented / "masks" / f"{seed:03d}.jpg", mask)
    return folder


def test_hyperkvasir_keeps_the_proportions_of_the_paper(hyperkvasir: Path) -> None:
    dataset = find_data(hyperkvasir)

    assert splits(dataset) == {
        ("train", "normal"): 24,
        ("calibration", "normal"): 8,
        ("test", "normal"): 10,  # 42 * 500 / 2100
        ("test", "abnormal"): 4,
        ("test", "unclean"): 3,
    }
    normal = {item.source for item in dataset.items if item.label == "normal"}
    assert normal == {"hk_cecum", "hk_ileum", "hk_bbps-2-3"}
    assert not any("polyps" in item.path.parts for item in dataset.items)
    assert "HyperKvasir" in dataset.layout and "42 of 42 normals" in dataset.layout


def test_hyperkvasir_of_full_size_has_the_numbers_of_the_paper(
    hyperkvasir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cecum = hyperkvasir / "labeled-images" / "lower-gi-tract" / "anatomical-landmarks" / "cecum"
    for seed in range(16):
        for copy in range(2):  # groups of three, which no odd number of images need fit
            save(cecum / f"{seed:03d}-{copy}.png", (picture(seed) * 0.9).astype(np.uint8))

    for test in range(4, 12):
        monkeypatch.setattr(layouts, "HYPERKVASIR_COUNTS", (40, test))
        dataset = find_data(hyperkvasir)

        normal = Counter(item.split for item in dataset.items if item.label == "normal")
        assert normal["test"] == test and normal["train"] + normal["calibration"] == 40
        assert f"{40 + test} of 74 normals" in dataset.layout


def test_hyperkvasir_masks_are_jpeg_and_cut_at_half(hyperkvasir: Path) -> None:
    masks = [item.mask for item in find_data(hyperkvasir).test if item.label == "abnormal"]

    assert all(mask is not None and mask.suffix == ".jpg" for mask in masks)
    assert masks[0] is not None and read_mask(masks[0]).sum() == 256


def test_hyperkvasir_keeps_near_duplicates_on_one_side_whatever_they_are_called(
    hyperkvasir: Path,
) -> None:
    lower = hyperkvasir / "labeled-images" / "lower-gi-tract"
    for seed in range(20):
        darker = (picture(seed) * 0.8).astype(np.uint8)
        save(lower / "quality-of-mucosal-views" / "bbps-2-3" / f"z{seed}.png", darker)

    sides: dict[str, set[str]] = {}
    for item in find_data(hyperkvasir).items:
        if item.label == "normal":
            sides.setdefault(item.group, set()).add(item.split)

    assert len(sides) == 42 and all(len(side) == 1 for side in sides.values())


def test_of_fewer_normals_than_the_paper_none_is_left_out(hyperkvasir: Path) -> None:
    below = hyperkvasir / "labeled-images" / "lower-gi-tract" / "quality-of-mucosal-views"
    for number in range(40):
        save(below / "bbps-2-3" / f"z{number}.png", picture(99))  # one group, larger than test

    dataset, _ = survey(hyperkvasir)

    assert sum(item.label == "normal" for item in dataset.items) == 82


def test_hyperkvasir_is_chosen_the_same_way_wherever_it_lies(
    hyperkvasir: Path, tmp_path: Path
) -> None:
    before = {item.path.name: item.split for item in find_data(hyperkvasir).items}

    moved = hyperkvasir.rename(tmp_path / "elsewhere")

    assert {item.path.name: item.split for item in find_data(moved).items} == before


@pytest.mark.parametrize("below", ["labeled-images", "labeled-images/lower-gi-tract"])
def test_labelled_images_alone_will_do(hyperkvasir: Path, below: str) -> None:
    dataset = find_data(hyperkvasir / below)

    assert "HyperKvasir" in dataset.layout
    assert {item.label for item in dataset.test} == {"normal", "unclean"}


def test_segmented_images_alone_cannot_train_but_are_understood(hyperkvasir: Path) -> None:
    dataset, problems = survey(hyperkvasir / "segmented-images")

    assert splits(dataset) == {("test", "abnormal"): 4}
    assert [problem.kind for problem in problems] == ["few"]
    with pytest.raises(DataError, match=r"has 0 frames to train on .* at least 16, "):
        find_data(hyperkvasir / "segmented-images")


def test_layout_of_the_authors(tmp_path: Path) -> None:
    save_many(tmp_path / "train_set", range(30))
    save_many(tmp_path / "test_set" / "normal_test", range(30, 35))
    save_many(tmp_path / "test_set" / "abnormal_test", range(35, 42))

    dataset = find_data(tmp_path)

    assert splits(dataset) == {
        ("train", "normal"): 22,
        ("calibration", "normal"): 8,
        ("test", "normal"): 5,
        ("test", "abnormal"): 7,
    }
    assert "Colon_AD_public" in dataset.layout


def test_test_images_of_a_given_split_stay_closed(tmp_path: Path) -> None:
    save_many(tmp_path / "train_set", range(30))
    broken = tmp_path / "test_set" / "normal_test" / "a.png"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not an image")

    assert len(find_data(tmp_path).test) == 1


def test_frames_of_64_pixels_train_as_those_of_liu_et_al(tmp_path: Path) -> None:
    for seed in range(30):
        save(tmp_path / "train_set" / f"normal_{seed}.png", picture(seed, (64, 64)))
        save(tmp_path / "abnormal_50" / f"abnormal_{seed}.png", picture(seed + 50, (64, 64)))

    dataset = find_data(tmp_path)
    views = load_views(dataset.train, NONE, size=64)

    assert splits(dataset) == {("train", "normal"): 22, ("calibration", "normal"): 8}
    assert views.images.shape == (22, 3, 64, 64) and views.valid.mean() > 0.5
    assert set(views.sizes) == {(64, 64)}


@pytest.mark.parametrize(
    ("normal", "abnormal"),
    [("non_glaucoma/image", "suspicious_glaucoma/image"), ("Non-Glaucoma", "Glaucoma")],
)
def test_layout_of_lag(tmp_path: Path, normal: str, abnormal: str) -> None:
    save_many(tmp_path / normal, range(40))
    save_many(tmp_path / abnormal, range(40, 46))
    if normal.endswith("image"):
        save_many(tmp_path / "suspicious_glaucoma" / "attention_map", range(40, 46))

    dataset = find_data(tmp_path)

    assert splits(dataset) == {
        ("train", "normal"): 22,
        ("calibration", "normal"): 8,
        ("test", "normal"): 10,  # 40 * 800 / 3143
        ("test", "abnormal"): 6,
    }
    assert {item.source for item in dataset.items} == {"lag"}


def test_layout_of_medianomaly(tmp_path: Path) -> None:
    save_many(tmp_path / "images", range(36))
    names = [f"{seed:03d}.png" for seed in range(36)]
    document = {"train": {"0": names[:30]}, "test": {"0": names[30:33], "1": names[33:]}}
    (tmp_path / "data.json").write_text(json.dumps(document))

    dataset = find_data(tmp_path)

    assert splits(dataset) == {
        ("train", "normal"): 22,
        ("calibration", "normal"): 8,
        ("test", "normal"): 3,
        ("test", "abnormal"): 3,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a list of MedIAnomaly"),
        ('{"train": {}}', "is not a list of MedIAnomaly: KeyError"),
        (
            '{"train": {"0": ["gone.png"]}, "test": {"0": [], "1": []}}',
            "1 file that is not there",
        ),
    ],
)
def test_list_of_medianomaly_that_cannot_be_trusted_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    save_many(tmp_path / "images", range(3))
    (tmp_path / "data.json").write_text(text)

    with pytest.raises(DataError, match=message):
        find_data(tmp_path)


@pytest.mark.parametrize(
    ("below", "label"),
    [
        ("good", "normal"),
        ("crack", "abnormal"),
        ("unclean", "unclean"),
    ],
)
def test_folders_beside_good_ones_of_test_are_abnormal(
    tmp_path: Path, below: str, label: str
) -> None:
    save_many(tmp_path / "train", range(30))
    save_many(tmp_path / "test" / "good", range(30, 32))
    save_many(tmp_path / "test" / below, range(32, 34))

    named = {item.path.parent.name: item.label for item in find_data(tmp_path).test}

    assert named == {"good": "normal", below: label}


def test_masks_of_test_are_no_images(tmp_path: Path) -> None:
    save_many(tmp_path / "train", range(30))
    save_many(tmp_path / "test" / "polyp" / "images", range(2))
    save_many(tmp_path / "test" / "polyp" / "masks", range(2))

    test = find_data(tmp_path).test

    assert [item.label for item in test] == ["abnormal", "abnormal"]
    assert all(item.mask is not None for item in test)


@pytest.mark.parametrize(
    ("name", "abnormal"),
    [
        ("polyp_12.jpg", True),
        ("Adenoma", True),
        ("abnormal-frames", True),
        ("suspicious_glaucoma", True),
        ("case3 lesion.png", True),
        ("polyps2", True),
        ("PolypFrames", True),
        ("POLYP7.JPG", True),
        ("NoPolyp", False),
        ("non_glaucoma", False),
        ("polyp-free", False),
        ("no polyp", False),
        ("nonpolyp", False),
        ("polypectomy", False),
        ("normal", False),
        ("00af-12.jpg", False),
    ],
)
def test_a_name_says_what_a_frame_is(name: str, abnormal: bool) -> None:
    assert says_abnormal(name) is abnormal


def _file(folder: Path) -> None:
    save(folder / "polyp_1.png", picture(90))


def _subfolder(folder: Path) -> None:
    save_many(folder / "adenoma", range(90, 98))


@pytest.mark.parametrize(
    ("spoil", "first"), [(_file, r"1 file .*polyp_1\.png"), (_subfolder, "8 files .*and 3 more")]
)
@pytest.mark.parametrize("below", [".", "train", "calibration", "train_set"])
def test_frames_named_abnormal_are_refused_with_the_way_out(
    tmp_path: Path, below: str, spoil: Callable[[Path], None], first: str
) -> None:
    save_many(tmp_path / ("train" if below == "calibration" else below), range(30))
    if below == "calibration":
        save_many(tmp_path / below, range(30, 40))
    find_data(tmp_path)
    spoil(tmp_path / below)

    with pytest.raises(DataError, match=first) as refused:
        find_data(tmp_path)
    assert "move the others away" in str(refused.value) and "index.csv" in str(refused.value)


def test_a_folder_named_abnormal_is_refused_too(tmp_path: Path) -> None:
    save_many(tmp_path / "polyps", range(30))

    with pytest.raises(DataError, match="30 files to train on are named as abnormal"):
        find_data(tmp_path / "polyps")


def test_an_index_knows_better_than_names(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = []
    for seed in range(20):
        save(tmp_path / f"polyp{seed}.png", picture(seed))
        split = "train" if seed < 10 else "calibration"
        rows.append({"path": f"polyp{seed}.png", "label": "normal", "split": split})
    write_index(tmp_path, rows)

    assert len(find_data(tmp_path).train) == 10


@pytest.mark.parametrize("below", [".", "train"])
def test_images_and_recordings_do_not_mix(tmp_path: Path, below: str) -> None:
    save_many(tmp_path / below, range(30))
    make_video(tmp_path / below / "case.mp4")

    with pytest.raises(DataError, match="both 30 images and 1 recording,"):
        find_data(tmp_path)


def test_every_reason_is_found_and_not_the_first_alone(tmp_path: Path) -> None:
    save_many(tmp_path, range(5))
    (tmp_path / "a.png").write_bytes(b"not an image")
    save(tmp_path / "b.png", picture(40, (20, 64)))
    save(tmp_path / "polyp.png", picture(41))

    _, problems = survey(tmp_path)

    assert [problem.kind for problem in problems] == [
        *("named abnormal", "unreadable", "small", "few"),
    ]
