# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Look at all nodes of a cluster at once: one event loop, read only, every node within its own time limit.

The lag is measured against the primary's write position, which is read on the primary's own connection after the
replica is ready and before
the replica is asked; reads of it are shared by the replicas that wait for one, so that fifty replicas cost a few. The
heartbeat
needs no table: a transaction that only emits a WAL message gets an id, and a replica shows the heartbeat once its
snapshot sees that id.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import ipaddress
import json
import os
import socket
import struct
import threading
import typing as t

from ..connection import Login
from .model import (
    Catchup,
    Fault,
    NodeFacts,
    NodeSpec,
    Pooler,
    Receiver,
    Sender,
    Slot,
    Upstream,
    parse_history,
    parse_lsn,
)

APPLICATION_NAME = "headroom_health"
CATCH_UP_S = 1.0
"""Longest time that a replica is given to replay past the primary's position before it counts as behind."""
POLL_S = (0.02, 0.2)
"""First and longest pause between two polls of a replica."""
DISK_S = 1.0
"""Longest time spent on the size of a data directory, which never decides anything."""

_SENDERS_SQL = """
SELECT coalesce(json_agg(json_build_object('row', to_json(s),
  'age', extract(epoch FROM clock_timestamp() - s.reply_time), 'lag_s', extract(epoch FROM s.replay_lag))), '[]')
FROM pg_stat_replication s
"""

# One row of JSON: whole rows of views travel as they are, so a column that a server version lacks is simply absent.
_FACTS_SQL = (
    """
WITH base AS (SELECT pg_is_in_recovery() AS r), settings AS MATERIALIZED (SELECT name, setting, source FROM pg_settings
WHERE name IN
  ('primary_conninfo', 'primary_slot_name', 'synchronous_standby_names', 'wal_receiver_timeout', 'port',
   'default_transaction_read_only'))
SELECT json_build_object(
  'in_recovery', r,
  'system_identifier', (SELECT system_identifier::text FROM pg_control_system()),
  'start_us', (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
  'flush_lsn', CASE WHEN NOT r THEN pg_current_wal_flush_lsn() END,
  'timeline', CASE
    WHEN r THEN (SELECT greatest(c.timeline_id, m.min_recovery_end_timeline) FROM pg_control_checkpoint() c,
    pg_control_recovery() m)
    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))::bit(32)::int END,
  'receive_lsn', CASE WHEN r THEN pg_last_wal_receive_lsn() END,
  'replay_lsn', CASE WHEN r THEN pg_last_wal_replay_lsn() END,
  'replay_paused', CASE WHEN r THEN {paused} END,
  'receivers', (SELECT json_agg(json_build_object(
      'row', to_jsonb(w) - 'conninfo', 'age', extract(epoch FROM clock_timestamp() - w.last_msg_receipt_time)))
    FROM pg_stat_wal_receiver w),
  'sees_all', pg_has_role('pg_read_all_stats', 'usage'),
  'settings', (SELECT json_object_agg(name, setting) FROM settings),
  'read_only', (SELECT setting = 'on' AND source NOT IN ('client', 'user', 'session') FROM settings
    WHERE name = 'default_transaction_read_only'),
  'slots', (SELECT coalesce(json_agg(json_build_object(
      'row', to_json(s),
      'inactive_s', extract(epoch FROM clock_timestamp() - (to_json(s) ->> 'inactive_since')::timestamptz))), '[]')
    FROM pg_replication_slots s),
  'senders', ("""
    + _SENDERS_SQL
    + """),
  'conflicts', (SELECT sum(confl_tablespace + confl_lock + confl_snapshot + confl_bufferpin + confl_deadlock)
    FROM pg_stat_database_conflicts),
  'history_file', has_function_privilege('pg_read_binary_file(text,bigint,bigint,boolean)', 'execute'),
  'history_function', (SELECT bool_or(has_schema_privilege(n.oid, 'usage') AND has_function_privilege(p.oid, 'execute'))
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_roles o ON o.oid = p.proowner
    WHERE n.nspname = 'headroom' AND p.proname = 'timeline_history' AND p.proargtypes::text = '23' AND o.rolsuper)
) FROM base
"""
)

_HISTORY_FILE_SQL = "SELECT convert_from(pg_read_binary_file('pg_wal/{name}.history', 0, 1048576, true), 'UTF8')"
_HISTORY_FUNCTION_SQL = "SELECT headroom.timeline_history({timeline})"
_POSITION_SQL = (
    "SELECT json_build_object('lsn', pg_current_wal_flush_lsn(), 'now', extract(epoch FROM clock_timestamp()))"
)
_REPLAY_SQL = """
SELECT json_build_object('lsn', pg_last_wal_replay_lsn(), 'received', pg_last_wal_receive_lsn(),
  'xact', extract(epoch FROM pg_last_xact_replay_timestamp()))
"""
_DISK_SQL = """
SELECT ((SELECT sum(pg_database_size(oid)) FROM pg_database) + (SELECT coalesce(sum(size), 0) FROM
pg_ls_waldir()))::bigint
"""
_POOLER_SQL = """
SELECT json_build_object('system_identifier', (SELECT system_identifier::text FROM pg_control_system()),
  'start_us', (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
  'port', (SELECT setting FROM pg_settings WHERE name = 'port'))
"""
# The message makes the commit write and flush WAL at once; local commit keeps it from waiting for a lost standby.
_MARK_SQL = """
BEGIN READ WRITE; SET LOCAL synchronous_commit = local;
SELECT pg_logical_emit_message(true, 'headroom_health', 'heartbeat');
SELECT pg_current_xact_id()::text; COMMIT
"""
_SEEN_SQL = "SELECT pg_visible_in_snapshot('{xid}'::xid8, pg_current_snapshot())"

_HINTS = {
    "dns_failure": "Check the name and the resolver of the host that runs this.",
    "connection_refused": "Is the server running there, and does it listen on that address?",
    "connect_timeout": "Is the host up, and does a firewall drop the packets?",
    "host_unreachable": "Check the route to the host.",
    "no_response": "The port is open and says nothing: is the server frozen, or is it another service?",
    "tls_refused": "Compare ssl_mode and ca_cert with the server's certificate and ssl setting.",
    "authentication_failed": "Check login_user and login_password.",
    "access_denied": "Check pg_hba.conf and the CONNECT privilege.",
    "database_missing": "Check login_db.",
    "too_many_connections": "Raise max_connections or reserve a connection for monitoring.",
    "query_timeout": "The server is overloaded, or timeout_s is too short.",
    "starting_up": "Wait until it accepts connections.",
    "shutting_down": "Wait until it is up again.",
}

# In this order: a message about pg_hba.conf also speaks of SSL.
_TEXTS = (
    ("pg_hba.conf", "access_denied"),
    ("not permitted to log in", "access_denied"),
    ("permission denied", "access_denied"),
    ("authentication failed", "authentication_failed"),
    ("no password supplied", "authentication_failed"),
    ("password is required", "authentication_failed"),
    ("no such user", "authentication_failed"),
    ("too many", "too_many_connections"),
    ("remaining connection slots", "too_many_connections"),
    ("starting up", "starting_up"),
    ("not yet accepting", "starting_up"),
    ("in recovery mode", "starting_up"),
    ("not accepting connections", "starting_up"),
    ("shutting down", "shutting_down"),
    ("certificate", "tls_refused"),
    ("ssl", "tls_refused"),
)
_STATES = {
    "57P03": "starting_up",
    "53300": "too_many_connections",
    "28000": "access_denied",
    "28P01": "authentication_failed",
    "3D000": "database_missing",
    "42501": "access_denied",
}


class Trouble(Exception):
    """A stage of looking at a server failed: a stable code and its cause."""

    def __init__(self, code: str, cause: str) -> None:
        """Keep the code and the cause."""
        super().__init__(cause)
        self.code = code


@dataclasses.dataclass(frozen=True)
class Look:
    """How to look: the login, seconds per node, and whether to write a heartbeat."""

    login: Login
    timeout_s: float = 5.0
    heartbeat: bool = False


def observe(specs: t.Sequence[NodeSpec], look: Look) -> dict[str, NodeFacts]:
    """Look at all nodes once and return their facts by name.

    Takes about as long as the slowest node and at most ``timeout_s`` and a little; no node's trouble raises.

    :raises ModuleNotFoundError: when psycopg is not installed.
    """
    import psycopg  # noqa: F401  # fail before anything is contacted

    return asyncio.run(_Round(specs, look).run())


def classify(text: str, used_password: bool = False) -> str | None:
    """Return the reason code that the message of a failed connection stands for, ``None`` when it is not known."""
    low = text.lower()
    for part, code in _TEXTS:
        if part in low:
            return code
    if "does not exist" in low and "database" in low:
        return "database_missing"
    if "role" in low and "does not exist" in low:
        return "authentication_failed"
    return "authentication_failed" if used_password else None


def parse_error_response(payload: bytes) -> dict[str, str]:
    """Return the fields of an ErrorResponse message of the PostgreSQL protocol by their one-letter code."""
    fields = {}
    for part in payload.split(b"\0"):
        if part:
            fields[chr(part[0])] = part[1:].decode("utf-8", "replace")
    return fields


class _Shared:
    """One reader at a time; what it read is handed to all who asked before it began."""

    def __init__(self, read: t.Callable[[], t.Awaitable[t.Any]]) -> None:
        self._read = read
        self._lock = asyncio.Lock()
        self._begun = self._done = 0
        self._value: t.Any = None

    async def get(self) -> t.Any:
        """Return a value whose reading began after this call."""
        wanted = self._begun + 1
        async with self._lock:
            if self._done < wanted:
                self._begun += 1
                self._value = await self._read()
                self._done = self._begun
            return self._value


class _Primary:
    """The connection to the primary, as a service to the replicas."""

    def __init__(self, session: _Session, deadline: float) -> None:
        self.session = session
        self.deadline = deadline
        self.position = _Shared(self._position)
        self.mark = _Shared(self._mark)

    async def _position(self) -> tuple[int, float, float]:
        """Return the write position, the primary's clock, and the loop's time when both were known."""
        row = await self.session.json(_POSITION_SQL, self.deadline)
        lsn = parse_lsn(row["lsn"])
        if lsn is None:
            raise Trouble("query_failed", "the primary shows no write position")
        return lsn, float(row["now"]), asyncio.get_running_loop().time()

    async def _mark(self) -> tuple[int, float]:
        """Commit a heartbeat and return its transaction id and the loop's time when it was committed."""
        value = await self.session.value(_MARK_SQL, self.deadline, result=3)
        return int(value), asyncio.get_running_loop().time()


class _Session:
    """One connection with a deadline per query that holds even when the server falls silent."""

    def __init__(self, connection: t.Any, login: Login) -> None:
        self._connection = connection
        self._login = login
        self.server_version: int = connection.info.server_version

    async def value(self, query: str, deadline: float, result: int = 0) -> t.Any:
        """Return the first column of the first row of the result with the given number.

        :raises Trouble: ``query_timeout``, ``connection_lost`` or ``query_failed``.
        """
        import psycopg

        async def work() -> t.Any:
            cursor = await self._connection.execute(query)
            for _dummy in range(result):
                cursor.nextset()
            row = await cursor.fetchone()
            return row[0] if row else None

        task = asyncio.ensure_future(work())
        try:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            _done, pending = await asyncio.wait({task}, timeout=left)
            if pending:
                # Cancelling would ask the silent server to cancel and wait for its answer; a closed line ends it here.
                self.cut()
                await asyncio.wait({task}, timeout=0.2)
                task.cancel()
                raise Trouble("query_timeout", f"no answer to a query within {left:.1f} s")
            return task.result()
        except psycopg.errors.QueryCanceled as error:
            raise Trouble("query_timeout", "a query took longer than it may") from error
        except psycopg.Error as error:
            lost = self._connection.closed or self._connection.broken
            code = _STATES.get(error.sqlstate or "", "connection_lost" if lost else "query_failed")
            if error.sqlstate in ("57P01", "57P02"):
                code = "shutting_down"
            raise Trouble(code, self._login.scrub(_one_line(error))) from error
        finally:
            if task.done() and not task.cancelled():
                task.exception()

    async def json(self, query: str, deadline: float) -> t.Any:
        """Return :meth:`value` as decoded JSON."""
        value = await self.value(query, deadline)
        return json.loads(value) if isinstance(value, str) else value

    def cut(self) -> None:
        """Shut the socket down, so that whoever waits on it sees its end."""
        with contextlib.suppress(Exception), socket.socket(fileno=os.dup(self._connection.pgconn.socket)) as line:
            line.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Close the connection; never raises."""
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._connection.close(), 0.2)


class _Round:
    """One observation of all nodes."""

    def __init__(self, specs: t.Sequence[NodeSpec], look: Look) -> None:
        self.specs = specs
        self.look = look
        self._names: dict[tuple[str, int], asyncio.Future[list[str]]] = {}
        self._primary: asyncio.Future[_Primary | None]
        self._undecided = len(specs)
        self._replicas_open = 0
        self._replicas_done: asyncio.Event

    async def run(self) -> dict[str, NodeFacts]:
        """Return the facts of all nodes by name."""
        loop = asyncio.get_running_loop()
        self._primary = loop.create_future()
        self._replicas_done = asyncio.Event()
        self._replicas_open = len(self.specs)
        facts = await asyncio.gather(*(self._node(spec) for spec in self.specs))
        return {fact.name: fact for fact in facts}

    # ---- one node

    async def _node(self, spec: NodeSpec) -> NodeFacts:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        deadline = begun + self.look.timeout_s
        pooler = asyncio.ensure_future(self._pooler(spec, deadline)) if spec.pooler_port is not None else None
        decided = _Once(self._decide)
        closed = _Once(self._replica_closed)
        addresses: list[str] = []
        try:
            session, found = await self._connect(spec.host, spec.port, deadline, direct=True, addresses=addresses)
            try:
                facts = await self._server(spec, session, found, deadline, decided, closed)
            finally:
                await session.close()
        except Trouble as trouble:
            fault = self._fault(spec.name, spec.where, trouble, loop.time() - begun)
            facts = NodeFacts(name=spec.name, fault=fault, addresses=tuple(addresses))
        finally:
            decided(None)
            closed(None)
        return dataclasses.replace(facts, pooler=await pooler) if pooler else facts

    def _fault(self, name: str, where: str, trouble: Trouble, waited_s: float) -> Fault:
        hint = _HINTS.get(trouble.code, "")
        cause = self.look.login.scrub(str(trouble)).rstrip(".")
        what = f"{name} on {where}" if name != where else where
        return Fault(trouble.code, f"Failed to look at {what}: {cause}. {hint}".rstrip(), waited_s)

    def _decide(self, primary: _Primary | None) -> None:
        """Note what one node turned out to be; when none is left, there is no primary."""
        self._undecided -= 1
        if not self._primary.done() and (primary is not None or self._undecided == 0):
            self._primary.set_result(primary)

    def _replica_closed(self, dummy: None) -> None:
        self._replicas_open -= 1
        if self._replicas_open == 0:
            self._replicas_done.set()

    async def _server(
        self, spec: NodeSpec, session: _Session, addresses: list[str], deadline: float, decided: _Once, closed: _Once
    ) -> NodeFacts:
        paused = (
            "pg_get_wal_replay_pause_state() <> 'not paused'"
            if session.server_version >= 140000
            else "pg_is_wal_replay_paused()"
        )
        raw = await session.json(_FACTS_SQL.format(paused=paused), deadline)
        facts = dataclasses.replace(
            facts_from_row(spec.name, raw), addresses=tuple(addresses), server_version=session.server_version
        )
        if facts.in_recovery is False:
            service = _Primary(session, deadline)
            decided(service)
        else:
            decided(None)
        facts = dataclasses.replace(facts, history=await self._history(session, facts, raw, deadline))
        if facts.in_recovery is False:
            facts = await self._serve(facts, session, service, closed, deadline)
        else:
            facts = await self._compare(facts, session, deadline)
            facts = dataclasses.replace(facts, sender_addresses=await self._sender_addresses(facts, deadline))
            closed(None)
        return dataclasses.replace(facts, data_bytes=await self._disk(session, deadline))

    async def _history(self, session: _Session, facts: NodeFacts, raw: t.Mapping[str, t.Any], deadline: float) -> t.Any:
        """Read the history of the node's timeline; the first timeline has none."""
        if facts.timeline is None:
            return None
        if facts.timeline == 1:
            return ()
        queries = []
        if raw.get("history_file"):
            queries.append(_HISTORY_FILE_SQL.format(name=f"{facts.timeline:08X}"))
        if raw.get("history_function"):
            queries.append(_HISTORY_FUNCTION_SQL.format(timeline=int(facts.timeline)))
        for query in queries:
            try:
                history = parse_history(await session.value(query, deadline))
            except Trouble as trouble:
                if trouble.code != "query_failed":
                    raise
                continue
            if history:
                return history
        return None

    async def _serve(
        self, facts: NodeFacts, session: _Session, service: _Primary, closed: _Once, deadline: float
    ) -> NodeFacts:
        """Keep the primary's connection at the replicas' disposal, then look once more at who is still attached."""
        closed(None)
        if self._primary.result() is not service:
            return facts
        marker_error = None
        if self.look.heartbeat:
            try:
                await service.mark.get()
            except Trouble as trouble:
                marker_error = (
                    f"Failed to write the heartbeat on {facts.name}: {trouble}. Use a login that may write there."
                )
        grace = max(0.0, deadline - asyncio.get_running_loop().time()) + 0.5
        with contextlib.suppress(asyncio.TimeoutError):  # noqa: UP041
            await asyncio.wait_for(self._replicas_done.wait(), grace)
        try:
            if facts.senders is None:
                return dataclasses.replace(facts, marker_error=marker_error)
            rows = await session.json(_SENDERS_SQL, asyncio.get_running_loop().time() + 1.0)
            facts = dataclasses.replace(facts, senders=_senders(rows))
        except Trouble as trouble:
            if trouble.code != "query_failed":
                raise
        return dataclasses.replace(facts, marker_error=marker_error)

    async def _compare(self, facts: NodeFacts, session: _Session, deadline: float) -> NodeFacts:
        """Measure how far the replica is behind, in bytes and seconds, and when it shows the heartbeat."""
        loop = asyncio.get_running_loop()
        try:
            primary = await asyncio.wait_for(asyncio.shield(self._primary), max(0.0, deadline - loop.time()))
        except asyncio.TimeoutError:  # noqa: UP041  # another class before Python 3.11
            primary = None
        if primary is None:
            return facts
        try:
            position = asyncio.ensure_future(primary.position.get())
            done, _dummy = await asyncio.wait({position}, timeout=max(0.0, deadline - loop.time()))
            if not done:
                return facts
            primary_lsn, primary_now, read_at = position.result()
        except Trouble:
            return facts
        facts = await self._catch_up(facts, session, deadline, primary_lsn, primary_now, read_at)
        if self.look.heartbeat:
            facts = await self._await_mark(facts, session, deadline, primary)
        return facts

    async def _catch_up(
        self, facts: NodeFacts, session: _Session, deadline: float, primary_lsn: int, primary_now: float, read_at: float
    ) -> NodeFacts:
        loop = asyncio.get_running_loop()
        if facts.replay_lsn is not None and facts.replay_lsn >= primary_lsn:
            return dataclasses.replace(facts, catchup=Catchup(primary_lsn, facts.replay_lsn, 0.0, 0.0, None))
        end = min(read_at + CATCH_UP_S, deadline - 0.05 * self.look.timeout_s)
        pause = POLL_S[0]
        first: int | None = None
        while True:
            row = await session.json(_REPLAY_SQL, deadline)
            now = loop.time()
            lsn = parse_lsn(row["lsn"])
            facts = dataclasses.replace(facts, replay_lsn=lsn, receive_lsn=parse_lsn(row["received"]))
            # The first comparison is the lag in bytes; later ones only tell how long it took to catch up.
            first = lsn if first is None else first
            if lsn is not None and lsn >= primary_lsn:
                caught_up_s = 0.0 if first == lsn else now - read_at
                return dataclasses.replace(facts, catchup=Catchup(primary_lsn, first, caught_up_s, now - read_at, None))
            if now + pause >= end:
                age = None if row["xact"] is None else primary_now + (now - read_at) - float(row["xact"])
                return dataclasses.replace(
                    facts, catchup=Catchup(primary_lsn, first, None, now - read_at, age, lsn != first)
                )
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, POLL_S[1])

    async def _await_mark(self, facts: NodeFacts, session: _Session, deadline: float, primary: _Primary) -> NodeFacts:
        loop = asyncio.get_running_loop()
        mark = asyncio.ensure_future(primary.mark.get())
        done, _dummy = await asyncio.wait({mark}, timeout=max(0.0, deadline - loop.time()))
        if not done:
            return facts
        try:
            xid, committed_at = mark.result()
        except Trouble as trouble:
            return dataclasses.replace(
                facts, marker_error=f"The heartbeat could not be written on the primary: {trouble}."
            )
        pause = POLL_S[0]
        # Leave room before the deadline: a heartbeat that is late must not make the node look unreachable.
        end = deadline - 0.05 * self.look.timeout_s
        while True:
            if await session.value(_SEEN_SQL.format(xid=xid), deadline):
                return dataclasses.replace(facts, marker_s=round(max(0.0, loop.time() - committed_at), 4))
            if loop.time() + pause >= end:
                return facts
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, POLL_S[1])

    async def _sender_addresses(self, facts: NodeFacts, deadline: float) -> tuple[str, ...]:
        """Resolve the name of the server this replica streams from, unless a node is declared by that name."""
        host = facts.receiver.sender_host if facts.receiver and facts.receiver.sender_host else None
        port = facts.receiver.sender_port if facts.receiver else None
        if host is None and facts.upstream is not None:
            host, port = facts.upstream.host, facts.upstream.port
        if not host or "," in host or any(host in (spec.name, spec.host) for spec in self.specs):
            return ()
        try:
            return tuple(await self._resolve(host, port or 5432, deadline))
        except Trouble:
            return ()

    async def _disk(self, session: _Session, deadline: float) -> int | None:
        """Return the size of the databases and the WAL where the login may know and it is quick."""
        now = asyncio.get_running_loop().time()
        limit_s = min(DISK_S, deadline - now)
        if limit_s < 0.05:
            return None
        query = f"SET statement_timeout = {int(limit_s * 1000)}; {_DISK_SQL}"
        try:
            return await session.value(query, now + limit_s + 0.1, result=1)
        except Trouble:
            return None

    async def _pooler(self, spec: NodeSpec, deadline: float) -> Pooler:
        """Run a query through the node's pooler with the same login."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        host, port = spec.pooler_host or spec.host, spec.pooler_port or 0
        where = f"{host}:{port}"
        try:
            session, _dummy = await self._connect(host, port, deadline, direct=False, addresses=[])
            try:
                row = await session.json(_POOLER_SQL, deadline)
            finally:
                await session.close()
            return Pooler(where, None, _server_id(row["system_identifier"], row["start_us"], row["port"]))
        except Trouble as trouble:
            return Pooler(where, self._fault(where, where, trouble, loop.time() - begun))

    # ---- stages of a connection

    async def _resolve(self, host: str, port: int, deadline: float) -> list[str]:
        """Return the addresses of a host; a name is asked for once per round, in a thread that nobody waits for at
        exit."""
        if host.startswith("/"):
            return [host]
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        loop = asyncio.get_running_loop()
        key = (host, port)
        if key not in self._names:
            future: asyncio.Future[list[str]] = loop.create_future()
            self._names[key] = future

            def finish(result: list[str] | OSError) -> None:
                if not future.done():
                    future.set_result(result)  # type: ignore[arg-type]

            def work() -> None:
                result: list[str] | OSError
                try:
                    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                    result = list(dict.fromkeys(str(info[4][0]) for info in infos))
                except (OSError, UnicodeError) as error:
                    result = error if isinstance(error, OSError) else OSError(str(error))
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(finish, result)

            threading.Thread(target=work, daemon=True).start()
        try:
            result: t.Any = await asyncio.wait_for(asyncio.shield(self._names[key]), max(0.0, deadline - loop.time()))
        except asyncio.TimeoutError:  # noqa: UP041  # another class before Python 3.11
            raise Trouble("dns_failure", f"the name {host} could not be resolved in time") from None
        if isinstance(result, OSError):
            raise Trouble("dns_failure", f"the name {host} cannot be resolved ({result.strerror or result})")
        return result

    async def _connect(
        self, host: str, port: int, deadline: float, direct: bool, addresses: list[str]
    ) -> tuple[_Session, list[str]]:
        """Log in and return the session and the host's addresses, which also land in ``addresses`` once they are known.

        :raises Trouble: with the code of the stage that failed.
        """
        loop = asyncio.get_running_loop()
        addresses.extend(await self._resolve(host, port, deadline))
        trouble = Trouble("connect_failed", "no address")
        for number, address in enumerate(addresses):
            share = max(0.05, (deadline - loop.time()) / (len(addresses) - number))
            try:
                return await self._login(host, address, port, loop.time() + share, direct), addresses
            except Trouble as error:
                trouble = error
        raise trouble

    async def _login(self, host: str, address: str, port: int, deadline: float, direct: bool) -> _Session:
        import psycopg

        loop = asyncio.get_running_loop()
        left = deadline - loop.time()
        params: dict[str, t.Any] = {
            **self.look.login.to_libpq(),
            "host": host,
            "port": str(port),
            "application_name": APPLICATION_NAME,
            "gssencmode": "disable",
            "connect_timeout": str(int(left) + 2),
        }
        if not address.startswith("/"):
            params["hostaddr"] = address
        if direct:
            # The empty search path keeps objects of other owners out of these queries.
            params["options"] = (
                f"-c search_path=pg_catalog -c statement_timeout={max(1, int(self.look.timeout_s * 1000))}"
            )
        attempt = asyncio.ensure_future(
            psycopg.AsyncConnection.connect(autocommit=True, prepare_threshold=None, **params)
        )
        # A login that takes long gets a witness: how far does a bare connection come in the time that is left?
        done, _dummy = await asyncio.wait({attempt}, timeout=left / 2)
        witness = None if done else asyncio.ensure_future(self._probe(address, port, deadline))
        try:
            if not done:
                done, _dummy = await asyncio.wait({attempt}, timeout=max(0.0, deadline - loop.time()))
            if done:
                return _Session(attempt.result(), self.look.login)
            stage = await witness if witness else "query_timeout"
        except psycopg.Error as error:
            raise await self._explain(error, address, port, deadline) from error
        finally:
            for task in (attempt, witness):
                if task is not None and not task.done():
                    task.cancel()
        if stage in ("no_response", "connect_timeout", "connection_refused", "host_unreachable"):
            raise Trouble(stage, _CAUSES[stage])
        raise Trouble("query_timeout", f"the login was not done within {left:.1f} s")

    async def _explain(self, error: Exception, address: str, port: int, deadline: float) -> Trouble:
        """Turn a failed login into its stage: by the server's words, else by what a bare connection meets."""
        text = _one_line(error)
        pgconn = getattr(error, "pgconn", None)
        used_password = False
        with contextlib.suppress(Exception):
            used_password = bool(pgconn.used_password) and "FATAL" in text
        code = classify(text, used_password)
        if code is None:
            stage = await self._probe(address, port, max(deadline, asyncio.get_running_loop().time() + 0.1))
            code = stage if stage != "answered" else "connect_failed"
        return Trouble(code, self.look.login.scrub(_CAUSES.get(code, text)))

    async def _probe(self, address: str, port: int, deadline: float) -> str:
        """Return how far a bare connection comes: a reason code, or ``answered``."""
        loop = asyncio.get_running_loop()
        margin = 0.02

        def left() -> float:
            return max(0.01, deadline - loop.time() - margin)

        opened = asyncio.open_unix_connection(f"{address}/.s.PGSQL.{port}") if address.startswith("/") else None
        try:
            reader, writer = await asyncio.wait_for(opened or asyncio.open_connection(address, port), left())
        except asyncio.TimeoutError:  # noqa: UP041  # another class before Python 3.11
            return "connect_timeout"
        except OSError as error:
            if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EINVAL):
                return "host_unreachable"
            return "connect_timeout" if error.errno == errno.ETIMEDOUT else "connection_refused"
        try:
            writer.write(_startup_packet(self.look.login.user, self.look.login.db))
            head = await asyncio.wait_for(reader.readexactly(5), left())
            if head[:1] != b"E":
                return "answered"
            body = await asyncio.wait_for(reader.readexactly(struct.unpack("!I", head[1:])[0] - 4), left())
            return _STATES.get(parse_error_response(body).get("C", ""), "answered")
        except asyncio.TimeoutError:  # noqa: UP041  # another class before Python 3.11
            return "no_response"
        except (OSError, asyncio.IncompleteReadError):
            return "connection_lost"
        finally:
            writer.close()


_CAUSES = {
    "connection_refused": "the connection was refused",
    "connect_timeout": "nothing answered the connection attempt in time",
    "no_response": "the connection was accepted, and then nothing was said in time",
    "host_unreachable": "there is no route to the host",
    "connection_lost": "the server closed the connection without a word",
}


class _Once:
    """Calls a function the first time only."""

    def __init__(self, call: t.Callable[[t.Any], None]) -> None:
        self._call: t.Callable[[t.Any], None] | None = call

    def __call__(self, value: t.Any) -> None:
        call, self._call = self._call, None
        if call is not None:
            call(value)


def _startup_packet(user: str, database: str) -> bytes:
    fields = b""
    for name, value in (("user", user), ("database", database), ("application_name", APPLICATION_NAME)):
        fields += name.encode() + b"\0" + value.encode() + b"\0"
    body = struct.pack("!I", 196608) + fields + b"\0"
    return struct.pack("!I", len(body) + 4) + body


def _one_line(error: BaseException) -> str:
    """Return the first line of a driver's message without the part that repeats the address."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = (
        lines[-1]
        if lines and "Multiple connection attempts" in lines[0]
        else (lines[0] if lines else type(error).__name__)
    )
    for mark in ("FATAL:", "ERROR:", "failed:"):
        if mark in text:
            text = f"{mark if mark != 'failed:' else ''} {text.rsplit(mark, 1)[1].strip()}".strip()
            break
    return " ".join(text.split())


def _server_id(system_identifier: t.Any, start_us: t.Any, port: t.Any) -> str | None:
    """Return what tells one running server from all others, whatever name or address it was reached by."""
    if system_identifier is None or start_us is None:
        return None
    return f"{system_identifier}/{start_us}/{port}"


def facts_from_row(name: str, raw: t.Mapping[str, t.Any]) -> NodeFacts:
    """Return the facts that the base query brought, with absent columns as not known."""
    settings = raw.get("settings") or {}
    receiver_known, receiver = _receiver(raw)
    receive_lsn, flush_lsn = parse_lsn(raw.get("receive_lsn")), parse_lsn(raw.get("flush_lsn"))
    replay_lsn = parse_lsn(raw.get("replay_lsn"))
    timelines = [tli for tli in (raw.get("timeline"), receiver.received_tli if receiver else None) if tli]
    end = flush_lsn if flush_lsn is not None else max(receive_lsn or 0, replay_lsn or 0)
    timeout_ms = settings.get("wal_receiver_timeout")
    return NodeFacts(
        name=name,
        in_recovery=raw.get("in_recovery"),
        system_identifier=raw.get("system_identifier"),
        server_id=_server_id(raw.get("system_identifier"), raw.get("start_us"), settings.get("port")),
        timeline=max(timelines, default=None),
        flush_lsn=flush_lsn,
        receive_lsn=receive_lsn,
        replay_lsn=replay_lsn,
        replay_paused=raw.get("replay_paused"),
        receiver_known=receiver_known,
        receiver=receiver,
        wal_receiver_timeout_s=None if timeout_ms is None else int(timeout_ms) / 1000,
        upstream=_upstream(settings.get("primary_conninfo")),
        slot_name=settings.get("primary_slot_name"),
        slots=_slots(raw.get("slots"), end),
        senders=_senders(raw.get("senders")) if raw.get("sees_all") else None,
        synchronous_standby_names=settings.get("synchronous_standby_names"),
        read_only=raw.get("read_only"),
        conflicts=None if raw.get("conflicts") is None else int(raw["conflicts"]),
    )


def _receiver(raw: t.Mapping[str, t.Any]) -> tuple[bool, Receiver | None]:
    """Return whether the login may see the WAL receiver, and the receiver when there is one."""
    if not raw.get("sees_all"):
        return False, None
    rows = raw.get("receivers") or []
    if not rows:
        return True, None
    row, age = rows[0]["row"], rows[0]["age"]
    return True, Receiver(
        status=row.get("status"),
        received_tli=row.get("received_tli"),
        message_age_s=None if age is None else max(0.0, float(age)),
        sender_host=row.get("sender_host"),
        sender_port=row.get("sender_port"),
    )


def _senders(rows: t.Any) -> tuple[Sender, ...] | None:
    if rows is None:
        return None
    senders = [
        Sender(
            pid=entry["row"].get("pid"),
            application_name=entry["row"].get("application_name"),
            client_addr=entry["row"].get("client_addr"),
            state=entry["row"].get("state"),
            sync_state=entry["row"].get("sync_state"),
            reply_age_s=None if entry["age"] is None else max(0.0, float(entry["age"])),
            replay_lag_s=None if entry["lag_s"] is None else float(entry["lag_s"]),
        )
        for entry in rows
    ]
    return tuple(sorted(senders, key=lambda sender: (sender.application_name or "", sender.pid or 0)))


def _slots(rows: t.Any, end_lsn: int) -> tuple[Slot, ...] | None:
    if rows is None:
        return None
    slots = []
    for entry in rows:
        row = entry["row"]
        restart = parse_lsn(row.get("restart_lsn"))
        slots.append(
            Slot(
                name=row["slot_name"],
                slot_type=row.get("slot_type"),
                active=row.get("active"),
                active_pid=row.get("active_pid"),
                wal_status=row.get("wal_status"),
                retained_bytes=None if restart is None else max(0, end_lsn - restart),
                inactive_s=None if entry["inactive_s"] is None else float(entry["inactive_s"]),
            )
        )
    return tuple(sorted(slots, key=lambda slot: slot.name))


def _upstream(conninfo: str | None) -> Upstream | None:
    """Keep host and port of a ``primary_conninfo``; the rest, which may hold a password, is dropped here."""
    if conninfo is None:
        return None
    from psycopg.conninfo import conninfo_to_dict

    try:
        fields = conninfo_to_dict(conninfo)
    except Exception:
        return None
    port = str(fields.get("port") or "5432").split(",", 1)[0]
    host = fields.get("hostaddr") or fields.get("host")
    return Upstream(host=None if host is None else str(host), port=int(port) if port.isdigit() else None)
