"""What opening promises: one local file is read and nothing else, and what cannot be is named."""

import errno
import os
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import av
import pytest

from ccdstream import container
from ccdstream.decode import VideoSource
from ccdstream.errors import CcdstreamError, VideoOpenError, show_path
from ccdstream.packets import AudioSource
from tests.hostile import box, cost, data_in, mp4, ogg_pages, opens_in, refused, renumbered, uint32
from tests.videos import busy_video, cut, flip_bits, index_of, make_video

# --- no recording at all ---


def test_a_missing_file_is_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "gone.mp4"
    assert refused(path) == (
        f"cannot open {path}: No such file or directory. "
        "Check that the path exists and may be read."
    )


def test_a_folder_is_no_recording(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path} is a folder. Pass the recordings in it, as files."


def test_an_empty_file_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "e.mp4"
    path.touch()
    assert refused(path) == f"{path} is empty (0 bytes). Copy the recording again."


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.mp4")
    assert "is not a regular file" in refused(tmp_path / "p.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    path = make_video(tmp_path / "locked.mp4")
    path.chmod(0)
    assert "Permission denied" in refused(path)


def test_an_unreadable_file_says_so_even_to_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(container, "OneFile", denied)
    path = make_video(tmp_path / "locked.mp4")
    assert refused(path) == (
        f"cannot open {path}: Permission denied. Check that the path exists and may be read."
    )


NOT_VIDEO: dict[str, bytes] = {
    "text": b"The quick brown fox jumps over the lazy dog.\n" * 200,
    "terminal-text": b"\x1b[31mred\x1b[0m\r\n" * 300,
    "zeros": bytes(5000),
    "noise": bytes((k * k * 31 + k) % 251 for k in range(20_000)),
    "one-byte": b"\0",
    "subtitles": b"1\n00:00:01,000 --> 00:00:02,000\nhello\n\n" * 9,
    "xml": b'<?xml version="1.0"?><MPD></MPD>',
}


@pytest.mark.parametrize("kind", NOT_VIDEO)
@pytest.mark.parametrize("name", ["x.mp4", "x.txt", "x.yuv"])
def test_what_is_no_video_is_refused_whatever_its_name(
    tmp_path: Path, kind: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(NOT_VIDEO[kind])
    message = refused(path)
    assert "cannot read" in message or "has no video stream" in message


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    source = make_video(tmp_path / "both.mp4", audio="aac")
    with av.open(str(source)) as read, av.open(str(tmp_path / "a.mp4"), "w") as write:
        stream = write.add_stream_from_template(read.streams.audio[0], opaque=True)
        for packet in read.demux(audio=0):
            if packet.size:
                packet.stream = stream
                write.mux(packet)
    assert refused(tmp_path / "a.mp4").endswith(
        "a.mp4 has no video stream. Pass the recording itself, not its sound."
    )


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_an_mp4_without_its_index_says_what_happened(tmp_path: Path, share: float) -> None:
    whole = busy_video(tmp_path / "whole.mp4")
    assert "it is missing or not whole. The recording was cut off" in refused(
        cut(whole, tmp_path / "cut.mp4", share)
    )


def test_a_disk_that_fails_at_once_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead(container.OneFile):
        def read(self, count: int) -> bytes:
            self.error = OSError(errno.EIO, os.strerror(errno.EIO))
            return b""

    path = make_video(tmp_path / "d.mp4")
    monkeypatch.setattr(container, "OneFile", Dead)
    assert refused(path).endswith("as a video: Input/output error. Check the disk.")


def test_trying_places_that_do_not_exist_prints_no_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """PyAV prints one where two calls of a file object fail in a row."""
    path = make_video(tmp_path / "s.mp4")
    file = container.OneFile(path)
    assert file.seek(-(10**9), os.SEEK_END) < 0
    file.close()
    for seed in range(30):
        broken = flip_bits(path, tmp_path / "b.mp4", seed=seed, flips=40)
        try:
            with VideoSource(broken) as source:
                list(source)
        except CcdstreamError as error:
            assert "\n" not in str(error)
    assert capfd.readouterr() == ("", "")


# --- names ---

NAMES = {
    "blank": "a b.mp4",
    "blank-in-front": " a.mp4",
    "unicode": "Kolon 大腸 é.mp4",
    "dash": "-x.mp4",
    "newline": "two\nlines.mp4",
    "pattern": "a%03d.mp4",
    "protocol": "proto:name.mp4",
    "file-protocol": "file:name.mp4",
    "concat-protocol": "concat:a.mp4|b.mp4",
    "markup": "[bold]x.mp4",
    "not-utf8": os.fsdecode(b"\xff\xfe.mp4"),
    "longest": "x" * 251 + ".mp4",
    "no-suffix": "recording",
    "wrong-suffix": "recording.jpg",
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_is_only_a_name(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it stands alone, without a folder in front."""
    data = make_video(tmp_path / "plain.mp4", audio="aac").read_bytes()
    path = tmp_path / NAMES[kind]
    path.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    for named in (path, Path(NAMES[kind])):
        with VideoSource(named) as source, source.open_audio() as audio:
            assert [index_of(frame.y) for frame in source] == list(range(12))
            assert len(list(audio)) > 10


@pytest.mark.parametrize("name", ["two\nlines", " blank ", "\x1b[31m", os.fsdecode(b"\xff")])
def test_a_message_is_one_line_whatever_the_name(tmp_path: Path, name: str) -> None:
    message = refused(tmp_path / (name + ".mp4"))
    assert message.isprintable()


def test_plain_names_are_shown_as_they_are() -> None:
    assert show_path(Path("Kolon 大腸/a b.mp4")) == "Kolon 大腸/a b.mp4"
    assert show_path("a\nb") == "'a\\nb'"
    assert show_path("") == "''"


def test_a_name_with_a_null_byte_is_refused_and_not_a_crash() -> None:
    with pytest.raises(VideoOpenError, match="null byte"):
        VideoSource(Path("a\0b.mp4"))


# --- nothing else is opened ---


def hls(folder: Path) -> bytes:
    return b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.48,\nsecret.ts\n#EXT-X-ENDLIST\n"


def hls_absolute(folder: Path) -> bytes:
    url = f"file://{folder}/secret.ts"
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n".encode()


def concat(folder: Path) -> bytes:
    return b"ffconcat version 1.0\nfile secret.ts\n"


def sdp(folder: Path) -> bytes:
    return (
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        b"m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    )


@pytest.mark.parametrize("locks", ["both", "protocols-alone", "formats-alone"])
@pytest.mark.parametrize("script", [hls, hls_absolute, concat, sdp])
@pytest.mark.parametrize("name", ["x.mp4", "x.m3u8"])
def test_a_script_that_poses_as_a_video_opens_nothing_else(
    tmp_path: Path,
    name: str,
    script: Callable[[Path], bytes],
    locks: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two locks, each tried: formats that refer are refused, and FFmpeg may open no other file."""
    make_video(tmp_path / "secret.ts", format="mpegts")
    path = tmp_path / name
    path.write_bytes(script(tmp_path))
    if (script, name) in ((concat, "x.mp4"), (hls, "x.m3u8")):
        with av.open(str(path)) as followed:
            assert followed.streams.video, "FFmpeg would not follow it: this test tests nothing"
    if locks == "protocols-alone":
        monkeypatch.setattr(container, "_FORMATS", (*container._FORMATS, "hls", "concat", "sdp"))
    if locks == "formats-alone":
        monkeypatch.setattr(container, "_PROTOCOLS", "file,crypto,udp,rtp")
    monkeypatch.chdir(tmp_path)
    assert refused(path) == (
        f"{path} names other files instead of holding a recording. Pass the recording itself."
    )
    with pytest.raises(VideoOpenError):
        AudioSource(path)


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
    assert not referring & set(container._FORMATS)
    assert set(container._FORMATS) <= av.formats_available, "FFmpeg has other names for them"


def test_a_format_of_no_recording_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"WEBVTT\n\n00:00.000 --> 00:01.000\nhello\n")
    with pytest.raises(VideoOpenError) as caught:
        VideoSource(path)
    assert str(caught.value) == (
        f"cannot read {path} as a video: it is not a video, or of a format that is not read. "
        "If it is one, convert it to MP4."
    )


# --- time ---


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
    head = pages[0] + ogg_pages(packet, pages[0][14:18], 1)
    rest = (renumbered(page, k) for k, page in enumerate(pages[2:], head.count(b"OggS")))
    path.write_bytes(head + b"".join(rest))


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
    monkeypatch.setattr(container, "_OPEN_CPU_S", 0.1)
    with pytest.raises(VideoOpenError, match="it has more tags than a recording has"):
        VideoSource(path)


def test_a_usual_recording_is_opened_in_a_small_part_of_the_time_it_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "_OPEN_CPU_S", container._OPEN_CPU_S / 20)
    for name in ("a.mp4", "a.mkv", "a.ts"):
        with VideoSource(make_video(tmp_path / name)) as source:
            assert len(list(source)) == 12
