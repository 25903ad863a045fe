# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SCRAM verifiers: the same as PostgreSQL's own, and nothing else matches."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

import psycopg
import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.scram import matches, verifier
from hypothesis import given, settings
from hypothesis import strategies as st

# the exchange of RFC 7677, section 3: salt and iterations as the server sends them, the password "pencil"
RFC_SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
RFC_VERIFIER = (
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ=="
    "$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)


def postgresqls(password: str) -> str:
    """Return a verifier that PostgreSQL's own client library makes, with a salt of its own."""
    # an unfinished connection is enough: the verifier is made by the library, not by a server
    connection = psycopg.pq.PGconn.connect_start(b"host=/nowhere")
    try:
        return connection.encrypt_password(password.encode(), b"nobody", b"scram-sha-256").decode()
    except psycopg.NotSupportedError:
        pytest.skip("libpq is too old to make a verifier")


def test_the_verifier_of_the_rfcs_example() -> None:
    assert verifier("pencil", RFC_SALT, 4096) == RFC_VERIFIER
    assert matches(RFC_VERIFIER, "pencil")


def test_the_server_key_signs_the_rfcs_exchange() -> None:
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    exchange = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}"

    key = base64.b64decode(verifier("pencil", RFC_SALT, 4096).split(":")[2])

    assert (
        base64.b64encode(hmac.new(key, exchange.encode(), hashlib.sha256).digest())
        == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    )


@pytest.mark.parametrize("password", ["hunter22!", "with ' quote and \\ backslash", "a:b$c", " leading", "x" * 200])
def test_a_verifier_that_postgresql_made_belongs_to_its_password_alone(password: str) -> None:
    stored = postgresqls(password)

    assert matches(stored, password)
    assert not matches(stored, password + "x")
    salt = base64.b64decode(re.split(r"[$:]", stored)[2])
    assert verifier(password, salt) == stored


@settings(max_examples=20)
@given(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=8, max_size=40),
    st.binary(min_size=16, max_size=16),
)
def test_a_verifier_matches_its_password_and_does_not_hold_it(password: str, salt: bytes) -> None:
    made = verifier(password, salt)

    assert matches(made, password)
    assert not matches(made, password[:-1])
    assert password not in made


@pytest.mark.parametrize(
    "stored",
    [
        None,
        "",
        "md5d41d8cd98f00b204e9800998ecf8427e",
        "pencil",
        RFC_VERIFIER.replace("SHA-256", "SHA-1"),
        RFC_VERIFIER.replace("4096:", "many:"),
        RFC_VERIFIER.replace("4096:", "0:"),
        RFC_VERIFIER.replace("4096:", "-1:"),
        RFC_VERIFIER.replace("4096:", "9" * 30 + ":"),
        RFC_VERIFIER.replace("4096:", "4095:"),
        RFC_VERIFIER.replace("W22Z", "W2Z"),
        RFC_VERIFIER.replace("W22Z", "é"),
        RFC_VERIFIER[:-4] + "é",
        RFC_VERIFIER[:-1],
        RFC_VERIFIER + "$",
        "$$",
        "SCRAM-SHA-256$:$",
        "SCRAM-SHA-256$4096$x:y",
    ],
)
def test_anything_else_is_no_match_and_no_traceback(stored: str | None) -> None:
    assert matches(stored, "pencil") is False


@given(st.text(max_size=80))
def test_garbage_never_matches(stored: str) -> None:
    assert matches(stored, "pencil") is False
