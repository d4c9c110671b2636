"""The tool that measures a long recording, with the toy bundle. Never how fast it was."""

import itertools
import json
import sys
from fractions import Fraction
from pathlib import Path

import av
import pytest

from ccdstream.decode import VideoSource
from tests.bundles import write_toy_bundle
from tests.videos import packets_of
from tools import bench_long
from tools.bench_long import Held, deciles, make_stretch, moments, repeat

SIZE = (96, 160)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module")
def stretch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stretch") / "stretch.mp4"
    assert make_stretch(path, SIZE, Fraction(5), 2.0) == 10
    return path


def test_a_repeated_stretch_is_one_even_recording_with_unbroken_sound(
    stretch: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.mp4"
    repeat(stretch, path, 4)
    with VideoSource(path) as source:
        frames = list(source)
        assert [frame.seconds for frame in frames] == [pytest.approx(k / 5) for k in range(40)]
        assert source.problems.sentences() == []
        for frame in frames[10:]:  # the same pictures again
            again = frames[round(frame.seconds * 5) % 10]
            assert (frame.y == again.y).all()
    sound = packets_of(path, "audio")
    steps = {after[0] - before[0] for before, after in itertools.pairwise(sound)}
    assert steps == {Fraction(1024, 48_000)}
    assert float(sound[-1][0]) > 7.2  # the pictures are decoded ahead of being shown
    with av.open(str(path)) as container:
        assert container.duration == pytest.approx(8e6, abs=3e5)


def test_deciles_tell_a_run_that_slows_down() -> None:
    wall = cpu = 0.0
    ticks = [(0.0, 0.0)]
    for k in range(100):
        wall, cpu = wall + (0.02 if k < 90 else 0.06), cpu + 0.01
        ticks.append((wall, cpu))
    found = deciles(ticks)
    assert [each["wall_ms"] for each in found] == [pytest.approx(20)] * 9 + [pytest.approx(60)]
    assert [each["cpu_ms"] for each in found] == [pytest.approx(10)] * 10


def test_moments_are_looks_at_shares_of_the_frames_and_at_the_most_memory() -> None:
    looks = [Held(k, 10 * k, 500 if k == 7 else 100, 50, 9, 8, 1.0) for k in range(11)]
    found = moments(looks, 100)
    assert {name: look.frames for name, look in found.items()} == {
        "10 %": 10, "50 %": 50, "100 %": 100, "most": 70
    }  # fmt: skip


@pytest.mark.parametrize("video", ["overlay", "none"])
def test_the_command_analyses_and_counts_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], video: str
) -> None:
    write_toy_bundle(tmp_path / "toy")
    (tmp_path / "work").mkdir()
    arguments = f"--hours 0.003 --size 160x96 --stretch 2 --video {video}".split()
    arguments += ["--model", str(tmp_path / "toy"), "--folder", str(tmp_path / "work")]
    bench_long.main([*arguments, "--json", str(tmp_path / "long.json")])
    report = json.loads((tmp_path / "long.json").read_text())
    counted = report["counted"]
    assert set(counted.values()) == {60}
    assert ("overlay_frames" in counted) == (video == "overlay")
    assert len(report["deciles"]) == 10 and report["wall_s"] > report["closing_s"] > 0
    most = report["moments"]["most"]
    assert most["resident_mb"] > most["private_mb"] > 10
    assert most["threads"] > 0 and most["files"] > 0  # so short a run may be looked at only once
    assert f"long.{'overlay.mp4'}" in report["output_bytes"] or video == "none"
    assert "| CPU |" in capsys.readouterr().out
    assert list((tmp_path / "work").iterdir()) == []


def test_a_child_that_fails_ends_the_bench(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="failed with exit status 3"):
        bench_long.watch(
            [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "ticks", lambda _: None
        )
