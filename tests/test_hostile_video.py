"""Recordings made to do harm: nothing else is opened, and time and memory stay within bounds."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import av
import pytest

from ccdstream import decode, mp4_index
from ccdstream.decode import AudioSource, VideoSource
from ccdstream.errors import CcdstreamError, VideoDecodeError, VideoOpenError
from ccdstream.picture import MAX_PIXELS
from tests.hostile import box, data_in, full_box, mp4, ogg_pages, opens_in, uint32
from tests.videos import make_video, packets_of

LIMIT_S = 60
"""For one file; it takes 1 to 5 s by itself, and tests share their cores."""
MEMORY_MB = 1500


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("jpeg") / "one.avi"
    make_video(path, codec="mjpeg", pix_fmt="yuvj420p", frames=1)
    return packets_of(path, "video")[0][1]


# --- nothing else is opened ---


def _playlist(secret: Path) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n".encode()


def _key(secret: Path) -> bytes:
    return (
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n"
        f'#EXT-X-KEY:METHOD=AES-128,URI="{secret}"\n#EXTINF:1,\ndata:,x\n#EXT-X-ENDLIST\n'
    ).encode()


def _dash(secret: Path) -> bytes:
    return (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" mediaPresentationDuration="PT1S">'
        '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
        f"<BaseURL>{secret}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    ).encode()


def _imf(secret: Path) -> bytes:
    return (
        '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016">'
        f"<Id>urn:uuid:0</Id><Annotation>{secret}</Annotation></CompositionPlaylist>"
    ).encode()


def _subtitle(secret: Path) -> bytes:
    return (
        f"# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\n{secret}\n".encode()
    )


REFERRING: dict[str, Callable[[Path], bytes]] = {
    "hls": _playlist,
    "hls-key": _key,
    "hls-file-url": lambda secret: _playlist(Path(f"file://{secret}")),
    "ffconcat": lambda secret: b"ffconcat version 1.0\nfile secret.mp4\n",
    "dash": _dash,
    "imf": _imf,
    "sdp": lambda secret: (
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        b"m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    ),
    "ffmetadata": lambda secret: f";FFMETADATA1\ntitle={secret}\nfile={secret}\n".encode(),
    "vobsub": _subtitle,
    "real-text": lambda secret: f'<window><a href="file:{secret}">x</a></window>'.encode(),
    "asx": lambda secret: f'<asx><entry><ref href="{secret}"/></entry></asx>'.encode(),
    "svg": lambda secret: f'<svg><image href="{secret}"/></svg>'.encode(),
}
POSING = ("x.mp4", "x.m3u8", "x.ffconcat", "x.mpd", "x.idx", "x.sdp", "secret%d.mp4", "x.xml")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    make_video(tmp_path / "secret.sub", format="vob", codec="mpeg2video")
    return make_video(tmp_path / "secret.mp4")


def opened(path: Path) -> tuple[list[str], str]:
    """Names of what was opened in the folder of `path` in reading all of it, and how that ended."""
    ended = "read"
    with opens_in(path.parent) as names:
        try:
            with VideoSource(path) as source, source.open_audio() as sound:
                assert len(list(source)) + len(list(sound)) > 0
        except CcdstreamError as error:
            ended = str(error)
            with suppress(VideoOpenError), AudioSource(path) as sound:
                list(sound)
    return sorted(set(names)), ended


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_the_watch_sees_what_ffmpeg_opens(secret: Path) -> None:
    """The tests below can fail: FFmpeg left alone follows, and that is seen."""
    path = secret.with_name("x.mp4")
    path.write_bytes(REFERRING["ffconcat"](secret))
    with opens_in(path.parent) as names, av.open(str(path)) as container:
        assert container.streams.video
    assert set(names) == {"x.mp4", "secret.mp4"}


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
@pytest.mark.parametrize("name", POSING)
@pytest.mark.parametrize("kind", REFERRING)
def test_a_file_that_names_others_is_the_only_one_opened(
    secret: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = secret.with_name(name)
    path.write_bytes(REFERRING[kind](secret))
    monkeypatch.chdir(secret.parent)
    names, ended = opened(path)
    assert names == [name]
    assert ended != "read" and ended.isprintable()


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
@pytest.mark.parametrize("kind", ["url", "url-relative", "alias", "urn"])
def test_samples_that_are_said_to_be_in_another_file_are_not_sought_there(
    secret: Path, kind: str, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ISO/IEC 14496-12, 8.7.2: data references. What lies at that place in this file is read."""
    reference = {
        "url": box(b"url ", bytes(4), f"file://{secret}\0".encode()),
        "url-relative": box(b"url ", bytes(4), b"secret.mp4\0"),
        "alias": data_in(secret),
        "urn": box(b"urn ", bytes(4), b"x\0", f"{secret}\0".encode()),
    }[kind]
    path = secret.with_name("refers.mov")
    path.write_bytes(mp4(jpeg, data_reference=reference))
    monkeypatch.chdir(secret.parent)
    names, _ = opened(path)
    assert names == ["refers.mov"]


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_the_alias_above_is_one_that_ffmpeg_would_follow(
    secret: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = secret.with_name("refers.mov")
    path.write_bytes(mp4(jpeg, data_reference=data_in(secret)))
    monkeypatch.chdir(secret.parent)
    follow = {"enable_drefs": "1", "use_absolute_path": "1"}
    with opens_in(path.parent) as names, av.open(str(path), options=follow):
        pass
    assert "secret.mp4" in names


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_a_matroska_file_that_names_its_neighbours_is_read_alone(secret: Path) -> None:
    """Linked segments: NextFilename and NextUID."""
    path = make_video(secret.with_name("a.mkv"), codec="ffv1", metadata={"title": "x" * 60})
    data = path.read_bytes()
    title = b"\x7b\xa9\xbc" + b"x" * 60  # Title, of 60 bytes
    linked = b"\x3e\x83\xbb\x8asecret.mp4" + b"\x3e\xb9\x23\x90" + bytes(range(16))
    linked += b"\xec" + bytes([0x80 | (len(title) - len(linked) - 2)])  # Void
    assert title in data
    path.write_bytes(data.replace(title, linked.ljust(len(title), b"\0")))
    names, ended = opened(path)
    assert (names, ended) == (["a.mkv"], "read")


def test_only_formats_of_recordings_are_read() -> None:
    referring = {"concat", "dash", "hls", "image2", "imf", "rtp", "rtsp", "sap", "sdp", "vobsub"}
    referring |= {"webm_dash_manifest", "avisynth", "vapoursynth", "lavfi", "mlv", "ffmetadata"}
    assert not referring & set(decode._FORMATS)
    assert set(decode._FORMATS) <= av.formats_available, "FFmpeg has other names for them"


def test_a_format_of_no_recording_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"WEBVTT\n\n00:00.000 --> 00:01.000\nhello\n")
    with pytest.raises(VideoOpenError) as caught:
        VideoSource(path)
    assert str(caught.value) == (
        f"cannot read {path} as a video: it is not a video, or of a format that is not read. "
        "If it is one, convert it to MP4."
    )


# --- time and memory ---

READ = """
import json, resource, sys, time
from pathlib import Path
from ccdstream.decode import VideoSource
from ccdstream.errors import CcdstreamError
try:
    with VideoSource(Path(sys.argv[1])) as source:
        count = sum(1 for _ in source)
        ended = source.problems.sentences()
except CcdstreamError as error:
    count, ended = 0, [str(error)]
if sys.platform == "linux":  # where ru_maxrss is also that of the process that started this one
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20
print(json.dumps([count, ended, peak]))
"""


def cost(path: Path) -> tuple[int, list[str]]:
    """Frames, and what is told, of reading `path` in a process within the limits above."""
    run = subprocess.run(
        [sys.executable, "-c", READ, path],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert run.returncode == 0, run.stderr
    count, told, peak_mb = json.loads(run.stdout)
    assert peak_mb < MEMORY_MB
    assert all(line.isprintable() for line in told)
    return count, told


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"samples": 80_000_000, "sample_bytes": 1}, "80000000 samples, and no recording has"),
        ({"samples": 2**32 - 1, "sample_bytes": 1}, "4294967295 samples, and no recording has"),
        ({"samples": 10**6, "sample_bytes": 1, "tracks": 50}, "50000000 samples, and no"),
        (
            {"edits": uint32(1001) + struct.pack(">IiI", 1, 0, 1 << 16) * 1001},
            "1001 edits, and no recording has more than 1000",
        ),
        ({"tracks": 1001}, "more than 1000 tracks"),
    ],
    ids=["billions", "all-that-fit", "in-many-tracks", "edits", "tracks"],
)
def test_an_index_that_claims_more_than_a_recording_holds_is_refused(
    tmp_path: Path, jpeg: bytes, claims: dict[str, int], reason: str
) -> None:
    path = tmp_path / "claims.mp4"
    path.write_bytes(mp4(jpeg, **claims))  # type: ignore[arg-type]
    with pytest.raises(VideoOpenError) as caught:
        VideoSource(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is refused: its index claims {reason}")
    assert message.endswith("The file is damaged, or made to harm: copy it again.")


@pytest.mark.parametrize("wrapped", [b"udta", b"wide", b"free"])
def test_claims_are_found_wherever_ffmpeg_looks_for_them(
    tmp_path: Path, jpeg: bytes, wrapped: bytes
) -> None:
    inner = mp4(jpeg, samples=80_000_000, sample_bytes=1)
    index = inner[inner.index(b"moov") - 4 : inner.index(b"mdat") - 4]
    path = tmp_path / "hidden.mp4"
    path.write_bytes(mp4(jpeg, user_data=box(wrapped, index[8:])))
    with pytest.raises(VideoOpenError, match="its index claims 80000001 samples"):
        VideoSource(path)


def test_a_fragment_that_claims_samples_without_a_byte_each_is_counted(
    tmp_path: Path, jpeg: bytes
) -> None:
    run = full_box(b"trun", uint32(30_000_000))
    fragment = box(b"moof", box(b"traf", full_box(b"tfhd", uint32(1)), run))
    path = tmp_path / "fragment.mp4"
    path.write_bytes(mp4(jpeg) + fragment)
    with pytest.raises(VideoOpenError, match="its index claims 30000001 samples"):
        VideoSource(path)


def test_a_compressed_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "packed.mov"
    path.write_bytes(box(b"ftyp", b"qt  ", bytes(4)) + box(b"moov", box(b"cmov", bytes(40))))
    with pytest.raises(VideoOpenError, match="a compressed index, whose size is not known"):
        VideoSource(path)


def test_an_index_is_not_walked_through_for_ever(
    tmp_path: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mp4_index, "MAX_BOXES", 100)
    path = tmp_path / "boxes.mp4"
    path.write_bytes(mp4(jpeg) + box(b"skip") * 90)
    with pytest.raises(VideoOpenError, match="its index claims more than 100 boxes"):
        VideoSource(path)


def test_a_box_too_short_for_its_numbers_does_not_make_up_for_an_excess(
    tmp_path: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mp4_index, "MAX_SAMPLES", 1000)
    path = tmp_path / "short.mp4"
    short = b"".join(box(b"stsz", b"") for _ in range(100))
    path.write_bytes(mp4(jpeg, samples=1100) + short.replace(b"stsz", b"stz2"))
    with pytest.raises(VideoOpenError, match="its index claims 1100 samples"):
        VideoSource(path)


def test_hours_of_uncompressed_sound_are_no_excess(tmp_path: Path, jpeg: bytes) -> None:
    """Where each sample is a tick long, FFmpeg has an entry a run and not a sample."""
    path = tmp_path / "sound.mov"
    path.write_bytes(mp4(b"\0\0", samples=400_000_000, sample_bytes=2, handler=b"soun"))
    with open(path, "rb", buffering=0) as file:
        assert mp4_index.excess_of(file, path.stat().st_size) == ""


@pytest.mark.parametrize("name", ["a.mp4", "f.mp4", "a.mov", "a.mkv", "a.avi", "a.ts"])
def test_a_usual_recording_claims_nothing_beyond_the_limits(tmp_path: Path, name: str) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = make_video(tmp_path / name, audio="aac" if codec == "libx264" else None, codec=codec)
    with open(path, "rb", buffering=0) as file:
        assert mp4_index.excess_of(file, path.stat().st_size) == ""


@pytest.mark.parametrize(
    ("timescale", "delta"),
    [(2**31 - 1, 1), (1, 2**31 - 1), (0, 1), (2**32 - 1, 2**32 - 1), (1, 2**32 - 1)],
)
def test_absurd_clocks_end_in_frames_at_rising_times(
    tmp_path: Path, jpeg: bytes, timescale: int, delta: int
) -> None:
    path = tmp_path / "clock.mp4"
    path.write_bytes(
        mp4(jpeg * 10, samples=10, sample_bytes=len(jpeg), timescale=timescale, delta=delta)
    )
    with VideoSource(path) as source:
        times = [frame.pts for frame in source]
    assert len(times) == 10
    assert all(a < b < 2**62 for a, b in pairwise(times))


def _grown(jpeg: bytes, height: int, width: int) -> bytes:
    """`jpeg` with another size in its header."""
    head = b"\xff\xc0\x00\x11\x08"
    assert head in jpeg
    at = jpeg.index(head) + len(head)
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :] + bytes(4_000_000)


@pytest.mark.parametrize(("height", "width"), [(60_000, 60_000), (4320, 8192), (65_500, 500)])
def test_a_picture_whose_header_claims_a_huge_size_is_not_made(
    tmp_path: Path, jpeg: bytes, height: int, width: int
) -> None:
    path = tmp_path / "huge.mp4"
    path.write_bytes(mp4(_grown(jpeg, height, width), size=(height, width)))
    count, told = cost(path)
    assert count == 0 and len(told) == 1


def test_a_picture_beyond_the_limit_is_named_with_its_size(tmp_path: Path) -> None:
    path = make_video(
        tmp_path / "8k.mkv", size=(4320, 8192), frames=1, options={"preset": "ultrafast"}
    )
    with pytest.raises(VideoDecodeError) as caught:
        VideoSource(path)
    assert str(caught.value) == (
        f"{path} has pictures of 8192x4320; up to {MAX_PIXELS} pixels are decoded, such as "
        "4096x2304. Scale the recording down first."
    )


def test_a_decoder_that_keeps_all_the_pictures_it_may_stays_within_memory(tmp_path: Path) -> None:
    """The largest picture that is decoded, and sixteen to refer to."""
    path = make_video(
        tmp_path / "4k.mkv",
        size=(2304, 4096),
        frames=24,
        options={"preset": "ultrafast", "x264-params": "ref=16:bframes=3:threads=2"},
    )
    count, told = cost(path)
    assert (count, told) == (24, [])


def _recursive(kind: bytes) -> bytes:
    """Matroska elements of unknown size within each other."""
    head = bytes.fromhex("1a45dfa3a34286810142f7810142f2810442f381084282886d6174726f736b61")
    head += bytes.fromhex("42878104428581021853806701ffffffffffffff")
    return head + (kind + bytes.fromhex("01ffffffffffffff")) * 100_000


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda jpeg: bytes(100_000_000),
    "ones": lambda jpeg: b"\xff" * 100_000_000,
    "atom-of-2**63": lambda jpeg: (
        box(b"ftyp", b"isom", bytes(4)) + struct.pack(">I4sQ", 1, b"moov", 2**63 - 1) + bytes(1000)
    ),
    "media-of-2**63": lambda jpeg: (
        box(b"ftyp", b"isom", bytes(4)) + struct.pack(">I4sQ", 1, b"mdat", 2**63 + 5) + bytes(1000)
    ),
    "nested-boxes": lambda jpeg: (
        box(b"ftyp", b"isom", bytes(4))
        + b"".join(struct.pack(">I4s", 80_008 - 8 * k, b"moov") for k in range(10_000))
    ),
    "nested-tracks-of-matroska": lambda jpeg: _recursive(bytes.fromhex("1654ae6b")),
    "nested-tags-of-matroska": lambda jpeg: _recursive(bytes.fromhex("67c8")),
    "nested-chapters-of-matroska": lambda jpeg: _recursive(b"\xb6"),
    "only-headers": lambda jpeg: mp4(b""),
    "all-samples-it-may": lambda jpeg: mp4(jpeg, samples=10_000_000, sample_bytes=1),
    "metadata": lambda jpeg: mp4(
        jpeg, user_data=box(b"udta", box(b"\xa9nam", b"\xc3\x50\0\0" + b"x" * 50_000_000))
    ),
    "many-tags": lambda jpeg: mp4(
        jpeg,
        user_data=box(
            b"udta", *(box(b"\xa9" + uint32(k)[1:], b"\0\4\0\0abcd") for k in range(30_000))
        ),
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_ends_in_frames_or_one_line_within_time_and_memory(
    tmp_path: Path, jpeg: bytes, kind: str
) -> None:
    path = tmp_path / "hostile.bin"
    path.write_bytes(HOSTILE[kind](jpeg))
    count, told = cost(path)
    assert count == 1 or len(told) == 1


def _tagged(path: Path, count: int) -> None:
    """Give a Matroska file so many tags."""

    def element(kind: str, *parts: bytes) -> bytes:
        content = b"".join(parts)
        return bytes.fromhex(kind) + struct.pack(">Q", len(content) | 1 << 56) + content

    tags = (element("67c8", element("45a3", b"%08d" % k)) for k in range(count))
    data = path.read_bytes()
    segment, cluster = data.index(bytes.fromhex("18538067")), data.index(bytes.fromhex("1f43b675"))
    head = data[: segment + 4] + b"\x01" + b"\xff" * 7 + data[segment + 12 : cluster]
    path.write_bytes(head + element("1254c367", element("7373", *tags)) + data[cluster:])


def _commented(path: Path, count: int) -> None:
    """Give an Ogg file with VP8 so many comments."""
    pages, data = [], path.read_bytes()
    while data:
        end = 27 + data[26] + sum(data[27 : 27 + data[26]])
        pages, data = [*pages, data[:end]], data[end:]
    comments = b"".join(struct.pack("<I", 10) + b"%08d=v" % k for k in range(count))
    packet = b"OVP80\x02 " + struct.pack("<II", 0, count) + comments
    path.write_bytes(pages[0] + ogg_pages(packet, pages[0][14:18], 1) + b"".join(pages[2:]))


@pytest.mark.parametrize(
    ("name", "options", "tag", "count"),
    [
        ("tags.mkv", {"codec": "ffv1"}, _tagged, 9_000),
        ("tags.mkv", {"codec": "ffv1"}, _tagged, 100_000),
        ("tags.ogv", {"codec": "libvpx", "format": "ogg"}, _commented, 9_000),
        ("tags.ogv", {"codec": "libvpx", "format": "ogg"}, _commented, 100_000),
    ],
)
def test_tags_that_keep_ffmpeg_busy_for_minutes_are_refused(
    tmp_path: Path, name: str, options: dict[str, str], tag: Callable[[Path, int], None], count: int
) -> None:
    path = make_video(tmp_path / name, **options)
    tag(path, count)
    frames, told = cost(path)
    if count < 10_000:
        assert (frames, told) == (12, [])
    else:
        assert (frames, len(told)) == (0, 1)
        assert told[0].endswith(
            "as a video: it has more tags than a recording has. Write it anew without them."
        )


def test_an_mp4_that_takes_long_to_open_is_refused_whatever_takes_so_long(
    tmp_path: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 20_000
    names = box(b"keys", uint32(0, count), *(box(b"mdta", b"%08d" % k) for k in range(count)))
    values = (box(uint32(k + 1), box(b"data", uint32(1, 0), b"v")) for k in range(count))
    handler = box(b"hdlr", uint32(0, 0), b"mdta", bytes(13))
    meta = box(b"meta", handler, names, box(b"ilst", *values))
    path = tmp_path / "tags.mp4"
    path.write_bytes(mp4(jpeg, user_data=meta))
    with VideoSource(path) as source:
        assert len(list(source)) == 1
    monkeypatch.setattr(decode, "_OPEN_CPU_S", 0.1)
    with pytest.raises(VideoOpenError, match="it has more tags than a recording has"):
        VideoSource(path)


def test_a_usual_recording_is_opened_in_a_small_part_of_the_time_it_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_OPEN_CPU_S", decode._OPEN_CPU_S / 20)
    for name in ("a.mp4", "a.mkv", "a.ts"):
        with VideoSource(make_video(tmp_path / name)) as source:
            assert len(list(source)) == 12


@pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
def test_a_recording_that_is_followed_by_nothing_but_zeros_ends(tmp_path: Path, name: str) -> None:
    """As on a disk that was full."""
    path = make_video(tmp_path / name)
    with open(path, "ab") as file:
        file.truncate(path.stat().st_size + 30_000_000)
    count, _ = cost(path)
    assert count >= 11
