# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time the purge of 10,000 URLs at both of the lab's edges by ``cache_flush`` against what people do by hand with curl.

The edges (playbooks/cdn.yml), load balancers (playbooks/load_balancer.yml) and applications (playbooks/lab/apps.yml) must be there. Each
turn fills both edges by requests, purges, and requires of some URLs that they were kept before, and are not after it:

- by ``cache_flush``, as a user runs it through ansible-playbook. What is timed is the task, as ansible-core reports it;
- by one ``curl --parallel``, which keeps its connections. This is the quickest of the ways by hand;
- by ``xargs -P 8 -n 1 curl``, a process for each URL. It is ended after some seconds, and its rate is that until then.

Prints one line of JSON per figure.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from _figures import Span, figure, task_span
from _servers import run_on_lab
from integration.conftest import INVENTORIES, Lab

BENCH = "cache_purge"
PURGE_PORT = 8181
KEPT_S = 3600
SAMPLE = 100
FILLING = 8
OURS, PARALLEL, XARGS = "ours", "curl --parallel", "xargs -P 8 -n 1 curl"

PLAY = r"""
- name: Time the collection's way to purge URLs
  hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - name: Ours
      headroom.scale.cache_flush:
        http_caches:
          - name: edges
            urls: "{{ bench_urls }}"
        rules: {page: {paths: ["{{ bench_path }}"]}}
        entities:
          - page: "{{ range(bench_pages) | list }}"
        in_flight_s: 0
"""


class Edges:
    """The lab's edges, seen by viewers."""

    def __init__(self, pages: int) -> None:
        """Take the number of pages that are kept at each edge."""
        hosts = yaml.safe_load((INVENTORIES[0] / "hosts.yml").read_text(encoding="utf-8"))
        edges = hosts["all"]["children"]["lab"]["children"]["edges"]["hosts"]
        self.addresses = [row["ansible_host"] for row in edges.values()]
        self.pages = pages
        # what an earlier turn has left is never asked for again
        self.turn = time.time_ns()

    def path(self, page: int | str) -> str:
        """Return the path of a page."""
        return f"/fresh/{KEPT_S}/{self.turn}-{page}"

    def fill(self) -> None:
        """Ask each edge for all pages, so that they are kept."""
        self.turn = time.time_ns()
        shares = [
            (address, range(start, self.pages, FILLING)) for address in self.addresses for start in range(FILLING)
        ]
        with ThreadPoolExecutor(len(shares)) as pool:
            list(pool.map(lambda share: self._ask(*share), shares))
        self.require("HIT")

    def require(self, expected: str) -> None:
        """Require of some pages, evenly spread, whether they are kept.

        :raises RuntimeError: when one is not as expected.
        """
        sample = range(0, self.pages, max(1, self.pages // SAMPLE))
        for address in self.addresses:
            found = set(self._ask(address, sample))
            if found != {expected}:
                raise RuntimeError(f"at {address} pages are {', '.join(sorted(found))} and not all {expected}")

    def _ask(self, address: str, pages: t.Iterable[int]) -> list[str]:
        connection = http.client.HTTPConnection(address, timeout=30)
        found = []
        for page in pages:
            connection.request("GET", self.path(page))
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{address} answers {self.path(page)} with status {answer.status}")
            found.append(answer.headers.get("X-Cache", ""))
        connection.close()
        return found


class Bench:
    """Purges the same number of pages by each way in turn."""

    def __init__(self, options: argparse.Namespace, edges: Edges) -> None:
        """Take the edges."""
        self.options = options
        self.edges = edges

    def turn(self, way: str) -> float:
        """Fill the edges, purge by one way, and return URLs a second."""
        self.edges.fill()
        if way == OURS:
            seconds = self._ours().seconds
            self.edges.require("MISS")
            return len(self.edges.addresses) * self.edges.pages / seconds
        with tempfile.TemporaryDirectory() as folder:
            return self._parallel(Path(folder)) if way == PARALLEL else self._xargs(Path(folder))

    def _urls(self) -> list[str]:
        pages = range(self.edges.pages)
        return [f"http://{host}:{PURGE_PORT}{self.edges.path(page)}" for page in pages for host in self.edges.addresses]

    def _ours(self) -> Span:
        extra = {
            "bench_urls": [f"http://{host}:{PURGE_PORT}" for host in self.edges.addresses],
            "bench_path": self.edges.path("{id}"),
            "bench_pages": self.edges.pages,
        }
        with tempfile.TemporaryDirectory() as folder:
            return task_span(PLAY, "ours", INVENTORIES, extra, folder)

    def _parallel(self, folder: Path) -> float:
        lines = [f'url = "{url}"\noutput = "/dev/null"\n' for url in self._urls()]
        (folder / "urls").write_text("".join(lines), encoding="ascii")
        command = [
            "curl",
            "--silent",
            "--parallel",
            "--parallel-max",
            "16",
            "--request",
            "PURGE",
            "--config",
            str(folder / "urls"),
        ]
        began_s = time.monotonic()
        subprocess.run(command, check=True, timeout=1800, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.monotonic() - began_s
        self.edges.require("MISS")
        return len(lines) / seconds

    def _xargs(self, folder: Path) -> float:
        (folder / "urls").write_text("".join(f"{url}\n" for url in self._urls()), encoding="ascii")
        # one line for each that was purged
        each = 'curl --silent --output /dev/null --write-out "%{http_code}\\n" --request PURGE'
        script = f'timeout {self.options.xargs_s} xargs -P 8 -n 1 {each} < "$0" > "$1" || true'
        began_s = time.monotonic()
        subprocess.run(["sh", "-c", script, str(folder / "urls"), str(folder / "done")], check=True, timeout=1800)
        seconds = time.monotonic() - began_s
        codes = (folder / "done").read_text(encoding="ascii").split()
        if not codes or set(codes) - {"200", "204"}:
            raise RuntimeError(f"purges were answered with {sorted(set(codes))}")
        return len(codes) / seconds


def arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=10_000, help="URLs to purge at each edge (default: %(default)s)")
    parser.add_argument("--xargs-s", type=int, default=20, help="seconds after which xargs ends (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round with few URLs, to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.pages, options.rounds, options.xargs_s = 500, 1, 3
    if min(options.pages, options.rounds, options.xargs_s) < 1:
        parser.error("--pages, --rounds and --xargs-s must be at least 1")
    return options


def measure(options: argparse.Namespace, _lab: Lab) -> None:
    """Run all turns and print their figures."""
    began_load = round(os.getloadavg()[0], 2)
    bench = Bench(options, Edges(options.pages))
    turns: dict[str, list[float]] = {OURS: [], PARALLEL: [], XARGS: []}
    for _round in range(options.rounds):
        for way, rates in turns.items():
            rates.append(bench.turn(way))
    for way in (PARALLEL, XARGS):
        line = figure(
            BENCH,
            f"urls_per_s_vs_{way.split()[0]}",
            "URLs/s",
            turns[OURS],
            turns[way],
            way,
            more_is_better=True,
            digits=0,
            ratio_digits=2,
            pages=options.pages,
            edges=len(bench.edges.addresses),
            load=began_load,
        )
        print(json.dumps(line), flush=True)


def main() -> int:
    """Run the benchmark."""
    options = arguments()
    return run_on_lab(lambda lab: measure(options, lab))


if __name__ == "__main__":
    sys.exit(main())
