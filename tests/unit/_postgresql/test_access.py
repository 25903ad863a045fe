# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may connect: the members for replication, the monitoring login from where it comes, and nobody else."""

from __future__ import annotations

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.access import cidr, replication_hba


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.77.0.1", "10.77.0.1/32"),
        ("fd00::1", "fd00::1/128"),
        ("10.77.0.0/24", "10.77.0.0/24"),
        ("pg1.example.org", "pg1.example.org"),
        ("fd00::/64", "fd00::/64"),
    ],
)
def test_an_address_gets_its_full_prefix_and_anything_else_stays(host: str, address: str) -> None:
    assert cidr(host) == address


def test_each_member_may_stream_and_be_rewound_to_and_monitoring_reads_one_database() -> None:
    entries = replication_hba(["10.0.0.2", "10.0.0.1"], "repl", "watch", ["10.9.0.0/16"], True)

    assert [(entry["database"], entry["user"], entry["address"]) for entry in entries] == [
        ("replication", "repl", "10.0.0.1/32"),
        ("replication", "repl", "10.0.0.2/32"),
        ("postgres", "repl", "10.0.0.1/32"),
        ("postgres", "repl", "10.0.0.2/32"),
        ("postgres", "watch", "10.9.0.0/16"),
    ]
    assert {entry["method"] for entry in entries} == {"scram-sha-256"}


@pytest.mark.parametrize(("tls", "kind"), [(True, "hostssl"), (False, "host")])
def test_with_tls_only_encrypted_connections_are_let_in(tls: bool, kind: str) -> None:
    entries = replication_hba(["10.0.0.1"], "repl", "watch", ["10.0.0.1"], tls)

    assert {entry["type"] for entry in entries} == {kind}


def test_the_order_of_the_members_does_not_change_the_file() -> None:
    hosts = ["10.0.0.3", "10.0.0.1", "pg2"]

    assert replication_hba(hosts, "r", "m", [], True) == replication_hba(hosts[::-1], "r", "m", [], True)


def test_without_addresses_monitoring_is_let_in_from_nowhere() -> None:
    assert {entry["user"] for entry in replication_hba(["10.0.0.1"], "repl", "watch", [], True)} == {"repl"}
