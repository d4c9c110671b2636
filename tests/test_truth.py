"""Where lesions are, as the file beside a recording says it."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from ccdstream import sample
from ccdstream.demo import truth_path
from ccdstream.errors import DataError
from trainer.truth import Box, find_truth, iou, link, read_truth

BOX = [10, 20, 40, 60]


def written(folder: Path, document: Any) -> Path:
    path = folder / "case_boxes.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def boxes(*frames: list[Any], **changes: Any) -> dict[str, Any]:
    return {"width": 64, "height": 96, "frames": list(frames), **changes}


def test_corners_become_a_corner_and_a_size(tmp_path: Path) -> None:
    path = written(tmp_path, boxes([{"bbox": BOX, "lesion": "a"}], []))
    truth = read_truth(path)
    assert truth.frames is not None
    assert [[(m.lesion, m.box) for m in marks] for marks in truth.frames] == [
        [("a", (10, 20, 30, 40))],
        [],
    ]
    assert (truth.size, truth.lesions_by) == ((96, 64), "name")


def test_boxes_without_names_are_told_apart_by_place(tmp_path: Path) -> None:
    assert read_truth(written(tmp_path, boxes([{"bbox": BOX}]))).lesions_by == "place"


@pytest.mark.parametrize(
    "document",
    [{"lesion_free": True}, {"lesion_free": True, "frames": []}, boxes(lesion_free=True)],
    ids=["alone", "no-frames", "sized"],
)
def test_a_recording_without_lesions_says_so(tmp_path: Path, document: dict[str, Any]) -> None:
    assert read_truth(written(tmp_path, document)).frames is None


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("{", "no JSON"),
        ([], "no JSON object"),
        ({}, "None wide"),
        (boxes(), "unfinished file"),
        (boxes(width=0), "0 wide"),
        (boxes(frames=[{}]), "no list of lists"),
        (boxes([{}]), 'frame 0 has a mark without a "bbox"'),
        (boxes([], [{"bbox": [10, 20, 65, 60]}]), "frame 1 has the box"),
        (boxes([{"bbox": [10, 20, 10, 60]}]), "frame 0 has the box"),
        (boxes([{"bbox": ["1", 20, 10, 60]}]), "frame 0 has the box"),
        (boxes([{"bbox": BOX, "lesion": 3}]), "no text"),
        (boxes([{"bbox": BOX, "lesion": "a"}, {"bbox": BOX}]), "some do not"),
        (boxes([{"bbox": BOX}], lesion_free=True), "yet there are boxes"),
        (boxes([], lesion_free="yes"), "neither true nor false"),
        ({"format": "other"}, "its format is 'other'"),
        ({"format": "ccdstream-sample-truth", "format_version": 1}, "damaged"),
    ],
)
def test_what_is_no_truth_is_refused_with_the_reason(
    tmp_path: Path, document: Any, why: str
) -> None:
    path = written(tmp_path, document)
    with pytest.raises(DataError) as caught:
        read_truth(path)
    message = str(caught.value)
    assert why in message
    assert str(path) in message and "\n" not in message


def test_the_truth_of_a_sample_names_a_lesion_for_each_scene(tmp_path: Path) -> None:
    options = sample.SampleOptions(seconds=4, size=(96, 128), rate=Fraction(5))
    truths = list(sample.truths(options))
    path = truth_path(tmp_path / "s.mp4")
    path.write_text(json.dumps(sample.truth_document(options, truths)))
    truth = read_truth(path)
    assert truth.frames is not None and truth.size == (96, 128)
    assert [tuple(m.box for m in marks) for marks in truth.frames] == [t.boxes for t in truths]
    scenes = [scene for scene in sample.scenes(options) if scene.kind == "lesion"]
    assert scenes
    for number, scene in enumerate(scenes, 1):
        span = truth.frames[scene.start_frame : scene.end_frame]
        assert {mark.lesion for marks in span for mark in marks} == {str(number)}


def test_a_truth_is_found_beside_its_video_and_two_are_refused(tmp_path: Path) -> None:
    video = tmp_path / "case.mp4"
    assert find_truth(video) is None
    first = written(tmp_path, {})
    assert find_truth(video) == first
    truth_path(video).write_text("{}")
    with pytest.raises(DataError, match=r"case_boxes\.json and case\.truth\.json"):
        find_truth(video)


def names(linked: list[Any]) -> list[list[str]]:
    return [[name for name, _ in lesions] for lesions in linked]


def test_a_box_is_the_lesion_it_is_nearest_to() -> None:
    left: list[Box] = [(10 + 3 * k, 10, 10, 10) for k in range(4)]
    right: list[Box] = [(40 - 3 * k, 12, 10, 10) for k in range(4)]
    frames = [[left[0], right[0]], [right[1], left[1]], [left[2], right[2]], [right[3]]]
    linked = link(frames, [0.0, 0.04, 0.08, 0.12])
    assert names(linked) == [["1", "2"], ["2", "1"], ["1", "2"], ["2"]]
    assert linked[1] == (("2", right[1]), ("1", left[1]))


def test_a_lesion_may_jump_by_its_own_size() -> None:
    assert names(link([[(0, 0, 10, 10)], [(15, 0, 10, 10)]], [0, 0.04])) == [["1"], ["1"]]
    assert names(link([[(0, 0, 10, 10)], [(20, 0, 10, 10)]], [0, 0.04])) == [["1"], ["2"]]


def test_a_lesion_that_was_away_for_longer_than_a_second_is_another_one() -> None:
    box: Box = (5, 5, 10, 10)
    assert names(link([[box], [], [box]], [0.0, 0.5, 1.0])) == [["1"], [], ["1"]]
    assert names(link([[box], [], [box]], [0.0, 0.5, 1.04])) == [["1"], [], ["2"]]


def test_overlap_in_closed_form() -> None:
    assert iou((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(50 / 150)
    assert iou((0, 0, 10, 10), (10, 0, 10, 10)) == 0
    assert iou((0, 0, 10, 10), (2, 2, 5, 5)) == pytest.approx(25 / 100)
