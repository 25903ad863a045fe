# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Carry out the steps of a plan. Each step may be killed: what it leaves is seen by the next observation."""

from __future__ import annotations

import json
import os
import pwd
import re
import secrets
import shutil
import time
import typing as t

from ..._common.errors import HeadroomError
from . import node, scram
from .files import conninfo, files, upstream_conninfo
from .model import Login, Observed, Step, Wanted, int_to_lsn, lsn_to_int, record_end, segment_name
from .observe import clone_active, control

START_TIMEOUT_S = 300
STREAM_TIMEOUT_S = 30
PROMOTE_TIMEOUT_S = 60


class Unfinished(Exception):
    """A long step goes on by itself; the next call attaches to it.

    ``progress`` holds ``done_bytes``, ``total_bytes`` and ``percent``.
    """

    def __init__(self, progress: dict[str, t.Any]) -> None:
        """Keep how far the step is."""
        super().__init__("unfinished")
        self.progress = progress


class Applier:
    """Carries out steps on this node."""

    def __init__(self, wanted: Wanted, observed: Observed, *, slice_s: float) -> None:
        """Take what is wanted and what was seen.

        :param slice_s: how long one call may wait for a base backup before it reports progress.
        """
        self.wanted = wanted
        self.observed = observed
        self.slice_s = slice_s
        self.paths = wanted.paths
        self.files = files(wanted, observed)
        self.label = f"{self.paths.version}/{self.paths.name}"

    def apply(self, steps: t.Iterable[Step]) -> None:
        """Carry out the steps in order.

        :raises Unfinished: when a base backup still runs.
        :raises HeadroomError: when a step fails; those before it stand, and the next run goes on from there.
        """
        if not self.observed.installed:
            raise HeadroomError(
                f"Failed to set up instance {self.label}: the programs of PostgreSQL {self.paths.version} are not installed."
            )
        account = pwd.getpwnam(node.USER)
        self.uid, self.gid = account.pw_uid, account.pw_gid
        for step in steps:
            getattr(self, "_" + step.action)(step)

    # --- files

    def _put(self, path: str, content: str, mode: int) -> None:
        temporary = f"{path}.headroom"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chown(temporary, self.uid, self.gid)
        os.chmod(temporary, mode)
        if path.endswith("/postgresql.conf"):
            self._validate(temporary)
        os.replace(temporary, path)

    def _validate(self, candidate: str) -> None:
        try:
            # -C comes first: only then does the server's program answer to root
            node.run(
                [f"{self.paths.bin}/postgres", "-C", "data_directory", "-c", f"config_file={candidate}"],
                check=f"validate the configuration of instance {self.label}",
            )
        except HeadroomError:
            os.unlink(candidate)
            raise

    def _directory(self, path: str, mode: int) -> None:
        if not os.path.isdir(path):
            os.mkdir(path, mode)
            os.chown(path, self.uid, self.gid)

    def _write(self, step: Step) -> None:
        file = self.files[step.object]
        parents = []
        directory = os.path.dirname(step.object)
        while not os.path.isdir(directory):
            parents.append(directory)
            directory = os.path.dirname(directory)
        for parent in reversed(parents):
            self._directory(parent, 0o755)
        self._put(step.object, file.content, file.mode)
        if step.object.endswith("/start.conf"):
            # the generator of Debian's package decides from this file what starts at boot
            node.run(["systemctl", "daemon-reload"], check="reload systemd")

    def _remove(self, step: Step) -> None:
        if step.object == self.paths.incoming:
            self._forget(self.paths.incoming_complete)
        if step.object == self.paths.data:
            # half removed it must not be taken for a primary that lost its standby.signal, nor its markers for the next one's
            for path in (f"{self.paths.data}/PG_VERSION", self.paths.rewinding, self.paths.fence):
                self._forget(path)
        shutil.rmtree(step.object, ignore_errors=False)
        if step.object == self.paths.config:
            node.run(["systemctl", "daemon-reload"], check="reload systemd")

    def _forget(self, path: str) -> None:
        if os.path.exists(path):
            os.unlink(path)

    def _touch(self, path: str) -> None:
        with open(path, "w", encoding="utf-8") as file:
            os.fsync(file.fileno())
        os.chown(path, self.uid, self.gid)

    # --- data directories

    def _fresh_incoming(self) -> None:
        self._forget(self.paths.incoming_complete)
        if os.path.isdir(self.paths.incoming):
            shutil.rmtree(self.paths.incoming)
        self._directory(os.path.dirname(self.paths.data), 0o755)
        os.mkdir(self.paths.incoming, 0o700)
        os.chown(self.paths.incoming, self.uid, self.gid)

    def _create(self, _step: Step) -> None:
        self._fresh_incoming()
        node.run(
            [
                f"{self.paths.bin}/initdb",
                f"--pgdata={self.paths.incoming}",
                "--data-checksums",
                f"--locale={self.wanted.locale}",
                "--encoding=UTF8",
                "--auth-local=peer",
                "--auth-host=scram-sha-256",
            ],
            user=node.USER,
            timeout_s=300,
            check=f"create the data directory of instance {self.label}",
        )
        os.rename(self.paths.incoming, self.paths.data)

    def _clone(self, step: Step) -> None:
        if not self.observed.cloning:
            self._start_clone()
        deadline = time.monotonic() + self.slice_s
        while clone_active(self.paths):
            if time.monotonic() > deadline:
                raise Unfinished(self._clone_progress())
            time.sleep(0.2)
        if not os.path.exists(self.paths.incoming_complete):
            node.run(["systemctl", "reset-failed", self.paths.clone_unit])
            raise HeadroomError(f"Failed to copy the base backup for instance {self.label}: {self._clone_log(400)}")
        self._swap(step)

    def _start_clone(self) -> None:
        upstream, wanted = self.observed.upstream, self.wanted
        if upstream is None:
            raise HeadroomError(
                f"Failed to copy a base backup for instance {self.label}: {self.observed.upstream_error}."
            )
        if upstream.version != self.paths.version:
            raise HeadroomError(
                f"Failed to copy a base backup for instance {self.label}: the upstream runs PostgreSQL {upstream.version}."
            )
        needed, free = int(upstream.data_bytes * 1.1) + (64 << 20), self.observed.disk_free_bytes or 0
        if free < needed:
            raise HeadroomError(
                f"Failed to copy a base backup for instance {self.label}: it needs {needed} bytes and {free} are free below "
                f"{os.path.dirname(self.paths.data)}.",
                code="disk_full",
            )
        self._fresh_incoming()
        node.run(["systemctl", "reset-failed", self.paths.clone_unit])
        backup = [
            f"{self.paths.bin}/pg_basebackup",
            f"--pgdata={self.paths.incoming}",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--progress",
            "--no-password",
            "--dbname="
            + conninfo({**upstream_conninfo(wanted), "application_name": f"{wanted.cluster_name or 'clone'}_clone"}),
        ]
        if wanted.slot_name:
            backup.append(f"--slot={wanted.slot_name}")
        if wanted.max_rate_kib_s:
            backup.append(f"--max-rate={wanted.max_rate_kib_s}")
        script = 'log=$1; complete=$2; shift 2; "$@" 2>"$log" && : >"$complete"'
        node.run(
            [
                "systemd-run",
                "--quiet",
                f"--unit={self.paths.clone_unit}",
                f"--property=User={node.USER}",
                "--setenv=LC_ALL=C.UTF-8",
                "--",
                *("/bin/sh", "-c", script, "sh", self._clone_log_path, self.paths.incoming_complete),
                *backup,
            ],
            check=f"start a base backup for instance {self.label}",
        )

    @property
    def _clone_log_path(self) -> str:
        return f"{self.paths.incoming}.log"

    def _clone_log(self, characters: int) -> str:
        try:
            with open(self._clone_log_path, encoding="utf-8", errors="replace") as file:
                return " ".join(file.read().split())[-characters:]
        except OSError:
            return ""

    def _clone_progress(self) -> dict[str, t.Any]:
        figures = re.findall(r"(\d+)/(\d+) kB \((\d+)%\)", self._clone_log(4000).replace("\r", " "))
        done, total, percent = (int(figure) for figure in figures[-1]) if figures else (0, 0, 0)
        return {"done_bytes": done << 10, "total_bytes": total << 10, "percent": percent}

    def _swap(self, _step: Step) -> None:
        self._touch(f"{self.paths.incoming}/standby.signal")
        if os.path.isdir(self.paths.data):
            self._stop_server()
            if os.path.isdir(self.paths.replaced):
                shutil.rmtree(self.paths.replaced)
            os.rename(self.paths.data, self.paths.replaced)
        # while there is no data directory: the mark is the former one's, and would condemn the new one
        self._forget(self.paths.rewinding)
        os.rename(self.paths.incoming, self.paths.data)
        self._forget(self.paths.incoming_complete)
        self._forget(self._clone_log_path)

    def _discard(self, step: Step) -> None:
        node.run(["systemctl", "stop", self.paths.clone_unit])
        if step.object == self.paths.incoming:
            # before the directory: half removed it must not be taken for a whole one
            self._forget(self.paths.incoming_complete)
            self._forget(self._clone_log_path)
        shutil.rmtree(step.object, ignore_errors=True)

    def _demote(self, _step: Step) -> None:
        self._touch(self.paths.standby_signal)

    def _rewind(self, _step: Step) -> None:
        self._stop_server()
        self._touch(self.paths.rewinding)
        config = f"{self.paths.config}/postgresql.conf"
        done = node.run(
            [
                f"{self.paths.bin}/pg_rewind",
                f"--target-pgdata={self.paths.data}",
                "--source-server=" + conninfo({**upstream_conninfo(self.wanted), "dbname": "postgres"}),
                f"--config-file={config}",
            ],
            user=node.USER,
            timeout_s=24 * 3600,
        )
        if done.returncode:
            raise HeadroomError(
                f"Failed to rewind instance {self.label}: {' '.join(done.stderr.split())[-300:]}. "
                "Set option 'rebuild' to 'basebackup' to let it be rebuilt.",
                code="fell_off",
                needs=["basebackup"],
            )
        self._touch(self.paths.standby_signal)
        self._forget(self.paths.rewinding)

    # --- the server

    def _stop_server(self) -> None:
        if node.running(self.paths):
            node.run(
                ["systemctl", "stop", self.paths.unit], timeout_s=START_TIMEOUT_S, check=f"stop instance {self.label}"
            )
        if node.running(self.paths):
            # started by other means than its unit
            node.run(
                [f"{self.paths.bin}/pg_ctl", "stop", "-D", self.paths.data, "-m", "fast"],
                user=node.USER,
                timeout_s=START_TIMEOUT_S,
                check=f"stop instance {self.label}",
            )

    def _stop(self, _step: Step) -> None:
        if self.observed.in_recovery is False:
            node.psql(
                node.local_target(self.paths),
                "CHECKPOINT;",
                timeout_s=START_TIMEOUT_S,
                check="checkpoint before the stop",
            )
        self._stop_server()

    def _disable(self, _step: Step) -> None:
        self._put(f"{self.paths.config}/start.conf", "disabled\n", 0o644)
        node.run(["systemctl", "daemon-reload"], check="reload systemd")

    def _launch(self, verb: str) -> None:
        done = node.run(["systemctl", verb, self.paths.unit], timeout_s=START_TIMEOUT_S)
        if done.returncode:
            raise HeadroomError(f"Failed to {verb} instance {self.label}: {node.log_tail(self.paths)}")
        deadline = time.monotonic() + STREAM_TIMEOUT_S
        while True:
            try:
                state = node.local_json(
                    self.paths,
                    "SELECT json_build_object('in_recovery', pg_is_in_recovery(), 'streaming', "
                    "EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'));",
                )
                if not state["in_recovery"] or state["streaming"]:
                    return
            except (HeadroomError, OSError, IndexError):
                if not node.running(self.paths):
                    raise HeadroomError(
                        f"Failed to {verb} instance {self.label}: {node.log_tail(self.paths)}"
                    ) from None
            if time.monotonic() > deadline:
                # it runs; whether it may be relied on is for the health verdict to say
                return
            time.sleep(0.2)

    def _start(self, _step: Step) -> None:
        self._launch("start")

    def _restart(self, _step: Step) -> None:
        if self.observed.in_recovery is False:
            node.psql(
                node.local_target(self.paths),
                "CHECKPOINT;",
                timeout_s=START_TIMEOUT_S,
                check="checkpoint before the restart",
            )
        self._launch("restart")

    def _reload(self, _step: Step) -> None:
        target = node.local_target(self.paths)
        before = node.psql(target, "SELECT extract(epoch FROM pg_conf_load_time());")
        node.psql(target, "SELECT pg_reload_conf();")
        faults = (
            "SELECT coalesce(string_agg(fault, '; '), '') FROM ("
            "SELECT format('pg_hba.conf line %s: %s', line_number, error) FROM pg_hba_file_rules WHERE error IS NOT NULL "
            "UNION ALL SELECT format('%s: %s', name, error) FROM pg_file_settings "
            "WHERE error IS NOT NULL AND error NOT LIKE '%could not be applied%') AS found (fault);"
        )
        fault = node.psql(target, faults)
        deadline = time.monotonic() + 10
        while not fault and node.psql(target, "SELECT extract(epoch FROM pg_conf_load_time());") == before:
            if time.monotonic() > deadline:
                fault = "the server did not load it within 10 s"
            time.sleep(0.1)
        if fault:
            # a bad change must not outlive its task: a later start would fail on it
            for path, content in self.observed.files.items():
                if path in self.files and content != self.files[path].content:
                    self._put(path, content, self.files[path].mode)
            node.psql(target, "SELECT pg_reload_conf();")
            raise HeadroomError(
                f"Failed to reload instance {self.label}: {fault}. The former configuration was restored."
            )

    def _reset(self, step: Step) -> None:
        names = step.object.split(", ")
        if node.running(self.paths):
            target = node.local_target(self.paths)
            for name in names:
                node.psql(target, 'ALTER SYSTEM RESET :"name";', {"name": name})

    # --- SQL objects

    def _login(self, step: Step) -> None:
        login: Login = step.detail["login"]
        values = {
            "name": login.name,
            "verifier": scram.verifier(login.password, secrets.token_bytes(16)),
        }
        replication = login.purpose == "replication"
        grants = (
            """
            GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
              pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) TO :"name";
            """
            if replication
            else ""
        )
        node.psql(
            node.local_target(self.paths),
            f"""
            SET log_min_error_statement = panic;
            SET log_statement = none;
            SELECT format('CREATE ROLE %I', :'name') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \\gexec
            ALTER ROLE :"name" LOGIN {"REPLICATION" if replication else ""} PASSWORD :'verifier';
            GRANT pg_monitor TO :"name";
            {grants}
            """,
            values,
            check=f"create the {login.purpose} login {login.name}",
        )
        if not replication:
            self._function(step)

    def _function(self, _step: Step) -> None:
        monitoring = self.wanted.monitoring
        node.psql(
            node.local_target(self.paths),
            """
            SET client_min_messages = warning;
            CREATE SCHEMA IF NOT EXISTS headroom;
            CREATE OR REPLACE FUNCTION headroom.timeline_history(timeline integer) RETURNS text
              LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
              RETURN convert_from(pg_read_binary_file('pg_wal/' || lpad(upper(to_hex(timeline)), 8, '0') || '.history'), 'UTF8');
            COMMENT ON FUNCTION headroom.timeline_history(integer)
              IS 'The history file of a timeline, for the replica health verdict (headroom.scale)';
            REVOKE ALL ON FUNCTION headroom.timeline_history(integer) FROM PUBLIC;
            GRANT USAGE ON SCHEMA headroom TO :"name";
            GRANT EXECUTE ON FUNCTION headroom.timeline_history(integer) TO :"name";
            """,
            {"name": monitoring.name if monitoring else "pg_monitor"},
            check="create headroom.timeline_history",
        )

    def _slot(self, step: Step) -> None:
        # reserved at once, so that the WAL written between now and the base backup is kept
        node.psql(
            node.local_target(self.paths),
            # a server that was down when it was looked at may have it already
            "SELECT pg_create_physical_replication_slot(:'name', true) "
            "WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = :'name');",
            {"name": step.object},
            check=f"create slot {step.object}",
        )

    def _unslot(self, step: Step) -> None:
        node.psql(
            node.local_target(self.paths),
            "SELECT pg_drop_replication_slot(:'name');",
            {"name": step.object},
            check=f"drop slot {step.object}",
        )

    # --- switchover

    def _journal(self, entry: dict[str, t.Any]) -> None:
        self._put(self.paths.fence, json.dumps(entry, sort_keys=True) + "\n", 0o600)

    def _fence(self, _step: Step) -> None:
        self._journal({"candidate": self.wanted.candidate, "timeline": self.observed.timeline})
        self._touch(self.paths.standby_signal)

    def _seal(self, _step: Step) -> None:
        figures = control(self.paths)
        state = figures.get("Database cluster state")
        if state != "shut down":
            raise HeadroomError(f"Failed to fence instance {self.label}: it is {state!r} instead of 'shut down'.")
        checkpoint, timeline = figures["Latest checkpoint location"], int(figures["Latest checkpoint's TimeLineID"])
        wal, segment_bytes = f"{self.paths.data}/pg_wal", int(figures["Bytes per WAL segment"])
        names = [
            segment_name(timeline, lsn_to_int(checkpoint) + bytes_further, segment_bytes)
            for bytes_further in (0, segment_bytes)
        ]
        # without names it takes the size of segments from any file, which may be one that was made ahead and has no header yet
        named = [name for name in names if os.path.exists(f"{wal}/{name}")]
        done = node.run(
            [f"{self.paths.bin}/pg_waldump", f"--path={wal}", f"--start={checkpoint}", *named], user=node.USER
        )
        records = re.findall(r"len \(rec/tot\):\s*\d+/\s*(\d+),.*lsn: ([0-9A-F/]+),.*desc: (\S+)", done.stdout)
        if len(records) != 1 or records[0][2] != "CHECKPOINT_SHUTDOWN":
            raise HeadroomError(
                f"Failed to fence instance {self.label}: its WAL does not end with the shutdown checkpoint at {checkpoint} "
                f"but with {[record[2] for record in records]}; pg_waldump says: {' '.join(done.stderr.split())[-300:]}"
            )
        end = record_end(lsn_to_int(records[0][1]), int(records[0][0]), segment_bytes)
        self._journal({"candidate": self.wanted.candidate, "timeline": timeline, "wal_end_lsn": int_to_lsn(end)})

    def _unfence(self, _step: Step) -> None:
        self._forget(self.paths.standby_signal)

    def _unjournal(self, _step: Step) -> None:
        self._forget(self.paths.fence)

    def _promote(self, _step: Step) -> None:
        target = node.local_target(self.paths)
        end = lsn_to_int(self.wanted.wal_end_lsn or "0/0")
        deadline = time.monotonic() + PROMOTE_TIMEOUT_S
        while True:
            replayed = lsn_to_int(node.psql(target, "SELECT pg_last_wal_replay_lsn();"))
            if replayed >= end:
                break
            if time.monotonic() > deadline:
                raise HeadroomError(
                    f"Failed to promote instance {self.label}: it has replayed {int_to_lsn(replayed)} and the fenced primary "
                    f"ended at {self.wanted.wal_end_lsn}. Nothing was promoted.",
                    code="behind",
                )
            time.sleep(0.05)
        if replayed > end:
            raise HeadroomError(
                f"Failed to promote instance {self.label}: it has replayed {int_to_lsn(replayed)}, beyond {self.wanted.wal_end_lsn}.",
                code="diverged",
            )
        answer = node.psql(
            target,
            f"SELECT pg_promote(true, {PROMOTE_TIMEOUT_S});",
            timeout_s=PROMOTE_TIMEOUT_S + 10,
            check="promote the candidate",
        )
        if answer != "t":
            raise HeadroomError(
                f"Failed to promote instance {self.label}: it did not finish within {PROMOTE_TIMEOUT_S} s."
            )
