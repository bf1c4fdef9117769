import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray

from jobs.__main__ import main


class _Server(ThreadingHTTPServer):
    """A job server with one job: it tells of it so many times, and answers so from then on."""

    daemon_threads = True

    def __init__(self, times, then):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.left, self.then = times, then
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    def do_any(self):
        if self.path.endswith("version"):
            return self._answer(200, {"version": "4", "ray_version": ray.__version__, "ray_commit": ""})
        self.server.left -= 1
        if self.server.left >= 0:
            job = {"type": "SUBMISSION", "submission_id": "demo-1", "status": "RUNNING", "entrypoint": ""}
            return self._answer(200, [job] if self.path.rstrip("/").endswith("jobs") else job)
        if self.server.then == "gone":
            return self.connection.close()
        return self._answer(int(self.server.then), {"error": "Unauthorized"})

    do_GET = do_POST = do_any

    def _answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing."""


@pytest.mark.parametrize(
    ("command", "times"), [("list", 1), ("status demo-1", 2), ("logs demo-1", 3), ("stop demo-1", 4)]
)
@pytest.mark.parametrize("then", ["gone", "500", "401"])
def test_a_cluster_that_is_lost_meanwhile_is_one_line(capsys, monkeypatch, command, times, then):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    server = _Server(times, then)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    assert main([*command.split(), "--job-server", address]) == 2
    said = capsys.readouterr().err
    expected = (
        "token: the cluster at" if then == "401" else f"--job-server: the cluster at {address} stopped answering: "
    )
    assert said.startswith(f"error: {expected}"), said
    assert len(said.splitlines()) == 1, said
    server.shutdown()
    server.server_close()
