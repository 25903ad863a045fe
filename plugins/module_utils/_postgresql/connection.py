# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""How to log in to PostgreSQL: the options that all modules share, checked. No driver is imported here."""

from __future__ import annotations

import os
import typing as t
from dataclasses import dataclass, field

from .._common.argspec import ArgumentSpec
from .._common.errors import OptionError

SSL_MODES = ("allow", "disable", "prefer", "require", "verify-ca", "verify-full")


def connection_spec() -> ArgumentSpec:
    """Return the connection options; they match the documentation fragment ``headroom.scale.postgresql``."""
    return ArgumentSpec(
        {
            "login_user": {"type": "str", "default": "postgres"},
            "login_password": {"type": "str", "no_log": True},
            "login_db": {"type": "str", "default": "postgres"},
            "ssl_mode": {"type": "str", "choices": list(SSL_MODES), "default": "prefer"},
            "ca_cert": {"type": "path"},
            "ssl_cert": {"type": "path"},
            "ssl_key": {"type": "path"},
        },
        required_together=[("ssl_cert", "ssl_key")],
        required_if=[("ssl_mode", "verify-ca", ("ca_cert",)), ("ssl_mode", "verify-full", ("ca_cert",))],
    )


@dataclass(frozen=True)
class Login:
    """A login as checked options; the password never shows in its representation."""

    user: str = "postgres"
    password: str | None = field(default=None, repr=False)
    db: str = "postgres"
    ssl_mode: str = "prefer"
    ca_cert: str | None = None
    ssl_cert: str | None = None
    ssl_key: str | None = None

    @classmethod
    def from_params(cls, params: t.Mapping[str, t.Any]) -> Login:
        """Check the connection options of a module.

        :raises OptionError: when a name is empty or a file is not there.
        """
        for option in ("login_user", "login_db"):
            if not params[option].strip():
                raise OptionError(option, params[option], "give a name that is not empty.")
        for option in ("ca_cert", "ssl_cert", "ssl_key"):
            path = params[option]
            if path is not None and not os.path.isfile(path):
                raise OptionError(
                    option, path, "there is no such file on the host that runs the module; give the path of a PEM file."
                )
        return cls(
            user=params["login_user"],
            password=params["login_password"],
            db=params["login_db"],
            ssl_mode=params["ssl_mode"],
            ca_cert=params["ca_cert"],
            ssl_cert=params["ssl_cert"],
            ssl_key=params["ssl_key"],
        )

    def to_libpq(self) -> dict[str, str]:
        """Return the login as libpq connection parameters."""
        given = {
            "user": self.user,
            "password": self.password,
            "dbname": self.db,
            "sslmode": self.ssl_mode,
            "sslrootcert": self.ca_cert,
            "sslcert": self.ssl_cert,
            "sslkey": self.ssl_key,
        }
        # of a database without an encoding, as SQL_ASCII, texts would else come as bytes
        return {"client_encoding": "UTF8"} | {name: value for name, value in given.items() if value is not None}

    def scrub(self, text: str) -> str:
        """Return ``text`` without the password, should a driver or server ever repeat it."""
        return text.replace(self.password, "********") if self.password else text
