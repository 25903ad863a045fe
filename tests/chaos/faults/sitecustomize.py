# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stop a run at one exact point of its work, so that a fault can be made there.

Python imports this by itself in every process that has this directory in PYTHONPATH. ``HEADROOM_FAULT`` names a directory with
``point.json``: ``pattern``, bytes of a command to a Redis server, ``journal`` for what has reached the disk of the journal, or
``journal line`` for a line that was written to it; ``nth`` occurrence; ``when``, ``before`` or ``after`` the command is sent;
``to``, the addresses that count, all when empty. There the process writes ``reached`` and stands still until ``go`` appears.

With ``driver`` ``psycopg`` the pattern is a regular expression for a statement to a PostgreSQL server and its parameters, and
``after`` is when the server has answered.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import re
import sys
import time
import typing as t

PATIENCE_S = 120
WIRE = "ansible_collections.headroom.scale.plugins.module_utils._common.redis.wire"
CURSOR = "psycopg.cursor_async"


class Point:
    """The one point where the run stops."""

    def __init__(self, directory: str) -> None:
        """Read where it is."""
        self.directory = directory
        with open(os.path.join(directory, "point.json"), encoding="utf-8") as file:
            point = json.load(file)
        self.pattern: str = point["pattern"]
        self.when: str = point["when"]
        self.to: list[str] = point["to"]
        self.left: int = point["nth"]
        self.driver: str = point.get("driver", "redis")

    def passes(self, address: str = "") -> None:
        """Count what has passed, and stand still at the point."""
        reached = os.path.join(self.directory, "reached")
        self.left -= 1
        if self.left or os.path.exists(reached):
            return
        with open(f"{reached}.new", "w", encoding="utf-8") as file:
            json.dump({"pid": os.getpid(), "address": address}, file)
        os.replace(f"{reached}.new", reached)
        deadline = time.monotonic() + PATIENCE_S
        while not os.path.exists(os.path.join(self.directory, "go")) and time.monotonic() < deadline:
            time.sleep(0.01)

    def counts(self, data: bytes, address: str) -> bool:
        """Tell whether a command is one of those that count."""
        return f"\r\n{self.pattern}\r\n".encode() in data and (not self.to or address in self.to)


def watch_journal(point: Point) -> None:
    """Stop after a line of the journal was written, or is on the disk."""
    name = "write" if point.pattern.endswith("line") else "fsync"
    call = getattr(os, name)

    def watched(*given: t.Any) -> t.Any:
        result = call(*given)
        if sys._getframe(1).f_code.co_filename.endswith("journal.py"):
            point.passes()
        return result

    setattr(os, name, watched)


class Commands(importlib.abc.MetaPathFinder):
    """Stops at a command, by wrapping the driver's way to send one when it is imported."""

    module = WIRE

    def __init__(self, point: Point) -> None:
        """Take the point."""
        self.point = point

    def find_spec(self, name: str, path: t.Any = None, target: t.Any = None) -> t.Any:
        """Return the driver's own module with a loader that wraps."""
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def loaded(module: t.Any) -> None:
            load(module)
            # the loader of an archive serves its other modules too
            if module.__name__ == self.module:
                self.wrap(module)

        spec.loader.exec_module = loaded
        return spec

    def wrap(self, module: t.Any) -> None:
        """Put the point around every command."""
        exchange, point = module.Wire.exchange, self.point

        async def watched(wire: t.Any, data: bytes, count: int, limit_s: float) -> t.Any:
            host, port = wire._transport.get_extra_info("peername")[:2] if wire._transport else ("", 0)
            address = f"{host}:{port}"
            counts = point.counts(data, address)
            if counts and point.when == "before":
                point.passes(address)
            receive = wire.receive

            async def sent(*given: t.Any) -> t.Any:
                if counts and point.when == "after":
                    point.passes(address)
                return await receive(*given)

            wire.receive = sent
            try:
                return await exchange(wire, data, count, limit_s)
            finally:
                del wire.receive

        module.Wire.exchange = watched


class Statements(Commands):
    """Stops at a statement, by wrapping the driver's way to run one when it is imported."""

    module = CURSOR

    def wrap(self, module: t.Any) -> None:
        """Put the point around every statement."""
        execute, point, pattern = module.AsyncCursor.execute, self.point, re.compile(self.point.pattern, re.DOTALL)

        async def watched(cursor: t.Any, query: t.Any, params: t.Any = None, **named: t.Any) -> t.Any:
            text = query if isinstance(query, str) else query.as_string(cursor)
            given = params.values() if isinstance(params, dict) else params or ()
            text += " ".join(str(getattr(one, "obj", one)) for one in given)
            info = cursor.connection.info
            address = f"{info.host}:{info.port}"
            counts = pattern.search(text) is not None and (not point.to or address in point.to)
            if counts and point.when == "before":
                point.passes(address)
            result = await execute(cursor, query, params, **named)
            if counts and point.when == "after":
                point.passes(address)
            return result

        module.AsyncCursor.execute = watched


if os.environ.get("HEADROOM_FAULT"):
    _point = Point(os.environ["HEADROOM_FAULT"])
    if _point.pattern.startswith("journal"):
        watch_journal(_point)
    else:
        sys.meta_path.insert(0, Statements(_point) if _point.driver == "psycopg" else Commands(_point))
