"""Chromium and Firefox without a screen, driven by the DevTools protocol and by WebDriver BiDi: no
more of them than tests need."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
"""Where it is; None where there is none."""


FIREFOX = next(filter(None, map(shutil.which, ("firefox", "firefox-esr"))), None)
"""Where it is; None where there is none."""


class _Tab:
    """What is done in the same way in every browser."""

    errors: list[str]
    """What the page logged as an error or threw, and what its policy refused."""

    def run(self, script: str, timeout_s: float = 60) -> Any:
        raise NotImplementedError

    def until(self, condition: str, timeout_s: float = 30) -> None:
        """Wait in the page until the expression is true; AssertionError if it never is."""
        limit = int(timeout_s * 1000)
        script = f"""new Promise((done) => {{
            const end = performance.now() + {limit};
            const look = () => {{
                let met = false;
                try {{ met = Boolean({condition}); }} catch {{}}
                if (met) done(true);
                else if (performance.now() > end) done(false);
                else setTimeout(look, 10);
            }};
            look();
        }})"""
        assert self.run(script, timeout_s + 30), f"never came true: {condition}"


class Tab(_Tab):
    """One page in Chromium."""

    def __init__(self, channel: ClientConnection) -> None:
        self._channel = channel
        self._number = 0
        self.errors = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.requested: list[str] = []
        """Addresses that it asked for."""

    def call(self, method: str, timeout_s: float = 60, **params: Any) -> Any:
        """Call a method of the protocol, and note the events that come meanwhile."""
        self._number += 1
        self._channel.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            told = json.loads(self._channel.recv(timeout_s))
            if told.get("id") == self._number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return told["result"]
            self._note(told)

    def _note(self, told: dict[str, Any]) -> None:
        params = told.get("params", {})
        if told.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif told.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif told.get("method") == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif told.get("method") == "Network.webSocketCreated":
            self.requested.append(params["url"])

    def open(self, url: str, size: tuple[int, int] = (1366, 768)) -> None:
        """Open an address in a window of `size`, (width, height)."""
        self.resize(size)
        self.call("Page.navigate", url=url)

    def resize(self, size: tuple[int, int]) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0], height=size[1], deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def run(self, script: str, timeout_s: float = 60) -> Any:
        """The value of an expression in the page, awaited where it is a promise."""
        found = self.call(
            "Runtime.evaluate", timeout_s, expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"]))
        return found["result"].get("value")

    def press(self, key: str, code: str | None = None) -> None:
        """Press a key and let it go."""
        text = {"text": key} if len(key) == 1 else {}
        about = {"key": key, "code": code or (f"Key{key.upper()}" if key.isalpha() else key)}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def screenshot(self, path: Path) -> None:
        """Write what is seen, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def chromium() -> Iterator[Tab]:
    """A fresh one, with one empty tab."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = (
            "--headless=new --no-sandbox --disable-gpu --remote-debugging-port=0 --no-first-run "
            "--disable-background-networking --disable-dev-shm-usage --hide-scrollbars"
        )
        command = [CHROMIUM, *options.split(), f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
            try:
                yield from _first_tab(running)
            finally:
                running.terminate()
                assert running.stderr is not None
                running.stderr.read()


def _first_tab(running: subprocess.Popen[str]) -> Iterator[Tab]:
    assert running.stderr is not None
    for line in running.stderr:
        found = re.search(r"DevTools listening on ws://([^/]+)/", line)
        if found:
            break
    else:
        raise RuntimeError("Chromium ended before it listened")
    with urlopen(Request(f"http://{found[1]}/json/new?about:blank", method="PUT")) as answer:
        address = json.load(answer)["webSocketDebuggerUrl"]
    with connect(address, max_size=None, compression=None) as channel:
        yield Tab(channel)


_LEFT = "was interrupted while the page was loading."
"""Firefox's word for the socket of a page that is being left: the one before, on the same tab."""


class FirefoxTab(_Tab):
    """One page in Firefox: what `Tab` does, as far as tests use it."""

    def __init__(self, channel: ClientConnection) -> None:
        self._channel = channel
        self._number = 0
        self.errors = []
        self.call("session.new", capabilities={})
        self._context = self.call("browsingContext.getTree")["contexts"][0]["context"]
        self.call("session.subscribe", events=["log.entryAdded"])

    def call(self, method: str, timeout_s: float = 60, **params: Any) -> Any:
        """Call a method of the protocol, and note the events that come meanwhile."""
        self._number += 1
        self._channel.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            told = json.loads(self._channel.recv(timeout_s))
            if told.get("id") == self._number:
                if told["type"] == "error":
                    raise RuntimeError(f"{method}: {told['error']}: {told['message']}")
                return told["result"]
            if told.get("method") == "log.entryAdded" and told["params"]["level"] == "error":
                text = told["params"]["text"]
                if not text.endswith(_LEFT):
                    self.errors.append(text)

    def open(self, url: str, size: tuple[int, int] = (1366, 768)) -> None:
        """Open an address in a window of `size`, (width, height)."""
        viewport = {"width": size[0], "height": size[1]}
        self.call("browsingContext.setViewport", context=self._context, viewport=viewport)
        self.call("browsingContext.navigate", context=self._context, url=url, wait="interactive")

    def run(self, script: str, timeout_s: float = 60) -> Any:
        """The value of an expression in the page, awaited where it is a promise."""
        found = self.call(
            "script.evaluate", timeout_s,
            expression=f"(async () => JSON.stringify(await ({script})))()",
            target={"context": self._context}, awaitPromise=True, userActivation=True,
        )  # fmt: skip
        if found["type"] == "exception":
            raise RuntimeError(json.dumps(found["exceptionDetails"]))
        value = found["result"].get("value")
        return None if value is None else json.loads(value)

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self.call(
            "input.performActions",
            context=self._context,
            actions=[{"type": "key", "id": "keys", "actions": actions}],
        )

    def screenshot(self, path: Path) -> None:
        """Write what is seen, as PNG."""
        data = self.call("browsingContext.captureScreenshot", context=self._context)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def firefox() -> Iterator[FirefoxTab]:
    """A fresh one, with one empty tab."""
    assert FIREFOX is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ("--headless", "--no-remote", "--remote-debugging-port", "0")
        log = Path(profile) / "log"  # it says much, and nobody reads
        command = [FIREFOX, *options, "--profile", profile, "about:blank"]
        with (
            log.open("w") as written,
            subprocess.Popen(command, stderr=written, stdout=written) as running,
        ):
            try:
                address = _listening(running, log)
                with connect(f"{address}/session", max_size=None, compression=None) as channel:
                    yield FirefoxTab(channel)
            finally:
                running.terminate()


def _listening(running: "subprocess.Popen[bytes]", log: Path) -> str:
    """Where Firefox listens, once it does."""
    for _ in range(1200):
        found = re.search(r"BiDi listening on (ws://\S+)", log.read_text())
        if found:
            return found[1]
        if running.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError("Firefox did not listen")
