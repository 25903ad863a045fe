# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How rows are compared and copied, as far as no server is needed."""

from __future__ import annotations

import asyncio
import itertools
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.members import MemberError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import Bucket, Group, Table
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move import catalog, sums, verify
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.catalog import Shape
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.copy import parts_of
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.model import Leaf, Move
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("psycopg")

from psycopg._queries import PostgresQuery  # noqa: E402
from psycopg.adapt import Transformer  # noqa: E402

LEAF = Leaf(Table("public.orders", "user_id"), 7)
SHAPE = Shape(
    ("amount", "doc", "id", "user_id"),
    {"amount": "numeric(12,2)", "doc": "json", "id": "bigint", "user_id": "bigint"},
    ("user_id", "id"),
    frozenset({"doc"}),
)
GROUP = Group("users", "hash", "bigint", (LEAF.table,), tuple(Bucket(number) for number in range(64)))


def column(name: str, kind: str = "bigint", **more: t.Any) -> dict[str, t.Any]:
    return {
        "name": name,
        "type": kind,
        "collation": None,
        "not_null": True,
        "generated": None,
        "sequence": None,
        **more,
    }


def index(name: str, table: str, columns: str = "(user_id, id)", kind: str | None = "p") -> dict[str, t.Any]:
    constraint = (
        {"name": name, "type": kind, "definition": "", "deferrable": False, "deferred": False} if kind else None
    )
    unique = "UNIQUE " if kind else ""
    return {
        "name": name,
        "definition": f"CREATE {unique}INDEX {name} ON public.{table} USING btree {columns}",
        "primary": kind == "p",
        "valid": True,
        "constraint": constraint,
        "columns": ["user_id", "id"],
    }


def facts(table: str = "orders_b7", **more: t.Any) -> dict[str, t.Any]:
    return {
        "kind": "r",
        "persistence": "p",
        "identity": "d",
        "owner": "app",
        "parent": "orders",
        "check": "satisfies_hash_partition('16577'::oid, 64, 7, user_id)",
        "row_security": False,
        "default_partition": None,
        "columns": [column("id"), column("user_id")],
        "indexes": [index(f"{table}_pkey", table)],
        "foreign_keys": [],
        "referenced": [],
        "checks": [],
        "triggers": [],
        "grants": [],
        "settings": [],
        **more,
    }


def grant(to: str | None, privilege: str, column: str | None = None, option: bool = False) -> dict[str, t.Any]:
    return {"to": to, "privilege": privilege, "column": column, "option": option}


def text(composed: t.Any) -> str:
    return composed.as_string(None)


def test_a_percent_sign_of_a_name_is_no_parameter() -> None:
    shape = Shape(("50%", "id"), {"50%": "text", "id": "bigint"}, ("50%", "id"))
    for query, count in ((sums.rows_query(LEAF, shape), 2), (sums.keys_query(LEAF, shape, 64), 1)):
        found = PostgresQuery(Transformer())
        found.convert(text(query), [["x"]] * count)
        assert b'"50%"' in found.query
        assert len(found.params or ()) == count


@given(st.floats(0, 1e10))
def test_chunks_are_a_power_of_two_within_bounds(rows: float) -> None:
    chunks = sums.chunks_for(rows)
    assert chunks & (chunks - 1) == 0
    assert sums.CHUNKS[0] <= chunks <= sums.CHUNKS[1]


@given(st.integers(1, 1 << 31), st.floats(1, 1e10), st.integers(1, 1 << 50))
def test_all_rests_together_take_as_long_as_a_read_at_the_limit(pages: int, rows: float, rate: int) -> None:
    rests = rows / sums.REST_ROWS
    assert rests * sums.rest_s(pages, rows, rate) == pytest.approx(pages * 8192 / rate)


def test_nothing_rests_without_a_limit_and_rows_of_an_unknown_size_are_small_ones() -> None:
    assert sums.rest_s(1000, 1000, 0) == 0
    assert sums.rest_s(1000, -1, 1000) == sums.rest_s(0, 0, 1000) == sums.REST_ROWS * sums.ROW_BYTES / 1000
    for query in (sums.sums_query(LEAF, SHAPE, 64), sums.keys_query(LEAF, SHAPE, 64)):
        assert "sleep" not in text(query)


def test_rows_that_differ_are_missing_or_other_on_one_side() -> None:
    assert verify.differing({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 9, "d": 4}) == {"b", "c", "d"}


def test_columns_are_hashed_one_after_the_other_and_those_of_other_types_as_a_record() -> None:
    assert text(sums.hash_of(SHAPE, SHAPE.columns)) == (
        'hashint8extended("user_id", hashint8extended("id", hash_numeric_extended("amount", '
        'hash_record_extended(ROW("doc"::text), 0))))'
    )


def test_a_column_without_a_value_keeps_the_hash_of_those_before() -> None:
    shape = Shape(("a", "b"), {"a": "bigint", "b": "character varying(20)"}, ("a",), nullable=frozenset({"b"}))
    assert text(sums.hash_of(shape, shape.columns, "r.")) == (
        'hashint8extended(coalesce(hashtextextended(r."b"::text COLLATE "C", 0), 7046029254386353131), '
        'hashint8extended(r."a", 0))'
    )


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("timestamp(3) with time zone", "timestamp_hash_extended"),
        ("timestamp without time zone", "timestamp_hash_extended"),
        ("numeric", "hash_numeric_extended"),
        ("numeric(14,2)[]", "hash_record_extended"),
        ("date", "hash_record_extended"),
        ("public.text", "hash_record_extended"),
    ],
)
def test_modifiers_of_a_type_do_not_matter_but_arrays_do(kind: str, function: str) -> None:
    assert text(sums.hash_of(Shape(("a",), {"a": kind}, ("a",)), ("a",))).startswith(f"{function}(")


def test_a_journal_that_does_not_say_which_columns_may_be_empty_means_all() -> None:
    entry = SHAPE.as_dict()
    for name in ("nullable", "equals", "is_binary"):
        del entry[name]
    shape = Shape.from_dict(entry)
    assert (shape.nullable, shape.equals, shape.is_binary) == (set(SHAPE.columns), {}, True)


class Types:
    """Members that know which types hash a number of their own catalogs, and which have no hash."""

    def __init__(self, by_number: str, without: str) -> None:
        self.by_number, self.without = by_number, without

    async def row(self, shard: str, query: str, params: t.Any, **_how: t.Any) -> dict[str, t.Any]:
        if isinstance(params, dict):
            return {"is_binary": False, "equals": {"user_id": "pg_catalog.=", "id": "public.="}}
        return {"is_by_number": params[0] == self.by_number}

    async def rows(self, shard: str, query: t.Any) -> list[t.Any]:
        if f"NULL::{self.without}" in text(query):
            raise MemberError("Failed to query a.", code="statement_failed", member="a", sqlstate="42883")
        return []


def test_types_of_a_database_of_its_own_are_compared_as_text() -> None:
    found = facts(columns=[column("user_id"), column("id"), column("mood", "public.mood"), column("page", "xml")])
    shape = asyncio.run(catalog.shape_of(t.cast("t.Any", Types("public.mood", "xml")), "a", {**found, "oid": 7}))
    assert shape.as_text == {"mood", "page"}
    assert Shape.from_dict(shape.as_dict()) == shape
    assert (shape.is_binary, shape.equals) == (False, {"id": "public.="})
    assert 'r."id" OPERATOR(public.=) k."id"::bigint' in text(sums.rows_query(LEAF, shape))
    part = parts_of(LEAF, shape, 10)[0]
    assert text(part.query()).endswith("TO STDOUT (FORMAT text)")
    assert text(part.target()).endswith("FROM STDIN (FORMAT text)")


def test_rows_are_looked_up_by_the_whole_key() -> None:
    query = text(sums.rows_query(LEAF, SHAPE))
    equals = "OPERATOR(pg_catalog.=)"
    assert f'r."user_id" {equals} k."user_id"::bigint AND r."id" {equals} k."id"::bigint' in query
    assert query.count("%s::text[]") == 2


@given(st.integers(0, 100_000), st.integers(500, 20_000))
def test_parts_cover_all_pages_and_those_to_come(pages: int, part_pages: int) -> None:
    parts = parts_of(LEAF, SHAPE, pages, part_pages)
    assert parts[0].first == 0
    assert parts[-1].end is None
    assert all(one.end == other.first for one, other in itertools.pairwise(parts))


def test_part_reads_columns_by_name() -> None:
    part = parts_of(LEAF, SHAPE, 10)[0]
    columns = '"amount", "doc", "id", "user_id"'
    assert f"COPY (SELECT {columns} FROM ONLY" in text(part.query())
    assert text(part.target()).startswith(f'COPY "public"."orders_b7" ({columns}) FROM STDIN')


def test_shape_comes_back_from_the_journal() -> None:
    assert Shape.from_dict(SHAPE.as_dict()) == SHAPE


def test_indexes_are_alike_whatever_they_are_called() -> None:
    leaf, parent = facts(), facts("orders", indexes=[index("orders_pkey", "orders")])
    assert catalog.index_kinds(leaf) == catalog.index_kinds(parent)
    more = facts("orders", indexes=[index("orders_pkey", "orders"), index("x", "orders", "(id)", None)])
    assert catalog.index_kinds(leaf) != catalog.index_kinds(more)


@pytest.mark.parametrize(
    "change",
    [
        {"columns": [column("id"), column("user_id"), column("more")]},
        {"columns": [column("id", "integer"), column("user_id")]},
        {"columns": [column("id", not_null=False), column("user_id")]},
        {"indexes": []},
        {"checks": ["CHECK ((id > 0))"]},
    ],
)
def test_another_definition_has_another_fingerprint(change: dict[str, t.Any]) -> None:
    assert catalog.fingerprint(facts(**change)) != catalog.fingerprint(facts())


@pytest.mark.parametrize(
    "change", [{"pages": 5}, {"grants": [grant("x", "SELECT")]}, {"settings": ["fillfactor=70"]}, {"triggers": ["t"]}]
)
def test_what_does_not_matter_to_a_copy_leaves_the_fingerprint(change: dict[str, t.Any]) -> None:
    assert catalog.fingerprint(facts(**change)) == catalog.fingerprint(facts())


def test_leaf_is_checked_for_its_bucket_while_it_is_copied() -> None:
    made = text(catalog.create_leaf(Move("m1", GROUP, 7, "a", "b"), LEAF, facts()))
    assert """CHECK (satisfies_hash_partition('"public"."orders"'::regclass, 64, 7, "user_id"))""" in made


def test_leaf_has_the_rights_settings_and_replica_identity_that_it_has_on_the_source() -> None:
    source = facts(
        grants=[grant("reader", "SELECT", "note", option=True), grant(None, "INSERT")],
        settings=["fillfactor=70", "toast.autovacuum_enabled=false"],
        identity="f",
    )
    made = text(catalog.create_leaf(Move("m1", GROUP, 7, "a", "b"), LEAF, source)).split(";\n")[3:]
    assert made == [
        'GRANT SELECT ("note") ON "public"."orders_b7" TO "reader" WITH GRANT OPTION',
        'GRANT INSERT ON "public"."orders_b7" TO PUBLIC',
        """ALTER TABLE "public"."orders_b7" SET ("fillfactor" = '70')""",
        """ALTER TABLE "public"."orders_b7" SET ("toast"."autovacuum_enabled" = 'false')""",
        'ALTER TABLE "public"."orders_b7" REPLICA IDENTITY FULL',
    ]


def test_constraints_are_made_of_indexes_once() -> None:
    source, target = facts(), facts(indexes=[{**index("orders_b7_pkey", "orders_b7"), "constraint": None}])
    made = [text(one) for one in catalog.create_constraints(LEAF, source, target)]
    assert made == [
        'ALTER TABLE "public"."orders_b7" ADD CONSTRAINT "orders_b7_pkey" PRIMARY KEY USING INDEX "orders_b7_pkey"'
    ]
    assert catalog.create_constraints(LEAF, source, source) == []


class Names:
    """A server on which something has some names."""

    def __init__(self, *taken: str) -> None:
        self.taken = taken

    async def rows(self, shard: str, _query: str, params: t.Any, **_how: t.Any) -> list[dict[str, t.Any]]:
        assert (shard, params[0]) == ("b", "public")
        return [{"name": name} for name in params[1] if name in self.taken]


def with_free_names(source: dict[str, t.Any], target: dict[str, t.Any], *taken: str) -> dict[str, t.Any]:
    move = Move("5f2c81d09a", GROUP, 7, "a", "b")
    return asyncio.run(catalog.with_free_names(t.cast("t.Any", Names(*taken)), move, LEAF, source, target))


def test_an_index_whose_name_is_taken_gets_another_one_and_keeps_it() -> None:
    odd = {**index("x", "orders_b7", "(id)", None), "name": 'I ON "x"'}
    odd["definition"] = 'CREATE INDEX "I ON ""x""" ON public.orders_b7 USING btree (id)'
    source, bare = facts(indexes=[index("cut_idx1", "orders_b7"), odd]), facts(indexes=[])
    assert with_free_names(source, bare) == source
    renamed = with_free_names(source, bare, "cut_idx1", odd["name"])
    names = ["orders_b7_5f2c81d09a_0", "orders_b7_5f2c81d09a_1"]
    assert [text(one) for (one,) in catalog.create_indexes(LEAF, renamed, set())] == [
        f'CREATE UNIQUE INDEX "{names[0]}" ON public.orders_b7 USING btree (user_id, id)',
        f'CREATE INDEX "{names[1]}" ON public.orders_b7 USING btree (id)',
    ]
    # taken up later, while the former name has become free
    made = facts(indexes=[{**one, "constraint": None} for one in renamed["indexes"]])
    again = with_free_names(source, made)
    assert catalog.create_indexes(LEAF, again, set(names)) == []
    assert [text(one) for one in catalog.create_constraints(LEAF, again, made)] == [
        f'ALTER TABLE "public"."orders_b7" ADD CONSTRAINT "{names[0]}" PRIMARY KEY USING INDEX "{names[0]}"'
    ]


def test_an_index_that_was_made_by_its_own_name_keeps_it() -> None:
    source = facts()
    assert with_free_names(source, facts(), "orders_b7_pkey") == source


def test_forwarder_has_generated_columns_and_rights() -> None:
    source = facts(
        columns=[column("id"), column("twice", generated="(id * 2)", not_null=False)],
        grants=[grant("reader", "SELECT"), grant(None, "MAINTAIN")],
    )
    made = text(catalog.create_forwarder(LEAF, source, "headroom_b"))
    assert '"id" bigint NOT NULL, "twice" bigint GENERATED ALWAYS AS ((id * 2)) STORED' in made
    assert 'GRANT SELECT ON "public"."orders_b7_forward" TO "reader"' in made
    assert "MAINTAIN" not in made


@pytest.mark.parametrize(
    ("before", "after", "none"),
    [
        ("100:100:", "101:101:", True),
        # another one has ended, or runs, before or then
        ("100:100:", "102:102:", False),
        ("100:101:100", "102:102:", False),
        ("100:102:100", "100:103:100", False),
        ("100:100:", "101:102:101", False),
        ("99:100:", "101:101:", False),
    ],
)
def test_it_is_known_that_nothing_was_written_but_what_is_known(before: str, after: str, none: bool) -> None:
    assert verify.none_between(before, after, 1) is none


class Sides:
    """Source and target, whose transactions and rows are given."""

    def __init__(self, others: int, alike: bool) -> None:
        self.number = 100
        self.others = others
        self.alike = alike
        self.asked: list[str] = []
        self.source, self.target, self.move = "a", "b", Move("m1", GROUP, 0, "a", "b")

    async def beat(self, *_how: t.Any) -> float:
        """Write the row of a beat, beside others."""
        self.number += 1 + self.others
        return 0.0

    async def close(self, *_which: t.Any) -> None:
        """Leave."""

    async def rows(self, shard: str, query: t.Any, *_params: t.Any, **_how: t.Any) -> list[dict[str, t.Any]]:
        """Answer what a comparison asks."""
        said = query if isinstance(query, str) else text(query)
        if said == verify.SNAPSHOT_SQL:
            return [{"snapshot": f"{self.number}:{self.number}:"}]
        if said == sums.SIZE_SQL:
            return [{"pages": 10, "rows": 1000}]
        if "bit_xor" in said:
            self.asked += [said] if shard == "a" else []
            return [{"chunk": 0, "rows": 1000, "sum": 1 if self.alike else ord(shard)}]
        return []


@pytest.mark.parametrize(("others", "alike", "grouped"), [(0, True, [0]), (1, True, [1]), (0, False, [0, 1])])
def test_one_sum_is_compared_where_nothing_was_written_and_chunks_where_it_differs(
    others: int, alike: bool, grouped: list[int]
) -> None:
    sides = Sides(others, alike)
    shapes = {leaf.name: SHAPE for leaf in sides.move.leaves}
    found = asyncio.run(verify.Verifier(t.cast("t.Any", sides), t.cast("t.Any", sides), shapes, 1.0).run())
    assert [query.count("GROUP BY") for query in sides.asked] == grouped * len(sides.move.leaves)
    assert found.rows == 1000 * len(sides.move.leaves)
