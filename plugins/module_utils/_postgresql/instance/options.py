# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The options of the instance modules and how they become a description. Pure."""

from __future__ import annotations

import re
import typing as t

from ..._common.argspec import ArgumentSpec
from ..._common.errors import OptionError
from .model import Login, Paths, Upstream, Wanted, lsn_to_int

SSL_MODES = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
OWN_SETTINGS = (
    "data_directory", "hba_file", "ident_file", "external_pid_file", "unix_socket_directories", "port", "cluster_name", "ssl",
    "ssl_cert_file", "ssl_key_file", "ssl_ca_file", "primary_conninfo", "primary_slot_name", "config_file", "hot_standby",
)  # fmt: skip


RELEASES = {("debian", "12"): 15, ("debian", "13"): 17}
"""The major version that a release of the distribution carries."""


def release_version(distribution: str, distribution_version: str) -> int:
    """Return the major version that a release carries.

    :raises OptionError: for a release that is not known, since then the version must be given.
    """
    try:
        return RELEASES[(distribution, distribution_version)]
    except KeyError:
        remedy = f"{distribution} {distribution_version} is not known to carry one: give the major version to use."
        raise OptionError("version", None, remedy) from None


def identity_spec(*, version_required: bool = True) -> ArgumentSpec:
    """Which instance is meant."""
    return ArgumentSpec(
        {
            "version": {"type": "int", "required": version_required},
            "name": {"type": "str", "default": "main"},
            "data_directory": {"type": "path"},
        }
    )


def instance_spec() -> ArgumentSpec:
    """What the instance should be."""
    login = {"name": {"type": "str", "required": True}, "password": {"type": "str", "required": True, "no_log": True}}
    return ArgumentSpec(
        {
            "state": {
                "type": "str",
                "default": "present",
                "choices": ["present", "stopped", "absent", "fenced", "promoted"],
            },
            "role": {"type": "str", "choices": ["primary", "replica"]},
            "port": {"type": "int", "default": 5432},
            "settings": {"type": "dict", "default": {}},
            "hba": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "type": {"type": "str", "default": "hostssl", "choices": ["local", "host", "hostssl", "hostnossl"]},
                    "database": {"type": "str", "required": True},
                    "user": {"type": "str", "required": True},
                    "address": {"type": "str"},
                    "method": {
                        "type": "str",
                        "default": "scram-sha-256",
                        "choices": ["scram-sha-256", "cert", "peer", "reject"],
                    },
                    "options": {"type": "str"},
                },
            },
            "tls_certificate": {"type": "str"},
            "tls_key": {"type": "str", "no_log": True},
            "tls_ca": {"type": "str"},
            "upstream": {
                "type": "dict",
                "options": {
                    "host": {"type": "str", "required": True},
                    "port": {"type": "int", "default": 5432},
                    "ssl_mode": {"type": "str", "default": "prefer", "choices": SSL_MODES},
                },
            },
            "cluster_name": {"type": "str"},
            "replication_login": {"type": "dict", "options": login},
            "monitoring_login": {"type": "dict", "options": login},
            "slots": {"type": "list", "elements": "str", "default": []},
            "slot_prefix": {"type": "str", "default": "headroom_"},
            "slot_name": {"type": "str"},
            "rebuild": {"type": "str", "default": "never", "choices": ["never", "rewind", "basebackup"]},
            "restart": {"type": "bool", "default": True},
            "locale": {"type": "str", "default": "C.UTF-8"},
            "max_rate_kib_s": {"type": "int"},
            "wal_end_lsn": {"type": "str"},
            "candidate": {"type": "str"},
            "progress_interval_s": {"type": "float", "default": 5.0},
        },
        required_if=[("state", "present", ["role"]), ("role", "replica", ["upstream", "replication_login"])],
        required_together=[("tls_certificate", "tls_key")],
    )


def _check(option: str, value: t.Any, fits: bool, remedy: str) -> None:
    if not fits:
        raise OptionError(option, value, remedy)


def paths(params: t.Mapping[str, t.Any]) -> Paths:
    """Return where the instance's files are.

    :raises OptionError: when version, name or data directory cannot be.
    """
    version, name = params["version"], params["name"]
    _check("version", version, 13 <= version <= 18, "give a major version from 13 to 18.")
    _check(
        "name",
        name,
        re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.]*", name) is not None,
        "use letters, digits, '_' and '.' only.",
    )
    data = params["data_directory"] or f"/var/lib/postgresql/{version}/{name}"
    deep = data.startswith("/") and len([part for part in data.split("/") if part]) >= 2
    _check(
        "data_directory",
        data,
        deep and "'" not in data and "\n" not in data,
        "give an absolute path below a directory of its own.",
    )
    return Paths(version, name, data.rstrip("/"))


def _hba(entries: t.Sequence[t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
    for index, entry in enumerate(entries):
        place = f"hba[{index}]"
        for key in ("database", "user", "address", "options"):
            value = entry.get(key)
            _check(
                f"{place}.{key}",
                value,
                value is None or re.fullmatch(r"[^\s#]+" if key != "options" else r"[^#\n]+", value) is not None,
                "one word without blanks, line breaks or '#' is needed.",
            )
        local = entry["type"] == "local"
        _check(
            f"{place}.address",
            entry.get("address"),
            local != bool(entry.get("address")),
            "give it for host types, and for them alone.",
        )
        _check(
            f"{place}.method",
            entry["method"],
            local or entry["method"] != "peer",
            "'peer' works for type 'local' alone.",
        )
        _check(
            f"{place}.method",
            entry["method"],
            entry["method"] != "cert" or entry["type"] == "hostssl",
            "'cert' needs 'hostssl'.",
        )
    return [dict(entry) for entry in entries]


def _settings(settings: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    for name, value in settings.items():
        _check("settings", name, re.fullmatch(r"[a-z_][a-z0-9_.]*", name) is not None, "a setting's name is needed.")
        _check("settings", name, name not in OWN_SETTINGS, "this setting follows from the other options; leave it out.")
        fits = isinstance(value, (bool, int, float, str)) and not set("\r\n") & set(str(value))
        _check(f"settings.{name}", value, fits, "give one number, truth value or line of text.")
    return dict(settings)


def _login(option: str, value: t.Mapping[str, t.Any] | None, purpose: str) -> Login | None:
    if value is None:
        return None
    name, password = value["name"], value["password"]
    _check(
        f"{option}.name", name, re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name) is not None, "use a-z, 0-9 and '_' only."
    )
    fits = password.isascii() and password.isprintable() and len(password) >= 8
    _check(f"{option}.password", "(hidden)", fits, "give at least 8 printable ASCII characters.")
    return Login(name, password, purpose)


def _slot_names(params: t.Mapping[str, t.Any]) -> None:
    prefix = params["slot_prefix"]
    _check(
        "slot_prefix", prefix, re.fullmatch(r"[a-z0-9_]{3,30}", prefix) is not None, "use 3 to 30 of a-z, 0-9 and '_'."
    )
    for name in params["slots"]:
        _check("slots", name, re.fullmatch(r"[a-z0-9_]{1,63}", name) is not None, "use at most 63 of a-z, 0-9 and '_'.")
        _check("slots", name, name.startswith(prefix), f"begin it with the slot_prefix {prefix!r}.")


def wanted(params: t.Mapping[str, t.Any]) -> Wanted:
    """Return the description that a module's options make.

    :raises OptionError: for the first option that cannot be used.
    """
    where = paths(params)
    _check("port", params["port"], 1 <= params["port"] <= 65535, "give a port from 1 to 65535.")
    interval = params["progress_interval_s"]
    _check("progress_interval_s", interval, 0 < interval <= 600, "give more than 0 and at most 600 seconds.")
    rate = params["max_rate_kib_s"]
    _check("max_rate_kib_s", rate, rate is None or 32 <= rate <= 1048576, "give 32 to 1048576 KiB/s, or leave it out.")
    _slot_names(params)
    for option in ("locale", "cluster_name", "slot_name", "candidate"):
        value = params[option]
        _check(
            option,
            value,
            value is None or re.fullmatch(r"[\w.@-]{1,63}", value) is not None,
            "use letters, digits, '_', '.', '-'.",
        )
    end = params["wal_end_lsn"]
    _check(
        "wal_end_lsn",
        end,
        end is None or re.fullmatch(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}", end) is not None,
        "give it as X/X.",
    )
    _check("wal_end_lsn", end, end is None or lsn_to_int(end) > 0, "give a position beyond 0/0.")
    names = [(params[option] or {}).get("name") for option in ("replication_login", "monitoring_login")]
    _check(
        "monitoring_login.name",
        names[1],
        names[1] is None or names[0] != names[1],
        "give it another name than replication's.",
    )
    upstream = params["upstream"]
    if upstream is not None:
        host = upstream["host"]
        _check("upstream.host", host, re.fullmatch(r"[\w.:%-]+", host) is not None, "give one host name or address.")
        _check("upstream.port", upstream["port"], 1 <= upstream["port"] <= 65535, "give a port from 1 to 65535.")
    return Wanted(
        paths=where,
        state=params["state"],
        role=params["role"] or "replica",
        port=params["port"],
        settings=_settings(params["settings"]),
        hba=_hba(params["hba"]),
        tls_certificate=params["tls_certificate"],
        tls_key=params["tls_key"],
        tls_ca=params["tls_ca"],
        upstream=Upstream(**upstream) if upstream else None,
        cluster_name=params["cluster_name"],
        replication=_login("replication_login", params["replication_login"], "replication"),
        monitoring=_login("monitoring_login", params["monitoring_login"], "monitoring"),
        slots=tuple(params["slots"]),
        slot_prefix=params["slot_prefix"],
        slot_name=params["slot_name"],
        rebuild=params["rebuild"],
        restart=params["restart"],
        locale=params["locale"],
        max_rate_kib_s=rate,
        wal_end_lsn=end,
        candidate=params["candidate"],
    )
