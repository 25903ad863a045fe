# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What members gave becomes one report: shares, hot buckets, moves, and what nobody owns; what is not known is null."""

from __future__ import annotations

import re
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError, OptionError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.connection import Login
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards import info
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import (
    Bucket,
    Group,
    Member,
    Placement,
    Shard,
    ShardMap,
    Table,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.observed import (
    Column,
    Leaf,
    Relation,
    Seen,
    StoredMap,
    digest_of,
)

MEMBERS = (Member("s1", "10.0.0.1"), Member("s2", "10.0.0.2"), Member("r1", "10.0.0.3", role="router"))
SHARDS = (Shard("s1"), Shard("s2"))
GROUP = Group(
    "a", "range", "bigint", (Table("public.a", "id"),), (Bucket(0, None, 10), Bucket(1, 10, 20), Bucket(2, 20))
)
PLACES = {0: ("s1", 1), 1: ("s1", 2), 2: ("s2", 1)}
OPTIONS = info.Options("shop", MEMBERS, Login(), 5.0, {"size_bytes": 1.0})
SIZES = {0: 100, 1: 500, 2: 300}
PARAMS = {
    "shards": [{"name": "s1", "host": "h", "port": 5432, "database": None}],
    "routers": [],
    "cluster": "shop",
    "timeout_s": 5.0,
    "load": None,
    "sample_s": 0.0,
    "hot_factor": 4.0,
    "with_buckets": True,
    "require_all": True,
    "report_file": None,
    "login_user": "postgres",
    "login_password": None,
    "login_db": "shop",
    **dict.fromkeys(("ssl_mode", "ca_cert", "ssl_cert", "ssl_key")),
}
FIGURES = {"connections": 3, "active": 1, "max_connections": 100, "transactions": 9, "retained_wal_bytes": 7}


def view(
    member: Member, places: dict[int, tuple[str, int]] | None = None, shards: t.Any = SHARDS, **other: t.Any
) -> t.Any:
    places = places or PLACES
    shard_map = ShardMap(
        max(epoch for _shard, epoch in places.values()),
        shards,
        (GROUP,),
        {("a", number): Placement(*one) for number, one in places.items()},
    )
    digest = digest_of("shop", MEMBERS, shards, shard_map.groups)
    stored = StoredMap("shop", member.name, member.role, 1, "x", digest, MEMBERS, shard_map)
    relation = other.pop("relation", Relation("public.a", "partitioned", (Column("id", "bigint"),)))
    seen = Seen(member, 170004, {}, member.name, stored=stored, relations={"public.a": relation})
    leaves = {
        f"public.a_b{number}": {"size_bytes": SIZES[number], "rows": number, "reads": 10, "writes": 5}
        for number, one in PLACES.items()
        if one[0] == member.name
    }
    return info._View(seen, FIGURES, leaves, other.pop("objects", []), other.pop("moves", []), **other)


def views(**own: dict[str, t.Any]) -> dict[str, t.Any]:
    return {member.name: view(member, **own.get(member.name, {})) for member in MEMBERS}


def report(found: dict[str, t.Any], *errors: HeadroomError, before: t.Any = None, **other: t.Any) -> dict[str, t.Any]:
    return info.report(replace(OPTIONS, **other), found, errors, before or {})[0]


def test_shares_are_those_of_the_buckets() -> None:
    result = report(views())
    shards = {one["name"]: one for one in result["shards"]}
    assert shards["s1"]["size_bytes"] == 600
    assert shards["s1"]["load_share"] == pytest.approx(2 / 3, abs=1e-6)
    assert shards["s1"]["fair_share"] == pytest.approx(0.5)
    assert shards["s1"]["imbalance"] == pytest.approx(1 / 3, abs=1e-3)
    assert result["imbalance"] == shards["s1"]["imbalance"]
    assert result["epoch"] == 2
    assert result["complete"] is True
    assert result["changed"] is False
    assert result["groups"][0]["size_bytes"] == 900
    assert result["summary"]["text"] == "2 shards hold 3 buckets at epoch 2, the fullest is +33% off its fair share."


def test_a_shard_that_keeps_what_it_has_does_not_count_for_the_others() -> None:
    shards = (Shard("s1", state="read_only"), Shard("s2"))
    result = report(views(**{name: {"shards": shards} for name in ("s1", "s2", "r1")}))
    found = {one["name"]: (one["fair_share"], one["imbalance"]) for one in result["shards"]}
    assert found["s1"] == (None, None)
    assert found["s2"] == (pytest.approx(1 / 3, abs=1e-6), pytest.approx(0, abs=1e-4))


def test_load_is_what_is_asked_for() -> None:
    result = report(views(), load={"rows": 1.0})
    assert [one["load_share"] for one in result["buckets"]] == pytest.approx([0, 1 / 3, 2 / 3], abs=1e-6)


def test_hot_buckets_are_far_above_the_mean() -> None:
    assert [one["number"] for one in report(views(), hot_factor=1.5)["hot_buckets"]] == [1]
    assert report(views(), hot_factor=2.0)["hot_buckets"] == []


def test_rates_come_from_two_looks() -> None:
    before = {"s1": {"public.a_b0": {"reads": 4, "writes": 5}}, "s2": {}, "r1": {}}
    result = report(views(), before=before, sample_s=2.0)
    assert [one["reads_s"] for one in result["buckets"]] == [3.0, 5.0, 5.0]
    assert [one["writes_s"] for one in result["buckets"]] == [0.0, 2.5, 2.5]
    assert result["shards"][0]["reads_s"] == 8.0
    assert report(views())["shards"][0]["reads_s"] is None


def test_what_is_not_known_is_null() -> None:
    found = views()
    del found["s2"]
    error = HeadroomError("Failed to connect to s2.", code="timeout", member="s2")
    result = report(found, error)
    assert result["complete"] is False
    shard = next(one for one in result["shards"] if one["name"] == "s2")
    assert (shard["buckets"], shard["size_bytes"], shard["load_share"], shard["imbalance"]) == (1, None, None, None)
    assert result["buckets"][2]["size_bytes"] is None
    assert result["groups"][0]["size_bytes"] is None
    member = next(one for one in result["members"] if one["name"] == "s2")
    assert (member["reachable"], member["error"], member["epoch"]) == (False, "Failed to connect to s2.", None)
    assert any("unreadable" in line for line in result["table"])
    assert "1 of 3 members could not be read" in result["summary"]["text"]
    assert 'shards_member_up{cluster="shop",member="s2"} 0' in result["prometheus"]


def test_members_that_were_not_told_are_shown() -> None:
    result = report(views(r1={"places": {**PLACES, 1: ("s2", 1)}}))
    assert [one["outdated_buckets"] for one in result["members"]] == [0, 0, 1]


MOVE = {
    "id": "m1",
    "plan_id": "p",
    "group_name": "a",
    "bucket": 1,
    "source": "s1",
    "target": "s2",
    "state": "copying",
    "step": "copy",
    "detail": {"entry": 2},
    "bytes_total": 10,
    "bytes_done": 5,
    "rows": 1,
    "error": None,
    "age_s": 4,
    "retire_in_s": None,
}


def thing(kind: str, name: str) -> dict[str, t.Any]:
    return {"kind": kind, "name": name, "age_s": None}


def test_a_move_is_shown_once_as_the_newer_entry_has_it() -> None:
    older = {**MOVE, "state": "planned", "detail": {"entry": 1}}
    result = report(views(s1={"moves": [older]}, s2={"moves": [MOVE]}))
    assert [(one["id"], one["bucket"], one["state"], one["bytes_done"]) for one in result["moves"]] == [
        ("m1", "a/1", "copying", 5)
    ]
    assert 'moves{cluster="shop",state="copying"} 1' in result["prometheus"]
    assert result["summary"]["text"].endswith(", 1 move on the way.")
    switched = report(views(s1={"moves": [{**MOVE, "state": "switched"}]}))
    assert switched["summary"]["text"].endswith(", 1 move that can be taken back.")


def test_orphans_are_what_no_open_move_owns() -> None:
    objects = [
        thing("slot", "headroom_m1_copy"),
        thing("slot", "headroom_m10_copy"),
        thing("prepared_transaction", "headroom_old_1"),
    ]
    relation = Relation(
        "public.a",
        "partitioned",
        (Column("id", "bigint"),),
        leaves=(Leaf("public.a_b0_retired", 0, retired=True), Leaf("public.a_b1_retired", 1, retired=True)),
        strays=("public.a_b1", "public.a_b2"),
    )
    result = report(views(s1={"objects": objects, "moves": [MOVE], "relation": relation}))
    assert [(one["member"], one["kind"], one["name"]) for one in result["orphans"]] == [
        ("s1", "detached_leaf", "public.a_b2"),
        ("s1", "prepared_transaction", "headroom_old_1"),
        ("s1", "retired_leaf", "public.a_b0_retired"),
        ("s1", "slot", "headroom_m10_copy"),
    ]
    assert "orphan on s1: slot headroom_m10_copy" in result["table"]


def test_objects_and_parts_of_a_split_on_its_way_are_no_orphans() -> None:
    split = {**MOVE, "bucket": 1, "source": "s1", "target": "s1", "detail": {"parts": [{"number": 3}, {"number": 4}]}}
    objects = [thing("log", "headroom_m1_0"), thing("log", "headroom_m2_0")]
    relation = Relation(
        "public.a", "partitioned", (Column("id", "bigint"),), strays=("public.a_b3", "public.a_b4", "public.a_b5")
    )
    result = report(views(s1={"objects": objects, "moves": [{**split, "state": "switched"}], "relation": relation}))
    assert [(one["kind"], one["name"]) for one in result["orphans"]] == [
        ("detached_leaf", "public.a_b5"),
        ("log", "headroom_m2_0"),
    ]
    assert result["moves"][0]["parts"] == [3, 4]
    assert ", 1 move on the way" in result["summary"]["text"]


def test_no_map_is_said_and_no_failure() -> None:
    found = {"s1": info._View(Seen(MEMBERS[0], 170004, {}, "s1"), FIGURES, {}, [], [])}
    result = report(found)
    assert (result["map"], result["epoch"], result["shards"]) == (None, None, [])
    assert result["summary"]["text"] == "There is no map on the members that could be read."


def test_wal_that_is_kept_for_moves_is_shown() -> None:
    result = report(views())
    assert [one["retained_wal_bytes"] for one in result["members"]] == [7, 7, 7]
    assert 'member_retained_wal_bytes{cluster="shop",member="s1"} 7' in result["prometheus"]


def test_labels_of_prometheus_are_quoted() -> None:
    result = report(views(), cluster='sh"op')
    assert r'cluster="sh\"op"' in result["prometheus"]
    for line in result["prometheus"].splitlines():
        assert line.startswith(("# HELP headroom_", "# TYPE headroom_", "headroom_postgresql_shards_"))


@pytest.mark.parametrize(
    "change",
    [{"sample_s": -1.0}, {"hot_factor": 0.5}, {"load": {"cpu": 1}}, {"load": {"rows": 0}}, {"load": {"rows": "x"}}],
)
def test_options_are_checked(change: dict[str, t.Any]) -> None:
    assert info.parse_options(PARAMS).load == {"size_bytes": 1.0}
    with pytest.raises(OptionError):
        info.parse_options({**PARAMS, **change})


def page(found: dict[str, t.Any], **other: t.Any) -> str:
    return info.report(replace(OPTIONS, **other), found, (), {})[1]


def test_the_page_draws_each_bucket_as_wide_as_its_load() -> None:
    text = page(views(), with_buckets=False, hot_factor=1.5)
    widths = [float(one) for one in re.findall(r'<rect class="seg[^>]* width="([0-9.]+)"', text)]
    # buckets of 100, 500 and 300 bytes
    assert widths[1] == pytest.approx(5 * widths[0], abs=0.02)
    assert widths[2] == pytest.approx(3 * widths[0], abs=0.02)
    assert re.findall(r'class="seg g0( hot)?"', text) == ["", " hot", ""]
    assert "a/1: 55.56% of the load, 500 B, 1 rows, epoch 2" in text


def test_the_page_needs_nothing_and_lets_nothing_through() -> None:
    orphan = {"kind": "slot", "name": "headroom_<script>alert(1)</script>", "age_s": None}
    text = page(views(s1={"objects": [orphan]}))
    assert "<script" not in text
    assert "headroom_&lt;script&gt;" in text
    assert not re.search(r"(src|href)=|@import|url\(", text)


def test_a_shard_of_many_buckets_is_drawn_by_groups() -> None:
    buckets = tuple(Bucket(number, number or None, number + 1 if number < 999 else None) for number in range(1000))
    group = replace(GROUP, buckets=buckets)
    shard_map = ShardMap(1, SHARDS, (group,), {("a", number): Placement("s1", 1) for number in range(1000)})
    found = views()
    for name, one in found.items():
        digest = digest_of("shop", MEMBERS, SHARDS, shard_map.groups)
        stored = replace(one.seen.stored, map=shard_map, digest=digest)
        leaves = {f"public.a_b{number}": dict.fromkeys(info.FIGURES, 1) for number in range(1000) if name == "s1"}
        found[name] = replace(one, seen=replace(one.seen, stored=stored), leaves=leaves)
    text = page(found)
    assert text.count('class="seg') == 1
    assert "1000 buckets of a: 100.00% of the load" in text


def test_where_a_page_cannot_be_written_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    missing = tmp_path / "none" / "page.html"
    with pytest.raises(OptionError, match=r"report_file.*does not exist; create it first"):
        info.parse_options({**PARAMS, "report_file": str(missing)})
