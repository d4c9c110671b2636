"""Who may talk to the page: the browser that a person opened it in, and no other web site.

Any site that is open in the same browser can send requests to an address on this machine, or point
a name of its own at it. So a request is refused

- whose Host is a name that is not this machine's (a name pointed here by someone else);
- that a browser sends for another site: an Origin that is not the Host, or Sec-Fetch-Site says so;
- that lacks the token, where one is needed: in the query once, then in a cookie, or as a bearer.
"""

import hmac
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ccdstream import NOTICE

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[0-9a-z._-]+)(:\d{1,5})?", re.ASCII)

WRONG_TOKEN = (
    "This page needs its token",
    "Open the address that ccdstream printed when the session began, token included. A new session "
    "has a new token.",
)
WRONG_HOST = (
    "This name is not known here",
    "Open the page by the address that ccdstream printed when the session began.",
)
WRONG_SITE = (
    "Another web site may not use this page",
    "Open the address that ccdstream printed in a tab of its own.",
)


class Guard:
    """An ASGI application around another: refuses with 403, and adds headers to every answer."""

    def __init__(self, app: App, *, names: frozenset[str], token: str | None, cookie: str) -> None:
        """
        Args:
            app: what answers those who may ask.
            names: host names that are this machine's, in lower case. An IP address always may be
                asked for: nobody can point one elsewhere.
            token: None where none is needed.
            cookie: name of the cookie that keeps the token.
        """
        self._app = app
        self._names = names | {"localhost"}
        self._token = token
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        refused = self._refused(scope)
        if scope["type"] == "websocket":
            if refused is None:
                return await self._app(scope, receive, send)
            await receive()  # the wish to connect
            return await send({"type": "websocket.close", "code": 1008, "reason": refused[0]})

        headers = _headers(_one(scope, b"host") if refused is None else None)
        if refused is None and self._in_query(scope):
            kept = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
            headers.append((b"set-cookie", kept.encode("ascii")))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        if refused is None:
            await self._app(scope, receive, send_with_headers)
        else:
            body = _refusal(*refused)
            about = [(b"content-type", b"text/html; charset=utf-8")]
            about.append((b"content-length", str(len(body)).encode()))
            await send_with_headers(
                {"type": "http.response.start", "status": 403, "headers": about}
            )
            await send({"type": "http.response.body", "body": body})

    def _refused(self, scope: Scope) -> tuple[str, str] | None:
        """(what is wrong, what to do); None for who may ask."""
        host = _one(scope, b"host")
        if host is None or not self._is_ours(host):
            return WRONG_HOST
        if _one(scope, b"origin", absent=host, strip_scheme=True) != host:
            return WRONG_SITE
        site = _one(scope, b"sec-fetch-site", absent="none")
        opened = _one(scope, b"sec-fetch-mode") == "navigate" and scope.get("method") == "GET"
        if site not in ("none", "same-origin") and not opened:
            return WRONG_SITE
        if self._token is None or self._in_query(scope) or self._in_headers(scope):
            return None
        return WRONG_TOKEN

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].strip("[]")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True

    def _in_query(self, scope: Scope) -> bool:
        if self._token is None:
            return False
        try:
            query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=8)
        except ValueError:  # more fields than that
            return False
        return any(_same(given, self._token) for given in query.get("token", []))

    def _in_headers(self, scope: Scope) -> bool:
        assert self._token is not None
        bearer = (_one(scope, b"authorization") or "").partition("Bearer ")
        if not bearer[0] and _same(bearer[2], self._token):
            return True
        try:
            kept = SimpleCookie(_one(scope, b"cookie") or "").get(self._cookie)
        except CookieError:
            return False
        return kept is not None and _same(kept.value, self._token)


def machine_names(host: str) -> frozenset[str]:
    """Names under which a page that is served on `host` may be opened."""
    own = socket.gethostname().lower()
    return frozenset({host.lower(), own, f"{own}.local"})


def _one(
    scope: Scope, name: bytes, *, absent: str | None = None, strip_scheme: bool = False
) -> str | None:
    """The header in lower case for names of hosts; `absent` where there is none, and None, which
    fits nothing, where there are several."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    found = [value.decode("latin-1") for key, value in headers if key.lower() == name]
    if not found:
        return absent
    if len(found) > 1:
        return None
    if strip_scheme:
        try:
            return urlsplit(found[0]).netloc.lower()
        except ValueError:
            return None
    return found[0].lower() if name == b"host" else found[0]


def _same(given: str, token: str) -> bool:
    """In a time that does not tell how much of it is right."""
    return hmac.compare_digest(given.encode(), token.encode())


def _headers(host: str | None) -> list[tuple[bytes, bytes]]:
    socket_source = f" ws://{host} wss://{host}" if host is not None else ""
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        f"connect-src 'self'{socket_source}; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return [
        (b"content-security-policy", policy.encode("ascii")),
        (b"cache-control", b"no-store"),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
    ]


def _refusal(what: str, to_do: str) -> bytes:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=color-scheme content=dark><meta name=viewport content='width=device-width'>"
        f"<title>ccdstream: {what}</title><h1>{what}</h1><p>{to_do}</p><p>{NOTICE}</p></html>"
    ).encode()
