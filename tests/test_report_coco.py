"""Predictions in COCO's form, alone and as the package `true-colon` takes them."""

import json
from pathlib import Path

import pytest

from ccdstream.report.coco import coco_predictions, prediction

SIZE = (96, 128)


def test_a_frame_where_nothing_stands_out_is_pointed_at_as_a_whole() -> None:
    said = prediction("case_1", 12, score=0.25, box=None, size=SIZE)
    assert said == {
        "image_id": "case_1_12",
        "category_id": 1,
        "bbox": [0, 0, 128, 96],
        "score": 0.25,
    }
    assert prediction("c", 0, score=1, box=(3, 4, 5, 6), size=SIZE)["bbox"] == [3, 4, 5, 6]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_file_is_a_list_whatever_the_number_of_frames(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.coco.json"
    with coco_predictions(path, stem='a"b', size=SIZE) as coco:
        for number in range(count):
            coco.write(number, number / 8, (number, 0, 1, 1))
    found = json.loads(path.read_text())
    assert [each["image_id"] for each in found] == [f'a"b_{k}' for k in range(count)]
    assert [each["score"] for each in found] == [k / 8 for k in range(count)]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), coco_predictions(tmp_path / "a", stem="a", size=SIZE) as coco:
        coco.write(0, 0.5, None)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_true_colon_reads_the_predictions(tmp_path: Path) -> None:
    true_colon = pytest.importorskip("true_colon")
    lesion = (40, 30, 20, 20)
    shows = [k in range(10, 20) for k in range(40)]
    truth = {
        "images": [
            {"id": k + 1, "file_name": f"001-001_{k}.jpg", "width": 128, "height": 96}
            for k in range(40)
        ],
        "annotations": [
            {
                "id": k + 1,
                "image_id": k + 1,
                "category_id": 1,
                "bbox": list(lesion),
                "area": 400,
                "iscrowd": 0,
                "unique_id": "001-001_a",
            }
            for k, seen in enumerate(shows)
            if seen
        ],
        "categories": [{"id": 1, "name": "lesion"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    called = {5, *range(12, 20)}  # one too many, two too few
    with coco_predictions(tmp_path / "p.json", stem="001-001", size=SIZE) as coco:
        for k in range(40):
            if k != 30:  # a frame that tells nothing
                coco.write(k, 0.9 if k in called else 0.2, lesion if k in called else None)
    found = true_colon.create_evaluator(
        canonicalizer="stem_int_suffix",
        conf=0.5,
        tiers=frozenset({"coco", "frame", "lesion"}),
        lesion=true_colon.LesionConfig(fps=25.0),
    ).evaluate_paths(str(tmp_path / "truth.json"), str(tmp_path / "p.json"))
    assert found.provenance["identity_match_rate"] == 1
    assert found.frame.sensitivity == pytest.approx(8 / 10)
    assert found.frame.specificity == pytest.approx(29 / 30)
    (record,) = found.lesion.records
    assert (record.lesion_id, record.n_frames_detected) == ("001-001_a", 8)
