# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of a module that keeps the nginx of a host: planned from what was seen, put in force and looked at again."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ..errors import HeadroomError
from .apply import Target, check_aside, put_in_force
from .model import Build, Management, Observed
from .observe import base_of
from .plan import before, excused, plan, shown

# where nothing is installed yet, check mode takes nginx to be as the distribution has it
EXPECTED = Build((1, 26, 0), frozenset(), "/usr/lib/nginx/modules", "/run/nginx.pid")


def require(build: Build | None, program: str, check_mode: bool) -> None:
    """Require nginx where something is to be done.

    :raises HeadroomError: when it is not installed.
    """
    if build is None and not check_mode:
        raise HeadroomError(f"Failed to find nginx at {program}. Install it, or name its program in 'program'.")


@dataclass(frozen=True)
class Declared:
    """What a module wants of the nginx of its host."""

    management: Management
    facts: t.Mapping[str, str]
    # the release and its files for a directory of releases, and for one aside where nginx only checks them
    render: t.Callable[[str], tuple[str, dict[str, str]]]
    render_aside: t.Callable[[str], tuple[str, dict[str, str]]]
    # of certificates; one that is to be made before the run is not there to be checked
    certificates: t.Sequence[str]
    # what has to answer a probe, which of it does not (of these, by workers of this release), and what such a thing is called
    probed: frozenset[str]
    silent: t.Callable[[t.Collection[str], str], frozenset[str]]
    kind: str
    prepare: t.Callable[[], None] = lambda: None


def converge(
    params: t.Mapping[str, t.Any], check_mode: bool, now: Observed, build: Build, declared: Declared
) -> dict[str, t.Any]:
    """Bring the nginx of this host to what is declared; return what modules of this kind have in their results.

    :param build: what is installed, or what check mode takes for it.
    """
    program, config_file = params["program"], params["config_file"]
    release, files = declared.render(base_of(config_file))
    steps = plan(now, files, release, config_file, declared.facts)
    result = {
        "changed": bool(steps),
        "release": release,
        "plan": [step.as_dict() for step in steps],
        "nginx_version": ".".join(map(str, build.version)) if now.build else "",
        "silent": sorted(now.silent),
        "diff": {
            "before": shown(before(now)),
            "after": shown(declared.facts),
            "before_header": config_file,
            "after_header": config_file,
        },
    }
    try:
        if check_mode:
            if steps and now.build and all("-----END" in one for one in declared.certificates):
                check_aside(program, declared.render_aside)
        elif steps:
            declared.prepare()
            asked = declared.probed - excused(now, declared.facts, declared.kind)
            put_in_force(
                Target(
                    declared.management,
                    release,
                    files,
                    program,
                    config_file,
                    build.pid_file,
                    params["wait_s"],
                    lambda: declared.silent(asked, release),
                    declared.kind,
                ),
                now,
            )
    except HeadroomError as error:
        error.result = {"changed": False, **error.result, "plan": result["plan"], "diff": result["diff"]}
        raise
    return result
