# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""An edge: a host with nginx that serves a CDN's description in one region. Pure data."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ..._common.nginx.options import Host
from ..model import Cdn


@dataclass(frozen=True)
class Cache:
    """Where answers are kept."""

    directory: str
    size_mb: int
    inactive_s: int
    stale_s: int


@dataclass(frozen=True)
class Country:
    """How a viewer's country is known: by a header of a trusted proxy, or by networks."""

    header: str = ""
    networks: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Edge:
    """What is declared of an edge."""

    cdn: Cdn
    region: str
    http_port: int
    https_port: int
    internal_port: int
    certificate: str
    key: str = field(repr=False)
    tls12: bool
    cache: Cache
    country: Country
    purge_allow: tuple[str, ...]
    origin_ca_certs: str
    host: Host

    @property
    def targets(self) -> tuple[str, ...]:
        """Return what requests are sent to: the origins, and then the groups."""
        return (*(origin.name for origin in self.cdn.origins), *(group.name for group in self.cdn.groups))

    def schemes(self, protocol_policy: str) -> t.Sequence[str]:
        """Return the schemes that an origin may be asked with."""
        return {"https-only": ("https",), "http-only": ("http",)}.get(protocol_policy, ("http", "https"))
