# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Commands on the node itself: bounded, as the right user, with secrets on standard input only."""

from __future__ import annotations

import json
import os
import subprocess
import typing as t

from ..._common.errors import HeadroomError
from .model import Paths

USER = "postgres"


def run(
    argv: t.Sequence[str],
    *,
    user: str | None = None,
    stdin: str | None = None,
    timeout_s: float = 60,
    environment: t.Mapping[str, str] | None = None,
    check: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command and return it finished.

    :param user: run as this user.
    :param check: what the command is for; when given, a failure raises :class:`HeadroomError` with it.
    """
    command = ["runuser", "-u", user, "--", *argv] if user else list(argv)
    variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **(environment or {})}
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=variables,
            cwd="/",
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise HeadroomError(
            f"Failed to {check or argv[0]}: no answer within {timeout_s:g} s.", code="timeout"
        ) from error
    except OSError as error:
        raise HeadroomError(f"Failed to {check or argv[0]}: {error.strerror}.", code="missing_program") from error
    if check and done.returncode:
        cause = " ".join((done.stderr or done.stdout).split())[-400:]
        raise HeadroomError(f"Failed to {check}: {cause or 'exit status ' + str(done.returncode)}")
    return done


def psql(
    target: t.Sequence[str],
    sql: str,
    variables: t.Mapping[str, t.Any] | None = None,
    *,
    environment: t.Mapping[str, str] | None = None,
    timeout_s: float = 60,
    check: str = "run SQL",
) -> str:
    """Run SQL as user postgres and return the bare output; values go in as psql variables over standard input.

    :param sql: refers to a value as ``:'name'`` and to an identifier as ``:"name"``.
    """
    lines = []
    for name, value in (variables or {}).items():
        escaped = str(value).replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n")
        lines.append(f"\\set {name} '{escaped}'")
    script = "\n".join([*lines, "SET synchronous_commit = local;", sql, ""])
    argv = ["psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "--no-password", *target]
    return run(argv, user=USER, stdin=script, timeout_s=timeout_s, environment=environment, check=check).stdout.strip()


def local_target(paths: Paths) -> list[str]:
    """Return psql's arguments for the running server, from its own lock file."""
    with open(f"{paths.data}/postmaster.pid", encoding="utf-8") as file:
        lines = file.read().splitlines()
    return ["-h", lines[4].strip() or "/run/postgresql", "-p", lines[3].strip(), "-d", "postgres"]


def local_json(paths: Paths, sql: str, variables: t.Mapping[str, t.Any] | None = None) -> t.Any:
    """Run SQL that returns one JSON value on the running server."""
    return json.loads(psql(local_target(paths), sql, variables, check=f"query instance {paths.version}/{paths.name}"))


def running(paths: Paths) -> bool:
    """Say whether the server runs, by its own program's word."""
    if not os.path.exists(f"{paths.data}/PG_VERSION"):
        return False
    return run([f"{paths.bin}/pg_ctl", "status", "-D", paths.data], user=USER).returncode == 0


def log_tail(paths: Paths, lines: int = 4) -> str:
    """Return the last lines of the server's log in one line, for an error message."""
    try:
        with open(
            f"/var/log/postgresql/postgresql-{paths.version}-{paths.name}.log", encoding="utf-8", errors="replace"
        ) as file:
            return " | ".join(line.strip() for line in file.readlines()[-lines:])
    except OSError:
        return "there is no log"
