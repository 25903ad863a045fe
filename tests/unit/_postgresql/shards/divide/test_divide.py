# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a split makes of the map, and the statements by which it is done, as far as no server is needed."""

from __future__ import annotations

import json
import typing as t
from dataclasses import replace

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError, OptionError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.divide import catalog
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.divide.model import (
    check_parts,
    parts_from,
    told,
    with_parts,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.divide.preflight import router_reasons
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import (
    Bucket,
    Group,
    Member,
    Placement,
    Shard,
    ShardMap,
    Table,
    Usage,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.catalog import Shape
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.model import Leaf, Move
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.picture import Picture, split_map
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.planner import (
    given_moves,
    given_splits,
    splits_now,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.progress import standing
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.report import fate
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.observed import (
    Column,
    Definition,
    ForeignKey,
    Relation,
    Seen,
    StoredMap,
    digest_of,
    merge,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.options import MAX_TABLE_NAME
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.plan import Limits, Plan
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.read import stored_from
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.split import Split, isolate, split
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.stored import stored_map
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("psycopg")

TABLES = (Table("public.orders", "user_id"), Table("public.items", "user_id"))
RANGE = Group("users", "range", "bigint", TABLES, (Bucket(0, None, 10), Bucket(1, 10, 20), Bucket(2, 20, None)))
LIST = Group("users", "directory", "text", TABLES, (Bucket(0, tenants=("a", "b", "c")), Bucket(1, tenants=("d",))))
RANGE_PARTS = (Bucket(3, 10, 15), Bucket(4, 15, 20))
LIST_PARTS = (Bucket(2, tenants=("b",)), Bucket(3, tenants=("a", "c")))
CASES = [(RANGE, 1, RANGE_PARTS), (LIST, 0, LIST_PARTS)]
MEMBERS = (Member("a", "h1"), Member("b", "h2"), Member("r", "h3", role="router"))
SHARDS = (Shard("a"), Shard("b"))
SHAPE = Shape(("id", "note", "user_id"), {"id": "bigint", "note": "text", "user_id": "bigint"}, ("user_id", "id"))
FORM = Relation(
    "public.orders",
    "partitioned",
    (Column("user_id", "bigint"), Column("id", "bigint"), Column("note", "text")),
    constraints=(Definition("orders_pkey", "p", "PRIMARY KEY (user_id, id)"), Definition("c", "c", "CHECK (id > 0)")),
    indexes=(
        Definition(
            "orders_note",
            "i",
            "CREATE UNIQUE INDEX orders_note ON public.orders USING btree (user_id, note)",
            unique=True,
        ),
        Definition("orders_id", "i", "CREATE INDEX orders_id ON public.orders USING btree (id)"),
    ),
)


def map_of(group: Group) -> ShardMap:
    places = {(group.name, one.number): Placement("ab"[one.number % 2], 1) for one in group.buckets}
    return ShardMap(1, SHARDS, (group,), places)


def stored(group: Group, name: str = "a") -> StoredMap:
    role = next(one.role for one in MEMBERS if one.name == name)
    return StoredMap("shop", name, role, 1, "x", digest_of("shop", MEMBERS, SHARDS, (group,)), MEMBERS, map_of(group))


def move(group: Group = RANGE, bucket: int = 1, parts: tuple[Bucket, ...] = RANGE_PARTS, **more: t.Any) -> Move:
    return Move("m1", group, bucket, "b", "b", detail={"parts": [one.as_dict(group.strategy) for one in parts]}, **more)


def after(one: StoredMap, number: int, parts: tuple[Bucket, ...], epoch: int = 2) -> StoredMap:
    """Return what a member reads back once the statements have run, as they are written."""
    params = told(one, "users", number, parts, epoch)
    assert params is not None
    group = one.map.groups[0]
    kept = {
        bucket.number: {**bucket.as_dict(group.strategy), "shard": place.shard, "epoch": place.epoch}
        for bucket in group.buckets
        for place in [one.map.placements["users", bucket.number]]
        if bucket.number != number
    }
    kept.update({row["number"]: row for row in json.loads(params["parts"])})
    order = {row["number"]: row["position"] for row in json.loads(params["positions"])}
    rows = [{**row, "group_name": "users"} for row in sorted(kept.values(), key=lambda row: order[row["number"]])]
    member = next(other for other in MEMBERS if other.name == one.self_name)
    entry = {
        "cluster": {
            "name": "shop",
            "format": 1,
            "epoch": epoch,
            "digest": params["digest"],
            "self": member.name,
            "role": member.role,
            "schema_digest": "x",
        },
        "shards": [
            {
                "name": other.name,
                "host": other.host,
                "port": 5432,
                "dbname": "postgres",
                "application_host": None,
                "application_port": None,
                "weight": 1.0,
                "state": "active",
                "capacity_bytes": None,
            }
            for other in MEMBERS
            if other.role == "shard"
        ],
        "routers": [{"name": "r", "host": "h3", "port": 5432, "dbname": "postgres"}],
        "groups": [{"name": "users", "strategy": group.strategy, "key_type": group.key_type}],
        "tables": [{"name": table.name, "key": table.key, "group_name": "users"} for table in TABLES],
        "buckets": rows,
    }
    return stored_from(member, entry)


def text(composed: t.Any) -> str:
    return composed.as_string(None)


@pytest.mark.parametrize(("group", "number", "parts"), CASES)
def test_map_with_parts_is_whole(group: Group, number: int, parts: tuple[Bucket, ...]) -> None:
    made = split_map(map_of(group), [Split("users", number, parts, (0.5, 0.5))])
    assert stored_map(made.as_dict()) == made
    assert set(made.placements) == {("users", one.number) for one in made.groups[0].buckets}
    assert {made.placements["users", one.number].shard for one in parts} == {
        map_of(group).placements["users", number].shard
    }


@pytest.mark.parametrize(("group", "number", "parts"), CASES)
def test_what_a_member_is_told_is_a_map_with_its_digest(group: Group, number: int, parts: tuple[Bucket, ...]) -> None:
    one = after(stored(group), number, parts)
    assert one.digest == one.true_digest()
    assert one.map.groups[0].buckets == with_parts(group, number, parts).buckets
    assert one.map.epoch == 2


@pytest.mark.parametrize(("group", "number", "parts"), CASES)
def test_members_that_were_told_count_for_those_that_were_not(
    group: Group, number: int, parts: tuple[Bucket, ...]
) -> None:
    seen = {
        "a": Seen(MEMBERS[0], 170004, {}, "1", stored=after(stored(group), number, parts)),
        "b": Seen(MEMBERS[1], 170004, {}, "2", stored=stored(group, "b")),
    }
    merged = merge(seen)
    assert merged is not None
    assert merged.groups[0].buckets == with_parts(group, number, parts).buckets
    # so that declaring the same again changes nothing
    assert digest_of("shop", MEMBERS, SHARDS, merged.groups) == seen["a"].stored.digest


@pytest.mark.parametrize(("group", "number", "parts"), CASES)
def test_a_member_is_told_once(group: Group, number: int, parts: tuple[Bucket, ...]) -> None:
    assert told(after(stored(group), number, parts), "users", number, parts, 2) is None


def test_a_member_that_knows_neither_bucket_nor_parts_is_named() -> None:
    with pytest.raises(HeadroomError, match="users/9: a has no such bucket"):
        told(stored(RANGE), "users", 9, RANGE_PARTS, 2)


@given(st.integers(2, 6), st.lists(st.integers(11, 19), min_size=1, unique=True))
def test_what_the_planner_cuts_can_be_carried_out(count: int, quantiles: list[int]) -> None:
    made = split(RANGE, RANGE.buckets[1], Usage(100, quantiles=tuple(quantiles)), count, 3)
    check_parts("parts", RANGE, 1, made.parts)
    assert parts_from("parts", RANGE, [one.as_dict("range") for one in made.parts]) == made.parts


@given(st.sampled_from("abc"))
def test_what_is_isolated_can_be_carried_out(tenant: str) -> None:
    loads = dict.fromkeys("abc", 1.0)
    made = isolate(LIST, LIST.buckets[0], Usage(100, tenant_loads=loads), tenant, 2)
    assert made is not None
    check_parts("parts", LIST, 0, made.parts)


@pytest.mark.parametrize(
    ("group", "number", "parts"),
    [
        (RANGE, 1, RANGE_PARTS[:1]),
        (RANGE, 1, (Bucket(3, 10, 15), Bucket(4, 16, 20))),
        (RANGE, 1, (Bucket(3, 10, 16), Bucket(4, 15, 20))),
        (RANGE, 1, (Bucket(3, 10, 15), Bucket(4, 15, 21))),
        (RANGE, 1, (Bucket(3, 10, 25), Bucket(4, 25, 20))),
        (RANGE, 1, (Bucket(3, 10, 15), Bucket(3, 15, 20))),
        (RANGE, 1, (Bucket(2, 10, 15), Bucket(4, 15, 20))),
        (RANGE, 0, (Bucket(3, None, None), Bucket(4, None, 10))),
        (LIST, 0, (Bucket(2, tenants=("a",)), Bucket(3, tenants=("c",)))),
        (LIST, 0, (Bucket(2, tenants=("a", "b")), Bucket(3, tenants=("b", "c")))),
        (LIST, 0, (Bucket(2, tenants=("a", "b")), Bucket(3, tenants=("c", "d")))),
        (RANGE, 1, ()),
        (replace(RANGE, strategy="hash", buckets=(Bucket(0), Bucket(1))), 1, (Bucket(2), Bucket(3))),
    ],
)
def test_parts_that_are_not_the_bucket_are_refused(group: Group, number: int, parts: tuple[Bucket, ...]) -> None:
    with pytest.raises(OptionError, match=f"not the parts of bucket users/{number}"):
        check_parts("plan.splits[0].parts", group, number, parts)


def test_a_split_is_of_one_shard() -> None:
    one = move()
    assert (one.is_split, one.shards, one.parts, one.what) == (True, ("b",), (3, 4), "split users/1 on b")
    assert not Move("m1", RANGE, 1, "a", "b").is_split


@pytest.mark.parametrize(
    ("state", "wanted"), [("copying", "rolled_back"), ("verified", "rolled_back"), ("switched", "finished")]
)
def test_what_becomes_of_an_interrupted_split(state: str, wanted: str) -> None:
    assert fate(move(state=state), "balanced") == wanted


@pytest.mark.parametrize(
    ("state", "step", "run", "takes_share", "wanted"),
    [
        ("copying", "leaves", "balanced", True, "rolled_back"),
        ("copying", "copied", "balanced", True, "finished"),
        ("copying", "copied", "balanced", False, "rolled_back"),
        ("verified", "", "planned", True, "finished"),
        ("verified", "", "cleaned", True, "rolled_back"),
        ("switched", "routed", "reverted", False, "finished"),
    ],
)
def test_what_becomes_of_an_interrupted_move(state: str, step: str, run: str, takes_share: bool, wanted: str) -> None:
    assert fate(Move("m1", RANGE, 1, "a", "b", state=state, step=step), run, takes_share) == wanted


def test_log_belongs_to_its_move_and_fits() -> None:
    long = replace(RANGE, tables=(Table("public." + "x" * MAX_TABLE_NAME, "k"),))
    one = Move("0123456789", long, 1, "b", "b")
    name = catalog.log_name(one, one.leaves[0])
    assert name.startswith(one.names.prefix)
    assert len(name) <= 63


def test_log_takes_what_replication_writes_and_notices_a_truncation() -> None:
    one = move()
    made = text(catalog.create_log(one, one.leaves[0], SHAPE))
    assert made.count("ENABLE ALWAYS TRIGGER") == 2
    assert 'BEFORE TRUNCATE ON "public"."orders_b1"' in made
    assert '("user_id", "id") VALUES (OLD."user_id", OLD."id")' in made
    assert '("user_id", "id") VALUES (NEW."user_id", NEW."id")' in made


def test_parents_are_locked_before_their_leaves() -> None:
    made = text(catalog.lock(move()))
    assert made == (
        'LOCK TABLE ONLY "public"."orders", ONLY "public"."items", "public"."orders_b1", "public"."items_b1" IN ACCESS EXCLUSIVE MODE'
    )


def test_a_part_has_the_keys_and_indexes_of_its_table_under_names_of_its_own() -> None:
    part = Leaf(TABLES[0], 3)
    assert [text(one) for one in catalog.indexes(part, FORM)] == [
        'ALTER TABLE "public"."orders_b3" ADD PRIMARY KEY (user_id, id)',
        'CREATE UNIQUE INDEX ON "public"."orders_b3" USING btree (user_id, note)',
        'CREATE INDEX ON "public"."orders_b3" USING btree (id)',
    ]


def test_rows_travel_in_the_order_of_the_columns_of_the_parts() -> None:
    one = move()
    assert text(catalog.read_rows(one, one.leaves[0], SHAPE, FORM)).startswith(
        'SELECT ROW("user_id", "id", "note")::text AS row'
    )


def test_a_percent_sign_of_a_key_is_no_parameter() -> None:
    one, part, check = move(), Leaf(TABLES[0], 3), "(user_id = 'a%s'::text)"
    leaf = one.leaves[0]
    for made in (catalog.renew(one, leaf, part, check, SHAPE), catalog.write_rows(part, check, SHAPE)):
        assert text(made).count("%s") - text(made).count("%%s") == 1
        assert "'a%%s'" in text(made)
    assert "'a%s'" in text(catalog.copy(leaf, part, check, SHAPE, 0, 5))


def test_pages_after_those_that_were_counted_are_copied_too() -> None:
    made = text(catalog.copy(move().leaves[0], Leaf(TABLES[0], 3), "true", SHAPE, 7, None))
    assert "ctid >= '(7,0)'::tid" in made
    assert "ctid <" not in made


def test_swap_gives_the_names_up_and_refers_within_the_parts() -> None:
    key = ForeignKey("items_order", ("user_id", "id"), "public.orders", ("user_id", "id"), "ON DELETE CASCADE")
    forms = {"public.orders": FORM, "public.items": replace(FORM, name="public.items", foreign_keys=(key,))}
    made = [text(one) for one in catalog.swap(move(), with_parts(RANGE, 1, RANGE_PARTS), RANGE_PARTS, forms)]
    assert made[:2] == [
        'ALTER TABLE "public"."orders" DETACH PARTITION "public"."orders_b1"',
        'ALTER TABLE "public"."orders_b1" RENAME TO "orders_b1_retired"',
    ]
    assert 'ALTER TABLE "public"."orders" ATTACH PARTITION "public"."orders_b3" FOR VALUES FROM (10) TO (15)' in made
    assert made[-1] == (
        'ALTER TABLE "public"."items_b4" ADD CONSTRAINT "items_order" FOREIGN KEY ("user_id", "id") REFERENCES "public"."orders_b4" '
        '("user_id", "id") ON DELETE CASCADE NOT VALID'
    )
    assert [text(one) for one in catalog.validate(move(), (3, 4), forms)] == [
        f'ALTER TABLE "public"."items_b{number}" VALIDATE CONSTRAINT "items_order"' for number in (3, 4)
    ]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"in_recovery": False, "prepared_free": 0}, "raise it and restart"),
        ({"in_recovery": True, "prepared_free": 5}, "name the primary"),
    ],
)
def test_a_router_that_cannot_commit_with_others_is_named(facts: dict[str, t.Any], reason: str) -> None:
    (found,) = router_reasons("r", facts)
    assert found.startswith("r: ")
    assert reason in found


def test_a_router_that_can_is_not() -> None:
    assert router_reasons("r", {"in_recovery": False, "prepared_free": 1}) == []


SPLIT = Split("users", 1, RANGE_PARTS, (0.5, 0.5))
GIVEN = {
    "id": "p1",
    "splits": [
        {
            "group": "users",
            "bucket": 1,
            "shard": "b",
            "epoch": 1,
            "parts": [one.as_dict("range") for one in RANGE_PARTS],
        }
    ],
}


def seen_of(shard_map: ShardMap, **more: t.Any) -> Picture:
    return Picture({}, shard_map, **more)


def planned() -> Plan:
    return Plan("p1", (SPLIT,), (), (), (), 0.0, ())


def test_what_is_planned_is_split() -> None:
    left_out: list[str] = []
    assert splits_now(seen_of(map_of(RANGE)), planned(), True, left_out) == (SPLIT,)
    assert left_out == []


@pytest.mark.parametrize("where", ["in_grace", "in_flight", "splits"])
def test_a_bucket_whose_move_has_not_ended_is_not_split(where: str) -> None:
    left_out: list[str] = []
    busy = {("users", 1): Move("m7", RANGE, 1, "a", "b")}
    assert splits_now(seen_of(map_of(RANGE), **{where: busy}), planned(), True, left_out) == ()
    assert left_out[0].startswith("Bucket users/1 is not split: its move users/1 from a to b, m7, has not ended")


def test_a_run_splits_once() -> None:
    left_out: list[str] = []
    assert splits_now(seen_of(map_of(RANGE)), planned(), False, left_out) == ()
    assert left_out == ["Bucket users/1 is split by the next run, since this one has split already."]


def test_a_plan_that_is_given_is_split_as_it_says() -> None:
    (made,) = given_splits(seen_of(map_of(RANGE)), GIVEN, False, "p1")
    assert (made.group, made.bucket, made.parts) == ("users", 1, RANGE_PARTS)


def test_what_a_plan_has_split_already_is_left() -> None:
    assert given_splits(seen_of(split_map(map_of(RANGE), [SPLIT])), GIVEN, True, "p2") == ()


@pytest.mark.parametrize(
    ("entry", "begun"), [({"epoch": 2}, False), ({"shard": "a"}, False), ({"bucket": 9}, True), ({"group": "x"}, True)]
)
def test_a_plan_of_another_map_is_refused(entry: dict[str, t.Any], begun: bool) -> None:
    given_plan = {**GIVEN, "splits": [{**GIVEN["splits"][0], **entry}]}
    with pytest.raises(HeadroomError, match="Plan again") as caught:
        given_splits(seen_of(map_of(RANGE)), given_plan, begun, "p2")
    assert caught.value.code == "plan_drifted"


def test_a_plan_that_was_edited_is_refused() -> None:
    parts = [Bucket(3, 10, 15).as_dict("range"), Bucket(4, 16, 20).as_dict("range")]
    with pytest.raises(OptionError, match=r"plan.splits\[0\].parts"):
        given_splits(seen_of(map_of(RANGE)), {**GIVEN, "splits": [{**GIVEN["splits"][0], "parts": parts}]}, False, "p1")


def test_a_plan_that_splits_a_bucket_twice_is_refused() -> None:
    with pytest.raises(OptionError, match=r"plan.splits\[1\].parts.*another split of the plan has this number too"):
        given_splits(seen_of(map_of(RANGE)), {**GIVEN, "splits": GIVEN["splits"] * 2}, False, "p1")


def test_a_plan_waits_for_the_end_of_a_grace() -> None:
    busy = {("users", 1): Move("m7", RANGE, 1, "a", "b")}
    with pytest.raises(HeadroomError, match="End that with state cleaned"):
        given_splits(seen_of(map_of(RANGE), in_grace=busy), GIVEN, False, "p1")


MOVES = {"id": "p1", "moves": [{"group": "users", "bucket": 1, "source": "b", "target": "a", "epoch": 1}]}
USAGE = {("users", number): Usage(100_000_000, load=1.0) for number in range(3)}


def test_a_plan_that_is_given_says_how_long_it_takes() -> None:
    seen = seen_of(map_of(RANGE), usage=USAGE)
    (made,) = given_moves(seen, MOVES, (), False, "p1", Limits(rate_bytes_s=50e6))
    assert (made.bucket, made.source, made.target) == (("users", 1), "b", "a")
    assert made.estimated_s > 2


def test_a_plan_does_not_move_what_can_still_be_taken_back() -> None:
    seen = seen_of(map_of(RANGE), usage=USAGE, in_grace={("users", 1): Move("m7", RANGE, 1, "a", "b")})
    with pytest.raises(HeadroomError, match="move users/1 from a to b, m7, can still be taken back"):
        given_moves(seen, MOVES, (), False, "p1", Limits())


def test_a_plan_does_not_move_what_it_splits() -> None:
    with pytest.raises(OptionError, match=r"plan.moves\[0\].bucket' has the value 'users/1': the plan splits it"):
        given_moves(seen_of(map_of(RANGE), usage=USAGE), MOVES, (SPLIT,), False, "p1", Limits())


def test_a_move_shows_how_far_and_how_fast_it_is() -> None:
    copying = Move("m1", RANGE, 1, "a", "b", state="copying", step="copy", bytes_done=1 << 20, bytes_total=5 << 20)
    assert (
        standing(copying, 1 << 20) == "users/1 from a to b copying copy, 1.0 MiB of 5.0 MiB, 1.0 MiB/s, about 4 s left"
    )
    assert standing(replace(copying, step="copied"), 0.0) == "users/1 from a to b copying copied"
