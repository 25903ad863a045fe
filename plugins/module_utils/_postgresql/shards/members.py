# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Connections to the members of a sharded cluster, the options that name them, and the lock of one operation at a time."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import socket
import time
import types
import typing as t
from dataclasses import dataclass

from ..._common.argspec import ArgumentSpec
from ..._common.errors import HeadroomError, OptionError
from ..connection import SSL_MODES, Login
from ..health.observe import classify
from .model import STATES, Member
from .options import check, check_names

if t.TYPE_CHECKING:
    import psycopg

APPLICATION_NAME = "headroom_shards"
# names are looked up in pg_catalog alone, so that definitions come out with their schemas; a server notices that we are gone
_SETTINGS = {
    "search_path": "pg_catalog",
    # a value has one text, whatever the server or the database is set to: rows are looked up and compared by it
    "datestyle": "ISO, YMD",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "lc_monetary": "C",
    # numbers come out as they are, whatever the database's own setting
    "extra_float_digits": "3",
    "client_min_messages": "warning",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
# of PostgreSQL 14 and later; older servers are refused in a sentence of their own
_SETTINGS_14 = {"client_connection_check_interval": "5s", "idle_session_timeout": "0"}
_SET_SQL = "SELECT set_config(name, setting, false) FROM unnest(%s::text[], %s::text[]) AS s (name, setting)"
# autovacuum makes way for a statement that has waited for so long, if that waits at all: those of a move give up sooner than the
# second that it is by default
_DEADLOCK_SQL = """
UNION ALL SELECT set_config('deadlock_timeout', '20ms', false) WHERE has_parameter_privilege('deadlock_timeout', 'SET')
"""

_HINTS = {
    "authentication_failed": "Check login_user and login_password.",
    "access_denied": "Check pg_hba.conf there, and the privileges of login_user.",
    "database_missing": "Create the database first, or check the name.",
    "too_many_connections": "Raise max_connections there.",
    "starting_up": "Wait until it accepts connections.",
    "shutting_down": "Wait until it is up again.",
    "connection_refused": "Check host and port, and that the server runs there.",
    "dns_failure": "Check the name, and the resolver of the host that runs this.",
    "tls_refused": "Compare ssl_mode and ca_cert with the server's certificate and its ssl setting.",
    "locked_table": "Another session holds its lock; run it again when that has ended.",
    "timeout": "Is the server up and not frozen, and does a firewall drop the packets?",
}

# what takes longer than a moment is given up only when the member, asked so often, answers nothing for so long
ASK_S = 15.0
SILENCE_S = 120.0

Row = dict[str, t.Any]


@dataclass(frozen=True)
class Access:
    """How members log in to each other. The password is libpq's to find there; it is in no statement."""

    user: str = "headroom_member"
    ssl_mode: str = "prefer"
    ca_cert: str | None = None

    def conninfo(self, member: Member) -> str:
        """Return the connection string by which one member reaches another."""
        from psycopg.conninfo import make_conninfo

        return make_conninfo("", user=self.user, **self.parameters(member))

    def parameters(self, member: Member) -> dict[str, str]:
        """Return the libpq parameters of a member without the user, as ``CREATE SERVER`` takes them."""
        given = {"host": member.host, "port": str(member.port), "dbname": member.dbname, "sslmode": self.ssl_mode}
        return {**given, **({"sslrootcert": self.ca_cert} if self.ca_cert else {})}


class MemberError(HeadroomError):
    """A member could not be reached, or refused a statement. ``sqlstate`` is the server's, None without an answer."""

    def __init__(self, message: str, *, code: str, member: str, sqlstate: str | None = None) -> None:
        """Keep the sentence, the reason, who it was, and the server's state."""
        super().__init__(message, code=code, member=member, sqlstate=sqlstate)
        self.member = member
        self.sqlstate = sqlstate


def members_spec() -> ArgumentSpec:
    """Return the options that name the members and how these reach each other.

    They match the documentation fragment ``headroom.scale.postgresql.members``.
    """
    place = {
        "name": {"type": "str", "required": True},
        "host": {"type": "str", "required": True},
        "port": {"type": "int", "default": 5432},
        "database": {"type": "str"},
    }
    shard = {
        **place,
        "application_host": {"type": "str"},
        "application_port": {"type": "int"},
        "weight": {"type": "float", "default": 1.0},
        "state": {"type": "str", "choices": list(STATES), "default": "active"},
        "capacity_bytes": {"type": "int"},
    }
    return ArgumentSpec(
        {
            "shards": {"type": "list", "elements": "dict", "required": True, "options": shard},
            "routers": {"type": "list", "elements": "dict", "default": [], "options": place},
            "cluster": {"type": "str", "default": "shards"},
            "member_user": {"type": "str", "default": "headroom_member"},
            "member_ssl_mode": {"type": "str", "choices": list(SSL_MODES), "default": "prefer"},
            "member_ca_cert": {"type": "str"},
            "timeout_s": {"type": "float", "default": 10.0},
        }
    )


def parse_members(params: t.Mapping[str, t.Any]) -> tuple[Member, ...]:
    """Return the shards and then the routers of a module's options.

    :raises OptionError: for a name or an address that comes twice, and what cannot be one.
    """
    check("shards", params["shards"], bool(params["shards"]), "declare at least one shard.")
    names = [*params["shards"], *params["routers"]]
    members: list[Member] = []
    for option, role in (("shards", "shard"), ("routers", "router")):
        check_names(option, params[option])
        for index, entry in enumerate(params[option]):
            at = f"{option}[{index}]"
            twice = sum(one["name"] == entry["name"] for one in names) > 1
            check(f"{at}.name", entry["name"], not twice, "a shard has this name; give each member a name of its own.")
            for key in ("host", "application_host"):
                host = entry.get(key)
                fits = host is None or (bool(host) and host.isprintable() and not set(host) & set(" ,'\"\\="))
                check(f"{at}.{key}", host, fits, "give one host name or address.")
            for key in ("port", "application_port"):
                port = entry.get(key)
                check(f"{at}.{key}", port, port is None or 1 <= port <= 65535, "give a TCP port from 1 to 65535.")
            database = entry["database"] if entry["database"] is not None else params["login_db"]
            check(f"{at}.database", database, bool(database.strip()), "give a name that is not empty.")
            member = Member(
                entry["name"],
                entry["host"],
                entry["port"],
                database,
                role,
                entry.get("application_host"),
                entry.get("application_port"),
            )
            same = next((one.name for one in members if one.address == member.address), None)
            check(f"{at}.host", member.address, same is None, f"it is the database of {same} too; give each its own.")
            members.append(member)
    return tuple(members)


def parse_access(params: t.Mapping[str, t.Any]) -> Access:
    """Return how members reach each other.

    :raises OptionError: for an empty name, or a mode that needs a certificate without one.
    """
    user, mode, ca_cert = (params[f"member_{name}"] for name in ("user", "ssl_mode", "ca_cert"))
    check("member_user", user, bool(user.strip()) and "\0" not in user, "give the name of a role on the members.")
    if mode in ("verify-ca", "verify-full") and not ca_cert:
        raise OptionError("member_ssl_mode", mode, "it needs member_ca_cert, a path on the members.")
    return Access(user, mode, ca_cert)


def parse_timeout(params: t.Mapping[str, t.Any]) -> float:
    """Return the seconds that a member is given to be reached and to answer a question."""
    seconds = params["timeout_s"]
    check("timeout_s", seconds, 0.1 <= seconds <= 3600, "give a number of seconds from 0.1 to 3600.")
    return float(seconds)


def parse_cluster(params: t.Mapping[str, t.Any]) -> str:
    """Return the name of the cluster."""
    name = params["cluster"]
    fits = bool(name.strip()) and name.isprintable() and len(name) <= 63
    check("cluster", name, fits, "give a printable name of at most 63 characters.")
    return str(name)


class Members:
    """Connections to the members of one cluster, opened when used and closed together."""

    def __init__(self, members: t.Iterable[Member], login: Login, timeout_s: float = 10.0) -> None:
        """Take the members, how to log in, and how long one may take to be reached and to answer."""
        self.members = {member.name: member for member in members}
        self.login = login
        self.timeout_s = timeout_s
        self._connections: dict[tuple[str, str], psycopg.AsyncConnection[Row]] = {}
        self._opening: dict[tuple[str, str], asyncio.Lock] = {}

    async def __aenter__(self) -> Members:
        """Return the members themselves."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """Close all connections."""
        await asyncio.gather(*(self._close(one) for one in self._connections.values()), return_exceptions=True)
        self._connections.clear()

    @property
    def shards(self) -> tuple[Member, ...]:
        """The shards, as declared."""
        return tuple(one for one in self.members.values() if one.role == "shard")

    @property
    def routers(self) -> tuple[Member, ...]:
        """The routers, as declared."""
        return tuple(one for one in self.members.values() if one.role == "router")

    async def connection(self, name: str, purpose: str = "") -> psycopg.AsyncConnection[Row]:
        """Return the connection to a member; each purpose has one of its own. It commits by itself and gives rows as dicts.

        :raises MemberError: when the member cannot be reached.
        """
        key = (name, purpose)
        async with self._opening.setdefault(key, asyncio.Lock()):
            found = self._connections.get(key)
            if found is None or found.closed:
                found = self._connections[key] = await self._connect(name)
            return found

    async def close(self, name: str, purpose: str = "") -> None:
        """Close the connection of a purpose, if there is one."""
        found = self._connections.pop((name, purpose), None)
        if found is not None:
            await self._close(found)

    async def close_all(self, word: str) -> None:
        """Close the connections of all purposes that have a word in them, such as a move's id."""
        keys = [key for key in self._connections if word in key[1].split()]
        await asyncio.gather(*(self.close(*key) for key in keys))

    async def rows(
        self,
        name: str,
        query: t.Any,
        params: t.Any = None,
        *,
        timeout_s: float | None = -1.0,
        purpose: str = "",
        verb: str = "query",
    ) -> list[Row]:
        """Run one statement, and return its rows, or none for a statement that gives none.

        :param query: text, or composed with ``psycopg.sql``.
        :param timeout_s: None for as long as it takes; the default is that of the members.
        :param verb: what it is for, as in "Failed to VERB shard1 on HOST:PORT".
        :raises MemberError: when it fails, or takes longer.
        """
        connection = await self.connection(name, purpose)

        async def work() -> list[Row]:
            cursor = await connection.execute(query, params)
            return await cursor.fetchall() if cursor.description else []

        limit_s = self.timeout_s if timeout_s == -1.0 else timeout_s
        return await self.guarded(name, work(), connection, limit_s, verb)

    async def row(self, name: str, query: t.Any, params: t.Any = None, **how: t.Any) -> Row:
        """Return the first row of :meth:`rows`, which must be there."""
        return (await self.rows(name, query, params, **how))[0]

    async def each(
        self, work: t.Callable[[str], t.Awaitable[t.Any]], names: t.Iterable[str] | None = None
    ) -> dict[str, t.Any]:
        """Do something with all members at once, and return what came of it by name, once all have ended.

        :param names: those to take, all by default.
        :raises HeadroomError: the first error in the order of the names; those of the others are in its result.
        """
        done = await self.try_each(work, names)
        failed = [one for one in done.values() if isinstance(one, HeadroomError)]
        if failed:
            failed[0].result["errors"] = [one.as_dict() for one in failed[1:]]
            raise failed[0]
        return done

    async def try_each(
        self, work: t.Callable[[str], t.Awaitable[t.Any]], names: t.Iterable[str] | None = None
    ) -> dict[str, t.Any]:
        """Do as :meth:`each` does; a :class:`HeadroomError` takes the place of the value of a member that has one."""
        chosen = list(self.members if names is None else names)
        done = await asyncio.gather(*(work(name) for name in chosen), return_exceptions=True)
        for one in done:
            if isinstance(one, BaseException) and not isinstance(one, HeadroomError):
                raise one
        return dict(zip(chosen, done, strict=True))

    async def guarded(
        self,
        name: str,
        work: t.Coroutine[t.Any, t.Any, t.Any],
        connection: psycopg.AsyncConnection[Row] | None,
        limit_s: float | None,
        verb: str,
    ) -> t.Any:
        """Await what a member does, within a time limit that holds even if it falls silent, and explain its errors.

        :raises MemberError: in the place of the driver's errors.
        """
        import psycopg

        task = asyncio.ensure_future(work)
        try:
            why = await self._given_up(name, task, limit_s)
            if why:
                # cancelling would ask the silent server to cancel, and wait for its answer; a closed line ends it here
                cut(connection)
                task.cancel()
                await asyncio.wait({task}, timeout=0.2)
                if connection is not None:
                    # whoever asks next gets one that works
                    await self._close(connection)
                raise self.error(name, verb, why, code="timeout")
            return task.result()
        except (psycopg.Error, OSError) as error:
            raise self.error(name, verb, error) from error
        finally:
            if not task.done():
                # cancelled itself: the server is asked to stop what it does
                task.cancel()
                await asyncio.wait({task}, timeout=5.0)
                if not task.done():
                    cut(connection)
            elif not task.cancelled():
                task.exception()

    async def _given_up(self, name: str, task: asyncio.Future[t.Any], limit_s: float | None) -> str:
        """Wait for what a member does, and return why no longer; nothing once it has ended.

        What may take for hours is given up too where the member has not answered anything else for a while.
        """
        began = heard = time.monotonic()
        asks = limit_s is None or limit_s > SILENCE_S
        while not task.done():
            left_s = None if limit_s is None else limit_s - (time.monotonic() - began)
            if left_s is not None and left_s <= 0:
                return f"no answer within {limit_s:g} s"
            await asyncio.wait({task}, timeout=ASK_S if left_s is None else min(ASK_S, left_s))
            if asks and not task.done():
                if await self._answers(name):
                    heard = time.monotonic()
                elif time.monotonic() - heard > SILENCE_S:
                    return f"no answer, and none to anything else for {SILENCE_S:g} s"
        return ""

    async def _answers(self, name: str) -> bool:
        """Return whether a member answers at all, be it with an error."""
        limit_s = min(self.timeout_s, ASK_S / 2)
        question = self.rows(name, "SELECT 1 AS one", timeout_s=limit_s, purpose="alive")
        try:
            # it ends before what it would ask itself while it connects
            await asyncio.wait_for(question, 1.5 * limit_s)
        except TimeoutError:
            return False
        except HeadroomError as error:
            return error.code != "timeout"
        return True

    def error(self, name: str, verb: str, cause: BaseException | str, code: str | None = None) -> MemberError:
        """Return the error of a member as one sentence."""
        member = self.members[name]
        state = getattr(cause, "sqlstate", None)
        text = self.login.scrub(_text(cause))
        if code is None and state == "55P03":
            code = "locked_table"
        if code is None:
            low = text.lower()
            code = (
                "connection_refused"
                if "connection refused" in low
                else "dns_failure"
                if "resolve host" in low
                else None
            )
        if code is None:
            code = {"42501": "access_denied", "3D000": "database_missing"}.get(state or "") or (
                classify(text) if state is None or state.startswith(("08", "28", "53", "57")) else None
            )
        hint = _HINTS.get(code or "", "")
        sentence = f"Failed to {verb} {name} on {member.host}:{member.port}: {text}. {hint}".rstrip()
        return MemberError(sentence, code=code or "statement_failed", member=name, sqlstate=state)

    async def _connect(self, name: str) -> psycopg.AsyncConnection[Row]:
        import psycopg
        from psycopg.rows import dict_row

        member = self.members[name]

        async def work() -> psycopg.AsyncConnection[Row]:
            connection = await psycopg.AsyncConnection.connect(
                **{**self.login.to_libpq(), "dbname": member.dbname},
                host=member.host,
                port=member.port,
                connect_timeout=max(2, round(self.timeout_s)),
                application_name=APPLICATION_NAME,
                keepalives_idle=5,
                keepalives_interval=5,
                keepalives_count=3,
                autocommit=True,
                row_factory=dict_row,
            )
            version = connection.info.server_version
            settings = {**_SETTINGS, **(_SETTINGS_14 if version >= 140000 else {})}
            query = _SET_SQL + (_DEADLOCK_SQL if version >= 150000 else "")
            await connection.execute(query, [list(settings), list(settings.values())])
            return connection

        return await self.guarded(name, work(), None, self.timeout_s, "connect to")

    @staticmethod
    async def _close(connection: psycopg.AsyncConnection[Row]) -> None:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(connection.close(), 0.5)


def cut(connection: psycopg.AsyncConnection[Row] | None) -> None:
    """Shut the socket of a connection down, so that whoever waits on it sees its end."""
    if connection is None or connection.closed:
        return
    with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
        line.shutdown(socket.SHUT_RDWR)


def _text(cause: BaseException | str) -> str:
    """Return what went wrong in one line, without the statement that a server repeats."""
    diag = getattr(cause, "diag", None)
    if diag is None or diag.message_primary is None:
        text = " ".join(str(cause).split()).rstrip(".")
        # what libpq says around it is said by the sentence
        text = re.sub(r"^connection failed: (connection to server at .*? failed: )?(FATAL: +)?", "", text)
        return re.sub(r" Is the server running .*", "", text)
    parts = (diag.message_primary, diag.message_detail)
    return "; ".join(" ".join(part.split()).rstrip(".") for part in parts if part)


_HOLDER_SQL = """
SELECT a.pid, a.application_name, coalesce(host(a.client_addr), 'a local socket') AS address, a.backend_start::text AS since
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.database = (SELECT oid FROM pg_database
  WHERE datname = current_database()) AND (l.classid::bigint << 32 | l.objid::bigint) = %s
"""


class Lock:
    """One operation at a time on a cluster: an advisory lock on every shard, which dies with the connection of its owner."""

    PURPOSE = "lock"

    def __init__(self, members: Members, cluster: str) -> None:
        """Take the members and the name of the cluster."""
        self.members = members
        self.names = [member.name for member in members.shards]
        digest = hashlib.sha256(f"headroom.scale/shards/{cluster}".encode()).digest()
        # without the highest bit, as pg_locks shows the halves without a sign
        self.key = int.from_bytes(digest[:8], "big") >> 1

    async def __aenter__(self) -> Lock:
        """Take the lock on each shard.

        :raises HeadroomError: when another run holds it on one, saying who; then it is held on none.
        """
        try:
            # one after the other for the first: of two runs that begin at once, one gets it and all others
            first, *others = sorted(self.names)
            await self._take(first)
            await self.members.each(self._take, others)
        except BaseException:
            await self.release()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """Give the lock back."""
        await self.release()

    async def release(self) -> None:
        """Give the lock back by closing its connections."""
        await asyncio.gather(*(self.members.close(name, self.PURPOSE) for name in self.names))

    async def check(self) -> None:
        """Make sure that the lock is still held.

        :raises HeadroomError: when a connection that held it is gone.
        """
        await self.members.each(self._still, self.names)

    async def _take(self, name: str) -> None:
        taken = await self.members.row(
            name, "SELECT pg_try_advisory_lock(%s) AS taken", [self.key], purpose=self.PURPOSE, verb="lock"
        )
        if taken["taken"]:
            return
        holders = await self.members.rows(name, _HOLDER_SQL, [self.key], purpose=self.PURPOSE, verb="lock")
        who = "; ".join(f"process {one['pid']} from {one['address']} since {one['since']}" for one in holders)
        member = self.members.members[name]
        raise MemberError(
            f"Failed to lock the cluster at {name} on {member.host}:{member.port}: another run works on it "
            f"({who or 'it has just ended'}). Wait until it has ended.",
            code="locked",
            member=name,
        )

    async def _still(self, name: str) -> None:
        connection = self.members._connections.get((name, self.PURPOSE))
        if connection is None or connection.closed:
            raise self.members.error(name, "keep the lock on", "the connection that held it was closed", "lock_lost")
        await self.members.rows(name, "SELECT 1", purpose=self.PURPOSE, verb="keep the lock on")
