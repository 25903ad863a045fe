# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one instance needs: what is compared, what is set on the running server, what waits for a restart, what is shown."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import OptionError
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.instance.model import (
    AT_START_ONLY,
    Engine,
    Observed,
    Paths,
    Step,
    User,
    Wanted,
    canonical,
)
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.instance.plan import (
    Plan,
    managed,
    parse,
    plan,
    quote,
    render_users,
    same,
    shown,
    unquote,
)
from clusters import world
from hypothesis import given
from hypothesis import strategies as st

PATHS = Paths(Engine("redis"), 6379)
SETTINGS = {"maxmemory": "2gb", "appendonly": "yes", "save": "900 1 300 10", "masterauth": "lab-only-secret"}
LIVE = {
    "maxmemory": "2147483648",
    "appendonly": "yes",
    "save": "900 1 300 10",
    "masterauth": "lab-only-secret",
    "io-threads": "1",
    "tls-cert-file": "/there",
}
USERS = (User("admin", "~* &* +@all", "a" * 64), User("default", ""))
REPLY = {"admin": ["flags", ["on"]], "default": ["flags", ["off"]]}


def want(**settings: str) -> Wanted:
    return Wanted(PATHS, {**SETTINGS, **settings}, USERS)


def running(wanted: Wanted, **facts: t.Any) -> Observed:
    """Return an instance that runs just as wanted, but for ``facts``."""
    first = plan(wanted, Observed())
    live = {**LIVE, **wanted.settings, "maxmemory": LIVE["maxmemory"]}
    return dataclasses.replace(
        Observed(
            config=first.config,
            users=first.users,
            pem=wanted.pem,
            data_exists=True,
            enabled=True,
            running=True,
            live=live,
            live_users=REPLY,
            meant_users=REPLY,
            running_version="7.0.15",
            installed_version="7.0.15",
        ),
        **facts,
    )


def steps(planned: Plan) -> list[tuple[str, str]]:
    return [(step.action, step.object) for step in planned.steps]


def test_a_new_host_gets_everything_in_an_order_that_works() -> None:
    wanted = dataclasses.replace(want(), pem={"certificate": "C", "key": "K", "ca": "A"})
    assert steps(plan(wanted, Observed())) == [
        ("make", "/var/lib/redis/6379"),
        ("write", "/etc/redis/tls-6379/ca.pem"),
        ("write", "/etc/redis/tls-6379/certificate.pem"),
        ("write", "/etc/redis/tls-6379/key.pem"),
        ("write", "/etc/redis/users-6379.acl"),
        ("write", "/etc/redis/redis-6379.conf"),
        ("enable", "redis-server@6379.service"),
        ("start", "redis-server@6379.service"),
    ]


def test_nothing_is_left_when_it_is_so_already() -> None:
    assert plan(want(), running(want())).steps == ()


@pytest.mark.parametrize(
    ("name", "now", "then"),
    [
        ("maxmemory", "2147483648", "2gb"),
        ("maxmemory", "2000000000", "2g"),
        ("maxmemory", "2147483648", "2GB"),
        ("save", "", '""'),
        ("appendonly", "yes", "YES"),
        ("notify-keyspace-events", "AKE", "KEA"),
        ("notify-keyspace-events", "AKE", "KEg$lshztxed"),
        (
            "client-output-buffer-limit",
            "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60",
            "replica 256mb 64mb 60",
        ),
    ],
)
def test_the_same_value_in_other_words_is_the_same(name: str, now: str, then: str) -> None:
    assert same(name, now, then)
    wanted = want(**{name: then})
    assert plan(wanted, running(wanted, live={**LIVE, name: now})).steps == ()


@pytest.mark.parametrize(
    ("name", "now", "then"),
    [
        ("maxmemory", "2000000000", "2gb"),
        ("notify-keyspace-events", "KE", "KEA"),
        ("client-output-buffer-limit", "normal 0 0 0 slave 1 1 60", "replica 256mb 64mb 60"),
        ("client-output-buffer-limit", "normal 0 0 0", "replica 256mb 64mb 60"),
    ],
)
def test_another_value_is_set_on_the_running_server(name: str, now: str, then: str) -> None:
    wanted = want(**{name: then})
    assert steps(plan(wanted, running(wanted, live={**LIVE, name: now}))) == [("set", name)]


@pytest.mark.parametrize("name", sorted(AT_START_ONLY))
def test_what_a_server_takes_at_its_start_alone_is_written_and_told(name: str) -> None:
    wanted = want(**{name: "new"})
    before = running(want(), live={**LIVE, name: "old"})
    planned = plan(wanted, before)
    assert steps(planned) == [("write", PATHS.config)]
    assert planned.restart_required == (name,)
    # and told again for as long as it is so
    later = plan(wanted, dataclasses.replace(before, config=planned.config))
    assert (later.steps, later.restart_required) == ((), (name,))


def test_a_restart_happens_only_where_it_may_and_is_needed() -> None:
    wanted = dataclasses.replace(want(**{"io-threads": "4"}), may_restart=True)
    seen = running(wanted, live={**LIVE, "io-threads": "1"})
    assert ("restart", PATHS.unit) in steps(plan(wanted, seen))
    assert ("restart", PATHS.unit) not in steps(plan(dataclasses.replace(wanted, may_restart=False), seen))
    assert plan(dataclasses.replace(want(), may_restart=True), running(want())).steps == ()


@pytest.mark.parametrize(
    ("facts", "word"),
    [({"running_version": "7.0.14"}, "version 7.0.15"), ({"program_replaced": True}, "the updated program")],
)
def test_a_new_program_needs_a_restart_also_with_the_same_version(facts: dict[str, t.Any], word: str) -> None:
    assert plan(want(), running(want(), **facts)).restart_required == (word,)


def test_the_order_and_the_words_of_the_file_do_not_matter() -> None:
    text = plan(want(), Observed()).config
    lines = text.splitlines()
    # as CONFIG REWRITE leaves it: sizes in other units, a directive under the name that the server prefers, lines of its own
    rewritten = [re.sub("^masterauth", "primaryauth", line.replace("2gb", "2147483648")) for line in reversed(lines)]
    rewritten += ["# Generated by CONFIG REWRITE", "latency-tracking-info-percentiles 50 99 99.9"]
    assert plan(want(), running(want(), config="\n".join(rewritten) + "\n")).steps == ()


def test_a_former_secret_does_not_stay_under_the_other_name_of_its_directive() -> None:
    """The later line wins when the server starts."""
    text = plan(want(), Observed()).config.replace("masterauth", "primaryauth")
    planned = plan(want(masterauth="lab-only-another"), running(want(), config=text))
    assert "primaryauth" not in parse(planned.config)
    assert parse(planned.config)["masterauth"] == ['"lab-only-another"']


def test_lines_that_others_wrote_stay() -> None:
    text = plan(want(), Observed()).config + "slowlog-max-len 256\n"
    planned = plan(want(maxmemory="1gb"), running(want(), config=text))
    assert parse(planned.config)["slowlog-max-len"] == ["256"]
    assert managed(planned.config) == set(SETTINGS)


def test_what_is_not_declared_any_more_waits_for_a_restart_also_in_later_runs() -> None:
    former = running(want(**{"io-threads": "4"}))
    planned = plan(want(), former)
    assert planned.restart_required == ("io-threads",)
    assert "io-threads" not in parse(planned.config)
    later = plan(want(), dataclasses.replace(former, config=planned.config))
    assert (later.steps, later.restart_required) == ((), ("io-threads",))


def test_users_that_differ_on_the_running_server_are_loaded_anew() -> None:
    seen = running(want(), live_users={**REPLY, "eve": ["flags", ["on", "nopass"]]})
    assert steps(plan(want(), seen)) == [("load", PATHS.users)]


def test_rules_that_the_server_refuses_end_in_one_sentence_before_anything_is_done() -> None:
    seen = running(want(), refused_users={"admin": "Unknown command or category name in ACL"})
    with pytest.raises(OptionError) as refused:
        plan(want(), seen)
    assert "'users[].rules'" in str(refused.value)
    assert "admin" in str(refused.value)


@pytest.mark.parametrize(("shows", "expected"), [(False, [("set", "tls-cert-file")]), (True, []), (None, [])])
def test_a_certificate_that_the_server_does_not_show_is_loaded_again(
    shows: bool | None, expected: list[tuple[str, str]]
) -> None:
    wanted = dataclasses.replace(want(**{"tls-cert-file": "/there"}), pem={"certificate": "C", "key": "K", "ca": "A"})
    assert steps(plan(wanted, running(wanted, certificate_shown=shows))) == expected


def test_a_changed_certificate_is_written_and_loaded_once() -> None:
    wanted = dataclasses.replace(want(**{"tls-cert-file": "/there"}), pem={"certificate": "C", "key": "K", "ca": "A"})
    seen = running(wanted, pem={"certificate": "old", "key": "old", "ca": "A"}, certificate_shown=False)
    found = steps(plan(wanted, seen))
    assert [step for step in found if step[0] == "write"] == [
        ("write", PATHS.tls("certificate")),
        ("write", PATHS.tls("key")),
    ]
    assert found[2:] == [("set", "tls-cert-file")]


def test_no_secret_is_in_what_is_shown() -> None:
    planned = plan(want(), Observed())
    text = shown(planned.config) + shown(planned.users) + str([step.as_dict() for step in planned.steps])
    assert "lab-only-secret" not in text
    assert "a" * 64 not in text
    assert "masterauth ********" in text
    # as the server writes it, too
    assert "lab-only-secret" not in shown(planned.config.replace("masterauth", "primaryauth"))


def test_the_why_of_a_changed_secret_does_not_tell_it() -> None:
    seen = running(want(), live={**LIVE, "masterauth": "lab-only-former"})
    step = plan(want(), seen).steps[0]
    assert (step.action, step.object) == ("set", "masterauth")
    assert "lab-only" not in str(step.as_dict())


def test_users_are_written_with_digests_and_without_one_are_off() -> None:
    users = (User("app", "~app:* +@read (~b:* +set)", "b" * 64, "c" * 64), User("default", ""))
    text = render_users(dataclasses.replace(want(), users=users))
    assert text == (f"user app reset on #{'b' * 64} #{'c' * 64} ~app:* +@read (~b:* +set)\nuser default reset off\n")
    assert users[0].words()[-1] == "(~b:* +set)"


def test_a_directive_has_one_name_for_comparison() -> None:
    assert canonical("slave-priority") == canonical("Replica-Priority") == "replica-priority"
    assert canonical("masterauth") == canonical("primaryauth")


def test_a_step_tells_no_value() -> None:
    assert Step("set", "masterauth", "it is another value", "secret").as_dict() == {
        "action": "set",
        "object": "masterauth",
        "why": "it is another value",
    }


@pytest.mark.parametrize(
    ("version", "rules"), [("8.1.4", "+psync"), ("9.0.0", "+psync +x"), ("10.1", "+psync +x +y"), (None, "+psync")]
)
def test_a_user_has_rules_that_only_later_versions_know(version: str | None, rules: str) -> None:
    user = User("replication", "+psync", "a" * 64, rules_since=(("9.0", "+x"), ("9.1", "+y")))
    assert user.at(version) == User("replication", rules, "a" * 64)


PASSWORDS = [
    "correct horse battery",
    'pa"ss#word1',
    "back\\slash1'x",
    "ends with \\",
    '"in quotes"',
    "über\u2028line\x85",
    "two\nlines\r\tand \x00",
    "12345678k",
]


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_of_any_signs_is_one_value_of_one_line(password: str) -> None:
    line = quote("masterauth", password)
    assert line.isascii()
    assert line.isprintable()
    assert unquote(line) == password
    wanted = want(masterauth=password)
    assert plan(wanted, running(wanted)).steps == ()
    # a file that a former version has written like this
    former = running(wanted)
    broken = (former.config or "").replace(f"masterauth {line}\n", f"masterauth {password}\n")
    again = plan(wanted, dataclasses.replace(former, config=broken))
    assert steps(again) in ([("write", PATHS.config)], [])
    assert (steps(again) == []) == (password == "12345678k")
    assert password not in shown(again.config)


@given(st.text(max_size=20))
def test_what_is_quoted_is_read_again(password: str) -> None:
    assert unquote(quote("masterauth", password)) == password


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain1\\x", "plain1\\x"),
        ("'single \\' quote'", "single ' quote"),
        ('"two" "values"', None),
        ('"no end\\"', None),
        ("two values", None),
        ('a"b', None),
        ('""', ""),
    ],
)
def test_what_a_server_reads_from_its_file(text: str, value: str | None) -> None:
    assert unquote(text) == value


def test_a_password_that_reads_like_a_size_is_no_size() -> None:
    wanted = want(masterauth="12345678000")
    before = running(want(masterauth="12345678k"))
    assert steps(plan(wanted, before)) == [("write", PATHS.config), ("set", "masterauth")]


def test_a_server_reads_it_from_its_file_as_it_is(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "redis.conf"
    with world.World(tmp_path, include=str(file)) as one:
        for number, password in enumerate(PASSWORDS):
            file.write_text(f"masterauth {quote('masterauth', password)}\n")
            one.alone(f"n{number}")
            assert one[f"n{number}"].call("CONFIG", "GET", "masterauth") == {"masterauth": password}


UNTOLD = {"loadmodule": "/x/y.so", "rename-command": 'KEYS ""', "include": "/x/more.conf"}


@pytest.mark.parametrize("name", sorted(UNTOLD))
def test_what_a_server_does_not_tell_waits_for_a_restart_until_there_was_one(name: str) -> None:
    wanted = want(**{name: UNTOLD[name]})
    live = {**LIVE, **SETTINGS, "maxmemory": LIVE["maxmemory"]}
    before = running(want(), live=live)
    first = plan(wanted, before)
    assert (steps(first), first.restart_required) == ([("write", PATHS.config)], (name,))
    # the file has it now, and the server has not
    waits = dataclasses.replace(before, config=first.config)
    again = plan(wanted, waits)
    assert (again.steps, again.restart_required) == ((), (name,))
    restarts = plan(dataclasses.replace(wanted, may_restart=True), waits)
    assert steps(restarts) == [("restart", PATHS.unit), ("write", PATHS.config)]
    after = plan(wanted, dataclasses.replace(before, config=restarts.config))
    assert (after.steps, after.restart_required) == ((), ())
    # and once it is not declared any more, until the next one
    gone = plan(want(), dataclasses.replace(before, config=restarts.config))
    assert (steps(gone), gone.restart_required) == ([("write", PATHS.config)], (name,))
