"""The page's server over real sockets on loopback: routes, messages, and how it ends."""

import http.client
import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import ccdstream.live.serve as serve
from ccdstream.errors import OutputError
from ccdstream.frames import Colour, Frame
from ccdstream.live.board import Board, Request
from ccdstream.live.records import TIME_BASE, AlertCard, Shown, Status
from ccdstream.live.serve import MOST_WATCHERS, Watch, _addresses

PAGE = Path(serve.__file__).parent / "page"


def grey(level: int) -> Frame:
    flat = np.full((32, 48), level, np.uint8)
    chroma = np.full((16, 24), 128, np.uint8)
    return Frame(flat, chroma, chroma, 0, TIME_BASE, Colour("bt601", full_range=True))


def shown(number: int, *, level: int = 90, status: str = "READY", **more: Any) -> Shown:
    lost = status == "NO SIGNAL"
    about: dict[str, Any] = {
        "frame": None if lost else grey(level), "number": number, "stream_s": number / 25,
        "captured_at_s": time.monotonic(), "status": Status(status, "cause"),
        "state": "" if lost else "NORMAL", "score": None if lost else 0.75, "delay_s": 0.02,
    }  # fmt: skip
    return Shown(**(about | more))


def card(number: int, **more: Any) -> AlertCard:
    about: dict[str, Any] = {
        "number": number, "opened_s": 3.0, "opened_wall_s": 1.7e9, "closed_s": None,
        "peak_s": 3.5, "peak_score": 0.9934567, "clock": 4, "thumbnail": b"\xff\xd8picture",
    }  # fmt: skip
    return AlertCard(**(about | more))


def get(watch: Watch, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    address = watch.url.removeprefix("http://").partition("/")[0]
    to = http.client.HTTPConnection(address, timeout=30)
    try:
        to.request("GET", path, headers=headers)
        answer = to.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        to.close()


class Watcher:
    """What a browser does, without one."""

    def __init__(self, channel: ClientConnection) -> None:
        self.channel = channel
        self.told: dict[str, Any] = {}

    def hear(self) -> tuple[dict[str, Any], bytes]:
        """The next message, not yet acknowledged."""
        data = self.channel.recv(timeout=30)
        assert isinstance(data, bytes)
        (length,) = struct.unpack(">I", data[:4])
        self.told = json.loads(data[4 : 4 + length])
        return self.told, data[4 + length :]

    def say(self, **message: Any) -> None:
        self.channel.send(json.dumps(message))

    def acknowledge(self) -> None:
        self.say(ack=self.told["sequence"], drawn=True)

    def until(self, key: str, value: Any = None) -> tuple[dict[str, Any], bytes]:
        """Acknowledge messages until one has the key (with that value)."""
        for _ in range(200):
            header, jpeg = self.hear()
            self.acknowledge()
            if key in header and value in (None, header[key]):
                return header, jpeg
        raise AssertionError(f"no message with {key} {value}")


@contextmanager
def watching(watch: Watch, **more: Any) -> Iterator[Watcher]:
    address = watch.url.replace("http", "ws").partition("?")[0] + "watch"
    with connect(address, max_size=None, proxy=None, **more) as channel:
        yield Watcher(channel)


def test_the_page_and_its_files_are_served_and_ask_for_nothing_from_elsewhere() -> None:
    with Watch(Board()) as watch:
        assert watch.url.startswith("http://127.0.0.1:")
        for path, kind in (
            ("/", "text/html"), ("/page.js", "text/javascript"), ("/style.css", "text/css"),
            ("/icon.svg", "image/svg+xml"),
        ):  # fmt: skip
            status, headers, body = get(watch, path)
            assert status == 200 and headers["content-type"].startswith(kind), path
            assert headers["x-content-type-options"] == "nosniff"
            text = body.decode().replace("http://www.w3.org/2000/svg", "")
            assert "http://" not in text and "https://" not in text and "@import" not in text
            if path == "/":
                assert "Research use only. Not a medical device." in text
                assert "polyp" not in text.lower() and "detect" not in text.lower()
        assert get(watch, "/nothing")[0] == 404
        assert get(watch, "/../errors.py")[0] == 404


def test_health_is_the_status_and_fails_without_a_signal() -> None:
    board = Board()
    with Watch(board) as watch:
        assert get(watch, "/healthz")[0] == 503
        board.show(shown(1, status="UNCLEAR"))
        assert get(watch, "/healthz")[::2] == (200, b"UNCLEAR cause\n")
        board.show(shown(2, status="NO SIGNAL"))
        assert get(watch, "/healthz")[::2] == (503, b"NO SIGNAL cause\n")


def test_metrics_are_served_beside_it() -> None:
    board = Board()
    board.count({"captured": 5})
    with Watch(board) as watch:
        status, headers, body = get(watch, "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain; version=")
    assert b"ccdstream_live_frames_captured_total 5.0" in body


def test_the_picture_of_an_alert_is_served_while_it_is_listed() -> None:
    board = Board()
    board.put_alert(card(3))
    with Watch(board) as watch:
        status, headers, body = get(watch, "/alerts/3.jpg")
        assert (status, headers["content-type"], body) == (200, "image/jpeg", b"\xff\xd8picture")
        board.drop_alert(3)
        assert get(watch, "/alerts/3.jpg")[0] == 404
        assert get(watch, f"/alerts/{'9' * 5000}.jpg")[0] == 404
    assert watch.failed is None


def test_a_watcher_gets_what_is_known_and_then_pictures_with_their_header() -> None:
    board = Board()
    board.tell({"source": "cam", "enter": 0.95})
    board.count({"captured": 4, "delay.x.p50": float("nan")})
    board.put_alert(card(1, closed_s=4.0))
    board.show(shown(1, level=200))
    with Watch(board) as watch, watching(watch) as watcher:
        header, jpeg = watcher.hear()
        assert header["facts"]["source"] == "cam" and "version" in header["facts"]
        assert header["counters"]["captured"] == 4 and "delay.x.p50" not in header["counters"]
        assert header["points"] == [[0.04, 0.75, 1]]
        assert header["alerts"] == [
            {"number": 1, "opened_s": 3.0, "opened_wall_s": 1.7e9, "closed_s": 4.0, "peak_s": 3.5,
             "peak_score": 0.993457, "clock": 4, "thumbnail": True}
        ]  # fmt: skip
        assert header["status"] == ["READY", "cause"] and header["over"] is False
        assert (header["picture"], header["number"], header["stream_s"]) == ("new", 1, 0.04)
        assert (header["state"], header["score"], header["delay_s"]) == ("NORMAL", 0.75, 0.02)
        assert 0 <= header["age_s"] < 30
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert picture.shape == (32, 48) and abs(int(picture[5, 5]) - 200) <= 2

        watcher.acknowledge()
        board.show(shown(2, level=40))
        header, jpeg = watcher.until("picture", "new")
        assert header["number"] == 2 and header["points"] == [[0.08, 0.75, 1]]
        assert not {"facts", "alerts"} & set(header)  # what it knows is not told again


def test_a_slow_watcher_gets_the_newest_picture_and_none_before_it_has_the_last() -> None:
    board = Board()
    board.show(shown(1))
    with Watch(board) as watch, watching(watch) as slow, watching(watch) as quick:
        assert slow.hear()[0]["number"] == 1
        for number in range(2, 12):
            board.show(shown(number, level=number * 10))
            quick.until("number", number)  # time enough to send it to the slow one too
        with pytest.raises(TimeoutError):
            slow.channel.recv(timeout=0.2)
        slow.acknowledge()
        header, jpeg = slow.hear()
        assert (header["number"], header["picture"]) == (11, "new")
        assert len(header["points"]) == 10  # scores are not lost with the pictures
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert abs(int(picture[5, 5]) - 110) <= 2


def test_a_picture_is_encoded_once_for_all_and_not_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    real = serve.jpeg_of

    def counted(frame: Frame) -> bytes:
        made.append(int(frame.y[0, 0]))
        return real(frame)

    monkeypatch.setattr(serve, "jpeg_of", counted)
    board = HeardBoard()
    with Watch(board) as watch:
        board.show(shown(1, level=1))
        assert get(watch, "/healthz")[0] == 200
        assert made == []
        with watching(watch) as one, watching(watch) as other:
            for watcher in (one, other):
                watcher.until("number", 1)
            board.show(shown(2, level=2))
            for watcher in (one, other):
                watcher.until("number", 2)
            assert made == [1, 2]
            one.say(pictures=False)
            other.say(pictures=False)
            # each is heard before the next picture, for an answer to a later message came back
            for watcher in (one, other):
                watcher.say(ask="mark")
            wait_until(lambda: len(board.requests_seen) == 2, board)
            board.show(shown(3, level=3))
            header, jpeg = one.until("number", 3)
            assert (header["picture"], jpeg, made) == ("kept", b"", [1, 2])


def test_without_a_signal_the_picture_is_withdrawn_and_the_cause_told() -> None:
    board = Board()
    board.show(shown(1))
    with Watch(board) as watch, watching(watch) as watcher:
        watcher.until("picture", "new")
        board.show(shown(2, status="NO SIGNAL"))
        header, jpeg = watcher.until("picture", "none")
        assert header["status"] == ["NO SIGNAL", "cause"] and jpeg == b""


def test_a_session_that_is_stuck_loses_its_picture_though_nobody_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ccdstream.live.metrics.STALLED_S", 0.3)
    board = Board()
    board.show(shown(1))
    with Watch(board) as watch, watching(watch) as watcher:
        header, _ = watcher.until("picture", "none")
        assert header["status"][0] == "NO SIGNAL"


def test_alerts_are_told_as_they_change_and_go() -> None:
    board = Board()
    with Watch(board) as watch, watching(watch) as watcher:
        board.put_alert(card(1))
        board.put_alert(card(2))
        header, _ = watcher.until("alerts")
        numbers = {told["number"] for told in header["alerts"]}
        while numbers != {1, 2}:
            numbers |= {told["number"] for told in watcher.until("alerts")[0]["alerts"]}
        board.put_alert(card(1, closed_s=9.0))
        header, _ = watcher.until("alerts")
        assert [(told["number"], told["closed_s"]) for told in header["alerts"]] == [(1, 9.0)]
        board.drop_alert(2)
        assert watcher.until("gone", [2])[0]["alerts"] == []


class HeardBoard(Board):
    """Keeps what is asked for, to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.requests_seen: list[Request] = []

    def ask(self, request: Request) -> None:
        super().ask(request)
        self.requests_seen.append(request)


def wait_until(met: Any, board: Board) -> None:
    """Wait for something that another thread does; AssertionError if it never does."""
    for _ in range(3000):
        if met():
            return
        board.wait(10**9, 0.01)
    raise AssertionError("never happened")


def test_marks_and_snapshots_reach_the_board_in_plain_text() -> None:
    board = HeardBoard()
    with Watch(board) as watch, watching(watch) as watcher:
        watcher.say(ask="mark", note=" appendix \n orifice\x1b[31m ", at_s=12.5)
        watcher.say(ask="snapshot", at_s=None)
        watcher.say(ask="mark", note="x" * 500)
        wait_until(lambda: len(board.requests_seen) == 3, board)
    assert board.requests() == [
        Request("mark", "appendix orifice [31m", 12.5),
        Request("snapshot", ""),
        Request("mark", "x" * 200),
    ]


@pytest.mark.parametrize(
    "message",
    ["{", "[]", "{}", '{"ask":"erase"}', '{"ask":"mark","note":5}', '{"ask":"mark","at_s":NaN}',
     '{"ask":"mark","at_s":"x"}', '{"ack":99}', '{"ask":["mark"]}', b"bytes", "x" * 5000,
     "[" * 4000, '{"ask":"mark","at_s":' + "9" * 400 + "}"],
)  # fmt: skip
def test_a_watcher_that_says_nonsense_is_sent_away_and_the_others_stay(message: str) -> None:
    board = Board()
    with Watch(board) as watch, watching(watch) as odd, watching(watch) as other:
        odd.channel.send(message)
        with pytest.raises(ConnectionClosed):
            for _ in range(100):
                odd.channel.recv(timeout=30)
        board.show(shown(1))
        other.until("number", 1)
    assert board.requests() == []
    assert watch.failed is None, "a fault of the watcher is none of the session"


def test_no_more_than_a_few_may_watch() -> None:
    with Watch(Board()) as watch, ExitStack() as others:
        for _ in range(MOST_WATCHERS):
            others.enter_context(watching(watch)).hear()
        with watching(watch) as late, pytest.raises(ConnectionClosed) as refused:
            late.hear()
        told = refused.value.rcvd
        assert told is not None and told.code == 1013 and "watch already" in told.reason


def test_connections_that_say_nothing_do_not_use_up_the_files_of_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serve, "MOST_CONNECTIONS", 3)
    with Watch(Board(), token="abcdefgh1234") as watch, ExitStack() as open_ones:
        address = watch.url.removeprefix("http://").partition("/")[0]
        host, port = address.split(":")
        idle = [
            open_ones.enter_context(socket.create_connection((host, int(port)), 30))
            for _ in range(4)
        ]
        with suppress(ConnectionResetError):
            assert idle[3].recv(1) == b"", "one too many is hung up on"
        idle[0].sendall(f"GET / HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        assert idle[0].recv(12) == b"HTTP/1.1 403", "and the others are answered"
    assert watch.failed is None


def test_what_the_page_measures_is_counted() -> None:
    board = Board()
    board.show(shown(1))
    with Watch(board) as watch, watching(watch) as watcher:
        watcher.until("picture", "new")
        wait_until(lambda: "delay.capture_to_screen.p95" in board.counters(), board)
        assert board.counters()["watchers"] == 1 and board.counters()["pictures"] == 1


def test_other_sites_cannot_connect() -> None:
    with Watch(Board()) as watch:
        with pytest.raises(InvalidStatus) as refused, watching(watch, origin="http://evil.example"):
            pass
        assert refused.value.response.status_code == 403
        assert get(watch, "/", Host="evil.example")[0] == 403


def test_a_token_is_needed_on_every_route_where_one_is_given() -> None:
    board = Board()
    board.show(shown(1))
    board.put_alert(card(1))
    with Watch(board, token="letmein-please") as watch:
        assert watch.url.endswith("/?token=letmein-please")
        for path in ("/", "/page.js", "/style.css", "/healthz", "/metrics", "/alerts/1.jpg", "/no"):
            assert get(watch, path)[0] == 403, path
        with pytest.raises(InvalidStatus), watching(watch):
            pass
        status, headers, _ = get(watch, "/?token=letmein-please")
        kept = headers["set-cookie"].partition(";")[0]
        assert status == 200
        assert get(watch, "/metrics", Cookie=kept)[0] == 200
        with watching(watch, additional_headers={"Cookie": kept}) as watcher:
            assert watcher.hear()[0]["picture"] == "new"


def test_another_address_has_a_token_though_none_was_given() -> None:
    with Watch(Board(), host="0.0.0.0") as first, Watch(Board(), host="0.0.0.0") as second:
        tokens = [watch.url.partition("?token=")[2] for watch in (first, second)]
        assert all(len(token) >= 20 for token in tokens) and tokens[0] != tokens[1]
        port = int(first.url.rpartition("/")[0].rpartition(":")[2])
        to = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            to.request("GET", "/healthz")
            assert to.getresponse().status == 403
        finally:
            to.close()


def test_a_host_that_stands_for_every_address_is_told_as_addresses_that_others_can_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = ["192.0.2.7", "2001:db8::7"]
    monkeypatch.setattr("ccdstream.live.serve.own_addresses", lambda: found)
    with Watch(Board(), host="0.0.0.0", token="let-me-see") as watch:
        port = watch.url.rpartition("/")[0].rpartition(":")[2]
        assert watch.urls == [f"http://192.0.2.7:{port}/?token=let-me-see"]
    assert _addresses("::", 80, None) == ["http://192.0.2.7:80/", "http://[2001:db8::7]:80/"]
    found.clear()
    assert _addresses("0.0.0.0", 80, None) == [f"http://{socket.gethostname()}:80/"]


@pytest.mark.parametrize("token", ["", "short", "with space 1", "semi;colon1"])
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        Watch(Board(), token=token)


def test_a_port_in_use_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OutputError) as found, Watch(Board(), port=port):
            pass
    assert str(found.value) == (
        f"cannot serve the page on 127.0.0.1: port {port} is in use. "
        "Choose another port, or 0 for a free one."
    )


def test_an_address_that_is_not_this_machines_is_one_clear_error() -> None:
    with (
        pytest.raises(OutputError, match=r"cannot serve the page on 192\.0\.2\.1 port 0"),
        Watch(Board(), host="192.0.2.1"),
    ):
        pass


def test_leaving_ends_the_server_though_browsers_are_connected_and_one_is_stuck() -> None:
    board = Board()
    board.show(shown(1))
    with ExitStack() as clients:
        with Watch(board) as watch:
            port = int(watch.url.rstrip("/").rpartition(":")[2])
            watchers = [clients.enter_context(watching(watch)) for _ in range(2)]
            for watcher in watchers:
                watcher.hear()
            watchers[0].acknowledge()  # and the other is stuck
            for said in (b"", b"GET / HTTP/1.1\r\nHost: "):
                clients.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(said)
        for watcher in watchers:  # told, not just cut off
            with pytest.raises(ConnectionClosed) as ended:
                for _ in range(100):
                    watcher.channel.recv(timeout=30)
            assert ended.value.rcvd is not None and ended.value.rcvd.code == 1012
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_the_end_of_the_session_is_told_while_the_page_is_still_served() -> None:
    board = Board()
    board.show(shown(1))
    with Watch(board) as watch, watching(watch) as watcher:
        watcher.until("picture", "new")
        board.close()
        header, _ = watcher.until("over", True)
        assert header["picture"] == "none"


def test_a_fault_while_it_serves_is_kept_and_the_rest_is_served(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Board) -> bool:
        raise KeyError("a bug")

    board = Board()
    board.show(shown(1))
    monkeypatch.setattr("ccdstream.live.serve.healthy", broken)
    with Watch(board) as watch:
        assert watch.failed is None
        assert [get(watch, "/healthz")[0] for _ in range(3)] == [500] * 3
        with watching(watch) as watcher:
            watcher.until("picture", "new")
        while watch.failed is None:  # the answer may be out before the fault is noted
            time.sleep(0.001)
    assert "KeyError: 'a bug' (test_live_serve.py, line " in watch.failed
    assert "in broken" in watch.traceback
    assert "Traceback" not in capfd.readouterr().err, "told once, by the session"


def test_a_fault_in_what_a_browser_is_told_closes_that_connection_and_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> bytes:
        raise ValueError("no JPEG")

    board = Board()
    board.show(shown(1))
    monkeypatch.setattr("ccdstream.live.serve.jpeg_of", broken)
    with Watch(board) as watch:
        with watching(watch) as watcher, pytest.raises(ConnectionClosed) as ended:
            for _ in range(100):
                watcher.channel.recv(timeout=30)
        assert ended.value.rcvd is not None and ended.value.rcvd.code == 1011
        assert get(watch, "/healthz")[0] == 200
    assert watch.failed is not None and "no JPEG" in watch.failed


def test_a_server_that_ends_by_itself_is_told() -> None:
    with Watch(Board()) as watch:
        watch._end()  # as after a fault of its own
        watch._threads[0].join(30)
        assert watch.failed is not None and "The page is gone." in watch.failed
    with Watch(Board()) as watch:
        pass
    assert watch.failed is None, "it was told to"


def test_an_error_in_the_block_is_the_one_that_comes_out() -> None:
    with pytest.raises(KeyError, match="mine"), Watch(Board()):
        raise KeyError("mine")
