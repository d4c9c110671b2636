"""The tool that measures a run, on a tiny video with the toy bundle. Never how long it took."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ccdstream.errors import BundleError
from tests.bundles import write_toy_bundle
from tests.videos import make_video, packets_of
from tools import bench_run
from tools.bench_run import WAYS, Cost, Work

FRAMES = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    write_toy_bundle(folder / "toy")
    return folder / "toy"


@pytest.fixture(scope="module")
def video(folder: Path) -> Path:
    return make_video(folder / "case.mp4", size=(64, 96), frames=FRAMES, audio="aac")


@pytest.fixture(scope="module")
def report(video: Path, bundle: Path) -> dict:
    return bench_run.report_on(
        [video], bundle, command="python tools/bench_run.py", repeats=2, least_frames=2 * FRAMES
    )


def test_every_way_goes_through_all_frames_as_often_as_it_takes(report: dict) -> None:
    case = report["videos"][0]
    assert (case["frames"], case["passes"], case["frames_per_round"]) == (FRAMES, 2, 2 * FRAMES)
    assert (case["video"], case["width"], case["height"]) == ("case.mp4", 96, 64)
    assert list(case["ways"]) == list(WAYS)


def test_a_report_says_where_it_was_made_and_with_what(report: dict) -> None:
    assert set(report) == {
        *("command", "commit", "ccdstream", "versions", "machine", "load_before", "load_after"),
        *("model", "engine", "batch", "repeats", "videos"),
    }
    assert set(report["engine"]) == {"name", "version", "device", "taken", "open_s"}
    assert report["engine"]["name"] in report["engine"]["taken"]
    assert report["machine"]["cpu"]["cores_usable"] >= 1
    assert report["model"].startswith("toy-")
    assert json.loads(json.dumps(report)) == report


def test_figures_follow_from_the_seconds_of_the_rounds(report: dict) -> None:
    case = report["videos"][0]
    ways = case["ways"]
    for name, way in ways.items():
        assert set(way) == {"wall_s", "cpu_s", "frames_per_s", "cpu_ms_per_frame"}
        for seconds, rate in zip(way["wall_s"]["all"], way["frames_per_s"]["all"], strict=True):
            assert rate * seconds == pytest.approx(case["frames_per_round"])
        plain = ways["transcode"]["wall_s"]["all"]
        ratios = [one / other for one, other in zip(way["wall_s"]["all"], plain, strict=True)]
        assert case["to_transcode"][name]["wall"]["all"] == pytest.approx(ratios)
    parts = case["cpu_ms_per_frame_of"]
    for number, whole in enumerate(ways["run"]["cpu_ms_per_frame"]["all"]):
        assert sum(part["all"][number] for part in parts.values()) == pytest.approx(whole)


def test_each_kind_of_run_tells_its_own_stages(report: dict) -> None:
    stages = report["videos"][0]["stage_ms_per_frame"]
    assert list(stages["run"]) == ["decode", "view", "score", "fuse", "render", "encode"]
    assert list(stages["run_none"]) == ["decode", "view", "score", "fuse"]
    wall_ms = report["videos"][0]["ways"]["run"]["wall_s"]["all"]
    in_turn = report["videos"][0]["stage_cpu_ms_per_frame"]
    assert list(in_turn) == [*stages["run"], "report"]
    of_the_way = report["videos"][0]["ways"]["in_turn"]["cpu_ms_per_frame"]["all"]
    for number, whole in enumerate(of_the_way):
        assert 0 < sum(stage["all"][number] for stage in in_turn.values()) <= whole
    for stage in stages["run"].values():
        for ms, wall_s in zip(stage["all"], wall_ms, strict=True):
            assert 0 < ms * 2 * FRAMES <= 1000 * wall_s


def test_the_plain_transcode_has_the_settings_and_the_sound_of_a_run(
    video: Path, bundle: Path, tmp_path: Path
) -> None:
    from ccdstream.bundle import load_bundle
    from ccdstream.engine.select import open_engine
    from ccdstream.recording import RunOptions

    plain = tmp_path / "plain.mp4"
    toy = load_bundle(bundle)
    work = bench_run.transcode(video, plain)
    bench_run.analyse(video, tmp_path, toy, open_engine(toy, device="cpu"), RunOptions())
    overlay = tmp_path / "bench.overlay.mp4"
    settings = [re.search(rb"options: [^\0]+", file.read_bytes()) for file in (plain, overlay)]
    assert settings[0] and settings[1]
    assert settings[0][0] == settings[1][0]  # as x264 writes them into its stream
    assert work.frames == FRAMES
    assert packets_of(plain, "audio") == packets_of(overlay, "audio") != []


def test_the_ways_take_turns() -> None:
    gone: list[str] = []

    def way(name: str) -> Callable[[], Work]:
        def go() -> Work:
            gone.append(name)
            return Work(3)

        return go

    costs = bench_run.measure({name: way(name) for name in "abc"}, repeats=2)
    assert gone == list("abcabc")
    assert {name: len(each) for name, each in costs.items()} == {"a": 2, "b": 2, "c": 2}


def test_ways_that_saw_other_frames_are_not_compared() -> None:
    with pytest.raises(RuntimeError, match=r"'a': \{3\}, 'b': \{4\}"):
        bench_run.measure({"a": lambda: Work(3), "b": lambda: Work(4)}, repeats=1)


def test_a_ratio_is_the_middle_of_those_within_rounds() -> None:
    """A slow round is slow for both: its ratio is as good as any other."""
    plain, run = (1.0, 10.0, 1.0), (3.0, 20.0, 4.0)
    stage_s = {"score": 2.0}
    costs = {
        "decode": [Cost(Work(10), 0.5, 0.5) for _ in plain],
        "transcode": [Cost(Work(10), s, s) for s in plain],
        "run": [Cost(Work(10, stage_s), s, s) for s in run],
        "run_none": [Cost(Work(10, stage_s), s, s) for s in run],
        "in_turn": [Cost(Work(10, {"score": s}), s, s) for s in run],
    }
    found = bench_run.figures(costs)
    assert found["to_transcode"]["run"]["wall"] == {
        "min": 2.0,
        "median": 3.0,
        "all": [3.0, 2.0, 4.0],
    }
    assert found["to_transcode"]["transcode"]["cpu"]["all"] == [1.0, 1.0, 1.0]
    assert found["stage_ms_per_frame"]["run"]["score"]["median"] == 200.0
    assert found["stage_cpu_ms_per_frame"]["score"]["all"] == [300.0, 2000.0, 400.0]
    assert found["ways"]["run"]["frames_per_s"]["median"] == 2.5
    assert found["cpu_ms_per_frame_of"]["encode"]["all"] == [50.0, 950.0, 50.0]


def test_the_command_prints_tables_and_writes_the_figures(
    video: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(video), "--model", str(bundle), "--repeats", "1", "--least-frames", "1"]
    bench_run.main([*given, "--json", str(tmp_path / "bench.json")])
    out, err = capsys.readouterr()
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["command"].endswith(" ".join(given[1:]) + f" --json {tmp_path / 'bench.json'}")
    assert report["videos"][0]["passes"] == 1
    for text in (*WAYS.values(), report["commit"], report["model"], report["command"], "case.mp4"):
        assert text in out
    rows = [line for line in out.splitlines() if line.startswith("|")]
    assert [row.count("|") for row in rows] == 7 * [8] + 4 * [9] + 4 * [8]
    assert err.count("round 1 of 1") == len(WAYS)


def test_what_cannot_be_measured_is_one_line_and_exit_1(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        bench_run.main([str(tmp_path / "absent.mp4"), "--model", str(bundle)])
    assert exit.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: .*absent\.mp4.*\n", err)
    with pytest.raises(BundleError):
        bench_run.report_on([], tmp_path / "no bundle", command="", repeats=1)


@pytest.mark.parametrize("repeats", ["0", "-1", "many"])
def test_a_number_of_rounds_is_at_least_one(
    repeats: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        bench_run.main(["x.mp4", "--repeats", repeats])
    assert exit.value.code == 2
    assert "--repeats" in capsys.readouterr().err
