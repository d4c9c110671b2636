"""Streams that FFmpeg opens: on loopback, in the ways in which they fail."""

import os
import socket
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from time import monotonic

import numpy as np
import pytest

from ccdstream.errors import VideoOpenError
from ccdstream.frames import Frame
from ccdstream.live.capture import Capture
from ccdstream.live.records import Event, SourceLost, Wanted
from ccdstream.live.sources import show_url
from ccdstream.live.url import FfmpegSource, lavfi_source, pipe_source, url_source
from tests.senders import (
    free_udp_port,
    http,
    mpegts,
    remuxed,
    rtsp,
    sending_udp,
    sends,
    serving,
)
from tests.videos import index_of, make_video, picture

LIMIT_S = 30.0
SILENCE_S = 0.4
"""Time-out of reads in these tests."""


@pytest.fixture(autouse=True)
def no_file_left_open() -> Iterator[None]:
    """A connection that is left open holds a socket for as long as the session lasts."""
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir())) if folder.exists() else 0
    yield
    after = len(list(folder.iterdir())) if folder.exists() else 0
    assert after <= before


def stream_at(url: str, wanted: Wanted | None = None) -> FfmpegSource:
    return url_source(url, show_url(url), wanted or Wanted(), timeout_s=SILENCE_S)


def frames_of(source: FfmpegSource) -> tuple[list[Frame], str]:
    """All frames of one connection, and why it ended; empty for a plain end."""
    frames = []
    with source.connect() as connection:
        try:
            while (frame := connection.read()) is not None:
                frames.append(frame)
        except SourceLost as lost:
            return frames, str(lost)
    return frames, ""


def test_a_stream_is_decoded_at_its_own_times_and_says_what_it_is(tmp_path: Path) -> None:
    data = mpegts(tmp_path / "a.ts", frames=12)
    with serving(sends(data)) as port:
        source = stream_at(f"tcp://127.0.0.1:{port}")
        with source.connect() as connection:
            mode = connection.mode
            frames = list(iter(connection.read, None))
    assert [index_of(frame.y) for frame in frames] == list(range(12))
    steps = {(b.pts - a.pts) * a.time_base for a, b in pairwise(frames)}
    assert steps == {Fraction(1, 25)}
    assert (mode.size, mode.rate, mode.pixel_format) == ((48, 64), 25, "h264")
    assert mode.through == "FFmpeg tcp" and not source.ends


@pytest.mark.parametrize("protocol", ["tcp", "http", "rtsp"])
def test_a_sender_that_falls_silent_is_a_lost_signal(tmp_path: Path, protocol: str) -> None:
    data = mpegts(tmp_path / "a.ts", frames=12)
    talk = {
        "tcp": sends(data, then_waits=True),
        "http": sends(http(data), then_waits=True),
        "rtsp": rtsp(data, then_waits=True),
    }[protocol]
    with serving(talk) as port:
        frames, why = frames_of(stream_at(f"{protocol}://127.0.0.1:{port}/live"))
    # the demuxer holds the last picture until another begins: by the time-out it is an old one;
    # over RTP its parser holds one more
    assert [index_of(frame.y) for frame in frames] == list(range(10 if protocol == "rtsp" else 11))
    assert why == "no data for 0.4 s"


def test_a_udp_sender_that_falls_silent_is_a_lost_signal(tmp_path: Path) -> None:
    data = mpegts(tmp_path / "a.ts", frames=12)
    port = free_udp_port()
    with (
        sending_udp(port, data) as silent,
        stream_at(f"udp://127.0.0.1:{port}").connect() as stream,
    ):
        for _ in range(5):
            assert stream.read() is not None
        silent.set()
        with pytest.raises(SourceLost, match=r"no data for 0\.4 s"):
            for _ in range(10_000):
                stream.read()


def test_a_picture_from_before_a_silence_is_not_shown_after_it(tmp_path: Path) -> None:
    """Silent for a while, but not for long enough to be lost: the demuxer then gives out what it
    held, which is as old as the silence."""
    first = mpegts(tmp_path / "a.ts", frames=40)
    goes_on = threading.Event()

    def talk(connection: socket.socket, ended: threading.Event) -> None:
        connection.sendall(first)
        goes_on.wait(1.0)  # the silence itself
        connection.sendall(first)

    with serving(talk) as port:
        source = url_source(f"tcp://127.0.0.1:{port}", "s", Wanted(), timeout_s=LIMIT_S)
        frames, why = frames_of(source)
    assert why == ""
    shown = [index_of(frame.y) for frame in frames]
    # 39 % 32 is 7: the last picture of the first half came out a second late, and is left out
    assert shown == [k % 32 for k in [*range(39), *range(40)]]


def test_a_sender_that_hangs_up_ends_the_connection(tmp_path: Path) -> None:
    data = mpegts(tmp_path / "a.ts", frames=12)
    with serving(sends(http(data))) as port:
        frames, _ = frames_of(stream_at(f"http://127.0.0.1:{port}/live"))
    assert [index_of(frame.y) for frame in frames] == list(range(12))


def test_a_session_goes_on_over_a_sender_that_stalls_dies_and_comes_back(tmp_path: Path) -> None:
    data = mpegts(tmp_path / "a.ts", frames=12)
    events: list[Event] = []
    seen: list[tuple[int, int]] = []

    def take_until_lost(capture: Capture) -> None:
        connection = capture.connections
        deadline = monotonic() + LIMIT_S
        while capture.gap is None or capture.connections == connection:
            assert monotonic() < deadline
            if (captured := capture.newest(0.02)) is not None:
                seen.append((captured.connection, captured.frame.pts))

    with serving(sends(data, then_waits=True), sends(data)) as port:
        source = stream_at(f"tcp://127.0.0.1:{port}")
        with Capture(
            source,
            timeout_s=SILENCE_S,
            first_retry_s=0.02,
            longest_retry_s=0.05,
            on_event=events.append,
        ) as capture:
            # it stalls; the next connection waits until the server has done with this one
            take_until_lost(capture)
            assert not capture.signal
    opened = [event for event in events if event.kind == "gap_opened"]
    assert opened and opened[0].data["cause"].startswith("no ")
    # gone altogether, then back on the same port
    events.clear()
    seen.clear()
    source = stream_at(f"tcp://127.0.0.1:{port}")
    with Capture(
        source,
        timeout_s=SILENCE_S,
        first_retry_s=0.02,
        longest_retry_s=0.05,
        on_event=events.append,
    ) as capture:
        deadline = monotonic() + LIMIT_S
        while "connection refused" not in capture.cause:
            assert monotonic() < deadline
            assert capture.newest(0.02) is None
        with serving(sends(data), sends(data), port=port):
            while capture.connections < 2:
                assert monotonic() < deadline
                if (captured := capture.newest(0.02)) is not None:
                    seen.append((captured.connection, captured.frame.pts))
            while (captured := capture.newest(0.2)) is not None:
                seen.append((captured.connection, captured.frame.pts))
    kinds = [event.kind for event in events]
    assert kinds[:3] == ["gap_opened", "connected", "gap_closed"]
    assert kinds[3:6] == ["gap_opened", "connected", "gap_closed"]
    assert {connection for connection, _ in seen} <= {0, 1}
    pts = [pts for _, pts in seen]
    assert pts == sorted(set(pts)) and seen[-1][0] == 1


def test_a_stream_whose_packets_hold_parts_of_pictures_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "a.h264"
    make_video(path, format="h264", frames=12, options={"tune": "zerolatency"})
    data = path.read_bytes()
    with serving(sends(data), sends(data), sends(data)) as port:
        source = stream_at(f"tcp://127.0.0.1:{port}")
        for _ in range(2):  # the second time it knows, and takes one connection
            frames, _ = frames_of(source)
            assert [index_of(frame.y) for frame in frames] == list(range(12))


def test_another_size_in_mid_stream_comes_out_as_it_is_with_its_own_pixels(tmp_path: Path) -> None:
    data = remuxed(
        [
            mpegts(tmp_path / "a.ts", frames=10, size=(48, 64), aspect="16/15"),
            mpegts(tmp_path / "b.ts", frames=10, size=(64, 96), aspect="1/1"),
        ]
    )
    seen = []
    with serving(sends(data)) as port, stream_at(f"tcp://127.0.0.1:{port}").connect() as stream:
        while (frame := stream.read()) is not None:
            seen.append((frame.size, stream.mode.size, stream.mode.sample_aspect_ratio))
    before, after = (48, 64), (64, 96)
    assert seen == [(before, before, Fraction(16, 15))] * 10 + [(after, after, Fraction(1))] * 10


def test_an_interlaced_stream_becomes_progressive_frame_for_frame(
    tmp_path: Path,
) -> None:
    data = mpegts(tmp_path / "a.ts", frames=12, **{"x264-params": "interlaced=1:tff=1"})
    with serving(sends(data)) as port:
        frames, _ = frames_of(stream_at(f"tcp://127.0.0.1:{port}"))
    assert [index_of(frame.y) for frame in frames] == list(range(12))
    assert all(np.ptp(frame.y) <= 2 for frame in frames)


def test_what_is_no_video_is_a_lost_signal_that_may_come_back() -> None:
    with (
        serving(sends(b"no video at all" * 100)) as port,
        pytest.raises(SourceLost),
        stream_at(f"tcp://127.0.0.1:{port}").connect(),
    ):
        pass


def test_a_host_that_refuses_is_not_there_now() -> None:
    with serving() as port:
        pass
    with (
        pytest.raises(SourceLost, match="connection refused"),
        stream_at(f"rtsp://127.0.0.1:{port}/x").connect(),
    ):
        pass


def test_a_peer_cannot_make_it_read_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.ts"
    mpegts(secret)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    answer = http(playlist.encode(), kind="application/vnd.apple.mpegurl")
    with (
        serving(sends(answer), sends(answer)) as port,
        pytest.raises(SourceLost),
        stream_at(f"http://127.0.0.1:{port}/a.m3u8").connect(),
    ):
        pass


@pytest.mark.parametrize("case", ["wrong password", "not found", "unknown protocol"])
def test_a_password_is_in_no_message(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    status = "401 Unauthorized" if case == "wrong password" else "404 Not Found"
    talks = [sends(http(b"", status))] * 2
    with serving(*talks) as port:
        scheme = "nonsense" if case == "unknown protocol" else "http"
        url = f"{scheme}://surgeon:hunter2@127.0.0.1:{port}/x?token=hunter2"
        source = stream_at(url)
        with pytest.raises((VideoOpenError, SourceLost)) as caught, source.connect():
            pass
    if case == "not found":
        assert isinstance(caught.value, SourceLost), "it may be published later"
    else:
        assert isinstance(caught.value, VideoOpenError)
        assert "surgeon:***@127.0.0.1" in str(caught.value)
    error: BaseException | None = caught.value
    assert "hunter2" not in f"{source.name} {error!r} {error.__cause__!r}"
    assert error.__suppress_context__, "FFmpeg's own error names the whole URL"
    assert "hunter2" not in "".join(capfd.readouterr())


def test_a_protocol_that_this_ffmpeg_lacks_says_how_to_do_without() -> None:
    with (
        pytest.raises(VideoOpenError, match=r"does not know nonsense://.*--device -"),
        stream_at("nonsense://127.0.0.1:9").connect(),
    ):
        pass


def test_a_stream_that_is_not_as_asked_is_an_error_that_says_what_it_is(tmp_path: Path) -> None:
    data = mpegts(tmp_path / "a.ts", frames=12)
    wanted = Wanted(size=(1080, 1920), rate=Fraction(30))
    with (
        serving(sends(data)) as port,
        pytest.raises(VideoOpenError, match=r"asked for 1920x1080, 30 .* delivers 64x48, 25 "),
        stream_at(f"tcp://127.0.0.1:{port}", wanted).connect(),
    ):
        pass


# --- lavfi ---------------------------------------------------------------------------------------


def test_a_made_up_picture_comes_no_sooner_than_its_rate() -> None:
    source = lavfi_source("testsrc2=size=64x48:rate=50:duration=0.1", Wanted())
    with source.connect() as connection:
        began = monotonic()
        frames = list(iter(connection.read, None))
        assert monotonic() - began >= 0.08
    assert [frame.size for frame in frames] == [(48, 64)] * 5
    assert source.ends


@pytest.mark.parametrize("pix_fmt", ["yuv444p10le", "rgb24", "gray", "nv12", "yuvj422p"])
def test_other_formats_become_yuv420(pix_fmt: str) -> None:
    source = lavfi_source(
        f"color=c=white:size=65x49:rate=25:duration=0.04,format={pix_fmt}", Wanted()
    )
    frames, _ = frames_of(source)
    (frame,) = frames
    assert frame.size == (49, 65) and frame.u.shape == (25, 33)
    white = 255 if frame.colour.full_range else 235
    assert abs(int(frame.y[20, 20]) - white) <= 1 and abs(int(frame.u[10, 10]) - 128) <= 1


def test_filters_that_do_not_exist_are_an_error() -> None:
    with (
        pytest.raises(VideoOpenError, match="cannot open lavfi:nonsense"),
        lavfi_source("nonsense=1", Wanted()).connect(),
    ):
        pass


# --- pipes ---------------------------------------------------------------------------------------


def pipe_with(data: bytes) -> tuple[int, threading.Thread]:
    read, write = os.pipe()

    def fill() -> None:
        with os.fdopen(write, "wb") as pipe:
            pipe.write(data)

    thread = threading.Thread(target=fill)
    thread.start()
    return read, thread


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are not FFmpeg's there")
def test_the_end_of_a_pipe_is_the_end(tmp_path: Path) -> None:
    read, thread = pipe_with(mpegts(tmp_path / "a.ts", frames=12))
    source = pipe_source(f"pipe:{read}", "a pipe", Wanted())
    frames, why = frames_of(source)
    thread.join()
    os.close(read)
    assert [index_of(frame.y) for frame in frames] == list(range(12))
    assert why == "" and source.ends


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are not FFmpeg's there")
def test_an_mp4_with_its_index_at_its_end_is_refused_in_a_pipe_with_what_to_do(
    tmp_path: Path,
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 240, 320), np.uint8)
    grey = np.full((120, 160), 128, np.uint8)
    movie = make_video(
        tmp_path / "a.mp4",
        size=(240, 320),
        frames=8,
        picture_of=lambda k: picture((noise[k], grey, grey)),
    )
    read, thread = pipe_with(movie.read_bytes())
    with (
        pytest.raises(VideoOpenError) as found,
        pipe_source(f"pipe:{read}", "a pipe", Wanted()).connect(),
    ):
        pass
    os.close(read)
    thread.join()
    assert "--device FILE --pace" in str(found.value) and "MPEG-TS or Matroska" in str(found.value)


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are not FFmpeg's there")
def test_a_pipe_of_something_else_is_an_error() -> None:
    read, thread = pipe_with(b"no video at all" * 100)
    with (
        pytest.raises(VideoOpenError, match="a pipe"),
        pipe_source(f"pipe:{read}", "a pipe", Wanted()).connect(),
    ):
        pass
    thread.join()
    os.close(read)


# --- what is known before ------------------------------------------------------------------------


def test_a_url_that_ffmpeg_does_not_know_is_told_and_others_are_not_connected_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        for scheme in ("tcp", "http", "rtsp", "udp"):
            url = f"{scheme}://127.0.0.1:{port}/x"
            url_source(url, url, Wanted(), timeout_s=1.0).check()
        with pytest.raises(VideoOpenError, match="does not know foo://"):
            url_source(f"foo://127.0.0.1:{port}", "foo", Wanted(), timeout_s=1.0).check()
        with pytest.raises(TimeoutError):
            server.accept()


def test_filters_that_give_no_picture_are_told_at_once() -> None:
    lavfi_source("testsrc2=size=64x48:rate=25", Wanted()).check()
    with pytest.raises(VideoOpenError, match="Check its filters"):
        lavfi_source("no_such_filter", Wanted()).check()


@pytest.mark.parametrize("ratio", [Fraction(1), Fraction(64, 45)])
def test_the_shape_of_the_pixels_is_told(ratio: Fraction) -> None:
    source = lavfi_source(f"testsrc2=size=64x48:rate=50,setsar={ratio}", Wanted())
    with source.connect() as stream:
        assert stream.mode.sample_aspect_ratio == ratio
