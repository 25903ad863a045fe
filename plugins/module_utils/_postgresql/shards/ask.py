# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Ask one member where keys are."""

from __future__ import annotations

import asyncio
import datetime
import typing as t
import uuid

from ..connection import Login
from .members import Member, Members
from .options import check

_ROUTE_SQL = """
SELECT %(group)s AS "group", r.bucket, r.shard, r.epoch, r.conninfo
FROM unnest(%(keys)s::text[]) WITH ORDINALITY AS k (key, at), headroom.route(%(group)s::text, k.key) AS r ORDER BY k.at
"""


def ask(
    login: Login, host: str, port: int, group: str, keys: t.Sequence[t.Any], timeout_s: float = 10.0
) -> list[dict[str, t.Any]]:
    """Return for each key its ``group``, ``bucket``, ``shard``, ``epoch`` and ``conninfo``.

    :param host: of several, separated by commas, the first that answers is asked.
    :raises HeadroomError: when no member answers, or a key has no bucket.
    """
    for key in keys:
        # dates and UUIDs come out as texts
        fits = not isinstance(key, bool) and isinstance(key, (int, str, datetime.date, uuid.UUID))
        check("key", key, fits, "give a number, a text, a UUID or a date.")
    return asyncio.run(_ask(login, host, port, group, [str(key) for key in keys], timeout_s))


async def _ask(
    login: Login, host: str, port: int, group: str, keys: list[str], timeout_s: float
) -> list[dict[str, t.Any]]:
    member = Member("the member", host, port, login.db)
    async with Members([member], login, timeout_s) as members:
        return await members.rows(member.name, _ROUTE_SQL, {"group": group, "keys": keys}, verb="ask")
