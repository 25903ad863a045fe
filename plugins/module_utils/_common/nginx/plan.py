# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What has to be done to the nginx of a host, as a pure function of what is and what should be."""

from __future__ import annotations

import re
import typing as t

from ..errors import HeadroomError, OptionError
from .model import Build, Observed, Step

FOREIGN = {"configuration": "not written by headroom.scale"}
LUA_MODULES = ("ndk_http_module", "ngx_http_lua_module")
PACKAGES = {
    "ndk_http_module": "libnginx-mod-http-ndk",
    "ngx_http_lua_module": "libnginx-mod-http-lua",
    "ngx_http_modsecurity_module": "libnginx-mod-http-modsecurity",
    "ngx_http_geoip2_module": "libnginx-mod-http-geoip2",
}


def lacking(build: Build, modules: t.Iterable[str]) -> list[str]:
    """Return those of the modules that are not installed, each with its package."""
    return [f"{name} (package {PACKAGES[name]})" for name in modules if f"{name}.so" not in build.modules]


def refuse(missing: t.Iterable[tuple[str, str, str]]) -> None:
    """Refuse what the installed nginx cannot do, each as (option, value, remedy).

    :raises OptionError: naming the first option, and all of them in its ``errors``.
    """
    errors = [OptionError(*one) for one in missing]
    if errors:
        errors[0].result = {"errors": [error.as_dict() for error in errors[1:]]}
        raise errors[0]


def plan(
    now: Observed, files: t.Mapping[str, str], release: str, config_file: str, then: t.Mapping[str, str]
) -> tuple[Step, ...]:
    """Return the steps from what was observed to what is wanted; none when it is so already.

    :param files: what the release consists of.
    :param then: what is declared, one fact a name.
    """
    steps = changes(before(now), then)
    if now.config != files["nginx.conf"] and not steps:
        steps.append(Step("write", config_file, "it is not as this version of the collection writes it"))
    elif now.config == files["nginx.conf"] and dict(now.release) != dict(files):
        steps.append(Step("write", f"release {release}", "its files are missing or others"))
    if not now.running:
        steps.append(Step("start", "nginx", "it does not run"))
    elif steps or now.serving != release:
        serving = f"it serves release {now.serving}" if now.serving else "it serves another configuration"
        steps.append(Step("reload", "nginx", "its configuration changes" if steps else serving))
    return tuple(steps)


def before(now: Observed) -> dict[str, str]:
    """Return the facts of the configuration that is there."""
    if now.config is None:
        return {}
    return dict(now.description) or dict(FOREIGN)


def changes(was: t.Mapping[str, str], then: t.Mapping[str, str]) -> list[Step]:
    """Return one step for each fact that changes."""
    steps = []
    for name in sorted({*was, *then}):
        if name not in was:
            steps.append(Step("add", name, then[name]))
        elif name not in then:
            steps.append(Step("remove", name, was[name]))
        elif was[name] != then[name]:
            steps.append(Step("change", name, f"{was[name]} -> {then[name]}"))
    return steps


def excused(now: Observed, then: t.Mapping[str, str], kind: str) -> frozenset[str]:
    """Return what need not answer a probe: it did not before, and nothing of it changes.

    :param kind: what such a thing is called, with which its facts begin.
    """
    touched = {step.object.split()[1] for step in changes(before(now), then) if step.object.startswith(f"{kind} ")}
    return now.silent - touched


def shown(facts: t.Mapping[str, str]) -> str:
    """Return facts as the diff has them."""
    return "".join(f"{name}: {value}\n" for name, value in sorted(facts.items()))


def release_of(config: str | None) -> str:
    """Return the release that a configuration names, or nothing."""
    found = re.search(r"^# release .*/([0-9a-f]{16})$", config or "", re.MULTILINE)
    return found[1] if found else ""


def parse_build(text: str) -> Build:
    """Return what ``nginx -V`` says.

    :raises HeadroomError: when it is not the answer of nginx.
    """
    version = re.search(r"nginx version: \S*?/(\d+)\.(\d+)\.(\d+)", text)
    arguments = re.search(r"configure arguments: (.*)", text)
    if not version:
        raise HeadroomError(f"Failed to read the version of nginx: it said {text[:200]!r}. Give the program of nginx.")
    words = dict(word.partition("=")[::2] for word in (arguments[1] if arguments else "").split())
    return Build(
        tuple(map(int, version.groups())),
        frozenset(words),
        words.get("--modules-path", "/usr/lib/nginx/modules"),
        words.get("--pid-path", "/run/nginx.pid"),
    )
