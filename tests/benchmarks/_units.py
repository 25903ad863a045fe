# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that run on the lab's hosts for the time of a benchmark or a chaos run, beside what these hosts have.

Each is a transient systemd unit, with its files in a folder of its own, and on ports of its own. Units, files and packages go when
their block ends, however it ends. Should this process be killed, packages stay, systemd stops the units after an hour,
and the next run takes away the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import shlex
import socket
import time
from collections.abc import Iterator, Sequence

from integration.conftest import STATE, Lab

LIFE_S = 3600
READY_S = 30
APT_S = 600


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Keep other runs of the same name off the lab.

    :raises RuntimeError: when there is one.
    """
    with open(STATE / f"{name}.lock", "w", encoding="utf-8") as mine:
        try:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another run of {name} is at work") from None
        yield


@contextlib.contextmanager
def installed(lab: Lab, host: str, package: str, service: str = "") -> Iterator[None]:
    """Have a Debian package on a host; what was not there before is purged afterwards.

    :param service: the package's own service, which is kept from starting.
    """
    query = f"dpkg-query --show --showformat='${{db:Status-Status}}' {package} 2>/dev/null || true"
    if lab.run(host, "sh", "-c", query) == "installed":
        yield
        return
    apt = f"DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends {package} </dev/null >/dev/null"
    mask = f"systemctl mask --quiet --runtime {service}\n" if service else ""
    unmask = f"systemctl unmask --quiet --runtime {service}\n" if service else ""
    purge = f"DEBIAN_FRONTEND=noninteractive apt-get purge -qq --yes --auto-remove {package} </dev/null >/dev/null\n"
    try:
        lab.run(
            host, "sh", "-e", stdin=f"{mask}{apt} || {{ apt-get update -qq </dev/null; {apt}; }}\n", timeout_s=APT_S
        )
        yield
    finally:
        lab.run(host, "sh", "-e", stdin=purge + unmask, timeout_s=APT_S)


@contextlib.contextmanager
def folder(lab: Lab, host: str, path: str, files: dict[str, str]) -> Iterator[None]:
    """Have a folder with files on a host, empty otherwise."""
    lab.run(host, "sh", "-e", "-c", 'rm -rf "$0"; mkdir -p "$0"', path)
    try:
        for name, text in files.items():
            lab.run(host, "sh", "-e", "-c", 'cat >"$0"', f"{path}/{name}", stdin=text)
        yield
    finally:
        lab.run(host, "rm", "-rf", path)


@contextlib.contextmanager
def unit(lab: Lab, host: str, name: str, *command: str) -> Iterator[None]:
    """Run a program on a host as a transient unit."""
    limits = {"RuntimeMaxSec": LIFE_S, "LimitNOFILE": 4096, "CPUAccounting": "yes"}
    start = ["systemd-run", "--quiet", "--collect", f"--unit={name}"]
    start += [*(f"--property={key}={value}" for key, value in limits.items()), *command]
    stop = f"! systemctl is-active --quiet {name} || systemctl stop {name}"
    lab.run(host, "sh", "-e", stdin=f"{stop}\n{shlex.join(start)}\n")
    try:
        yield
    finally:
        lab.run(host, "sh", "-e", stdin=f"{stop}\n")


def wait_until_open(addresses: Sequence[tuple[str, int]]) -> None:
    """Wait until something listens at each address.

    :raises RuntimeError: when one is not open in time.
    """
    deadline = time.monotonic() + READY_S
    for address in addresses:
        while True:
            try:
                socket.create_connection(address, 2).close()
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    said = f"nothing listens at {address[0]}:{address[1]} after {READY_S} s: {error}"
                    raise RuntimeError(said) from error
                time.sleep(0.2)
