"""Senders of video on loopback, for tests: they send, fall silent, die and come back when told."""

import io
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av

from tests.videos import make_video

LIMIT_S = 30.0
"""Of every wait."""

Talk = Callable[[socket.socket, threading.Event], None]
"""What a sender does with a connection: it sends, and may wait for the event that ends the test."""


def mpegts(path: Path, frames: int = 10, size: tuple[int, int] = (48, 64), **options: str) -> bytes:
    """MPEG-TS of the flat frames of `make_video`, H.264 without delay."""
    live = {"tune": "zerolatency", "preset": "ultrafast", "g": "5", "crf": "12", **options}
    make_video(path, format="mpegts", size=size, frames=frames, options=live)
    return path.read_bytes()


def sends(*parts: bytes, then_waits: bool = False) -> Talk:
    """Says all of `parts`; then it is silent until the test ends, or hangs up."""

    def talk(connection: socket.socket, ended: threading.Event) -> None:
        for part in parts:
            connection.sendall(part)
        if then_waits:
            ended.wait(LIMIT_S)

    return talk


def http(body: bytes, status: str = "200 OK", kind: str = "video/mp2t") -> bytes:
    """An answer that lasts until the connection is closed."""
    return f"HTTP/1.0 {status}\r\nContent-Type: {kind}\r\n\r\n".encode() + body


def rtsp(stream: bytes, *, then_waits: bool) -> Talk:
    """An RTSP server (RFC 2326) that sends MPEG-TS in RTP (RFC 2250) between its answers."""
    description = (
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\n"
        b"m=video 0 RTP/AVP 33\r\na=control:track\r\n"
    )
    answers = {
        "OPTIONS": (b"Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n", b""),
        "DESCRIBE": (b"Content-Type: application/sdp\r\n", description),
        "SETUP": (b"Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n", b""),
        "PLAY": (b"Session: 1\r\n", b""),
    }

    def talk(connection: socket.socket, ended: threading.Event) -> None:
        asked = connection.makefile("rb")
        method = ""
        while method != "PLAY":
            lines = [line.decode().strip() for line in iter(asked.readline, b"\r\n") if line]
            method = lines[0].split()[0]
            sequence = next(line for line in lines if line.lower().startswith("cseq"))
            head, body = answers[method]
            length = f"Content-Length: {len(body)}\r\n" if body else ""
            start = f"RTSP/1.0 200 OK\r\n{sequence}\r\n{length}".encode()
            connection.sendall(start + head + b"\r\n" + body)
        for number, begin in enumerate(range(0, len(stream), 7 * 188)):
            packet = struct.pack(">BBHII", 0x80, 33, number, number * 900, 1)
            packet += stream[begin : begin + 7 * 188]
            connection.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)
        if then_waits:
            ended.wait(LIMIT_S)

    return talk


@contextmanager
def serving(*talks: Talk, port: int = 0) -> Iterator[int]:
    """A server on a loopback port that has a talk with each connection in turn, then closes."""
    ended = threading.Event()
    server = socket.create_server(("127.0.0.1", port))
    server.settimeout(LIMIT_S)
    bound = server.getsockname()[1]

    def serve() -> None:
        for talk in talks:
            try:
                connection, _ = server.accept()
            except OSError:  # closed: the test is over
                return
            with connection:
                connection.settimeout(LIMIT_S)
                try:
                    talk(connection, ended)
                except (ConnectionError, IndexError):  # the reader has gone
                    continue
        server.close()

    thread = threading.Thread(target=serve, name="server")
    thread.start()
    try:
        yield bound
    finally:
        ended.set()
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)  # wakes accept
        server.close()
        thread.join(LIMIT_S)


def free_udp_port() -> int:
    """A port that nobody listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def sending_udp(port: int, stream: bytes) -> Iterator[threading.Event]:
    """Sends `stream` again and again until the event that it gives is set; then it is silent."""
    silent = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not silent.is_set():
                for begin in range(0, len(stream), 7 * 188):
                    sender.sendto(stream[begin : begin + 7 * 188], ("127.0.0.1", port))
                    if silent.wait(0.002):
                        return

    thread = threading.Thread(target=send, name="udp sender")
    thread.start()
    try:
        yield silent
    finally:
        silent.set()
        thread.join(LIMIT_S)


def remuxed(parts: list[bytes]) -> bytes:
    """One MPEG-TS of several, one after the other in time, whatever their sizes."""
    out = io.BytesIO()
    with av.open(out, "w", format="mpegts") as write:
        stream = None
        shift = 0
        for part in parts:
            with av.open(io.BytesIO(part)) as read:
                if stream is None:
                    stream = write.add_stream_from_template(read.streams.video[0])
                last = 0
                for packet in read.demux(video=0):
                    if packet.size:
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        last = max(last, packet.pts)
                        packet.stream = stream
                        write.mux(packet)
                shift = last + 3600
    return out.getvalue()
