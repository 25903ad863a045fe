# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``nginx_config``: observed, planned, put in force and looked at again."""

from __future__ import annotations

import typing as t

from .._common.errors import HeadroomError
from .._common.nginx.apply import Target, check_aside, put_in_force
from .._common.nginx.model import Build
from .._common.nginx.observe import base_of
from .._common.nginx.plan import before, plan, shown
from .observe import observe, silent
from .options import parse_wanted
from .plan import excused, refuse_missing
from .render import facts, needs_lua, render


def converge(params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Bring the nginx of this host to what is declared; return the module's result."""
    wanted = parse_wanted(params)
    program, config_file = params["program"], params["config_file"]
    now = observe(wanted, program, config_file)
    if now.build is None and not check_mode:
        raise HeadroomError(f"Failed to find nginx at {program}. Install it, or name its program in 'program'.")
    # where nothing is installed yet, check mode takes nginx to be as the distribution has it
    build = now.build or Build((1, 26, 0), frozenset(), "/usr/lib/nginx/modules", "/run/nginx.pid")
    if now.build:
        refuse_missing(wanted, build)
    base, then = base_of(config_file), facts(wanted)
    release, files = render(wanted, build, now.addresses, base)
    steps = plan(now, files, release, config_file, then)
    result = {
        "changed": bool(steps),
        "release": release,
        "plan": [step.as_dict() for step in steps],
        "upstreams": [
            {"name": one.name, "balanced_by": "lua" if needs_lua(one) else "nginx", "reasons": needs_lua(one)}
            for one in wanted.upstreams
        ],
        "nginx_version": ".".join(map(str, build.version)) if now.build else "",
        "silent": sorted(now.silent),
        "diff": {
            "before": shown(before(now)),
            "after": shown(then),
            "before_header": config_file,
            "after_header": config_file,
        },
    }
    try:
        if check_mode:
            # a certificate that is to be made before the run is not there to be checked
            complete = all("-----END" in one.certificate for one in wanted.virtual_servers if one.certificate)
            if steps and now.build and complete:
                check_aside(program, lambda aside: render(wanted, build, now.addresses, aside))
        elif steps:
            asked = {upstream.name for upstream in wanted.upstreams} - excused(now, then)
            put_in_force(
                Target(
                    wanted.management,
                    release,
                    files,
                    program,
                    config_file,
                    build.pid_file,
                    params["wait_s"],
                    lambda: silent(wanted, asked),
                    "upstream",
                ),
                now,
            )
    except HeadroomError as error:
        error.result = {"changed": False, **error.result, "plan": result["plan"], "diff": result["diff"]}
        raise
    return result
