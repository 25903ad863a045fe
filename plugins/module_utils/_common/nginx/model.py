# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What is seen of the nginx of a host, whatever it is for."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Management:
    """Where state is read and changed."""

    address: str = "127.0.0.1"
    port: int = 8181
    allow: tuple[str, ...] = ()


@dataclass(frozen=True)
class Build:
    """What the installed nginx is."""

    version: tuple[int, ...]
    arguments: frozenset[str]
    modules_directory: str
    pid_file: str
    # names of the files in the directory of modules
    modules: frozenset[str] = frozenset()
    # whether the rules of ModSecurity are on the host
    rules: bool = False
    # those of the wanted databases of countries that are on the host
    databases: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Observed:
    """What was seen on the host; ``None`` is what is not there."""

    build: Build | None
    config: str | None = None
    last_good: str | None = None
    # names of hosts to their addresses
    addresses: t.Mapping[str, str] = field(default_factory=dict)
    # file name to text of the release that the configuration names
    release: t.Mapping[str, str] = field(default_factory=dict, repr=False)
    description: t.Mapping[str, str] = field(default_factory=dict)
    running: bool = False
    # release that answers at the management address
    serving: str = ""
    # what answered no probe before anything was changed
    silent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Step:
    """One thing to be done."""

    action: str
    object: str
    why: str

    def as_dict(self) -> dict[str, str]:
        """Return it as the module's result has it."""
        return {"action": self.action, "object": self.object, "why": self.why}
