"""Who may speak to the page."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from weightsmith.errors import WeightsmithError
from weightsmith.run.bench.guard import Guard, is_loopback
from weightsmith.run.bench.server import address_of, listening

OWN = "http://127.0.0.1:7860"


async def _inner(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def asked(listens: str = "127.0.0.1", method: str = "POST", **headers: str) -> tuple[int, dict[str, str]]:
    """Status and headers of what a request gets from a page that listens on an address."""
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request"}

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": "/gradio_api/queue/join", "headers": pairs}
    # In a thread of its own: a browser of other tests leaves an event loop running in this one.
    with ThreadPoolExecutor(1) as alone:
        alone.submit(lambda: asyncio.run(Guard(_inner, listens)(scope, receive, send))).result()
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:7860"},
        {"host": "localhost:7860", "origin": "http://localhost:7860"},
        {"host": "127.0.0.1:7860", "origin": OWN, "sec_fetch_site": "same-origin"},
        {"host": "[::1]:7860", "origin": "http://[::1]:7860"},
    ],
)
def test_the_page_itself_is_answered(headers: dict[str, str]) -> None:
    status, given = asked(**headers)
    assert status == 200
    assert "frame-ancestors 'none'" in given["content-security-policy"]
    assert given["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:7860", "origin": "https://evil.example"},
        {"host": "127.0.0.1:7860", "origin": "null"},
        {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:3000"},  # another server of this machine
        {"host": "evil.example:7860"},  # DNS rebinding
        {"host": "evil.example:7860", "origin": "http://evil.example:7860"},
        {"host": "127.0.0.1.evil.example:7860"},
        {"host": "127.0.0.1:7860", "sec_fetch_site": "cross-site"},
        {"host": "127.0.0.1:7860", "sec_fetch_site": "same-site", "sec_fetch_mode": "cors"},
        {},
    ],
)
def test_a_foreign_page_is_refused(headers: dict[str, str]) -> None:
    assert asked(**headers)[0] == 403


def test_a_link_may_be_followed_but_not_embedded() -> None:
    link = {"host": "127.0.0.1:7860", "sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert asked(method="GET", sec_fetch_dest="document", **link)[0] == 200
    assert asked(method="GET", sec_fetch_dest="iframe", **link)[0] == 403
    assert asked(method="POST", sec_fetch_dest="document", **link)[0] == 403


def test_an_open_host_still_refuses_foreign_origins() -> None:
    assert asked("0.0.0.0", host="lab.example:7860", origin="http://lab.example:7860")[0] == 200
    assert asked("0.0.0.0", host="lab.example:7860", origin="http://evil.example")[0] == 403


@pytest.mark.parametrize(
    ("host", "mine"),
    [("localhost", True), ("127.5.0.1", True), ("::1", True), ("0.0.0.0", False), ("a.example", False)],
)
def test_loopback(host: str, mine: bool) -> None:
    assert is_loopback(host) == mine


def test_a_port_in_use_is_told() -> None:
    with listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert address_of(first) == f"http://127.0.0.1:{port}/"
        with pytest.raises(
            WeightsmithError, match=f"port {port} is in use on 127.0.0.1: give another --port, or --port 0"
        ):
            listening("127.0.0.1", port)
    listening("127.0.0.1", port).close()  # free again


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("127.0.0.1", 70000, "--port must be from 0 to 65535, not 70000"),
        ("no such host", 0, "--host no such host is no address of this machine"),
        ("192.0.2.7", 0, "--host 192.0.2.7 is no address of this machine"),
    ],
)
def test_addresses_that_cannot_be_had(host: str, port: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsmithError, match=words):
        listening(host, port)


def test_ipv6_addresses_are_typed_in_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        bound = listening("::1", 0)
    except WeightsmithError:
        pytest.skip("this machine has no IPv6 loopback address")
    with bound:
        assert address_of(bound).startswith("http://[::1]:")
