# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``postgresql_shard_map``: observe, plan, apply, verify."""

from __future__ import annotations

import asyncio
import typing as t
from dataclasses import dataclass

from ..._common.argspec import ArgumentSpec
from ..._common.errors import HeadroomError, OptionError
from ..connection import Login
from . import apply, count, declare
from .checks import check_members, check_tables, shapes
from .describe import describe_map, describe_tables
from .keys import KEY_TYPES
from .members import Lock, MemberError, Members, members_spec, parse_access, parse_cluster, parse_members, parse_timeout
from .model import STRATEGIES, Group, ShardMap
from .observed import Observed, Relation
from .options import check, groups_from, shards_from
from .read import LOCKED, observe
from .steps import Step, plan_steps

# what can end the transaction that they are tried in is not among them
DDL_VERBS = ("CREATE", "ALTER", "COMMENT", "GRANT")


def map_spec() -> ArgumentSpec:
    """Return the module's own options, without those to log in."""
    table = {
        "name": {"type": "str", "required": True},
        "key": {"type": "str", "required": True, "no_log": False},
        "ddl": {"type": "raw"},
    }
    group = {
        "name": {"type": "str", "required": True},
        "strategy": {"type": "str", "choices": list(STRATEGIES), "required": True},
        "key_type": {"type": "str", "choices": list(KEY_TYPES), "required": True, "no_log": False},
        "buckets": {"type": "int"},
        "bounds": {"type": "list", "elements": "raw"},
        "tenants": {"type": "list", "elements": "list"},
        "placement": {"type": "list", "elements": "str"},
        "tables": {"type": "list", "elements": "dict", "required": True, "options": table},
    }
    return members_spec().merge(
        ArgumentSpec(
            {
                "groups": {"type": "list", "elements": "dict", "default": [], "options": group},
                "lock_timeout_s": {"type": "float", "default": 5.0},
                "max_rewrite_bytes": {"type": "int", "default": 10 << 30},
            }
        )
    )


@dataclass(frozen=True)
class Options:
    """The module's options, checked. Times are in seconds."""

    wanted: declare.Wanted
    login: Login
    timeout_s: float = 10.0
    lock_timeout_s: float = 5.0


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    members = parse_members(params)
    shards = shards_from(params["shards"])
    groups = groups_from(params["groups"])
    names = {shard.name for shard in shards}
    ddl: dict[str, tuple[str, ...]] = {}
    placement: dict[str, tuple[str, ...]] = {}
    for index, (entry, group) in enumerate(zip(params["groups"], groups, strict=True)):
        given = entry.get("placement")
        if given is not None:
            at = f"groups[{index}].placement"
            check(
                at,
                len(given),
                len(given) == len(group.buckets),
                f"give one shard for each of the {len(group.buckets)} buckets.",
            )
            for shard in given:
                check(at, shard, shard in names, f"give one of the shards {', '.join(sorted(names))}.")
            placement[group.name] = tuple(given)
        for place, table in enumerate(entry["tables"]):
            if table.get("ddl") is not None:
                ddl[table["name"]] = _statements(f"groups[{index}].tables[{place}].ddl", table["ddl"])
    limit = params["max_rewrite_bytes"]
    check("max_rewrite_bytes", limit, limit >= 0, "give a number of bytes that is not negative.")
    seconds = params["lock_timeout_s"]
    check("lock_timeout_s", seconds, 0.001 <= seconds <= 86400, "give a number of seconds from 0.001 to 86400.")
    return Options(
        declare.Wanted(
            cluster=parse_cluster(params),
            members=members,
            shards=shards,
            groups=groups,
            access=parse_access(params),
            ddl=ddl,
            placement=placement,
            max_rewrite_bytes=limit,
        ),
        Login.from_params(params),
        parse_timeout(params),
        seconds,
    )


def _statements(option: str, value: t.Any) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value
    fits = isinstance(given, list) and bool(given) and all(isinstance(one, str) and one.strip() for one in given)
    if not fits:
        raise OptionError(option, value, "give a CREATE TABLE statement, or a list of statements.")
    for one in given:
        verb = one.split()[0].upper()
        check(option, one, verb in DDL_VERBS, f"statements that begin with {', '.join(DDL_VERBS)} are taken.")
    return tuple(str(one) for one in given)


def converge(options: Options, check_mode: bool = False) -> dict[str, t.Any]:
    """Bring the members to what is declared and return what was seen and done."""
    import psycopg  # noqa: F401  # fail before anything is contacted

    return asyncio.run(_Run(options, check_mode).run())


@dataclass
class _Plan:
    """What was seen, and what follows from it."""

    observed: Observed
    known: ShardMap | None
    target: ShardMap
    forms: dict[str, Relation]
    steps: list[Step]


class _Run:
    def __init__(self, options: Options, check_mode: bool) -> None:
        self.options = options
        self.wanted = options.wanted
        self.check_mode = check_mode

    async def run(self) -> dict[str, t.Any]:
        async with Members(self.wanted.members, self.options.login, self.options.timeout_s) as members:
            before = plan = await self._plan(members)
            if self.check_mode or not plan.steps:
                return self._result(before, before.target, self._tables_after(before), plan.steps, {})
            async with Lock(members, self.wanted.cluster) as lock:
                # another run may have ended since
                plan = await self._plan(members)
                work = apply.Work(self.wanted, plan.observed, plan.target, plan.forms, self.options.lock_timeout_s)
                await apply.apply(members, work, plan.steps, lock)
                after = await self._plan(members)
            if after.steps:
                left = "; ".join(f"{step.member}: {step.text}" for step in after.steps[:3])
                raise HeadroomError(
                    f"Failed to find the shards as declared after all steps were taken: {left}. Who else changes them?",
                    code="not_as_declared",
                    result={"changed": True, "plan": [step.as_dict() for step in plan.steps]},
                )
            tables = describe_tables(self.wanted, after.observed)
            return self._result(before, after.target, tables, plan.steps, work.rewritten)

    async def _plan(self, members: Members) -> _Plan:
        try:
            return await self._planned(members)
        except MemberError as error:
            if error.sqlstate == LOCKED:
                # says who, if it is another run that holds the table
                async with Lock(members, self.wanted.cluster):
                    pass
            raise

    async def _planned(self, members: Members) -> _Plan:
        wanted = self.wanted
        observed, known = await observe(members, wanted.tables)
        check_members(wanted, observed)
        groups = self._groups(known)
        forms = shapes(wanted, observed)
        missing = {table: wanted.ddl[table] for table in wanted.tables if table not in forms and table in wanted.ddl}
        if missing:
            forms.update(await apply.try_ddl(members, missing))
        check_tables(wanted, observed, forms)
        contents = await count.count(members, groups, observed)
        target, misplaced = declare.target_map(wanted, observed, known, contents)
        if misplaced:
            keys = await count.first_keys(members, groups, misplaced)
            raise declare.report_misplaced(misplaced, keys, contents)
        return _Plan(observed, known, target, forms, plan_steps(wanted, observed, target, forms))

    def _groups(self, known: ShardMap | None) -> tuple[Group, ...]:
        """Return the declared groups with the buckets that they have, where they have some."""
        old = {group.name: group for group in known.groups} if known else {}
        return tuple(declare.merged(old[one.name], one) if one.name in old else one for one in self.wanted.groups)

    def _tables_after(self, plan: _Plan) -> dict[str, dict[str, str]]:
        tables = describe_tables(self.wanted, plan.observed)
        for step in plan.steps:
            if step.action in ("create", "convert"):
                tables[step.member][step.object] = "partitioned"
        return tables

    def _result(
        self,
        before: _Plan,
        target: ShardMap,
        tables: dict[str, dict[str, str]],
        found: list[Step],
        rewritten: dict[tuple[str, str], int],
    ) -> dict[str, t.Any]:
        wanted = self.wanted
        old_members = next((seen.stored.members for seen in before.observed.values() if seen.stored), wanted.members)
        was = describe_map(old_members, before.known, wanted.cluster, describe_tables(wanted, before.observed))
        is_so = describe_map(wanted.members, target, wanted.cluster, tables)
        if found:
            # what a map does not show: schemas, servers, pointers
            quiet = [step for step in found if step.action not in ("create", "convert", "leaves", "map")]
            is_so += "".join(f"{step.member}: {step.text}\n" for step in quiet)
        held = {shard.name: 0 for shard in wanted.shards}
        for placement in target.placements.values():
            held[placement.shard] += 1
        return {
            "changed": bool(found),
            "summary": {"text": self._summary(target, found), "epoch": target.epoch, "buckets": held},
            "epoch": target.epoch,
            "map": {**target.as_dict(), "cluster": wanted.cluster},
            "plan": [step.as_dict() for step in found],
            "rewritten": [
                {"table": table, "shard": shard, "rows": rows} for (table, shard), rows in sorted(rewritten.items())
            ],
            "diff": {"before": was, "after": is_so, "before_header": "map", "after_header": "map"},
        }

    def _summary(self, target: ShardMap, found: list[Step]) -> str:
        tables = sum(len(group.tables) for group in target.groups)
        state = (
            f"{_counted(len(self.wanted.shards), 'shard')} with {_counted(len(target.placements), 'bucket')} of "
            f"{_counted(len(target.groups), 'group')} and {_counted(tables, 'table')}, epoch {target.epoch}"
        )
        if not found:
            return f"The map is as declared: {state}."
        members = _counted(len({step.member for step in found}), "member")
        return f"{_counted(len(found), 'step')} on {members} {'to take' if self.check_mode else 'taken'}: {state}."


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
