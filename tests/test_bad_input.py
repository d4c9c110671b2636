"""Bad input and bad places, from the command line: one clear line, or all that can be had.

Never a traceback, never part of a file under a final name, never a file that was begun.
"""

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from ccdstream.report.files import Together
from tests.bundles import write_toy_bundle
from tests.commands import ccdstream, everything_in, refusal, results_of, rows_of
from tests.videos import cut, flip_bits, make_video, picture, remux, textured, times_of

SIZE = (96, 128)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy").path


@pytest.fixture
def run(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`ccdstream run ...` in an empty current directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: ccdstream("run", "--model", toy, *arguments)


def busy(path: Path, frames: int = 50, size: tuple[int, int] = SIZE, **options: Any) -> Path:
    """With something in every packet, so that damage hits something."""
    return make_video(
        path, size=size, frames=frames, picture_of=lambda k: picture(textured(k, size)), **options
    )


# --- nothing to analyse ---


def nothing(path: Path) -> None:
    """No file at all."""


def folder_without_videos(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").touch()


def text(path: Path) -> None:
    path.write_text("The quick brown fox jumps over the lazy dog.\n" * 200)


def sound_alone(path: Path) -> None:
    source = make_video(path.with_name("both.mp4"), audio="aac")
    with av.open(str(source)) as read, av.open(str(path), "w") as write:
        stream = write.add_stream_from_template(read.streams.audio[0], opaque=True)
        for packet in read.demux(audio=0):
            if packet.size:
                packet.stream = stream
                write.mux(packet)
    source.unlink()


def without_index(path: Path) -> None:
    whole = busy(path.with_name("whole.mp4"))
    cut(whole, path, 0.6)
    whole.unlink()


def without_frames(path: Path) -> None:
    whole = make_video(path.with_name("whole.avi"), codec="mpeg4")
    remux(whole, path, lambda packet, k: None, format="avi")
    whole.unlink()


def only_noise(path: Path) -> None:
    def spoilt(packet: av.Packet, k: int) -> av.Packet:
        wrong = av.Packet(b"\xff" * 200)
        wrong.pts, wrong.dts, wrong.time_base = packet.pts, packet.dts, packet.time_base
        return wrong

    whole = make_video(path.with_name("whole.avi"), codec="mpeg4")
    remux(whole, path, spoilt, format="avi")
    whole.unlink()


def playlist(path: Path) -> None:
    make_video(path.with_name("secret.ts"), format="mpegts")
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.48,\nsecret.ts\n#EXT-X-ENDLIST\n")


def concat_script(path: Path) -> None:
    make_video(path.with_name("secret.ts"), format="mpegts")
    path.write_text("ffconcat version 1.0\nfile secret.ts\n")


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (nothing, "cannot open bad.mp4: No such file or directory. Check"),
    "folder": (folder_without_videos, "no videos in the folder bad.mp4. Expected files"),
    "empty": (Path.touch, "bad.mp4 is empty (0 bytes)."),
    "text": (text, "cannot read bad.mp4 as a video: "),
    "sound-alone": (sound_alone, "bad.mp4 has no video stream."),
    "without-index": (without_index, "bad.mp4 "),
    "without-frames": (without_frames, "bad.mp4 has a video stream without a single picture."),
    "undecodable": (only_noise, "nothing in bad.mp4 can be decoded: 12 packets"),
    "pipe": (os.mkfifo, "bad.mp4 is not a regular file."),
    "playlist": (playlist, "bad.mp4 names other files instead of holding a recording."),
    "script": (concat_script, "bad.mp4 names other files instead of holding a recording."),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_analysed_is_one_clear_line(
    run: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    make, says = REFUSED[kind]
    make(tmp_path / "bad.mp4")
    before = sorted(tmp_path.rglob("*"))
    result = run("bad.mp4")
    assert refusal(result).startswith(says)
    assert result.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before  # not even a folder


# --- damaged: everything that decodes, and a warning with counts ---


DAMAGED: dict[str, tuple[str, dict[str, Any], Callable[[Path, Path], Path]]] = {
    "cut-mkv": ("a.mkv", {"frames": 100}, lambda a, b: cut(a, b, 0.6)),
    "cut-ts": ("a.ts", {"format": "mpegts", "options": {"g": "10"}}, lambda a, b: cut(a, b, 0.6)),
    "flipped-mp4": ("a.mp4", {"options": {"g": "10"}}, lambda a, b: flip_bits(a, b, seed=1)),
    "flipped-ts": (
        "a.ts",
        {"format": "mpegts", "options": {"g": "10"}},
        lambda a, b: flip_bits(a, b, seed=2),
    ),
    "lost-packets": (
        "a.mkv",
        {"options": {"g": "5", "bf": "0"}},
        lambda a, b: remux(a, b, lambda packet, k: None if k in (20, 21, 30) else packet),
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_of_a_damaged_recording_all_that_decodes_is_analysed_with_a_warning(
    run: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    name, options, damage = DAMAGED[kind]
    path = damage(busy(tmp_path / name, **options), tmp_path / f"damaged{Path(name).suffix}")
    result = run(path.name, "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert "error: " not in result.stderr and "Traceback" not in result.stderr
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings and all(w.startswith(f"warning: {path.name}: ") for w in warnings)
    assert everything_in(tmp_path / "out") == results_of("damaged")
    record = json.loads((tmp_path / "out/damaged.run.json").read_text())
    counts = record["counts"]
    rows = rows_of(tmp_path / "out/damaged.scores.csv")
    assert 15 <= counts["decoded"] == counts["frames"] == len(rows)
    assert [f"warning: {path.name}: {one}" for one in record["warnings"]] == warnings
    assert len(times_of(tmp_path / "out/damaged.overlay.mp4")) == counts["frames"]
    told = ("corrupt_packets", "corrupt_frames", "skipped_frames", "missing_frames", "demux_errors")
    assert counts["truncated"] or any(counts[name] for name in told)


# --- strange, and sound ---


def one_frame(path: Path) -> Path:
    return make_video(path, frames=1)


def odd_size(path: Path) -> Path:
    return make_video(path, codec="ffv1", size=(33, 35))


def tiny(path: Path) -> Path:
    return make_video(path, codec="ffv1", size=(2, 2))


@pytest.mark.parametrize(
    ("make", "frames"),
    [(one_frame, 1), (odd_size, 12), (tiny, 12)],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_a_strange_recording_is_analysed_like_any_other(
    run: Callable[..., Any], tmp_path: Path, make: Callable[[Path], Path], frames: int
) -> None:
    source = make(tmp_path / "a.mkv")
    result = run("a.mkv", "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert "warning: " not in result.stderr
    assert everything_in(tmp_path / "out") == results_of("a")
    assert len(rows_of(tmp_path / "out/a.scores.csv")) == frames
    assert times_of(tmp_path / "out/a.overlay.mp4") == times_of(source)


def test_a_size_that_changes_in_mid_stream_is_counted(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    """Two MPEG transport streams, one after the other, as recorders make them."""
    parts = [
        make_video(
            tmp_path / f"{k}.ts",
            size=size,
            frames=10,
            format="mpegts",
            time_base=Fraction(1, 25),
            pts=range(10 * k, 10 * k + 10),
        )
        for k, size in enumerate([(96, 128), (48, 64)])
    ]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    result = run("both.ts", "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert "warning: both.ts: the picture changed size 1 time; scaled to the first" in result.stderr
    with av.open(str(tmp_path / "out/both.overlay.mp4")) as overlay:
        sizes = {(f.height, f.width) for f in overlay.decode(video=0)}
    assert sizes == {(96, 128)}
    assert len(rows_of(tmp_path / "out/both.scores.csv")) == 20


def test_a_recording_that_disappears_meanwhile_is_one_clear_line(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_video(tmp_path / "a.mp4")
    place = Together.place

    def unlinking(self: Together, path: Path, *, last: bool = False) -> Path:
        (tmp_path / "a.mp4").unlink(missing_ok=True)
        return place(self, path, last=last)

    monkeypatch.setattr(Together, "place", unlinking)
    message = refusal(run("a.mp4", "-o", "out", "--video", "none"))
    assert message.startswith("a.mp4 can no longer be read: No such file or directory.")
    assert everything_in(tmp_path) == set()


# --- places that cannot be written ---


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("file", "cannot make the folder file: File exists."),
        ("file/below", "cannot make the folder file/below: Not a directory."),
        ("x" * 256, f"cannot make the folder {'x' * 256}: File name too long."),
        ("/proc/out", "cannot make the folder /proc/out: "),
    ],
    ids=["a-file", "below-a-file", "name-too-long", "no-such-place"],
)
def test_an_output_that_is_no_folder_is_one_clear_line(
    run: Callable[..., Any], tmp_path: Path, output: str, says: str
) -> None:
    make_video(tmp_path / "a.mp4")
    (tmp_path / "file").write_text("mine")
    assert refusal(run("a.mp4", "-o", output)).startswith(says)
    assert everything_in(tmp_path) == {"a.mp4", "file"}
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_one_clear_line(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    make_video(tmp_path / "a.mp4")
    (tmp_path / "out").mkdir(mode=0o500)
    assert refusal(run("a.mp4", "-o", "out")).startswith(
        "cannot write to the folder out: Permission denied."
    )
    assert everything_in(tmp_path) == {"a.mp4"}


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder nobody can write to")
def test_a_folder_that_nobody_can_write_to_is_one_clear_line(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    make_video(tmp_path / "a.mp4")
    assert refusal(run("a.mp4", "-o", "/sys/kernel")).startswith(
        "cannot write to the folder /sys/kernel: "
    )


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """What a full disk is to a program: a write fails halfway."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("room", "arguments", "file"),
    [
        (0, [], ""),
        (3_000, [], ""),
        (20_000, [], "overlay.mp4"),
        (1_000, ["--video", "none"], "scores.csv"),
        (1_500, ["--video", "none", "--to", "0.2"], "report.html"),
    ],
    ids=["none", "little", "while-encoding", "scores", "page"],
)
@pytest.mark.parametrize("old", [False, True], ids=["new", "overwrite"])
def test_a_full_disk_is_one_clear_line_and_changes_nothing(
    run: Callable[..., Any],
    tmp_path: Path,
    room: int,
    arguments: list[str],
    file: str,
    old: bool,
) -> None:
    busy(tmp_path / "a.mp4")
    out = tmp_path / "out"
    if old:
        assert run("a.mp4", "-o", "out", "--to", "0.1").exit_code == 0
    before = {name: (out / name).read_bytes() for name in everything_in(out)}
    with files_no_larger_than(room):
        result = run("a.mp4", "-o", "out", "--overwrite", *arguments)
    message = refusal(result)
    assert message.startswith(f"cannot write out/a.{file}")
    assert os.strerror(27) in message  # "File too large": the limit is not that of a real disk
    assert {name: (out / name).read_bytes() for name in everything_in(out)} == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_really_full_says_so(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What grows is a link to /dev/full."""
    make_video(tmp_path / "a.mp4")
    place = Together.place

    def full(self: Together, path: Path, *, last: bool = False) -> Path:
        written = place(self, path, last=last)
        if path.name == "a.scores.csv":
            written.with_name(written.name + ".part").symlink_to("/dev/full")
        return written

    monkeypatch.setattr(Together, "place", full)
    assert refusal(run("a.mp4", "-o", "out")) == (
        "cannot write out/a.scores.csv: No space left on device. Check that the folder exists, "
        "is writable and has room, or choose another --output."
    )
    assert everything_in(tmp_path / "out") == set()
