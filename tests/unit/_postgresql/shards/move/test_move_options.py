# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of postgresql_shard_rebalance."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import OptionError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.connection import connection_spec
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.options import (
    parse_options,
    rebalance_spec,
)

SPEC = rebalance_spec().merge(connection_spec()).options
SPLIT = {"group": "users", "bucket": 7, "shard": "a", "epoch": 1, "parts": []}
TARGET = {"name": "b", "host": "h2"}
MOVE = {"group": "users", "bucket": 7, "source": "a", "target": "b", "bytes": 5, "epoch": 1}


def params(**given: t.Any) -> dict[str, t.Any]:
    def filled(options: dict[str, t.Any], entry: dict[str, t.Any]) -> dict[str, t.Any]:
        return {**{name: option.get("default") for name, option in options.items()}, **entry}

    shards = given.pop("shards", [{"name": "a", "host": "h1"}, {"name": "b", "host": "h2"}])
    return filled(SPEC, {**given, "shards": [filled(SPEC["shards"]["options"], one) for one in shards]})


def test_defaults_can_be_used() -> None:
    options = parse_options(params())
    assert options.load == {"size_bytes": 1.0}
    assert options.pace.max_block_s == 0.5
    assert options.limits.rate_bytes_s == 50e6
    assert [shard.name for shard in options.shards] == ["a", "b"]


def test_estimate_goes_by_the_rate_that_is_allowed() -> None:
    # half of the limit, since rows are read twice, and no more than without one
    assert parse_options(params(max_rate_bytes_s=1000)).limits.rate_bytes_s == 500
    assert parse_options(params(max_rate_bytes_s=10**12)).limits.rate_bytes_s == 50e6


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"max_moves": 0}, "max_moves"),
        ({"streams": 17}, "streams"),
        ({"max_block_ms": 1}, "max_block_ms"),
        ({"load": {"cpu": 1}}, "load"),
        ({"load": {"reads": -1}}, "load.reads"),
        ({"load": {"reads": True}}, "load.reads"),
        ({"load": {"reads": 0}}, "load"),
        ({"plan": {"moves": []}}, "plan"),
        ({"plan": {"id": "x", "moves": [{**MOVE, "epoch": "1"}]}}, r"plan.moves\[0\]"),
        ({"plan": {"id": "x", "moves": [MOVE, MOVE]}}, r"plan.moves\[1\].bucket.*'users/7': plan.moves\[0\] moves it"),
        ({"plan": {"id": "x", "moves": [{**MOVE, "target": "c"}]}}, r"plan.moves\[0\].target.*one of a, b"),
        ({"plan": {"id": "x", "moves": [{**MOVE, "source": "c"}]}}, r"plan.moves\[0\].source"),
        ({"plan": {"id": "x", "moves": [{**MOVE, "target": "a"}]}}, r"plan.moves\[0\].target.*there already"),
        (
            {
                "plan": {"id": "x", "moves": [MOVE]},
                "shards": [{"name": "a", "host": "h1"}, {**TARGET, "state": "draining"}],
            },
            r"plan.moves\[0\].target.*it is draining",
        ),
        ({"plan": {"id": "x", "moves": [MOVE]}, "state": "planned"}, "state"),
        ({"plan": {"id": "x", "moves": [], "splits": 5}}, "plan.splits"),
        ({"plan": {"id": "x", "moves": [], "splits": [{**SPLIT, "parts": 3}]}}, r"plan.splits\[0\]"),
        ({"plan": {"id": "x", "moves": [], "splits": [{**SPLIT, "shard": None}]}}, r"plan.splits\[0\]"),
        ({"shards": [{"name": "a", "host": "h1"}, {"name": "a", "host": "h2"}]}, "name"),
        ({"shards": [{"name": "a", "host": "h1", "weight": 0.0}]}, "shards"),
        ({"shards": [{"name": "a", "host": "h1", "capacity_bytes": 0}]}, "capacity_bytes"),
        ({"progress_file": "/nowhere/at/all"}, "progress_file"),
    ],
)
def test_bad_options_are_named(given: dict[str, t.Any], option: str) -> None:
    with pytest.raises(OptionError, match=option):
        parse_options(params(**given))


def test_a_plan_that_was_returned_is_taken() -> None:
    options = parse_options(params(plan={"id": "x", "moves": [MOVE], "bytes": 5, "left_out": []}))
    assert options.plan is not None
    assert options.plan["moves"] == [MOVE]
