# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Read what an instance is. Changes nothing."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import tempfile
import time
import typing as t

from ..._common.errors import HeadroomError
from . import node
from .files import conninfo, files, upstream_conninfo
from .model import Observed, Paths, UpstreamFacts, Wanted, lsn_to_int

_TIMELINE = """
  CASE WHEN pg_is_in_recovery() THEN greatest(
      (SELECT timeline_id FROM pg_control_checkpoint()),
      (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
      (SELECT received_tli FROM pg_stat_wal_receiver))
    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END
"""

_LOCAL = f"""
SELECT json_build_object(
  'in_recovery', pg_is_in_recovery(),
  'system_identifier', (SELECT system_identifier::text FROM pg_control_system()),
  'timeline', {_TIMELINE},
  'lsn', CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
              ELSE pg_current_wal_flush_lsn() END,
  'streaming', EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'),
  'replay_paused', CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END,
  'settings', (SELECT json_object_agg(name, json_build_object('setting', setting, 'context', context, 'boot_val', boot_val))
               FROM pg_settings WHERE context = 'postmaster'),
  'pending_restart', (SELECT coalesce(json_agg(name ORDER BY name), '[]') FROM pg_settings WHERE pending_restart),
  'auto_settings', (SELECT coalesce(json_agg(DISTINCT name), '[]') FROM pg_file_settings
                    WHERE sourcefile LIKE '%/postgresql.auto.conf'),
  'data_bytes', (SELECT sum(pg_database_size(oid)) FROM pg_database),
  'slots', (SELECT coalesce(json_agg(json_build_object('slot_name', slot_name, 'active', active, 'wal_status', wal_status)), '[]')
            FROM pg_replication_slots WHERE slot_type = 'physical'),
  'logins', (SELECT coalesce(json_object_agg(rolname, json_build_object('password', rolpassword, 'complete',
      rolcanlogin AND pg_has_role(oid, 'pg_monitor', 'MEMBER') AND CASE rolname
        WHEN :'replication' THEN rolreplication
          AND has_function_privilege(oid, 'pg_ls_dir(text, boolean, boolean)', 'EXECUTE')
          AND has_function_privilege(oid, 'pg_stat_file(text, boolean)', 'EXECUTE')
          AND has_function_privilege(oid, 'pg_read_binary_file(text)', 'EXECUTE')
          AND has_function_privilege(oid, 'pg_read_binary_file(text, bigint, bigint, boolean)', 'EXECUTE')
        ELSE coalesce(has_function_privilege(oid, to_regprocedure('headroom.timeline_history(integer)'), 'EXECUTE')
                      AND has_schema_privilege(oid, to_regnamespace('headroom'), 'USAGE'), false)
        END)), '{{}}') FROM pg_authid WHERE rolname IN (:'replication', :'monitoring')),
  'history_function', to_regprocedure('headroom.timeline_history(integer)') IS NOT NULL
);
"""

_UPSTREAM = f"""
WITH position AS MATERIALIZED (SELECT {_TIMELINE} AS timeline)
SELECT json_build_object(
  'system_identifier', (SELECT system_identifier::text FROM pg_control_system()),
  'version', current_setting('server_version_num')::int / 10000,
  'timeline', timeline,
  'history', CASE WHEN timeline > 1 THEN
     convert_from(pg_read_binary_file('pg_wal/' || lpad(upper(to_hex(timeline)), 8, '0') || '.history'), 'UTF8') END,
  'lsn', CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
              ELSE pg_current_wal_flush_lsn() END,
  'data_bytes', (SELECT sum(pg_database_size(oid)) FROM pg_database),
  'oldest_wal', (SELECT min(substr(name, 9)) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{{24}}$'),
  'segment_bytes', (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'),
  'slot_wal_status', (SELECT wal_status FROM pg_replication_slots WHERE slot_name = :'slot')
) FROM position;
"""


def control(paths: Paths, data: str | None = None) -> dict[str, str]:
    """Return pg_controldata's figures by its own names."""
    done = node.run([f"{paths.bin}/pg_controldata", "-D", data or paths.data], user=node.USER)
    pairs = (line.partition(":") for line in done.stdout.splitlines())
    return {name.strip(): value.strip() for name, _colon, value in pairs if value}


def history(text: str | None) -> list[tuple[int, int]]:
    """Return (timeline, position at which it was left) of a timeline history file."""
    rows = (line.split() for line in (text or "").splitlines() if line.strip() and not line.startswith("#"))
    return [(int(row[0]), lsn_to_int(row[1])) for row in rows]


def upstream(wanted: Wanted) -> UpstreamFacts:
    """Ask the upstream, with the replication login, what decides whether a data directory can follow it.

    :raises HeadroomError: when it does not answer within 15 s or says something that cannot be read.
    """
    pairs = upstream_conninfo(wanted)
    if not pairs or wanted.replication is None or wanted.upstream is None:
        raise HeadroomError("no upstream and replication login are declared")
    described = files(wanted, Observed())
    account = pwd.getpwnam(node.USER)
    with tempfile.TemporaryDirectory(prefix="headroom-") as directory:
        # the configuration may not be there yet, so the password and the authority come from a private directory
        os.chown(directory, account.pw_uid, account.pw_gid)
        for name, source in (("passfile", wanted.paths.passfile), ("sslrootcert", f"{wanted.paths.config}/tls/ca.crt")):
            if source in described:
                pairs[name] = os.path.join(directory, name)
                with open(os.open(pairs[name], os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
                    file.write(described[source].content)
                os.chown(pairs[name], account.pw_uid, account.pw_gid)
        where = f"{wanted.upstream.host}:{wanted.upstream.port}"
        text = node.psql(
            ["-d", conninfo({**pairs, "dbname": "postgres"})],
            _UPSTREAM,
            {"slot": wanted.slot_name or ""},
            timeout_s=15,
            check=f"query upstream on {where}",
        )
    row = json.loads(text)
    oldest = row["oldest_wal"]
    return UpstreamFacts(
        system_identifier=row["system_identifier"],
        version=row["version"],
        timeline=row["timeline"],
        history=history(row["history"]),
        lsn=lsn_to_int(row["lsn"]),
        data_bytes=int(row["data_bytes"]),
        oldest_wal=(int(oldest[:8], 16) << 32) + int(oldest[8:], 16) * row["segment_bytes"] if oldest else None,
        slot_wal_status=row["slot_wal_status"],
    )


def clone_active(paths: Paths) -> bool:
    """Say whether a base backup runs in its unit."""
    return node.run(["systemctl", "is-active", "--quiet", paths.clone_unit]).returncode == 0


def _read(path: str) -> str | None:
    try:
        # line ends as they are: a certificate may have others, and reading them as written is what makes a run idempotent
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def segment_timelines(names: t.Iterable[str], lsn: int, segment_bytes: int) -> list[int]:
    """Return the timelines of the WAL segments, among file names, that hold the byte before a position."""
    segment, per_log = max(lsn - 1, 0) // segment_bytes, (1 << 32) // segment_bytes
    suffix = f"{segment // per_log:08X}{segment % per_log:08X}"
    return [int(name[:8], 16) for name in names if len(name) == 24 and name[8:] == suffix]


def followed_timeline(observed: Observed, seen: UpstreamFacts, names: t.Iterable[str]) -> int | None:
    """Return the timeline that a replica is on.

    Its control file shows the former one until the first restart point after a switch of timelines. The segment that its
    position lies in may carry a later one, which counts if the upstream went that way; others are left from a rewind.
    """
    segment_bytes = int(observed.control.get("Bytes per WAL segment", 16 << 20))
    found = segment_timelines(names, observed.lsn or 0, segment_bytes)
    line = {seen.timeline, *(timeline for timeline, _left in seen.history)}
    if observed.timeline not in line:
        return observed.timeline
    return max([observed.timeline, *(timeline for timeline in found if timeline in line)])


def _offline(paths: Paths, facts: dict[str, t.Any]) -> None:
    facts["control"] = figures = control(paths)
    facts["system_identifier"] = figures.get("Database system identifier")
    positions = [
        figures.get("Latest checkpoint location", "0/0"),
        figures.get("Minimum recovery ending location", "0/0"),
    ]
    facts["lsn"] = max(lsn_to_int(position) for position in positions)
    timelines = [
        figures.get("Latest checkpoint's TimeLineID", "0"),
        figures.get("Min recovery ending loc's timeline", "0"),
    ]
    facts["timeline"] = max(int(timeline) for timeline in timelines)


def _online(paths: Paths, wanted: Wanted, facts: dict[str, t.Any], patience_s: float) -> None:
    names = {
        "replication": wanted.replication.name if wanted.replication else "",
        "monitoring": wanted.monitoring.name if wanted.monitoring else "",
    }
    deadline = time.monotonic() + patience_s
    while True:
        try:
            row = node.local_json(paths, _LOCAL, names)
            break
        except HeadroomError as error:
            if "starting up" not in str(error) and "not yet accepting" not in str(error):
                raise
            if time.monotonic() > deadline:
                # a replica that cannot reach a consistent state answers nobody: judge it by its files
                return
            time.sleep(0.5)
    row["lsn"] = lsn_to_int(row["lsn"]) if row["lsn"] else None
    facts.update(row)


def observe(wanted: Wanted, *, patience_s: float = 30) -> Observed:
    """Return what the instance is now.

    :param patience_s: how long to wait for a server that is still starting up.
    :raises HeadroomError: when a running server cannot be asked.
    """
    paths = wanted.paths
    described = files(wanted, Observed())
    contents = {path: text for path in described for text in [_read(path)] if text is not None}
    try:
        account: pwd.struct_passwd | None = pwd.getpwnam(node.USER)
    except KeyError:
        account = None
    modes = {}
    for path in contents:
        status = os.stat(path)
        owned = account is not None and status.st_uid == account.pw_uid
        modes[path] = stat.S_IMODE(status.st_mode) if owned else -1
    facts: dict[str, t.Any] = {
        "installed": os.path.exists(f"{paths.bin}/postgres"),
        "files": contents,
        "modes": modes,
        "data_exists": os.path.exists(f"{paths.data}/PG_VERSION"),
        "data_in_use": os.path.isdir(paths.data) and bool(os.listdir(paths.data)),
        "config_exists": os.path.isdir(paths.config),
        "autostart": (_read(f"{paths.config}/start.conf") or "").strip() or None,
        "incoming": os.path.isdir(paths.incoming),
        "incoming_complete": os.path.isdir(paths.incoming) and os.path.exists(paths.incoming_complete),
        "replaced": os.path.isdir(paths.replaced),
        "rewinding": os.path.exists(paths.rewinding),
        "standby_signal": os.path.exists(paths.standby_signal),
        "fence": json.loads(_read(paths.fence) or "null"),
    }
    if facts["incoming"]:
        facts["cloning"] = clone_active(paths)
    if facts["installed"] and facts["data_exists"]:
        _offline(paths, facts)
        facts["running"] = node.running(paths)
        if facts["running"]:
            _online(paths, wanted, facts, patience_s)
    parent = os.path.dirname(paths.data)
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    facts["disk_free_bytes"] = shutil.disk_usage(parent).free
    observed = Observed(**facts)
    if wanted.state == "present" and wanted.role == "replica" and observed.installed and not observed.streaming:
        try:
            seen = upstream(wanted)
            if observed.data_exists and observed.role == "replica":
                facts["timeline"] = followed_timeline(observed, seen, os.listdir(f"{paths.data}/pg_wal"))
            return Observed(**facts, upstream=seen)
        except (HeadroomError, ValueError) as error:
            return Observed(**facts, upstream_error=str(error).rstrip("."))
    return observed
