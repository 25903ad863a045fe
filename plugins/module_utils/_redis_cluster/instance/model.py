# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What an instance on a host is, what it should be, and where its files lie. Pure."""

from __future__ import annotations

import dataclasses
import re
import typing as t
from dataclasses import dataclass, field

# a server takes these at its start alone, as what it does not tell (loadmodule, rename-command, include); the others with
# CONFIG SET (redis 7.0 to 8.0, valkey 8.1)
AT_START_ONLY = frozenset(
    {
        "aclfile",
        "always-show-logo",
        "aof-rewrite-cpulist",
        "aof_rewrite_cpulist",
        "appenddirname",
        "appendfilename",
        "bgsave-cpulist",
        "bgsave_cpulist",
        "bio-cpulist",
        "bio_cpulist",
        "cluster-config-file",
        "cluster-enabled",
        "cluster-port",
        "daemonize",
        "databases",
        # protected: only a server that was told so at its start lets them be set
        "dbfilename",
        "dir",
        "disable-thp",
        "enable-debug-command",
        "enable-module-command",
        "enable-protected-configs",
        "io-threads",
        "io-threads-do-reads",
        "logfile",
        "pidfile",
        "rdbchecksum",
        "rdma-completion-vector",
        "rdma-rx-size",
        "server-cpulist",
        "server_cpulist",
        "set-proc-title",
        "socket-mark-id",
        "supervised",
        "syslog-enabled",
        "syslog-facility",
        "syslog-ident",
        "tcp-backlog",
        "unixsocket",
        "unixsocketgroup",
        "unixsocketperm",
    }
)
# names that a server has for the same directive: the one it was given and the one it writes
SYNONYMS = {"masterauth": "primaryauth", "masteruser": "primaryuser"}
SECRET = frozenset({"masterauth", "primaryauth", "requirepass", "tls-key-file-pass", "tls-client-key-file-pass"})
MASK = "********"


def canonical(name: str) -> str:
    """Return the one name under which a directive is compared: servers write some under another one than they were given."""
    lowered = name.lower()
    return SYNONYMS.get(lowered, lowered.replace("slave", "replica"))


@dataclass(frozen=True)
class Engine:
    """The names that a distribution gives to the parts of a server."""

    name: str

    @property
    def program(self) -> str:
        """The server's program."""
        return f"/usr/bin/{self.name}-server"

    @property
    def config_directory(self) -> str:
        """Where its configuration lies."""
        return f"/etc/{self.name}"

    @property
    def drop_in(self) -> str:
        """What is changed of its unit."""
        return f"/etc/systemd/system/{self.name}-server@.service.d/headroom.conf"


@dataclass(frozen=True)
class Paths:
    """Where the files of one instance lie: it is named by its port."""

    engine: Engine
    port: int

    @property
    def unit(self) -> str:
        """Name of its systemd unit."""
        return f"{self.engine.name}-server@{self.port}.service"

    @property
    def config(self) -> str:
        """Its configuration file."""
        return f"{self.engine.config_directory}/{self.engine.name}-{self.port}.conf"

    @property
    def users(self) -> str:
        """Its file of users."""
        return f"{self.engine.config_directory}/users-{self.port}.acl"

    def tls(self, part: str) -> str:
        """Its copy of a PEM file: ``certificate``, ``key`` or ``ca``."""
        return f"{self.engine.config_directory}/tls-{self.port}/{part}.pem"

    @property
    def data(self) -> str:
        """Its data directory."""
        return f"/var/lib/{self.engine.name}/{self.port}"

    @property
    def socket(self) -> str:
        """The socket that the module speaks to it through."""
        return f"/run/{self.engine.name}-{self.port}/{self.engine.name}.sock"


@dataclass(frozen=True)
class User:
    """A user of the server: what it may do, and the digests of the passwords that let it in."""

    name: str
    rules: str
    password_sha256: str | None = None
    former_password_sha256: str | None = None
    # more rules by the version that is the first to know them
    rules_since: tuple[tuple[str, str], ...] = ()

    def at(self, version: str | None) -> User:
        """Return the user as a server of a version is told of it."""
        more = [rules for since, rules in self.rules_since if version and _numbers(since) <= _numbers(version)]
        return dataclasses.replace(self, rules=" ".join([self.rules, *more]).strip(), rules_since=())

    def words(self) -> list[str]:
        """Return what makes the user, as arguments; a selector in parentheses is one of them."""
        digests = [digest for digest in (self.password_sha256, self.former_password_sha256) if digest]
        login = ["on", *(f"#{digest}" for digest in digests)] if self.password_sha256 else ["off"]
        return ["reset", *login, *re.findall(r"\([^)]*\)|\S+", self.rules)]

    def line(self) -> str:
        """Return the user as a line of the file of users."""
        return " ".join(["user", self.name, *self.words()])


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


@dataclass(frozen=True)
class Wanted:
    """One declared instance. ``settings`` are directives by name."""

    paths: Paths
    settings: t.Mapping[str, str]
    users: tuple[User, ...] = ()
    pem: t.Mapping[str, str] = field(default_factory=dict)
    may_restart: bool = False

    def at(self, version: str | None) -> Wanted:
        """Return what is wanted of a server of a version."""
        return dataclasses.replace(self, users=tuple(user.at(version) for user in self.users))


@dataclass(frozen=True)
class Observed:
    """What is there of one instance. ``None`` means that it could not be read or does not apply."""

    config: str | None = None
    users: str | None = None
    pem: t.Mapping[str, str] = field(default_factory=dict)
    data_exists: bool = False
    enabled: bool = False
    running: bool = False
    # directives by name, as the running server has them
    live: t.Mapping[str, str] = field(default_factory=dict)
    # users by name, as the running server has them, what it makes of those declared, and why it refuses one
    live_users: t.Mapping[str, t.Any] = field(default_factory=dict)
    meant_users: t.Mapping[str, t.Any] = field(default_factory=dict)
    refused_users: t.Mapping[str, str] = field(default_factory=dict)
    # whether the running server shows the certificate that is declared; None where it cannot be seen
    certificate_shown: bool | None = None
    running_version: str | None = None
    installed_version: str | None = None
    # whether the file of the running program was replaced since its start, by an update of the same version too
    program_replaced: bool = False


@dataclass(frozen=True)
class Step:
    """One change, in words that a person reads."""

    action: str
    object: str
    why: str
    value: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return the step as a module's return value, without values: some are secret."""
        return {"action": self.action, "object": self.object, "why": self.why}
