# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""From what an instance is and should be to the steps between. Pure: no I/O, no clock, no randomness."""

from __future__ import annotations

import typing as t

from ..._common.errors import HeadroomError
from . import scram
from .files import files, parse
from .model import Observed, Plan, Step, Wanted, int_to_lsn, lsn_to_int

OWN_AUTO_SETTINGS = ("primary_conninfo", "primary_slot_name")


class PlanError(HeadroomError):
    """The wanted state cannot or may not be reached from here; nothing has been changed."""

    code = "refused"


def plan(observed: Observed, wanted: Wanted) -> Plan:
    """Return the steps that turn ``observed`` into ``wanted``.

    :raises PlanError: when the way there would touch data that must not be touched.
    """
    return {
        "present": _present,
        "stopped": _stopped,
        "absent": _absent,
        "fenced": _fenced,
        "promoted": _promoted,
    }[wanted.state](observed, wanted)


def _name(wanted: Wanted) -> str:
    return f"{wanted.paths.version}/{wanted.paths.name}"


def _present(observed: Observed, wanted: Wanted) -> Plan:
    warnings: list[str] = []
    before, after = (
        _data_primary(observed, wanted) if wanted.role == "primary" else _data_replica(observed, wanted, warnings)
    )
    steps = list(before)
    written = _write(observed, wanted)
    steps += written
    steps += after
    built = bool(before or after)
    shadowed = sorted(set(observed.auto_settings) & set(parse(files(wanted, observed)[_conf(wanted)].content)))
    own = [name for name in shadowed if name in OWN_AUTO_SETTINGS]
    warnings += [
        f"ALTER SYSTEM has set {name}, which hides the declared value; run ALTER SYSTEM RESET {name}."
        for name in shadowed
        if name not in OWN_AUTO_SETTINGS
    ]
    if own and not built:
        steps.append(Step("reset", ", ".join(own), "postgresql.auto.conf hides the declared value"))
    pending: list[str] = []
    if built or not observed.running:
        steps.append(Step("start", wanted.paths.unit, "the server must run"))
    else:
        pending = restart_names(observed, wanted)
        if pending and wanted.restart:
            steps.append(
                Step("restart", wanted.paths.unit, "settings that only a restart applies: " + ", ".join(pending))
            )
        elif written or own:
            steps.append(Step("reload", wanted.paths.unit, "the configuration changed"))
    in_use: list[str] = []
    if observed.running or not observed.data_exists:
        # a stopped server cannot be asked for its logins and slots: they are seen to once it runs
        if wanted.role == "primary":
            steps += _logins(observed, wanted)
        slot_steps, in_use = _slots(observed, wanted)
        steps += slot_steps
    if observed.replaced and not built and observed.streaming:
        steps.append(Step("discard", wanted.paths.replaced, "its successor streams"))
    steps += _leftover_fence(observed, wanted)
    return Plan(steps, () if wanted.restart else pending, warnings, in_use)


def _leftover_fence(observed: Observed, wanted: Wanted) -> list[Step]:
    steps = []
    if observed.running and observed.in_recovery is False and observed.standby_signal:
        steps.append(
            Step("unfence", wanted.paths.standby_signal, "a live primary must be one after its next start too")
        )
    if observed.fence is not None:
        steps.append(Step("unjournal", wanted.paths.fence, "the switchover is over"))
    return steps


def _conf(wanted: Wanted) -> str:
    return f"{wanted.paths.config}/postgresql.conf"


def _check_data_path(observed: Observed, wanted: Wanted) -> None:
    if observed.data_in_use and not observed.data_exists:
        raise PlanError(
            f"{wanted.paths.data} is not empty and is no data directory of PostgreSQL. Move it away yourself."
        )


def _data_primary(observed: Observed, wanted: Wanted) -> tuple[list[Step], list[Step]]:
    _check_data_path(observed, wanted)
    if observed.rewinding:
        raise PlanError(
            f"Instance {_name(wanted)} was left half rewound ({wanted.paths.rewinding}): it cannot be a primary."
        )
    if observed.data_exists and observed.role == "replica":
        if observed.fence is not None:
            raise PlanError(
                f"Instance {_name(wanted)} is fenced by a switchover to {observed.fence.get('candidate')} that was "
                "interrupted. Run the switchover playbook again to finish it.",
                code="fenced",
            )
        raise PlanError(
            f"Instance {_name(wanted)} is a replica and was declared primary. Promote it with the switchover playbook."
        )
    if observed.data_exists:
        return [], []
    return [Step("create", wanted.paths.data, "there is no data directory")], []


def _data_replica(observed: Observed, wanted: Wanted, warnings: list[str]) -> tuple[list[Step], list[Step]]:
    """Return the steps before and after the configuration is written."""
    _check_data_path(observed, wanted)
    if observed.data_exists and observed.streaming and not observed.rewinding:
        if observed.incoming or observed.incoming_complete:
            return [], [Step("discard", wanted.paths.incoming, "the present data directory streams")]
        return [], []
    if observed.running and observed.in_recovery is False:
        raise PlanError(
            f"Instance {_name(wanted)} is a running primary and was declared a replica. Make it one with the switchover playbook.",
            code="two_primaries",
        )
    # a base backup that was begun beside a data directory takes its place only while that is still allowed
    replaceable = not observed.data_exists or wanted.rebuild == "basebackup"
    if observed.incoming_complete and replaceable:
        return [], [Step("swap", wanted.paths.data, "a base backup is complete and waits to take its place")]
    if not observed.data_exists or (observed.cloning and replaceable):
        return [], [
            Step(
                "clone",
                wanted.paths.data,
                "a base backup runs" if observed.cloning else "there is no data directory",
            )
        ]
    if observed.rewinding:
        return [], _rebuild(observed, wanted, "clone", "a former rewind was interrupted, so its data cannot be trusted")
    if observed.upstream is None:
        if observed.role == "primary":
            raise PlanError(
                f"Instance {_name(wanted)} was a primary and its upstream cannot be asked whether the two have diverged: "
                f"{observed.upstream_error}."
            )
        warnings.append(
            f"The data directory was left as it is, since the upstream cannot be asked: {observed.upstream_error}"
        )
        return [], []
    fallen = diagnose(observed)
    if fallen is None:
        if observed.role == "primary":
            return [], [
                Step("demote", wanted.paths.data, "a former primary that was shut down cleanly and has not diverged")
            ]
        return [], []
    kind, why = fallen
    if kind == "foreign":
        raise PlanError(
            f"Instance {_name(wanted)} holds the data of another cluster ({why}). Move {wanted.paths.data} away yourself "
            "if it is not needed.",
            code="foreign_data",
        )
    return [], _rebuild(observed, wanted, kind, why)


def diagnose(observed: Observed) -> tuple[str, str] | None:
    """Say why a data directory that does not stream cannot follow its upstream, and what mends it.

    :returns: None when it can follow, else ``rewind``, ``clone`` or ``foreign`` and the reason.
    """
    upstream = observed.upstream
    if upstream is None:
        return None
    if observed.system_identifier != upstream.system_identifier:
        return "foreign", f"system identifier {observed.system_identifier}, upstream {upstream.system_identifier}"
    timeline, lsn = observed.timeline or 0, observed.lsn or 0
    if observed.role == "primary" and observed.control.get("Database cluster state") != "shut down":
        return "rewind", "a former primary that was not shut down cleanly may hold writes that the upstream never had"
    if timeline != upstream.timeline:
        switch = dict(upstream.history).get(timeline)
        if switch is None:
            return (
                "rewind",
                f"its timeline {timeline} is not in the history of the upstream's timeline {upstream.timeline}",
            )
        if lsn > switch:
            return (
                "rewind",
                f"it went on to {int_to_lsn(lsn)} on timeline {timeline}, which the upstream left at {int_to_lsn(switch)}",
            )
    elif lsn > upstream.lsn:
        return "rewind", f"it is at {int_to_lsn(lsn)}, ahead of the upstream's {int_to_lsn(upstream.lsn)}"
    if upstream.oldest_wal is not None and lsn < upstream.oldest_wal:
        return (
            "clone",
            f"it needs WAL from {int_to_lsn(lsn)}, and the upstream's oldest is {int_to_lsn(upstream.oldest_wal)}",
        )
    return None


def _rebuild(observed: Observed, wanted: Wanted, kind: str, why: str) -> list[Step]:
    allowed = {"rewind": ("rewind", "basebackup"), "clone": ("basebackup",)}[kind]
    if wanted.rebuild not in allowed:
        raise PlanError(
            f"Replica {_name(wanted)} fell off: {why}. Option 'rebuild' has the value {wanted.rebuild!r}: "
            f"set it to {' or '.join(repr(choice) for choice in allowed)} to let it be rejoined.",
            code="fell_off",
            needs=list(allowed),
        )
    return [Step(kind, wanted.paths.data, why)]


def _write(observed: Observed, wanted: Wanted) -> list[Step]:
    steps = []
    for path, file in sorted(files(wanted, observed).items()):
        present = observed.files.get(path)
        if present is None:
            steps.append(Step("write", path, "it is missing"))
        elif present != file.content:
            steps.append(Step("write", path, "its content differs"))
        elif observed.modes.get(path) != file.mode:
            steps.append(Step("write", path, "its mode or owner differs"))
    return steps


def restart_names(observed: Observed, wanted: Wanted) -> list[str]:
    """Return the settings that differ from what the server runs with and that only a restart applies."""
    path = _conf(wanted)
    now = parse(observed.files.get(path, ""))
    then = parse(files(wanted, observed)[path].content)
    changed = {name for name in now.keys() | then.keys() if now.get(name) != then.get(name)}
    static = {name for name in changed if observed.settings.get(name, {}).get("context") == "postmaster"}
    unchanged_in_effect = {name for name in static if _same(observed.settings[name], then.get(name))}
    return sorted((static - unchanged_in_effect) | set(observed.pending_restart))


def _same(setting: t.Mapping[str, t.Any], value: str | None) -> bool:
    """Say whether the running value equals a raw one; only what needs no unit arithmetic is called equal."""
    if value is None:
        return setting.get("setting") == setting.get("boot_val")
    return value == setting.get("setting")


def _logins(observed: Observed, wanted: Wanted) -> list[Step]:
    steps = []
    for login in (wanted.replication, wanted.monitoring):
        if login is None:
            continue
        present = observed.logins.get(login.name)
        if present is None:
            steps.append(Step("login", login.name, f"the {login.purpose} login is missing", {"login": login}))
        elif not present["complete"] or not scram.matches(present["password"], login.password):
            steps.append(Step("login", login.name, f"the {login.purpose} login differs", {"login": login}))
    if not observed.history_function and wanted.monitoring is not None:
        steps.append(Step("function", "headroom.timeline_history", "health needs it to tell a forked timeline"))
    return steps


def _slots(observed: Observed, wanted: Wanted) -> tuple[list[Step], list[str]]:
    present = {slot["slot_name"]: slot for slot in observed.slots}
    steps, in_use = [], []
    for name in sorted(wanted.slots):
        if name not in present:
            steps.append(Step("slot", name, "the slot is missing"))
        elif present[name]["wal_status"] == "lost":
            steps.append(Step("unslot", name, "the slot is lost"))
            steps.append(Step("slot", name, "the slot was lost"))
    for name, slot in sorted(present.items()):
        if name.startswith(wanted.slot_prefix) and name not in wanted.slots:
            if slot["active"]:
                in_use.append(name)
            else:
                steps.append(Step("unslot", name, "no replica uses the slot, and it would hold back WAL"))
    return steps, in_use


def _stopped(observed: Observed, wanted: Wanted) -> Plan:
    if observed.running and observed.in_recovery is False:
        raise PlanError(
            f"Instance {_name(wanted)} is a running primary: only a replica can be stopped. Switch over first."
        )
    steps = []
    if observed.autostart == "auto":
        steps.append(Step("disable", wanted.paths.unit, "it must stay stopped"))
    if observed.running:
        steps.append(Step("stop", wanted.paths.unit, "it must not run"))
    return Plan(steps)


def _absent(observed: Observed, wanted: Wanted) -> Plan:
    if observed.role == "primary":
        raise PlanError(f"Instance {_name(wanted)} is a primary: its data is not removed. Switch over first.")
    steps = []
    if observed.running:
        steps.append(Step("stop", wanted.paths.unit, "it must not run"))
    if observed.config_exists:
        steps.append(Step("remove", wanted.paths.config, "the instance must be absent"))
    if observed.incoming or observed.incoming_complete:
        steps.append(Step("discard", wanted.paths.incoming, "the instance must be absent"))
    for path, exists in ((wanted.paths.data, observed.data_in_use), (wanted.paths.replaced, observed.replaced)):
        if exists:
            steps.append(Step("remove", path, "the instance must be absent"))
    return Plan(steps)


def _fenced(observed: Observed, wanted: Wanted) -> Plan:
    fenced = observed.fence is not None and observed.standby_signal
    if not fenced and observed.role != "primary":
        raise PlanError(f"Instance {_name(wanted)} is no primary: there are no writes to fence.")
    if fenced and observed.running and observed.in_recovery:
        raise PlanError(
            f"Instance {_name(wanted)} was fenced and has been started since. Undo the switchover, then do it again.",
            code="fenced",
        )
    steps = []
    if not fenced:
        steps.append(Step("fence", wanted.paths.standby_signal, "from its next start on the server refuses writes"))
    if observed.running:
        steps.append(Step("stop", wanted.paths.unit, "the last write is behind it once it has shut down cleanly"))
    if observed.running or not (observed.fence or {}).get("wal_end_lsn"):
        steps.append(Step("seal", wanted.paths.fence, "the end of its WAL is what the candidate must have replayed"))
    return Plan(steps)


def _promoted(observed: Observed, wanted: Wanted) -> Plan:
    if not observed.data_exists:
        raise PlanError(f"Instance {_name(wanted)} does not exist: there is nothing to promote.")
    if observed.role == "primary" and observed.running:
        return Plan(_leftover_fence(observed, wanted))
    if observed.fence is not None and not wanted.wal_end_lsn:
        steps = [Step("stop", wanted.paths.unit, "it was started behind its fence")] if observed.running else []
        steps += [
            Step(
                "unfence",
                wanted.paths.standby_signal,
                "the switchover is rolled back: the former primary is primary again",
            ),
            Step("start", wanted.paths.unit, "the server must run"),
            Step("unjournal", wanted.paths.fence, "the fence is gone"),
        ]
        return Plan(steps)
    if not observed.running:
        raise PlanError(f"Instance {_name(wanted)} does not run: only a running replica can be promoted.")
    if observed.replay_paused:
        raise PlanError(f"Instance {_name(wanted)} has paused its replay: run SELECT pg_wal_replay_resume() first.")
    if not wanted.wal_end_lsn:
        raise PlanError(
            "Option 'wal_end_lsn' is missing: a replica is promoted only up to the end of the fenced primary's WAL."
        )
    if observed.lsn is not None and observed.lsn > lsn_to_int(wanted.wal_end_lsn):
        raise PlanError(
            f"Instance {_name(wanted)} has replayed {int_to_lsn(observed.lsn)}, beyond the fenced primary's end "
            f"{wanted.wal_end_lsn}: the two have diverged.",
            code="diverged",
        )
    return Plan([Step("promote", wanted.paths.data, f"it takes over at {wanted.wal_end_lsn}")])
