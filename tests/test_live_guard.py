"""Who may talk to the page: not another web site, not a name pointed here, nobody without token."""

import asyncio
from collections.abc import Mapping

import pytest

from ccdstream.live.guard import Guard, Message, Receive, Scope, Send, machine_names

HOST = {"host": "127.0.0.1:8765"}
TOKEN = "abcdefgh12345678"


def answer(
    headers: Mapping[str, str], *, query: str = "", kind: str = "http", token: str | None = None
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body that the guard gives; 200 where it lets through, 101 a WebSocket."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"through"})

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": kind,
        "method": "GET",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    guard = Guard(app, names=machine_names("room1"), token=token, cookie="kept")
    asyncio.run(guard(scope, receive, send))
    if kind == "websocket":
        return (101 if sent[0]["type"] == "websocket.accept" else 403), {}, ""
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], told, sent[1]["body"].decode()


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8765", "localhost:9000", "[::1]:8765", "192.168.3.4", "room1:80", "ROOM1"]
)
def test_an_address_and_a_name_of_this_machine_are_let_through(host: str) -> None:
    assert answer({"host": host})[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example:8765", "127.0.0.1.evil.example", "localhost.evil.example:1", "", "a@localhost",
     "localhost:1/x", "[::1", "localhost;", "room2"],
)  # fmt: skip
def test_a_name_that_someone_else_may_have_pointed_here_is_refused(host: str) -> None:
    assert answer({"host": host})[0] == 403
    assert answer({"host": host}, kind="websocket")[0] == 403


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://localhost:3000", "http://127.0.0.1:8766", "null", "file://",
     "http://127.0.0.1:8765.evil.example", "http://["],
)  # fmt: skip
def test_another_site_in_the_same_browser_is_refused(kind: str, origin: str) -> None:
    assert answer(HOST | {"origin": origin}, kind=kind)[0] == 403


def test_the_page_itself_is_let_through() -> None:
    own = HOST | {"origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin"}
    assert answer(own)[0] == 200
    assert answer(own, kind="websocket")[0] == 101


def test_a_picture_embedded_by_another_site_is_refused_and_a_link_to_the_page_is_not() -> None:
    cross = HOST | {"sec-fetch-site": "cross-site"}
    assert answer(cross | {"sec-fetch-mode": "no-cors"})[0] == 403
    assert answer(cross | {"sec-fetch-mode": "navigate"})[0] == 200


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_nothing_is_given_without_the_token(kind: str) -> None:
    assert answer(HOST, kind=kind, token=TOKEN)[0] == 403
    assert answer(HOST, kind=kind, token=TOKEN, query=f"token={TOKEN[:-1]}")[0] == 403
    assert answer(HOST, kind=kind, token=TOKEN, query="token=%C3%A9")[0] == 403
    assert answer(HOST | {"cookie": "kept=wrong"}, kind=kind, token=TOKEN)[0] == 403
    assert answer(HOST | {"authorization": TOKEN}, kind=kind, token=TOKEN)[0] == 403
    assert answer(HOST, kind=kind, token=TOKEN, query="a=1&" * 99)[0] == 403, "and no error"


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("headers", "query"),
    [({}, f"token={TOKEN}"), ({"cookie": f"a=b; kept={TOKEN}"}, ""),
     ({"authorization": f"Bearer {TOKEN}"}, "")],
    ids=["query", "cookie", "bearer"],
)  # fmt: skip
def test_the_token_opens(kind: str, headers: dict[str, str], query: str) -> None:
    status, _, _ = answer(HOST | headers, query=query, kind=kind, token=TOKEN)
    assert status in (200, 101)


def test_the_token_in_the_query_is_kept_where_no_script_and_no_other_site_gets_it() -> None:
    _, headers, _ = answer(HOST, query=f"token={TOKEN}", token=TOKEN)
    assert headers["set-cookie"] == f"kept={TOKEN}; Path=/; HttpOnly; SameSite=Strict"


def test_a_refusal_says_what_to_do_and_not_the_token() -> None:
    status, headers, body = answer(HOST, token=TOKEN, query="token=wrongwrong")
    assert status == 403 and "Open the address that ccdstream printed" in body
    assert "Not a medical device" in body
    assert TOKEN not in body + str(headers)


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "evil.example"])
def test_every_answer_forbids_scripts_from_elsewhere_frames_and_copies(host: str) -> None:
    _, headers, _ = answer({"host": host})
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert "evil" not in policy
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers
