# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What an instance is and what it should be. Plain data: no I/O, units in the names.

An instance is one PostgreSQL server as Debian's packages lay it out: a major version, a name, a configuration
directory ``/etc/postgresql/VERSION/NAME`` and a data directory ``/var/lib/postgresql/VERSION/NAME``.
"""

from __future__ import annotations

import dataclasses
import typing as t

FLOOR_SETTINGS = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}
"""Settings that a replica may not have lower than its primary, and their names in ``pg_controldata``."""


def lsn_to_int(lsn: str) -> int:
    """Turn PostgreSQL's ``XXXXXXXX/XXXXXXXX`` into a byte position in the WAL."""
    high, low = lsn.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def int_to_lsn(position: int) -> str:
    """Turn a byte position in the WAL into PostgreSQL's notation."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def record_end(start: int, length: int, segment_bytes: int = 16 << 20, page_bytes: int = 8192) -> int:
    """Return where a WAL record ends, as replay reports it.

    A record that crosses into a page steps over that page's header: 24 bytes, 40 on the first page of a segment
    (XLogPageHeaderData and XLogLongPageHeaderData of PostgreSQL's ``access/xlog_internal.h``).

    :param start: position of the record.
    :param length: its total length in bytes as pg_waldump prints it.
    """
    position, left = start, -(-length // 8) * 8
    while True:
        room = page_bytes - position % page_bytes
        if left <= room:
            return position + left
        left -= room
        position += room
        position += 40 if position % segment_bytes == 0 else 24


def segment_name(timeline: int, position: int, segment_bytes: int = 16 << 20) -> str:
    """Return the name of the file in ``pg_wal`` that holds a position."""
    high, low = divmod(position // segment_bytes, (1 << 32) // segment_bytes)
    return f"{timeline:08X}{high:08X}{low:08X}"


@dataclasses.dataclass(frozen=True)
class Paths:
    """Where the files of an instance are."""

    version: int
    name: str
    data: str

    @property
    def config(self) -> str:
        """The configuration directory."""
        return f"/etc/postgresql/{self.version}/{self.name}"

    @property
    def incoming(self) -> str:
        """Where a new data directory is built before it takes its place."""
        return f"{self.data}.incoming"

    @property
    def incoming_complete(self) -> str:
        """Exists once the data directory in ``incoming`` is whole: the journal entry before the swap."""
        return f"{self.data}.incoming.complete"

    @property
    def replaced(self) -> str:
        """The former data directory, kept until its successor is proven."""
        return f"{self.data}.replaced"

    @property
    def rewinding(self) -> str:
        """Exists while pg_rewind works on the data directory: found later, that directory cannot be trusted."""
        return f"{self.data}.rewinding"

    @property
    def fence(self) -> str:
        """The journal of a switchover on the primary that was fenced."""
        return f"{self.data}.fence.json"

    @property
    def standby_signal(self) -> str:
        """Its presence makes the server start as a replica."""
        return f"{self.data}/standby.signal"

    @property
    def passfile(self) -> str:
        """The password file that the WAL receiver and the clone use."""
        return f"{self.config}/replication.pgpass"

    @property
    def bin(self) -> str:
        """The directory of the server's programs."""
        return f"/usr/lib/postgresql/{self.version}/bin"

    @property
    def unit(self) -> str:
        """The systemd unit of the server."""
        return f"postgresql@{self.version}-{self.name}.service"

    @property
    def clone_unit(self) -> str:
        """The transient systemd unit in which a base backup runs, so that it outlives a lost connection."""
        return f"headroom-clone-{self.version}-{self.name}.service"


@dataclasses.dataclass(frozen=True)
class File:
    """One file of the configuration."""

    content: str
    mode: int = 0o644
    secret: bool = False


@dataclasses.dataclass(frozen=True)
class Login:
    """A login role that replication or monitoring needs."""

    name: str
    password: str = dataclasses.field(repr=False)
    purpose: str = "replication"


@dataclasses.dataclass(frozen=True)
class Upstream:
    """The server a replica streams from."""

    host: str
    port: int = 5432
    ssl_mode: str = "prefer"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the instance should be."""

    paths: Paths
    state: str = "present"
    role: str = "primary"
    port: int = 5432
    settings: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    hba: t.Sequence[t.Mapping[str, t.Any]] = ()
    tls_certificate: str | None = None
    tls_key: str | None = dataclasses.field(default=None, repr=False)
    tls_ca: str | None = None
    upstream: Upstream | None = None
    cluster_name: str | None = None
    replication: Login | None = None
    monitoring: Login | None = None
    slots: t.Sequence[str] = ()
    slot_prefix: str = "headroom_"
    slot_name: str | None = None
    rebuild: str = "never"
    restart: bool = True
    locale: str = "C.UTF-8"
    max_rate_kib_s: int | None = None
    wal_end_lsn: str | None = None
    candidate: str | None = None


@dataclasses.dataclass(frozen=True)
class UpstreamFacts:
    """What the upstream says of itself; asked only when something must be decided about the data directory."""

    system_identifier: str
    version: int
    timeline: int
    history: t.Sequence[tuple[int, int]]
    lsn: int
    data_bytes: int
    oldest_wal: int | None = None
    slot_wal_status: str | None = None


@dataclasses.dataclass(frozen=True)
class Observed:
    """What the instance is. ``None`` means that it could not be read or does not apply."""

    installed: bool = False
    files: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    modes: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    data_exists: bool = False
    data_in_use: bool = False
    config_exists: bool = False
    autostart: str | None = None
    incoming: bool = False
    incoming_complete: bool = False
    replaced: bool = False
    rewinding: bool = False
    cloning: bool = False
    fence: t.Mapping[str, t.Any] | None = None
    standby_signal: bool = False
    control: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    running: bool = False
    in_recovery: bool | None = None
    system_identifier: str | None = None
    timeline: int | None = None
    lsn: int | None = None
    streaming: bool = False
    replay_paused: bool = False
    data_bytes: int | None = None
    settings: t.Mapping[str, t.Mapping[str, t.Any]] = dataclasses.field(default_factory=dict)
    pending_restart: t.Sequence[str] = ()
    auto_settings: t.Sequence[str] = ()
    slots: t.Sequence[t.Mapping[str, t.Any]] = ()
    logins: t.Mapping[str, t.Mapping[str, t.Any]] = dataclasses.field(default_factory=dict)
    history_function: bool = False
    upstream: UpstreamFacts | None = None
    upstream_error: str | None = None
    disk_free_bytes: int | None = None

    @property
    def role(self) -> str | None:
        """``primary``, ``replica`` or None while there is no data directory."""
        if not self.data_exists:
            return None
        if self.running and self.in_recovery is not None:
            return "replica" if self.in_recovery else "primary"
        return "replica" if self.standby_signal else "primary"


@dataclasses.dataclass(frozen=True)
class Step:
    """One change that a plan makes, in words a person reads."""

    action: str
    object: str
    why: str
    detail: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, t.Any]:
        """Return the step as a module's return value."""
        return {"action": self.action, "object": self.object, "why": self.why}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps in order, and what they leave for later."""

    steps: t.Sequence[Step] = ()
    restart_required: t.Sequence[str] = ()
    warnings: t.Sequence[str] = ()
    slots_in_use: t.Sequence[str] = ()
