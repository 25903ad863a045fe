# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service that answers requests and tells Prometheus how many: ``shop.py PORT``."""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers each request; /metrics is not counted."""

    protocol_version = "HTTP/1.1"
    served = 0
    counting = threading.Lock()

    def do_GET(self) -> None:
        """Answer."""
        if self.path == "/metrics":
            text = f"# TYPE shop_requests_total counter\nshop_requests_total {Handler.served}\n"
        else:
            with Handler.counting:
                Handler.served += 1
            text = "sold\n"
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_said: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
