# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Readers hammer two caches with slow fetches while entities change and are flushed: what is read after a flush is never old.

The same with the order that comes to mind first, and with one pass, leaves old versions: without that the test would prove nothing.
"""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.headroom.scale.plugins.modules import cache_flush
from caches.world import Cache, World

ENTITIES = 20
# the slow fetches of both caches, one after another, stay below it most of the time
SLOW_S, LIMIT_S = 0.1, 0.25
PATHS = [f"/item/{number}" for number in range(ENTITIES)]


def flush(layers: t.Sequence[Cache], in_flight_s: float, capsys: pytest.CaptureFixture[str]) -> dict[str, t.Any]:
    """Flush all entities by the module."""
    params = {
        "rules": {"item": {"paths": ["/item/{id}"]}},
        "entities": [{"item": list(range(ENTITIES))}],
        "http_caches": [{"name": f"layer {number}", "urls": [cache.url]} for number, cache in enumerate(layers)],
        "in_flight_s": in_flight_s,
    }
    with patch_module_args(params), pytest.raises(SystemExit) as ended:
        cache_flush.main()
    result = json.loads(capsys.readouterr().out)
    assert ended.value.code in (0, None), result
    return result


def stale_reads(
    outer_first: bool, in_flight_s: float, flushes: int, capsys: pytest.CaptureFixture[str]
) -> t.Iterator[int]:
    """Change and flush all entities so many times; after each flush, tell how many of them were read old."""
    with World() as world:
        inner = world.cache(slow_s=SLOW_S, limit_s=LIMIT_S)
        outer = world.cache(inner, slow_s=SLOW_S, limit_s=LIMIT_S)
        layers = [outer, inner] if outer_first else [inner, outer]
        world.hammer(outer, PATHS, readers=12)
        for version in range(1, flushes + 1):
            world.source.versions = dict.fromkeys(PATHS, version)
            result = flush(layers, in_flight_s, capsys)
            assert [row["state"] for row in result["layers"]] == ["flushed", "flushed"]
            yield sum(found != version for found in world.read(outer, PATHS))
        assert world.reads > 20 * flushes


def test_nothing_old_is_read_after_a_flush(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(stale_reads(outer_first=False, in_flight_s=LIMIT_S, flushes=10, capsys=capsys)) == 0


@pytest.mark.parametrize("outer_first", [True, False])
def test_one_pass_leaves_something_old_in_either_order(outer_first: bool, capsys: pytest.CaptureFixture[str]) -> None:
    # until the first: on a busy machine many fetches are above the limit, and store nothing at all
    assert any(stale_reads(outer_first, in_flight_s=0.0, flushes=100, capsys=capsys))
