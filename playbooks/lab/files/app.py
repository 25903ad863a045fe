"""A small web application for the lab: it says its name, serves items of a shop, and fails when it is told to.

Usage: app.py NAME ADDRESS PORT DIRECTORY [SETTINGS]. While DIRECTORY holds a file "broken", everything but /headers is answered with
status 503; while it holds a file "slow", each answer to / takes a tenth of a second. SETTINGS is a file in JSON that says where the items
are: they are looked for in a Redis Cluster first, then in PostgreSQL, and kept in Redis then. While DIRECTORY holds a file "slow_items"
with a number of seconds, an item rests for up to so long each time that it was read from one of them.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import queue
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME, ADDRESS, PORT, DIRECTORY = sys.argv[1], sys.argv[2], int(sys.argv[3]), pathlib.Path(sys.argv[4])
SETTINGS = pathlib.Path(sys.argv[5]) if len(sys.argv) > 5 else None
# what took longer is served, and kept nowhere: so whoever flushes knows how long an old item may be on its way
LIMIT_S = 0.8
KEEP_S = 600
CONNECTIONS = 4


class Items:
    """The items' versions: in PostgreSQL, and in Redis once they were asked for. Connects when it is asked for the first time."""

    def __init__(self) -> None:
        """Connect to nothing yet."""
        self._lock = threading.Lock()
        self._redis = None
        self._settings = {}
        # a server has few connections to give
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self._idle = queue.LifoQueue()

    def get(self, number: int) -> tuple[int | None, str, bool]:
        """Return an item's version or None, where it was found, and whether it may be kept."""
        began_s = time.monotonic()
        cache, key = self._cache(), f"item:{number}"
        kept = cache.get(key)
        self._rest()
        if kept is not None:
            return int(kept), "redis", time.monotonic() - began_s <= LIMIT_S
        version = self._stored(number)
        self._rest()
        if version is not None and time.monotonic() - began_s <= LIMIT_S:
            cache.set(key, version, ex=KEEP_S)
        return version, "postgresql", time.monotonic() - began_s <= LIMIT_S

    @staticmethod
    def _rest() -> None:
        with contextlib.suppress(FileNotFoundError):
            time.sleep(random.uniform(0, float((DIRECTORY / "slow_items").read_text() or 0)))

    def _cache(self):
        # Debian's packages, which only the items need
        from redis.cluster import ClusterNode, RedisCluster

        with self._lock:
            if self._redis is None:
                self._settings = json.loads(SETTINGS.read_text()) if SETTINGS else {}
                given = self._settings["redis"]
                self._redis = RedisCluster(
                    startup_nodes=[ClusterNode(*node) for node in given["nodes"]],
                    username=given["user"],
                    password=given["password"],
                    ssl=True,
                    ssl_ca_certs=given["ca"],
                    socket_timeout=2,
                    socket_connect_timeout=2,
                )
            return self._redis

    def _stored(self, number: int) -> int | None:
        import psycopg

        with self._free:
            try:
                connection = self._idle.get_nowait()
            except queue.Empty:
                connection = psycopg.connect(self._settings["postgresql"], autocommit=True, connect_timeout=2)
            try:
                row = connection.execute("SELECT version FROM items WHERE id = %s", [number]).fetchone()
            except psycopg.Error:
                # as after a switchover: the next one finds the primary anew
                connection.close()
                raise
            self._idle.put(connection)
        return row[0] if row else None


ITEMS = Items()


class App(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    # an answer is written in two parts, and the second one shall not wait for the first one's receipt
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer /, /health, /item/NUMBER, /slow/SECONDS, /status/CODE, /fresh/SECONDS/TAG, and /headers with those of the request."""
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        _empty, kind, value = [*self.path.partition("?")[0].split("/"), "", ""][:3]
        status, said, keep = 200, {"name": NAME, "at": time.time_ns()}, ""
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
        elif kind == "item":
            status, keep = self._item(value, said)
        body = (json.dumps(said) + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if kind == "fresh":
            keep = f"max-age={value}"
            self.send_header("Cache-Tag", self.path.rpartition("/")[2])
        if keep:
            self.send_header("Cache-Control", keep)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    @staticmethod
    def _item(value: str, said: dict[str, object]) -> tuple[int, str]:
        """Add an item to what is said; return the status and how long the answer may be kept."""
        if not value.isdecimal() or len(value) > 9:
            return 404, "no-store"
        try:
            version, place, keep = ITEMS.get(int(value))
        except Exception as error:
            # the stores are behind all applications: no reason to take this one out
            said["error"] = type(error).__name__
            return 500, "no-store"
        said.update(item=int(value), version=version, read_from=place)
        if version is None:
            return 404, "no-store"
        return 200, f"max-age={KEEP_S}" if keep else "no-store"

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """Takes as many connections as a test makes."""

    request_queue_size = 1024
    daemon_threads = True


Server((ADDRESS, PORT), App).serve_forever()
