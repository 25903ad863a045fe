# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What moves have left on the members without a journal that owns it: found, and removed where that cannot hurt."""

from __future__ import annotations

import asyncio
import time
import typing as t
from dataclasses import dataclass

from ...._common.errors import HeadroomError
from ..divide.catalog import drop_log
from ..members import Members
from ..schema import PREFIX
from .journal import Journal
from .model import OPEN_STATES, newest

KINDS = ("prepared", "subscription", "slot", "publication", "fence", "log")

_PREPARED_SQL = """
SELECT 'prepared' AS kind, gid AS name FROM pg_prepared_xacts WHERE database = current_database() AND starts_with(gid, %(prefix)s)
"""
_FIND_SQL = f"""
{_PREPARED_SQL}
UNION ALL SELECT 'subscription', subname FROM pg_subscription
  WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND starts_with(subname, %(prefix)s)
UNION ALL SELECT 'slot', slot_name FROM pg_replication_slots WHERE database = current_database() AND starts_with(slot_name, %(prefix)s)
UNION ALL SELECT 'publication', pubname FROM pg_publication WHERE starts_with(pubname, %(prefix)s)
UNION ALL SELECT DISTINCT 'fence', %(prefix)s || move_id FROM headroom.fence
UNION ALL SELECT 'log', relname FROM pg_class
  WHERE relnamespace = 'headroom'::regnamespace AND relkind = 'r' AND starts_with(relname, %(prefix)s)
"""


@dataclass(frozen=True)
class Orphan:
    """Something on a member that belongs to no move on its way."""

    member: str
    kind: str
    name: str

    def as_dict(self) -> dict[str, str]:
        """Return it as a module does."""
        return {"member": self.member, "kind": self.kind, "name": self.name}


async def find_orphans(members: Members, journal: Journal) -> list[Orphan]:
    """Return what is left on the members, those first that others wait for."""
    rows = newest(await journal.rows())
    kept = tuple(f"{PREFIX}{row['id']}" for row in rows.values() if row["state"] in OPEN_STATES)

    async def look(name: str) -> list[Orphan]:
        # a router takes part in the switch of a split, and in nothing else
        query = _PREPARED_SQL if members.members[name].role == "router" else _FIND_SQL
        found = await members.rows(name, query, {"prefix": PREFIX}, verb="look for orphans on")
        return [Orphan(name, row["kind"], row["name"]) for row in found if not _belongs(row["name"], kept)]

    done = await members.each(look)
    orphans = [orphan for found in done.values() for orphan in found]
    return sorted(orphans, key=lambda one: (KINDS.index(one.kind), one.member, one.name))


def _belongs(name: str, kept: t.Iterable[str]) -> bool:
    return any(name == one or name.startswith(f"{one}_") for one in kept)


async def remove_orphans(members: Members, orphans: t.Sequence[Orphan]) -> list[Orphan]:
    """Remove orphans, and return those that were removed.

    A prepared transaction is rolled back unless a decision says otherwise.
    """
    for orphan in orphans:
        await _remove(members, orphan)
    return list(orphans)


async def _remove(members: Members, orphan: Orphan) -> None:
    from psycopg import sql

    async def run(query: t.Any, params: t.Any = None) -> list[dict[str, t.Any]]:
        return await members.rows(
            orphan.member,
            query,
            params,
            timeout_s=30.0,
            purpose="orphan",
            verb=f"remove {orphan.kind} {orphan.name} on",
        )

    name = sql.Identifier(orphan.name)
    if orphan.kind == "prepared":
        decided = await _decided(members, orphan.name.rpartition("_")[0])
        word = "COMMIT PREPARED {}" if decided == "commit" else "ROLLBACK PREPARED {}"
        await run(sql.SQL(word).format(sql.Literal(orphan.name)))
    elif orphan.kind == "subscription":
        for query in (
            "ALTER SUBSCRIPTION {} DISABLE",
            "ALTER SUBSCRIPTION {} SET (slot_name = NONE)",
            "DROP SUBSCRIPTION {}",
        ):
            await run(sql.SQL(query).format(name))
    elif orphan.kind == "slot":
        deadline = time.monotonic() + 15
        while True:
            try:
                await run("SELECT pg_drop_replication_slot(%s)", [orphan.name])
                return
            except HeadroomError as error:
                if error.facts.get("sqlstate") == "42704":
                    return
                if error.facts.get("sqlstate") != "55006" or time.monotonic() > deadline:
                    raise
            await run(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", [orphan.name]
            )
            await asyncio.sleep(0.1)
    elif orphan.kind == "publication":
        await run(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(name))
    elif orphan.kind == "log":
        await run(sql.SQL("SET LOCAL lock_timeout = '2s';\n") + drop_log(orphan.name))
    else:
        await run("DELETE FROM headroom.fence WHERE move_id = %s", [orphan.name.removeprefix(PREFIX)])


async def _decided(members: Members, gid: str) -> str:
    """Return what was decided on any shard for an attempt to switch; nothing means that it is to be rolled back."""

    async def ask(name: str) -> list[dict[str, t.Any]]:
        return await members.rows(name, "SELECT decided FROM headroom.decision WHERE gid = %s", [gid], verb="ask")

    done = await members.each(ask, [shard.name for shard in members.shards])
    return next((row["decided"] for rows in done.values() for row in rows), "rollback")
