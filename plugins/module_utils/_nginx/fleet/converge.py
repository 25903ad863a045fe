# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``nginx_upstream``: all load balancers asked at once, told at once, and asked again."""

from __future__ import annotations

import http.client
import json
import time
import typing as t
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from ..._common.argspec import ArgumentSpec
from ..._common.errors import HeadroomError, OptionError
from .plan import Seen, Wanted, after, find, plan, shown

POLL_S = 0.2
WORKERS = 32
# answers of a load balancer with a thousand servers fit well
ANSWER_BYTES = 8 * 1024 * 1024
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fleet_spec() -> ArgumentSpec:
    """Return the options that say which load balancers are meant."""
    balancer = {
        "name": {"type": "str", "required": True},
        "host": {"type": "str", "required": True},
        "port": {"type": "int", "default": 8181},
    }
    return ArgumentSpec(
        {
            "balancers": {"type": "list", "elements": "dict", "required": True, "options": balancer},
            "timeout_s": {"type": "float", "default": 5.0},
        }
    )


def upstream_spec() -> ArgumentSpec:
    """Return the module's options."""
    return fleet_spec().merge(
        ArgumentSpec(
            {
                "upstream": {"type": "str"},
                "server": {"type": "str"},
                "state": {"type": "str", "choices": ["active", "drained"]},
                "weight": {"type": "int"},
                "wait_s": {"type": "float", "default": 60.0},
            },
            required_together=[("upstream", "server")],
            required_by={"state": ("server",), "weight": ("server",)},
        )
    )


class Fleet:
    """The management addresses of all load balancers."""

    def __init__(self, balancers: t.Mapping[str, str], timeout_s: float) -> None:
        """Take name to ``HOST:PORT``."""
        self.balancers = balancers
        self.timeout_s = timeout_s

    def ask(self, name: str, path: str, fields: t.Mapping[str, str] | None = None) -> t.Any:
        """Ask one load balancer, or tell it something.

        :raises HeadroomError: naming the load balancer and why it gave no answer.
        """
        where = self.balancers[name]
        data = urllib.parse.urlencode(fields).encode() if fields is not None else None
        request = urllib.request.Request(f"http://{where}{path}", data=data, headers={"X-Headroom": "1"})
        try:
            with OPENER.open(request, timeout=self.timeout_s) as answer:
                return json.loads(answer.read(ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                hint = {
                    403: "Add this host to what its management address allows.",
                    404: "None of its upstreams has 'runtime'.",
                }.get(error.code, "Look at its error log.")
                raise self._failed(name, f"status {error.code}. {hint}") from error
        except http.client.HTTPException as error:
            raise self._failed(name, "what answers there speaks no whole HTTP. Look at host and port.") from error
        except (OSError, ValueError) as error:
            cause = getattr(error, "reason", error)
            raise self._failed(name, f"{cause}. Bring it back, or leave it out.") from error

    def _failed(self, name: str, cause: str) -> HeadroomError:
        return HeadroomError(
            f"Failed to ask {name} on {self.balancers[name]}: {cause}", code="no_answer", balancer=name
        )

    def all(self, work: t.Callable[[str], t.Any], names: t.Iterable[str]) -> dict[str, t.Any]:
        """Do something with each of the named load balancers at once.

        :raises HeadroomError: the first one, with the others in its ``errors``.
        """

        def caught(name: str) -> t.Any:
            try:
                return work(name)
            except HeadroomError as error:
                return error

        names = list(names)
        with ThreadPoolExecutor(max_workers=WORKERS) as pool:
            found = dict(zip(names, pool.map(caught, names), strict=True))
        errors = [one for one in found.values() if isinstance(one, HeadroomError)]
        if errors:
            errors[0].result = {"errors": [error.as_dict() for error in errors[1:]]}
            raise errors[0]
        return found

    def look(self) -> Seen:
        """Return what all load balancers say."""

        def upstreams(name: str) -> t.Any:
            answer = self.ask(name, "/upstreams")
            if not isinstance(answer, dict) or "upstreams" not in answer:
                raise self._failed(name, "no load balancer of this collection answers there. Look at host and port.")
            return answer["upstreams"]

        return self.all(upstreams, self.balancers)


def parse_fleet(params: t.Mapping[str, t.Any]) -> Fleet:
    """Check the options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    found: dict[str, str] = {}
    if not params["balancers"]:
        raise OptionError("balancers", [], "give at least one load balancer.")
    for one in params["balancers"]:
        if one["name"] in found:
            raise OptionError("balancers[].name", one["name"], "it is there twice; give each once.")
        if not 1 <= one["port"] <= 65535:
            raise OptionError("balancers[].port", one["port"], "give a TCP port from 1 to 65535.")
        host = f"[{one['host']}]" if ":" in one["host"] else one["host"]
        if not host or any(c in host for c in "/@?# \t\n"):
            raise OptionError("balancers[].host", one["host"], "give an address or the name of a host.")
        found[one["name"]] = f"{host}:{one['port']}"
    if params.get("weight") is not None and not 0 <= params["weight"] <= 1000:
        raise OptionError("weight", params["weight"], "give a number from 1 to 1000, or 0 for the declared one.")
    for option, least, most in (("wait_s", 0, 86400), ("timeout_s", 0.1, 300)):
        if option in params and not least <= params[option] <= most:
            raise OptionError(option, params[option], f"give a number of seconds up to {most}.")
    return Fleet(found, params["timeout_s"])


def converge(params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Bring one server on all load balancers to what is asked, or only look; return the module's result."""
    fleet = parse_fleet(params)
    seen = fleet.look()
    result: dict[str, t.Any] = {"changed": False, "plan": [], "diff": {"before": "", "after": ""}}
    if params["server"]:
        drained = None if params["state"] is None else params["state"] == "drained"
        wanted = Wanted(params["upstream"], params["server"], drained, params["weight"])
        changes = plan(seen, wanted)
        result["changed"] = bool(changes)
        result["plan"] = [change.step.as_dict() for change in changes]
        result["diff"] = {
            "before": shown(find(seen, wanted.upstream, wanted.server)),
            "after": shown(after(seen, wanted)),
        }
        if not check_mode:
            told: list[str] = []
            try:
                fields = {change.balancer: change.fields for change in changes}

                def tell(name: str) -> None:
                    about = {"upstream": wanted.upstream, "server": wanted.server}
                    fleet.ask(name, "/servers", {**about, **fields[name]})
                    told.append(name)

                fleet.all(tell, fields)
                seen = _settled(fleet, wanted, params["wait_s"])
            except HeadroomError as error:
                error.result = {**error.result, **result, "changed": bool(told), "told": sorted(told)}
                raise
    result["balancers"] = [{"name": name, "upstreams": list(upstreams)} for name, upstreams in sorted(seen.items())]
    return result


def _settled(fleet: Fleet, wanted: Wanted, wait_s: float) -> Seen:
    """Look until a drained server has nothing in flight any more; return what was seen last.

    :raises HeadroomError: when it has not in time, or is not as it was told.
    """
    deadline, idle = time.monotonic() + wait_s, 0
    while True:
        seen = fleet.look()
        changes = plan(seen, wanted)
        if changes:
            raise HeadroomError(
                f"Failed to change {wanted.server} on {changes[0].balancer}: it is not as it was told "
                f"({changes[0].step.why}). Somebody else changes it too; run the task again.",
                code="not_kept",
            )
        busy = {
            name: one["active"] for name, one in find(seen, wanted.upstream, wanted.server).items() if one["active"]
        }
        # a request that was sent on while the server was drained is counted by the second look
        idle = 0 if busy else idle + 1
        if not wanted.drained or idle == 2:
            return seen
        if busy and time.monotonic() > deadline:
            figures = ", ".join(f"{count} at {name}" for name, count in sorted(busy.items()))
            raise HeadroomError(
                f"Failed to drain {wanted.server} of {wanted.upstream} within {wait_s:g} s: it still has requests ({figures}). "
                "It gets no new ones; run the task again to wait on, or give wait_s more.",
                code="still_active",
                active=busy,
            )
        time.sleep(POLL_S)
