# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Who may connect: the lines of ``pg_hba.conf`` that replication and monitoring need, and no more. Pure."""

from __future__ import annotations

import ipaddress
import typing as t


def cidr(host: str) -> str:
    """Return an address with its full prefix length; a host name or a network as it is."""
    try:
        return str(ipaddress.ip_network(host)) if "/" not in host else host
    except ValueError:
        return host


def replication_hba(
    hosts: t.Sequence[str],
    replication_user: str,
    monitoring_user: str,
    monitoring_addresses: t.Sequence[str],
    tls: bool,
) -> list[dict[str, str]]:
    """Return the entries that let members stream from, compare with and rewind to each other, and let health look.

    :param hosts: addresses or names of all members.
    :param monitoring_addresses: from where the monitoring login may come, addresses or networks.
    :param tls: admit encrypted connections only.
    """
    kind = "hostssl" if tls else "host"
    entries = [
        {"type": kind, "database": database, "user": replication_user, "address": cidr(host)}
        for database in ("replication", "postgres")
        for host in sorted(hosts)
    ]
    entries += [
        {"type": kind, "database": "postgres", "user": monitoring_user, "address": cidr(address)}
        for address in monitoring_addresses
    ]
    return [{**entry, "method": "scram-sha-256"} for entry in entries]
