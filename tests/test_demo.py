"""The synthetic procedure as files, and the two commands that write it."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ccdstream import sample
from ccdstream.demo import truth_path, write_sample
from ccdstream.errors import OutputError
from ccdstream.report.files import TextFile
from tests.bundles import write_toy_bundle
from tests.commands import ccdstream, everything_in, refusal, results_of
from tests.videos import packets_of, times_of

SMALL = sample.SampleOptions(seconds=4.0, size=(96, 128), rate=Fraction(5))
FIVE = sample.SampleOptions(seconds=1.0, size=(96, 128), rate=Fraction(5))
SHORT = ("--seconds", "1")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The video of `SMALL`, its truth beside it."""
    path = tmp_path_factory.mktemp("small") / "s.mp4"
    write_sample(path, SMALL)
    return path


def test_video_and_truth_tell_the_same_story(small: Path) -> None:
    assert everything_in(small.parent) == {"s.mp4", "s.truth.json"}
    assert times_of(small) == [Fraction(k, 5) for k in range(20)]
    text = truth_path(small).read_text()
    assert json.loads(text) == json.loads(json.dumps(sample.truth_document(SMALL)))
    assert json.loads(text)["lesions"], "a sample without a lesion tests nothing"
    assert "not evidence of accuracy" in json.loads(text)["notice"]


def test_the_pictures_are_those_of_the_sample(small: Path) -> None:
    with av.open(str(small)) as container:
        shown = [frame.to_ndarray()[:96] for frame in container.decode(video=0)]
    drawn = [frame.y for frame, _ in sample.frames(SMALL)]
    assert len(shown) == len(drawn)
    worst = max(np.abs(a.astype(float) - b).mean() for a, b in zip(shown, drawn, strict=True))
    assert worst < 4  # of 255: what the encoder costs
    assert np.abs(shown[0].astype(float) - drawn[-1]).mean() > 8  # frames differ by more


def test_the_sound_is_as_long_as_the_video(small: Path) -> None:
    with av.open(str(small)) as container:
        sound = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
        rate = container.streams.audio[0].rate
    assert rate == sample.AUDIO_RATE_HZ
    assert len(sound) / rate == pytest.approx(4.0, abs=0.1)
    assert np.abs(sound).max() > 0.02


def test_a_seed_always_gives_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    for name, options in (("a", FIVE), ("b", FIVE), ("c", replace(FIVE, seed=1))):
        write_sample(tmp_path / f"{name}.mp4", options)
    for kind in ("video", "audio"):
        a, b, c = (packets_of(tmp_path / f"{name}.mp4", kind) for name in "abc")
        assert a == b
        assert a != c
    a, b, c = ((tmp_path / f"{name}.truth.json").read_text() for name in "abc")
    assert a == b != c


def test_progress_counts_the_frames(tmp_path: Path) -> None:
    seen: list[int] = []
    write_sample(tmp_path / "s.mp4", FIVE, on_frame=seen.append)
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("there", ["s.mp4", "s.truth.json"])
def test_an_existing_file_is_refused_before_any_work_and_replaced_if_asked(
    tmp_path: Path, there: str
) -> None:
    (tmp_path / there).write_text("mine")

    def drawn(_: int) -> None:
        pytest.fail("worked")

    with pytest.raises(OutputError, match="is there already"):
        write_sample(tmp_path / "s.mp4", SMALL, on_frame=drawn)
    assert everything_in(tmp_path) == {there}
    assert (tmp_path / there).read_text() == "mine"
    write_sample(tmp_path / "s.mp4", FIVE, overwrite=True)
    assert everything_in(tmp_path) == {"s.mp4", "s.truth.json"}
    assert json.loads((tmp_path / "s.truth.json").read_text())["frame_count"] == 5


def test_no_video_is_left_without_its_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: TextFile, text: str) -> None:
        raise OutputError(f"cannot write {self.path}: No space left on device.")

    monkeypatch.setattr(TextFile, "write", full)
    with pytest.raises(OutputError) as caught:
        write_sample(tmp_path / "s.mp4", FIVE)
    assert str(caught.value) == f"cannot write {tmp_path}/s.truth.json: No space left on device."
    assert everything_in(tmp_path) == set()


def test_a_stop_leaves_nothing(tmp_path: Path) -> None:
    def stop(count: int) -> None:
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "s.mp4", FIVE, on_frame=stop)
    assert everything_in(tmp_path) == set()


# --- the commands ---


def test_sample_writes_pal_video_with_sound_and_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = ccdstream("sample", *SHORT)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "sample.mp4 and sample.truth.json\n"
    assert everything_in(tmp_path) == {"sample.mp4", "sample.truth.json"}
    with av.open("sample.mp4") as container:
        video = container.streams.video[0]
        assert (video.width, video.height, video.average_rate, video.frames) == (720, 576, 25, 25)
        assert len(container.streams.audio) == 1
    assert "there already" in refusal(ccdstream("sample", *SHORT))


@pytest.mark.parametrize(
    "arguments",
    [("--seconds", "0.5"), ("--seconds", "nan"), ("--seconds", "1e9"), ("--seed", "-1")],
)
def test_sample_refuses_what_it_cannot_make_as_wrong_usage(
    tmp_path: Path, arguments: tuple[str, str]
) -> None:
    result = ccdstream("sample", "-o", tmp_path / "s.mp4", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Invalid value" in result.stderr
    assert everything_in(tmp_path) == set()


def test_sample_says_where_it_cannot_write(tmp_path: Path) -> None:
    message = refusal(ccdstream("sample", "-o", tmp_path / "no" / "s.mp4", *SHORT))
    assert message.startswith(f"cannot write to the folder {tmp_path}/no: No such file")


def test_demo_makes_a_sample_analyses_it_and_says_where_all_of_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toy = write_toy_bundle(tmp_path / "toy").path
    result = ccdstream("demo", *SHORT, "--model", toy)
    assert result.exit_code == 0
    expected = {"sample.mp4", "sample.truth.json", *results_of("sample")}
    assert everything_in(tmp_path / "ccdstream-demo") == expected
    for name in ("report.html", "overlay.mp4", "truth.json"):
        assert f"ccdstream-demo/sample.{name}\n" in result.stderr
    assert "not how accurate" in result.stderr
    assert "alert" in result.stdout  # the table
    # a second one is refused at once, whichever file is in the way
    (tmp_path / "ccdstream-demo" / "sample.mp4").unlink()
    (tmp_path / "ccdstream-demo" / "sample.truth.json").unlink()
    assert "there already" in refusal(ccdstream("demo", *SHORT, "--model", toy))
    assert not (tmp_path / "ccdstream-demo" / "sample.mp4").exists()


def test_demo_without_a_model_leaves_nothing(tmp_path: Path) -> None:
    result = ccdstream("demo", "-o", tmp_path / "demo", "--model", tmp_path / "none", *SHORT)
    assert refusal(result).startswith(f"no bundle at {tmp_path}/none.")
    assert list(tmp_path.iterdir()) == []


def test_demo_says_when_its_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    toy = write_toy_bundle(tmp_path / "toy").path
    result = ccdstream("demo", "-o", tmp_path / "file", "--model", toy, *SHORT)
    assert refusal(result).startswith(f"cannot make the folder {tmp_path}/file: File exists.")
