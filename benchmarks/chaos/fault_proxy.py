"""A proxy in front of an S3 server that injects the failures of real ones."""

import socketserver
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

EXPIRED = b"""<?xml version="1.0" encoding="UTF-8"?><Error><Code>ExpiredToken</Code>
<Message>The provided token has expired.</Message></Error>"""
_HOP = ("content-length", "transfer-encoding", "connection", "expect", "host")


class FaultProxy(socketserver.ThreadingTCPServer):
    """Forwards requests to the server at `target`, and injects `fault` into those that `matches` selects.

    Attributes:
        fault: "503", "expired" (403), "slow" (`delay` seconds later), "cut" (half of the content), or None.
        matches: predicate of the request's number, from 1, and its path.
        requests: number of requests so far.
    """

    allow_reuse_address = daemon_threads = True

    def __init__(self, target: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.target, self.requests = target, 0
        self.fault: str | None = None
        self.delay = 0.3
        self.matches: Callable[[int, str], bool] = lambda number, path: False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> "FaultProxy":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def do_any(self) -> None:
        server, body = self.server, self._body()
        server.requests += 1
        fault = server.fault if server.matches(server.requests, self.path) else None
        if fault == "503":
            return self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
        if fault == "expired":
            return self._answer(403, {"Content-Type": "application/xml"}, EXPIRED)
        if fault == "slow":
            time.sleep(server.delay)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        headers = {"Content-Type": "application/octet-stream"} | headers  # urllib would declare a form
        request = urllib.request.Request(
            server.target + self.path, data=body or None, headers=headers, method=self.command
        )
        try:
            with urllib.request.urlopen(request) as response:
                status, headers, content = response.status, dict(response.headers), response.read()
        except urllib.error.HTTPError as error:
            status, headers, content = error.code, dict(error.headers), error.read()
        return self._answer(status, headers, content, cut=fault == "cut" and self.command == "GET")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do_any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, headers: dict[str, str], content: bytes, cut: bool = False) -> None:
        self.send_response(status)
        length = headers.pop("Content-Length", str(len(content))) if self.command == "HEAD" else str(len(content))
        for name, value in headers.items():
            if name.lower() not in (*_HOP, "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Log nothing."""
