"""Figures of a made-up model on made-up images whose right answers are known."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from ccdstream.bundle import Bundle
from ccdstream.engine.base import Device, EngineOutput
from ccdstream.errors import DataError, EngineError, OutputError
from ccdstream.fuse import Calibration
from ccdstream.score import mask_map
from ccdstream.view import NONE, Profile
from tests.pictures import save_many
from trainer import evaluate as module
from trainer.evaluate import evaluate, table

INSET = Profile("made", inset=(0.0, 0.5, 0.5, 1.0))
SIDE = 128
KNOTS = {"raw": [90.0, 105.0, 110.0], "fraction": [0.0, 0.5, 0.9], "tail_scale": 5.0}


@dataclass
class Brightness:
    """Score: mean of the valid pixels. Map: mean of each 4x4 cell, garbage where none is valid."""

    name: str = "brightness"
    device: Device = "cpu"
    version: str = "1.0"
    garbage: float = 1e6

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        grey = frames.mean(axis=1)
        cells = grey.reshape(-1, 64, 4, 64, 4).mean(axis=(2, 4))
        shares = valid.reshape(-1, 64, 4, 64, 4).mean(axis=(2, 4))
        score = np.array([one[mask].mean() for one, mask in zip(grey, valid, strict=True)])
        return EngineOutput(
            score=score.astype(np.float32),
            anomaly_map=np.where(shares >= 0.5, cells, self.garbage).astype(np.float32),
            parts=np.stack([score, -score], axis=1).astype(np.float32),
        )


def bundle(profile: Profile = INSET, **manifest: Any) -> Bundle:
    return Bundle(
        Path("unused"),
        {
            "name": "made",
            "commit": "none",
            "files": {"program.onnx": {"sha256": "0" * 64, "bytes": 1}},
            "profile": profile.to_dict(),
            "parts": ["mean", "minus"],
            "calibration": {"score": KNOTS, "map": KNOTS, "frames": 8},
            "training": {},
            **manifest,
        },
    )


def flat(grey: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), grey, np.uint8)


def disc(centre: tuple[int, int], radius: int = 20) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    cv2.circle(mask, centre, radius, 255, -1)
    return mask > 0


class Folder:
    """A data folder that a test fills image by image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, object]] = []
        for number in range(8):
            self.add(f"normal/train/{number}.png", flat(100 + number), split="train")
            self.add(f"normal/calibration/{number}.png", flat(100 + number), split="calibration")

    def add(self, name: str, image: np.ndarray, **columns: object) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        row = {"label": "normal", "split": "test", "source": "made", "position_box": 1}
        self.rows.append({"path": name, "group": name} | row | columns)
        with (self.path / "index.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)

    def add_lesion(
        self, name: str, mask: np.ndarray, *, grey: int = 100, lesion: int = 200, **columns: object
    ) -> None:
        image = flat(grey)
        image[mask] = lesion
        self.add(f"polyp/images/{name}.png", image, label="abnormal", **columns)
        (self.path / "polyp" / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * 255).save(
            self.path / "polyp" / "masks" / f"{name}.png"
        )


def filled(path: Path) -> Folder:
    """8 calibration frames of grey 100 to 107, 4 normal test frames alike, 5 polyps, 4 unclean."""
    made = Folder(path)
    for number, grey in enumerate((101, 102, 103, 140)):
        made.add(f"normal/test/{number}.png", flat(grey))
    for number in range(5):
        made.add_lesion(
            f"p{number}", disc((84, 30 + number), 15 + 2 * number), position_box=number % 2
        )
    for number, grey in enumerate((90, 113, 115, 150)):
        made.add(f"unclean/{number}.png", flat(grey), label="unclean")
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A `filled` folder that the test may change."""
    return filled(tmp_path / "data")


def measure(folder: Folder, out: Path | None = None, **options: Any) -> dict[str, Any]:
    return evaluate(folder.path, bundle(), Brightness(), out, **({"resamples": 50} | options))


@dataclass(frozen=True)
class Plain:
    """The evaluation of a `filled` folder as it is, measured once for every test that reads it."""

    evaluation: dict[str, Any]
    out: Path

    def rows(self) -> list[dict[str, str]]:
        with (self.out / "scores.csv").open(newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    path = tmp_path_factory.mktemp("plain")
    return Plain(measure(filled(path / "data"), path / "out"), path / "out")


def test_a_lesion_that_stands_out_is_found_and_separates_its_image(plain: Plain) -> None:
    evaluation = plain.evaluation

    # the normal frame of grey 140 outshines every polyp: 3 of 4 normal frames lie below each
    assert evaluation["image"]["polyp"]["all"]["auroc"]["value"] == 0.75
    pixel = evaluation["pixel"]["sets"]["polyp"]
    assert pixel["maps"]["bundle"]["auroc"]["value"] > 0.999
    assert pixel["maps"]["bundle"]["iou"]["value"] > 0.85
    assert pixel["maps"]["bundle"]["dice"]["value"] > 0.92
    assert (pixel["images"], pixel["without_mask"], pixel["lesions_out_of_sight"]) == (5, 0, 0)
    assert pixel["lesion_shown"] == pytest.approx(1.0, abs=0.03)
    assert evaluation["counts"] == {"calibration": 8, "normal": 4, "polyp": 5, "unclean": 4}


def test_position_box_is_asked_of_both_sides(folder: Folder) -> None:
    folder.add("normal/test/4.png", flat(230), position_box=0)

    figures = measure(folder)["image"]["polyp"]

    assert (figures["all"]["normal"], figures["all"]["abnormal"]) == (5, 5)
    boxed = figures["with_position_box"]
    assert (boxed["normal"], boxed["abnormal"]) == (4, 2)
    assert boxed["auroc"]["value"] == 0.75 and boxed["auroc"]["n"] == 6


def test_alert_rate_is_the_share_at_0_95_of_the_bundles_own_calibration(plain: Plain) -> None:
    rates = plain.evaluation["alerts"]["rates"]

    curve = Calibration.from_dict(KNOTS)
    for name, greys in (("normal", [101, 102, 103, 140]), ("unclean", [90, 113, 115, 150])):
        expected = (curve.apply(np.array(greys, np.float64)) >= 0.95).mean()
        assert rates[name]["value"] == expected
    assert rates["unclean"]["value"] == 0.5, "113 lies at 0.945 and 115 at 0.963"
    assert rates["normal"]["value"] == 0.25 and rates["calibration"]["value"] == 0.0


def test_no_alert_among_few_frames_is_not_told_as_certain(plain: Plain) -> None:
    rate = plain.evaluation["alerts"]["rates"]["calibration"]  # none of 8
    page = (plain.out / "evaluation.html").read_text(encoding="utf-8")

    assert (rate["value"], rate["low"]) == (0.0, 0.0)
    assert rate["high"] == pytest.approx(0.3694, abs=1e-4)
    assert "0.0 % (0.0-36.9)" in table(plain.evaluation)
    assert "0.0 to 36.9 %" in page


def test_cells_that_count_are_the_runtimes(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = module._score

    def spy(*arguments: Any) -> module.Scores:
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr(module, "_score", spy)
    measure(folder)

    for scores in seen:
        for anomaly_map, valid in zip(scores.maps, scores.views.valid, strict=True):
            expected = np.isnan(mask_map(np.zeros((64, 64), np.float32), valid))
            np.testing.assert_array_equal(np.isnan(anomaly_map), expected)


def test_what_the_engine_says_where_nothing_is_valid_changes_no_figure(folder: Folder) -> None:
    high, low = (
        evaluate(folder.path, bundle(), Brightness(garbage=garbage), resamples=10)
        for garbage in (1e6, -1e6)
    )

    assert high["pixel"] == low["pixel"]


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_figures_do_not_depend_on_the_batch(plain: Plain, folder: Folder, batch: int) -> None:
    evaluation = measure(folder, batch=batch)

    assert evaluation | {"created": ""} == plain.evaluation | {"created": ""}


def test_threshold_knows_nothing_of_lesions(plain: Plain, folder: Folder) -> None:
    before = plain.evaluation["pixel"]["thresholds"]
    folder.add_lesion("huge", disc((60, 60), 50), lesion=255)

    after = measure(folder)["pixel"]["thresholds"]

    assert after == before
    # 8 flat frames of grey 100 to 107 with equally many pixels: the 0.90 quantile is the last one
    assert before["bundle"] == pytest.approx(107.0)


def test_baselines_stand_beside_and_do_not_see_the_model(plain: Plain, folder: Folder) -> None:
    first = plain.evaluation
    dull = evaluate(folder.path, bundle(), Upside(), resamples=50)

    assert dull["pixel"]["sets"]["polyp"]["maps"]["bundle"]["auroc"]["value"] < 0.01
    assert dull["baselines"] == first["baselines"]
    for name in ("closeness_to_centre", "redness"):
        maps = [one["pixel"]["sets"]["polyp"]["maps"][name] for one in (first, dull)]
        assert maps[0] == maps[1] and maps[0]["auroc"]["value"] is not None
    assert first["baselines"]["polyp"]["image_width"] == 0.5
    assert first["baselines"]["polyp"]["position_box"] == pytest.approx(0.8)  # 2 of 5 carry it


class Upside(Brightness):
    """Brightness, the other way up."""

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        output = super().run(frames, valid)
        return EngineOutput(-output.score, -output.anomaly_map, output.parts)


def test_lesion_behind_the_inset_is_counted_apart(plain: Plain, folder: Folder) -> None:
    expected = plain.evaluation["pixel"]["sets"]["polyp"]["maps"]
    folder.add_lesion("hidden", disc((25, 100), 12))

    evaluation = measure(folder)

    pixel = evaluation["pixel"]["sets"]["polyp"]
    assert (pixel["images"], pixel["lesions_out_of_sight"]) == (5, 1)
    assert pixel["maps"] == expected
    assert any("1 polyp lesion wholly where" in note for note in evaluation["notes"])
    assert evaluation["counts"]["polyp"] == 6


def test_without_a_lesion_in_sight_pixel_figures_are_not_made_up(tmp_path: Path) -> None:
    made = Folder(tmp_path / "data")
    made.add("normal/test/0.png", flat(100))
    made.add_lesion("hidden", disc((25, 100), 12))

    evaluation = measure(made, tmp_path / "out")

    pixel = evaluation["pixel"]["sets"]["polyp"]
    assert (pixel["images"], pixel["regions"], pixel["paper_group_images"]) == (0, 0, 0)
    assert all(set(figures.values()) == {None} for figures in pixel["maps"].values())
    line = next(one for one in table(evaluation).splitlines() if one.startswith("PRO"))
    assert "not measured" in line
    assert any("too few for groups" in note for note in evaluation["notes"])


def test_lesion_half_behind_the_inset_is_half_shown(folder: Folder, tmp_path: Path) -> None:
    folder.add_lesion("half", disc((SIDE // 2, 96), 16))
    measure(folder, tmp_path / "out")

    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}

    assert float(rows["polyp/images/half.png"]["lesion_shown"]) == pytest.approx(0.5, abs=0.05)


def test_only_the_largest_bright_part_counts_as_found(folder: Folder, tmp_path: Path) -> None:
    lesion = disc((84, 30), 20)
    image = flat(100)
    image[lesion | disc((84, 100), 12)] = 200
    folder.add_lesion("one", lesion)
    folder.add_lesion("two", lesion)
    Image.fromarray(image).save(folder.path / "polyp" / "images" / "two.png")
    measure(folder, tmp_path / "out")

    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        rows = {Path(row["path"]).stem: row for row in csv.DictReader(file)}

    assert rows["two"]["iou"] == rows["one"]["iou"] != ""
    assert rows["two"]["pixel_auroc"] < rows["one"]["pixel_auroc"]


def test_set_is_the_first_folder_unless_that_is_the_split(folder: Folder) -> None:
    folder.add("test/odd/0.png", flat(180), label="abnormal")
    folder.add("other/0.png", flat(180), label="abnormal")
    folder.add("other/1.png", flat(100), label="normal")

    counts = measure(folder)["counts"]

    assert counts == {
        "calibration": 8,
        "normal": 5,
        "abnormal": 1,
        "other": 1,
        "polyp": 5,
        "unclean": 4,
    }


def test_image_without_a_mask_counts_for_scores_only(folder: Folder) -> None:
    (folder.path / "polyp" / "masks" / "p0.png").unlink()

    evaluation = measure(folder)

    assert evaluation["pixel"]["sets"]["polyp"]["without_mask"] == 1
    assert evaluation["pixel"]["sets"]["polyp"]["maps"]["bundle"]["iou"]["n"] == 4
    assert evaluation["image"]["polyp"]["all"]["abnormal"] == 5


def test_groups_that_are_also_in_training_are_named(folder: Folder) -> None:
    folder.add("unclean/9.png", flat(90), label="unclean", group="normal/train/3.png")

    notes = measure(folder)["notes"]

    assert any(note.startswith("1 of 5 unclean images shares a group") for note in notes)


def test_test_frames_that_are_also_training_frames_are_named(tmp_path: Path) -> None:
    made = Folder(tmp_path / "data")
    made.add("normal/test/0.png", flat(103))  # as train/3.png and calibration/3.png
    made.add("normal/test/1.png", flat(60))
    Image.fromarray(flat(61)).save(made.path / "normal" / "train" / "3.png")

    evaluation = measure(made, tmp_path / "out")

    note = "1 test frame is also a calibration frame of this folder: normal/test/0.png."
    assert note in evaluation["notes"] and note in table(evaluation)
    assert note in (tmp_path / "out" / "evaluation.html").read_text(encoding="utf-8")
    made.add("normal/test/2.png", flat(61))
    assert (
        "2 test frames are also training or calibration frames of this folder: "
        "normal/test/0.png, normal/test/2.png."
    ) in measure(made)["notes"]


def test_frames_that_are_nowhere_else_are_not_named(tmp_path: Path) -> None:
    made = Folder(tmp_path / "data")
    made.add("normal/test/1.png", flat(60))

    assert not any("also a" in note for note in measure(made)["notes"])


def test_a_model_above_no_baseline_is_told_so(plain: Plain, tmp_path: Path) -> None:
    made = Folder(tmp_path / "data")
    for number in range(4):
        made.add(f"normal/test/{number}.png", flat(220 + number))
        made.add_lesion(f"p{number}", disc((84, 30 + number)), lesion=110)  # darker than normal

    evaluation = measure(made, tmp_path / "out")

    note = "polyp: image AUROC 0.000 lies above no baseline."
    assert note in evaluation["notes"] and note in table(evaluation)
    assert note in (tmp_path / "out" / "evaluation.html").read_text(encoding="utf-8")
    assert not any("above no baseline" in note for note in plain.evaluation["notes"])


def test_bundle_that_was_trained_on_this_folder_is_known(plain: Plain, folder: Folder) -> None:
    from trainer.data import content_hash, find_data

    trained = {"data": [{"name": "train", "sha256": content_hash(find_data(folder.path).train)}]}

    assert any("was not trained on all" in note for note in plain.evaluation["notes"])
    evaluation = evaluate(folder.path, bundle(training=trained), Brightness(), resamples=10)
    assert not any("was not trained on all" in note for note in evaluation["notes"])


def test_without_normal_test_images_nothing_is_made_up(tmp_path: Path) -> None:
    made = Folder(tmp_path / "data")
    made.add_lesion("p", disc((80, 30)))

    evaluation = measure(made)

    assert evaluation["image"]["polyp"] == {"all": None, "with_position_box": None}
    assert evaluation["baselines"] == {"polyp": None}
    assert "not measured" in table(evaluation)


def test_without_abnormal_images_alert_rates_are_left(tmp_path: Path) -> None:
    made = Folder(tmp_path / "data")
    made.add("normal/test/0.png", flat(100))

    evaluation = measure(made, tmp_path / "out")

    assert evaluation["image"] == {} and evaluation["pixel"]["sets"] == {}
    assert evaluation["alerts"]["rates"]["normal"] == {
        "value": 0.0,
        "low": None,
        "high": None,
        "n": 1,
    }
    assert "alerts at 0.95: normal" in table(evaluation)


def test_the_document_is_json_and_complete(plain: Plain) -> None:
    evaluation = plain.evaluation

    written = (plain.out / "evaluation.json").read_text()
    assert json.loads(written) == evaluation
    assert "NaN" not in written
    assert evaluation["bundle"]["model_id"] == bundle().model_id
    assert evaluation["engine"] == {"name": "brightness", "device": "cpu", "version": "1.0"}
    assert {len(value) for key, value in evaluation["data"].items() if "sha256" in key} == {64}


def test_every_image_has_a_row_of_scores(plain: Plain) -> None:
    evaluation, rows = plain.evaluation, plain.rows()

    assert len(rows) == sum(evaluation["counts"].values())
    polyps = [row for row in rows if row["set"] == "polyp"]
    ious = [float(row["iou"]) for row in polyps]
    figure = evaluation["pixel"]["sets"]["polyp"]["maps"]["bundle"]["iou"]
    assert np.mean(ious) == pytest.approx(figure["value"], abs=1e-4)
    bright = next(row for row in rows if row["path"] == "normal/test/3.png")
    assert (bright["raw"], bright["alert"], bright["iou"]) == ("140", "1", "")
    assert (bright["mean"], bright["minus"]) == ("140", "-140")
    assert float(bright["valid_fraction"]) == pytest.approx(0.75, abs=0.05)


def test_the_sheet_shows_best_median_and_worst_and_normal(plain: Plain) -> None:
    sheet = cv2.imread(str(plain.out / "maps.png"))
    assert sheet is not None
    rows = 4  # best, median and worst polyps; normal
    assert sheet.shape == (18 + rows * (192 + 18), 4 * 2 * 192, 3)
    assert (sheet[:18] > 200).any(), "a line says what the outlines are"
    sheet = sheet[18:]
    green = (sheet[..., 1] > 220) & (sheet[..., 0] < 140) & (sheet[..., 2] < 140)
    assert green[:210, :192].any(), "the lesion is outlined on the image"
    assert not green[630:, :192].any(), "a normal image has no lesion"


def test_the_page_shows_the_figures_and_the_images(plain: Plain) -> None:
    text = (plain.out / "evaluation.html").read_text(encoding="utf-8")

    sheet = plain.evaluation["pixel"]["sets"]["polyp"]["maps"]["bundle"]
    assert f"{sheet['iou']['value']:.3f}" in text and f"{sheet['pro']['value']:.3f}" in text
    assert text.count("<figcaption>score ") == 3 * 4 + 4  # best, median, worst; normal highest
    assert "polyp/images/p0.png" in text and "normal/test/3.png" in text
    assert plain.evaluation["data"]["test_sha256"] in text


def test_pixel_figures_of_every_map_are_there(plain: Plain) -> None:
    pixel = plain.evaluation["pixel"]

    polyp = pixel["sets"]["polyp"]
    assert (polyp["regions"], polyp["paper_group_images"], pixel["pro_fpr"]) == (5, 1, 0.3)
    for figures in polyp["maps"].values():
        assert figures["auroc_pooled"]["n"] == figures["pro"]["n"] == 5
        assert figures["oracle"]["iou"]["value"] > 0
        assert len(figures["paper_groups"]["iou"]["values"]) == 5
    # every lesion is 200 on 100: any threshold between finds it whole
    ours = polyp["maps"]["bundle"]
    assert ours["pro"]["value"] > 0.99 and ours["auroc_pooled"]["value"] > 0.999
    assert ours["oracle"]["iou"]["value"] > 0.85
    assert any("five groups of 100 images; polyp has 5" in n for n in plain.evaluation["notes"])


def test_only_the_sets_that_are_asked_for_are_read(plain: Plain, folder: Folder) -> None:
    for path in (folder.path / "unclean").iterdir():
        path.write_bytes(b"not an image")

    some = measure(folder, only=["polyp", "normal"])
    lone = measure(folder, only=["polyp"])

    assert some["counts"] == {"calibration": 8, "normal": 4, "polyp": 5}
    for key in ("image", "pixel", "baselines"):
        assert some[key] == plain.evaluation[key]
    assert lone["pixel"] == plain.evaluation["pixel"]
    hashes = {one["data"]["test_sha256"] for one in (some, lone, plain.evaluation)}
    assert len(hashes) == 3, "it is that of the images that were measured"
    assert lone["image"]["polyp"]["all"] is None, "there are no normal images to set beside"
    with pytest.raises(DataError, match=r"has no test set cvc\. It has normal, polyp, unclean"):
        measure(folder, only=["cvc"])


def test_baselines_of_the_boxed_images_are_of_those_alone(plain: Plain) -> None:
    boxed = plain.evaluation["baselines_with_position_box"]["polyp"]

    assert boxed["position_box"] == 0.5, "all of them carry it"
    assert boxed.keys() == plain.evaluation["baselines"]["polyp"].keys()


@pytest.mark.parametrize("fraction", [0.9, 0.97], ids=["in the tail", "between knots"])
def test_alert_line_is_where_the_calibrated_score_reaches_0_95(fraction: float) -> None:
    knots = KNOTS | {"fraction": [0.0, 0.5, fraction]}
    calibration = {"score": knots, "map": knots, "frames": 8}

    at = module._alert_at(bundle(calibration=calibration))

    assert Calibration.from_dict(knots).apply(np.array(at)) == pytest.approx(0.95)


def test_table_tells_the_figures(plain: Plain) -> None:
    lines = table(plain.evaluation).splitlines()

    start = next(line for line in lines if line.startswith("image AUROC  "))
    assert "0.750 (" in start
    assert any(line.startswith("  image width alone") for line in lines)
    assert any(line.startswith("  closeness to centre alone") for line in lines)
    assert any(line.startswith("IoU, oracle threshold   ") for line in lines)
    assert any(line.startswith("IoU, paper's groups") and " ± " in line for line in lines)
    assert any(line.startswith("alerts at 0.95: normal") and "25.0 %" in line for line in lines)
    told = [line for line in lines if line not in plain.evaluation["notes"]]
    assert max(len(line) for line in told if not line.startswith(("In ", "made"))) < 100


def test_progress_reaches_the_end_of_every_step(folder: Folder) -> None:
    steps: dict[str, list[tuple[int, int]]] = {}

    measure(folder, progress=lambda step, done, n: steps.setdefault(step, []).append((done, n)))

    assert {"reading polyp", "scoring polyp", "pixels of polyp", "baselines: train"} <= set(steps)
    for calls in steps.values():
        assert calls[-1][0] == calls[-1][1]


def test_results_are_not_overwritten_unasked(folder: Folder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    measure(folder, out)
    before = (out / "scores.csv").read_bytes()

    with pytest.raises(OutputError, match=r"evaluation\.json is there already.*--overwrite"):
        measure(folder, out)
    measure(folder, out, overwrite=True)

    assert (out / "scores.csv").read_bytes() == before
    assert {path.name for path in out.iterdir()} == set(module.FILES)


def test_folder_that_cannot_be_written_is_named(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(OutputError, match=r"cannot write to .*file"):
        measure(folder, tmp_path / "file" / "out")


def _no_test(folder: Folder) -> None:
    for row in folder.rows:
        row["split"] = "pretrain" if row["split"] == "test" else row["split"]
    folder.rows = [row for row in folder.rows if row["label"] == "normal"]
    folder.add("normal/patches/0.png", flat(100), split="pretrain")


def _two_labels(folder: Folder) -> None:
    folder.add("polyp/images/stool.png", flat(100), label="unclean")


def _wrong_mask(folder: Folder) -> None:
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(
        folder.path / "polyp" / "masks" / "p0.png"
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(_no_test, "has no test images", id="no test split"),
        pytest.param(_two_labels, "labelled abnormal and unclean", id="two labels in a folder"),
        pytest.param(_wrong_mask, "is 64x64 and its image is 128x128", id="mask of another size"),
    ],
)
def test_data_that_cannot_be_measured_is_refused(
    folder: Folder, tmp_path: Path, damage: Callable[[Folder], None], message: str
) -> None:
    damage(folder)

    with pytest.raises(DataError, match=message):
        measure(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_an_evaluation_lacks_is_said_before_what_a_training_would(tmp_path: Path) -> None:
    save_many(tmp_path, range(3))

    with pytest.raises(DataError, match=r"has no test images, and an evaluation needs labelled"):
        evaluate(tmp_path, bundle(), Brightness())


def test_test_folders_alone_are_told_what_an_evaluation_needs_beside_them(tmp_path: Path) -> None:
    save_many(tmp_path / "test" / "normal", range(3))
    save_many(tmp_path / "test" / "polyp", range(3, 6))

    with pytest.raises(DataError) as refused:
        evaluate(tmp_path, bundle(), Brightness())

    assert "holds test/ but no train/" in str(refused.value)
    assert "to train on" not in str(refused.value)


class NotFinite(Brightness):
    """One map holds a NaN, as a broken half-precision engine gives."""

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        output = super().run(frames, valid)
        output.anomaly_map[0, 10, 10] = np.nan
        return output


def test_engine_that_gives_nan_is_not_measured(folder: Folder) -> None:
    with pytest.raises(EngineError, match="not finite"):
        evaluate(folder.path, bundle(), NotFinite())


def test_profile_that_hides_every_pixel_is_named(folder: Folder) -> None:
    everything = Profile("made", marks=((0.0, 0.0, 1.0, 1.0),))

    with pytest.raises(DataError, match="no pixel of the 8 calibration frames"):
        evaluate(folder.path, bundle(everything), Blind())


class Blind(Brightness):
    """Finite also where nothing is valid, as the bundle format asks."""

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        return super().run(frames, np.ones_like(valid))


def test_the_profile_is_the_bundles(folder: Folder) -> None:
    folder.add_lesion("hidden", disc((25, 100), 12))

    open_view = evaluate(folder.path, bundle(NONE), Brightness(), resamples=10)

    assert open_view["pixel"]["sets"]["polyp"]["lesions_out_of_sight"] == 0
