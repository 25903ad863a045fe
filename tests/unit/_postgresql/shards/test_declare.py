# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is declared comes about from whatever was committed before, and what would undo something is refused in a sentence.

Members are simulated here: a step changes what is seen as its statements would.
"""

from __future__ import annotations

import random
import typing as t
from dataclasses import replace

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards import declare
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.checks import (
    check_members,
    check_tables,
    shapes,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.describe import (
    describe_map,
    describe_tables,
    spans,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.members import Access
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import (
    METHODS,
    Member,
    Placement,
    Shard,
    ShardMap,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.observed import (
    Column,
    Definition,
    ForeignKey,
    Leaf,
    Link,
    Relation,
    Seen,
    StoredMap,
    digest_of,
    leaf_name,
    merge,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.options import groups_from
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.schema import DIGEST, FORMAT
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.steps import (
    Step,
    plan_steps,
    wanted_links,
)
from hypothesis import given, settings
from hypothesis import strategies as st

World = dict[str, Seen]

USERS = {
    "name": "users",
    "strategy": "hash",
    "key_type": "bigint",
    "buckets": 64,
    "tables": [{"name": "public.users", "key": "id"}],
}
ACCOUNTS = {
    "name": "accounts",
    "strategy": "range",
    "key_type": "bigint",
    "bounds": [100, 200, 300],
    "tables": [{"name": "public.accounts", "key": "id"}],
}
TENANTS = {
    "name": "tenants",
    "strategy": "directory",
    "key_type": "text",
    "tenants": [["a", "b"], ["c"]],
    "tables": [{"name": "public.tenants", "key": "id"}],
}
GOOD = {
    "wal_level": "logical",
    "max_prepared_transactions": "10",
    "max_locks_per_transaction": "64",
    "max_connections": "100",
}


def member(number: int, role: str = "shard") -> Member:
    return Member(f"{'s' if role == 'shard' else 'r'}{number}", f"10.0.{int(role == 'router')}.{number}", role=role)


def wanted(shards: int = 3, routers: int = 1, groups: t.Sequence[t.Any] = (USERS,), **other: t.Any) -> declare.Wanted:
    names = [f"s{number}" for number in range(1, shards + 1)]
    given_shards = other.pop("shards", tuple(Shard(name) for name in names))
    return declare.Wanted(
        "shop",
        (
            *(member(number) for number in range(1, shards + 1)),
            *(member(number, "router") for number in range(1, routers + 1)),
        ),
        given_shards,
        groups_from(list(groups)),
        Access(),
        **other,
    )


def bare(one: Member, **other: t.Any) -> Seen:
    """A member that has nothing yet."""
    return Seen(one, 170000, GOOD, f"system/{one.name}", roles=frozenset({"headroom_member"}), **other)


def world(declared: declare.Wanted) -> World:
    return {one.name: bare(one) for one in declared.members}


def table(name: str = "public.users", key: str = "id", kind: str = "plain", **other: t.Any) -> Relation:
    key_type = other.pop("type", "bigint")
    columns = (Column(key, key_type, not_null=True, bytewise=False), Column("note", "text"))
    primary = Definition("pk", "p", f"PRIMARY KEY ({key})", (key,), True)
    return Relation(name, kind, columns, **{"constraints": (primary,), **other})


def forms_of(declared: declare.Wanted, seen: World) -> dict[str, Relation]:
    forms = shapes(declared, seen)
    for name, (group, one) in declared.tables.items():
        forms.setdefault(name, table(name, one.key, type=group.key_type))
    return forms


def plan(
    declared: declare.Wanted, seen: World, contents: t.Any = None
) -> tuple[ShardMap, list[Step], tuple[declare.Misplaced, ...]]:
    known = merge(seen)
    check_members(declared, seen)
    forms = forms_of(declared, seen)
    check_tables(declared, seen, forms)
    target, misplaced = declare.target_map(declared, seen, known, contents or {})
    return target, plan_steps(declared, seen, target, forms), misplaced


def commit(declared: declare.Wanted, seen: World, target: ShardMap, steps: list[Step], name: str) -> None:
    """Do to a member what its steps do."""
    one = seen[name]
    for step in steps:
        if step.member == name:
            one = _after(declared, one, target, step)
    seen[name] = one


def _after(declared: declare.Wanted, one: Seen, target: ShardMap, step: Step) -> Seen:
    name = one.member.name
    if step.action == "extension":
        return replace(one, fdw_installed=True)
    if step.action == "settings":
        return replace(one, partitionwise=True)
    if step.action == "link":
        options, mapping = wanted_links(declared, name)[step.object]
        return replace(one, links={**one.links, step.object: Link(step.object, options, mapping)})
    if step.action == "unlink":
        return replace(one, links={key: link for key, link in one.links.items() if key != step.object})
    if step.action == "map":
        digest = digest_of(declared.cluster, declared.members, declared.shards, target.groups)
        stored = StoredMap(
            declared.cluster,
            name,
            one.member.role,
            FORMAT,
            DIGEST,
            digest,
            declared.members,
            replace(target, shards=declared.shards),
        )
        return replace(one, stored=stored)
    if step.action == "schema":
        return one
    group = next(group for group in target.groups for found in group.tables if found.name == step.object)
    key = next(found.key for found in group.tables if found.name == step.object)
    shards = {bucket.number: target.placements[group.name, bucket.number].shard for bucket in group.buckets}
    before = one.relations.get(step.object)
    if one.member.role == "router":
        leaves = tuple(
            Leaf(
                leaf_name(step.object, number),
                number,
                server=f"headroom_{shard}",
                remote=leaf_name(step.object, number),
            )
            for number, shard in shards.items()
        )
    else:
        kept = before.leaves if before and step.action == "leaves" else ()
        leaves = (*kept, *(Leaf(leaf_name(step.object, number), number) for number in step.buckets))
    method = f"{METHODS[group.strategy]} ({key})"
    made = table(step.object, key, "partitioned", type=group.key_type, partition_key=method, leaves=leaves)
    return replace(one, relations={**one.relations, step.object: made})


def settle(declared: declare.Wanted, seen: World, contents: t.Any = None) -> ShardMap:
    """Commit everything, and make sure that nothing is left to do."""
    target, steps, misplaced = plan(declared, seen, contents)
    assert not misplaced
    for name in seen:
        commit(declared, seen, target, steps, name)
    again, left, _none = plan(declared, seen)
    assert left == []
    assert again == replace(target, shards=declared.shards)
    return again


def refused(declared: declare.Wanted, seen: World, contents: t.Any = None) -> str:
    with pytest.raises(HeadroomError) as error:
        plan(declared, seen, contents)
    text = str(error.value)
    assert text.startswith("Failed to ")
    assert text.endswith((".", "?"))
    return text


# --- what comes about


def test_a_first_declaration_places_all_buckets_and_a_second_changes_nothing() -> None:
    declared = wanted(groups=(USERS, ACCOUNTS, TENANTS))
    seen = world(declared)
    target = settle(declared, seen)
    assert target.epoch == 1
    assert {one.epoch for one in target.placements.values()} == {1}
    held = [one.shard for key, one in target.placements.items() if key[0] == "users"]
    assert {held.count(f"s{number}") for number in (1, 2, 3)} <= {21, 22}
    for name in ("s1", "s2", "s3"):
        here = {key[1] for key, one in target.placements.items() if key[0] == "users" and one.shard == name}
        assert seen[name].relations["public.users"].held == here
    assert len(seen["r1"].relations["public.users"].leaves) == 64
    assert set(seen["s1"].links) == {"headroom_s2", "headroom_s3"}
    assert set(seen["r1"].links) == {"headroom_s1", "headroom_s2", "headroom_s3"}


def test_a_shard_that_joins_gets_the_tables_and_no_bucket() -> None:
    seen = world(wanted(2))
    first = settle(wanted(2), seen)
    seen["s3"] = bare(member(3))
    second = settle(wanted(3), seen)
    assert second.placements == first.placements
    assert second.epoch == first.epoch
    assert seen["s3"].relations["public.users"].kind == "partitioned"
    assert seen["s3"].relations["public.users"].leaves == ()
    assert "headroom_s3" in seen["r1"].links


def test_weights_and_states_are_written_and_move_nothing() -> None:
    seen = world(wanted())
    first = settle(wanted(), seen)
    changed = wanted(3)
    changed = replace(changed, shards=(Shard("s1", 5.0), Shard("s2", 1.0, "draining"), Shard("s3")))
    _target, steps, _none = plan(changed, seen)
    assert {step.action for step in steps} == {"map"}
    assert settle(changed, seen).placements == first.placements


def test_a_table_that_joins_a_group_follows_its_buckets() -> None:
    seen = world(wanted())
    first = settle(wanted(), seen)
    more = {**USERS, "tables": [*USERS["tables"], {"name": "public.orders", "key": "user_id"}]}
    second = settle(wanted(groups=[more]), seen)
    assert second.placements == first.placements
    assert seen["s2"].relations["public.orders"].held == seen["s2"].relations["public.users"].held


def test_new_tenants_get_a_bucket_where_fewest_are_and_a_new_epoch() -> None:
    seen = world(wanted(groups=[TENANTS]))
    first = settle(wanted(groups=[TENANTS]), seen)
    more = {**TENANTS, "tenants": [["a", "b"], ["c", "d"], ["e", "f"], ["g"]]}
    second = settle(wanted(groups=[more]), seen)
    assert second.epoch == 2
    assert {key: one for key, one in second.placements.items() if key[1] < 2} == first.placements
    assert [bucket.tenants for bucket in second.groups[0].buckets] == [("a", "b"), ("c",), ("d",), ("e", "f"), ("g",)]
    held = [one.shard for one in second.placements.values()]
    assert max(held.count(name) for name in ("s1", "s2", "s3")) == 2


@pytest.mark.parametrize(
    ("target", "state"), [("s1", "copying"), ("s1", "switched"), ("s2", "copying"), ("s2", "switched")]
)
def test_new_tenants_wait_for_a_split_whose_parts_have_their_numbers(target: str, state: str) -> None:
    seen = world(wanted(groups=[TENANTS]))
    settle(wanted(groups=[TENANTS]), seen)
    move = {"id": "m1", "group_name": "tenants", "bucket": 0, "source": "s1", "target": target, "state": state}
    seen["s1"] = replace(seen["s1"], moves=(move,))
    more = wanted(groups=[{**TENANTS, "tenants": [["a", "b"], ["c"], ["d"]]}])
    if (target, state) == ("s1", "copying"):
        with pytest.raises(HeadroomError, match=r"bucket tenants/0 is being split on s1 .*Rebalance first"):
            plan(more, seen)
    else:
        assert plan(more, seen)[1]
    assert plan(wanted(groups=[TENANTS]), seen)[1] == []


def test_bounds_of_buckets_that_were_split_may_still_be_declared() -> None:
    seen = world(wanted(groups=[ACCOUNTS]))
    settle(wanted(groups=[ACCOUNTS]), seen)
    assert plan(wanted(groups=[{**ACCOUNTS, "bounds": [100, 300]}]), seen)[1] == []


def test_a_router_that_points_elsewhere_is_repointed() -> None:
    declared = wanted(groups=[ACCOUNTS])
    seen = world(declared)
    settle(declared, seen)
    relation = seen["r1"].relations["public.accounts"]
    wrong = replace(relation.leaves[0], server="headroom_s9")
    seen["r1"] = replace(
        seen["r1"], relations={"public.accounts": replace(relation, leaves=(wrong, *relation.leaves[2:]))}
    )
    _target, steps, _none = plan(declared, seen)
    assert [(step.member, step.action, step.buckets) for step in steps] == [("r1", "repoint", (0, 1))]


def test_a_shard_leaves_when_it_holds_nothing() -> None:
    seen = world(wanted(2))
    settle(wanted(2), seen)
    seen["s3"] = bare(member(3))
    settle(wanted(3), seen)
    del seen["s3"]
    settle(wanted(2), seen)
    assert set(seen["r1"].links) == {"headroom_s1", "headroom_s2"}


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 4), st.integers(0, 2))
def test_a_run_that_dies_between_commits_is_taken_up(rng: random.Random, shards: int, routers: int) -> None:
    """Whatever members had committed, of whatever sequence of declarations, the last one comes about, and nothing moves."""
    tenants = [["a"], ["b"]]
    declared = wanted(shards, routers, groups=[ACCOUNTS, {**TENANTS, "tenants": tenants}])
    seen = world(declared)
    placed: dict[t.Any, Placement] = {}
    for turn in range(4):
        if turn:
            tenants = [*tenants, [f"t{turn}"]]
            shards += rng.randrange(2)
            more = {**ACCOUNTS, "tables": [*ACCOUNTS["tables"], {"name": "public.postings", "key": "account"}]}
            declared = wanted(shards, routers, groups=[more, {**TENANTS, "tenants": tenants}])
            for one in declared.members:
                seen.setdefault(one.name, bare(one))
        target, steps, _none = plan(declared, seen)
        done = [name for name in seen if rng.random() < 0.5]
        for name in done:
            commit(declared, seen, target, steps, name)
        if done:
            # what one member has committed is where it is from then on
            assert placed.items() <= target.placements.items()
            placed = dict(target.placements)
    last = settle(declared, seen)
    assert placed.items() <= last.placements.items()


# --- taking tables over


def filled(seen: World, name: str, *on: str, **form: t.Any) -> None:
    for shard in on:
        seen[shard] = replace(seen[shard], relations={**seen[shard].relations, name: table(name, filled=True, **form)})


def test_a_table_with_rows_on_one_shard_stays_there_as_a_whole() -> None:
    declared = wanted()
    seen = world(declared)
    filled(seen, "public.users", "s2")
    target = settle(declared, seen, {("public.users", "s2"): {5: 10, 6: 2}})
    assert {one.shard for one in target.placements.values()} == {"s2"}
    assert len(seen["s2"].relations["public.users"].held) == 64


def test_buckets_lie_where_their_rows_are() -> None:
    declared = wanted(groups=[ACCOUNTS])
    seen = world(declared)
    filled(seen, "public.accounts", "s1", "s3")
    contents = {("public.accounts", "s1"): {1: 4, 3: 1}, ("public.accounts", "s3"): {0: 7}}
    target = settle(declared, seen, contents)
    assert [target.placements["accounts", number].shard for number in (0, 1, 3)] == ["s3", "s1", "s1"]


def test_rows_on_another_shard_than_the_rest_of_their_bucket_are_named() -> None:
    declared = wanted(groups=[ACCOUNTS])
    seen = world(declared)
    filled(seen, "public.accounts", "s1", "s3")
    contents = {("public.accounts", "s1"): {0: 4, 1: 1}, ("public.accounts", "s3"): {1: 7, 2: 7, None: 2}}
    misplaced = plan(declared, seen, contents)[2]
    assert misplaced == (
        declare.Misplaced("public.accounts", "s1", 1, ("s3",), (1,)),
        declare.Misplaced("public.accounts", "s3", 2, (), (None,)),
    )
    error = declare.report_misplaced(misplaced, [[150], [7, 8]], contents)
    assert "3 of 21 rows" in str(error)
    assert "1 row of public.accounts on s1 belongs to s3 (keys 150)" in str(error)
    assert error.result["errors"][0] == {
        "code": "misplaced_rows",
        "message": "1 row of public.accounts on s1 belongs to s3 (keys 150)",
        "table": "public.accounts",
        "shard": "s1",
        "rows": 1,
        "belongs_to": ["s3"],
        "keys": [150],
    }


def test_a_declared_placement_counts_more_than_rows() -> None:
    declared = wanted(groups=[ACCOUNTS], placement={"accounts": ("s1", "s1", "s2", "s3")})
    seen = world(declared)
    filled(seen, "public.accounts", "s3")
    misplaced = plan(declared, seen, {("public.accounts", "s3"): {0: 9, 3: 1}})[2]
    assert [(one.shard, one.rows, one.homes) for one in misplaced] == [("s3", 9, ("s1",))]


def test_tables_that_differ_between_shards_are_refused() -> None:
    declared = wanted()
    seen = world(declared)
    filled(seen, "public.users", "s1")
    other = table(filled=True)
    other = replace(other, columns=(*other.columns, Column("more", "integer")))
    seen["s2"] = replace(seen["s2"], relations={"public.users": other})
    assert "the column more of public.users" in refused(declared, seen)


def test_a_router_has_the_columns_of_the_shards() -> None:
    declared = wanted()
    seen = world(declared)
    settle(declared, seen)
    relation = seen["r1"].relations["public.users"]
    # it passes rows on, and leaves it to the shards to check them
    loose = tuple(replace(column, not_null=False) for column in relation.columns)
    seen["r1"] = replace(
        seen["r1"], relations={**seen["r1"].relations, "public.users": replace(relation, columns=loose)}
    )
    assert plan(declared, seen)[1] == []
    renamed = (*relation.columns[:-1], replace(relation.columns[-1], name="other"))
    seen["r1"] = replace(
        seen["r1"], relations={**seen["r1"].relations, "public.users": replace(relation, columns=renamed)}
    )
    said = refused(declared, seen)
    assert f"the column {relation.columns[-1].name} of public.users is missing on r1" in said
    assert said.endswith("Make the tables alike.")


def test_a_large_table_is_not_rewritten_unasked() -> None:
    declared = wanted(max_rewrite_bytes=1000)
    seen = world(declared)
    filled(seen, "public.users", "s1", size_bytes=1001)
    assert "max_rewrite_bytes" in refused(declared, seen)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"key": "number"}, "has no column id; its columns are number, note"),
        ({"type": "integer"}, "is integer, and group users has keys of type bigint"),
        ({"constraints": ()}, "has no primary key"),
        (
            {"constraints": (Definition("pk", "p", "", ("note",), True),)},
            "the primary key pk of public.users does not contain",
        ),
        (
            {"indexes": (Definition("i", "i", "", ("note",), True),)},
            "the unique index i of public.users does not contain",
        ),
        ({"kind": "a view"}, "is a view, and not a table"),
        ({"kind": "partitioned", "partition_key": "LIST (id)"}, "is partitioned by LIST (id) already"),
        ({"blockers": ("is used by the view or rule of v; drop that",)}, "is used by the view"),
        ({"strays": ("public.users_b7",)}, "has a table public.users_b7 already"),
    ],
)
def test_a_table_that_cannot_be_sharded_is_refused(change: dict[str, t.Any], says: str) -> None:
    declared = wanted(1, 0)
    seen = world(declared)
    seen["s1"] = replace(seen["s1"], relations={"public.users": table(**change)})
    assert says in refused(declared, seen)


def test_foreign_keys_must_join_the_shard_keys_of_a_group() -> None:
    both = {**USERS, "tables": [*USERS["tables"], {"name": "public.orders", "key": "user_id"}]}
    declared = wanted(1, 0, groups=[both])
    seen = world(declared)

    def orders(*keys: ForeignKey) -> World:
        relations = {
            "public.users": table(referenced_by=("public.orders",)),
            "public.orders": table("public.orders", "user_id", foreign_keys=keys),
        }
        return {"s1": replace(seen["s1"], relations=relations)}

    fine = ForeignKey("fk", ("user_id",), "public.users", ("id",))
    assert {step.action for step in plan(declared, orders(fine))[1]} >= {"convert"}
    for wrong in (
        replace(fine, columns=("note",)),
        replace(fine, their_columns=("note",)),
        replace(fine, table="public.countries"),
    ):
        assert "the foreign key fk of public.orders would reach across shards" in refused(declared, orders(wrong))
    assert "referenced by a foreign key of public.orders" in refused(wanted(1, 0), orders(fine))


def test_a_key_from_a_sequence_is_refused() -> None:
    declared = wanted(1, 0)
    for column in (Column("id", "bigint", identity="a"), Column("id", "bigint", default="nextval('s'::regclass)")):
        seen = world(declared)
        seen["s1"] = replace(seen["s1"], relations={"public.users": replace(table(), columns=(column,))})
        assert "comes from a sequence" in refused(declared, seen)


def test_texts_must_sort_as_they_are_placed() -> None:
    group = {**ACCOUNTS, "key_type": "text", "bounds": ["m"]}
    declared = wanted(1, 0, groups=[group])
    seen = world(declared)
    seen["s1"] = replace(seen["s1"], relations={"public.accounts": table("public.accounts", type="text")})
    assert 'COLLATE "C"' in refused(declared, seen)


def test_a_table_on_a_router_is_not_touched() -> None:
    declared = wanted()
    seen = world(declared)
    seen["r1"] = replace(seen["r1"], relations={"public.users": table()})
    assert "has a table public.users of its own" in refused(declared, seen)


# --- what is refused


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 150005}, "runs PostgreSQL 15, and 16 or later is needed"),
        ({"settings": {**GOOD, "wal_level": "replica"}}, "wal_level = replica"),
        ({"settings": {**GOOD, "max_prepared_transactions": "0"}}, "max_prepared_transactions = 0"),
        (
            {"settings": {**GOOD, "max_locks_per_transaction": "1", "max_connections": "10"}},
            "Raise max_locks_per_transaction to",
        ),
        ({"in_recovery": True}, "is a replica"),
        ({"identity": "system/s2"}, "are the same database"),
        ({"fdw_available": False}, "lacks the extension postgres_fdw"),
        ({"roles": frozenset()}, "has no role headroom_member"),
        ({"hashes": False}, "another byte order"),
    ],
)
def test_a_server_that_cannot_be_a_member_is_refused(change: dict[str, t.Any], says: str) -> None:
    declared = wanted()
    seen = world(declared)
    seen["s1"] = replace(seen["s1"], **change)
    assert says in refused(declared, seen)


def test_keys_of_texts_need_utf8() -> None:
    declared = wanted(groups=[TENANTS])
    seen = world(declared)
    seen["s1"] = replace(seen["s1"], encoding="LATIN1")
    assert "LATIN1" in refused(declared, seen)


def test_members_that_were_confused_are_refused() -> None:
    seen = world(wanted())
    settle(wanted(), seen)
    swapped = {**seen, "s1": replace(seen["s2"], member=member(1)), "s2": replace(seen["s1"], member=member(2))}
    assert "is the shard s2 of this cluster" in refused(wanted(), swapped)
    assert "belongs to the cluster shop" in refused(replace(wanted(), cluster="other"), seen)


def test_a_shard_that_holds_buckets_cannot_leave() -> None:
    seen = world(wanted())
    settle(wanted(), seen)
    del seen["s3"]
    assert "the shard s3 is not declared any more, and still holds 2" in refused(wanted(2), seen)


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ([ACCOUNTS, TENANTS], "the group users is sharded, and is not declared any more"),
        ([{**USERS, "buckets": 128}, ACCOUNTS, TENANTS], "has 64 buckets, and is declared with 128"),
        (
            [{**USERS, "key_type": "integer"}, ACCOUNTS, TENANTS],
            "has the key_type bigint, and is declared with integer",
        ),
        (
            [{**USERS, "tables": [{"name": "public.other", "key": "id"}]}, ACCOUNTS, TENANTS],
            "the table public.users is sharded",
        ),
        ([{**USERS, "tables": [{"name": "public.users", "key": "note"}]}, ACCOUNTS, TENANTS], "is declared as note"),
        ([USERS, {**ACCOUNTS, "bounds": [100, 250]}, TENANTS], "is not cut at 250"),
        ([USERS, ACCOUNTS, {**TENANTS, "tenants": [["a"], ["c"]]}], "the tenant b of group tenants has a bucket"),
    ],
)
def test_what_is_there_is_not_given_up(groups: list[t.Any], says: str) -> None:
    declared = wanted(groups=[USERS, ACCOUNTS, TENANTS])
    seen = world(declared)
    settle(declared, seen)
    with pytest.raises(HeadroomError, match=says):
        declare.target_map(wanted(groups=groups), seen, merge(seen), {})


def test_a_table_that_is_missing_is_not_made_anew() -> None:
    seen = world(wanted())
    settle(wanted(), seen)
    for name in ("s1", "r1"):
        broken = {**seen, name: replace(seen[name], relations={})}
        assert "is missing on" in refused(wanted(), broken)


def test_leaves_must_be_where_the_map_says() -> None:
    declared = wanted(groups=[ACCOUNTS])
    seen = world(declared)
    target = settle(declared, seen)
    home = target.placements["accounts", 0].shard
    relation = seen[home].relations["public.accounts"]
    without = replace(relation, leaves=tuple(leaf for leaf in relation.leaves if leaf.number != 0))
    broken = {**seen, home: replace(seen[home], relations={"public.accounts": without})}
    assert "public.accounts_b0 is not attached" in refused(declared, broken)
    other = next(name for name in ("s1", "s2", "s3") if name != home)
    relation = seen[other].relations["public.accounts"]
    with_it = replace(relation, leaves=(*relation.leaves, Leaf("public.accounts_b0", 0)))
    broken = {**seen, other: replace(seen[other], relations={"public.accounts": with_it})}
    assert f"the map says that bucket accounts/0 lies on {home}" in refused(declared, broken)
    # what a move has left there for a while is no leaf of the bucket any more
    retired = replace(relation, leaves=(*relation.leaves, Leaf("public.accounts_b0_retired", 0, retired=True)))
    fine = {**seen, other: replace(seen[other], relations={"public.accounts": retired})}
    assert plan(declared, fine)[1] == []


def test_a_shard_that_can_get_a_bucket_back_leaves_later() -> None:
    declared = wanted(3, groups=[ACCOUNTS])
    seen = world(declared)
    settle(wanted(2, groups=[ACCOUNTS]), seen)
    settle(declared, seen)
    move = {"id": "m1", "group_name": "accounts", "bucket": 0, "source": "s3", "target": "s1", "state": "switched"}
    seen["s1"] = replace(seen["s1"], moves=(move,))
    del seen["s3"]
    said = refused(wanted(2, groups=[ACCOUNTS]), seen)
    assert "bucket accounts/0, which moved from s3 to s1, can still be taken back" in said
    assert "rebalance with state cleaned and retire_now, or wait" in said


def test_groups_do_not_change_while_a_bucket_is_on_its_way() -> None:
    declared = wanted(groups=[ACCOUNTS])
    seen = world(declared)
    settle(declared, seen)
    move = {"id": "m1", "group_name": "accounts", "bucket": 0, "source": "s1", "target": "s2", "state": "copying"}
    seen["s1"] = replace(seen["s1"], moves=(move,))
    assert plan(declared, seen)[1] == []
    more = {**ACCOUNTS, "tables": [*ACCOUNTS["tables"], {"name": "public.postings", "key": "account"}]}
    assert "accounts/0 is on its way from s1 to s2" in refused(wanted(groups=[more]), seen)
    seen["s1"] = replace(seen["s1"], moves=({**move, "state": "switched"},))
    assert "accounts/0 has moved from s1 to s2 and can still be taken back" in refused(wanted(groups=[more]), seen)


# --- for people


def test_a_map_is_described_in_lines() -> None:
    declared = wanted(2, groups=[ACCOUNTS, TENANTS])
    seen = world(declared)
    target = settle(declared, seen)
    lines = describe_map(declared.members, target, "shop", describe_tables(declared, seen)).splitlines()
    assert lines[0] == "cluster shop"
    assert "shard s1: 10.0.0.1:5432/postgres, weight 1, active, 3 buckets" in lines
    assert "router r1: 10.0.1.1:5432/postgres" in lines
    assert "  public.accounts: partitioned" in lines
    assert "group accounts: range of bigint, 4 buckets" in lines
    assert any(line.endswith(": from 100 and below 200") for line in lines)
    assert any(line.endswith(": a, b") for line in lines)
    assert describe_map(declared.members, None, "shop", {}) == "no map\n"


def test_numbers_are_shown_as_spans() -> None:
    assert spans([5, 0, 1, 2, 9, 8]) == "0-2, 5, 8-9"
