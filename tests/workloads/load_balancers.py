# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask load balancers for pages all the time, as browsers do, and note what was answered by whom.

It works until a file appears or a time has passed, and prints one line of JSON with its figures; it fails when a request failed, or
none was made at all. It can draw what it saw, second by second, with what others noted meanwhile.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import os
import random
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from load_page import Answer, Note, page


class Client(threading.Thread):
    """One client: it keeps its connection for some requests, then opens another one."""

    def __init__(self, url: str, paths: list[str], pause_s: float, seed: int) -> None:
        """Take a load balancer's URL, which may have a name and "=" before it, and the paths to ask for."""
        super().__init__(daemon=True)
        self.failed: list[str] = []
        self.answers: list[Answer] = []
        self.stopping = threading.Event()
        self._group, _equals, url = url.rpartition("=")
        self._base = urlsplit(url)
        self._paths = paths
        self._pause_s = pause_s
        self._random = random.Random(seed)

    def run(self) -> None:
        """Ask until told to stop."""
        connection = http.client.HTTPConnection(str(self._base.hostname), self._base.port or 80, timeout=20)
        while not self.stopping.wait(self._random.uniform(0, 2 * self._pause_s)):
            path, began_s, name = self._random.choice(self._paths), time.monotonic(), ""
            try:
                last = self._random.random() < 0.1
                connection.request("GET", path, headers={"Connection": "close"} if last else {})
                answer = connection.getresponse()
                body = answer.read()
                if last:
                    connection.close()
                if answer.status == 200:
                    name = str(json.loads(body)["name"]) or "?"
                else:
                    self.failed.append(f"{path}: status {answer.status}")
            except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
                connection.close()
                self.failed.append(f"{path}: {error!r}")
            self.answers.append(Answer(time.time(), self._group, name, time.monotonic() - began_s))
        connection.close()


def figures(clients: list[Client]) -> dict[str, Any]:
    """Return what all clients have seen."""
    answers = [answer for client in clients for answer in client.answers]
    ordered = sorted(answer.latency_s for answer in answers)
    failed = [text for client in clients for text in client.failed]
    names = collections.Counter(answer.name for answer in answers if answer.name)
    return {
        "requests": len(ordered),
        "failed": len(failed),
        "examples": failed[:3],
        "answers": dict(sorted(names.items())),
        "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))] * 1000, 1) if ordered else None,
        "max_ms": round(ordered[-1] * 1000, 1) if ordered else None,
    }


def notes(path: Path | None) -> list[Note]:
    """Read what others noted, if they did. A line that is none is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
    found = (re.fullmatch(r"(\d+(?:\.\d*)?) (.+)", line) for line in lines)
    return [Note(float(one[1]), one[2]) for one in found if one]


def main() -> int:
    """Run the load as a program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "urls", nargs="+", help="load balancers, such as http://10.77.0.71; shop=http://10.77.0.71 is drawn as shop"
    )
    parser.add_argument("--path", action="append", help="path to ask for, / unless given")
    parser.add_argument("--clients", type=int, default=4, help="clients of each (default: %(default)s)")
    parser.add_argument("--pause-s", type=float, default=0.02, help="mean pause of a client (default: %(default)s)")
    parser.add_argument("--for-s", type=float, default=600, help="seconds to work at most (default: %(default)s)")
    parser.add_argument("--until", help="file whose appearance ends the work")
    parser.add_argument("--report", type=Path, help="page to write, in HTML")
    parser.add_argument(
        "--notes", type=Path, help="file with what happened meanwhile: seconds since 1970 and words, a line each"
    )
    options = parser.parse_args()
    pairs = [(url, number) for url in options.urls for number in range(options.clients)]
    clients = [Client(url, options.path or ["/"], options.pause_s, seed) for seed, (url, _number) in enumerate(pairs)]
    for client in clients:
        client.start()
    deadline = time.monotonic() + options.for_s
    while time.monotonic() < deadline and not (options.until and os.path.exists(options.until)):
        time.sleep(0.1)
        if any(client.failed for client in clients) and not any(
            answer.name for client in clients for answer in client.answers
        ):
            # nothing works from the start: whoever waits for the end shall know
            break
    for client in clients:
        client.stopping.set()
    for client in clients:
        client.join(30)
    seen = figures(clients)
    print(json.dumps(seen), flush=True)
    if options.report:
        answers = [answer for client in clients for answer in client.answers]
        drawn = page(answers, notes(options.notes), seen)
        options.report.write_text(drawn, encoding="utf-8", errors="replace")
    return int(bool(seen["failed"] or not seen["requests"]))


if __name__ == "__main__":
    sys.exit(main())
