# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A map that was written is read as it was, one that was edited by hand is refused, and a key finds its way through it."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import OptionError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.keys import hash_remainder, sort_key
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.options import (
    first_map,
    groups_from,
    shards_from,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.stored import route, stored_map
from hypothesis import given
from hypothesis import strategies as st

SHARDS = shards_from([{"name": "s1", "capacity_bytes": 10**12}, {"name": "s2", "weight": 2.5}])
GROUPS = groups_from(
    [
        {
            "name": "users",
            "strategy": "hash",
            "key_type": "bigint",
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
            "name": "agents",
            "strategy": "directory",
            "key_type": "text",
            "tenants": [["acme"], ["a", "b"]],
            "tables": [{"name": "public.agents", "key": "tenant"}],
        },
    ]
)
MAP = first_map(SHARDS, GROUPS)


def document() -> dict[str, t.Any]:
    return json.loads(json.dumps(MAP.as_dict()))


def test_a_map_is_read_as_it_was_written() -> None:
    assert stored_map(document()) == MAP


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_key_of_a_hash_is_where_its_remainder_is(key: int) -> None:
    remainder = hash_remainder(key, 64)

    assert route(MAP, "users", key) == {
        "group": "users",
        "bucket": remainder,
        "shard": MAP.placements["users", remainder].shard,
        "epoch": 1,
    }


@given(st.dates())
def test_a_key_of_a_range_is_within_its_bounds(key: t.Any) -> None:
    bucket = GROUPS[1].buckets[route(MAP, "bills", key)["bucket"]]

    assert bucket.lower is None or sort_key(bucket.lower) <= sort_key(key)
    assert bucket.upper is None or sort_key(key) < sort_key(bucket.upper)


def test_a_tenant_is_where_the_directory_says() -> None:
    assert route(MAP, "agents", "acme")["bucket"] == 0
    assert route(MAP, "agents", "b")["bucket"] == 1


@pytest.mark.parametrize(
    ("group", "key", "option", "said"),
    [
        ("nobody", 1, "group", "users, bills, agents"),
        ("users", "one", "key", "since the shard key is bigint"),
        ("agents", "stranger", "key", "no bucket of group agents"),
    ],
)
def test_a_key_that_leads_nowhere_is_refused(group: str, key: t.Any, option: str, said: str) -> None:
    with pytest.raises(OptionError, match=said) as seen:
        route(MAP, group, key)
    assert seen.value.facts["option"] == option


def edited(*path: t.Any, value: t.Any) -> dict[str, t.Any]:
    """Return the map with one value replaced."""
    made = document()
    at: t.Any = made
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return made


USERS, BILLS, AGENTS = (("groups", index, "buckets") for index in range(3))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "with epoch, shards and groups"),
        (edited("epoch", value=None), "'map.epoch'"),
        (edited("groups", value={}), "'map.groups'"),
        (edited("shards", 0, "name", value="s9"), "no shard has this name"),
        (edited("shards", 0, value=5), r"'shards\[0\]' has the value 5"),
        (edited("groups", 1, value=None), r"'groups\[1\]'"),
        (edited("groups", 0, "tables", value={"name": "x"}), "at least one table"),
        (edited("groups", 0, "tables", 1, value=[]), r"'groups\[0\].tables\[1\]'"),
        (edited(*AGENTS, 0, "tenants", value=["\ud800"]), "UTF-8"),
        (edited(*USERS, value=[]), "a list of buckets"),
        (edited(*USERS, 3, value=7), "number, shard and epoch"),
        (edited(*USERS, 3, "number", value=4), r"numbered from 0|comes twice"),
        (edited(*USERS, 3, "number", value=99), "numbered from 0"),
        (edited(*USERS, 3, "epoch", value=-1), "not negative"),
        (edited(*BILLS, 1, "lower", value="2025-02-01"), "begins where the one before ends"),
        (edited(*BILLS, 0, "lower", value="2024-01-01"), "first has no lower bound"),
        (edited(*BILLS, 2, "upper", value="2027-01-01"), "only the last range has none"),
        (edited(*BILLS, 1, "upper", value="2024-01-01"), "above the lower bound"),
        (edited(*AGENTS, 0, "tenants", value=[]), "at least one tenant"),
        (edited(*AGENTS, 0, "tenants", value=["b"]), "has a bucket already"),
    ],
)
def test_a_map_that_was_edited_is_refused(made: t.Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        stored_map(made)
