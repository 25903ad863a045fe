# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``hpa_info``: autoscalers and their events are read, and told in plain words."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ..._common.argspec import ArgumentSpec
from ..._common.errors import OptionError
from .client import Client, Refused
from .connection import Access, connection_spec, parse_access
from .history import current_metrics, explain, problems, state_of, summarise
from .model import complete
from .observe import hpas_path
from .validate import check_name, check_namespace


def info_spec() -> ArgumentSpec:
    """Return the module's options."""
    own = {
        "name": {"type": "str"},
        "namespace": {"type": "str", "default": "default"},
        "window_s": {"type": "float", "default": 3600.0},
    }
    return connection_spec().merge(ArgumentSpec(own))


@dataclass(frozen=True)
class Options:
    """The module's options, checked; without a name it is all HPAs of the namespace."""

    name: str | None
    namespace: str
    window_s: float
    access: Access = field(repr=False)


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types.

    :raises HeadroomError: naming the option, its value and what to give instead.
    """
    if params["name"] is not None:
        check_name("name", params["name"])
    check_namespace("namespace", params["namespace"])
    if not 1 <= params["window_s"] <= 366 * 86400:
        raise OptionError("window_s", params["window_s"], "give a number of seconds from 1 to 31622400.")
    return Options(params["name"], params["namespace"], params["window_s"], parse_access(params))


def look(options: Options) -> dict[str, t.Any]:
    """Read the autoscalers and their events and return the result.

    :raises HeadroomError: when the autoscalers cannot be read.
    """
    namespace, not_read = options.namespace, {}
    with Client(options.access) as client:
        if options.name is None:
            hpas = client.list(hpas_path(namespace), f"list the HPAs of {namespace}")
        else:
            found = client.find(f"{hpas_path(namespace)}/{options.name}", f"read HPA {namespace}/{options.name}")
            hpas = [] if found is None else [found]
        events: list[dict[str, t.Any]] | None = []
        if hpas:
            chosen = "involvedObject.kind=HorizontalPodAutoscaler"
            if options.name is not None:
                chosen += f",involvedObject.name={options.name}"
            path = f"/api/v1/namespaces/{namespace}/events"
            try:
                events = client.list(path, f"list the events of {namespace}", fieldSelector=chosen)
            except Refused as error:
                not_read["events"], events = str(error), None
        now_s = client.now_s()
    told = [
        _tell(hpa, events, now_s, options.window_s) for hpa in sorted(hpas, key=lambda item: item["metadata"]["name"])
    ]
    return {"changed": False, "hpas": told, "summary": _summary(options, told), "not_read": not_read}


def _tell(
    hpa: t.Mapping[str, t.Any], events: t.Sequence[t.Mapping[str, t.Any]] | None, now_s: float, window_s: float
) -> dict[str, t.Any]:
    name, status = hpa["metadata"]["name"], hpa.get("status") or {}
    own = None if events is None else [event for event in events if _concerns(event, hpa["metadata"])]
    history = None if own is None else summarise(hpa, own, now_s, window_s)
    return {
        "name": name,
        "namespace": hpa["metadata"].get("namespace"),
        "state": state_of(hpa),
        "spec": complete(hpa["spec"]),
        "current_replicas": status.get("currentReplicas"),
        "desired_replicas": status.get("desiredReplicas"),
        "last_scale_at": status.get("lastScaleTime"),
        "metrics": current_metrics(hpa),
        "conditions": [
            {
                "type": item["type"],
                "status": item["status"],
                "reason": item.get("reason"),
                "message": item.get("message"),
                "explained": explain(item),
            }
            for item in sorted(status.get("conditions") or [], key=lambda item: item["type"])
        ],
        "history": None if history is None else history.pop("history"),
        "decisions": history,
        "problems": None if own is None else problems(own),
    }


def _concerns(event: t.Mapping[str, t.Any], meta: t.Mapping[str, t.Any]) -> bool:
    """Return whether an event is about an autoscaler, and not about an earlier one of the same name."""
    about = event.get("involvedObject") or {}
    same = about.get("kind") == "HorizontalPodAutoscaler" and about.get("name") == meta["name"]
    return same and (not about.get("uid") or not meta.get("uid") or about["uid"] == meta["uid"])


def _summary(options: Options, told: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    if not told:
        return (
            f"There is no HPA {options.namespace}/{options.name}."
            if options.name
            else f"There is no HPA in {options.namespace}."
        )
    worrying = [
        f"{one['name']} ({one['state']})"
        for one in told
        if one["state"] in ("failing", "at_max", "disabled", "unknown")
    ]
    worrying += [f"{one['name']} (flapping)" for one in told if (one["decisions"] or {}).get("flapping")]
    count = f"{len(told)} HPA{'s' if len(told) > 1 else ''} in {options.namespace}"
    return f"{count}; look at {', '.join(worrying)}." if worrying else f"{count}; none needs a look."
