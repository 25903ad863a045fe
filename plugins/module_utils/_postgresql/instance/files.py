# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The files of an instance from its description. Pure."""

from __future__ import annotations

import re
import typing as t

from .model import FLOOR_SETTINGS, File, Observed, Wanted

HEADER = "# Written whole by headroom.scale; a change made here is undone by the next run.\n"


def quote(value: t.Any) -> str:
    """Return a value as ``postgresql.conf`` writes it: numbers bare, everything else in single quotes."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return str(value)
    return "'" + str(value).replace("\\", "\\\\").replace("'", "''") + "'"


def parse(text: str) -> dict[str, str]:
    """Return name to raw value of a ``postgresql.conf``; the last one wins, as it does for the server."""
    values = {}
    for line in text.split("\n"):
        name, separator, value = line.partition("=")
        name = name.strip().lower()
        if not separator or not name or name.startswith("#"):
            continue
        value = value.strip()
        quoted = re.match(r"'((?:[^'\\]|\\.|'')*)", value)
        value = re.sub(r"\\(.)|'(')", r"\1\2", quoted[1]) if quoted else value.partition("#")[0].strip()
        values[name] = value
    return values


def conninfo(pairs: t.Mapping[str, t.Any]) -> str:
    """Return a libpq connection string with every value quoted."""
    return " ".join(
        "{}='{}'".format(name, str(value).replace("\\", "\\\\").replace("'", "\\'")) for name, value in pairs.items()
    )


def upstream_conninfo(wanted: Wanted) -> dict[str, t.Any]:
    """Return how this instance connects to its upstream; the password stays in the password file."""
    if wanted.upstream is None or wanted.replication is None:
        return {}
    pairs: dict[str, t.Any] = {
        "host": wanted.upstream.host,
        "port": wanted.upstream.port,
        "user": wanted.replication.name,
        "passfile": wanted.paths.passfile,
        "sslmode": wanted.upstream.ssl_mode,
        "connect_timeout": 10,
    }
    if wanted.tls_ca:
        pairs["sslrootcert"] = f"{wanted.paths.config}/tls/ca.crt"
    if wanted.cluster_name:
        pairs["application_name"] = wanted.cluster_name
    return pairs


def floors(wanted: Wanted, observed: Observed) -> dict[str, int]:
    """Return the settings that a replica keeps higher than declared, since its primary last had them that high."""
    if wanted.role != "replica":
        return {}
    kept = {}
    for name, control_name in FLOOR_SETTINGS.items():
        floor, declared = observed.control.get(control_name), str(wanted.settings.get(name, ""))
        if floor is not None and declared.isdigit() and int(declared) < int(floor):
            kept[name] = int(floor)
    return kept


def settings(wanted: Wanted, observed: Observed) -> dict[str, t.Any]:
    """Return all settings of ``postgresql.conf``: the declared ones and those that follow from the description.

    A replica keeps the five settings of FLOOR_SETTINGS at least as high as its primary last had them: with a lower
    value it would refuse to start. They come down in a later run, once the primary's new value has been replayed.
    """
    paths = wanted.paths
    values: dict[str, t.Any] = {
        "data_directory": paths.data,
        "hba_file": f"{paths.config}/pg_hba.conf",
        "ident_file": f"{paths.config}/pg_ident.conf",
        "external_pid_file": f"/run/postgresql/{paths.version}-{paths.name}.pid",
        "unix_socket_directories": "/run/postgresql",
        "port": wanted.port,
        "hot_standby": True,
        "password_encryption": "scram-sha-256",
    }
    if wanted.cluster_name:
        values["cluster_name"] = wanted.cluster_name
    if wanted.tls_certificate:
        values["ssl"] = True
        values["ssl_cert_file"] = f"{paths.config}/tls/server.crt"
        values["ssl_key_file"] = f"{paths.config}/tls/server.key"
        values["ssl_min_protocol_version"] = "TLSv1.2"
        if wanted.tls_ca:
            values["ssl_ca_file"] = f"{paths.config}/tls/ca.crt"
    else:
        values["ssl"] = False
    values.update(wanted.settings)
    if wanted.role == "replica":
        values["primary_conninfo"] = conninfo(upstream_conninfo(wanted))
        if wanted.slot_name:
            values["primary_slot_name"] = wanted.slot_name
        values.update(floors(wanted, observed))
    return values


def hba_line(entry: t.Mapping[str, t.Any]) -> str:
    """Return one line of ``pg_hba.conf``."""
    fields = [entry["type"], entry["database"], entry["user"]]
    if entry["type"] != "local":
        fields.append(entry["address"])
    fields.append(entry["method"])
    if entry.get("options"):
        fields.append(entry["options"])
    return "  ".join(f"{field:<16}" for field in fields).rstrip()


def files(wanted: Wanted, observed: Observed) -> dict[str, File]:
    """Return path to file for the whole configuration directory."""
    config = wanted.paths.config
    conf = "".join(f"{name} = {quote(value)}\n" for name, value in sorted(settings(wanted, observed).items()))
    hba = [{"type": "local", "database": "all", "user": "postgres", "method": "peer"}, *wanted.hba]
    result = {
        f"{config}/postgresql.conf": File(HEADER + conf),
        f"{config}/pg_hba.conf": File(HEADER + "".join(hba_line(entry) + "\n" for entry in hba), 0o640),
        f"{config}/pg_ident.conf": File(HEADER, 0o640),
        f"{config}/pg_ctl.conf": File(HEADER + "pg_ctl_options = ''\n"),
        f"{config}/environment": File(HEADER),
        f"{config}/start.conf": File("auto\n"),
    }
    if wanted.tls_certificate:
        result[f"{config}/tls/server.crt"] = File(wanted.tls_certificate)
        result[f"{config}/tls/server.key"] = File(wanted.tls_key or "", 0o600, secret=True)
    if wanted.tls_ca:
        result[f"{config}/tls/ca.crt"] = File(wanted.tls_ca)
    if wanted.replication:
        escaped = [
            part.replace("\\", "\\\\").replace(":", "\\:")
            for part in (wanted.replication.name, wanted.replication.password)
        ]
        result[wanted.paths.passfile] = File(f"*:*:*:{escaped[0]}:{escaped[1]}\n", 0o600, secret=True)
    return result
