# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Copy the rows of leaves under one snapshot, as blocks that nobody parses, on several connections."""

from __future__ import annotations

import asyncio
import contextlib
import time
import typing as t
from dataclasses import dataclass

from ...._common.errors import HeadroomError
from ..members import Members, cut
from .catalog import Shape, table
from .guard import Guard
from .model import Leaf

if t.TYPE_CHECKING:
    import psycopg
    from psycopg import sql

# what is read from the source before it is written to the target in one go
BLOCK_BYTES = 1 << 18
# libpq reads 16 kB, and makes room for more only when it is to read again before these are taken
READS = 4
# a part is small enough that a pause or a limit takes effect soon, and large enough to cost nothing
PART_PAGES = 16384


@dataclass(frozen=True)
class Part:
    """Some pages of a leaf; the last part of a leaf has no end, since pages may be added after they were counted."""

    leaf: Leaf
    shape: Shape
    first: int
    end: int | None

    def query(self) -> sql.Composed:
        """Return what reads it."""
        from psycopg import sql

        where = sql.SQL("ctid >= {}::tid").format(sql.Literal(f"({self.first},0)"))
        if self.end is not None:
            where += sql.SQL(" AND ctid < {}::tid").format(sql.Literal(f"({self.end},0)"))
        columns = sql.SQL(", ").join(map(sql.Identifier, self.shape.columns))
        name = table(self.leaf.schema, self.leaf.name)
        return sql.SQL("COPY (SELECT {} FROM ONLY {} WHERE {}) TO STDOUT (FORMAT {})").format(
            columns, name, where, self._format()
        )

    def target(self) -> sql.Composed:
        """Return what writes it."""
        from psycopg import sql

        columns = sql.SQL(", ").join(map(sql.Identifier, self.shape.columns))
        name = table(self.leaf.schema, self.leaf.name)
        return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT {})").format(name, columns, self._format())

    def _format(self) -> sql.SQL:
        from psycopg import sql

        # sessions of members write and read each value alike
        return sql.SQL("binary" if self.shape.is_binary else "text")


def parts_of(leaf: Leaf, shape: Shape, pages: int, part_pages: int = PART_PAGES) -> list[Part]:
    """Cut a leaf into parts by its pages."""
    starts = list(range(0, max(pages, 1), part_pages))
    return [Part(leaf, shape, first, end) for first, end in zip(starts, [*starts[1:], None], strict=True)]


async def replication_connection(members: Members, name: str) -> psycopg.AsyncConnection[t.Any]:
    """Return a connection that takes commands of the replication protocol, for the one that exports a snapshot."""
    import psycopg

    member = members.members[name]

    async def work() -> psycopg.AsyncConnection[t.Any]:
        return await psycopg.AsyncConnection.connect(
            **{**members.login.to_libpq(), "dbname": member.dbname},
            host=member.host,
            port=member.port,
            connect_timeout=max(2, round(members.timeout_s)),
            application_name="headroom_shards",
            replication="database",
            autocommit=True,
        )

    found: psycopg.AsyncConnection[t.Any] = await members.guarded(
        name, work(), None, members.timeout_s, "open a replication connection to"
    )
    return found


class Copier:
    """Copies parts from one shard to another until none is left."""

    def __init__(self, members: Members, source: str, target: str, snapshot: str, guard: Guard, purpose: str) -> None:
        """Take the shards, the snapshot, what holds the copy back, and a name for its connections."""
        self.members = members
        self.source = source
        self.target = target
        self.snapshot = snapshot
        self.guard = guard
        self.purpose = purpose
        self.bytes_done = 0
        self.rows = 0

    async def run(
        self, parts: t.Sequence[Part], streams: int, ready: t.Callable[[], t.Awaitable[None]] | None = None
    ) -> None:
        """Copy all parts.

        :param ready: called once every connection has the snapshot, so that whoever exported it can go.
        """
        waiting = list(reversed(parts))
        streams = max(1, min(streams, len(waiting)))
        barrier = [asyncio.get_running_loop().create_future() for _stream in range(streams)]
        tasks = [asyncio.ensure_future(self._stream(number, waiting, barrier[number])) for number in range(streams)]
        opened = asyncio.ensure_future(asyncio.gather(*barrier))
        try:
            await asyncio.wait({opened, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            if opened.done() and ready is not None:
                await ready()
            await asyncio.gather(*tasks)
        finally:
            opened.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(opened, *tasks, return_exceptions=True)
            names = [(shard, f"{self.purpose} {n}") for shard in (self.source, self.target) for n in range(streams)]
            for shard, purpose in names:
                cut(self.members._connections.get((shard, purpose)))
            await asyncio.gather(*(self.members.close(shard, purpose) for shard, purpose in names))

    async def _stream(self, number: int, waiting: list[Part], opened: asyncio.Future[None]) -> None:
        from psycopg import sql

        purpose = f"{self.purpose} {number}"
        await self.members.rows(
            self.source, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", purpose=purpose, verb="copy from"
        )
        await self.members.rows(
            self.source,
            sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(self.snapshot)),
            purpose=purpose,
            verb="copy from",
        )
        # both databases have the same encoding; texts need not be valid in it
        query = "SELECT set_config('client_encoding', current_setting('server_encoding'), false)"
        for shard in (self.source, self.target):
            await self.members.rows(shard, query, purpose=purpose, verb="copy with")
        if not opened.done():
            opened.set_result(None)
        while waiting:
            await self._part(waiting.pop(), purpose)

    async def _part(self, part: Part, purpose: str) -> None:
        source = await self.members.connection(self.source, purpose)
        target = await self.members.connection(self.target, purpose)
        verb = f"copy {part.leaf.schema}.{part.leaf.name}"
        reader = Wire(self.members, self.source, source, f"{verb} from")
        writer = Wire(self.members, self.target, target, f"{verb} to")
        await asyncio.gather(reader.start(part.query()), writer.start(part.target()))
        async for block in reader.blocks():
            await self.guard.passes(len(block))
            await writer.write(block)
            self.bytes_done += len(block)
            # where neither side makes it wait, others would never have their turn
            await asyncio.sleep(0)
        self.rows += await writer.finish()
        await reader.finish(end=False)


class Wire:
    """One side of a COPY on the level of libpq, where a block of many rows costs no more than one of them."""

    STALL_S = 60.0

    def __init__(self, members: Members, name: str, connection: psycopg.AsyncConnection[t.Any], verb: str) -> None:
        """Take the connection, and what is done with it for the sentence of an error."""
        self.members = members
        self.name = name
        self.connection = connection
        self.verb = verb
        self.pg = connection.pgconn
        self.loop = asyncio.get_running_loop()

    async def start(self, query: sql.Composed) -> None:
        """Begin to copy."""
        from psycopg.pq import ExecStatus

        with self._explained():
            self.pg.nonblocking = 1
            self.pg.send_query(query.as_bytes(self.connection))
            await self._flush()
            result = await self._result()
        if result is None or result.status not in (ExecStatus.COPY_IN, ExecStatus.COPY_OUT):
            raise self._refused(result)

    async def blocks(self) -> t.AsyncIterator[bytearray]:
        """Give what the source sends."""
        with self._explained():
            done = dry = False
            take = self.pg.get_copy_data
            while not done:
                # rows that were kept apart until there are enough would be looked at by the garbage collector again and again
                block = bytearray()
                while len(block) < BLOCK_BYTES:
                    count, row = take(1)
                    if count > 0:
                        block += row
                        dry = False
                    elif count == 0:
                        # mostly there is more already, and waiting for it costs more than reading it
                        if dry:
                            await self._readable()
                        for _again in range(READS):
                            self.pg.consume_input()
                        dry = True
                    else:
                        done = True
                        break
                if block:
                    yield block

    async def write(self, block: bytearray) -> None:
        """Send a block."""
        with self._explained():
            self.pg.put_copy_data(block)
            await self._flush()

    async def finish(self, end: bool = True) -> int:
        """End the copy and return the number of its rows."""
        from psycopg.pq import ExecStatus

        rows, failed = 0, None
        with self._explained():
            if end:
                self.pg.put_copy_end()
                await self._flush()
            while (result := await self._result()) is not None:
                if result.status == ExecStatus.FATAL_ERROR:
                    failed = result
                rows = result.command_tuples or rows
            self.pg.nonblocking = 0
        if failed is not None:
            raise self._refused(failed)
        return rows

    async def _result(self) -> t.Any:
        while self.pg.is_busy():
            await self._readable()
            self.pg.consume_input()
        return self.pg.get_result()

    async def _flush(self) -> None:
        while self.pg.flush():
            # the server may have something to say before it reads on, such as why it will not
            await self._ready(write=True)
            self.pg.consume_input()

    async def _readable(self) -> None:
        await self._ready(write=False)

    async def _ready(self, write: bool) -> None:
        event = self.loop.create_future()
        handle = self.pg.socket

        def wake() -> None:
            if not event.done():
                event.set_result(None)

        self.loop.add_reader(handle, wake)
        if write:
            self.loop.add_writer(handle, wake)
        try:
            await asyncio.wait_for(event, self.STALL_S)
        except TimeoutError:
            cut(self.connection)
            raise self.members.error(
                self.name, self.verb, f"nothing came through for {self.STALL_S:g} s", code="timeout"
            ) from None
        finally:
            self.loop.remove_reader(handle)
            if write:
                self.loop.remove_writer(handle)

    @contextlib.contextmanager
    def _explained(self) -> t.Iterator[None]:
        import psycopg

        try:
            yield
        except (psycopg.Error, OSError) as error:
            raise self.members.error(self.name, self.verb, error) from error

    def _refused(self, result: t.Any) -> HeadroomError:
        import psycopg

        if result is None:
            return self.members.error(self.name, self.verb, "the server did not begin to copy")
        error = psycopg.errors.error_from_result(result)
        return self.members.error(self.name, self.verb, error)


class Rate:
    """Bytes in the last few seconds."""

    def __init__(self) -> None:
        """Begin now."""
        self.marks: list[tuple[float, int]] = [(time.monotonic(), 0)]

    def at(self, bytes_done: int) -> float:
        """Return bytes per second, after so many bytes."""
        now = time.monotonic()
        self.marks.append((now, bytes_done))
        while len(self.marks) > 2 and now - self.marks[0][0] > 10:
            self.marks.pop(0)
        began, before = self.marks[0]
        return (bytes_done - before) / (now - began) if now > began else 0.0
