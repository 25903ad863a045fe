# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What is on the host of a load balancer, and which of its upstreams answer."""

from __future__ import annotations

import os
import typing as t
from dataclasses import replace

from .._common.nginx import observe as host
from .._common.nginx.model import Observed
from .model import Wanted
from .render import RULES, probe_of


def silent(wanted: Wanted, names: t.Collection[str], release: str = "") -> frozenset[str]:
    """Return those of the named upstreams that do not answer, where it matters by workers of a release."""
    probes = {upstream.name: probe_of(upstream) for upstream in wanted.upstreams if upstream.name in names}
    return host.silent_of(
        probes, lambda name: host.answers(wanted.management, name, probes[name].statuses, probes[name].body, release)
    )


def observe(wanted: Wanted, program: str, config_file: str) -> Observed:
    """Look at the host; nothing is changed."""
    build = host.build_of(program)
    if build:
        database = wanted.country.database if wanted.country else ""
        build = replace(
            build,
            rules=all(os.path.exists(os.path.dirname(path)) for path in RULES),
            databases=frozenset({database} if os.path.isfile(database) else ()),
        )
    addresses = {
        server.host: host.address_of("upstreams[].servers[].address", server.name, server.host, server.port)
        for upstream in wanted.upstreams
        for server in upstream.servers
    }
    return host.observe(
        build,
        wanted.management,
        config_file,
        addresses,
        lambda facts: silent(wanted, {name.split()[1] for name in facts if name.startswith("upstream ")}),
    )
