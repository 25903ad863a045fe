# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Puts a configuration in force, and takes it back when it does not serve."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import typing as t
from dataclasses import dataclass

from ..errors import HeadroomError
from ..files import write_file
from .model import Management, Observed
from .observe import LAST_GOOD, base_of, master_of, serving, workers_of
from .plan import release_of

ERROR_LOG = "/var/log/nginx/error.log"
SYSTEMD = "/run/systemd/system"
COMMAND_S = 60
POLL_S = 0.1


@dataclass(frozen=True)
class Target:
    """What is to be in force, and where."""

    management: Management
    release: str
    files: t.Mapping[str, str]
    program: str
    config_file: str
    pid_file: str
    wait_s: float
    # what has to answer a probe and does not, and what such a thing is called
    silent: t.Callable[[], t.Collection[str]]
    probed: str

    @property
    def base(self) -> str:
        """Return the directory that holds the releases."""
        return base_of(self.config_file)


def write_release(folder: str, files: t.Mapping[str, str]) -> None:
    """Write all files of a release into a directory that only root reads: it holds private keys."""
    os.makedirs(os.path.dirname(folder), mode=0o755, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=".new-", dir=os.path.dirname(folder))
    try:
        for name, text in files.items():
            handle = os.open(os.path.join(temporary, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check(program: str, folder: str) -> None:
    """Let nginx check a release that is not in force.

    :raises HeadroomError: with what nginx says of it.
    """
    said = _run([program, "-t", "-q", "-c", os.path.join(folder, "nginx.conf")])
    if said is not None:
        raise HeadroomError(
            f"Failed to check the configuration: nginx says {said!r}. Nothing was changed; mend the option it names.",
            code="refused",
        )


def check_aside(program: str, render: t.Callable[[str], tuple[str, dict[str, str]]]) -> None:
    """Let nginx check what a run would write, and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="headroom-nginx-") as base:
        release, files = render(base)
        write_release(os.path.join(base, release), files)
        check(program, os.path.join(base, release))


def put_in_force(target: Target, now: Observed) -> None:
    """Write, check, swap, reload and look; what was there comes back when the new one does not serve.

    :raises HeadroomError: when the configuration is refused, or did not serve and was taken back.
    """
    folder = os.path.join(target.base, target.release)
    named = release_of(now.config)
    try:
        if named != target.release or dict(now.release) != dict(target.files):
            write_release(folder, target.files)
        try:
            check(target.program, folder)
        except HeadroomError:
            if named != target.release:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        # a file that nobody has seen serve, as a killed run or a hand may leave it, is nothing to come back to
        last_good = now.last_good
        serves = named == now.serving and now.config == now.release.get("nginx.conf")
        if now.config is not None and (last_good is None or not named or serves):
            last_good = now.config
            _write(os.path.join(target.base, LAST_GOOD), last_good, 0o600)
        if now.config != target.files["nginx.conf"]:
            _write(target.config_file, target.files["nginx.conf"], 0o644)
    except OSError as error:
        raise HeadroomError(f"Failed to write {error.filename}: {error.strerror}. Run the task as root.") from error
    cause = _switch(target)
    if cause is None:
        _write(os.path.join(target.base, LAST_GOOD), target.files["nginx.conf"], 0o600)
        prune(target.base, {target.release})
        return
    became, restored = _restore(target, last_good, now.running)
    error = HeadroomError(
        f"Failed to put the configuration in force: {cause}. {became}", code="restored" if restored else "not_restored"
    )
    error.result = {"changed": not restored}
    raise error


def _switch(target: Target) -> str | None:
    """Start or reload nginx and wait until it serves the release; return why it does not, or ``None``."""
    master = master_of(target.pid_file)
    old = workers_of(master)
    log_bytes = _size(ERROR_LOG)
    if master is None:
        said = _start(target)
        if said is not None:
            return f"nginx does not start: {_logged(log_bytes) or said}"
    else:
        os.kill(master, signal.SIGHUP)
    deadline = time.monotonic() + target.wait_s
    while True:
        new = workers_of(master_of(target.pid_file)) - old
        if new and serving(target.management) == target.release:
            break
        problem = _logged(log_bytes)
        if problem or time.monotonic() > deadline:
            return f"no new workers serve it within {target.wait_s:g} s" + (
                f": nginx says {problem!r}" if problem else ""
            )
        time.sleep(POLL_S)
    while quiet := target.silent():
        if time.monotonic() > deadline:
            return f"{target.probed} {', '.join(sorted(quiet))} does not answer a probe"
        time.sleep(POLL_S)
    return None


def _restore(target: Target, last_good: str | None, ran: bool) -> tuple[str, bool]:
    """Put back what was there and let nginx take it; return what became of that, and whether all is as it was."""
    old = workers_of(master_of(target.pid_file))
    if last_good is None:
        return "There is no earlier configuration to go back to, and the new one stays: mend what it names.", False
    _write(target.config_file, last_good, 0o644)
    master = master_of(target.pid_file)
    if not ran:
        if master:
            _stop(target, master)
        return "The file is as it was, and nginx does not run, as before.", True
    if master is None:
        said = _start(target)
        what = "nginx runs with it." if said is None else f"nginx does not start: {said}"
        return f"The file is as it was, and {what}", said is None
    os.kill(master, signal.SIGHUP)
    deadline = time.monotonic() + target.wait_s
    while not workers_of(master) - old:
        if time.monotonic() > deadline:
            return "The file is as it was; whether nginx took it could not be seen: look at its error log.", False
        time.sleep(POLL_S)
    kept = release_of(last_good)
    prune(target.base, {kept} if kept else set())
    return "What was there is in force again.", True


def prune(base: str, keep: t.Collection[str]) -> None:
    """Remove releases that nothing names any more."""
    with contextlib.suppress(OSError):
        for name in os.listdir(base):
            folder = os.path.join(base, name)
            if os.path.isdir(folder) and name not in keep:
                shutil.rmtree(folder, ignore_errors=True)


def _start(target: Target) -> str | None:
    if os.path.isdir(SYSTEMD):
        return _run(["systemctl", "start", "nginx"])
    return _run([target.program, "-c", target.config_file])


def _stop(target: Target, master: int) -> None:
    if os.path.isdir(SYSTEMD):
        _run(["systemctl", "stop", "nginx"])
        return
    os.kill(master, signal.SIGQUIT)
    deadline = time.monotonic() + target.wait_s
    while master_of(target.pid_file) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _run(command: list[str]) -> str | None:
    """Run a command; return what it says when it fails, or ``None``."""
    try:
        # nginx that goes to the background keeps what it inherits, so that a pipe would never end
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=COMMAND_S, check=False
            )
            output.seek(0)
            said = output.read(65536).decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = (
        [line for line in said.splitlines() if "[emerg]" in line] or said.splitlines() or [f"exit {done.returncode}"]
    )
    return _message(lines[0])


def _message(line: str) -> str:
    """Return a line of the error log without date and process."""
    return line.rpartition("[emerg] ")[2].partition(": ")[2].strip()[:300] if "[emerg]" in line else line[:300]


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _logged(since_bytes: int) -> str | None:
    """Return the first emergency that nginx logged since then."""
    with contextlib.suppress(OSError), open(ERROR_LOG, encoding="utf-8", errors="replace") as file:
        file.seek(since_bytes)
        for line in file:
            if "[emerg]" in line and "still could not bind" not in line:
                return _message(line)
    return None


def _write(path: str, text: str, mode: int) -> None:
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    write_file("config_file", path, text, mode, {})
