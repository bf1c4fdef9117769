"""ASGI middleware: a limit of the size of a request's body, and a record of requests."""

import json
import logging
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.image_api import ErrorBody

ObserveRequest = Callable[[int, float], None]  # called with the status and the seconds of a request
logger = logging.getLogger("ray.serve")


class RequestRecorder:
    """Observes and logs each request of one path; Ray Serve adds the request's id to the log record."""

    def __init__(self, app: ASGIApp, path: str, observe: ObserveRequest) -> None:
        self.app, self.path, self._observe = app, path, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and observe its answer."""
        if scope["type"] != "http" or scope["path"] != self.path:
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_and_keep_status(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, send_and_keep_status)
        finally:
            seconds = time.perf_counter() - started
            self._observe(status, seconds)
            logger.info("images", extra={"status": status, "seconds": round(seconds, 4)})


class BodyLimit:
    """Answers a larger request with status 413, without reading more of it."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application on the request unless its body is too large."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = await self._read(scope, receive)
        if body is None:
            await self._reject(send)
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

    async def _reject(self, send: Send) -> None:
        error: dict[str, Any] = ErrorBody(
            message=f"body: got more than {self.max_bytes} bytes; expected fewer.",
            type="invalid_request_error",
            code="body_too_large",
        ).to_answer()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(error).encode()})
