"""The web application in the command's own process, in front of replicas on a Ray cluster.

Without Ray Serve's proxy and a process for the application, a request passes two processes fewer.
"""

import asyncio
import logging
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeline.errors import invalid
from pipeline.logging_setup import JsonFormatter
from pipeline.serving.middleware import REQUEST_ID
from pipeline.serving.middleware import logger as request_logger

LOG_FILE, LOG_BYTES, OLD_LOGS = "web.log", 10 * 2**20, 5
BACKLOG = 2048
KEEP_ALIVE_SECONDS = 90  # as Ray Serve's proxy; a reverse proxy must close idle connections before the server does
MAX_HEAD_BYTES, MAX_ID_LENGTH = 65_536, 128
logger = logging.getLogger(__name__)


class RequestIds:
    """Gives each request an id: its own `X-Request-ID` if that is a short ASCII text, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application on a request with an id, and answer with it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(REQUEST_ID.encode(), b"").decode("latin-1")
        is_accepted = 0 < len(given) <= MAX_ID_LENGTH and given.isascii() and given.isprintable()
        request_id = given if is_accepted else str(uuid.uuid4())
        others = [header for header in scope["headers"] if header[0] != REQUEST_ID.encode()]
        scope = {**scope, "headers": [*others, (REQUEST_ID.encode(), request_id.encode())]}

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which alone would keep a request line and headers of any size in memory."""

    _is_in_head, _head_bytes = True, 0

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop counting."""
        self._is_in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Close the connection of a request whose head is too large."""
        super().data_received(data)
        self._head_bytes += len(data)
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The headers are too large.")


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to the command."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


@asynccontextmanager
async def answer_requests(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    """Answer the requests of a listening socket inside the context, which waits at its end for those in progress."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of everything that is no HTTP
    config = uvicorn.Config(
        RequestIds(app),
        http=_Protocol,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,  # the requests are drained before; a slow reader is not waited for
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await running


def listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """Return a socket that listens at an address, which a command's option names; connections wait to be accepted.

    Without listening another process could bind the same address until the server is up.

    Raises:
        UserError: The address is taken, or not this machine's.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OverflowError:
        listener.close()
        raise invalid(option, port, "a number from 0 to 65535") from None
    except OSError as error:
        listener.close()
        raise invalid(option, port, f"a free port of {host} ({error.strerror})") from None
    return listener


@contextmanager
def log_requests_to(folder: Path) -> Iterator[None]:
    """Write a JSON line per request to `web.log` in a folder inside the context."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(folder / LOG_FILE, maxBytes=LOG_BYTES, backupCount=OLD_LOGS)
    except OSError as error:
        logger.warning("requests are not logged: %s", error)
        yield
        return
    handler.setFormatter(JsonFormatter())
    level, propagate = request_logger.level, request_logger.propagate
    request_logger.addHandler(handler)
    request_logger.setLevel(logging.INFO)
    request_logger.propagate = False
    try:
        yield
    finally:
        request_logger.removeHandler(handler)
        request_logger.setLevel(level)
        request_logger.propagate = propagate
        handler.close()
