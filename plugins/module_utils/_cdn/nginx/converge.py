# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``nginx_edge``: observed, planned, put in force and looked at again."""

from __future__ import annotations

import functools
import os
import shutil
import typing as t
from dataclasses import replace

from ..._common.errors import HeadroomError, OptionError
from ..._common.nginx.converge import EXPECTED, Declared, require
from ..._common.nginx.converge import converge as converge_host
from ..._common.nginx.model import Build
from ..._common.nginx.observe import address_of, answers, build_of, observe, silent_of
from ..._common.nginx.plan import LUA_MODULES, lacking, refuse
from .model import Edge
from .options import parse_edge
from .render import facts, render


def converge(params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Bring the nginx of this host to what is declared; return the module's result."""
    edge = parse_edge(params)
    found = build_of(params["program"])
    require(found, params["program"], check_mode)
    addresses = {
        one.domain_name: address_of(f"origins[{index}].domain_name", one.domain_name, one.domain_name, one.https_port)
        for index, one in enumerate(edge.cdn.origins)
    }
    names = frozenset(origin.name for origin in edge.cdn.origins)
    now = observe(
        found,
        edge.host.management,
        params["config_file"],
        addresses,
        lambda was: silent(edge, {name.split()[1] for name in was if name.startswith("origin ")} & names),
    )
    build = found or EXPECTED
    if found:
        refuse(missing(edge, build))
    declared = Declared(
        edge.host.management,
        facts(edge),
        lambda base: render(edge, build, addresses, base),
        functools.partial(_aside, edge, build, addresses),
        [edge.certificate] if edge.certificate else [],
        names,
        lambda asked, release: silent(edge, asked, release),
        "origin",
        lambda: _make_directory(edge),
    )
    return {**converge_host(params, check_mode, now, build, declared), "region": edge.region}


def missing(edge: Edge, build: Build) -> list[tuple[str, str, str]]:
    """Return (option, value, remedy) for each thing that is asked for and that the installed nginx cannot do."""
    found = []
    lacks = lacking(build, LUA_MODULES)
    if lacks:
        found.append(("program", build.modules_directory, f"an edge needs {', '.join(lacks)}, which this nginx lacks."))
    needed = {"tls": "--with-http_ssl_module"} if edge.certificate else {}
    if edge.certificate and edge.cdn.http_version == "http2":
        needed["http_version"] = "--with-http_v2_module"
    if edge.host.trusted_proxies:
        needed["trusted_proxies"] = "--with-http_realip_module"
    for option, argument in needed.items():
        if argument not in build.arguments:
            found.append((option, edge.cdn.name, f"this nginx was built without {argument[2:]}."))
    return found


def silent(edge: Edge, names: t.Collection[str], release: str = "") -> frozenset[str]:
    """Return those of the named origins that do not answer, or with nothing but errors of their own."""
    return silent_of(names, lambda name: answers(edge.host.management, name, range(100, 500), release=release))


def _aside(edge: Edge, build: Build, addresses: t.Mapping[str, str], base: str) -> tuple[str, dict[str, str]]:
    """Render for a place aside, with a cache and a pid file of its own, since nginx makes both when it only checks."""
    directory = os.path.join(base, "cache")
    os.mkdir(directory)
    return render(edge, replace(build, pid_file=os.path.join(base, "nginx.pid")), addresses, base, directory)


def _make_directory(edge: Edge) -> None:
    """Make the directory in which nginx keeps answers and notes purges."""
    directory = edge.cache.directory
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        shutil.chown(directory, edge.host.user)
    except LookupError as error:
        raise OptionError("user", edge.host.user, "give the name of a user of the host.") from error
    except OSError as error:
        raise HeadroomError(
            f"Failed to make {directory}: {error.strerror}. Run the task as root, or give another cache.directory."
        ) from error
