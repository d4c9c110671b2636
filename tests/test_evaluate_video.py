"""Figures of made recordings whose right answers are known; true-colon as the second opinion."""

import csv
import json
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ccdstream.engine.base import EngineOutput
from ccdstream.errors import DataError, EngineError, OutputError
from ccdstream.recording import OutputFiles, RunOptions, run
from tests.bundles import write_toy_bundle
from tests.commands import bright_between, ccdstream, everything_in, refusal
from tests.marked_videos import (
    ENTER,
    HIGH,
    HIGHEST,
    LOW,
    MIDDLE,
    SITES,
    Shot,
    Strip,
    film,
    mark,
    score,
    strip_bundle,
)
from trainer.clips import Clip, watch
from trainer.evaluate_video import FILES, evaluate, false_runs, matched_threshold, table
from trainer.truth import iou, read_truth

A, B = ("a",), ("b",)
MIXED = [
    *[Shot(LOW)] * 3,
    Shot(MIDDLE),
    Shot(HIGH, "a"),  # two false calls
    Shot(HIGHEST, "b"),
    Shot(HIGHEST, clear=False),
    Shot(LOW, "a", A),
    Shot(HIGH, "b", A),  # called, and points beside the lesion
    Shot(HIGHEST, "a", A),
    Shot(HIGHEST, "a", A, clear=False),
    Shot(HIGH, None, A),  # points at the whole frame
    Shot(MIDDLE),
    Shot(LOW, "b", B),
    Shot(LOW),
]


def measured(
    folder: Path, shots: Sequence[Shot], *, name: str = "case", **options: Any
) -> dict[str, Any]:
    video = film(folder / f"{name}.mkv", shots, ms=options.pop("ms", None))
    mark(video, shots)
    return evaluate([video], strip_bundle(), Strip(), resamples=20, **options)


def value(figure: dict[str, Any] | None) -> float | None:
    return None if figure is None else figure["value"]


def watched(folder: Path, shots: Sequence[Shot], ms: Sequence[int] | None = None) -> Clip:
    video = film(folder / "case.mkv", shots, ms=ms)
    return watch(video, read_truth(mark(video, shots)), strip_bundle(), Strip(), batch=4)


# -- frames ---------------------------------------------------------------------------------------


def test_frames_are_counted_with_uninformative_ones_and_without(tmp_path: Path) -> None:
    frames = measured(tmp_path, MIXED)["frames"]
    expected = {
        # positive, negative, sensitivity, overlap sensitivity, specificity
        "counted": (6, 9, 3 / 6, 2 / 6, 7 / 9),
        "left_out": (5, 8, 3 / 5, 2 / 5, 6 / 8),
    }
    for treatment, (positive, negative, *rates) in expected.items():
        found = frames[treatment]
        assert (found["positive"], found["negative"]) == (positive, negative)
        assert found["at_enter"]["threshold"] == ENTER
        keys = ("sensitivity", "overlap_sensitivity", "specificity")
        assert [value(found["at_enter"][key]) for key in keys] == pytest.approx(rates)


@pytest.mark.parametrize("treatment", ["counted", "left_out"])
def test_ranks_are_those_of_scikit_learn(tmp_path: Path, treatment: str) -> None:
    found = measured(tmp_path, MIXED)["frames"][treatment]
    kept = [shot for shot in MIXED if shot.clear or treatment == "counted"]
    labels = [bool(shot.shows) for shot in kept]
    scores = [score(shot.level) if shot.clear else 0.0 for shot in kept]
    assert value(found["auroc"]) == pytest.approx(roc_auc_score(labels, scores))
    assert value(found["average_precision"]) == pytest.approx(
        average_precision_score(labels, scores)
    )


def test_a_kind_of_frame_that_is_not_there_gives_no_figure_instead_of_a_zero(
    tmp_path: Path,
) -> None:
    document = measured(tmp_path, [Shot(HIGH, "a", A)] * 3)
    frames = document["frames"]["counted"]
    assert value(frames["at_enter"]["sensitivity"]) == 1
    assert frames["at_enter"]["specificity"] is frames["auroc"] is None
    assert frames["matched"] == dict.fromkeys(frames["at_enter"])
    assert document["false_alerts"]["product"]["a_minute"] is None
    assert "not measured: every frame shows a lesion" in table(document)


def test_a_recording_without_lesions_has_specificity_and_false_alerts_only(tmp_path: Path) -> None:
    video = film(tmp_path / "calm.mkv", [*[Shot(LOW)] * 20, *[Shot(HIGH)] * 5])
    (tmp_path / "calm_boxes.json").write_text('{"lesion_free": true}')
    document = evaluate([video], strip_bundle(), Strip())
    assert value(document["frames"]["counted"]["at_enter"]["specificity"]) == 20 / 25
    assert document["frames"]["counted"]["at_enter"]["sensitivity"] is None
    assert document["lesions"]["visible"] == 0 and document["lesions"]["detection_rate"] is None
    assert document["false_alerts"]["lesion_free_s"] == pytest.approx(1.0)
    assert value(document["false_alerts"]["product"]["a_minute"]) == pytest.approx(60)
    assert "marked lesions                              none" in table(document)
    assert "1; 60.00 a minute, extrapolated from 1.0 s" in table(document)


@pytest.mark.parametrize("seed", range(5))
def test_the_matched_threshold_is_the_one_of_true_colon(seed: int) -> None:
    true_colon = pytest.importorskip("true_colon")
    rng = np.random.default_rng(seed)
    negative = rng.integers(0, 60, rng.integers(1, 400)) / 60  # with ties, and zeros
    found = true_colon.search_tau_star([0.5], negative.tolist(), target_fpr=0.045)
    ours = matched_threshold(negative)
    if found.threshold > 1:
        assert ours is None
    else:
        assert ours == found.threshold


def test_the_matched_threshold_calls_no_more_than_its_share() -> None:
    negative = np.arange(1, 101) / 100
    assert matched_threshold(negative) == 0.97  # 0.97 to 1.00: four of a hundred
    assert matched_threshold(np.arange(1, 201)) == 192  # nine of 200, just its share
    assert matched_threshold(negative[:20]) is None  # even one is five of a hundred
    assert matched_threshold(np.zeros(0)) is None


# -- lesions --------------------------------------------------------------------------------------


def test_latency_is_stream_time_to_the_first_overlapping_call(tmp_path: Path) -> None:
    shots = [
        Shot(LOW),
        Shot(LOW, "a", A),
        Shot(HIGH, "b", ("a", "b")),
        Shot(HIGH, "a", ("a", "b")),
        Shot(LOW, None, B),
        Shot(LOW),
    ]
    ms = [0, 40, 140, 390, 400, 900]  # no even rate
    lesions = measured(tmp_path, shots, ms=ms)["lesions"]
    a, b = lesions["each"]
    assert (a["lesion"], a["visible_frames"], a["detected_frames"]) == ("a", 3, 1)
    assert (a["first_visible_s"], a["first_detected_s"]) == (0.04, 0.39)
    assert a["latency_s"] == pytest.approx(0.35)
    assert (b["visible_frames"], b["detected_frames"], b["latency_s"]) == (3, 1, 0.0)
    assert (a["called_before"], b["called_before"]) == (False, False)
    assert value(lesions["latency_s"]["median"]) == pytest.approx(0.175)
    assert lesions["latency_s"]["q1"] == pytest.approx(0.35 / 4)
    assert value(lesions["detected_share"]) == pytest.approx(1 / 3)


def test_a_missed_lesion_is_counted_and_is_in_no_latency(tmp_path: Path) -> None:
    shots = [Shot(LOW), Shot(HIGH, "a", A), Shot(LOW, "b", B), Shot(HIGH, "a", B)]
    lesions = measured(tmp_path, shots)["lesions"]
    assert (lesions["visible"], lesions["detected"], lesions["missed"]) == (2, 1, 1)
    assert lesions["each"][1]["latency_s"] is lesions["each"][1]["first_detected_s"] is None
    assert lesions["latency_s"]["n"] == 1
    assert value(lesions["detection_rate"]) == 0.5


def test_a_call_that_was_there_before_the_lesion_is_told(tmp_path: Path) -> None:
    lesions = measured(tmp_path, [Shot(HIGH, "a"), Shot(HIGH, "a", A)])["lesions"]
    assert lesions["called_before"] == 1 and lesions["each"][0]["latency_s"] == 0


def test_an_uninformative_frame_detects_nothing_and_the_whole_frame_is_told(tmp_path: Path) -> None:
    shots = [Shot(HIGH, "a", A, clear=False), Shot(HIGH, None, A), Shot(HIGH, "a", A)]
    document = measured(tmp_path, [Shot(LOW), *shots])
    lesion = document["lesions"]["each"][0]
    assert (lesion["detected_frames"], lesion["whole_frame"]) == (2, 1)
    assert lesion["latency_s"] == pytest.approx(0.04)
    assert any(note.startswith("1 called frame with a lesion") for note in document["notes"])


def test_alert_latency_waits_for_the_product(tmp_path: Path) -> None:
    shots = [Shot(LOW), *[Shot(HIGH, "a", A)] * 5]  # state ALERT after 0.07 s, that is on the third
    lesions = measured(tmp_path, shots)["lesions"]
    assert lesions["alerted"] == 1
    assert value(lesions["latency_s"]["median"]) == 0
    assert value(lesions["alert_latency_s"]["median"]) == pytest.approx(0.08)


def test_an_alert_opens_before_it_is_shown_and_its_box_is_held_against_the_lesion(
    tmp_path: Path,
) -> None:
    on = [Shot(HIGH), *[Shot(HIGH, "a", A)] * 3, Shot(HIGHEST, "a", A)]
    beside = [Shot(LOW), *[Shot(HIGH, "b", A)] * 3, Shot(LOW)]
    nowhere = [*[Shot(HIGH, None, A)] * 3, Shot(LOW)]
    document = measured(tmp_path, [*on, *beside, *nowhere])
    alerts = document["alerts"]
    assert (alerts["count"], alerts["on_lesion"]) == (3, 1)
    first, second, third = alerts["each"]
    assert (first["opens_after_s"], first["shown_after_s"]) == pytest.approx((0.0, 0.08))
    assert (second["opens_after_s"], second["shown_after_s"]) == pytest.approx((0.24, 0.32))
    assert first["peak_s"] == pytest.approx(0.16)
    assert first["iou"] == pytest.approx(iou(first["box"], SITES["a"]))
    assert first["on_lesion"] and first["iou"] > 0.5
    assert not second["on_lesion"] and second["iou"] == 0
    assert third["box"] is None and not third["on_lesion"]
    text = table(document)
    assert re.search(r"the first opens after +0\.00 s", text)
    assert re.search(r"is shown after +0\.08 s", text)
    assert "on a lesion                               1 of 3" in text


def test_a_recording_without_an_alert_says_so(tmp_path: Path) -> None:
    document = measured(tmp_path, [Shot(LOW), Shot(LOW, "a", A)])
    assert document["alerts"] == {"count": 0, "on_lesion": 0, "each": []}
    assert "alerts of the product                       0\n\n" in table(document)


# -- false alerts ---------------------------------------------------------------------------------


def test_a_false_run_lasts_as_long_as_it_is_shown(tmp_path: Path) -> None:
    shots = [Shot(HIGH), Shot(HIGH), Shot(LOW), Shot(HIGH), Shot(HIGH, "a", A), Shot(HIGH)]
    clip = watched(tmp_path, shots, ms=[0, 60, 100, 150, 650, 700])
    lengths = false_runs(clip, ENTER)
    assert lengths[:2] == [Fraction(1, 10), Fraction(1, 2)]  # exact, and cut by the lesion
    assert len(lengths) == 3


def test_false_runs_are_counted_by_persistence_over_lesion_free_time(tmp_path: Path) -> None:
    shots = [Shot(HIGH), Shot(LOW), Shot(HIGH), Shot(LOW), Shot(HIGH), Shot(HIGH, clear=False)]
    shots += [Shot(HIGH), Shot(LOW), Shot(LOW, "a", A), Shot(LOW)]
    ms = [0, 90, 100, 200, 300, 1290, 1300, 3300, 5000, 5500]
    false = measured(tmp_path, shots, ms=ms)["false_alerts"]
    # runs of 0.09, 0.1, 0.99 and 2 s: the uninformative frame parts the last two
    counts = {seconds: runs["count"] for seconds, runs in false["runs"].items()}
    assert counts == {"0.1": 3, "0.5": 2, "1": 1, "2": 1}
    minutes = false["lesion_free_s"] / 60
    assert false["lesion_free_s"] == pytest.approx(5.0, abs=0.05)  # all but half a second
    assert value(false["runs"]["0.1"]["a_minute"]) == pytest.approx(3 / minutes)


def test_an_alert_that_meets_a_lesion_is_not_false(tmp_path: Path) -> None:
    run_in = [*[Shot(HIGH)] * 4, *[Shot(HIGH, "b", A)] * 2, *[Shot(LOW)] * 3]
    false = measured(tmp_path, [*run_in, *[Shot(HIGH)] * 4, Shot(LOW)])["false_alerts"]["product"]
    assert (false["alerts"], false["count"]) == (2, 1)
    # in state ALERT from the third frame of each, two frames of lesion left out: 2 + 2 of 12
    assert value(false["share_of_time"]) == pytest.approx(4 / 12)


# -- the product itself ---------------------------------------------------------------------------


def test_scores_states_and_alerts_are_those_of_a_run(tmp_path: Path) -> None:
    shots = [*MIXED, *[Shot(HIGHEST, "a", A)] * 12, *MIXED]
    bundle = strip_bundle(time_constant_s=0.1)
    video = film(tmp_path / "case.mkv", shots)
    mark(video, shots)
    document = evaluate([video], bundle, Strip(), tmp_path / "out", batch=3)
    options = RunOptions(video="none")
    ran = run(video, OutputFiles(tmp_path, "case"), bundle=bundle, engine=Strip(), options=options)  # type: ignore[arg-type]
    assert document["counts"]["alerts"] == len(ran.alerts) > 0
    theirs = rows_of(tmp_path / "case.scores.csv")
    ours = rows_of(tmp_path / "out" / "frames.csv")
    for column in ("pts", "seconds", "raw", "calibrated", "smoothed"):
        assert [row[column] for row in ours] == [row[column] for row in theirs]
    assert [row["alerting"] == "1" for row in ours] == [row["state"] == "ALERT" for row in theirs]
    assert [row["informative"] == "1" for row in ours] == [not row["quality"] for row in theirs]


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_figures_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    video = film(tmp_path / "case.mkv", MIXED)
    mark(video, MIXED)
    one, many = (evaluate([video], strip_bundle(), Strip(), batch=batch) for batch in (1, 16))
    assert one | {"created": ""} == many | {"created": ""}


# -- intervals ------------------------------------------------------------------------------------


def test_one_video_has_no_interval_and_says_so(tmp_path: Path) -> None:
    document = measured(tmp_path, MIXED)
    assert document["frames"]["counted"]["at_enter"]["sensitivity"]["low"] is None
    assert "One video: no intervals." in table(document)


def test_whole_videos_are_drawn(tmp_path: Path) -> None:
    sure = [Shot(LOW), *[Shot(HIGH, "a", A)] * 4]
    unsure = [Shot(LOW), *[Shot(HIGH, "a", A)] * 2, *[Shot(LOW, "a", A)] * 2]
    videos = []
    for name, shots in (("sure", sure), ("unsure", unsure)):
        videos.append(film(tmp_path / f"{name}.mkv", shots))
        mark(videos[-1], shots)
    document = evaluate(videos, strip_bundle(), Strip())
    figure = document["frames"]["counted"]["at_enter"]["sensitivity"]
    # by frames 6 of 8, and never below the worse video or above the better one
    assert figure == {"value": 0.75, "low": 0.5, "high": 1.0, "n": 8, "videos": 2}
    auroc = document["frames"]["counted"]["auroc"]
    assert (auroc["low"], auroc["high"]) == (0.75, 1.0)
    assert "75.0 % (50.0-100.0)" in table(document)


# -- the files ------------------------------------------------------------------------------------


def test_all_files_are_there_and_say_the_same(tmp_path: Path) -> None:
    out = tmp_path / "out"
    document = measured(tmp_path, MIXED, out=out)
    assert everything_in(out) == set(FILES)
    assert json.loads((out / "evaluation.json").read_text()) == document
    assert (document["format"], document["format_version"]) == ("ccdstream-video-evaluation", 1)
    rows = rows_of(out / "frames.csv")
    assert len(rows) == len(MIXED)
    assert [row["lesions"] for row in rows] == [";".join(shot.shows) for shot in MIXED]
    assert [row["called"] for row in rows].count("1") == document["counts"]["called"] == 5
    assert rows[0]["x"] == "" and rows[9]["overlapped"] == "a"
    x, y, width, height = (int(rows[9][key]) for key in ("x", "y", "width", "height"))
    assert np.abs(np.array([x, y, width, height]) - SITES["a"]).max() <= 3
    assert (out / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_every_frame_is_in_the_ground_truth_and_those_that_say_something_in_the_predictions(
    tmp_path: Path,
) -> None:
    measured(tmp_path, MIXED, out=tmp_path / "out")
    truth = json.loads((tmp_path / "out" / "ground_truth.json").read_text())
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [image["file_name"] for image in truth["images"]] == [
        f"case_{k}.jpg" for k in range(len(MIXED))
    ]
    assert [a["unique_id"] for a in truth["annotations"]] == ["case_a"] * 5 + ["case_b"]
    assert truth["annotations"][0]["bbox"] == list(SITES["a"])
    assert [p["image_id"] for p in found] == [f"case_{k}" for k, s in enumerate(MIXED) if s.clear]
    assert found[0]["bbox"] == [0, 0, 128, 96]  # nothing stands out
    assert found[3]["score"] == pytest.approx(score(MIDDLE), abs=1e-6)


def test_true_colon_reads_the_files_and_counts_as_we_do(tmp_path: Path) -> None:
    true_colon = pytest.importorskip("true_colon")
    calm = [Shot((LOW, MIDDLE)[k % 2]) for k in range(40)]
    shots = [*calm, *MIXED, *[Shot(LOW, "b", A)] * 3, *[Shot(HIGHEST, "a", A)] * 4, *calm]
    document = measured(tmp_path, shots, name="001-001", out=tmp_path / "out")
    paths = [str(tmp_path / "out" / f"{name}.json") for name in ("ground_truth", "predictions")]
    matched = document["frames"]["counted"]["matched"]
    for point in (document["frames"]["counted"]["at_enter"], matched):
        evaluator = true_colon.create_evaluator(
            canonicalizer="stem_int_suffix",
            conf=point["threshold"],
            tiers=frozenset({"coco", "frame", "lesion", "afroc"}),
            lesion=true_colon.LesionConfig(fps=25.0),
        )
        found = evaluator.evaluate_paths(*paths)
        assert found.provenance["identity_match_rate"] == 1
        assert found.frame.sensitivity == pytest.approx(value(point["overlap_sensitivity"]))
        assert found.frame.specificity == pytest.approx(value(point["specificity"]))
    chosen = evaluator.match_operating_point(
        *(json.loads(Path(path).read_text()) for path in paths)
    )
    assert chosen.threshold == matched["threshold"]

    enter = true_colon.create_evaluator(
        canonicalizer="stem_int_suffix",
        conf=ENTER,
        tiers=frozenset({"lesion"}),
        lesion=true_colon.LesionConfig(fps=25.0),
    ).evaluate_paths(*paths)
    lesions = document["lesions"]
    for theirs, ours in zip(enter.lesion.records, lesions["each"], strict=True):
        assert theirs.lesion_id == f"001-001_{ours['lesion']}"
        assert theirs.n_frames_visible == ours["visible_frames"]
        assert theirs.n_frames_detected == ours["detected_frames"]
        assert theirs.latency_seconds == (
            None if ours["latency_s"] is None else pytest.approx(ours["latency_s"])
        )
    assert enter.lesion.summary.detected_any == lesions["detected"] == 1
    assert enter.lesion.summary.mean_det_fraction == pytest.approx(value(lesions["detected_share"]))


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"width": 64}, r"64x96 pixels, and those of case\.mkv are 128x96"),
        ({"frames": [[]] * 3}, r"marks 3 frames, and case\.mkv has at least 4"),
        ({"frames": [[]] * 20}, r"marks 20 frames, and case\.mkv has 15"),
    ],
    ids=["size", "too-few", "too-many"],
)
def test_the_truth_of_another_video_is_refused(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    video = film(tmp_path / "case.mkv", MIXED)
    mark(video, [Shot(LOW)], **changes)
    with pytest.raises(DataError, match=why):
        evaluate([video], strip_bundle(), Strip(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_videos_without_truth_are_left_out_by_name_unless_none_has_one(tmp_path: Path) -> None:
    marked, bare = film(tmp_path / "a.mkv", MIXED), film(tmp_path / "b.mkv", MIXED)
    with pytest.raises(DataError, match=r"no truth beside .*b\.mkv: expected b_boxes\.json or b\."):
        evaluate([bare], strip_bundle(), Strip())
    mark(marked, MIXED)
    document = evaluate([marked, bare], strip_bundle(), Strip())
    assert document["counts"]["videos"] == 1
    assert "Left out, for there is no truth beside them: b.mkv." in document["notes"]


def test_two_videos_of_one_truth_are_refused(tmp_path: Path) -> None:
    one = film(tmp_path / "a.mkv", MIXED)
    mark(one, MIXED)
    other = tmp_path / "a.avi"
    other.write_bytes(one.read_bytes())
    with pytest.raises(DataError, match="share their truth"):
        evaluate([other, one], strip_bundle(), Strip())


def test_an_existing_result_is_refused_before_any_work_and_replaced_if_asked(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "predictions.json").write_text("mine")
    with pytest.raises(OutputError, match=r"predictions\.json"):
        measured(tmp_path, MIXED, out=out)
    assert everything_in(out) == {"predictions.json"}
    measured(tmp_path, MIXED, out=out, overwrite=True)
    assert everything_in(out) == set(FILES)


def test_an_engine_that_fails_leaves_no_file(tmp_path: Path) -> None:
    class Broken(Strip):
        def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
            output = super().run(frames, valid)
            return EngineOutput(output.score * np.nan, output.anomaly_map, output.parts)

    video = film(tmp_path / "case.mkv", MIXED)
    mark(video, MIXED)
    with pytest.raises(EngineError, match="not finite"):
        evaluate([video], strip_bundle(), Broken(), tmp_path / "out")
    assert everything_in(tmp_path) == {"case.mkv", "case_boxes.json"}


# -- the command ----------------------------------------------------------------------------------


def test_evaluate_takes_a_video_and_a_folder_of_videos(tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "toy")
    clips = tmp_path / "clips"
    clips.mkdir()
    video = bright_between(clips / "case.mp4", 10, 49, 60)
    frames = [[{"bbox": [0, 0, 128, 96]}] if 10 <= k <= 49 else [] for k in range(60)]
    truth = {"width": 128, "height": 96, "frames": frames}
    (clips / "case_boxes.json").write_text(json.dumps(truth))
    options = ["--model", tmp_path / "toy", "--device", "cpu"]
    shown = ccdstream("evaluate", video, *options, "-o", tmp_path / "out")
    assert shown.exit_code == 0
    assert "marked lesions pointed at                   1 of 1" in shown.stdout
    assert "detect" not in shown.stdout and "missed" not in shown.stdout
    assert shown.stderr == f"figures, scores and boxes in {tmp_path}/out/: open " + (
        f"{tmp_path}/out/timeline.png\n"
    )
    assert everything_in(tmp_path / "out") == set(FILES)
    again = ccdstream("evaluate", clips, *options, "--json")
    document = json.loads(again.stdout)
    assert document["lesions"]["detected"] == 1
    assert [video["file"] for video in document["videos"]] == ["case.mp4"]


def test_evaluate_says_of_what_it_cannot_measure_what_it_misses(tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "toy")
    clips = tmp_path / "clips"
    clips.mkdir()
    bright_between(clips / "case.mp4", 1, 2, 4)
    for path, says in (
        (clips, "no truth beside"),
        (clips / "case.mp4", "no truth beside"),
        (tmp_path / "gone", "no data folder"),
    ):
        assert says in refusal(ccdstream("evaluate", path, "--model", tmp_path / "toy"))
