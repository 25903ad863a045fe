"""A small web application for the lab: it says its name, and fails when it is told to.

Usage: app.py NAME ADDRESS PORT DIRECTORY. While DIRECTORY holds a file "broken", everything but /headers is answered with status 503;
while it holds a file "slow", each answer to / takes a tenth of a second.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME, ADDRESS, PORT, DIRECTORY = sys.argv[1], sys.argv[2], int(sys.argv[3]), pathlib.Path(sys.argv[4])


class App(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    # an answer is written in two parts, and the second one shall not wait for the first one's receipt
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer /, /health, /slow/SECONDS, /status/CODE, /fresh/SECONDS/TAG and /headers, which shows the request's headers."""
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        _empty, kind, value = [*self.path.partition("?")[0].split("/"), "", ""][:3]
        status, said = 200, {"name": NAME, "at": time.time_ns()}
        if self.headers.get("X-Lab-Origin"):
            said["origin"] = self.headers["X-Lab-Origin"]
        if kind == "headers":
            said["headers"] = {name.lower(): text for name, text in self.headers.items()}
        elif (DIRECTORY / "broken").exists():
            status = 503
        elif kind == "" and (DIRECTORY / "slow").exists():
            time.sleep(0.1)
        elif kind == "slow":
            time.sleep(min(float(value), 60.0))
        elif kind == "status":
            status = int(value)
        body = (json.dumps(said) + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if kind == "fresh":
            self.send_header("Cache-Control", f"max-age={value}")
            self.send_header("Cache-Tag", self.path.rpartition("/")[2])
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """Takes as many connections as a test makes."""

    request_queue_size = 1024
    daemon_threads = True


Server((ADDRESS, PORT), App).serve_forever()
