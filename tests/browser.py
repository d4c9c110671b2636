"""Chromium without a screen, driven by its DevTools protocol: no more of it than tests need."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
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


class Tab:
    """One page in it."""

    def __init__(self, channel: ClientConnection) -> None:
        self._channel = channel
        self._number = 0
        self.errors: list[str] = []
        """What the page logged as an error or threw, and what its policy refused."""
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
