"""Frames of recordings: which are taken, found again exactly, and kept apart."""

import json
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from ccdstream import batch
from ccdstream.decode import VideoSource
from ccdstream.errors import DataError
from ccdstream.view import NONE, ViewTracker
from tests.recordings import RATE, SIZE, record, tissue
from tests.videos import make_video
from trainer import recordings
from trainer.data import content_hash, find_data, load_views
from trainer.recordings import GAP_S, Sampled, said, sample, views_at


def dark(k: int) -> np.ndarray:
    return (tissue(k) * 0.2).astype(np.uint8)


def outside(k: int) -> np.ndarray:
    return np.repeat(tissue(k)[..., :1], 3, axis=2)


def blurred(k: int) -> np.ndarray:
    return cv2.GaussianBlur(tissue(k), (0, 0), 2)


def test_frames_are_taken_evenly_in_time(tmp_path: Path) -> None:
    found = sample(record(tmp_path / "a.mp4", 12))

    assert [round(float(time), 6) for time in found.seconds] == list(range(12))
    assert found.size == SIZE and not found.left_out
    with VideoSource(found.path) as source:
        assert [pts * source.time_base for pts in found.pts] == list(found.seconds)


def test_uneven_clocks_are_followed_and_not_counted(tmp_path: Path) -> None:
    pts = [0, 1, 2, 3, 4, 9, 17, 18, 20, 21, 24, 40]  # quarters of a second

    found = sample(record(tmp_path / "a.mkv", 3, pts=pts))

    assert [float(time) for time in found.seconds] == [0, 1, 2.25, 4.25, 5, 6, 10]


def test_a_long_recording_is_thinned_evenly(tmp_path: Path) -> None:
    found = sample(record(tmp_path / "a.mp4", 21), most=5)

    assert [float(time) for time in found.seconds] == [0, 5, 10, 15, 20]


@pytest.mark.parametrize(
    ("spoiled", "reason"), [(dark, "too_dark"), (outside, "out_of_body"), (blurred, "blurred")]
)
def test_uninformative_frames_are_left_out(
    tmp_path: Path, spoiled: Callable[[int], np.ndarray], reason: str
) -> None:
    seconds = range(4, 8)
    path = record(
        tmp_path / "a.mp4", 16, lambda k: spoiled(k) if k // RATE in seconds else tissue(k)
    )

    found = sample(path)

    assert [float(time) for time in found.seconds] == [*range(4), *range(8, 16)]
    assert found.left_out.total() == 4 and all(reason in why for why in found.left_out)


def test_frames_are_found_again_with_the_view_of_the_runtime(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mp4", 10)
    wanted = sample(path).pts[3:7:2]

    again = {frame.pts: (frame.y.copy(), view) for frame, view in views_at(path, wanted, NONE)}

    assert tuple(again) == wanted
    tracker = ViewTracker(NONE)
    with VideoSource(path) as source:
        for frame in source:
            view = tracker.update(frame)  # every frame, as the runtime does
            if frame.pts in again:
                luma, ours = again[frame.pts]
                np.testing.assert_array_equal(luma, frame.y)
                np.testing.assert_array_equal(ours.image, view.image)
                np.testing.assert_array_equal(ours.valid, view.valid)


def test_frames_that_are_gone_are_an_error(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mp4", 3)

    with pytest.raises(DataError, match="no frame at 1 of the times"):
        list(views_at(path, [0, 10**9], NONE))


def test_recordings_are_held_out_whole(tmp_path: Path) -> None:
    for number, seconds in enumerate((16, 9, 12)):
        record(tmp_path / f"case{number}.mp4", seconds)

    dataset = find_data(tmp_path)

    assert {item.path.name for item in dataset.calibration} == {"case1.mp4"}  # the shortest
    assert {item.group for item in dataset.calibration} == {"case1.mp4"}
    assert {item.group for item in dataset.train} == {"case0.mp4", "case2.mp4"}
    assert (len(dataset.train), len(dataset.calibration)) == (28, 9)
    assert "37 frames of 3 recordings" in dataset.layout


def test_one_frame_of_one_recording_is_said_in_the_singular() -> None:
    one = Sampled(Path("a.mp4"), SIZE, (0,), (Fraction(0),), Counter())
    assert said([one]) == "1 frame of 1 recording, one a second"


def test_of_one_recording_a_stretch_is_held_out_with_a_gap(tmp_path: Path) -> None:
    path = record(tmp_path / "case.mp4", 40)

    for data in (path, tmp_path):
        dataset = find_data(data)
        with VideoSource(path) as source:
            seconds = {
                split: [
                    float(item.pts * source.time_base) for item in items if item.pts is not None
                ]
                for split, items in (("train", dataset.train), ("held", dataset.calibration))
            }
        assert seconds["held"] == list(range(16, 24))
        assert seconds["train"] == [*range(12), *range(28, 40)]
        assert seconds["held"][0] - seconds["train"][11] == GAP_S
        assert "8 frames beside it are not used" in dataset.layout


def test_views_of_recordings_follow_the_order_of_the_items(tmp_path: Path) -> None:
    for number in range(2):
        record(tmp_path / f"case{number}.mp4", 9, lambda k, n=number: tissue(k, seed=n))
    items = list(find_data(tmp_path).items)[::-1]
    seen: list[tuple[int, int]] = []

    views = load_views(items, NONE, progress=lambda done, total: seen.append((done, total)))

    assert seen == [(done, 18) for done in range(1, 19)]
    assert views.items == tuple(items) and set(views.sizes) == {SIZE}
    for index in (0, 7, 17):
        pts = items[index].pts
        assert pts is not None
        [(_, view)] = views_at(items[index].path, [pts], NONE)
        np.testing.assert_array_equal(views.images[index], view.image.transpose(2, 0, 1))


def test_content_hash_is_of_the_frames_that_were_taken(tmp_path: Path) -> None:
    record(tmp_path / "case0.mp4", 9)
    record(tmp_path / "case1.mp4", 12)
    items = list(find_data(tmp_path).items)

    assert content_hash(items) == content_hash(items[::-1])
    assert content_hash(items[1:]) != content_hash(items[:1] + items[2:])  # of one recording both


def test_training_folders_may_hold_recordings(tmp_path: Path) -> None:
    record(tmp_path / "train" / "a.mp4", 12)
    record(tmp_path / "calibration" / "b.mp4", 9)

    dataset = find_data(tmp_path)

    assert {item.group for item in dataset.train} == {"train/a.mp4"}
    assert {item.group for item in dataset.calibration} == {"calibration/b.mp4"}


def test_one_recording_is_called_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"case\.mp4 has 3 frames to train on"):
        find_data(record(tmp_path / "case.mp4", 3))
    items = find_data(record(tmp_path / "long.mp4", 30)).items
    assert {item.source for item in items} == {"long.mp4"}


@pytest.mark.parametrize("below", [".", "train", "calibration"])
def test_a_recording_of_marked_lesions_neither_trains_nor_calibrates(
    tmp_path: Path, below: str
) -> None:
    for name in ("train/a.mp4", "calibration/b.mp4") if below != "." else ("a.mp4", "b.mp4"):
        record(tmp_path / name, 9)
    marked = tmp_path / below / ("b.mp4" if below == "calibration" else "a.mp4")
    truth = marked.with_name(f"{marked.stem}_boxes.json")
    truth.write_text('{"lesion_free": true}')
    find_data(tmp_path)

    truth.write_text('{"width": 9, "height": 9, "frames": [[{"bbox": [1, 1, 5, 5]}]]}')
    with pytest.raises(DataError, match="1 recording to train on shows lesions"):
        find_data(tmp_path)
    truth.write_text("{}")
    with pytest.raises(DataError, match="is no usable truth"):
        find_data(tmp_path)


def test_a_sample_with_its_lesions_is_no_normal_procedure(tmp_path: Path) -> None:
    video = record(tmp_path / "sample.mp4", 30)
    find_data(video)
    truth = {"format": "ccdstream-sample-truth", "format_version": 1, "size": [96, 128]}
    scenes = [{"kind": "lesion", "start_frame": 0, "end_frame": 9}]
    lesions = [{"frame": 3, "boxes": [[1, 1, 5, 5]]}]
    truth |= {"frame_count": 9, "scenes": scenes, "lesions": lesions}
    video.with_name("sample.truth.json").write_text(json.dumps(truth))
    with pytest.raises(DataError, match=r"lesions, which are marked in .*sample\.truth\.json"):
        find_data(video)


def test_recordings_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    record(tmp_path / "a.mp4", 3)
    (tmp_path / "b.mp4").write_bytes(b"no video")

    with pytest.raises(DataError, match=r"1 recording cannot be read: .*b\.mp4"):
        find_data(tmp_path)


def test_a_recording_of_nothing_useful_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "a.mp4", 16, dark)

    with pytest.raises(DataError, match=r"not one frame to train on.*16 .*too_dark"):
        find_data(tmp_path)


def test_small_recordings_are_named(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", size=(24, 64), frames=30)

    with pytest.raises(DataError, match=r"smaller than 32 px: .*a\.mp4"):
        find_data(tmp_path)


def test_overlays_and_hidden_files_are_no_recordings(tmp_path: Path) -> None:
    for name in ("a.overlay.mp4", "._b.mp4"):
        (tmp_path / name).write_bytes(b"no recording to train on")

    with pytest.raises(DataError, match="no images in"):
        find_data(tmp_path)


def test_what_is_a_recording_is_the_same_for_run_and_train() -> None:
    assert recordings.RECORDING_SUFFIXES == batch.VIDEO_SUFFIXES
    assert recordings.VIDEO_NAME.pattern == batch.VIDEO_NAME.pattern
