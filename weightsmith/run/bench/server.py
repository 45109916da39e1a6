"""Serving the page: an address that is free, and nothing that answers to foreign pages."""

from __future__ import annotations

import errno
import socket
from typing import Any

from weightsmith.errors import WeightsmithError
from weightsmith.files import cause_of
from weightsmith.run.bench.guard import Guard


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens on an address.

    Raises:
        WeightsmithError: a port that is in use or may not be had, an address that is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise WeightsmithError(f"--port must be from 0 to 65535, not {port}: 0 takes a free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise WeightsmithError(
            f"--host {host} is no address of this machine ({cause_of(error)}): give 127.0.0.1"
        ) from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was closed a moment ago
        bound.bind(address)
        bound.listen()
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise WeightsmithError(
                f"port {port} is in use on {host}: give another --port, or --port 0 for a free one"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise WeightsmithError(f"port {port} is not for users of this machine: give a --port from 1024") from error
        raise WeightsmithError(
            f"--host {host} is no address of this machine ({error.strerror}): give 127.0.0.1"
        ) from error
    return bound


def address_of(bound: socket.socket) -> str:
    """What to type into a browser."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  (it is compared, nothing is bound to it)
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def serve(app: Any, bound: socket.socket, host: str) -> None:
    """Answer until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(Guard(app, host), log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[bound])
