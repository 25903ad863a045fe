# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stop a run at one exact point of its work, so that a fault can be made there.

Python imports this by itself in every process that has this directory in PYTHONPATH. ``HEADROOM_FAULT`` names a directory with
``point.json``: ``pattern``, bytes of a command to a Redis server, or ``journal`` for a line that has reached the journal; ``nth``
occurrence; ``when``, ``before`` or ``after`` the command is sent; ``to``, the addresses that count, all when empty. There the
process writes ``reached`` and stands still until ``go`` appears.

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
CONNECTION = "redis.asyncio.connection"
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
    """Stop after a line of the journal is on the disk."""
    fsync = os.fsync

    def watched(handle: int) -> None:
        fsync(handle)
        if sys._getframe(1).f_code.co_filename.endswith("journal.py"):
            point.passes()

    os.fsync = watched


class Commands(importlib.abc.MetaPathFinder):
    """Stops at a command, by wrapping the driver's way to send one when it is imported."""

    module = CONNECTION

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
        spec.loader.exec_module = lambda module: (load(module), self.wrap(module))
        return spec

    def wrap(self, module: t.Any) -> None:
        """Put the point around every command."""
        send, point = module.AbstractConnection.send_packed_command, self.point

        async def watched(connection: t.Any, command: t.Any, *rest: t.Any, **named: t.Any) -> None:
            data = b"".join(command) if isinstance(command, list) else bytes(command)
            counts = point.counts(data, f"{connection.host}:{connection.port}")
            if counts and point.when == "before":
                point.passes(f"{connection.host}:{connection.port}")
            await send(connection, command, *rest, **named)
            if counts and point.when == "after":
                point.passes(f"{connection.host}:{connection.port}")

        module.AbstractConnection.send_packed_command = watched


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
    if _point.pattern == "journal":
        watch_journal(_point)
    else:
        sys.meta_path.insert(0, Statements(_point) if _point.driver == "psycopg" else Commands(_point))
