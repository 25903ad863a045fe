# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What a load balancer needs of the installed nginx, and which of its upstreams have to answer."""

from __future__ import annotations

from .._common.nginx.model import Build
from .._common.nginx.plan import LUA_MODULES, lacking, refuse
from .model import Wanted
from .render import COUNTRY_MODULE, MODSECURITY_MODULE, needs_lua


def missing(wanted: Wanted, build: Build) -> list[tuple[str, str, str]]:
    """Return (option, value, remedy) for each thing that is asked for and that the installed nginx cannot do."""
    found = []
    for upstream in wanted.upstreams:
        reasons, lacks = needs_lua(upstream), lacking(build, LUA_MODULES)
        if reasons and lacks:
            remedy = f"{', '.join(reasons)} need {', '.join(lacks)}, which this nginx lacks: install that, or leave them out."
            if reasons == ["runtime"]:
                remedy = (
                    f"runtime needs {', '.join(lacks)}, which this nginx lacks: install that, or set runtime to false."
                )
            found.append(("upstreams[].name", upstream.name, remedy))
    for one in wanted.virtual_servers:
        if one.modsecurity != "off":
            lacks = lacking(build, [MODSECURITY_MODULE]) + (
                [] if build.rules else ["the OWASP rules (package modsecurity-crs)"]
            )
            if lacks:
                remedy = f"it needs {', '.join(lacks)}, which this host lacks: install that, or set it to off."
                found.append(("virtual_servers[].modsecurity", one.modsecurity, remedy))
        if one.certificate:
            for argument in ("--with-http_ssl_module", "--with-http_v2_module"):
                if argument not in build.arguments:
                    found.append(("virtual_servers[].tls", one.name, f"this nginx was built without {argument[2:]}."))
    if wanted.country and wanted.country.database:
        lacks = lacking(build, [COUNTRY_MODULE])
        if lacks:
            remedy = f"it needs {lacks[0]}, which this nginx lacks: install that, or give a header of a trusted proxy."
            found.append(("country.database", wanted.country.database, remedy))
        if wanted.country.database not in build.databases:
            remedy = "this host has no such file: put a database of countries in MMDB format there first."
            found.append(("country.database", wanted.country.database, remedy))
    if wanted.trusted_proxies and "--with-http_realip_module" not in build.arguments:
        text = ", ".join(wanted.trusted_proxies)
        found.append(("trusted_proxies", text, "this nginx was built without with-http_realip_module."))
    return found


def refuse_missing(wanted: Wanted, build: Build) -> None:
    """Refuse what the installed nginx cannot do.

    :raises OptionError: naming the first option, and all of them in its ``errors``.
    """
    refuse(missing(wanted, build))
