# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""How to log in to the nodes of a cluster: the options that all modules share, checked. No driver is imported here."""

from __future__ import annotations

import os
import typing as t
from dataclasses import dataclass, field

from ..argspec import ArgumentSpec
from ..errors import OptionError
from .model import Node


def connection_spec() -> ArgumentSpec:
    """Return the connection options; they match the documentation fragment ``headroom.scale.redis``."""
    return ArgumentSpec(
        {
            "login_user": {"type": "str"},
            "login_password": {"type": "str", "no_log": True},
            "tls": {"type": "bool", "default": True},
            "validate_certs": {"type": "bool", "default": True},
            "ca_certs": {"type": "path"},
            "client_cert_file": {"type": "path"},
            "client_key_file": {"type": "path"},
            "timeout_s": {"type": "float", "default": 5.0},
        },
        required_together=[("client_cert_file", "client_key_file")],
        required_by={"login_user": ("login_password",)},
    )


def nodes_spec(**more: t.Any) -> ArgumentSpec:
    """Return the option that lists the nodes; ``more`` are suboptions beside name, host and port."""
    node = {
        "name": {"type": "str", "required": True},
        "host": {"type": "str"},
        "port": {"type": "int", "default": 6379},
        **more,
    }
    return ArgumentSpec({"nodes": {"type": "list", "elements": "dict", "required": True, "options": node}})


@dataclass(frozen=True)
class Login:
    """A login as checked options; the password never shows in its representation. Times are in seconds."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = True
    validate_certs: bool = True
    ca_certs: str | None = None
    client_cert_file: str | None = None
    client_key_file: str | None = None
    timeout_s: float = 5.0

    @classmethod
    def from_params(cls, params: t.Mapping[str, t.Any]) -> Login:
        """Check the connection options of a module.

        :raises OptionError: when a name is empty, a file is not there or a time is out of bounds.
        """
        if params["login_user"] is not None and not params["login_user"].strip():
            raise OptionError("login_user", params["login_user"], "give a name that is not empty, or leave it out.")
        for option in ("ca_certs", "client_cert_file", "client_key_file"):
            path = params[option]
            if path is not None and not os.path.isfile(path):
                raise OptionError(
                    option, path, "there is no such file on the host that runs the module; give the path of a PEM file."
                )
        if not 0.1 <= params["timeout_s"] <= 3600:
            raise OptionError("timeout_s", params["timeout_s"], "give a number of seconds from 0.1 to 3600.")
        return cls(
            user=params["login_user"],
            password=params["login_password"],
            tls=params["tls"],
            validate_certs=params["validate_certs"],
            ca_certs=params["ca_certs"],
            client_cert_file=params["client_cert_file"],
            client_key_file=params["client_key_file"],
            timeout_s=params["timeout_s"],
        )

    def scrub(self, text: str) -> str:
        """Return ``text`` without the password, should a driver or server ever repeat it."""
        return text.replace(self.password, "********") if self.password else text


def parse_nodes(given: t.Sequence[t.Mapping[str, t.Any]]) -> tuple[Node, ...]:
    """Check the option ``nodes``.

    :raises OptionError: for no node, a name or address that comes twice, or what cannot be a name, host or port.
    """
    if not given:
        raise OptionError("nodes", list(given), "list at least one node.")
    nodes: dict[str, Node] = {}
    addresses: dict[tuple[str, int], str] = {}
    for entry in given:
        name = entry["name"]
        if not name.strip() or not name.isprintable():
            raise OptionError("nodes[].name", name, "give a printable name that is not empty.")
        if name in nodes:
            raise OptionError("nodes[].name", name, "it is there twice; give each node a name of its own.")
        host = entry["host"] if entry["host"] is not None else name
        if not host.strip() or not host.isprintable() or " " in host:
            raise OptionError("nodes[].host", host, f"give one host name or address for node {name}.")
        port = entry["port"]
        if not 1 <= port <= 65535:
            raise OptionError("nodes[].port", port, f"give a TCP port from 1 to 65535 for node {name}.")
        if (host, port) in addresses:
            remedy = f"node {addresses[host, port]} has the same address {host}:{port}; give each its own."
            raise OptionError("nodes[].name", name, remedy)
        addresses[host, port] = name
        nodes[name] = Node(name, host, port)
    return tuple(nodes.values())
