"""Whether the parts of a container join: what is lost in between is told, and nothing else is."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from ccdstream.decode import VideoSource
from ccdstream.parts import parts_of
from tests.videos import make_video, picture, textured

SIZE = (48, 64)
UNEVEN = [40 * k + (0, 13, -9, 5, -15)[k % 5] for k in range(40)]
BREAKS_OFF = "the recording breaks off before its announced end"
ANOTHER = "another recording follows in the same file, and is not read"
BROKEN = "the file could not be read in 1 place"

CONTAINERS: dict[str, dict[str, Any]] = {
    "mkv": {"codec": "ffv1"},
    "webm": {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "live.mkv": {"codec": "ffv1", "container": {"live": "1"}},
    "fragments.mp4": {
        "container": {"movflags": "+frag_keyframe+empty_moov+default_base_moof"},
        "options": {"g": "10"},
    },
    "mp4": {},
    "ogv": {
        "codec": "libvpx",
        "format": "ogg",
        "options": {"deadline": "realtime", "cpu-used": "8"},
    },
    "flv": {"options": {"bf": "0"}},
    "ts": {"format": "mpegts", "options": {"bf": "0"}},
    "wmv": {"codec": "wmv2", "format": "asf"},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """An uneven recording of 40 frames in each container: its clock tells of no gap."""
    folder = tmp_path_factory.mktemp("parts")
    made = {}
    for name, options in CONTAINERS.items():
        path = folder / f"w.{name}"
        _write(path, **options)
        made[name] = path.read_bytes()
    return made


def _write(
    path: Path,
    codec: str = "libx264",
    format: str | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> None:
    with av.open(str(path), "w", format=format, container_options=container or {}) as write:
        stream = write.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for k, time in enumerate(UNEVEN):
            frame = picture(textured(k, SIZE))
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            write.mux(stream.encode(frame))
        write.mux(stream.encode(None))


def told(tmp_path: Path, data: bytes) -> tuple[int, list[str]]:
    """How many frames come of `data`, and what is said of it."""
    path = tmp_path / "r.bin"
    path.write_bytes(data)
    with VideoSource(path) as source:
        return sum(1 for _ in source), source.problems.sentences()


def without(data: bytes, begin: float, end: float) -> bytes:
    return data[: int(len(data) * begin)] + data[int(len(data) * end) :]


# --- nothing is told of what is whole ---


@pytest.mark.parametrize("name", CONTAINERS)
def test_nothing_is_told_of_a_whole_recording_with_an_uneven_clock(
    tmp_path: Path, whole: dict[str, bytes], name: str
) -> None:
    assert told(tmp_path, whole[name]) == (40, [])


@pytest.mark.parametrize("name", ["mkv", "webm", "fragments.mp4", "mp4", "ogv"])
def test_what_lies_behind_the_marked_end_is_no_part_of_the_recording(
    tmp_path: Path, whole: dict[str, bytes], name: str
) -> None:
    for junk in (bytes(5000), b"\xff" * 5000):
        assert told(tmp_path, whole[name] + junk) == (40, [])


@pytest.mark.parametrize("name", ["mkv", "webm", "ts", "ogv"])
def test_a_second_recording_in_the_file_is_read(
    tmp_path: Path, whole: dict[str, bytes], name: str
) -> None:
    count, sentences = told(tmp_path, whole[name] * 2)
    assert count == 80
    assert "the clock of the file jumped 1 time; closed up" in sentences
    assert not {BREAKS_OFF, ANOTHER, BROKEN} & set(sentences)


def test_a_frame_that_is_shown_for_long_at_the_end_is_no_loss(tmp_path: Path) -> None:
    """With B-frames, and so slow that the length of a frame is all that could be missing."""
    for name in ("s.mkv", "s.nut"):
        path = make_video(
            tmp_path / name, rate=25, pts=[2000 * k for k in range(12)], time_base=Fraction(1, 1000)
        )
        assert told(tmp_path, path.read_bytes()) == (12, [])


@pytest.mark.parametrize("kind", ["wmv", "nut"])
def test_a_recording_whose_clock_starts_late_is_not_said_to_break_off(
    tmp_path: Path, kind: str
) -> None:
    """Their length is that of the clock at the end."""
    codec, form = ("wmv2", "asf") if kind == "wmv" else ("ffv1", "nut")
    path = make_video(
        tmp_path / f"l.{kind}",
        codec=codec,
        format=form,
        pts=[3480 + 40 * k for k in range(25)],
        time_base=Fraction(1, 1000),
    )
    assert told(tmp_path, path.read_bytes()) == (25, [])


# --- what is lost is told ---


@pytest.mark.parametrize("name", ["mkv", "webm", "live.mkv", "fragments.mp4", "ogv", "flv", "ts"])
def test_a_hole_in_an_uneven_recording_is_told(
    tmp_path: Path, whole: dict[str, bytes], name: str
) -> None:
    data = whole[name]
    for begin, end in ((0.45, 0.6), (0.7, 0.83)):
        count, sentences = told(tmp_path, without(data, begin, end))
        assert count < 40
        assert sentences
        zeroed = data[: int(len(data) * begin)]
        zeroed += bytes(int(len(data) * end) - len(zeroed)) + data[int(len(data) * end) :]
        assert told(tmp_path, zeroed)[1]


@pytest.mark.parametrize("name", ["mkv", "webm", "live.mkv", "fragments.mp4", "ogv", "flv", "wmv"])
def test_an_uneven_recording_that_breaks_off_within_a_part_says_so(
    tmp_path: Path, whole: dict[str, bytes], name: str
) -> None:
    for share in (0.55, 0.7, 0.9):
        count, sentences = told(tmp_path, whole[name][: int(len(whole[name]) * share)])
        assert count < 40
        assert BREAKS_OFF in sentences


@pytest.mark.parametrize("name", ["mkv", "live.mkv", "fragments.mp4", "ogv", "flv", "ts", "wmv"])
def test_a_tail_that_was_never_written_is_told(
    tmp_path: Path, whole: dict[str, bytes], name: str
) -> None:
    data = whole[name]
    keep = int(len(data) * 0.7)
    count, sentences = told(tmp_path, data[:keep] + bytes(len(data) - keep))
    assert count < 40
    assert {BROKEN, BREAKS_OFF} & set(sentences)


@pytest.mark.parametrize("name", ["mp4", "fragments.mp4", "flv", "wmv"])
def test_a_second_recording_that_is_not_read_is_told(
    tmp_path: Path, whole: dict[str, bytes], name: str
) -> None:
    count, sentences = told(tmp_path, whole[name] * 2)
    assert count < 80
    assert ANOTHER in sentences


def test_a_transport_stream_that_ends_within_a_packet_breaks_off(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    data = whole["ts"]
    assert len(data) % 188 == 0
    assert BREAKS_OFF in told(tmp_path, data[:-100])[1]


# --- the walk itself ---


@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize("name", CONTAINERS)
def test_it_is_the_same_however_the_bytes_come(
    whole: dict[str, bytes], name: str, piece: int
) -> None:
    """Also where FFmpeg looks elsewhere, and reads something twice."""
    for data in (whole[name], without(whole[name], 0.5, 0.6), whole[name][: len(whole[name]) // 2]):
        at_once, in_pieces = parts_of(data[:512], len(data)), parts_of(data[:512], len(data))
        assert at_once is not None and in_pieces is not None
        at_once.feed(0, data)
        for at in range(0, len(data), piece):
            in_pieces.feed(at, data[at : at + piece])
            if at % 50 == 0:
                in_pieces.feed(len(data) - 20, data[-20:] if at < len(data) - 20 else b"")
                in_pieces.feed(0, data[: min(64, at)])
        assert (at_once.broken, at_once.cut_off, at_once.complete, at_once.another) == (
            in_pieces.broken,
            in_pieces.cut_off,
            in_pieces.complete,
            in_pieces.another,
        )


def test_what_has_no_such_parts_is_not_followed() -> None:
    for head in (b"", b"RIFF", bytes(600), b"G" * 100, b"\0\0\1\xba" * 100):
        assert parts_of(head, 5000) is None


def test_only_so_many_parts_are_followed(
    whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file can be made of parts of two bytes."""
    data = without(whole["mkv"], 0.5, 0.6)
    for most, broken in ((5, 0), (1000, 1)):
        monkeypatch.setattr("ccdstream.parts._MAX_PARTS", most)
        parts = parts_of(data[:512], len(data))
        assert parts is not None
        parts.feed(0, data)
        assert parts.broken == broken


# --- fragments of MP4 ---


def at_fragment(data: bytes | bytearray, number: int, name: bytes) -> int:
    """Where the name of a box lies in the index of a fragment."""
    at = -1
    for _ in range(number + 1):
        at = data.index(b"moof", at + 1)
    return data.index(name, at)


@pytest.mark.parametrize(
    ("name", "offset", "wrong"),
    [
        ("tfdt", -4, 0),  # its size: the box takes in the samples behind it
        ("tfdt", 4, 0),  # its version
        ("tfhd", 4, 2),  # its flags
        ("traf", 0, 0),
        ("trun", 0, 0),
        ("trun", 8, 1),  # how many samples
        ("trun", 8, 0),
        ("moof", 0, int.from_bytes(b"noof")),
    ],
)
@pytest.mark.parametrize("number", [1, 3], ids=["within", "last"])
def test_a_fragment_that_ffmpeg_passes_over_is_told(
    whole: dict[str, bytes], tmp_path: Path, number: int, name: str, offset: int, wrong: int
) -> None:
    data = bytearray(whole["fragments.mp4"])
    at = at_fragment(data, number, name.encode()) + offset
    data[at : at + 4] = wrong.to_bytes(4)
    count, sentences = told(tmp_path, bytes(data))
    assert count < 40
    assert BROKEN in sentences


def test_fragments_whose_times_go_back_are_not_left_out_without_a_word(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    data = bytearray(whole["fragments.mp4"])
    at = at_fragment(data, 2, b"tfdt") + 8
    data[at : at + 8] = bytes(8)
    count, sentences = told(tmp_path, bytes(data))
    assert count < 40
    assert sentences == [f"{40 - count} frames could not be decoded"]


FRAGMENTED = {
    "as-obs": "+frag_keyframe+empty_moov",
    "with-an-index-of-its-own": "+frag_keyframe",
    "with-edits": "+frag_keyframe+empty_moov+delay_moov",
    "of-a-frame": "+frag_every_frame+empty_moov+default_base_moof",
    "dash": "+dash+frag_keyframe+delay_moov",
    "cmaf": "+cmaf+frag_keyframe+empty_moov",
    "track-by-track": "+frag_keyframe+empty_moov+separate_moof",
    "without-mfra": "+frag_keyframe+empty_moov+skip_trailer",
    "base-by-offset": "+frag_keyframe+empty_moov+omit_tfhd_offset",
    "with-sidx": "+frag_keyframe+empty_moov+default_base_moof+global_sidx",
    "hybrid": "+hybrid_fragmented+frag_keyframe",
    "negative-offsets": "+frag_keyframe+empty_moov+negative_cts_offsets",
    "with-times-of-day": "+frag_keyframe+empty_moov+default_base_moof",
}


@pytest.mark.parametrize("sound", [None, "aac"], ids=["silent", "sound"])
@pytest.mark.parametrize("flags", FRAGMENTED)
def test_nothing_is_told_of_whole_fragments(tmp_path: Path, flags: str, sound: str | None) -> None:
    options = {"movflags": FRAGMENTED[flags]}
    if flags == "with-times-of-day":
        options["write_prft"] = "wallclock"
    path = make_video(
        tmp_path / "f.mp4",
        frames=60,
        audio=sound,
        options={"g": "10", "bf": "2"},
        container_options=options,
    )
    data = path.read_bytes()
    assert data.count(b"moof") >= 2 or flags == "hybrid"  # which is made a plain one in the end
    assert told(tmp_path, data) == (60, [])


@pytest.mark.parametrize("styp", [True, False])
def test_nothing_is_told_of_joined_segments_of_dash(tmp_path: Path, styp: bool) -> None:
    options = {"seg_duration": "0.4", "use_template": "1", "use_timeline": "1"}
    make_video(
        tmp_path / "all.mpd",
        frames=60,
        format="dash",
        options={"g": "10"},
        container_options=options,
    )
    segments = sorted(tmp_path.glob("chunk-stream0-*.m4s"))
    assert len(segments) > 3
    parts = [path.read_bytes() for path in segments]
    if not styp:
        parts = [part[int.from_bytes(part[:4]) :] for part in parts]
    init = (tmp_path / "init-stream0.m4s").read_bytes()
    assert told(tmp_path, init + b"".join(parts)) == (60, [])


def test_a_fragment_that_comes_twice_or_is_empty_is_no_loss(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    data = whole["fragments.mp4"]
    begin, end = (at_fragment(data, number, b"moof") - 4 for number in (1, 2))
    empty = bytearray(data[begin : data.index(b"mdat", begin) - 4])
    at = empty.index(b"trun")
    empty[at - 4 :] = (16).to_bytes(4) + b"trun" + bytes(8)
    for name, shorter in ((b"moof", 0), (b"traf", 0)):
        box = empty.index(name) - 4
        empty[box : box + 4] = (len(empty) - box - shorter).to_bytes(4)
    with_both = data[:end] + bytes(empty) + data[begin:end] + data[end:]
    assert told(tmp_path, with_both) == (40, [])
