# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The options of ``hpa_tune``, checked."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ..._common.argspec import ArgumentSpec
from ..._common.errors import OptionError
from ..._common.files import check_writable
from ..kube.connection import Access, connection_spec, parse_access
from ..kube.model import complete
from ..kube.validate import check_name, check_namespace
from ..replay import check_number, model_spec, read_text
from ..simulate import MAX_PODS
from ..spec import parse_spec
from ..trace import LARGEST, Trace, parse_points
from .plan import Objective
from .prometheus import Source
from .quality import Needs

STATES = ("recommended", "applied", "reverted")
SLOTS_MINUTES = (15, 30, 60, 120, 180, 240)


def tune_spec() -> ArgumentSpec:
    """Return the module's options."""
    prometheus = {
        "url": {"type": "str", "required": True},
        "query": {"type": "str", "required": True},
        "days": {"type": "float", "default": 14.0},
        "step_s": {"type": "int", "default": 60},
        "end_s": {"type": "float"},
        "replicas_query": {"type": "str"},
        "throttling_query": {"type": "str"},
        "incident_query": {"type": "str"},
        "username": {"type": "str"},
        "password": {"type": "str", "no_log": True},
        "token": {"type": "str", "no_log": True},
        "ca_cert": {"type": "path"},
        "validate_certs": {"type": "bool", "default": True},
        "timeout_s": {"type": "float", "default": 60.0},
    }
    data = {
        "min_days": {"type": "float", "default": 7.0},
        "max_gap_share": {"type": "float", "default": 0.02},
        "load_is_whole": {"type": "bool", "default": False},
        "held_out_days": {"type": "int"},
    }
    search = {
        "candidates": {"type": "int", "default": 1000},
        "seed": {"type": "int", "default": 0},
        "threads": {"type": "int", "default": 2},
        "floors": {"type": "bool", "default": True},
        "slot_minutes": {"type": "int", "default": 30, "choices": list(SLOTS_MINUTES)},
    }
    limits = {
        "replicas_percent": {"type": "float", "default": 50.0},
        "target_percent": {"type": "float", "default": 25.0},
        "window_s": {"type": "int", "default": 300},
        "min_replicas": {"type": "int", "default": 2},
        "max_replicas": {"type": "int", "default": 1000},
        "tolerances": {"type": "bool", "default": True},
    }
    model = model_spec()
    model["pods"]["required"] = False
    model["slo"]["options"]["use_budget"] = {"type": "bool", "default": False}

    def group(options: dict[str, t.Any]) -> dict[str, t.Any]:
        return {"type": "dict", "options": options, "apply_defaults": True}

    return connection_spec().merge(
        ArgumentSpec(
            {
                "state": {"type": "str", "choices": list(STATES), "default": "recommended"},
                "name": {"type": "str"},
                "namespace": {"type": "str", "default": "default"},
                "spec": {"type": "dict"},
                "spec_file": {"type": "path"},
                "trace_file": {"type": "path"},
                "points": {"type": "list", "elements": "list"},
                "prometheus": {
                    "type": "dict",
                    "options": prometheus,
                    "mutually_exclusive": [("token", "username")],
                    "required_together": [("username", "password")],
                },
                "replicas_points": {"type": "list", "elements": "list"},
                "throttling_points": {"type": "list", "elements": "list"},
                **model,
                "data": group(data),
                "search": group(search),
                "limits": group(limits),
                "approve": {"type": "str", "choices": ["low", "medium", "high"], "default": "low"},
                "incident": {"type": "bool", "default": False},
                "cost_per_replica_hour": {"type": "float"},
                "report_file": {"type": "path"},
            },
            mutually_exclusive=[("trace_file", "points", "prometheus"), ("name", "spec", "spec_file")],
            required_one_of=[("name", "spec", "spec_file")],
            required_if=[
                ("state", "recommended", ("pods",)),
                ("state", "recommended", ("trace_file", "points", "prometheus"), True),
                ("state", "applied", ("name", "pods")),
                ("state", "applied", ("trace_file", "points", "prometheus"), True),
                ("state", "reverted", ("name",)),
            ],
        )
    )


@dataclass(frozen=True)
class Options:
    """The module's options, checked; ``spec`` is ``None`` where it is read from the cluster."""

    state: str
    name: str | None
    namespace: str
    spec: dict[str, t.Any] | None
    access: Access | None = field(repr=False)
    source: Source | None
    replicas: Trace | None
    throttling: Trace | None
    needs: Needs
    objective: Objective
    params: t.Mapping[str, t.Any] = field(repr=False)


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types.

    :raises HeadroomError: naming the option, its value and what to give instead.
    """
    data, search, limits, slo = params["data"], params["search"], params["limits"], params["slo"]
    check_number("data.min_days", data["min_days"], 2, 3660, "of days")
    check_number("data.max_gap_share", data["max_gap_share"], 0, 1, "of the time")
    check_number("data.held_out_days", data["held_out_days"], 1, 3660, "of days")
    check_number("search.candidates", search["candidates"], 10, 100_000, "of specs")
    check_number("search.seed", search["seed"], 0, 2**63 - 1, "as a seed")
    check_number("search.threads", search["threads"], 1, 64, "of threads")
    check_number("limits.replicas_percent", limits["replicas_percent"], 0, 1000, "of percent")
    check_number("limits.target_percent", limits["target_percent"], 0, 90, "of percent")
    check_number("limits.window_s", limits["window_s"], 0, 3600, "of seconds")
    check_number("limits.min_replicas", limits["min_replicas"], 1, MAX_PODS, "of replicas")
    check_number("limits.max_replicas", limits["max_replicas"], 1, MAX_PODS, "of replicas")
    check_number("cost_per_replica_hour", params["cost_per_replica_hour"], 0, LARGEST, "of money")
    check_number("slo.min_share", slo["min_share"], 0, 1, "of the syncs")
    if limits["max_replicas"] < limits["min_replicas"]:
        remedy = f"it is below limits.min_replicas, {limits['min_replicas']}; give at least that."
        raise OptionError("limits.max_replicas", limits["max_replicas"], remedy)
    if params["report_file"] is not None:
        check_writable("report_file", params["report_file"])
    access = None
    if params["name"] is not None:
        check_name("name", params["name"])
        check_namespace("namespace", params["namespace"])
        access = parse_access(params)
    given = params["prometheus"]
    source = None
    if given is not None:
        source = Source(**given)
        source.check()
    series = {
        name: None if params[name] is None else parse_points(params[name], name)
        for name in ("replicas_points", "throttling_points")
    }
    return Options(
        params["state"],
        params["name"],
        params["namespace"],
        _spec(params),
        access,
        source,
        series["replicas_points"],
        series["throttling_points"],
        Needs(data["min_days"], data["max_gap_share"], data["load_is_whole"]),
        Objective(slo["min_share"], slo["use_budget"]),
        params,
    )


def _spec(params: t.Mapping[str, t.Any]) -> dict[str, t.Any] | None:
    """Return the spec that was given, as it is or in a file with the spec or the whole object."""
    option, given = "spec", params["spec"]
    if params["spec_file"] is not None:
        import yaml

        option, path = "spec_file", params["spec_file"]
        try:
            given = yaml.safe_load(read_text(option, path))
        except (yaml.YAMLError, RecursionError) as error:
            raise OptionError(option, path, "it is neither YAML nor JSON; correct it.") from error
        if isinstance(given, dict) and given.get("kind") == "HorizontalPodAutoscaler":
            given = given.get("spec")
        if not isinstance(given, dict):
            raise OptionError(option, path, "it holds no HorizontalPodAutoscaler and no spec of one; correct it.")
    if given is None:
        return None
    # what is no spec is told before it is completed
    parse_spec(given, option, params["controller"]["version"])
    return complete(given)
