"""What the user writes after `--device`."""

import os
import sys
import threading
from pathlib import Path

import pytest

from ccdstream.errors import VideoOpenError
from ccdstream.live.camera import CameraSource
from ccdstream.live.paced import PacedFile
from ccdstream.live.records import Wanted
from ccdstream.live.sources import open_source, show_url
from ccdstream.live.url import FfmpegSource
from tests.senders import mpegts
from tests.videos import make_video


@pytest.mark.parametrize(
    ("device", "kind", "name", "ends"),
    [
        ("-", FfmpegSource, "the standard input", True),
        ("pipe:", FfmpegSource, "the standard input", True),
        ("lavfi:testsrc2=size=64x48:rate=25", FfmpegSource, "lavfi:testsrc2=", True),
        ("rtsp://scope.local/live", FfmpegSource, "rtsp://scope.local/live", False),
        ("udp://@239.0.0.1:1234", FfmpegSource, "udp://@239.0.0.1:1234", False),
        ("RTSP://me:pw@scope/live", FfmpegSource, "RTSP://me:***@scope/live", False),
        ("0", CameraSource, "", False),
    ],
)
def test_a_source_is_told_by_what_it_is_called(
    device: str, kind: type, name: str, ends: bool
) -> None:
    source = open_source(device, Wanted())
    assert isinstance(source, kind)
    assert source.name.startswith(name) and source.ends is ends


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="V4L2")
def test_numbers_and_paths_of_cameras_are_the_same_on_linux() -> None:
    for device in ("3", "/dev/video3"):
        source = open_source(device, Wanted())
        assert isinstance(source, CameraSource) and source.name == "/dev/video3"


def test_a_recording_needs_pace_and_only_a_recording_takes_it(tmp_path: Path) -> None:
    path = str(make_video(tmp_path / "a.mp4"))
    with pytest.raises(VideoOpenError, match="Add --pace"):
        open_source(path, Wanted())
    assert isinstance(open_source(path, Wanted(), pace=True), PacedFile)
    with pytest.raises(VideoOpenError, match="--pace is for recordings"):
        open_source("rtsp://scope/live", Wanted(), pace=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    data = mpegts(tmp_path / "a.ts", frames=12)
    source = open_source(str(fifo), Wanted())
    writer = threading.Thread(target=fifo.write_bytes, args=(data,))  # waits for who reads
    writer.start()
    with source.connect() as connection:
        frames = list(iter(connection.read, None))
    writer.join()
    assert len(frames) == 12 and source.ends


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("", "nothing called ''"),
        ("no-such-file.mp4", "nothing called no-such-file.mp4"),
        (".", "is a folder"),
        ("file:///tmp/a.mp4", "Pass its path"),
        ("nonsense:thing", "cannot tell what nonsense:thing names"),
        ("rtsp://", "cannot tell what rtsp:// names"),
        ("lavfi:", "cannot tell what lavfi: names"),
        ("tcp://127.0.0.1", "tcp://127.0.0.1 names no port. Write tcp://HOST:PORT"),
        ("udp://@239.0.0.1:0", "names no port"),
        ("rtp://scope:no", "names no port"),
        ("no\nfile", r"'no\\nfile'"),
        ("no\0file", "nothing called"),
    ],
)
def test_anything_else_is_one_clear_error(device: str, message: str) -> None:
    with pytest.raises(VideoOpenError, match=message) as caught:
        open_source(device, Wanted())
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://host:554/live", "rtsp://host:554/live"),
        ("rtsp://user@host/live", "rtsp://user@host/live"),
        ("rtsp://user:hunter2@host/live", "rtsp://user:***@host/live"),
        ("rtsp://user:hun@ter2@host/live", "rtsp://user:***@host/live"),
        ("rtsp://user:hun/ter2@host/live", "rtsp://user:***@host/live"),
        ("rtsp://user:hun?ter#2@host/live", "rtsp://user:***@host/live"),
        ("rtsp://user:hun\nter2@host/live", "rtsp://user:***@host/live"),
        ("rtsp://:hunter2@host/live", "rtsp://:***@host/live"),
        ("srt://host:9?passphrase=hunter2&mode=caller", "srt://host:9?passphrase=***&mode=caller"),
        ("http://host/a?x=1&API_KEY=hunter2", "http://host/a?x=1&API_KEY=***"),
        ("http://host/a\nb", "'http://host/a\\nb'"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert show_url(url) == shown
