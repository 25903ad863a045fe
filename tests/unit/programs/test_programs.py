# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs of the lab that judge: what they take for a failure."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import threading
import time
import typing as t
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

# it finds what it shares with others beside itself
from chaos.cache_flush import verdict

TESTS = Path(__file__).parents[2]
GOOD = {
    order: {
        "flushes": 30,
        "reads": 5000,
        "stale_reads": stale,
        "errors": {},
        "answers": {"edge MISS": 900, "edge HIT": 4000},
        "examples": ["item 1 was version 1 after version 2 was flushed"] * bool(stale),
    }
    for order, stale in (("ours", 0), ("naive", 40))
}


@pytest.mark.parametrize(
    ("order", "field", "value", "said"),
    [
        ("ours", "stale_reads", 1, "1 reads were stale"),
        ("naive", "stale_reads", 0, "proves nothing"),
        ("ours", "errors", {"status 504": 600}, "Too many of the reads failed in the order ours"),
        ("naive", "errors", {"status 504": 600}, "Too many of the reads failed in the order naive"),
        ("ours", "answers", {"edge MISS": 4900}, "The edge is no cache in the order ours"),
        ("ours", "answers", {"edge HIT": 4900}, "The edge is no cache in the order ours"),
    ],
)
def test_a_race_that_is_lost_or_proves_nothing_fails(order: str, field: str, value: t.Any, said: str) -> None:
    assert verdict(GOOD) == []
    seen = copy.deepcopy(GOOD)
    seen[order][field] = value
    seen["ours"]["examples"] = GOOD["naive"]["examples"]
    assert len(verdict(seen)) == 1
    assert said in verdict(seen)[0]


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_a_load_fails_when_a_request_did_and_draws_what_it_saw(status: int, code: int, tmp_path: Path) -> None:
    report, notes, seen = tmp_path / "report.html", tmp_path / "notes", threading.Event()
    notes.write_text("1.5 before it\n\ntorn")

    class Page(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = b'{"name": "app1"}'
            if not seen.is_set():
                seen.set()
                with notes.open("a") as file:
                    file.write(f"\n{time.time() + 0.5} <app1> was killed\n")
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_given: t.Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        command = [sys.executable, str(TESTS / "workloads" / "load_balancers.py"), "--for-s", "2"]
        command += ["--clients", "1", f"shop=http://127.0.0.1:{server.server_port}"]
        command += ["--report", str(report), "--notes", str(notes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        server.shutdown()
        server.server_close()
    said = json.loads(done.stdout)
    assert done.returncode == code, done.stderr
    assert said["requests"] > 0
    assert said["failed"] == (said["requests"] if code else 0)
    assert said["answers"] == ({} if code else {"app1": said["requests"]})
    drawn = report.read_text()
    assert f"{said['requests']:,} requests, {said['failed']:,} failed" in drawn
    assert "shop: answers a second" in drawn
    assert "&lt;app1&gt; was killed</td>" in drawn
    assert "before it" not in drawn
    assert ('class="failed"' in drawn) is bool(code)
    # a page with something not finite would show nothing
    sizes = [float(size) for size in re.findall(r'height="([^"]+)" (?:fill|class)', drawn)]
    assert sizes
    assert 0 < max(sizes) <= 150
    points = [
        float(one)
        for found in re.findall(r'points="([^"]+)"', drawn)
        for pair in found.split()
        for one in pair.split(",")
    ]
    assert points
    assert all(0 <= one <= 1100 for one in points)


@pytest.mark.parametrize(
    "program",
    sorted(TESTS.glob("benchmarks/[a-z]*.py")) + sorted(TESTS.glob("chaos/[a-z]*.py")),
    ids=lambda path: path.stem,
)
def test_a_program_says_what_it_is_without_a_lab(program: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(program), "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "--quick" in ended.stdout
