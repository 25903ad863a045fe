# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""SCRAM-SHA-256 verifiers (RFC 5802, RFC 7677) as PostgreSQL stores them, so that no password travels in SQL. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac

ITERATIONS = 4096


def verifier(password: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """Return the verifier of a password for ``ALTER ROLE ... PASSWORD``.

    :param password: the password; used as UTF-8 without SASLprep, as PostgreSQL does for plain ASCII.
    :param salt: 16 random bytes for a new verifier.
    """
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client_key = hmac.new(salted, b"Client Key", hashlib.sha256).digest()
    stored = base64.b64encode(hashlib.sha256(client_key).digest()).decode()
    server = base64.b64encode(hmac.new(salted, b"Server Key", hashlib.sha256).digest()).decode()
    return f"SCRAM-SHA-256${iterations}:{base64.b64encode(salt).decode()}${stored}:{server}"


def matches(stored: str | None, password: str) -> bool:
    """Say whether a stored verifier belongs to a password."""
    try:
        method, parameters, _keys = (stored or "").split("$")
        iterations, salt = parameters.split(":")
        if method != "SCRAM-SHA-256":
            return False
        expected = verifier(password, base64.b64decode(salt), int(iterations))
        return hmac.compare_digest((stored or "").encode(), expected.encode())
    except (ValueError, OverflowError):
        return False
