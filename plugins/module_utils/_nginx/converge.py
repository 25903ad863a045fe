# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``nginx_config``: observed, planned, put in force and looked at again."""

from __future__ import annotations

import os
import typing as t
from dataclasses import replace

from .._common.nginx.converge import EXPECTED, Declared, require
from .._common.nginx.converge import converge as converge_host
from .observe import observe, silent
from .options import parse_wanted
from .plan import refuse_missing
from .render import facts, needs_lua, render


def converge(params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Bring the nginx of this host to what is declared; return the module's result."""
    wanted = parse_wanted(params)
    now = observe(wanted, params["program"], params["config_file"])
    require(now.build, params["program"], check_mode)
    build = now.build or EXPECTED
    if now.build:
        refuse_missing(wanted, build)

    def rendered(base: str) -> tuple[str, dict[str, str]]:
        return render(wanted, build, now.addresses, base)

    def aside(base: str) -> tuple[str, dict[str, str]]:
        # nginx makes its pid file when it only checks
        return render(wanted, replace(build, pid_file=os.path.join(base, "nginx.pid")), now.addresses, base)

    declared = Declared(
        wanted.management,
        facts(wanted),
        rendered,
        aside,
        [one.certificate for one in wanted.virtual_servers if one.certificate],
        frozenset(upstream.name for upstream in wanted.upstreams),
        lambda names, release: silent(wanted, names, release),
        "upstream",
    )
    return {
        **converge_host(params, check_mode, now, build, declared),
        "upstreams": [
            {"name": one.name, "balanced_by": "lua" if needs_lua(one) else "nginx", "reasons": needs_lua(one)}
            for one in wanted.upstreams
        ],
    }
