# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Settings that follow from a host's size and from the number of members. Pure."""

from __future__ import annotations

import typing as t

MIB = 1 << 20


def sizing(host: t.Mapping[str, t.Any], members: int, max_connections: int) -> dict[str, t.Any]:
    """Return settings of ``postgresql.conf`` for a host.

    A quarter of the memory for shared buffers and three quarters as the planner's idea of the cache are the starting points
    that PostgreSQL's documentation gives (chapter Resource Consumption). Senders and slots go up in steps of ten, so that
    adding a replica does not make the primary restart.

    :param host: ``memory_bytes`` and ``cpus`` as postgresql_instance_info returns them.
    :param members: number of members of the cluster.
    :param max_connections: connections that the memory per query is divided by.
    """
    memory, cpus = int(host["memory_bytes"]) // MIB, int(host["cpus"])
    senders = 10 * -(-(2 * members + 5) // 10)
    return {
        "max_connections": max_connections,
        "shared_buffers": f"{max(128, memory // 4)}MB",
        "effective_cache_size": f"{max(256, memory * 3 // 4)}MB",
        "maintenance_work_mem": f"{min(2048, max(64, memory // 20))}MB",
        "work_mem": f"{max(4, memory // 4 // max(1, max_connections))}MB",
        "max_worker_processes": max(8, cpus + senders // 2),
        "max_parallel_workers": max(2, cpus),
        "max_wal_senders": senders,
        "max_replication_slots": senders,
        "max_logical_replication_workers": max(4, senders // 4),
    }
