# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of an instance: what is written is what the server reads, and secrets lie in secret files alone."""

from __future__ import annotations

import dataclasses
import pathlib
import typing as t

import psycopg.conninfo
import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance import observe
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.files import (
    conninfo,
    files,
    hba_line,
    parse,
    quote,
    settings,
    upstream_conninfo,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.model import (
    FLOOR_SETTINGS,
    Login,
    Observed,
    Paths,
    Upstream,
    Wanted,
)
from hypothesis import given
from hypothesis import strategies as st

PATHS = Paths(17, "main", "/var/lib/postgresql/17/main")
CONF = f"{PATHS.config}/postgresql.conf"
LINES = st.text(st.characters(exclude_characters="\n\x00", exclude_categories=["Cs"]))
REPLICA = Wanted(
    PATHS,
    role="replica",
    cluster_name="pg2",
    upstream=Upstream("10.0.0.1", 5433, "verify-full"),
    replication=Login("repl", "hunter22!"),
    monitoring=Login("watch", "sesame 99", "monitoring"),
    slot_name="headroom_pg2",
    tls_certificate="CERT\n",
    tls_key="KEY\n",
    tls_ca="CA\n",
)
PRIMARY = dataclasses.replace(REPLICA, role="primary", upstream=None, slot_name=None)


@given(st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_.]{0,20}", fullmatch=True), LINES, max_size=5))
def test_what_is_quoted_is_read_back(values: dict[str, str]) -> None:
    text = "".join(f"{name} = {quote(value)}\n" for name, value in values.items())

    assert parse(text) == values


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (True, "on"),
        (False, "off"),
        (100, "100"),
        (0.9, "'0.9'"),
        ("64MB", "'64MB'"),
        ("it's", "'it''s'"),
        # within quotes the server takes a backslash for an escape: a bare one would be lost
        (r"a\tb", r"'a\\tb'"),
        ("", "''"),
    ],
)
def test_values_are_written_as_the_server_reads_them(value: t.Any, written: str) -> None:
    assert quote(value) == written


def test_a_file_written_by_hand_is_read_too() -> None:
    text = (
        "# port = 1\n\nport = 5432  # why\nPort=5433\nlog_line_prefix = '%m # it''s'  # why\nnonsense\nwork_mem = 4MB\n"
    )

    assert parse(text) == {"port": "5433", "log_line_prefix": "%m # it's", "work_mem": "4MB"}


@given(
    st.dictionaries(st.sampled_from(["host", "user", "application_name", "passfile"]), LINES.filter(bool), min_size=1)
)
def test_libpq_reads_a_connection_string_as_it_was_meant(pairs: dict[str, str]) -> None:
    assert psycopg.conninfo.conninfo_to_dict(conninfo(pairs)) == pairs


def test_a_replica_connects_with_its_password_file_and_its_name() -> None:
    pairs = upstream_conninfo(REPLICA)

    assert pairs == {
        "host": "10.0.0.1",
        "port": 5433,
        "user": "repl",
        "passfile": PATHS.passfile,
        "sslmode": "verify-full",
        "connect_timeout": 10,
        "sslrootcert": f"{PATHS.config}/tls/ca.crt",
        "application_name": "pg2",
    }
    assert parse(files(REPLICA, Observed())[CONF].content)["primary_conninfo"] == conninfo(pairs)
    assert parse(files(REPLICA, Observed())[CONF].content)["primary_slot_name"] == "headroom_pg2"


def test_a_primary_names_no_upstream() -> None:
    assert upstream_conninfo(PRIMARY) == {}
    assert {"primary_conninfo", "primary_slot_name"} & settings(PRIMARY, Observed()).keys() == set()


@pytest.mark.parametrize("wanted", [REPLICA, PRIMARY])
def test_secrets_are_in_secret_files_that_only_their_owner_reads(wanted: Wanted) -> None:
    written = files(wanted, Observed())

    secret = {path: file for path, file in written.items() if file.secret}
    assert secret.keys() == {PATHS.passfile, f"{PATHS.config}/tls/server.key"}
    assert {file.mode for file in secret.values()} == {0o600}
    for path in written.keys() - secret.keys():
        assert [word for word in ("hunter22!", "sesame 99", "KEY") if word in written[path].content] == []


@pytest.mark.parametrize(
    ("password", "line"),
    [
        ("plain words", "*:*:*:repl:plain words\n"),
        ("a:b", "*:*:*:repl:a\\:b\n"),
        ("a\\b", "*:*:*:repl:a\\\\b\n"),
        ("a\\:b", "*:*:*:repl:a\\\\\\:b\n"),
    ],
)
def test_the_password_file_escapes_what_separates_its_fields(password: str, line: str) -> None:
    written = files(dataclasses.replace(REPLICA, replication=Login("repl", password)), Observed())

    assert written[PATHS.passfile].content == line


def test_without_a_certificate_tls_is_off_and_nothing_of_it_is_written() -> None:
    written = files(Wanted(PATHS), Observed())

    assert parse(written[CONF].content)["ssl"] == "off"
    assert [path for path in written if "/tls/" in path or path == PATHS.passfile] == []


def test_with_a_certificate_tls_is_on_and_clients_are_checked_only_with_an_authority() -> None:
    with_ca, without = settings(PRIMARY, Observed()), settings(dataclasses.replace(PRIMARY, tls_ca=None), Observed())

    assert with_ca["ssl"] is True
    assert with_ca["ssl_ca_file"] == f"{PATHS.config}/tls/ca.crt"
    assert "ssl_ca_file" not in without


@pytest.mark.parametrize("name", sorted(FLOOR_SETTINGS))
def test_a_replica_is_never_below_what_its_primary_last_had(name: str) -> None:
    observed = Observed(control={FLOOR_SETTINGS[name]: "200"})

    def running(role: str, value: t.Any) -> t.Any:
        return settings(dataclasses.replace(REPLICA, role=role, settings={name: value}), observed)[name]

    assert running("replica", 100) == 200
    assert running("replica", "100") == 200
    assert running("replica", 300) == 300
    assert running("primary", 100) == 100


def test_a_floor_does_not_declare_what_nobody_declared() -> None:
    observed = Observed(control={"max_connections setting": "200"})

    assert "max_connections" not in settings(REPLICA, observed)


def test_declared_settings_come_beside_the_derived_ones() -> None:
    values = parse(
        files(dataclasses.replace(PRIMARY, settings={"work_mem": "8MB", "fsync": True}), Observed())[CONF].content
    )

    assert (values["work_mem"], values["fsync"]) == ("8MB", "on")
    assert (values["data_directory"], values["port"], values["cluster_name"]) == (PATHS.data, "5432", "pg2")


def test_the_order_of_settings_does_not_change_the_file() -> None:
    one = dataclasses.replace(PRIMARY, settings={"work_mem": "8MB", "fsync": True})
    other = dataclasses.replace(PRIMARY, settings={"fsync": True, "work_mem": "8MB"})

    assert files(one, Observed()) == files(other, Observed())


@pytest.mark.parametrize(
    ("entry", "fields"),
    [
        (
            {"type": "local", "database": "all", "user": "postgres", "method": "peer"},
            ["local", "all", "postgres", "peer"],
        ),
        # a local line has no address: one that is given would be read as the method
        (
            {"type": "local", "database": "a", "user": "u", "address": "x", "method": "peer"},
            ["local", "a", "u", "peer"],
        ),
        (
            {
                "type": "hostssl",
                "database": "all",
                "user": "u",
                "address": "10.0.0.0/8",
                "method": "cert",
                "options": "map=m",
            },
            ["hostssl", "all", "u", "10.0.0.0/8", "cert", "map=m"],
        ),
        (
            {"type": "host", "database": "d" * 40, "user": "u", "address": "::1/128", "method": "reject"},
            ["host", "d" * 40, "u", "::1/128", "reject"],
        ),
    ],
)
def test_a_line_of_pg_hba_has_its_fields_apart(entry: dict[str, t.Any], fields: list[str]) -> None:
    assert hba_line(entry).split() == fields
    assert hba_line(entry) == hba_line(entry).rstrip()


def test_the_administrator_is_let_in_first_and_the_declared_lines_keep_their_order() -> None:
    entries = [
        {"type": "host", "database": "all", "user": user, "address": "10.0.0.1/32", "method": "reject"}
        for user in ("zoe", "adam")
    ]

    content = files(dataclasses.replace(PRIMARY, hba=entries), Observed())[f"{PATHS.config}/pg_hba.conf"].content

    lines = [line.split() for line in content.splitlines() if not line.startswith("#")]
    assert [line[2] for line in lines] == ["postgres", "zoe", "adam"]


def test_a_certificate_with_other_line_ends_reads_back_as_it_was_written(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "server.crt"
    path.write_bytes(b"one\r\ntwo\r\n")

    # read otherwise, the file would differ in every run
    assert observe._read(str(path)) == "one\r\ntwo\r\n"
