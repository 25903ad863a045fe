# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``redis_cluster_health``: checked options in, one judgement and the wanted files out."""

from __future__ import annotations

import math
import os
import time
import typing as t
from dataclasses import dataclass, field

from ..._common.argspec import ArgumentSpec
from ..._common.errors import HeadroomError, OptionError
from ..._common.files import check_writable, write_file
from ..._common.redis.connection import Login, nodes_spec, parse_nodes
from ..._common.redis.model import Node
from ..._common.verdict import HEALTHY, UNHEALTHY
from . import judge, memory, render
from .model import Limits

DAY_S = 86400.0
MAX_COUNT = 2**63 - 1


def health_spec() -> ArgumentSpec:
    """Return the module's own options, without those to log in."""
    return nodes_spec().merge(
        ArgumentSpec(
            {
                "max_lag_bytes": {"type": "int", "default": 16777216},
                "max_lag_s": {"type": "float", "default": 10.0},
                "max_memory_ratio": {"type": "float", "default": 0.9},
                "max_fragmentation_ratio": {"type": "float", "default": 1.5},
                "max_evictions": {"type": "int", "default": 0},
                "max_slowlog_growth": {"type": "int", "default": 10},
                "min_hit_ratio": {"type": "float"},
                "min_replicas_per_primary": {"type": "int", "default": 1},
                "allow_same_host": {"type": "bool", "default": False},
                "wait_s": {"type": "float", "default": 0.0},
                "interval_s": {"type": "float", "default": 1.0},
                "consecutive": {"type": "int", "default": 1},
                "state_file": {"type": "path"},
                "prometheus_file": {"type": "path"},
                "report_file": {"type": "path"},
                "fail_on": {"type": "str", "choices": ["never", "unhealthy", "degraded"], "default": "unhealthy"},
            }
        )
    )


@dataclass(frozen=True)
class Options:
    """The module's options, checked. All times are in seconds; ``files`` are the paths by option."""

    nodes: tuple[Node, ...]
    login: Login
    limits: Limits
    wait_s: float = 0.0
    interval_s: float = 1.0
    consecutive: int = 1
    files: t.Mapping[str, str | None] = field(default_factory=dict)
    fail_on: str = UNHEALTHY


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    nodes = parse_nodes(params["nodes"])
    _number(params, "max_lag_bytes", 0, MAX_COUNT, "bytes")
    _number(params, "max_lag_s", 0, DAY_S * 366, "seconds")
    _number(params, "max_memory_ratio", 0.01, 10, "times maxmemory")
    _number(params, "max_fragmentation_ratio", 1, 1000, "times the used memory")
    _number(params, "max_evictions", 0, MAX_COUNT, "keys")
    _number(params, "max_slowlog_growth", 0, MAX_COUNT, "entries")
    _number(params, "min_hit_ratio", 0, 1, "hits per lookup")
    # the default of one asks for a replica even of a lone node, which then has none
    _number(params, "min_replicas_per_primary", 0, max(1, len(nodes) - 1), "replicas, of the nodes given,")
    _number(params, "wait_s", 0, DAY_S, "seconds")
    _number(params, "interval_s", 0.05, 3600, "seconds")
    _number(params, "consecutive", 1, 1000, "observations")
    if params["consecutive"] > 1 and not params["state_file"] and not params["wait_s"]:
        raise OptionError(
            "consecutive",
            params["consecutive"],
            "set state_file or wait_s too, else each run makes one observation and forgets it.",
        )
    files = {option: params[option] for option in ("state_file", "prometheus_file", "report_file")}
    paths: dict[str, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        check_writable(option, path)
        real = os.path.realpath(path)
        if real in paths:
            raise OptionError(option, path, f"{paths[real]} is the same file; give another one.")
        paths[real] = option
    limits = Limits(**{name: params[name] for name in Limits.__dataclass_fields__})
    return Options(
        nodes=nodes,
        login=Login.from_params(params),
        limits=limits,
        wait_s=params["wait_s"],
        interval_s=params["interval_s"],
        consecutive=params["consecutive"],
        files=files,
        fail_on=params["fail_on"],
    )


def _number(params: t.Mapping[str, t.Any], option: str, low: float, high: float, unit: str) -> None:
    value = params[option]
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise OptionError(option, value, f"give a number of {unit} from {low:g} to {high:g}.")


def check(options: Options, write: bool = True) -> dict[str, t.Any]:
    """Look until the requirement holds or ``wait_s`` is over, write the files, and return the result.

    :param write: whether to write files; false in check mode.
    :raises HeadroomError: with the full result, when ``fail_on`` says that what was seen is a failure.
    """
    # needs the driver, whose absence is the module's to report
    from . import observe

    started = time.monotonic()
    before = remembered = _load(options.files.get("state_file"))
    observations = 0
    while True:
        seen = observe.observe(options.nodes, options.login)
        observations += 1
        # what grew is counted from the last run, not from the last of this run's looks
        picture = judge.Picture(options.nodes, seen, before)
        remembered, reported = memory.advance(
            remembered, judge.judge_nodes(picture, options.limits), options.consecutive
        )
        cluster = judge.conclude(picture, reported, options.limits)
        enough = cluster.verdict == HEALTHY if options.fail_on == "degraded" else cluster.healthy
        left_s = options.wait_s - (time.monotonic() - started)
        if enough or left_s <= 0:
            break
        time.sleep(min(options.interval_s, left_s))
    result = render.to_result(cluster, options.limits)
    result.update(changed=False, table=render.to_table(result), observations=observations)
    if write:
        texts = {
            "state_file": (lambda: memory.dump(remembered), 0o600),
            "prometheus_file": (lambda: render.to_prometheus(result), 0o644),
            "report_file": (lambda: render.to_html(result), 0o644),
        }
        for option, (text, mode) in texts.items():
            path = options.files.get(option)
            if path is not None:
                write_file(option, path, text(), mode, result)
    result["duration_s"] = round(time.monotonic() - started, 3)
    if not enough and options.fail_on != "never":
        raise HeadroomError(result["summary"]["text"], code=f"cluster_{cluster.verdict}", result=result)
    return result


def _load(path: str | None) -> memory.Memory:
    """Read the state file; a missing one is a first look, a damaged one is an error and stays as it is."""
    if path is None or not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            return memory.load(file.read())
    except (OSError, ValueError) as error:
        remedy = f"it cannot be used as a state file ({error}); remove it or name another file."
        raise OptionError("state_file", path, remedy) from error
