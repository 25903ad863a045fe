# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What is on the host: the build of nginx, its configuration, and what the running one serves."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import typing as t
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ..errors import HeadroomError, OptionError
from .model import Build, Management, Observed
from .plan import parse_build, release_of
from .render import RELEASE_HEADER

TIMEOUT_S = 30
ASK_S = 12
LAST_GOOD = "last-good.conf"


class _Stay(urllib.request.HTTPRedirectHandler):
    """Takes a redirection for the answer that it is."""

    def redirect_request(self, *_given: t.Any) -> None:
        """Follow none."""


# no proxy of the environment stands between a host and itself
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay())


def base_of(config_file: str) -> str:
    """Return the directory that holds the releases."""
    return os.path.join(os.path.dirname(config_file), "headroom")


def read(path: str) -> str | None:
    """Return the text of a file, or ``None`` where there is none.

    :raises HeadroomError: when it is there and cannot be read.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HeadroomError(f"Failed to read {path}: {error.strerror}. Run the task as root.") from error


def ask(url: str, timeout_s: float = ASK_S) -> tuple[int, str, str]:
    """Return status, body and release of an answer; status 0 when there was none."""
    try:
        with OPENER.open(url, timeout=timeout_s) as answer:
            return _told(answer.status, answer)
    except urllib.error.HTTPError as error:
        with error:
            return _told(error.code, error)
    except (OSError, ValueError, http.client.HTTPException):
        return 0, "", ""


def _told(status: int, answer: t.Any) -> tuple[int, str, str]:
    # an origin may send a header of that name too; nginx adds its own last
    return (
        status,
        answer.read(65536).decode("utf-8", "replace"),
        (answer.headers.get_all(RELEASE_HEADER) or [""])[-1][-16:],
    )


def serving(management: Management) -> str:
    """Return the release that nginx serves, or nothing."""
    status, text, _release = ask(f"http://{management.address}:{management.port}/release", 3)
    return text.strip()[-16:] if status == 200 else ""


def answers(management: Management, name: str, statuses: t.Collection[int], body: str = "", release: str = "") -> bool:
    """Return whether something answers a probe that goes through nginx.

    :param release: the one that has to pass the probe on, if any: for a while after a reload, the workers of the release before
        take connections too, and theirs may answer where this one does not.
    """
    status, text, passed_by = ask(f"http://{management.address}:{management.port}/probe/{name}")
    return status in statuses and body in text and release in ("", passed_by)


def silent_of(names: t.Iterable[str], answers: t.Callable[[str], bool]) -> frozenset[str]:
    """Return those of the names that do not answer; all are asked at once."""
    asked = sorted(names)
    with ThreadPoolExecutor(max_workers=16) as pool:
        return frozenset(name for name, fine in zip(asked, pool.map(answers, asked), strict=True) if not fine)


def master_of(pid_file: str) -> int | None:
    """Return the process id of the running nginx, or ``None``."""
    with contextlib.suppress(OSError, ValueError):
        with open(pid_file, encoding="ascii") as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            return pid if file.read().strip() == "nginx" else None
    return None


def workers_of(master: int | None) -> frozenset[int]:
    """Return the process ids of the workers of a master."""
    found = set()
    for name in os.listdir("/proc"):
        if master and name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == master:
                    found.add(int(name))
    return frozenset(found)


def build_of(program: str) -> Build | None:
    """Return what the installed nginx is, or ``None`` where there is none."""
    try:
        done = subprocess.run([program, "-V"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError:
        return None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HeadroomError(f"Failed to run {program} -V: {error}. Give the program of nginx.") from error
    build = parse_build(done.stderr + done.stdout)
    try:
        modules = frozenset(os.listdir(build.modules_directory))
    except OSError:
        modules = frozenset()
    return replace(build, modules=modules)


def address_of(option: str, value: str, host: str, port: int) -> str:
    """Return the address of a host, as nginx would look it up when it starts.

    :raises OptionError: when it has none.
    """
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise OptionError(option, value, f"its name has no address ({error}); give another one.") from error
    # version 4 first, and the same one each time
    return str(min((family != socket.AF_INET, where[0]) for family, _t, _p, _n, where in known)[1])


def observe(
    build: Build | None,
    management: Management,
    config_file: str,
    addresses: t.Mapping[str, str],
    silent: t.Callable[[t.Mapping[str, str]], frozenset[str]],
) -> Observed:
    """Look at the host; nothing is changed.

    :param addresses: what the hosts that are asked have.
    :param silent: given what is declared there, tells what does not answer a probe.
    """
    config = read(config_file)
    base, named = base_of(config_file), release_of(config)
    release = {}
    folder = os.path.join(base, named)
    if named and os.path.isdir(folder):
        release = {name: read(os.path.join(folder, name)) or "" for name in sorted(os.listdir(folder))}
    try:
        description = dict(json.loads(release.get("description.json", "{}")))
    except ValueError:
        description = {}
    running = bool(build and master_of(build.pid_file))
    serves = serving(management) if running else ""
    return Observed(
        build,
        config,
        read(os.path.join(base, LAST_GOOD)),
        addresses,
        release,
        description,
        running,
        serves,
        silent(description) if serves else frozenset(),
    )
