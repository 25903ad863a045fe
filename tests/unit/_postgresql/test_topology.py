# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tree of one cluster: what may not be changed says so, and a live primary elsewhere loses nobody."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.topology import topology
from hypothesis import given
from hypothesis import strategies as st


def instance(
    role: str | None = "replica", running: bool = True, timeline: int | None = 1, fence: t.Any = None
) -> dict[str, t.Any]:
    """Return what the info module says of one instance; without a role there is none."""
    return {
        "exists": role is not None,
        "role": role,
        "running": running and role is not None,
        "timeline": timeline,
        "fence": fence,
    }


def member(name: str, upstream: str | None = "", seen: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
    return {"name": name, "upstream": upstream, "seen": seen}


EMPTY = instance(None, timeline=None)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([member("pg1", "pg2"), member("pg2", "pg1")], ["Exactly one", "none"]),
        ([member("pg1"), member("pg2", None)], ["Exactly one", "pg1, pg2"]),
        ([member("pg1"), member("pg2", "pg9")], ["pg2", "'pg9'", "no member"]),
        ([member("pg1"), member("pg2", "pg3"), member("pg3", "pg2")], ["circle", "pg2 from pg3 from pg2"]),
        ([member("pg1"), member("pg2", "pg2")], ["circle", "pg2 from pg2"]),
    ],
    ids=["no primary", "two primaries", "unknown upstream", "circle", "its own upstream"],
)
def test_a_declaration_that_is_no_tree_is_refused(members: list[dict[str, t.Any]], said: list[str]) -> None:
    result = topology([{**entry, "seen": EMPTY} for entry in members])

    assert len(result["errors"]) == 1
    for words in said:
        assert words in result["errors"][0]
    assert result["primary"] is None
    assert result["levels"] == []


def test_every_unknown_upstream_is_named_at_once() -> None:
    errors = topology([member("pg1"), member("pg2", "x"), member("pg3", "y")])["errors"]

    assert ["pg2" in errors[0], "pg3" in errors[1]] == [True, True]


def test_on_empty_machines_the_declaration_holds() -> None:
    result = topology([member("pg1", "", EMPTY), member("pg3", "pg2", EMPTY), member("pg2", "pg1", EMPTY)])

    assert result == {
        "primary": "pg1",
        "declared_primary": "pg1",
        "upstreams": {"pg1": "", "pg2": "pg1", "pg3": "pg2"},
        "children": {"pg1": ["pg2"], "pg2": ["pg3"], "pg3": []},
        "levels": [["pg1"], ["pg2"], ["pg3"]],
        "fenced": [],
        "errors": [],
    }


def test_after_a_switchover_the_tree_hangs_from_the_live_primary() -> None:
    result = topology(
        [
            member("pg1", "", instance()),
            member("pg2", "pg1", instance("primary", timeline=2)),
            member("pg3", "pg1", instance()),
            member("pg4", "pg2", instance()),
        ]
    )

    assert result["primary"] == "pg2"
    assert result["declared_primary"] == "pg1"
    assert result["upstreams"] == {"pg1": "pg2", "pg2": "", "pg3": "pg2", "pg4": "pg2"}


def test_a_live_primary_is_enough_when_others_were_not_reached() -> None:
    result = topology([member("pg1", "", None), member("pg2", "pg1", instance("primary"))])

    assert result["errors"] == []
    assert result["primary"] == "pg2"


def test_two_live_primaries_are_both_named_and_nothing_is_planned() -> None:
    result = topology([member("pg1", "", instance("primary")), member("pg2", "pg1", instance("primary", timeline=2))])

    assert "pg1 and pg2" in result["errors"][0]
    assert "rebuild" in result["errors"][0]
    assert result["primary"] is None
    assert result["levels"] == []


def test_a_stopped_primary_beside_a_live_one_is_no_second_primary() -> None:
    result = topology(
        [member("pg1", "", instance("primary", running=False)), member("pg2", "pg1", instance("primary", timeline=2))]
    )

    assert result["errors"] == []
    assert result["primary"] == "pg2"
    assert result["upstreams"]["pg1"] == "pg2"


def test_an_interrupted_switchover_is_named_with_the_ways_out() -> None:
    fenced = instance("replica", running=False, fence={"candidate": "pg2"})

    result = topology([member("pg1", "", fenced), member("pg2", "pg1", instance())])

    assert result["fenced"] == ["pg1"]
    assert result["primary"] is None
    for words in ("from pg1 to pg2", "switchover_to=pg2", "switchover_rollback=true"):
        assert words in result["errors"][0]


def test_a_fence_does_not_hide_the_candidate_that_took_over() -> None:
    fenced = instance("replica", running=False, fence={"candidate": "pg2"})

    result = topology([member("pg1", "", fenced), member("pg2", "pg1", instance("primary", timeline=2))])

    assert (result["primary"], result["fenced"], result["errors"]) == ("pg2", ["pg1"], [])


@pytest.mark.parametrize(
    "reached", [EMPTY, instance(), instance("primary", running=False)], ids=["empty", "replica", "stopped primary"]
)
def test_an_unreached_member_may_be_the_primary(reached: dict[str, t.Any]) -> None:
    result = topology([member("pg1", "", None), member("pg2", "pg1", reached)])

    assert result["primary"] is None
    assert "not reached" in result["errors"][0]
    assert "pg1" in result["errors"][0]


def test_the_only_stopped_primary_is_the_primary() -> None:
    result = topology([member("pg1", "", EMPTY), member("pg2", "pg1", instance("primary", running=False))])

    assert (result["primary"], result["errors"]) == ("pg2", [])


def test_a_stopped_primary_on_an_older_timeline_must_not_come_back() -> None:
    result = topology(
        [member("pg1", "", instance("primary", running=False)), member("pg2", "pg1", instance(timeline=2))]
    )

    assert result["primary"] is None
    assert "pg1" in result["errors"][0]
    assert "older timeline than pg2" in result["errors"][0]


def test_several_stopped_primaries_are_all_named() -> None:
    stopped = instance("primary", running=False)

    result = topology([member("pg1", "", stopped), member("pg2", "pg1", stopped), member("pg3", "pg1", instance())])

    assert result["primary"] is None
    assert "pg1, pg2" in result["errors"][0]


def test_replicas_without_a_primary_are_not_taken_for_an_empty_cluster() -> None:
    result = topology([member("pg1", "", EMPTY), member("pg2", "pg1", instance())])

    assert result["primary"] is None
    assert "No member is a primary" in result["errors"][0]


@st.composite
def trees(draw: st.DrawFn) -> tuple[dict[str, str], str]:
    """Draw a declared tree of up to 12 members, in any order, and which of them is the live primary."""
    size = draw(st.integers(1, 12))
    upstreams = {"m0": "", **{f"m{number}": f"m{draw(st.integers(0, number - 1))}" for number in range(1, size)}}
    order = draw(st.permutations(sorted(upstreams)))
    return {name: upstreams[name] for name in order}, draw(st.sampled_from(order))


@given(trees())
def test_whoever_is_primary_every_member_streams_from_it_in_the_end(tree: tuple[dict[str, str], str]) -> None:
    declared, live = tree

    result = topology(
        [member(name, up, instance("primary" if name == live else "replica")) for name, up in declared.items()]
    )

    upstreams = result["upstreams"]
    assert result["errors"] == []
    assert upstreams.keys() == declared.keys()
    assert [name for name, upstream in upstreams.items() if not upstream] == [live]
    for name in upstreams:
        at, hops = name, 0
        while upstreams[at]:
            at, hops = upstreams[at], hops + 1
            assert hops <= len(upstreams)
        assert at == live
    level_of = {name: depth for depth, names in enumerate(result["levels"]) for name in names}
    assert sorted(name for names in result["levels"] for name in names) == sorted(declared)
    assert all(level_of[name] == level_of[upstream] + 1 for name, upstream in upstreams.items() if upstream)
    assert {(child, name) for name, children in result["children"].items() for child in children} == {
        (name, upstream) for name, upstream in upstreams.items() if upstream
    }
    # whoever neither was nor became the primary, nor hung from the former one, stays where it was declared
    assert all(upstreams[name] == up for name, up in declared.items() if up != "m0" and name not in (live, "m0"))
