# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Options of modules that keep the nginx of a host: declared, and checked beyond their types."""

from __future__ import annotations

import ipaddress
import re
import typing as t
from dataclasses import dataclass

from ..argspec import ArgumentSpec
from ..errors import OptionError
from .model import Management

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
PEM = {"certificate": "-----BEGIN CERTIFICATE-----", "key": "PRIVATE KEY-----"}


@dataclass(frozen=True)
class Host:
    """What is said of the nginx of a host, whatever it is for."""

    management: Management
    trusted_proxies: tuple[str, ...]
    real_ip_header: str
    user: str
    worker_connections: int


def host_spec() -> ArgumentSpec:
    """Return the options that do not depend on what nginx is for."""
    management = {
        "address": {"type": "str", "default": "127.0.0.1"},
        "port": {"type": "int", "default": 8181},
        "allow": {"type": "list", "elements": "str", "default": []},
    }
    return ArgumentSpec(
        {
            "management": {"type": "dict", "options": management, "apply_defaults": True},
            "trusted_proxies": {"type": "list", "elements": "str", "default": []},
            "real_ip_header": {"type": "str", "default": "X-Forwarded-For"},
            "user": {"type": "str", "default": "www-data"},
            "worker_connections": {"type": "int", "default": 4096},
            "program": {"type": "path", "default": "/usr/sbin/nginx"},
            "config_file": {"type": "path", "default": "/etc/nginx/nginx.conf"},
            "wait_s": {"type": "float", "default": 15.0},
        }
    )


def parse_host(params: t.Mapping[str, t.Any], ports: t.Mapping[int, str]) -> Host:
    """Check these options beyond their types.

    :param ports: ports that are taken, each with what has it.
    :raises OptionError: naming the option, its value and what to give instead.
    """
    management = parse_management(params["management"], ports)
    header = params["real_ip_header"]
    if not HEADER.fullmatch(header):
        raise OptionError("real_ip_header", header, "give the name of a header, such as X-Forwarded-For.")
    if not NAME.fullmatch(params["user"]):
        raise OptionError("user", params["user"], "give the name of a user of the host.")
    within("worker_connections", params["worker_connections"], 16, 1_000_000)
    within("wait_s", params["wait_s"], 1, 600)
    proxies = networks("trusted_proxies", params["trusted_proxies"])
    return Host(management, proxies, header, params["user"], params["worker_connections"])


def check_pem(option: str, name: str, given: t.Mapping[str, str]) -> None:
    """Require a certificate and its key to be in PEM format."""
    for part, mark in PEM.items():
        if mark not in given[part]:
            shown = "********" if part == "key" else given[part][:40]
            raise OptionError(f"{option}.{part}", shown, f"give the {part} of {name} in PEM format.")


def parse_management(given: t.Mapping[str, t.Any], ports: t.Mapping[int, str]) -> Management:
    """Check where state is read."""
    address = given["address"]
    if not is_address(address, address):
        raise OptionError("management.address", address, "give an address of version 4 that the host has.")
    if address == "0.0.0.0":
        raise OptionError("management.address", address, "give one address of the host, not all of them.")
    within("management.port", given["port"], 1, 65535)
    if given["port"] in ports:
        raise OptionError("management.port", given["port"], f"{ports[given['port']]} has this port; give another one.")
    return Management(address, given["port"], networks("management.allow", given["allow"]))


def networks(option: str, given: t.Iterable[str]) -> tuple[str, ...]:
    """Return addresses and networks, checked and in order."""
    found = []
    for one in given:
        try:
            found.append(str(ipaddress.ip_network(one)))
        except ValueError as error:
            raise OptionError(option, one, "give an address or a network, such as 192.0.2.0/24.") from error
    return tuple(sorted(set(found)))


def is_address(bare: str, host: str) -> bool:
    """Return whether a text is an address, one of version 6 in the brackets that it needs before a port."""
    try:
        return ipaddress.ip_address(bare).version == (6 if host.startswith("[") else 4)
    except ValueError:
        return False


def within(option: str, value: float, least: float, most: float) -> None:
    """Require a number to be in a range."""
    # a value that is no number is in no range
    if not least <= value <= most:
        raise OptionError(option, value, f"give a number from {least:g} to {most:g}.")


def once(option: str, names: t.Sequence[t.Any]) -> None:
    """Require each name to be there once."""
    for name in names:
        if names.count(name) > 1:
            raise OptionError(option, name, "it is there twice; give each once.")
