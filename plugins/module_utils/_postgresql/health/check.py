# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``postgresql_replica_health``: checked options in, one judgement and the wanted files out."""

from __future__ import annotations

import math
import os
import time
import typing as t
from dataclasses import dataclass

from ..._common.argspec import ArgumentSpec
from ..._common.errors import HeadroomError, OptionError
from ..._common.files import check_writable, write_file
from ..._common.verdict import HEALTHY, UNHEALTHY
from ..connection import Login
from . import judge, memory, observe, render
from .model import Limits, NodeSpec

FAIL_ON = ("never", "unhealthy", "degraded")
MAX_SECONDS = 86400.0


def health_spec() -> ArgumentSpec:
    """Return the module's own options, without those to log in."""
    node = {
        "name": {"type": "str", "required": True},
        "host": {"type": "str"},
        "port": {"type": "int", "default": 5432},
        "pooler_host": {"type": "str"},
        "pooler_port": {"type": "int"},
    }
    return ArgumentSpec(
        {
            "nodes": {"type": "list", "elements": "dict", "required": True, "options": node},
            "max_lag_bytes": {"type": "int", "default": 16777216},
            "max_lag_s": {"type": "float", "default": 30.0},
            "min_healthy_replicas": {"type": "int"},
            "timeout_s": {"type": "float", "default": 5.0},
            "wait_s": {"type": "float", "default": 0.0},
            "interval_s": {"type": "float", "default": 1.0},
            "heartbeat": {"type": "bool", "default": False},
            "consecutive": {"type": "int", "default": 1},
            "state_file": {"type": "path"},
            "prometheus_file": {"type": "path"},
            "report_file": {"type": "path"},
            "fail_on": {"type": "str", "choices": list(FAIL_ON), "default": "unhealthy"},
        }
    )


@dataclass(frozen=True)
class Options:
    """The module's options, checked. All times are in seconds."""

    nodes: tuple[NodeSpec, ...]
    login: Login
    limits: Limits
    wait_s: float = 0.0
    interval_s: float = 1.0
    consecutive: int = 1
    state_file: str | None = None
    prometheus_file: str | None = None
    report_file: str | None = None
    fail_on: str = UNHEALTHY


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    nodes = _nodes(params["nodes"])
    _number(params, "max_lag_bytes", 0, 2**63 - 1, "bytes")
    _number(params, "max_lag_s", 0, MAX_SECONDS * 366, "seconds")
    _number(params, "timeout_s", 0.1, 3600, "seconds")
    _number(params, "wait_s", 0, MAX_SECONDS, "seconds")
    _number(params, "interval_s", 0.05, 3600, "seconds")
    _number(params, "consecutive", 1, 1000, "observations")
    least = params["min_healthy_replicas"]
    if least is not None and not 0 <= least < len(nodes):
        remedy = f"give a number from 0 to {len(nodes) - 1}, as one of the {len(nodes)} nodes is the primary."
        raise OptionError("min_healthy_replicas", least, remedy)
    if params["consecutive"] > 1 and not params["state_file"] and not params["wait_s"]:
        raise OptionError(
            "consecutive",
            params["consecutive"],
            "set state_file or wait_s too, else each run makes one observation and forgets it.",
        )
    paths: dict[str, str] = {}
    for option in ("state_file", "prometheus_file", "report_file"):
        path = params[option]
        if path is None:
            continue
        check_writable(option, path)
        real = os.path.realpath(path)
        if real in paths:
            raise OptionError(option, path, f"{paths[real]} is the same file; give another one.")
        paths[real] = option
    return Options(
        nodes=nodes,
        login=Login.from_params(params),
        limits=Limits(
            max_lag_bytes=params["max_lag_bytes"],
            max_lag_s=params["max_lag_s"],
            min_healthy_replicas=least,
            heartbeat=params["heartbeat"],
            timeout_s=params["timeout_s"],
        ),
        wait_s=params["wait_s"],
        interval_s=params["interval_s"],
        consecutive=params["consecutive"],
        state_file=params["state_file"],
        prometheus_file=params["prometheus_file"],
        report_file=params["report_file"],
        fail_on=params["fail_on"],
    )


def _nodes(given: t.Sequence[t.Mapping[str, t.Any]]) -> tuple[NodeSpec, ...]:
    if not given:
        raise OptionError("nodes", given, "list at least one node.")
    nodes: dict[str, NodeSpec] = {}
    for node in given:
        name = node["name"]
        if not name.strip() or not name.isprintable():
            raise OptionError("nodes[].name", name, "give a printable name that is not empty.")
        if name in nodes:
            raise OptionError("nodes[].name", name, "it is there twice; give each node a name of its own.")
        for key in ("host", "pooler_host"):
            host = node[key]
            if host is not None and (not host.strip() or not host.isprintable() or " " in host or "," in host):
                raise OptionError(f"nodes[].{key}", host, f"give one host name or address for node {name}.")
        for key in ("port", "pooler_port"):
            port = node[key]
            if port is not None and not 1 <= port <= 65535:
                raise OptionError(f"nodes[].{key}", port, f"give a TCP port from 1 to 65535 for node {name}.")
        if node["pooler_host"] is not None and node["pooler_port"] is None:
            raise OptionError("nodes[].pooler_host", node["pooler_host"], f"give pooler_port for node {name} too.")
        host = node["host"] if node["host"] is not None else name
        nodes[name] = NodeSpec(name, host, node["port"], node["pooler_host"], node["pooler_port"])
    return tuple(nodes.values())


def _number(params: t.Mapping[str, t.Any], option: str, low: float, high: float, unit: str) -> None:
    value = params[option]
    if not math.isfinite(value) or not low <= value <= high:
        raise OptionError(option, value, f"give a number of {unit} from {low:g} to {high:g}.")


def check(options: Options, write: bool = True) -> dict[str, t.Any]:
    """Look until the requirement holds or ``wait_s`` is over, write the files, and return the result.

    :param write: whether to write files; false in check mode.
    :raises HeadroomError: with the full result, when ``fail_on`` says that what was seen is a failure.
    """
    started = time.monotonic()
    remembered = _load(options.state_file)
    conflicts_before = remembered.conflicts
    look = observe.Look(options.login, options.limits.timeout_s, options.limits.heartbeat)
    observations = 0
    while True:
        seen = observe.observe(options.nodes, look)
        observations += 1
        judged = judge.judge_nodes(options.nodes, seen, options.limits, conflicts_before)
        remembered, reported = memory.advance(remembered, judged, options.consecutive)
        cluster = judge.conclude(reported, options.limits)
        enough = cluster.verdict == HEALTHY if options.fail_on == "degraded" else cluster.healthy
        left_s = options.wait_s - (time.monotonic() - started)
        if enough or left_s <= 0:
            break
        time.sleep(min(options.interval_s, left_s))
    result = render.to_result(cluster, options.limits)
    result.update(changed=False, table=render.to_table(result), observations=observations)
    if write:
        _write(options, result, remembered)
    result["duration_s"] = round(time.monotonic() - started, 3)
    if not enough and options.fail_on != "never":
        raise HeadroomError(result["summary"]["text"], code=f"cluster_{cluster.verdict}", result=result)
    return result


def _write(options: Options, result: dict[str, t.Any], remembered: memory.Memory) -> None:
    outputs = (
        ("state_file", options.state_file, lambda: memory.dump(remembered), 0o600),
        ("prometheus_file", options.prometheus_file, lambda: render.to_prometheus(result), 0o644),
        ("report_file", options.report_file, lambda: render.to_html(result), 0o644),
    )
    for option, path, text, mode in outputs:
        if path is not None:
            write_file(option, path, text(), mode, result)


def _load(path: str | None) -> memory.Memory:
    """Read the state file; a missing one is a first look, a damaged one is an error and stays as it is."""
    if path is None or not os.path.exists(path):
        return memory.Memory()
    try:
        with open(path, encoding="utf-8") as file:
            return memory.load(file.read())
    except (OSError, ValueError) as error:
        remedy = f"it cannot be used as a state file ({error}); remove it or name another file."
        raise OptionError("state_file", path, remedy) from error
