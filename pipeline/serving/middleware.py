"""ASGI middleware: a limit of the size of a request's body, and a record of requests, which can be drained."""

import asyncio
import json
import logging
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.image_api import ErrorBody

ObserveRequest = Callable[[int, float], None]  # called with the status and the seconds of a request
DRAIN_POLL_SECONDS = 0.05
REQUEST_ID = "x-request-id"  # a header that Ray Serve's proxy, or our own server, gives each request
logger = logging.getLogger("ray.serve.images")  # in a replica of Ray Serve, a part of its log


class Traffic:
    """The requests in progress; while it is draining, further ones are answered with status 503."""

    def __init__(self) -> None:
        self.ongoing, self.is_draining = 0, False

    async def drain(self, is_interrupted: Callable[[], bool]) -> None:
        """Take no further request, and return when the last one is answered, or when it is interrupted."""
        self.is_draining = True
        while self.ongoing and not is_interrupted():
            await asyncio.sleep(DRAIN_POLL_SECONDS)


class RequestRecorder:
    """Counts, observes and logs the requests of one path."""

    def __init__(self, app: ASGIApp, path: str, traffic: Traffic, observe: ObserveRequest) -> None:
        self.app, self.path, self._traffic, self._observe = app, path, traffic, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and observe its answer."""
        if scope["type"] != "http" or scope["path"] != self.path:
            await self.app(scope, receive, send)
            return
        if self._traffic.is_draining:
            await send_error(send, 503, "The server is stopping.", "unavailable", {"retry-after": "1"})
            return
        started, status = time.perf_counter(), 500
        self._traffic.ongoing += 1

        async def send_and_keep_status(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, send_and_keep_status)
        finally:
            self._traffic.ongoing -= 1
            seconds = time.perf_counter() - started
            self._observe(status, seconds)
            logger.info("images", extra={"status": status, "seconds": round(seconds, 4), **_find_request_id(scope)})


def _find_request_id(scope: Scope) -> dict[str, str]:
    """Return the request's id for the log; Ray Serve adds it to its own log."""
    given = dict(scope["headers"]).get(REQUEST_ID.encode())
    return {"request_id": given.decode("latin-1")} if given else {}


class BodyLimit:
    """Answers a larger request with status 413, without reading more of it, and a slower one with status 408."""

    def __init__(self, app: ASGIApp, max_bytes: int, max_seconds: float) -> None:
        self.app, self.max_bytes, self.max_seconds = app, max_bytes, max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application on the request unless its body is too large."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.max_seconds):
                body = await self._read(scope, receive)
        except TimeoutError:
            await send_error(send, 408, "body: did not arrive in time.", "timeout", {"connection": "close"})
            return
        if body is None:
            message = f"body: got more than {self.max_bytes} bytes; expected fewer."
            await send_error(send, 413, message, "body_too_large", {"connection": "close"})
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body, or None if it is too large."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared[:20]) > self.max_bytes:
            return None
        body, is_complete = bytearray(), False
        while not is_complete:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                return None
            is_complete = message["type"] != "http.request" or not message.get("more_body", False)
        return bytes(body)


async def send_error(send: Send, status: int, message: str, code: str, headers: dict[str, str]) -> None:
    """Answer with an error outside the application."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = json.dumps(ErrorBody(message=message, type=kind, code=code).to_answer()).encode()
    lines = {"content-type": "application/json", **headers}
    encoded = [(name.encode(), value.encode()) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
