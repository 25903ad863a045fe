# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The options of ``postgresql_shard_rebalance``, checked. No I/O."""

from __future__ import annotations

import math
import os
import typing as t
from dataclasses import dataclass

from ...._common.argspec import ArgumentSpec
from ...._common.errors import OptionError
from ...connection import Login
from ..members import Access, Member, members_spec, parse_access, parse_cluster, parse_members, parse_timeout
from ..model import Shard, bucket_name
from ..options import check, is_whole, shards_from
from ..plan import Limits
from ..usage import FIGURES
from .switch import Pace
from .watch import Bounds
from .window import DAYS, Window, parse_window

RUN_STATES = ("planned", "balanced", "reverted", "cleaned")


def rebalance_spec() -> ArgumentSpec:
    """Return the module's options, without those to log in."""
    window = {
        "begin": {"type": "str", "required": True},
        "end": {"type": "str", "required": True},
        "days": {"type": "list", "elements": "str", "choices": list(DAYS)},
        "timezone": {"type": "str", "default": "UTC"},
    }
    isolate = {
        "group": {"type": "str", "required": True},
        "key": {"type": "raw", "required": True, "no_log": False},
    }
    own = ArgumentSpec(
        {
            "state": {"type": "str", "choices": list(RUN_STATES), "default": "balanced"},
            "plan": {"type": "dict"},
            "threshold": {"type": "float", "default": 0.1},
            "max_moves": {"type": "int"},
            "max_bytes": {"type": "int"},
            "max_duration_s": {"type": "float"},
            "concurrent_moves": {"type": "int", "default": 4},
            "concurrent_moves_per_shard": {"type": "int", "default": 1},
            "streams": {"type": "int", "default": 2},
            "max_rate_bytes_s": {"type": "int", "default": 0},
            "max_block_ms": {"type": "float", "default": 500.0},
            "max_lag_ms": {"type": "float", "default": 100.0},
            "switch_patience_s": {"type": "float", "default": 120.0},
            "slot_timeout_s": {"type": "float", "default": 120.0},
            "catch_up_timeout_s": {"type": "float", "default": 3600.0},
            "read_grace_s": {"type": "float", "default": 5.0},
            "revert_window_s": {"type": "float", "default": 86400.0},
            "max_replica_lag_s": {"type": "float", "default": 0.0},
            "max_retained_wal_bytes": {"type": "int", "default": 0},
            "min_free_bytes": {"type": "int", "default": 0},
            "max_active": {"type": "int", "default": 0},
            "pause_patience_s": {"type": "float", "default": 3600.0},
            "window": {"type": "dict", "options": window},
            "load": {"type": "dict"},
            "sample_s": {"type": "float", "default": 5.0},
            "isolate": {"type": "list", "elements": "dict", "default": [], "options": isolate},
            "moves": {"type": "list", "elements": "str"},
            "retire_now": {"type": "bool", "default": False},
            "progress_file": {"type": "path"},
        }
    )
    return members_spec().merge(own)


@dataclass(frozen=True)
class Options:
    """The module's options, checked. Times are in seconds."""

    members: tuple[Member, ...]
    access: Access
    login: Login
    cluster: str
    timeout_s: float
    shards: tuple[Shard, ...]
    state: str
    plan: t.Mapping[str, t.Any] | None
    limits: Limits
    streams: int
    max_rate_bytes_s: int
    pace: Pace
    bounds: Bounds
    slot_timeout_s: float
    catch_up_timeout_s: float
    read_grace_s: float
    revert_window_s: float
    window: Window | None
    load: t.Mapping[str, float]
    sample_s: float
    isolate: tuple[tuple[str, t.Any], ...]
    moves: tuple[str, ...] | None
    retire_now: bool
    progress_file: str | None


# option to its lowest and highest value, and what it counts
_NUMBERS: dict[str, tuple[float, float, str]] = {
    "threshold": (0, 10, "a fraction"),
    "max_moves": (1, 1_000_000, "moves"),
    "max_bytes": (1, 1 << 60, "bytes"),
    "max_duration_s": (1, 31_536_000, "seconds"),
    "concurrent_moves": (1, 64, "moves"),
    "concurrent_moves_per_shard": (1, 16, "moves"),
    "streams": (1, 16, "connections"),
    "max_rate_bytes_s": (0, 1 << 50, "bytes per second, 0 for no limit,"),
    "max_block_ms": (20, 60_000, "milliseconds"),
    "max_lag_ms": (1, 60_000, "milliseconds"),
    "switch_patience_s": (1, 86_400, "seconds"),
    "slot_timeout_s": (1, 86_400, "seconds"),
    "catch_up_timeout_s": (1, 604_800, "seconds"),
    "read_grace_s": (0, 3600, "seconds"),
    "revert_window_s": (0, 31_536_000, "seconds"),
    "max_replica_lag_s": (0, 86_400, "seconds, 0 for no limit,"),
    "max_retained_wal_bytes": (0, 1 << 60, "bytes, 0 for no limit,"),
    "min_free_bytes": (0, 1 << 60, "bytes, 0 for no limit,"),
    "max_active": (0, 100_000, "sessions, 0 for no limit,"),
    "pause_patience_s": (0, 604_800, "seconds"),
    "sample_s": (0.1, 3600, "seconds"),
}


def _check_moves(moves: t.Sequence[t.Mapping[str, t.Any]], shards: t.Mapping[str, Shard]) -> None:
    """Check that the moves of a plan, each of the right types, are moves between declared shards, and one for each bucket."""
    seen: dict[tuple[str, int], int] = {}
    for index, move in enumerate(moves):
        at, known = f"plan.moves[{index}]", ", ".join(shards)
        source, target, bucket = move["source"], move["target"], (move["group"], move["bucket"])
        check(f"{at}.source", source, source in shards, f"give a declared shard, one of {known}.")
        check(f"{at}.target", target, target in shards, f"give a declared shard, one of {known}.")
        check(f"{at}.target", target, target != source, "the bucket is there already; give another shard.")
        fits = shards[target].takes_share
        check(
            f"{at}.target",
            target,
            fits,
            f"it is {shards[target].state} with weight {shards[target].weight:g}; plan again.",
        )
        check(
            f"{at}.bucket",
            bucket_name(bucket),
            bucket not in seen,
            f"plan.moves[{seen.get(bucket)}] moves it; plan again.",
        )
        seen[bucket] = index


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    members = parse_members(params)
    shards = shards_from(params["shards"])
    for option, (low, high, unit) in _NUMBERS.items():
        value = params[option]
        if value is not None:
            fits = math.isfinite(value) and low <= value <= high
            check(option, value, fits, f"give {unit} from {low:g} to {high:g}.")
    load = params["load"] or {"size_bytes": 1}
    for name, weight in load.items():
        check("load", name, name in FIGURES, f"weigh some of {', '.join(FIGURES)}.")
        fits = (
            isinstance(weight, (int, float)) and not isinstance(weight, bool) and math.isfinite(weight) and weight >= 0
        )
        check(f"load.{name}", weight, fits, "give a number that is not negative.")
    check("load", load, any(weight > 0 for weight in load.values()), "give at least one figure a weight above 0.")
    plan = params["plan"]
    if plan is not None:
        check("state", params["state"], params["state"] == "balanced", "a plan is carried out with state balanced.")
        fits = isinstance(plan.get("id"), str) and isinstance(plan.get("moves"), list)
        check("plan", plan, fits, "give what an earlier run returned as plan.")
        for index, move in enumerate(plan["moves"]):
            known = isinstance(move, dict) and all(
                isinstance(move.get(one), str) for one in ("group", "source", "target")
            )
            fits = known and is_whole(move.get("bucket")) and is_whole(move.get("epoch"))
            check(f"plan.moves[{index}]", move, fits, "give what an earlier run returned as plan.")
        _check_moves(plan["moves"], {shard.name: shard for shard in shards})
        splits = plan.get("splits") or []
        check("plan.splits", splits, isinstance(splits, list), "give what an earlier run returned as plan.")
        for index, entry in enumerate(splits):
            fits = isinstance(entry, dict) and all(isinstance(entry.get(one), str) for one in ("group", "shard"))
            fits = fits and is_whole(entry.get("bucket")) and is_whole(entry.get("epoch"))
            fits = fits and isinstance(entry.get("parts"), list)
            check(f"plan.splits[{index}]", entry, fits, "give what an earlier run returned as plan.")
    progress = params["progress_file"]
    if progress and not os.path.isdir(os.path.dirname(progress) or "."):
        raise OptionError("progress_file", progress, "its directory is not there.")
    limits = Limits(
        threshold=float(params["threshold"]),
        max_moves=params["max_moves"],
        max_bytes=params["max_bytes"],
        max_duration_s=params["max_duration_s"],
        concurrent_moves=params["concurrent_moves"],
        concurrent_moves_per_shard=params["concurrent_moves_per_shard"],
        # rows are read once for the copy, and once for the comparison
        rate_bytes_s=min(Limits.rate_bytes_s, params["max_rate_bytes_s"] / 2 or Limits.rate_bytes_s),
    )
    return Options(
        members=members,
        access=parse_access(params),
        login=Login.from_params(params),
        cluster=parse_cluster(params),
        timeout_s=parse_timeout(params),
        shards=shards,
        state=params["state"],
        plan=plan,
        limits=limits,
        streams=params["streams"],
        max_rate_bytes_s=params["max_rate_bytes_s"],
        pace=Pace(params["max_block_ms"] / 1000, params["switch_patience_s"], params["max_lag_ms"] / 1000),
        bounds=Bounds(
            max_replica_lag_s=params["max_replica_lag_s"],
            max_retained_wal_bytes=params["max_retained_wal_bytes"],
            min_free_bytes=params["min_free_bytes"],
            max_active=params["max_active"],
            patience_s=params["pause_patience_s"],
        ),
        slot_timeout_s=params["slot_timeout_s"],
        catch_up_timeout_s=params["catch_up_timeout_s"],
        read_grace_s=params["read_grace_s"],
        revert_window_s=params["revert_window_s"],
        window=parse_window(params["window"]),
        load={str(name): float(weight) for name, weight in load.items()},
        sample_s=params["sample_s"],
        isolate=tuple((entry["group"], entry["key"]) for entry in params["isolate"]),
        moves=None if params["moves"] is None else tuple(params["moves"]),
        retire_now=params["retire_now"],
        progress_file=progress,
    )
