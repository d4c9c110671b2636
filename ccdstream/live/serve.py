"""The page on which a live session is watched, served from the session's own process.

    GET /                the page; its script and style beside it
    GET /alerts/N.jpg    the picture of an alert
    GET /healthz         200 and the status, or 503 without a signal
    GET /metrics         for Prometheus
    WS  /watch           what is shown, as it comes; and what the watcher asks for

Of `/watch` the server's messages are binary: the length of a JSON header (4 bytes, big endian), the
header, and a JPEG where the header says that there is a new picture. A watcher acknowledges each
message, and the next is made only then, of what is newest: a slow browser gets fewer pictures, and
never older ones. A picture is encoded once for all who watch, and not at all for nobody.
"""

import asyncio
import errno
import ipaddress
import json
import math
import re
import secrets
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Self

from ccdstream import __version__
from ccdstream.errors import OutputError
from ccdstream.history import STATES
from ccdstream.jpeg import jpeg_of
from ccdstream.live.addresses import own_addresses
from ccdstream.live.board import Board, Request
from ccdstream.live.failures import bug
from ccdstream.live.guard import App, Guard, Receive, Scope, Send, machine_names
from ccdstream.live.metrics import (
    CAPTURE_TO_SCREEN,
    PICTURES,
    WATCHERS,
    delay_figures,
    exposition,
    healthy,
    status_now,
)
from ccdstream.live.records import AlertCard, Shown

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request as WebRequest
    from starlette.responses import Response
    from starlette.websockets import WebSocket

MOST_WATCHERS = 16
MOST_CONNECTIONS = 8 * MOST_WATCHERS
"""Open at a time, whoever made them: a browser has up to seven. Each is an open file of the
session's process, which needs some for its recordings."""
LONGEST_NOTE = 200
"""Characters of a note that are kept."""
HEARTBEAT_S = 0.5
"""A watcher hears of the server at least this often, so that silence means something."""
COUNTERS_EVERY_S = 0.5
_LOOK_EVERY_S = 0.1
"""How often the board is looked at for what comes without a picture, such as a closed alert."""
_START_S = 10.0
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{8,}")
_BIGGEST_MESSAGE = 4096
"""Bytes from a watcher."""

_PAGE = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


class Watch:
    """Serves the page while the block runs.

    On this machine alone, unless another address is named; then nothing is given without a token.
    Once it serves, nothing that fails there is raised: the session goes on without it.

    Attributes:
        failed: the first that failed while it served; None while all is well.
        traceback: of that; empty while all is well.
    """

    def __init__(
        self, board: Board, *, host: str = "127.0.0.1", port: int = 0, token: str | None = None
    ) -> None:
        """
        Args:
            board: what the session shows.
            host: address, or name of one, to listen on.
            port: 0 takes a free one.
            token: that a watcher must show; None makes one where others than this machine can
                connect, and asks for none elsewhere.

        Raises:
            ValueError: the port is none, or the token is too short to be one.
        """
        if not 0 <= port < 65536:
            raise ValueError(f"port must be from 0 to 65535, got {port}")
        if token is not None and not _TOKEN.fullmatch(token):
            raise ValueError("token must be 8 or more letters, digits, '-', '_', '.' or '~'")
        self._board = board
        self._host = host
        self._port = port
        self._token = token
        self._socket: socket.socket | None = None
        self._urls: list[str] = []
        self._encoder: ThreadPoolExecutor | None = None
        self._threads: list[threading.Thread] = []
        self._end: Callable[[], None] = lambda: None
        self._ending = threading.Event()
        self._leaving = False
        """Whether the block is being left: the server ends by itself for no other reason."""
        self._noting = threading.Lock()
        self.failed: str | None = None
        self.traceback = ""
        self._error: BaseException | None = None
        # below, for the event loop's thread alone
        self._watchers: set[_Watcher] = set()
        self._jpeg: tuple[int, asyncio.Future[bytes]] | None = None
        self._pictures = 0
        self._screen_s: deque[float] = deque(maxlen=256)

    @property
    def urls(self) -> list[str]:
        """Addresses to open, with the token where one is needed; several where the host stands for
        all of this machine's."""
        return list(self._urls)

    @property
    def url(self) -> str:
        """The likeliest of them."""
        return self._urls[0]

    def __enter__(self) -> Self:
        """Listen.

        Raises:
            OutputError: it cannot listen there.
            RuntimeError: the server does not start.
        """
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol

        class Few(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                if len(self.connections) > MOST_CONNECTIONS:
                    transport.abort()

        self._socket, loopback = _listen(self._host, self._port)
        if not loopback and self._token is None:
            self._token = secrets.token_urlsafe(16)
        port = self._socket.getsockname()[1]
        self._urls = _addresses(self._host, port, self._token)
        ready = threading.Event()
        guarded = Guard(
            self._app(ready),
            names=machine_names(self._host),
            token=self._token,
            cookie=f"ccdstream_live_{port}",  # cookies are shared by all ports of a host
        )
        config = uvicorn.Config(
            self._noted(guarded),
            ws="websockets-sansio",
            ws_max_size=_BIGGEST_MESSAGE,
            ws_per_message_deflate=False,  # JPEG does not get smaller
            ws_ping_interval=5.0,
            ws_ping_timeout=5.0,
            loop="asyncio",
            http=Few,
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)

        def serve() -> None:
            try:
                server.run(sockets=[self._socket] if self._socket else None)
            except BaseException as error:  # not swallowed: raised on entering, or `failed` says it
                self._error = error
                self._note(error, "The page is gone.")
            else:
                if not self._leaving:
                    self._note(RuntimeError("the server ended by itself"), "The page is gone.")
            finally:
                ready.set()

        def end() -> None:
            server.should_exit = True

        self._end = end
        self._encoder = ThreadPoolExecutor(1, "page-jpeg")
        self._threads = [threading.Thread(target=serve, name="page", daemon=True)]
        self._threads[0].start()
        if not ready.wait(_START_S) or self._error is not None:
            self._close()
            raise RuntimeError("the page's server did not start") from self._error
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _note(self, error: BaseException, lacking: str) -> None:
        """Something failed; the first of it is kept."""
        with self._noting:
            if self.failed is None:
                why, self.traceback = bug(error, lacking)
                self.failed = why  # last: whoever sees it finds the other

    def _close(self) -> None:
        self._leaving = True
        self._ending.set()
        self._end()
        for thread in self._threads:
            thread.join()
        if self._encoder is not None:
            self._encoder.shutdown()
        if self._socket is not None:
            self._socket.close()

    def _noted(self, app: App) -> App:
        """Have what fails in an answer told once, and not printed by the server at each request."""

        async def noted(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except Exception as error:
                if scope["type"] == "lifespan":
                    raise
                self._note(error, "The page may lack something.")
                if scope["type"] == "websocket":
                    with suppress(Exception):  # the browser may be gone, or was told already
                        await send({"type": "websocket.close", "code": 1011, "reason": "a fault"})

        return noted

    # -- the application ------------------------------------------------------------------------

    def _app(self, ready: threading.Event) -> "Starlette":
        from starlette.applications import Starlette
        from starlette.responses import PlainTextResponse, Response
        from starlette.routing import Route, WebSocketRoute

        folder = files("ccdstream.live") / "page"
        page = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _PAGE.items()}

        @asynccontextmanager
        async def life(_: Starlette) -> AsyncIterator[None]:
            loop = asyncio.get_running_loop()
            looking = threading.Thread(
                target=self._look, args=(loop,), name="page-board", daemon=True
            )
            looking.start()
            ready.set()
            yield
            self._ending.set()
            await asyncio.to_thread(looking.join)

        async def page_file(request: "WebRequest") -> "Response":
            body, kind = page[request.url.path]
            return Response(body, media_type=kind)

        async def alert_picture(request: "WebRequest") -> "Response":
            number = request.path_params["number"]
            for card in self._board.alerts():
                if str(card.number) == number:  # as text: it may have any length
                    return Response(card.thumbnail, media_type="image/jpeg")
            return PlainTextResponse("no such alert", 404)

        async def health(_: "WebRequest") -> "Response":
            status = status_now(self._board)
            text = f"{status.kind} {status.detail}".strip()
            return PlainTextResponse(text + "\n", 200 if healthy(self._board) else 503)

        async def metrics(_: "WebRequest") -> "Response":
            body, kind = exposition(self._board)
            return Response(body, headers={"content-type": kind})

        return Starlette(
            routes=[
                *[Route(path, page_file) for path in page],
                Route("/alerts/{number}.jpg", alert_picture),
                Route("/healthz", health),
                Route("/metrics", metrics),
                WebSocketRoute("/watch", self._watch),
            ],
            lifespan=life,
        )

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake the watchers when the board has something new, and now and then for the rest."""
        number, counted_s = 0, 0.0
        counted: dict[str, float] = {}
        while not self._ending.is_set():
            if self._board.closed:  # then nothing on it waits
                self._ending.wait(_LOOK_EVERY_S)
            else:
                shown = self._board.wait(number, _LOOK_EVERY_S)
                number = number if shown is None else shown.number
            loop.call_soon_threadsafe(self._wake)
            now_s = time.monotonic()
            if now_s - counted_s < COUNTERS_EVERY_S:
                continue
            counted_s = now_s
            try:
                counts: dict[str, float] = {WATCHERS: len(self._watchers), PICTURES: self._pictures}
                counts |= delay_figures(CAPTURE_TO_SCREEN, list(self._screen_s))
                if counts != counted:
                    self._board.count(counts)
                counted = counts
            except Exception as error:  # not swallowed; the pictures go on
                self._note(error, "Figures are missing on the page.")

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.woken.set()

    # -- one watcher ----------------------------------------------------------------------------

    async def _watch(self, websocket: "WebSocket") -> None:
        from starlette.websockets import WebSocketDisconnect, WebSocketState

        await websocket.accept()
        if len(self._watchers) >= MOST_WATCHERS:
            await websocket.close(1013, f"{MOST_WATCHERS} browsers watch already")
            return
        watcher = _Watcher(self._board)
        self._watchers.add(watcher)
        both = [
            asyncio.create_task(self._receive(websocket, watcher)),
            asyncio.create_task(self._send(websocket, watcher)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._watchers.discard(watcher)
            for task in both:
                task.cancel()
            ends = await asyncio.gather(*both, return_exceptions=True)
        for error in ends:
            if not isinstance(error, Exception) or isinstance(error, WebSocketDisconnect):
                continue
            over = websocket.application_state is WebSocketState.DISCONNECTED
            if over and isinstance(error, RuntimeError):
                continue  # one of the two had closed it while the other was to send
            raise error

    async def _receive(self, websocket: "WebSocket", watcher: "_Watcher") -> None:
        while True:
            try:
                asked = self._heard(await websocket.receive_text(), watcher)
            except (ValueError, KeyError, OverflowError, RecursionError):
                # not text, or not what a page of ours says
                await websocket.close(1008, "not understood")
                return
            if asked is not None:
                self._board.ask(asked)

    async def _send(self, websocket: "WebSocket", watcher: "_Watcher") -> None:
        while True:
            await watcher.acknowledged.wait()
            with suppress(TimeoutError):
                await asyncio.wait_for(watcher.woken.wait(), HEARTBEAT_S)
            watcher.woken.clear()
            shown = self._board.shown
            jpeg = b""
            if watcher.wants(shown) and shown is not None and shown.frame is not None:
                jpeg = await self._encoded(shown)
            header = watcher.header(shown, with_picture=bool(jpeg))
            if header is None:
                continue
            if header["picture"] != "new":  # lost while it was encoded
                jpeg = b""
            text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
            watcher.acknowledged.clear()
            watcher.sent_s = time.monotonic()
            await websocket.send_bytes(struct.pack(">I", len(text)) + text + jpeg)

    async def _encoded(self, shown: Shown) -> bytes:
        """Its JPEG, made once whoever asks."""
        if self._jpeg is None or self._jpeg[0] != shown.number:
            assert shown.frame is not None and self._encoder is not None
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(self._encoder, jpeg_of, shown.frame)
            self._jpeg = shown.number, work
            self._pictures += 1
        return await asyncio.shield(self._jpeg[1])

    def _heard(self, text: str, watcher: "_Watcher") -> Request | None:
        """What a watcher says: that it has drawn a message, or what it asks for.

        Raises:
            KeyError, ValueError, OverflowError, RecursionError: no page of ours says that.
        """
        said = json.loads(text)
        if not isinstance(said, dict):
            raise ValueError("a watcher sends objects")
        if "ack" in said:
            if said["ack"] != watcher.sequence:
                raise ValueError("acknowledges what was not sent")
            drawn_s = watcher.acknowledge()
            if drawn_s is not None and said.get("drawn"):
                self._screen_s.append(drawn_s)
            return None
        if "pictures" in said:
            watcher.looks = bool(said["pictures"])
            watcher.woken.set()
            return None
        kind, note, at_s = said["ask"], said.get("note", ""), said.get("at_s")
        if kind not in ("mark", "snapshot") or not isinstance(note, str):
            raise ValueError("asks for what there is not")
        if at_s is not None and not (isinstance(at_s, int | float) and math.isfinite(at_s)):
            raise ValueError("a moment is a number")
        plain = " ".join("".join(c if c.isprintable() else " " for c in note).split())
        return Request(kind, plain[:LONGEST_NOTE], None if at_s is None else float(at_s))


class _Watcher:
    """What one browser has got so far, and so what is new to it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.woken = asyncio.Event()
        self.acknowledged = asyncio.Event()
        self.acknowledged.set()
        self.sequence = 0
        self.sent_s = -math.inf
        self._captured_s: float | None = None  # of the picture in the message on its way
        self.looks = True
        self._trips_s: deque[float] = deque(maxlen=5)
        self._number = 0
        self._point_s = -math.inf
        self._cards: dict[int, AlertCard] = {}
        self._facts: dict[str, Any] = {}
        self._counters: dict[str, float] | None = None
        self._counted_s = -math.inf
        self._told: dict[str, Any] = {}

    def wants(self, shown: Shown | None) -> bool:
        """Whether this picture is new to it, and it looks."""
        return self.looks and shown is not None and shown.number > self._number

    def acknowledge(self) -> float | None:
        """It has the last message. The time since the capture of the picture in it, in seconds."""
        now_s = time.monotonic()
        if self.sequence and not self.acknowledged.is_set():
            self._trips_s.append(now_s - self.sent_s)
        self.acknowledged.set()
        self.woken.set()
        captured_s, self._captured_s = self._captured_s, None
        return None if captured_s is None else now_s - captured_s

    def header(self, shown: Shown | None, *, with_picture: bool) -> dict[str, Any] | None:
        """The next message without its picture; None while there is nothing to say."""
        status, now_s = status_now(self._board), time.monotonic()
        told: dict[str, Any] = {"status": [status.kind, status.detail], "over": self._board.closed}
        header: dict[str, Any] = {}
        gone = shown is None or shown.frame is None or status.kind == "NO SIGNAL"
        told["picture"] = "none" if gone else "kept"
        if shown is not None:
            header |= {
                "number": shown.number,
                "stream_s": round(shown.stream_s, 3),
                "state": shown.state,
                "score": None if shown.score is None else round(shown.score, 6),
                "delay_s": round(shown.delay_s, 4),
            }
        if points := self._board.points(self._point_s):
            self._point_s = points[-1].stream_s
            header["points"] = [
                [
                    round(point.stream_s, 3),
                    None if point.score is None else round(point.score, 6),
                    STATES.index(point.state) if point.state in STATES else -1,
                ]
                for point in points
            ]
        header |= self._news_of_alerts() | self._news_of_facts(now_s)
        new = (
            with_picture or told != self._told or bool({"points", "alerts", "facts"} & set(header))
        )
        if not new and now_s - self.sent_s < HEARTBEAT_S:
            return None
        self._told = told
        self.sequence += 1
        header |= told | {"sequence": self.sequence}
        header["lasts_s"] = round(self._board.lasts_s(status.kind), 1)
        if shown is not None:
            header["now_s"] = round(shown.stream_s + max(now_s - shown.captured_at_s, 0.0), 3)
        if with_picture and not gone and shown is not None:
            self._captured_s = shown.captured_at_s
            header["picture"] = "new"
            header["age_s"] = round(max(now_s - shown.captured_at_s, 0.0), 4)
            header["trip_s"] = round(min(self._trips_s, default=0.0), 4)
        if shown is not None:
            self._number = shown.number
        return header

    def _news_of_alerts(self) -> dict[str, Any]:
        cards = {card.number: card for card in self._board.alerts()}
        # a card is replaced, never changed, so the same object is the same alert as it was
        changed = [card for n, card in cards.items() if self._cards.get(n) is not card]
        gone = [number for number in self._cards if number not in cards]
        self._cards = cards
        if not changed and not gone:
            return {}
        return {"alerts": [_card(card) for card in changed], "gone": gone}

    def _news_of_facts(self, now_s: float) -> dict[str, Any]:
        news: dict[str, Any] = {}
        facts = {"version": __version__} | self._board.facts()
        if facts != self._facts:
            self._facts = facts
            news["facts"] = facts
        if now_s - self._counted_s >= COUNTERS_EVERY_S:
            counters = self._board.counters()
            if counters != self._counters:
                finite = {name: n for name, n in counters.items() if math.isfinite(n)}
                news |= {"counters": finite, "server_s": round(now_s, 3)}
            self._counters, self._counted_s = counters, now_s
        return news


def _card(card: AlertCard) -> dict[str, Any]:
    return {
        "number": card.number,
        "opened_s": round(card.opened_s, 3),
        "opened_wall_s": round(card.opened_wall_s, 3),
        "closed_s": None if card.closed_s is None else round(card.closed_s, 3),
        "peak_s": round(card.peak_s, 3),
        "peak_score": round(card.peak_score, 6),
        "clock": card.clock,
        "thumbnail": bool(card.thumbnail),
    }


def _listen(host: str, port: int) -> tuple[socket.socket, bool]:
    """A socket that listens there, and whether only this machine can reach it.

    Raises:
        OutputError: it cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _not_served(host, port, error) from error
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where the other would share the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(64)
    except OSError as error:
        listening.close()
        raise _not_served(host, port, error) from error
    return listening, ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback


def _not_served(host: str, port: int, error: OSError) -> OutputError:
    if error.errno == errno.EADDRINUSE:
        what = f"port {port} is in use"
        return OutputError(
            f"cannot serve the page on {host}: {what}. Choose another port, or 0 for a free one."
        )
    return OutputError(
        f"cannot serve the page on {host} port {port}: {error.strerror or error}. "
        "Name an address of this machine and a port that may be used, such as 127.0.0.1 and 0."
    )


def _addresses(host: str, port: int, token: str | None) -> list[str]:
    """What to open; for a host that stands for all of this machine's addresses, each of them."""
    names = [host]
    if host in ("", "0.0.0.0", "::"):
        names = [name for name in own_addresses() if host != "0.0.0.0" or ":" not in name]
        names = names or [socket.gethostname()]
    query = f"?token={token}" if token is not None else ""
    return [f"http://{f'[{n}]' if ':' in n else n}:{port}/{query}" for n in names]
