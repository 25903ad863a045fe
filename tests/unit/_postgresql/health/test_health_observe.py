# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking, without a server of PostgreSQL: what messages and rows mean, and stages told apart against sockets that
misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.connection import Login
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.health import observe
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.health.model import NodeFacts, NodeSpec

pytest.importorskip("psycopg")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('FATAL:  password authentication failed for user "x"', "authentication_failed"),
        ("fe_sendauth: no password supplied", "authentication_failed"),
        ('FATAL:  no pg_hba.conf entry for host "::1", user "x", database "y", SSL encryption', "access_denied"),
        ("FATAL:  the database system is starting up", "starting_up"),
        ("FATAL:  the database system is not yet accepting connections", "starting_up"),
        ("FATAL:  the database system is in recovery mode", "starting_up"),
        ("FATAL:  the database system is shutting down", "shutting_down"),
        ("FATAL:  sorry, too many clients already", "too_many_connections"),
        (
            "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
            "too_many_connections",
        ),
        ("server does not support SSL, but SSL was required", "tls_refused"),
        ("SSL error: certificate verify failed", "tls_refused"),
        ('FATAL:  database "x" does not exist', "database_missing"),
        ('FATAL:  role "x" does not exist', "authentication_failed"),
        ("FATAL:  Passwort-Authentifizierung fehlgeschlagen", None),
    ],
)
def test_what_a_failed_login_says(text: str, code: str | None) -> None:
    assert observe.classify(text) == code


def test_a_message_in_another_language_after_a_password_was_sent() -> None:
    assert (
        observe.classify("FATAL:  Passwort-Authentifizierung fehlgeschlagen", used_password=True)
        == "authentication_failed"
    )


def test_an_error_response_is_read_by_its_fields() -> None:
    assert observe.parse_error_response(b"SFATAL\0VFATAL\0C57P03\0Mstarting\0\0") == {
        "S": "FATAL",
        "V": "FATAL",
        "C": "57P03",
        "M": "starting",
    }


def test_rows_with_nothing_in_them_are_not_known() -> None:
    facts = observe.facts_from_row("pg1", {})
    assert facts == NodeFacts(name="pg1", receiver_known=False)


def test_the_login_without_pg_monitor_sees_no_receiver_and_no_senders() -> None:
    raw = {"in_recovery": True, "sees_all": False, "receivers": [{"row": {"pid": 1}, "age": None}], "senders": []}
    facts = observe.facts_from_row("pg1", raw)
    assert not facts.receiver_known
    assert facts.receiver is None
    assert facts.senders is None


def test_only_host_and_port_of_the_conninfo_are_kept() -> None:
    raw = {"settings": {"primary_conninfo": "user=r password='s e\\'cret' host=pg1.lab port=5433 sslmode=require"}}
    facts = observe.facts_from_row("pg2", raw)
    assert facts.upstream is not None
    assert (facts.upstream.host, facts.upstream.port) == ("pg1.lab", 5433)
    assert "cret" not in repr(facts)


def test_the_password_shows_in_no_representation_and_is_scrubbed() -> None:
    login = Login(password="hunter2")
    assert "hunter2" not in repr(login)
    assert "hunter2" not in repr(observe.Look(login))
    assert login.scrub("xhunter2x") == "x********x"


def test_reads_are_shared_by_those_who_asked_before_they_began() -> None:
    async def scenario() -> tuple[list[int], int]:
        count = 0

        async def read() -> int:
            nonlocal count
            count += 1
            number = count
            await asyncio.sleep(0.01)
            return number

        shared = observe._Shared(read)
        first = asyncio.ensure_future(shared.get())
        await asyncio.sleep(0.002)
        later = [asyncio.ensure_future(shared.get()) for dummy in range(10)]
        return [await first, *[await task for task in later]], count

    values, count = asyncio.run(scenario())
    assert values == [1] + [2] * 10
    assert count == 2


@contextlib.contextmanager
def server(behave: t.Callable[[socket.socket], None]) -> t.Iterator[int]:
    """Serve every connection with ``behave`` in a thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)

        def serve() -> None:
            while True:
                try:
                    line, _dummy = listener.accept()
                except OSError:
                    return
                threading.Thread(target=behave, args=(line,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def error(state: str, message: str) -> t.Callable[[socket.socket], None]:
    """Answer every request for TLS with no, and every login with an error."""

    def behave(line: socket.socket) -> None:
        with line:
            data = line.recv(1024)
            if data[4:8] == b"\x04\xd2\x16\x2f":
                line.sendall(b"N")
                line.recv(1024)
            body = b"SFATAL\0VFATAL\0C" + state.encode() + b"\0M" + message.encode() + b"\0\0"
            line.sendall(b"E" + (len(body) + 4).to_bytes(4, "big") + body)

    return behave


def silent(line: socket.socket) -> None:
    """Say nothing for much longer than anything waits for it."""
    time.sleep(10)
    line.close()


def look(host: str, port: int, timeout_s: float = 1.0, **login: t.Any) -> tuple[str | None, float, str]:
    """Look at one node and return its fault's code, the seconds it took, and the message."""
    begun = time.monotonic()
    seen = observe.observe(
        [NodeSpec("pg1", host, port)], observe.Look(Login(user="u", password="hunter2", **login), timeout_s)
    )
    fault = seen["pg1"].fault
    return (fault.code if fault else None), time.monotonic() - begun, fault.message if fault else ""


@pytest.mark.parametrize(
    ("behave", "code"),
    [
        (silent, "no_response"),
        (error("57P03", "the database system is starting up"), "starting_up"),
        (error("57P03", "Das Datenbanksystem startet"), "starting_up"),
        (error("57P03", "the database system is shutting down"), "shutting_down"),
        (error("53300", "zu viele Clients"), "too_many_connections"),
        (error("28000", "kein Eintrag"), "access_denied"),
        (error("28P01", 'password authentication failed for user "u"'), "authentication_failed"),
        (lambda line: line.close(), "connection_lost"),
    ],
)
def test_stages_are_told_apart(behave: t.Callable[[socket.socket], None], code: str) -> None:
    with server(behave) as port:
        seen, took_s, message = look("127.0.0.1", port)
    assert seen == code
    assert took_s < 3
    assert message.startswith(f"Failed to look at pg1 on 127.0.0.1:{port}: ")
    assert "hunter2" not in message


def test_tls_that_is_required_and_not_offered() -> None:
    with server(error("28000", "x")) as port:
        assert look("127.0.0.1", port, ssl_mode="require")[0] == "tls_refused"


def test_a_closed_port() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        assert look("127.0.0.1", held.getsockname()[1])[0] == "connection_refused"


def test_a_port_that_drops_packets() -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _dummy in range(4):
            line = stack.enter_context(socket.socket())
            line.setblocking(False)
            line.connect_ex(listener.getsockname())
        assert look("127.0.0.1", listener.getsockname()[1])[0] == "connect_timeout"


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: t.Any, **kwargs: t.Any) -> t.NoReturn:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert look("no-such-host.invalid", 5432)[0] == "dns_failure"


def test_a_resolver_that_hangs_costs_no_more_than_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(4) or [])
    code, took_s, _message = look("slow.invalid", 5432, timeout_s=0.3)
    assert code == "dns_failure"
    assert took_s < 2


def test_fifty_silent_nodes_take_as_long_as_one() -> None:
    with server(silent) as port:
        begun = time.monotonic()
        specs = [NodeSpec(f"pg{number}", "127.0.0.1", port) for number in range(50)]
        seen = observe.observe(specs, observe.Look(Login(), 2.0))
    assert {facts.fault.code for facts in seen.values() if facts.fault} == {"no_response"}
    # one after the other they would take 100 s
    assert time.monotonic() - begun < 20
