# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of the catalogs and of a member's map become what the plan works with."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards import apply, declare
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.members import Access
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import Member, Shard
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.observed import ForeignKey, Leaf
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.options import first_map, groups_from
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.read import relation_from, stored_from

S1, R1 = Member("s1", "10.0.0.1", application_host="app"), Member("r1", "10.0.0.2", role="router")
GROUPS = groups_from(
    [
        {
            "name": "users",
            "strategy": "hash",
            "key_type": "uuid",
            "buckets": 64,
            "tables": [{"name": "public.users", "key": "id"}, {"name": "public.orders", "key": "user_id"}],
        },
        {
            "name": "bills",
            "strategy": "range",
            "key_type": "date",
            "bounds": ["2025-01-01", "2026-01-01"],
            "tables": [{"name": "public.bills", "key": "issued"}],
        },
        {
            "name": "tenants",
            "strategy": "directory",
            "key_type": "bigint",
            "tenants": [[1, 2], [3]],
            "tables": [{"name": "public.tenants", "key": "id"}],
        },
    ]
)
WANTED = declare.Wanted("shop", (S1, R1), (Shard("s1", 2.0, capacity_bytes=10**12),), GROUPS, Access())
MAP = first_map(WANTED.shards, GROUPS)


def written() -> dict[str, t.Any]:
    """The rows that a member returns after the map was written to it."""
    params = apply.map_params(WANTED, MAP)
    rows = {part: json.loads(params[part]) for part in ("shards", "routers", "groups", "tables", "buckets")}
    cluster = {key: params[key] for key in ("format", "epoch", "digest", "schema_digest")}
    return {**rows, "cluster": {**cluster, "name": params["cluster"], "self": "s1", "role": "shard"}}


def test_a_map_that_was_written_is_read_as_it_was() -> None:
    found = stored_from(S1, written())
    assert found.map == MAP
    assert found.digest == found.true_digest()
    assert [member.name for member in found.members] == ["s1", "r1"]
    assert found.members[0].application_host == "app"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows["buckets"].pop(3), "edited by hand"),
        (lambda rows: rows["buckets"][0].update(shard="s7"), "no shard has this name"),
        (lambda rows: rows["groups"].pop(0), "it has tables or buckets, and is none of the groups"),
        (lambda rows: rows["shards"][0].update(state="gone"), "give one of active"),
        (lambda rows: rows["cluster"].update(format=99), "Update the collection here"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused(change: t.Callable[[dict[str, t.Any]], t.Any], says: str) -> None:
    rows = written()
    change(rows)
    with pytest.raises(HeadroomError, match=says) as error:
        stored_from(S1, rows)
    assert str(error.value).startswith("Failed to read the map of s1 on 10.0.0.1:5432:")


def catalog(**other: t.Any) -> dict[str, t.Any]:
    column = {
        "name": "id",
        "type": "bigint",
        "collation": None,
        "deterministic": True,
        "bytewise": True,
        "not_null": True,
        "default": None,
        "expression": None,
        "identity": "",
        "generated": "",
        "sequence": None,
        "sequence_grants": None,
        "grants": [],
        "storage": None,
        "compression": None,
        "comment": None,
    }
    row = {
        "name": "public.users",
        "kind": "r",
        "partition_key": None,
        "persistence": "p",
        "row_security": False,
        "is_partition": False,
        "rows": -1,
        "options": [],
        "owner": "postgres",
        "comment": None,
        "columns": [column],
        "constraints": [{"name": "pk", "kind": "p", "sql": "PRIMARY KEY (id)", "columns": ["id"]}],
        "indexes": [],
        "triggers": [],
        "statistics": [],
        "grants": [],
        "views": None,
        "referenced_by": [],
        "foreign_keys": [],
        "publications": None,
        "children": None,
        "inherits": False,
        "leaves": [],
    }
    return {**row, **other}


def test_a_plain_table() -> None:
    found = relation_from(catalog(), filled=True)
    assert (found.kind, found.filled, found.rows, found.blockers) == ("plain", True, 0, ())
    assert found.constraints[0].unique


def test_the_leaves_of_a_partitioned_table() -> None:
    def leaf(table: str, server: str | None = None, options: list[str] | None = None) -> dict[str, t.Any]:
        return {"name": f"public.{table}", "table": table, "kind": "r", "server": server, "options": options}

    found = relation_from(
        catalog(
            kind="p",
            partition_key="HASH (id)",
            leaves=[
                leaf("users_b7"),
                leaf("users_b8_retired"),
                leaf("users_b9", "headroom_s2", ["schema_name=public", "table_name=users_b9"]),
                leaf("users_extra"),
                leaf("other_b3"),
            ],
            indexes=[
                {
                    "name": "i",
                    "sql": "CREATE INDEX i ON ONLY public.users USING btree (id)",
                    "kind": "i",
                    "columns": ["id"],
                }
            ],
        )
    )
    assert found.leaves == (
        Leaf("public.users_b7", 7),
        Leaf("public.users_b8_retired", 8, retired=True),
        Leaf("public.users_b9", 9, server="headroom_s2", remote="public.users_b9"),
        Leaf("public.users_extra", None),
        Leaf("public.other_b3", None),
    )
    assert found.held == {7}
    assert found.indexes[0].sql == "CREATE INDEX i ON public.users USING btree (id)"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"views": ["v"]}, "view or rule of v"),
        ({"publications": ["p"]}, "published by p"),
        ({"children": ["public.c"]}, "inheritance"),
        ({"is_partition": True}, "is a partition"),
        ({"row_security": True}, "row security"),
        ({"persistence": "u"}, "unlogged"),
    ],
)
def test_what_a_partitioned_table_could_not_have_is_named(change: dict[str, t.Any], says: str) -> None:
    assert says in relation_from(catalog(**change)).blockers[0]


@pytest.mark.parametrize(("kind", "ends_at"), [("r", "public.users_b7"), ("p", "public.users")])
def test_foreign_keys_are_those_of_the_table_or_of_its_leaves(kind: str, ends_at: str) -> None:
    key = {
        "name": "fk",
        "sql": "FOREIGN KEY (a, b) REFERENCES public.users_b7(c, d) ON DELETE CASCADE DEFERRABLE",
        "table": "public.users_b7",
        "columns": ["a", "b"],
        "their_columns": ["c", "d"],
    }
    (found,) = relation_from(catalog(kind=kind, foreign_keys=[key])).foreign_keys
    assert found == ForeignKey("fk", ("a", "b"), ends_at, ("c", "d"), "ON DELETE CASCADE DEFERRABLE")
