# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way from what an instance is to what it should be: short, repeatable after a kill, and never over good data."""

from __future__ import annotations

import collections.abc
import copy
import dataclasses
import os
import sys
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, os.path.dirname(__file__))

from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance import scram  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.converge import (  # noqa: E402
    ROUNDS,
    diff,
    facts,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.files import files  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.model import (  # noqa: E402
    Login,
    Observed,
    Paths,
    Plan,
    Step,
    Upstream,
    UpstreamFacts,
    Wanted,
)
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.plan import (  # noqa: E402
    PlanError,
    diagnose,
    plan,
    restart_names,
)
from instance_machine import FORK, HERE, NOW, OLDEST, UPSTREAM, Data, Machine  # noqa: E402

PATHS = Paths(17, "main", "/var/lib/postgresql/17/main")
CONF = f"{PATHS.config}/postgresql.conf"
REPLICATION, MONITORING = Login("repl", "hunter22!"), Login("watch", "sesame 99", "monitoring")
PRIMARY = Wanted(
    PATHS,
    role="primary",
    cluster_name="pg1",
    replication=REPLICATION,
    monitoring=MONITORING,
    slots=("headroom_pg2",),
    settings={"work_mem": "4MB", "max_connections": 100},
)
REPLICA = Wanted(
    PATHS,
    role="replica",
    cluster_name="pg2",
    upstream=Upstream("10.0.0.1"),
    replication=REPLICATION,
    monitoring=MONITORING,
    slot_name="headroom_pg2",
    settings={"work_mem": "4MB", "max_connections": 100},
)
DESTRUCTIVE = {"create", "clone", "rewind", "swap", "demote", "remove"}


def state(wanted: Wanted, state: str, **changes: t.Any) -> Wanted:
    return dataclasses.replace(wanted, state=state, **changes)


def settled(wanted: Wanted, **changes: t.Any) -> Observed:
    """Return what is seen of an instance that is as wanted."""
    written = files(wanted, Observed())
    replica = wanted.role == "replica"
    facts: dict[str, t.Any] = {
        "installed": True,
        "files": {path: file.content for path, file in written.items()},
        "modes": {path: file.mode for path, file in written.items()},
        "data_exists": True,
        "data_in_use": True,
        "config_exists": True,
        "autostart": "auto",
        "standby_signal": replica,
        "running": True,
        "in_recovery": replica,
        "streaming": replica,
        "system_identifier": "7",
        "timeline": 2,
        "lsn": HERE,
        "history_function": True,
        "slots": [slot(name) for name in wanted.slots],
        "logins": {
            login.name: {"password": scram.verifier(login.password, b"salt"), "complete": True}
            for login in (REPLICATION, MONITORING)
        },
    }
    return Observed(**{**facts, **changes})


def slot(name: str, active: bool = False, wal_status: str = "reserved") -> dict[str, t.Any]:
    return {"slot_name": name, "active": active, "wal_status": wal_status}


def actions(plan: Plan) -> list[str]:
    return [step.action for step in plan.steps]


def adrift(**changes: t.Any) -> Observed:
    """Return a replica that runs and does not stream, with an upstream that answers."""
    return settled(REPLICA, **{"streaming": False, "upstream": UPSTREAM, **changes})


def refused(observed: Observed, wanted: Wanted) -> PlanError:
    with pytest.raises(PlanError) as caught:
        plan(observed, wanted)
    return caught.value


# --- present


@pytest.mark.parametrize("wanted", [PRIMARY, REPLICA], ids=["primary", "replica"])
def test_an_instance_that_is_as_wanted_is_left_alone(wanted: Wanted) -> None:
    result = plan(settled(wanted), wanted)

    assert [list(part) for part in dataclasses.astuple(result)] == [[], [], [], []]


@given(
    st.sampled_from([PRIMARY, REPLICA]),
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,12}", fullmatch=True), st.one_of(st.booleans(), st.integers(), st.text()), max_size=4
    ),
    st.integers(1, 65535),
)
def test_files_written_once_are_not_written_again(wanted: Wanted, values: dict[str, t.Any], port: int) -> None:
    wanted = dataclasses.replace(wanted, settings=values, port=port)

    assert plan(settled(wanted), wanted).steps == []


def test_an_empty_machine_becomes_a_primary_in_this_order() -> None:
    steps = actions(plan(Observed(installed=True), PRIMARY))

    assert [action for action in steps if action != "write"] == [
        "create",
        "start",
        "login",
        "login",
        "function",
        "slot",
    ]
    assert steps.index("write") > steps.index("create")
    assert len(steps) - 1 - steps[::-1].index("write") < steps.index("start")
    assert steps.count("write") == len(files(PRIMARY, Observed()))


def test_an_empty_machine_becomes_a_replica_configured_before_it_starts() -> None:
    steps = actions(plan(Observed(installed=True, upstream=UPSTREAM), REPLICA))

    assert [action for action in steps if action != "write"] == ["clone", "start"]
    # the clone starts with these files, and the upstream's own configuration never runs here
    assert steps.index("clone") > steps.index("write")


def test_a_replica_makes_no_logins_since_they_are_its_primarys() -> None:
    assert actions(plan(settled(REPLICA, logins={}, history_function=False), REPLICA)) == []


@pytest.mark.parametrize(
    ("path", "change", "why"),
    [
        ("content", {"files": "x"}, "content"),
        ("missing", {"files": None}, "missing"),
        ("mode", {"modes": 0o666}, "mode or owner"),
    ],
)
def test_a_file_that_differs_is_written_and_loaded(path: str, change: dict[str, t.Any], why: str) -> None:
    hba, seen = f"{PATHS.config}/pg_hba.conf", settled(PRIMARY)
    ((field, value),) = change.items()
    current = {name: held for name, held in {**getattr(seen, field), hba: value}.items() if held is not None}

    steps = plan(dataclasses.replace(seen, **{field: current}), PRIMARY).steps

    assert [(step.action, step.object) for step in steps] == [("write", hba), ("reload", PATHS.unit)]
    assert why in steps[0].why


def test_a_stopped_instance_is_started_without_touching_its_data() -> None:
    seen = settled(PRIMARY, running=False, in_recovery=None)

    assert "start" in actions(plan(seen, PRIMARY))
    assert not DESTRUCTIVE & set(actions(plan(seen, PRIMARY)))


@pytest.mark.parametrize("wanted", [PRIMARY, REPLICA])
def test_files_of_someone_else_where_the_data_belongs_are_not_touched(wanted: Wanted) -> None:
    assert "Move it away yourself" in str(refused(Observed(installed=True, data_in_use=True), wanted))


def test_a_replica_is_not_made_a_primary_by_declaring_it() -> None:
    assert "Promote it with the switchover" in str(refused(settled(REPLICA), PRIMARY))


def test_a_fenced_primary_does_not_come_back_by_declaring_it() -> None:
    error = refused(settled(PRIMARY, running=False, standby_signal=True, fence={"candidate": "pg2"}), PRIMARY)

    assert error.code == "fenced"
    assert "switchover to pg2" in str(error)


def test_a_half_rewound_directory_is_no_primary() -> None:
    assert "half rewound" in str(refused(settled(PRIMARY, rewinding=True), PRIMARY))


@pytest.mark.parametrize("rebuild", ["never", "rewind", "basebackup"])
@pytest.mark.parametrize(
    "leftover",
    [{}, {"incoming": True, "incoming_complete": True}, {"incoming": True, "cloning": True}, {"rewinding": True}],
)
def test_a_running_primary_is_never_made_a_replica(rebuild: str, leftover: dict[str, t.Any]) -> None:
    # with a base backup from before its promotion beside it, too
    seen = settled(PRIMARY, upstream=UPSTREAM, **leftover)

    assert refused(seen, dataclasses.replace(REPLICA, rebuild=rebuild)).code == "two_primaries"


def test_a_former_primary_that_has_not_diverged_is_demoted() -> None:
    seen = adrift(running=False, standby_signal=False, control={"Database cluster state": "shut down"})

    steps = actions(plan(seen, REPLICA))

    assert [step for step in steps if step in ("demote", "start")] == ["demote", "start"]
    assert len(DESTRUCTIVE & set(steps)) == 1


def test_a_former_primary_waits_until_its_upstream_can_be_asked() -> None:
    error = refused(adrift(running=False, standby_signal=False, upstream=None, upstream_error="no route"), REPLICA)

    assert "no route" in str(error)


def test_a_replica_whose_upstream_is_silent_is_left_as_it_is_with_a_warning() -> None:
    result = plan(adrift(upstream=None, upstream_error="no route"), REPLICA)

    assert actions(result) == []
    assert "no route" in result.warnings[0]


def test_data_of_another_cluster_is_never_rebuilt_over() -> None:
    error = refused(adrift(system_identifier="8"), dataclasses.replace(REPLICA, rebuild="basebackup"))

    assert error.code == "foreign_data"
    assert PATHS.data in str(error)


@pytest.mark.parametrize(
    ("seen", "rebuild", "expected"),
    [
        (adrift(timeline=1, lsn=FORK + 8), "never", ["rewind", "basebackup"]),
        (adrift(timeline=1, lsn=FORK + 8), "rewind", "rewind"),
        (adrift(timeline=1, lsn=FORK + 8), "basebackup", "rewind"),
        (adrift(lsn=OLDEST - 1), "never", ["basebackup"]),
        (adrift(lsn=OLDEST - 1), "rewind", ["basebackup"]),
        (adrift(lsn=OLDEST - 1), "basebackup", "clone"),
        (adrift(rewinding=True), "never", ["basebackup"]),
        (adrift(rewinding=True), "rewind", ["basebackup"]),
        (adrift(rewinding=True), "basebackup", "clone"),
    ],
)
def test_a_replica_that_fell_off_is_rebuilt_only_as_far_as_allowed(
    seen: Observed, rebuild: str, expected: t.Any
) -> None:
    wanted = dataclasses.replace(REPLICA, rebuild=rebuild)

    if isinstance(expected, list):
        error = refused(seen, wanted)
        assert (error.code, error.facts["needs"]) == ("fell_off", expected)
        assert "'rebuild'" in str(error)
        assert repr(rebuild) in str(error)
    else:
        assert actions(plan(seen, wanted)) == [expected, "start"]


def test_a_finished_base_backup_takes_its_place() -> None:
    nothing = Observed(installed=True, incoming=True, incoming_complete=True)

    assert [step for step in actions(plan(nothing, REPLICA)) if step != "write"] == ["swap", "start"]
    allowed = dataclasses.replace(REPLICA, rebuild="basebackup")
    assert actions(plan(adrift(lsn=OLDEST - 1, incoming=True, incoming_complete=True), allowed)) == ["swap", "start"]


def test_a_base_backup_beside_data_waits_when_a_rebuild_is_no_longer_allowed() -> None:
    beside = {"incoming": True, "incoming_complete": True}

    assert refused(adrift(lsn=OLDEST - 1, **beside), REPLICA).code == "fell_off"
    assert actions(plan(adrift(**beside), REPLICA)) == []


def test_a_running_base_backup_is_attached_to() -> None:
    seen = adrift(lsn=OLDEST - 1, incoming=True, cloning=True)

    assert actions(plan(seen, dataclasses.replace(REPLICA, rebuild="basebackup"))) == ["clone", "start"]


@pytest.mark.parametrize(
    "leftover", [{"incoming": True}, {"incoming": True, "incoming_complete": True}, {"incoming": True, "cloning": True}]
)
def test_a_replica_that_streams_again_needs_no_base_backup(leftover: dict[str, t.Any]) -> None:
    steps = plan(settled(REPLICA, **leftover), dataclasses.replace(REPLICA, rebuild="basebackup")).steps

    assert [(step.action, step.object) for step in steps if step.action in {"discard", *DESTRUCTIVE}] == [
        ("discard", PATHS.incoming)
    ]


def test_the_former_directory_is_discarded_only_once_its_successor_streams() -> None:
    assert [(step.action, step.object) for step in plan(settled(REPLICA, replaced=True), REPLICA).steps] == [
        ("discard", PATHS.replaced)
    ]
    assert actions(plan(adrift(replaced=True), REPLICA)) == []


def test_the_journal_goes_once_a_former_primary_is_a_replica() -> None:
    assert actions(plan(settled(REPLICA, fence={"candidate": "pg1"}), REPLICA)) == ["unjournal"]


# --- why a data directory cannot follow


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({}, None, ""),
        ({"lsn": NOW}, None, ""),
        ({"lsn": OLDEST}, None, ""),
        ({"timeline": 1, "lsn": FORK}, None, ""),
        ({"system_identifier": "8"}, "foreign", "system identifier 8, upstream 7"),
        ({"system_identifier": "8", "lsn": 1}, "foreign", "8"),
        ({"timeline": 3}, "rewind", "timeline 3 is not in the history of the upstream's timeline 2"),
        ({"timeline": 1, "lsn": FORK + 1}, "rewind", "0/3000001 on timeline 1, which the upstream left at 0/3000000"),
        ({"lsn": NOW + 1}, "rewind", "0/5000001, ahead of the upstream's 0/5000000"),
        ({"lsn": OLDEST - 1}, "clone", "0/1FFFFFF, and the upstream's oldest is 0/2000000"),
        ({"timeline": 1, "lsn": OLDEST - 1}, "clone", "oldest"),
        ({"lsn": None}, "clone", "0/0"),
        ({"upstream": None}, None, ""),
        ({"upstream": dataclasses.replace(UPSTREAM, oldest_wal=None), "lsn": 1}, None, ""),
    ],
)
@pytest.mark.parametrize("primary", [False, True], ids=["replica", "former primary"])
def test_each_reason_is_told_with_its_positions(
    changes: dict[str, t.Any], kind: str | None, words: str, primary: bool
) -> None:
    stopped = (
        {"running": False, "standby_signal": False, "control": {"Database cluster state": "shut down"}}
        if primary
        else {}
    )

    found = diagnose(adrift(**{**stopped, **changes}))

    assert (found[0] if found else None) == kind
    assert words in (found[1] if found else "")


@pytest.mark.parametrize(
    "control", [{}, {"Database cluster state": "in production"}, {"Database cluster state": "shutting down"}]
)
def test_a_former_primary_that_crashed_may_hold_writes_of_its_own(control: dict[str, str]) -> None:
    found = diagnose(adrift(running=False, standby_signal=False, control=control))

    assert found is not None
    assert found[0] == "rewind"
    assert "not shut down cleanly" in found[1]


# --- restart, ALTER SYSTEM

STATIC = {"max_connections": {"setting": "100", "context": "postmaster", "boot_val": "100"}}


def changed(**values: t.Any) -> Wanted:
    return dataclasses.replace(PRIMARY, settings={**PRIMARY.settings, **values})


def test_a_setting_that_only_a_restart_applies_restarts() -> None:
    result = plan(settled(PRIMARY, settings=STATIC), changed(max_connections=200))

    assert actions(result) == ["write", "restart"]
    assert "max_connections" in result.steps[-1].why
    assert result.restart_required == ()


def test_without_leave_to_restart_the_setting_is_named_instead() -> None:
    result = plan(settled(PRIMARY, settings=STATIC), dataclasses.replace(changed(max_connections=200), restart=False))

    assert actions(result) == ["write", "reload"]
    assert result.restart_required == ["max_connections"]


def test_a_restart_that_was_not_allowed_is_named_again_but_nothing_is_done() -> None:
    wanted = dataclasses.replace(changed(max_connections=200), restart=False)

    result = plan(settled(wanted, settings=STATIC, pending_restart=["max_connections"]), wanted)

    assert actions(result) == []
    assert result.restart_required == ["max_connections"]


def test_other_settings_are_only_loaded() -> None:
    assert actions(plan(settled(PRIMARY, settings=STATIC), changed(work_mem="8MB"))) == ["write", "reload"]


@pytest.mark.parametrize(
    ("setting", "value", "names"),
    [
        ({"setting": "200", "boot_val": "100"}, 200, []),
        ({"setting": "100", "boot_val": "100"}, 200, ["max_connections"]),
        # left out: what matters is whether the default already runs
        ({"setting": "100", "boot_val": "100"}, None, []),
        ({"setting": "200", "boot_val": "100"}, None, ["max_connections"]),
    ],
)
def test_no_restart_for_what_already_runs(setting: dict[str, str], value: int | None, names: list[str]) -> None:
    values = {name: held for name, held in {**PRIMARY.settings, "max_connections": value}.items() if held is not None}
    seen = settled(PRIMARY, settings={"max_connections": {**setting, "context": "postmaster"}})

    assert restart_names(seen, dataclasses.replace(PRIMARY, settings=values)) == names


def test_a_hidden_setting_is_reported_and_the_modules_own_is_reset() -> None:
    result = plan(settled(REPLICA, auto_settings=["primary_conninfo", "work_mem", "fsync"]), REPLICA)

    assert [(step.action, step.object) for step in result.steps] == [
        ("reset", "primary_conninfo"),
        ("reload", PATHS.unit),
    ]
    assert len(result.warnings) == 1
    assert "work_mem" in result.warnings[0]


# --- logins


@pytest.mark.parametrize(
    ("login", "why"),
    [
        (None, "missing"),
        ({"password": scram.verifier("hunter22!", b"salt"), "complete": False}, "differs"),
        ({"password": scram.verifier("another one", b"salt"), "complete": True}, "differs"),
        ({"password": None, "complete": True}, "differs"),
    ],
)
def test_a_login_that_is_not_as_wanted_is_made_so(login: dict[str, t.Any] | None, why: str) -> None:
    seen = settled(PRIMARY)
    logins = {name: held for name, held in {**seen.logins, "repl": login}.items() if held is not None}

    steps = plan(dataclasses.replace(seen, logins=logins), PRIMARY).steps

    assert [(step.action, step.object) for step in steps] == [("login", "repl")]
    assert why in steps[0].why
    assert "hunter22!" not in repr(steps) + repr([step.as_dict() for step in steps])


def test_logins_that_are_not_declared_are_not_made() -> None:
    bare = dataclasses.replace(PRIMARY, replication=None, monitoring=None)

    assert actions(plan(settled(bare, logins={}, history_function=False), bare)) == []


def test_the_function_of_the_health_module_is_made_when_it_is_missing() -> None:
    assert actions(plan(settled(PRIMARY, history_function=False), PRIMARY)) == ["function"]


# --- slots


@pytest.mark.parametrize(
    "wanted", [PRIMARY, dataclasses.replace(REPLICA, slots=("headroom_pg2",))], ids=["primary", "cascade"]
)
@pytest.mark.parametrize(
    ("present", "expected", "in_use"),
    [
        ([], [("slot", "headroom_pg2")], []),
        ([slot("headroom_pg2", active=True)], [], []),
        ([slot("headroom_pg2", wal_status="lost")], [("unslot", "headroom_pg2"), ("slot", "headroom_pg2")], []),
        ([slot("headroom_pg2"), slot("headroom_old")], [("unslot", "headroom_old")], []),
        ([slot("headroom_pg2"), slot("headroom_old", active=True)], [], ["headroom_old"]),
        ([slot("headroom_pg2"), slot("backup"), slot("barman_headroom_1", wal_status="lost")], [], []),
    ],
    ids=["missing", "there", "lost", "unwanted", "unwanted in use", "of others"],
)
def test_slots(
    wanted: Wanted, present: list[dict[str, t.Any]], expected: list[tuple[str, str]], in_use: list[str]
) -> None:
    result = plan(settled(wanted, slots=present), wanted)

    assert [(step.action, step.object) for step in result.steps] == expected
    assert result.slots_in_use == in_use


# --- stopped, absent, fenced, promoted


def test_a_live_primary_that_a_killed_switchover_left_marked_is_one_after_its_next_start_too() -> None:
    left = settled(PRIMARY, fence={"candidate": "pg2"}, standby_signal=True)

    assert actions(plan(left, PRIMARY)) == ["unfence", "unjournal"]
    assert actions(plan(left, state(PRIMARY, "promoted"))) == ["unfence", "unjournal"]


def test_a_fenced_primary_that_was_started_as_a_replica_is_given_back_its_part() -> None:
    started = settled(REPLICA, fence={"candidate": "pg2"})

    assert actions(plan(started, state(PRIMARY, "promoted"))) == ["stop", "unfence", "start", "unjournal"]


def test_a_stopped_primary_is_started_before_its_logins_and_slots_are_judged() -> None:
    stopped = settled(PRIMARY, running=False, logins={}, slots=[], history_function=False)

    assert actions(plan(stopped, PRIMARY)) == ["start"]


def test_a_replica_is_kept_from_starting_at_boot_before_it_is_stopped() -> None:
    assert actions(plan(settled(REPLICA), state(REPLICA, "stopped"))) == ["disable", "stop"]
    assert actions(plan(settled(REPLICA, running=False, autostart="disabled"), state(REPLICA, "stopped"))) == []


def test_a_running_primary_is_not_stopped() -> None:
    assert "Switch over first" in str(refused(settled(PRIMARY), state(PRIMARY, "stopped")))


def test_a_replica_is_removed_with_all_that_lies_beside_it() -> None:
    steps = plan(settled(REPLICA, incoming=True, replaced=True), state(REPLICA, "absent")).steps

    assert [(step.action, step.object) for step in steps] == [
        ("stop", PATHS.unit),
        ("remove", PATHS.config),
        ("discard", PATHS.incoming),
        ("remove", PATHS.data),
        ("remove", PATHS.replaced),
    ]


def test_what_is_absent_stays_absent() -> None:
    assert actions(plan(Observed(installed=True), state(REPLICA, "absent"))) == []


@pytest.mark.parametrize("running", [True, False])
def test_a_primarys_data_is_not_removed(running: bool) -> None:
    assert "not removed" in str(refused(settled(PRIMARY, running=running), state(PRIMARY, "absent")))


FENCED = {"running": False, "standby_signal": True, "in_recovery": None}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["fence", "stop", "seal"]),
        # killed between the journal and the signal: the signal is what keeps it from coming back
        ({"fence": {"candidate": "pg2"}}, ["fence", "stop", "seal"]),
        ({"fence": {"candidate": "pg2"}, "standby_signal": True}, ["stop", "seal"]),
        ({**FENCED, "fence": {"candidate": "pg2"}}, ["seal"]),
        ({**FENCED, "fence": {"candidate": "pg2", "wal_end_lsn": "0/5000000"}}, []),
        # a journal from before says nothing about a primary that still writes
        ({"fence": {"candidate": "pg2", "wal_end_lsn": "0/5000000"}, "standby_signal": True}, ["stop", "seal"]),
        ({"running": False, "in_recovery": None}, ["fence", "seal"]),
    ],
)
def test_a_primary_is_fenced_from_wherever_a_former_run_stopped(changes: dict[str, t.Any], expected: list[str]) -> None:
    assert actions(plan(settled(PRIMARY, **changes), state(PRIMARY, "fenced", candidate="pg2"))) == expected


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (settled(REPLICA), "no primary"),
        (settled(REPLICA, fence={"candidate": "pg1"}), "has been started since"),
        (Observed(installed=True), "no primary"),
    ],
)
def test_only_a_primary_is_fenced(seen: Observed, words: str) -> None:
    assert words in str(refused(seen, state(PRIMARY, "fenced")))


@pytest.mark.parametrize("lsn", [HERE, NOW, None])
def test_a_replica_is_promoted_up_to_the_end_of_the_fenced_wal(lsn: int | None) -> None:
    assert actions(plan(settled(REPLICA, lsn=lsn), state(REPLICA, "promoted", wal_end_lsn="0/5000000"))) == ["promote"]


@pytest.mark.parametrize(
    ("seen", "end", "code", "words"),
    [
        (
            settled(REPLICA, lsn=NOW + 1),
            "0/5000000",
            "diverged",
            "0/5000001, beyond the fenced primary's end 0/5000000",
        ),
        (settled(REPLICA), None, "refused", "wal_end_lsn"),
        (settled(REPLICA, replay_paused=True), "0/5000000", "refused", "pg_wal_replay_resume()"),
        (settled(REPLICA, running=False), "0/5000000", "refused", "does not run"),
        (settled(PRIMARY, running=False), "0/5000000", "refused", "does not run"),
        (Observed(installed=True), "0/5000000", "refused", "does not exist"),
    ],
)
def test_what_cannot_be_promoted_says_why(seen: Observed, end: str | None, code: str, words: str) -> None:
    error = refused(seen, state(REPLICA, "promoted", wal_end_lsn=end))

    assert error.code == code
    assert words in str(error)


def test_a_promoted_one_is_left_alone_but_for_its_journal() -> None:
    wanted = state(PRIMARY, "promoted", wal_end_lsn="0/5000000")

    assert actions(plan(settled(PRIMARY), wanted)) == []
    assert actions(plan(settled(PRIMARY, fence={"candidate": "pg2"}), wanted)) == ["unjournal"]


def test_a_fence_is_undone_by_promoting_the_fenced_one() -> None:
    seen = settled(PRIMARY, **FENCED, fence={"candidate": "pg2"})

    assert actions(plan(seen, state(PRIMARY, "promoted"))) == ["unfence", "start", "unjournal"]


# --- what no plan ever does

STATES = ["present", "stopped", "absent", "fenced", "promoted"]
FENCES = st.sampled_from([None, {"candidate": "pg2"}, {"candidate": "pg2", "wal_end_lsn": "0/5000000"}])


@st.composite
def machines(draw: st.DrawFn) -> Observed:
    """Draw anything that can be seen of an instance, however it came about."""
    flag = st.booleans()
    exists = draw(flag)
    running = exists and draw(flag)
    recovery = draw(st.sampled_from([True, False, None])) if running else None
    incoming = draw(flag)
    upstream = st.builds(
        UpstreamFacts,
        system_identifier=st.sampled_from(["7", "8"]),
        version=st.just(17),
        timeline=st.integers(1, 3),
        history=st.lists(st.tuples(st.integers(1, 2), st.integers(0, 9))),
        lsn=st.integers(0, 9),
        data_bytes=st.just(1),
        oldest_wal=st.none() | st.integers(0, 9),
    )
    written = draw(st.sampled_from([{}, settled(PRIMARY).files, settled(REPLICA).files]))
    return Observed(
        installed=True,
        files=written,
        modes=draw(st.sampled_from([{}, settled(REPLICA).modes])),
        config_exists=bool(written),
        data_exists=exists,
        data_in_use=exists or draw(flag),
        autostart=draw(st.sampled_from([None, "auto", "disabled"])),
        incoming=incoming,
        incoming_complete=incoming and draw(flag),
        cloning=incoming and draw(flag),
        replaced=draw(flag),
        rewinding=draw(flag),
        fence=draw(FENCES),
        standby_signal=exists and draw(flag),
        control=draw(st.sampled_from([{}, {"Database cluster state": "shut down"}])),
        running=running,
        in_recovery=recovery,
        streaming=bool(recovery) and draw(flag),
        replay_paused=bool(recovery) and draw(flag),
        system_identifier=draw(st.sampled_from([None, "7", "8"])),
        timeline=draw(st.none() | st.integers(1, 3)),
        lsn=draw(st.none() | st.integers(0, 9)),
        slots=draw(st.lists(st.builds(slot, st.sampled_from(["headroom_pg2", "other"]), st.booleans()), max_size=2)),
        upstream=draw(st.none() | upstream),
        upstream_error="no route",
    )


WANTED = st.builds(
    dataclasses.replace,
    st.sampled_from([PRIMARY, REPLICA]),
    state=st.sampled_from(STATES),
    rebuild=st.sampled_from(["never", "rewind", "basebackup"]),
    restart=st.booleans(),
    wal_end_lsn=st.sampled_from([None, "0/5"]),
)


def planned(seen: Observed, wanted: Wanted) -> collections.abc.Sequence[Step]:
    """Return the steps; none when the plan is refused, which is the only other way out."""
    try:
        return plan(seen, wanted).steps
    except PlanError as error:
        told = str(error)
    assert told.endswith(".")
    return ()


@settings(max_examples=400)
@given(machines(), WANTED)
def test_whatever_is_found_good_data_is_safe(seen: Observed, wanted: Wanted) -> None:
    steps = planned(seen, wanted)
    touched = {step.action for step in steps} & DESTRUCTIVE - {"remove"}
    removed = {step.object for step in steps if step.action == "remove"}

    if seen.streaming and not seen.rewinding:
        assert touched == set()
        assert removed == set() or wanted.state == "absent"
    if seen.data_exists and wanted.rebuild == "never":
        assert not touched & {"create", "clone", "rewind", "swap"}
    if wanted.rebuild == "rewind" and seen.data_exists:
        assert not touched & {"create", "clone", "swap"}
    if seen.role == "primary":
        assert PATHS.data not in removed
        if seen.running and seen.in_recovery is False:
            assert touched == set()
    if wanted.role == "primary" or wanted.state != "present":
        assert not touched - {"create"}
    if wanted.state != "absent":
        assert removed == set()
    if seen.data_exists:
        assert "create" not in touched
    if seen.data_in_use and not seen.data_exists:
        assert touched == set()
    for step in steps:
        if step.action == "discard" and step.object == PATHS.replaced:
            assert seen.streaming
        assert step.action != "discard" or step.object in (PATHS.replaced, PATHS.incoming)


@given(machines(), WANTED)
def test_no_secret_is_told(seen: Observed, wanted: Wanted) -> None:
    try:
        result = plan(seen, wanted)
        told = repr(result) + repr(diff(seen, wanted, result)) + repr(facts(seen, wanted))
    except PlanError as error:
        told = repr(error.as_dict())

    assert "hunter22!" not in told
    assert "sesame 99" not in told


# --- killed at any point


class Killed(Exception):
    """The run ended between two changes."""


def converge(
    machine: Machine, wanted: Wanted, changes: int | None = None, check: t.Callable[[], None] = lambda: None
) -> None:
    """Run as the module does, and die after that many changes."""
    done = 0
    for _round in range(ROUNDS):
        seen = machine.observe(wanted)
        steps = plan(seen, wanted).steps
        if not steps:
            return
        for step in steps:
            for _change in machine.apply(step, wanted, seen):
                check()
                done += 1
                if done == changes:
                    raise Killed
    raise AssertionError(f"no rest after {ROUNDS} rounds: {machine.log}")


def running_replica(**data: t.Any) -> Machine:
    return Machine(data=Data(signal=True, **data)).configure(REPLICA).launch()


def running_primary() -> Machine:
    machine = Machine(data=Data(), function=True, slots=["headroom_pg2"]).configure(PRIMARY).launch()
    machine.logins = dict(settled(PRIMARY).logins)
    return machine


def stopped(machine: Machine, **changes: t.Any) -> Machine:
    machine.halt()
    return dataclasses.replace(machine, **changes)


def former_primary(clean: bool, lsn: int) -> Machine:
    return Machine(data=Data(timeline=1, lsn=lsn, clean=clean)).configure(PRIMARY)


def fenced() -> Machine:
    machine = stopped(running_primary(), fence={"candidate": "pg2", "timeline": 2, "wal_end_lsn": "0/5000000"})
    assert machine.data is not None
    machine.data.signal = True
    return machine


def littered_replica() -> Machine:
    return dataclasses.replace(running_replica(), incoming=Data(), complete=True, replaced=Data())


REBUILT = dataclasses.replace(REPLICA, rebuild="basebackup")
SCENARIOS: dict[str, tuple[t.Callable[[], Machine], Wanted]] = {
    "new primary": (Machine, PRIMARY),
    "new replica": (Machine, REPLICA),
    "stopped primary": (lambda: stopped(running_primary()), PRIMARY),
    "reconfigured primary": (running_primary, changed(max_connections=200)),
    "replica without its wal": (lambda: running_replica(lsn=OLDEST - 1), REBUILT),
    "diverged primary": (lambda: former_primary(clean=False, lsn=FORK + 8), REBUILT),
    "clean former primary": (lambda: former_primary(clean=True, lsn=FORK), REPLICA),
    "former primary with journal": (fenced, REPLICA),
    "half rewound": (lambda: stopped(running_replica(), rewinding=True), REBUILT),
    "stale base backup": (lambda: dataclasses.replace(running_replica(), incoming=Data(), complete=True), REBUILT),
    "stopping": (running_replica, state(REPLICA, "stopped")),
    "leaving": (littered_replica, state(REPLICA, "absent")),
    "fencing": (running_primary, state(PRIMARY, "fenced", candidate="pg2")),
    "promotion": (running_replica, state(REPLICA, "promoted", wal_end_lsn="0/5000000")),
    "rollback": (fenced, state(PRIMARY, "promoted")),
}  # fmt: skip


def is_right(machine: Machine, wanted: Wanted, primary_before: bool) -> None:
    """Say that the wanted state is reached, from the machine itself and not from the plan."""
    assert not machine.rewinding
    if wanted.state == "absent":
        assert [machine.data, machine.incoming, machine.replaced, machine.files, machine.running] == [
            None,
            None,
            None,
            {},
            False,
        ]
        return
    assert machine.data is not None
    assert machine.data.whole
    if wanted.state == "stopped":
        assert not machine.running
        assert machine.files[f"{PATHS.config}/start.conf"] == "disabled\n"
    elif wanted.state == "fenced":
        assert not machine.running
        assert machine.data.signal
        assert machine.fence == {"candidate": "pg2", "timeline": 2, "wal_end_lsn": "0/5000000"}
    else:
        assert machine.running
        assert machine.fence is None
        assert machine.recovering == machine.data.signal == (wanted.role == "replica" and wanted.state == "present")
    if wanted.state == "present":
        assert machine.files == {path: file.content for path, file in files(wanted, Observed()).items()}
        assert machine.slots == list(wanted.slots) or not primary_before
        assert machine.streams(wanted) == (wanted.role == "replica")
        assert [machine.incoming, machine.replaced] == [None, None]
    if wanted.role == "primary" and wanted.state == "present":
        assert set(machine.logins) == {"repl", "watch"}
        assert machine.function


def survive(name: str, kills: t.Iterable[int], clone_dies: bool) -> bool:
    """Kill a scenario after so many changes, again and again, then let it end; say whether the last kill still hit."""
    make, wanted = SCENARIOS[name]
    machine = make()
    origin = machine.data
    was_primary = wanted.role == "primary" and origin is not None
    streamed = False

    def check() -> None:
        nonlocal streamed
        streamed = streamed or machine.streams(wanted)
        if wanted.state == "absent" or origin is None:
            return
        if was_primary or wanted.state != "present":
            assert machine.data is origin
            assert origin.whole
        else:
            # rewound in place, kept beside its successor, or succeeded by one that was seen to stream
            assert origin in (machine.data, machine.replaced) or streamed

    hit = False
    for changes in kills:
        hit = False
        try:
            converge(machine, wanted, changes, check)
        except Killed:
            hit = True
            if machine.cloning and clone_dies:
                machine.cloning = False
    machine.log.clear()
    converge(machine, wanted, None, check)
    is_right(machine, wanted, was_primary)
    settled_at = copy.deepcopy(machine)
    machine.log.clear()
    converge(machine, wanted)
    assert machine.log == []
    assert repr(dataclasses.replace(settled_at, log=[])) == repr(machine)
    return hit


@pytest.mark.parametrize("clone_dies", [False, True], ids=["clone goes on", "clone dies"])
@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_a_run_killed_after_any_change_is_finished_by_the_next(name: str, clone_dies: bool) -> None:
    assert survive(name, [], clone_dies) is False
    changes = 1
    while survive(name, [changes], clone_dies):
        changes += 1

    assert changes > 1


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SCENARIOS)), st.lists(st.integers(1, 25), max_size=5), st.booleans())
def test_a_run_killed_several_times_is_finished_by_the_last(name: str, kills: list[int], clone_dies: bool) -> None:
    survive(name, kills, clone_dies)


def test_a_rewind_that_was_killed_asks_for_a_base_backup_before_it_goes_on() -> None:
    wanted = dataclasses.replace(REPLICA, rebuild="rewind")
    outcomes = set()
    for changes in range(1, 8):
        machine = former_primary(clean=False, lsn=FORK + 8)
        with pytest.raises(Killed):
            converge(machine, wanted, changes)
        try:
            converge(machine, wanted)
            outcomes.add("finished")
        except PlanError as error:
            outcomes.add(f"asked for {error.facts['needs']}")
            converge(machine, REBUILT)
        is_right(machine, wanted, False)

    assert outcomes == {"finished", "asked for ['basebackup']"}
