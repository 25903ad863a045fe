# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings from a host's size: never below what PostgreSQL needs, and never less on a bigger host."""

from __future__ import annotations

import typing as t

from ansible_collections.headroom.scale.plugins.module_utils._postgresql.sizing import sizing
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30
HOSTS = st.fixed_dictionaries({"memory_bytes": st.integers(64 << 20, 4096 * GIB), "cpus": st.integers(1, 512)})


def number(value: t.Any) -> int:
    return int(str(value).removesuffix("MB"))


def test_a_host_of_8_gib() -> None:
    assert sizing({"memory_bytes": 8 * GIB, "cpus": 4}, 3, 100) == {
        "max_connections": 100,
        "shared_buffers": "2048MB",
        "effective_cache_size": "6144MB",
        "maintenance_work_mem": "409MB",
        "work_mem": "20MB",
        "max_worker_processes": 14,
        "max_parallel_workers": 4,
        "max_wal_senders": 20,
        "max_replication_slots": 20,
        "max_logical_replication_workers": 5,
    }


def test_a_tiny_host_gets_what_postgresql_starts_with() -> None:
    small = sizing({"memory_bytes": 64 << 20, "cpus": 1}, 1, 1000)

    assert (small["shared_buffers"], small["work_mem"], small["maintenance_work_mem"]) == ("128MB", "4MB", "64MB")
    assert small["max_worker_processes"] >= 8


def test_no_connections_do_not_divide_by_zero() -> None:
    assert sizing({"memory_bytes": GIB, "cpus": 1}, 1, 0)["work_mem"] == "256MB"


@given(HOSTS, st.integers(0, 1 << 40), st.integers(0, 64), st.integers(1, 50), st.integers(1, 5000))
def test_a_bigger_host_never_gets_less(
    host: dict[str, int], memory: int, cpus: int, members: int, connections: int
) -> None:
    small = sizing(host, members, connections)
    big = sizing({"memory_bytes": host["memory_bytes"] + memory, "cpus": host["cpus"] + cpus}, members, connections)

    assert all(number(big[name]) >= number(small[name]) for name in small)


@given(HOSTS, st.integers(1, 60))
def test_one_more_replica_never_lowers_a_setting_and_each_member_has_two_senders(
    host: dict[str, int], members: int
) -> None:
    now, then = sizing(host, members, 100), sizing(host, members + 1, 100)

    assert all(number(then[name]) >= number(now[name]) for name in now)
    # a replica streams on one and takes a base backup on the other; five are left for people and tools
    assert now["max_wal_senders"] >= 2 * members + 5


def test_replicas_are_added_without_a_restart_until_the_tens_are_full() -> None:
    host = {"memory_bytes": 8 * GIB, "cpus": 4}

    assert [sizing(host, members, 100)["max_wal_senders"] for members in (1, 2, 3, 7, 8)] == [10, 10, 20, 20, 30]
