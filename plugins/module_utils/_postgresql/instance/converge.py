# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Observe, plan, apply and observe again until nothing is left to do."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import typing as t

from ..._common.errors import HeadroomError
from .apply import Applier, Unfinished
from .files import files, floors
from .model import Observed, Plan, Wanted, int_to_lsn
from .observe import observe
from .plan import plan

ROUNDS = 5
LOCK_TIMEOUT_S = 120


def facts(observed: Observed, wanted: Wanted) -> dict[str, t.Any]:
    """Return what was seen, for a module's result. Holds no secret."""
    return {
        "version": wanted.paths.version,
        "name": wanted.paths.name,
        "data_directory": wanted.paths.data,
        "installed": observed.installed,
        "exists": observed.data_exists,
        "role": observed.role,
        "running": observed.running,
        "streaming": observed.streaming,
        "system_identifier": observed.system_identifier,
        "timeline": observed.timeline,
        "lsn": int_to_lsn(observed.lsn) if observed.lsn is not None else None,
        "data_bytes": int(observed.data_bytes) if observed.data_bytes is not None else None,
        "control_state": observed.control.get("Database cluster state"),
        "slots": sorted(slot["slot_name"] for slot in observed.slots),
        "fence": dict(observed.fence) if observed.fence else None,
        "pending_restart": list(observed.pending_restart),
    }


def diff(observed: Observed, wanted: Wanted, steps: Plan) -> list[dict[str, str]]:
    """Return before and after of each file that the plan writes, and the plan itself in words. Secrets are left out."""
    described = files(wanted, observed)
    result = []
    for step in steps.steps:
        if step.action == "write":
            file, before = described[step.object], observed.files.get(step.object)
            hidden = "(not shown: it holds a secret)\n"
            result.append(
                {
                    "before_header": step.object,
                    "after_header": step.object,
                    "before": ""
                    if before is None
                    else hidden.replace("not shown", "former, not shown")
                    if file.secret
                    else before,
                    "after": hidden if file.secret else file.content,
                }
            )
    others = [step for step in steps.steps if step.action != "write"]
    if others:
        header = f"steps on instance {wanted.paths.version}/{wanted.paths.name}"
        after = "".join(f"{step.action} {step.object}: {step.why}\n" for step in others)
        result.append({"before_header": header, "after_header": header, "before": "", "after": after})
    return result


@contextlib.contextmanager
def _locked(wanted: Wanted) -> t.Iterator[None]:
    """Keep other runs away from the instance, also what is left on the host of one whose controller was killed."""
    paths = wanted.paths
    descriptor = os.open(f"/run/lock/headroom-{paths.version}-{paths.name}.lock", os.O_WRONLY | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise HeadroomError(
                        f"Failed to lock instance {paths.version}/{paths.name}: another run has been working on it for "
                        f"{LOCK_TIMEOUT_S} s. Wait for it to end.",
                        code="locked",
                    ) from None
                time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)


def converge(wanted: Wanted, *, check_mode: bool, slice_s: float = 5) -> dict[str, t.Any]:
    """Bring the instance to what is wanted and return the module's result.

    :param check_mode: stop after the first plan.
    :param slice_s: how long to wait for a running base backup before returning ``finished: false``.
    :raises HeadroomError: when a step fails or may not be taken.
    """
    with contextlib.nullcontext() if check_mode else _locked(wanted):
        return _converge(wanted, check_mode, slice_s)


def _converge(wanted: Wanted, check_mode: bool, slice_s: float) -> dict[str, t.Any]:
    done: list[dict[str, t.Any]] = []
    diffs: list[dict[str, str]] = []
    progress = None
    observed = observe(wanted)
    for _round in range(ROUNDS):
        try:
            current = plan(observed, wanted)
        except HeadroomError as error:
            error.result = {"changed": bool(done), "plan": done, "instance": facts(observed, wanted)}
            raise
        if not current.steps:
            break
        done += [step.as_dict() for step in current.steps]
        diffs += diff(observed, wanted, current)
        if check_mode:
            break
        try:
            Applier(wanted, observed, slice_s=slice_s).apply(current.steps)
        except Unfinished as unfinished:
            progress = unfinished.progress
            break
        except HeadroomError as error:
            error.result = {"changed": observed.installed, "plan": done, "instance": facts(observed, wanted)}
            raise
        observed = observe(wanted)
    else:
        raise HeadroomError(
            f"Failed to bring instance {wanted.paths.version}/{wanted.paths.name} to rest after {ROUNDS} rounds.",
            result={"changed": True, "plan": done, "instance": facts(observed, wanted)},
        )
    name = f"{wanted.paths.version}/{wanted.paths.name}"
    verb = "would be taken" if check_mode else "were taken"
    summary = f"Instance {name} is as wanted." if not done else f"{len(done)} steps {verb} on instance {name}."
    if progress:
        summary = f"Instance {name}: base backup {progress['percent']} % of {progress['total_bytes']} bytes."
    return {
        "changed": bool(done),
        "finished": progress is None,
        "progress": progress,
        "summary": summary,
        "plan": done,
        "diff": diffs,
        "restart_required": list(current.restart_required),
        "floored_settings": sorted(floors(wanted, observed)),
        "slots_in_use": list(current.slots_in_use),
        "warnings": list(current.warnings),
        "instance": facts(observed, wanted),
    }


def host_facts() -> dict[str, t.Any]:
    """Return what sizing and preflight need to know of the host: memory, processors, clock, release."""
    with open("/proc/meminfo", encoding="utf-8") as file:
        memory = {line.split(":")[0]: int(line.split()[1]) << 10 for line in file}
    limits = [memory["MemTotal"]]
    for path in ("/sys/fs/cgroup/memory.max",):
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read().strip()
            if text.isdigit():
                limits.append(int(text))
        except OSError:
            continue
    release = {}
    with open("/etc/os-release", encoding="utf-8") as file:
        for line in file:
            name, separator, value = line.strip().partition("=")
            if separator:
                release[name] = value.strip('"')
    return {
        "memory_bytes": min(limits),
        "cpus": len(os.sched_getaffinity(0)),
        "distribution": release.get("ID", ""),
        "distribution_version": release.get("VERSION_ID", ""),
    }
