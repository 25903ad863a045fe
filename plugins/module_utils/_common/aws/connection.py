# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""How to reach AWS: the options that all modules share, in the terms of amazon.aws. No driver is imported here."""

from __future__ import annotations

import os
import typing as t
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..argspec import ArgumentSpec
from ..errors import OptionError


def connection_spec() -> ArgumentSpec:
    """Return the connection options; they match the documentation fragment ``headroom.scale.aws``."""
    return ArgumentSpec(
        {
            "access_key": {"type": "str", "no_log": False},
            "secret_key": {"type": "str", "no_log": True},
            "session_token": {"type": "str", "no_log": True},
            "profile": {"type": "str"},
            "region": {"type": "str", "default": "us-east-1"},
            "endpoint_url": {"type": "str"},
            "validate_certs": {"type": "bool", "default": True},
            "aws_ca_bundle": {"type": "path"},
        },
        mutually_exclusive=[("profile", name) for name in ("access_key", "secret_key", "session_token")],
        required_together=[("access_key", "secret_key")],
        required_by={"session_token": ("access_key",)},
    )


@dataclass(frozen=True)
class Access:
    """Where AWS is and a login for it; what is ``None`` is found as by the AWS command line. Secrets never show in its representation."""

    region: str
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    profile: str | None = None
    endpoint_url: str | None = None
    # whether certificates are checked, or the file with the authorities to check them with
    verify: bool | str = True

    def scrub(self, text: str) -> str:
        """Return ``text`` without secrets, should a server ever repeat them."""
        for secret in (self.secret_key, self.session_token):
            if secret:
                text = text.replace(secret, "********")
        return text


def parse_access(params: t.Mapping[str, t.Any]) -> Access:
    """Check the connection options of a module.

    :raises OptionError: when one cannot be used.
    """
    url = params["endpoint_url"]
    if url is not None:
        remedy = "give the URL of an endpoint, such as 'http://localhost:5000'."
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError as error:
            raise OptionError("endpoint_url", url, remedy) from error
        if not usable or parts.query or parts.fragment:
            raise OptionError("endpoint_url", url, remedy)
    bundle = params["aws_ca_bundle"]
    if bundle is not None and not os.path.isfile(bundle):
        raise OptionError("aws_ca_bundle", bundle, "give a file that is on the host that runs the module.")
    if not params["region"]:
        raise OptionError("region", params["region"], "give a region, such as 'us-east-1'.")
    return Access(
        region=params["region"],
        access_key=params["access_key"],
        secret_key=params["secret_key"],
        session_token=params["session_token"],
        profile=params["profile"],
        endpoint_url=url,
        verify=(bundle or True) if params["validate_certs"] else False,
    )
