"""Many recordings: none lost, none done twice, and none takes the others with it.

To the toy, bright is unusual.
"""

import html
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import av
import numpy as np
import pytest

from ccdstream import NOTICE, __version__, batch, recording
from ccdstream.batch import (
    Found,
    Job,
    Opened,
    Place,
    Status,
    Wanted,
    find_jobs,
    is_batch,
    run_batch,
    standing,
    videos_in,
)
from ccdstream.bundle import Bundle, load_bundle
from ccdstream.engine.base import EngineOutput
from ccdstream.errors import EngineError, VideoOpenError
from ccdstream.pseudonym import Alias
from ccdstream.recording import OutputFiles, RunOptions
from ccdstream.report.files import Lock, lock_path
from tests.bundles import ToyEngine, write_toy_bundle
from tests.commands import (
    OF_A_BATCH,
    SIZE,
    bright_between,
    ccdstream,
    everything_in,
    refusal,
    results_of,
    rows_of,
    shade,
    start,
)
from tests.disks import small_disk
from tests.videos import make_video, picture


@pytest.fixture(scope="module")
def shelf(shelf: Path) -> Path:
    """With a long recording, and one whose overlay takes much room."""
    bright_between(shelf / "long.mp4", 5, 49, 1500)
    noise = np.random.default_rng(0).integers(0, 255, (60, *SIZE), np.uint8)
    grey = shade(0)[1:]
    make_video(
        shelf / "large.mp4",
        size=SIZE,
        frames=len(noise),
        picture_of=lambda k: picture((noise[k], *grey)),
    )
    return shelf


def record_of(folder: Path) -> dict[str, Any]:
    """What `batch.json` says."""
    return json.loads((folder / "batch.json").read_text("utf-8"))


def statuses(folder: Path) -> dict[str, str]:
    return {row["name"]: row["status"] for row in record_of(folder)["inputs"]}


def final(folder: Path) -> dict[str, Any]:
    """Every file in `folder`, without what differs from run to run."""
    found: dict[str, Any] = {}
    for name in everything_in(folder):
        if name.endswith("run.json"):
            record = json.loads((folder / name).read_text("utf-8"))
            del record["timing"], record["command"], record["output_bytes"]
            found[name] = record
        elif name == "batch.json" or name.endswith("report.html"):  # holds times, as run.json
            found[name] = None
        else:
            found[name] = (folder / name).read_bytes()
    return found


def touch_all(folder: Path) -> dict[Path, int]:
    """When each result was last written."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name not in OF_A_BATCH}


# -- which recordings there are -------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two wards with a case.mp4 each, and much that is no recording."""
    for name in (
        *("a/case.mp4", "a/Z.MKV", "a/deep/er/case.mp4", "b/case.mp4"),
        *("a/.hidden.mp4", "a/notes.txt", "a/old.overlay.mp4", "a/.hidden/x.mp4"),
        *("a/case.ccdstream/x.mp4", "a/out/x.mp4"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/folder.mp4").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def places(found: Found) -> dict[str, str]:
    """Where the results of each recording go."""
    return {str(job.path): str(job.files.path("run.json")) for job in found.jobs}


def test_the_videos_of_a_folder_are_its_recordings(tree: Path) -> None:
    assert videos_in(Path("a")) == [Path("a/Z.MKV"), Path("a/case.mp4")]


def test_recursive_looks_everywhere_but_where_results_lie(tree: Path) -> None:
    found = videos_in(Path("a"), recursive=True, leave_out=Path("a/out"))
    assert found == [Path("a/Z.MKV"), Path("a/case.mp4"), Path("a/deep/er/case.mp4")]


def test_a_link_to_a_video_that_is_gone_is_not_passed_over(tree: Path) -> None:
    (tree / "b/gone.mp4").symlink_to("elsewhere.mp4")
    assert videos_in(Path("b")) == [Path("b/case.mp4"), Path("b/gone.mp4")]


def test_a_video_that_a_run_left_is_no_recording(tree: Path) -> None:
    (tree / "b/case.clip.mp4").touch()
    assert videos_in(Path("b")) == [Path("b/case.clip.mp4"), Path("b/case.mp4")]
    (tree / "b/case.run.json").write_text(json.dumps({"outputs": ["case.clip.mp4"]}))
    assert videos_in(Path("b")) == [Path("b/case.mp4")]


@pytest.mark.parametrize("outputs", ["3", "true", '"case.mp4"', '{"case.mp4": 1}', "null"])
def test_a_record_of_another_program_hides_no_recording(tree: Path, outputs: str) -> None:
    (tree / "b/other.run.json").write_text(f'{{"outputs": {outputs}}}')
    assert videos_in(Path("b")) == [Path("b/case.mp4")]


def test_a_folder_without_videos_says_what_would_find_some(tree: Path) -> None:
    with pytest.raises(VideoOpenError, match=r"directly in it; --recursive looks into its folders"):
        videos_in(tree)
    with pytest.raises(VideoOpenError, match=r"in it or below it\.$"):
        videos_in(tree / "a/folder.mp4", recursive=True)
    (tree / "b/case.mp4").rename(tree / "b/case.JPG")
    with pytest.raises(VideoOpenError, match=r"For its still images: ccdstream score b -o scores"):
        videos_in(Path("b"))


def test_results_lie_as_the_recordings_lie(tree: Path) -> None:
    out = Path("o")
    find = partial(find_jobs, output=out, recursive=True)
    assert places(find([Path("a/deep")])) == {"a/deep/er/case.mp4": "o/er/case.run.json"}
    assert places(find([Path("b/case.mp4"), Path("b")])) == {"b/case.mp4": "o/case.run.json"}
    both = places(find([Path("a/deep"), Path("b/case.mp4")]))
    assert both == {
        "a/deep/er/case.mp4": "o/a/deep/er/case.run.json",
        "b/case.mp4": "o/b/case.run.json",
    }


@pytest.mark.parametrize(
    ("inputs", "output"),
    [(["a"], "a.ccdstream"), (["./a/"], "a.ccdstream"), (["a", "b"], "ccdstream-results")],
    ids=["one", "slash", "several"],
)
def test_results_have_a_folder_if_nobody_names_one(
    tree: Path, inputs: list[str], output: str
) -> None:
    assert find_jobs(list(map(Path, inputs)), None, recursive=False).output == Path(output)


def test_recordings_that_would_write_the_same_results_are_not_analysed_but_others_are(
    tree: Path,
) -> None:
    (tree / "b/case.mkv").touch()
    found = find_jobs([Path("b"), Path("a/deep")], Path("out"), recursive=True)
    assert [str(job.path) for job in found.jobs] == ["a/deep/er/case.mp4"]
    assert [(each.name, str(each.why)) for each in found.unusable] == [
        (
            f"b/case.{mine}",
            f"b/case.{mine} would write the same results as b/case.{other}. "
            "Run them apart, with an --output each.",
        )
        for mine, other in (("mkv", "mp4"), ("mp4", "mkv"))
    ]


def test_two_recordings_whose_paths_read_alike_are_not_taken_for_one(tree: Path) -> None:
    """Above a link lies the folder that it leads to, and not the one that it lies in."""
    (tree / "b/er").symlink_to(tree / "a/deep/er")
    (tree / "a/deep/case.mp4").touch()
    inputs = [Path("b/er/../case.mp4"), Path("b/case.mp4")]
    assert not os.path.samefile(*inputs)
    found = find_jobs(inputs, Path("out"), recursive=False)
    assert not found.jobs
    assert [each.path for each in found.unusable] == inputs
    assert all("would write the same results" in str(each.why) for each in found.unusable)


def test_with_pseudonyms_their_order_is_that_of_the_batch_and_not_that_of_names(tree: Path) -> None:
    def alias_of(path: Path) -> Alias:
        return Alias(str(path)[::-1].replace("/", "-"), b"")

    found = find_jobs([Path("a"), Path("b")], None, recursive=True, alias_of=alias_of)
    called = [job.files.stem for job in found.jobs]
    assert len(called) > 3 and called == sorted(called)


def test_a_batch_is_a_folder_or_several_inputs(tree: Path) -> None:
    assert not is_batch([Path("b/case.mp4")]) and not is_batch([Path("gone")])
    assert is_batch([Path("b")]) and is_batch([Path("b/case.mp4"), Path("gone")])


# -- what is done already -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recording and its results."""
    folder = tmp_path_factory.mktemp("done")
    shutil.copy(shelf / "calm.mp4", folder)
    out = folder / "out"
    result = ccdstream("run", folder / "calm.mp4", "-o", out, "--model", shelf / "toy")
    assert result.exit_code == 0
    return folder


@pytest.fixture
def job(done: Path, tmp_path: Path) -> Job:
    """A copy of it, to be spoilt."""
    shutil.copytree(done, tmp_path / "job")  # with the times of the files
    return Job(tmp_path / "job/calm.mp4", OutputFiles(tmp_path / "job/out", "calm"), "calm.mp4")


@pytest.fixture
def wanted(shelf: Path) -> Wanted:
    return Wanted(load_bundle(shelf / "toy"), RunOptions())


def test_results_of_what_is_wanted_are_whole(job: Job, wanted: Wanted) -> None:
    assert standing(job, wanted).state == "whole"
    # neither changes what a run leaves
    assert standing(job, replace(wanted, options=RunOptions(batch=7, overwrite=True))).state == (
        "whole"
    )
    # what computed them is what may
    named = replace(wanted, device="cpu", engine="openvino", precision="fp32")
    assert standing(job, named).state == "whole"


def test_only_a_recording_whose_time_has_changed_is_hashed(
    job: Job, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    sha256_of = recording.sha256_of
    monkeypatch.setattr(
        recording, "sha256_of", lambda path: (hashed.append(path), sha256_of(path))[1]
    )
    assert standing(job, wanted).state == "whole" and hashed == []
    os.utime(job.path, (1, 1))
    assert standing(job, wanted).state == "whole" and hashed == [job.path]


def edit(job: Job, change: Callable[[dict[str, Any]], object]) -> None:
    file = job.files.path("run.json")
    record = json.loads(file.read_text("utf-8"))
    change(record)
    file.write_text(json.dumps(record), encoding="utf-8")


def edit_alerts(job: Job, text: bytes) -> None:
    """Damage that leaves the size as run.json says."""
    job.files.path("alerts.jsonl").write_bytes(text)
    edit(job, lambda record: record["output_bytes"].update({"calm.alerts.jsonl": len(text)}))


def flip_a_bit(job: Job) -> None:
    data = bytearray(job.path.read_bytes())
    data[-1] ^= 1
    job.path.write_bytes(data)


SPOILT: dict[str, tuple[Callable[[Job], object], str, str]] = {
    "nothing": (lambda j: shutil.rmtree(j.files.folder), "none", ""),
    "no-record": (lambda j: j.files.path("run.json").unlink(), "foreign", "alerts.jsonl is there"),
    "no-json": (lambda j: j.files.path("run.json").write_text("{"), "other", "not one of this"),
    "schema": (lambda j: edit(j, lambda r: r.update(schema="x")), "other", "not one of this"),
    "lacking": (lambda j: edit(j, lambda r: r.pop("engine")), "other", "not one of this"),
    "version": (lambda j: edit(j, lambda r: r.update(ccdstream="0")), "other", "of ccdstream 0"),
    "input-longer": (lambda j: os.truncate(j.path, 9999), "other", "another recording"),
    "input-other": (flip_a_bit, "other", "another recording"),
    "missing": (lambda j: j.files.path("alerts.csv").unlink(), "unfinished", "csv is missing"),
    "alerts": (
        lambda j: edit_alerts(j, b"alert"),
        "other",
        "calm.alerts.jsonl is not as it was left",
    ),
    "size": (lambda j: j.files.path("alerts.csv").write_text(""), "other", "not as it was left"),
    "interrupted": (lambda j: edit(j, lambda r: r.update(interrupted=True)), "unfinished", "inter"),
    "changed": (
        lambda j: edit(j, lambda r: r["input"].update(changed_meanwhile=True)),
        "unfinished",
        "changed while",
    ),
    "precision": (lambda j: edit(j, lambda r: r["engine"].update(precision="int8")), "other", "in"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_results_that_are_not_what_is_wanted_are_told_with_why(
    job: Job, wanted: Wanted, how: str
) -> None:
    spoil, state, why = SPOILT[how]
    spoil(job)
    found = standing(job, wanted)
    assert found.state == state and why in found.why


def test_other_wishes_make_results_other_results(job: Job, wanted: Wanted, tmp_path: Path) -> None:
    model = write_toy_bundle(tmp_path / "other", name="other")
    rule = write_toy_bundle(tmp_path / "rule", alert={**wanted.bundle.alert, "enter": 0.999})
    for other in (
        replace(wanted, bundle=model),
        replace(wanted, bundle=rule),
        replace(wanted, options=RunOptions(video="none")),
        replace(wanted, options=RunOptions(end_s=1.0)),
        replace(wanted, device="cuda"),
        replace(wanted, engine="onnxruntime"),
    ):
        assert standing(job, other).state == "other"


def test_whole_results_come_with_what_they_say(shelf: Path, tmp_path: Path, wanted: Wanted) -> None:
    job = Job(shelf / "case12.mp4", OutputFiles(tmp_path, "case12"), "case12.mp4")
    told = ccdstream("run", job.path, "-o", tmp_path, "--model", shelf / "toy")
    assert told.exit_code == 0
    stored = standing(job, wanted).stored
    assert stored is not None and stored.record["counts"]["alerts"] == 1
    (line,), (alert,) = stored.lines, stored.alerts
    assert (alert.number, alert.start_pts) == (1, line["start_pts"])
    assert list(alert.box or ()) == line["box"]
    assert alert.end_s == line["end_s"] and alert.clock == line["clock"]


# -- a batch by its command -----------------------------------------------------------------------


def test_recordings_and_folders_share_one_output(run: Callable[..., Any], here: Path) -> None:
    for name in ("more/b.MP4", "more/case12.mp4"):
        (here / name).parent.mkdir(exist_ok=True)
        shutil.copy("calm.mp4", name)
    result = run("case12.mp4", "more", "-o", "out")
    assert result.exit_code == 0
    assert everything_in(here / "out") == {
        *results_of("case12"),
        *(f"more/{name}" for name in results_of("case12") | results_of("b")),
        *OF_A_BATCH,
    }
    # each table says whose it is, in the order of the arguments and of the names
    names = [line for line in result.stdout.splitlines() if line.lower().endswith(".mp4")]
    assert names == ["case12.mp4", "more/b.MP4", "more/case12.mp4"]
    said = result.stderr.splitlines()
    assert said[0].startswith("toy-") and said[0].endswith("on cpu, 1 recording at a time")
    assert said[-3] == "3 done, 0 done before, 0 failed, 0 not begun: out/batch.json"
    assert said[-2] == "report of all, for a browser: out/batch.report.html"
    assert result.stderr.count(NOTICE) == 1 and said[-1] == NOTICE
    table = said[said.index("status        frames  alerts      took  recording") :]
    assert [row.split()[:3] + row.split()[5:] for row in table[1:4]] == [
        ["done", "70", "1", "case12.mp4"],
        ["done", "12", "0", "more/b.MP4"],
        ["done", "12", "0", "more/case12.mp4"],
    ]


def test_batch_json_says_what_became_of_each(run: Callable[..., Any], here: Path) -> None:
    (here / "in").mkdir()
    Path("case12.mp4").rename("in/case12.mp4")
    (here / "in/text.mp4").write_text("no video" * 50)
    assert run("in", "-o", "out").exit_code == 1
    record = record_of(here / "out")
    assert record["schema"] == "ccdstream.batch/1" and record["ended"] is True
    assert record["ccdstream"] == __version__ and record["notice"] == NOTICE
    assert record["model"].startswith("toy-")
    assert {k: v for k, v in record["counts"].items() if v} == {"done": 1, "failed": 1}
    good, bad = record["inputs"]
    run_record = json.loads((here / "out/case12.run.json").read_text())
    assert good["counts"] == run_record["counts"] and good["outputs"] == run_record["outputs"]
    assert set(good["outputs"]) == results_of("case12")
    assert good["input"] == "in/case12.mp4" and good["name"] == "case12.mp4"
    assert good["folder"] == "." and good["seconds"] > 0 and good["reason"] == ""
    assert bad["status"] == "failed" and "cannot read in/text.mp4 as a video" in bad["reason"]
    assert bad["outputs"] == [] and bad["counts"] == {}


def test_a_rerun_does_only_what_is_missing_changed_or_failed(
    run: Callable[..., Any], here: Path, shelf: Path
) -> None:
    (here / "in/deep").mkdir(parents=True)
    for name in ("a", "b", "c", "deep/a"):
        shutil.copy("calm.mp4", f"in/{name}.mp4")
    (here / "in/d.mp4").write_text("no video" * 50)
    arguments = ("in", "-r", "-o", "out", "--video", "none")
    assert run(*arguments).exit_code == 1
    before = touch_all(here / "out")
    (here / "out/b.scores.csv").unlink()
    shutil.copy("case12.mp4", "in/c.mp4")
    again = run(*arguments)
    assert again.exit_code == 1
    assert statuses(here / "out") == {
        "a.mp4": "already_done",
        "b.mp4": "done",
        "c.mp4": "done",
        "d.mp4": "failed",
        "deep/a.mp4": "already_done",
    }
    after = touch_all(here / "out")
    same = {str(p.relative_to(here / "out")) for p in before if after[p] == before[p]}
    kept = {f"{stem}a.{e}" for stem in ("", "deep/") for e in ("run.json", "scores.csv")}
    assert kept <= same and not [name for name in same if name.startswith(("b.", "c."))]
    assert len(rows_of(here / "out/c.scores.csv")) == 70
    assert "2 done, 2 done before, 1 failed, 0 not begun" in again.stderr
    # what was done before comes first in the table; its alerts are told as those of the others
    assert "a.mp4 is done already; report: out/a.report.html" in again.stderr.splitlines()
    said = again.stderr.splitlines()
    table = said[said.index("status        frames  alerts      took  recording") + 1 :][:5]
    assert [row.split()[-1] for row in table] == ["a.mp4", "deep/a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert [row.split()[:4] for row in table[:2]] == [["done", "before", "12", "0"]] * 2
    assert "deep/a.mp4" in again.stdout.splitlines()
    # other wishes, or --overwrite: all again
    shutil.copy("calm.mp4", "in/d.mp4")
    for more in (["--to", "0.2"], ["--to", "0.2", "--overwrite"]):
        assert run(*arguments, *more).exit_code == 0
        assert set(statuses(here / "out").values()) == {"done"}
    assert run(*arguments, "--to", "0.2").exit_code == 0
    assert set(statuses(here / "out").values()) == {"already_done"}


def test_results_of_another_model_or_of_other_options_are_not_replaced_without_a_word(
    run: Callable[..., Any], here: Path
) -> None:
    arguments = ("calm.mp4", "case12.mp4", "-o", "out", "--video", "none")
    first = run(*arguments)
    old = record_of(here / "out")["model"]
    other = write_toy_bundle(here / "other", name="other")
    for more, why in (
        (["--model", other.path], f"the model {old}"),
        (["--model", other.path, "--to", "0.2"], "other options (to: nothing there, 0.2 s asked "),
    ):
        result = run(*arguments, *more)
        assert result.exit_code == 0 and "replaced" not in first.stderr
        for row in record_of(here / "out")["inputs"]:
            warning = row["warnings"][-1]
            assert warning.startswith(f"an earlier run was replaced: its results are of {why}")
            assert f"warning: {row['name']}: {warning}" in result.stderr.splitlines()
            assert warning in html.unescape((here / "out/batch.report.html").read_text())
    asked_for = run(*arguments, "--overwrite")
    assert "replaced" not in asked_for.stderr


def test_a_recording_with_warnings_is_told_from_a_whole_one(
    run: Callable[..., Any], here: Path
) -> None:
    (here / "out").mkdir()
    (here / "out/case12.coco.json").write_text("{}")
    for status in ("done", "done before"):
        result = run("case12.mp4", "calm.mp4", "-o", "out", "--video", "none")
        assert result.exit_code == 0
        damaged, calm = record_of(here / "out")["inputs"]
        kept = json.loads((here / "out/case12.run.json").read_text())["warnings"]
        assert kept and (damaged["warnings"], calm["warnings"]) == (kept, [])
        said = result.stderr.splitlines()
        rows = [line for line in said if line.startswith(f"{status}  ")]
        marks = "(1 warning)" if len(kept) == 1 else f"({len(kept)} warnings)"
        assert [row for row in rows if "warning" in row] == [
            row for row in rows if row.endswith(f"case12.mp4  {marks}")
        ]
        assert len([row for row in rows if "warning" in row]) == 1
        assert said[-3].endswith(", 0 not begun, 1 with warnings: out/batch.json")
        assert [line for line in said if line.startswith("warning: ")] == [
            f"warning: case12.mp4: {sentence}" for sentence in kept
        ]


def test_a_folder_can_be_analysed_into_itself_again(run: Callable[..., Any], here: Path) -> None:
    recordings = everything_in(here)
    expected = recordings | results_of("case12") | results_of("calm") | OF_A_BATCH
    for flags in ([], ["--overwrite"], []):
        assert run(".", "-o", ".", *flags).exit_code == 0
        assert everything_in(here) == expected
    assert statuses(here) == {"calm.mp4": "already_done", "case12.mp4": "already_done"}


def test_an_input_that_fails_stops_no_other(run: Callable[..., Any], here: Path) -> None:
    (here / "empty").mkdir()
    Path("text.mp4").write_text("no video" * 50)
    (here / "out").mkdir()
    (here / "out/case12.scores.csv").write_text("somebody's")
    inputs = ["gone.mp4", "empty", "text.mp4", "case12.mp4", "calm.mp4"]
    result = run(*inputs, "-o", "out")
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    for name in ("gone.mp4", "empty", "text.mp4", "out/case12.scores.csv is there already"):
        assert sum(name in error for error in errors) == 1
    mine = {*OF_A_BATCH, "case12.scores.csv"}
    assert everything_in(here / "out") == results_of("calm") | mine
    assert (here / "out/case12.scores.csv").read_text() == "somebody's"
    assert Counter(statuses(here / "out").values()) == {"failed": 4, "done": 1}


def test_several_at_a_time_leave_what_one_at_a_time_does(
    run: Callable[..., Any], here: Path
) -> None:
    for name in ("b", "c", "z"):
        shutil.copy("case12.mp4" if name == "z" else "calm.mp4", f"{name}.mp4")
    names = ["case12.mp4", "calm.mp4", "b.mp4", "c.mp4", "z.mp4"]
    one = run(*names, "-o", "one")
    several = run(*names, "-o", "several", "--jobs", "3", "--json", "--quiet")
    assert (one.exit_code, several.exit_code, several.stderr) == (0, 0, "")
    assert final(here / "several") == final(here / "one")
    lines = [json.loads(line) for line in several.stdout.splitlines()]
    assert sorted(line["recording"] for line in lines) == ["case12.mp4", "z.mp4"]
    # each table stays in one piece, under its name
    lines = one.stdout.splitlines()
    calm = "no alerts: nothing stayed unusual against normal training frames"
    for name in names:
        after = lines[lines.index(name) + 1 :]
        if name in ("case12.mp4", "z.mp4"):
            assert after[0].startswith("alert  start ")
            assert after[1].startswith("    1  00:00:01.")
        else:
            assert after[0] == calm


# -- engines and crashes --------------------------------------------------------------------------


class Deadly(ToyEngine):
    """Scores as the toy does, but no process outlives a very bright frame."""

    DEADLY: ClassVar = {220: signal.SIGSEGV, 190: signal.SIGABRT, 160: signal.SIGKILL}

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        for luma, number in self.DEADLY.items():
            if frames[0].mean() >= luma - 5:
                os.kill(os.getpid(), number)
                signal.pause()
        return super().run(frames, valid)


class Card(ToyEngine):
    """One of several made-up GPUs."""

    name, device, precision, on_device = "onnxruntime", "cuda", None, None

    def __init__(self, gpu: int, others: Path | None) -> None:
        super().__init__()
        self.reason = f"GPU {gpu}"
        self.gpu, self.others = gpu, others

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        """The first one goes on once another is at work, so that it does not do all alone."""
        if self.others is not None and self.gpu > 0:
            self.others.touch()
        while self.others is not None and not self.others.exists():
            time.sleep(0.01)
        return super().run(frames, valid)


class Still(ToyEngine):
    """Comes to no end with a bright frame."""

    precision, on_device = None, None

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        while frames[0].mean() > 150:
            time.sleep(1)
        return super().run(frames, valid)


class Failing(ToyEngine):
    """Fails once it has seen a bright frame, and then for ever, as a GPU does."""

    precision, on_device, broken = None, None, False

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        self.broken = self.broken or frames[0].mean() > 150
        if self.broken:
            raise EngineError("the toy is broken")
        return super().run(frames, valid)


@dataclass(frozen=True)
class Opens:
    """Opens an engine of a kind in a worker."""

    bundle: Path
    kind: str
    broken: tuple[int, ...] = ()
    """GPUs that cannot be used."""
    others: Path | None = None
    """A file that is there once a GPU but the first is at work, or has said that it cannot be: the
    first waits for it."""

    def __call__(self, place: Place) -> tuple[Bundle, Any]:
        if place.gpu in self.broken:
            if self.others is not None:
                self.others.touch()
            raise EngineError(f"torch cannot use GPU {place.gpu} (busy)")
        engine: Any
        match self.kind:
            case "deadly":
                engine = Deadly()
                engine.precision, engine.on_device = None, None
            case "card":
                engine = Card(place.gpu, self.others)
            case "failing":
                engine = Failing()
            case "still":
                engine = Still()
            case _:
                os.kill(os.getpid(), signal.SIGSEGV)
        return load_bundle(self.bundle), engine


class Heard:
    """What a watcher was told."""

    def __init__(self) -> None:
        self.at_a_time = 0
        self.warnings: list[str] = []

    def opened(self, opened: Opened, at_a_time: int) -> None:
        self.at_a_time = at_a_time

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def do(
    found: Found, wanted: Wanted, opens: Opens, *, jobs: int | None = None, gpus: int = 1
) -> tuple[dict[str, batch.Entry], Heard]:
    """What becomes of each recording."""
    heard = Heard()
    ledger = run_batch(
        found,
        wanted,
        opens,
        jobs=jobs,
        watcher=heard,
        stopped=lambda: False,
        gpus=lambda: gpus,
    )
    return {entry.name: entry for entry in ledger.entries}, heard


@pytest.fixture
def calm_ones(here: Path) -> Found:
    """Six recordings of 12 dark frames."""
    for k in range(6):
        shutil.copy("calm.mp4", f"{k}.mp4")
    return find_jobs([Path(f"{k}.mp4") for k in range(6)], Path("out"), recursive=False)


@pytest.fixture
def without_video(wanted: Wanted) -> Wanted:
    return replace(wanted, options=RunOptions(video="none"))


def bright(luma: int, _: int) -> av.VideoFrame:
    return picture(shade(luma))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_crash_costs_its_recording_alone_and_is_named(
    here: Path, shelf: Path, without_video: Wanted, jobs: int
) -> None:
    (here / "in").mkdir()
    for luma, number in Deadly.DEADLY.items():
        shown = partial(bright, luma)
        make_video(here / f"in/{number.name}.mp4", size=(96, 128), picture_of=shown)
    for name in ("A", "SIGB", "Z"):
        shutil.copy("calm.mp4", f"in/{name}.mp4")
    found = find_jobs([Path("in")], Path("out"), recursive=False)
    entries, _ = do(found, without_video, Opens(shelf / "toy", "deadly"), jobs=jobs)
    told = {name: (entry.status.value, entry.reason) for name, entry in entries.items()}
    analysed = "the process that analysed it"
    assert told == {
        **{f"{name}.mp4": ("done", "") for name in ("A", "SIGB", "Z")},
        "SIGABRT.mp4": ("crashed", f"{analysed} crashed (SIGABRT)"),
        "SIGKILL.mp4": (
            "crashed",
            f"{analysed} was killed (SIGKILL), as is done where memory runs out",
        ),
        "SIGSEGV.mp4": ("crashed", f"{analysed} crashed (SIGSEGV)"),
    }
    results = set().union(*(results_of(name, video=False) for name in ("A", "SIGB", "Z")))
    assert {name for name in everything_in(here / "out") if not name.startswith(".")} == (
        results | OF_A_BATCH
    )
    # what the crashes left is gone with the next run, which tries them again
    again, _ = do(found, without_video, Opens(shelf / "toy", "deadly"), jobs=jobs)
    assert Counter(entry.status for entry in again.values()) == {
        Status.crashed: 3,
        Status.already_done: 3,
    }


def test_one_that_stands_still_is_ended_and_the_others_go_on(
    here: Path, shelf: Path, without_video: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "STILL_S", 6.0)
    make_video(here / "still.mp4", size=(96, 128), picture_of=partial(bright, 200))
    found = find_jobs([Path("still.mp4"), Path("calm.mp4")], Path("out"), recursive=False)
    entries, _ = do(found, without_video, Opens(shelf / "toy", "still"))
    still = entries["still.mp4"]
    assert still.status is Status.crashed and still.reason.startswith("nothing came of it for 0 m")
    assert entries["calm.mp4"].status is Status.done
    assert not list(here.glob("out/still*"))


def test_gpus_share_the_recordings(calm_ones: Found, shelf: Path, without_video: Wanted) -> None:
    entries, heard = do(
        calm_ones, without_video, Opens(shelf / "toy", "card", others=Path("others")), gpus=2
    )
    assert {entry.status for entry in entries.values()} == {Status.done}
    assert heard.at_a_time == 2 * batch.JOBS_PER_GPU
    taken = {json.loads(p.read_text())["engine"]["taken"] for p in Path("out").glob("*.run.json")}
    assert taken == {"GPU 0", "GPU 1"}


def test_a_further_gpu_that_cannot_be_used_is_left_out_with_a_word(
    calm_ones: Found, shelf: Path, without_video: Wanted
) -> None:
    opens = Opens(shelf / "toy", "card", broken=(1,), others=Path("others"))
    entries, heard = do(calm_ones, without_video, opens, gpus=2)
    assert {entry.status for entry in entries.values()} == {Status.done}
    assert heard.warnings == ["warning: GPU 1 is left out: torch cannot use GPU 1 (busy)"]


@pytest.mark.parametrize(
    ("opens", "says"),
    [
        (partial(Opens, kind="card", broken=(0,)), "torch cannot use GPU 0 (busy)"),
        (
            partial(Opens, kind="crash"),
            "the model cannot be opened: the process crashed (SIGSEGV).",
        ),
    ],
    ids=["refused", "crash"],
)
def test_a_model_that_cannot_be_opened_ends_the_batch(
    calm_ones: Found, shelf: Path, without_video: Wanted, opens: Callable[..., Opens], says: str
) -> None:
    with pytest.raises(EngineError) as caught:
        do(calm_ones, without_video, opens(shelf / "toy"), jobs=2)
    assert str(caught.value).startswith(says)
    assert set(statuses(Path("out")).values()) == {"not_begun"}


def test_an_engine_that_failed_is_not_used_again(
    here: Path, shelf: Path, without_video: Wanted
) -> None:
    shutil.copy("calm.mp4", "z.mp4")
    found = find_jobs([Path("case12.mp4"), Path("z.mp4")], Path("out"), recursive=False)
    entries, _ = do(found, without_video, Opens(shelf / "toy", "failing"))
    assert {name: entry.status.value for name, entry in entries.items()} == {
        "case12.mp4": "failed",
        "z.mp4": "done",
    }
    assert entries["case12.mp4"].reason == "the toy is broken"


# -- interrupted, and killed ----------------------------------------------------------------------


def batch_of_long_ones(here: Path, shelf: Path, number: int) -> None:
    for k in range(number):
        shutil.copy(shelf / "long.mp4", here / f"long{k}.mp4")


def send_to_all(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """As a terminal does: to the command, and to the workers too."""
    os.killpg(process.pid, number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_inputs_and_names_what_was_not_begun(
    here: Path, shelf: Path, number: signal.Signals
) -> None:
    batch_of_long_ones(here, shelf, 3)
    inputs = [f"long{k}.mp4" for k in range(3)]
    arguments = ("run", *inputs, "-o", "out", "--jobs", "2", "--json", "--model", shelf / "toy")
    with start(*arguments, cwd=here, start_new_session=True) as process:
        assert process.stdout is not None
        for _ in range(2):  # an alert of each of the two that are at work
            process.stdout.readline()
        send_to_all(process, number)
        _, said = process.communicate(timeout=120)
    lines = said.decode().splitlines()
    assert process.returncode == 130
    assert lines.count("stopping: the files are being finished") == 1
    assert "Traceback" not in said.decode()
    assert [line.split()[-1] for line in lines if line.startswith("not begun ")] == ["long2.mp4"]
    assert statuses(here / "out") == {
        "long0.mp4": "interrupted",
        "long1.mp4": "interrupted",
        "long2.mp4": "not_begun",
    }
    expected = results_of("long0") | results_of("long1") | OF_A_BATCH
    assert everything_in(here / "out") == expected
    for name in ("long0", "long1"):
        rows = rows_of(here / f"out/{name}.scores.csv")
        assert 30 <= len(rows) < 1500
        with av.open(here / f"out/{name}.overlay.mp4") as overlay:
            assert len(list(overlay.decode(video=0))) == len(rows)


def test_the_second_signal_leaves_nothing_of_what_was_open(here: Path, shelf: Path) -> None:
    batch_of_long_ones(here, shelf, 2)
    arguments = ("run", "long0.mp4", "long1.mp4", "-o", "out", "--jobs", "2", "--json")
    with start(*arguments, "--model", shelf / "toy", cwd=here, start_new_session=True) as process:
        assert process.stdout is not None and process.stderr is not None
        for _ in range(2):
            process.stdout.readline()
        process.send_signal(signal.SIGSTOP)  # so that nothing ends between the two
        for number in (signal.SIGINT, signal.SIGTERM):  # two of a kind would count as one
            process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"interrupted: what was not finished is gone" in said
    assert b"Traceback" not in said
    assert everything_in(here / "out") == OF_A_BATCH
    assert set(statuses(here / "out").values()) == {"not_begun"}


def test_killed_at_five_moments_it_ends_in_the_files_of_an_undisturbed_run(
    tmp_path: Path, shelf: Path
) -> None:
    """Each time the whole group, and after each time every file that has its name is whole."""
    (tmp_path / "in/deep").mkdir(parents=True)
    for k in range(3):
        bright_between(tmp_path / f"in/{k}.mp4", 5, 49, 70)
        os.utime(tmp_path / f"in/{k}.mp4", (k, k))
    shutil.copy2(tmp_path / "in/0.mp4", tmp_path / "in/deep/0.mp4")
    shutil.copy2(shelf / "calm.mp4", tmp_path / "in/deep/calm.mp4")
    arguments = ("run", "in", "-r", "--jobs", "2", "--model", shelf / "toy", "-o")

    def begin(output: str) -> "subprocess.Popen[bytes]":
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return start(*arguments, output, cwd=tmp_path, start_new_session=True, **quiet)

    began = time.monotonic()
    with begin("undisturbed") as process:
        assert process.wait(300) == 0
    whole_s = time.monotonic() - began
    random = Random(7)
    killed = 0
    for _ in range(5):
        with begin("out") as process:
            try:
                process.wait(random.uniform(0.2, 0.8) * whole_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
        if (tmp_path / "out/batch.json").exists():
            for row in record_of(tmp_path / "out")["inputs"]:
                if row["status"] in ("done", "already_done"):
                    folder = tmp_path / "out" / row["folder"]
                    assert row["outputs"] and all((folder / n).exists() for n in row["outputs"])
        for overlay in (tmp_path / "out").glob("**/[!.]*.overlay.mp4"):
            if not any(part.startswith(".") for part in overlay.relative_to(tmp_path).parts):
                with av.open(overlay) as video:
                    assert len(list(video.decode(video=0))) in (12, 70)
    assert killed > 0
    with begin("out") as process:
        assert process.wait(300) == 0
    assert final(tmp_path / "out") == final(tmp_path / "undisturbed")
    assert {p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".")} == set()


def test_one_recording_that_was_killed_is_done_again(here: Path, shelf: Path) -> None:
    arguments = ("run", shelf / "long.mp4", "-o", "out", "--json", "--model", shelf / "toy")
    with start(*arguments, cwd=here) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    assert {p.name[:11] for p in (here / "out").iterdir()} <= {".ccdstream-", ".long.ccdst"}
    assert ccdstream(*arguments, "--to", "1", "--quiet").exit_code == 0
    assert everything_in(here / "out") == results_of("long")


# -- two at a time, and no room -------------------------------------------------------------------


def test_a_second_run_on_one_output_is_refused_with_one_line(
    run: Callable[..., Any], here: Path
) -> None:
    (here / "out").mkdir()
    with Lock(here / "out/.ccdstream.lock", ""):
        assert refusal(run("calm.mp4", "case12.mp4", "-o", "out")) == (
            "another run is at work in out. Wait for it, or choose another --output."
        )
    # of one recording its own
    with Lock(lock_path(here / "out", "calm"), ""):
        assert refusal(run("calm.mp4", "-o", "out")) == (
            "another process is analysing into out/calm.*. Wait for it to end."
        )
        assert run("case12.mp4", "-o", "out", "--video", "none").exit_code == 0
    # what a killed process left of a lock holds nobody up, and goes
    (here / "out/.ccdstream.lock").touch()
    lock_path(here / "out", "calm").touch()
    assert run("calm.mp4", "case12.mp4", "-o", "out", "--video", "none").exit_code == 0
    assert statuses(here / "out") == {"calm.mp4": "done", "case12.mp4": "already_done"}
    expected = results_of("calm", video=False) | results_of("case12", video=False)
    assert everything_in(here / "out") == expected | OF_A_BATCH


def test_files_that_may_not_grow_fail_their_recording_and_a_rerun_completes(
    here: Path, shelf: Path
) -> None:
    shutil.copy(shelf / "large.mp4", "large.mp4")
    arguments = ("run", "calm.mp4", "large.mp4", "-o", "out", "--model", shelf / "toy")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))

    with start(*arguments, cwd=here, preexec_fn=limited) as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1 and b"Traceback" not in said
    assert b"File too large" in said
    assert statuses(here / "out") == {"calm.mp4": "done", "large.mp4": "failed"}
    assert everything_in(here / "out") == results_of("calm") | OF_A_BATCH
    with start(*arguments, cwd=here) as process:
        process.communicate(timeout=120)
    assert statuses(here / "out") == {"calm.mp4": "already_done", "large.mp4": "done"}


def test_a_full_disk_leaves_nothing_unfinished_and_a_rerun_completes(
    run: Callable[..., Any], here: Path, shelf: Path
) -> None:
    (here / "out").mkdir()
    shutil.copy(shelf / "large.mp4", "large.mp4")
    with small_disk(here / "out", 120):
        assert run("calm.mp4", "large.mp4", "-o", "out").exit_code == 1
        left = {name for name in everything_in(here / "out") if not name.endswith(".lock")}
        assert left == results_of("calm") | OF_A_BATCH
        assert statuses(here / "out") == {"calm.mp4": "done", "large.mp4": "failed"}
        subprocess.run(["mount", "-o", "remount,size=20m", here / "out"], check=True)
        assert run("calm.mp4", "large.mp4", "-o", "out").exit_code == 0
        assert statuses(here / "out") == {"calm.mp4": "already_done", "large.mp4": "done"}


def test_an_output_that_cannot_be_written_is_one_line_before_any_work(
    run: Callable[..., Any], here: Path
) -> None:
    (here / "out").mkdir()
    with small_disk(here / "out", 100):
        subprocess.run(["mount", "-o", "remount,ro", here / "out"], check=True)
        message = refusal(run("calm.mp4", "case12.mp4", "-o", "out"))
        assert message.startswith("cannot write to the folder out: Read-only file system.")
        assert everything_in(here / "out") == set()
    (here / "file").touch()
    assert "cannot make the folder file" in refusal(run("calm.mp4", "case12.mp4", "-o", "file"))


def test_a_recording_that_grows_meanwhile_is_not_done(
    run: Callable[..., Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccdstream import recording

    make_fuser = recording.make_fuser

    def growing(bundle: Bundle) -> Any:
        with open("calm.mp4", "ab") as file:
            file.write(b"more")
        return make_fuser(bundle)

    monkeypatch.setattr(recording, "make_fuser", growing)
    result = run("calm.mp4", "-o", "out", "--video", "none")
    assert "changed while it was analysed" in result.stderr
    assert json.loads(Path("out/calm.run.json").read_text())["input"]["changed_meanwhile"] is True
    assert "frames from" in run("calm.mp4", "-o", "out", "--video", "none").stderr
