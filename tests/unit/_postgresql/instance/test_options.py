# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options: every value that cannot be is named with its option and what to give instead, and no secret is told."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import OptionError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance import options
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.model import Login, Paths, Upstream
from hypothesis import given
from hypothesis import strategies as st

LINE = {"type": "host", "database": "all", "user": "u", "address": "10.0.0.1/32", "method": "reject", "options": None}
UPSTREAM = {"host": "10.0.0.1", "port": 5432, "ssl_mode": "prefer"}


def params(**given: t.Any) -> dict[str, t.Any]:
    """Return what Ansible hands over: every option, with its default."""
    spec = options.identity_spec().merge(options.instance_spec()).options
    return {**{name: option.get("default") for name, option in spec.items()}, "version": 17, "role": "primary", **given}


def line(**changes: t.Any) -> dict[str, t.Any]:
    return {"hba": [LINE, {**LINE, **changes}]}


BAD: list[tuple[dict[str, t.Any], str, t.Any, str]] = [
    ({"version": 12}, "version", 12, "from 13 to 18"),
    ({"version": 19}, "version", 19, "from 13 to 18"),
    ({"name": ""}, "name", "", "letters"),
    ({"name": "../etc"}, "name", "../etc", "letters"),
    ({"name": "main-2"}, "name", "main-2", "letters"),
    ({"data_directory": "relative/path"}, "data_directory", "relative/path", "absolute path"),
    ({"data_directory": "/data"}, "data_directory", "/data", "directory of its own"),
    ({"data_directory": "/"}, "data_directory", "/", "absolute path"),
    ({"data_directory": "/srv/it's"}, "data_directory", "/srv/it's", "absolute path"),
    ({"data_directory": "/srv/a\nb"}, "data_directory", "/srv/a\nb", "absolute path"),
    ({"port": 0}, "port", 0, "1 to 65535"),
    ({"port": 65536}, "port", 65536, "1 to 65535"),
    ({"progress_interval_s": 0.0}, "progress_interval_s", 0.0, "600 seconds"),
    ({"progress_interval_s": float("inf")}, "progress_interval_s", float("inf"), "600 seconds"),
    ({"max_rate_kib_s": 31}, "max_rate_kib_s", 31, "32 to 1048576"),
    ({"max_rate_kib_s": 1048577}, "max_rate_kib_s", 1048577, "leave it out"),
    ({"slot_prefix": "ab"}, "slot_prefix", "ab", "3 to 30"),
    ({"slot_prefix": "Headroom_"}, "slot_prefix", "Headroom_", "a-z"),
    ({"slots": ["headroom_a", "headroom-b"]}, "slots", "headroom-b", "a-z"),
    ({"slots": ["headroom_" + "x" * 60]}, "slots", "headroom_" + "x" * 60, "63"),
    ({"slots": ["pg2"]}, "slots", "pg2", "slot_prefix 'headroom_'"),
    ({"locale": "C; rm"}, "locale", "C; rm", "letters"),
    ({"cluster_name": "it's"}, "cluster_name", "it's", "letters"),
    ({"cluster_name": "x" * 64}, "cluster_name", "x" * 64, "letters"),
    ({"slot_name": ""}, "slot_name", "", "letters"),
    ({"candidate": "pg 2"}, "candidate", "pg 2", "letters"),
    ({"wal_end_lsn": "5000000"}, "wal_end_lsn", "5000000", "X/X"),
    ({"wal_end_lsn": "0/G"}, "wal_end_lsn", "0/G", "X/X"),
    ({"wal_end_lsn": "0/0"}, "wal_end_lsn", "0/0", "beyond 0/0"),
    ({"upstream": {**UPSTREAM, "host": "a b"}}, "upstream.host", "a b", "one host name"),
    ({"upstream": {**UPSTREAM, "host": "a,b"}}, "upstream.host", "a,b", "one host name"),
    ({"upstream": {**UPSTREAM, "port": 0}}, "upstream.port", 0, "1 to 65535"),
    ({"settings": {"work mem": 1}}, "settings", "work mem", "setting's name"),
    ({"settings": {"a = 1\nb": 1}}, "settings", "a = 1\nb", "setting's name"),
    ({"settings": {"port": 5433}}, "settings", "port", "leave it out"),
    ({"settings": {"primary_conninfo": "host=x"}}, "settings", "primary_conninfo", "leave it out"),
    ({"settings": {"work_mem": "1\nfsync = off"}}, "settings.work_mem", "1\nfsync = off", "one number"),
    ({"settings": {"work_mem": ["4MB"]}}, "settings.work_mem", ["4MB"], "one number"),
    ({"settings": {"work_mem": None}}, "settings.work_mem", None, "one number"),
    (line(user="a b"), "hba[1].user", "a b", "one word"),
    (line(user=""), "hba[1].user", "", "one word"),
    (line(database="all # x"), "hba[1].database", "all # x", "one word"),
    (line(address="10.0.0.1/32\nhost"), "hba[1].address", "10.0.0.1/32\nhost", "one word"),
    (line(address=None), "hba[1].address", None, "host types"),
    (line(type="local", method="peer"), "hba[1].address", "10.0.0.1/32", "host types"),
    (line(method="peer"), "hba[1].method", "peer", "'local' alone"),
    (line(method="cert"), "hba[1].method", "cert", "'hostssl'"),
    (line(options="map=m\nhost"), "hba[1].options", "map=m\nhost", "'#'"),
    ({"replication_login": {"name": "Repl", "password": "hunter22!"}}, "replication_login.name", "Repl", "a-z"),
    ({"monitoring_login": {"name": "a" * 64, "password": "hunter22!"}}, "monitoring_login.name", "a" * 64, "a-z"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "option", "value", "remedy"), BAD)
def test_a_value_that_cannot_be_is_named_with_its_option_and_the_remedy(
    given: dict[str, t.Any], option: str, value: t.Any, remedy: str
) -> None:
    with pytest.raises(OptionError) as caught:
        options.wanted(params(**given))

    said = str(caught.value)
    assert said.startswith(f"Option {option!r} has the value {value!r}: ")
    assert remedy in said
    assert said.endswith(".")
    assert caught.value.facts == {"option": option, "value": value}


@pytest.mark.parametrize("option", ["replication_login", "monitoring_login"])
@pytest.mark.parametrize("password", ["short77", "", "pass\nword\nlines", "pässword-long", "tab\tinside it"])
def test_a_password_that_cannot_be_is_refused_without_being_told(option: str, password: str) -> None:
    with pytest.raises(OptionError) as caught:
        options.wanted(params(**{option: {"name": "repl", "password": password}}))

    assert f"'{option}.password'" in str(caught.value)
    assert "at least 8 printable ASCII" in str(caught.value)
    told = repr(caught.value.as_dict()) + repr(caught.value)
    assert not password or (password not in told and repr(password)[1:-1] not in told)


@pytest.mark.parametrize(("given", "option", "value", "remedy"), BAD)
def test_a_good_password_beside_a_bad_option_is_not_told(
    given: dict[str, t.Any], option: str, value: t.Any, remedy: str
) -> None:
    secrets = {"replication_login": {"name": "repl", "password": "sesame 99"}, "tls_key": "private words"}

    with pytest.raises(OptionError) as caught:
        options.wanted(params(**{**secrets, **given}))

    assert "sesame 99" not in repr(caught.value.as_dict())
    assert "private words" not in repr(caught.value.as_dict())


def test_the_defaults_describe_a_plain_instance() -> None:
    wanted = options.wanted(params())

    assert wanted.paths == Paths(17, "main", "/var/lib/postgresql/17/main")
    assert (wanted.state, wanted.role, wanted.port, wanted.rebuild, wanted.restart) == (
        "present",
        "primary",
        5432,
        "never",
        True,
    )
    assert (wanted.slot_prefix, wanted.slots, wanted.hba, wanted.settings) == ("headroom_", (), [], {})
    assert wanted.upstream is wanted.replication is wanted.monitoring is None


def test_everything_given_arrives() -> None:
    wanted = options.wanted(
        params(
            role="replica",
            data_directory="/srv/pg/main/",
            upstream=UPSTREAM,
            replication_login={"name": "repl", "password": "hunter22!"},
            monitoring_login={"name": "watch", "password": "sesame 99"},
            slots=["headroom_a"],
            settings={
                "work_mem": "4MB",
                "fsync": True,
                "seq_page_cost": 1.5,
                "auto_explain.log_nested_statements": False,
            },
            hba=[LINE],
            max_rate_kib_s=32,
            wal_end_lsn="0/5000000",
            candidate="pg2",
            rebuild="rewind",
            restart=False,
        )
    )

    assert wanted.paths.data == "/srv/pg/main"
    assert wanted.upstream == Upstream("10.0.0.1", 5432, "prefer")
    assert wanted.replication == Login("repl", "hunter22!", "replication")
    assert wanted.monitoring == Login("watch", "sesame 99", "monitoring")
    assert (wanted.slots, wanted.hba, wanted.max_rate_kib_s) == (("headroom_a",), [LINE], 32)
    assert (wanted.wal_end_lsn, wanted.candidate, wanted.rebuild, wanted.restart) == (
        "0/5000000",
        "pg2",
        "rewind",
        False,
    )
    assert wanted.settings["seq_page_cost"] == 1.5


@pytest.mark.parametrize("host", ["pg1.example.org", "10.0.0.1", "fd00::1", "fe80::1%eth0"])
def test_names_and_addresses_of_both_families_are_hosts(host: str) -> None:
    wanted = options.wanted(params(upstream={**UPSTREAM, "host": host}))

    assert wanted.upstream is not None
    assert wanted.upstream.host == host


TEXT_OPTIONS = [
    "name",
    "data_directory",
    "locale",
    "cluster_name",
    "slot_name",
    "slot_prefix",
    "candidate",
    "wal_end_lsn",
]


@given(st.sampled_from(TEXT_OPTIONS), st.text(max_size=70))
def test_any_text_is_taken_or_refused_in_one_sentence(option: str, value: str) -> None:
    message = f"Option {option!r} has the value {value!r}: "
    try:
        options.wanted(params(**{option: value}))
    except OptionError as error:
        message = str(error)

    assert message.startswith(f"Option {option!r} has the value {value!r}: ")
