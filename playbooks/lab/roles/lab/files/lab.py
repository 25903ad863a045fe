"""Look at a lab and say what it lacks, or wait for its hosts. Changes nothing; prints one JSON document.

Usage: lab.py look|wait SPECIFICATION, where the specification is a JSON document with the lab's name, subnet, state_directory
and cache_address; image, the name that the images of all labs have, with the release as tag; mirror and packages of the images;
unified, whether the machine has nothing but cgroup2; files, name and content of those in the state directory; and hosts, a list
of [name, address, release].
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

LABEL = "headroom.scale.lab"
INPUTS_LABEL = "headroom.scale.inputs"
# what the lab runs, and the package that carries it
PACKAGES = {
    "podman": "podman",
    "runc": "runc",
    "netavark": "netavark",
    "aardvark-dns": "aardvark-dns",
    "mmdebstrap": "mmdebstrap",
    "iptables": "iptables",
    "ip": "iproute2",
    "ssh": "openssh-client",
}
PLACES = os.pathsep.join(["/usr/sbin", "/sbin", "/usr/lib/podman", "/usr/libexec/podman"])
IMAGE_FILES = ("lab-init", "host-key.conf", "make-images")
HOST_KEY = "etc/ssh/ssh_host_ed25519_key.pub"
CACHE_PORT = 3142
BOOT_TIMEOUT_S = 90.0


class Failure(Exception):
    """What the lab cannot do, in one sentence."""


def podman(*arguments: str, timeout_s: float = 60) -> str:
    """Return what podman prints."""
    try:
        done = subprocess.run(["podman", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise Failure(f"podman {arguments[0]} did not answer within {timeout_s:g} s.") from error
    if done.returncode != 0:
        raise Failure(f"podman {' '.join(arguments[:2])} failed: {done.stderr.strip()}")
    return done.stdout


def podman_list(*arguments: str) -> list[dict]:
    """Return a list that podman prints as JSON; it prints nothing at all for some that are empty."""
    return json.loads(podman(*arguments) or "[]") or []


def is_alive(container: dict) -> bool:
    """Tell whether the process runs; after a crash the engine remembers one that is gone or another's by now."""
    state = container["State"]
    if state["Status"] not in ("running", "paused"):
        return False
    try:
        return container["Id"] in Path(f"/proc/{state['Pid']}/cgroup").read_text()
    except OSError:
        return False


def containers_of(name: str) -> dict[str, dict]:
    """Return the lab's containers by host name."""
    ids = podman("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={LABEL}={name}").split()
    if not ids:
        return {}
    found = {}
    for container in podman_list("inspect", "--type", "container", *ids):
        networks = container["NetworkSettings"].get("Networks") or {}
        found[container["Name"].removeprefix(f"{name}-")] = {
            "id": container["Id"],
            "alive": is_alive(container),
            "pid": container["State"]["Pid"],
            "image": container["ImageName"],
            "address": next((network["IPAddress"] for network in networks.values()), ""),
        }
    return found


def host_key(container: dict, address: str) -> str:
    """Return the host's line of known_hosts, read inside the host, not taken on trust from the network."""
    kind, key, *_comment = Path(f"/proc/{container['pid']}/root/{HOST_KEY}").read_text().split()
    return f"{address} {kind} {key}"


def answers(address: str, port: int, greeting: bytes = b"", timeout_s: float = 2.0) -> bool:
    """Tell whether something listens, and says what it should."""
    try:
        with socket.create_connection((address, port), timeout=timeout_s) as connection:
            connection.settimeout(timeout_s)
            return not greeting or connection.recv(len(greeting)) == greeting
    except OSError:
        return False


def machine() -> dict:
    """Return what this machine has."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return {
        "root": os.geteuid() == 0,
        "system": platform.system(),
        "programs": [program for program in (*PACKAGES, "crun", "apt-get") if shutil.which(program)],
        "cgroup2": "cgroup2" in Path("/proc/filesystems").read_text(),
        "hierarchies": [mount[1] for mount in mounts if mount[2] in ("cgroup", "cgroup2")],
    }


def known_hosts_of(specification: dict) -> list[str]:
    """Return the lines that are there."""
    path = Path(specification["state_directory"], "known_hosts")
    return path.read_text().splitlines() if path.exists() else []


def stale_files(specification: dict) -> list[str]:
    """Return the names of the files in the state directory that are not what they should be."""
    state = Path(specification["state_directory"])
    wanted = {**specification["files"], "id_ed25519.pub": None}
    stale = []
    for name, content in wanted.items():
        path = state / name
        if not path.exists() or (content is not None and path.read_text() != content):
            stale.append(name)
    return stale


def image_inputs(specification: dict) -> str:
    """Return a digest of what goes into an image; one with another is built anew."""
    inputs = [specification["mirror"], *specification["packages"]]
    inputs += [Path(__file__).with_name(name).read_text() for name in IMAGE_FILES]
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:12]


def look(specification: dict) -> dict:
    """Return what is there and what differs from what should be."""
    inputs = image_inputs(specification)
    seen = {
        "machine": machine(),
        "inputs": inputs,
        "containers": {},
        "images": [],
        "image_ids": [],
        "networks": [],
        "other_labs": [],
    }
    seen["groups"] = [
        path
        for hierarchy in seen["machine"]["hierarchies"]
        if os.path.isdir(path := os.path.join(hierarchy, specification["name"]))
    ]
    if seen["machine"]["root"] and "podman" in seen["machine"]["programs"]:
        label = f"label={LABEL}={specification['name']}"
        seen["containers"] = containers_of(specification["name"])
        images = podman_list("images", "--filter", f"label={INPUTS_LABEL}", "--format", "json")
        seen["image_ids"] = sorted({image["Id"] for image in images})
        seen["images"] = [
            name.rpartition(":")[2]
            for image in images
            if image["Labels"][INPUTS_LABEL] == inputs
            for name in image.get("Names") or []
            if name.startswith(f"{specification['image']}:")
        ]
        seen["networks"] = [
            {"name": network["name"], "subnets": [subnet["subnet"] for subnet in network["subnets"]]}
            for network in podman_list("network", "ls", "--filter", label, "--format", "json")
        ]
        every = podman_list("ps", "--all", "--filter", f"label={LABEL}", "--format", "json")
        seen["other_labs"] = sorted({container["Labels"][LABEL] for container in every} - {specification["name"]})
    return {**seen, "plan": plan(specification, seen)}


def plan(specification: dict, seen: dict) -> dict:
    """Return what up has to do; hosts that the inventory does not name stay as they are."""
    name = specification["name"]
    start, replace, steps = [], [], []
    for host, address, release in specification["hosts"]:
        container = seen["containers"].get(host)
        if container:
            if not container["alive"]:
                reason = "it died"
            elif container["image"] != f"{specification['image']}:{release}":
                reason = f"{release} is wanted, it has {container['image']}"
            elif container["address"] not in ("", address):
                reason = f"{address} is wanted, it has {container['address']}"
            else:
                continue
            replace.append(f"{name}-{host}")
            steps.append(f"replace {host}: {reason}")
        else:
            steps.append(f"start {host} ({release}, {address})")
        start.append([host, address, release])
    releases = sorted({release for _host, _address, release in start} - set(seen["images"]))
    steps = [f"build the image of {release}" for release in releases] + steps
    if not seen["networks"]:
        steps.insert(0, f"create the network {name} ({specification['subnet']})")
    files = stale_files(specification)
    steps = [f"write {file}" for file in files] + steps
    missing = [program for program in PACKAGES if program not in seen["machine"]["programs"]]
    if "runc" in missing and specification["unified"] and "crun" in seen["machine"]["programs"]:
        missing.remove("runc")
    install = sorted({PACKAGES[program] for program in missing})
    if install:
        steps.insert(0, f"install {', '.join(install)}")
    # a host's key is written down once the host is ready, so one without was not
    known = {line.split()[0] for line in known_hosts_of(specification)}
    started = {host for host, _address, _release in start}
    unready = [wanted for wanted in specification["hosts"] if wanted[0] in started or wanted[1] not in known]
    steps += [f"wait for {host}" for host, _address, _release in unready if host not in started]
    serving = "cache" not in started and answers(specification["cache_address"], CACHE_PORT)
    if not serving:
        steps.append("set up the package cache")
    return {
        "install": install,
        "files": files,
        "start": start,
        "replace": replace,
        "releases": releases,
        "wait": unready,
        "serving": serving,
        "steps": steps,
    }


def condition(container: dict) -> str:
    """Return what the host's systemd says of itself."""
    inside = ["nsenter", "--target", str(container["pid"]), "--all"]
    state = subprocess.run(
        [*inside, "systemctl", "is-system-running"], capture_output=True, text=True, timeout=20, check=False
    )
    if state.stdout.strip() != "degraded":
        return state.stdout.strip() or "not up"
    failed = subprocess.run(
        [*inside, "systemctl", "list-units", "--failed", "--plain", "--no-legend"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return f"degraded by {', '.join(line.split()[0] for line in failed.stdout.splitlines())}"


def wait(specification: dict) -> dict:
    """Wait until every host named runs and answers; return the content of known_hosts."""
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    waiting = {host: (address, "not looked at") for host, address, _release in specification["wait"]}
    while waiting:
        containers = containers_of(specification["name"])
        for host, (address, _condition) in list(waiting.items()):
            container = containers.get(host, {"alive": False})
            state = condition(container) if container["alive"] else "not there"
            if state == "running" and answers(address, 22, b"SSH-"):
                del waiting[host]
                continue
            waiting[host] = (address, "without an answer from its SSH server" if state == "running" else state)
        bad = {
            host: state for host, (_address, state) in waiting.items() if state.startswith(("degraded", "not there"))
        }
        if bad or (waiting and time.monotonic() > deadline):
            tell = bad or {host: state for host, (_address, state) in waiting.items()}
            raise Failure(
                f"Failed to boot {', '.join(f'{host} (it is {state})' for host, state in sorted(tell.items()))}. "
                f"See: podman exec {specification['name']}-{min(tell)} journalctl --boot"
            )
        time.sleep(0.2 if waiting else 0)
    ready = {line.split()[0] for line in known_hosts_of(specification)} | {
        address for _host, address, _release in specification["wait"]
    }
    living = [container for container in containers_of(specification["name"]).values() if container["alive"]]
    return {
        "known_hosts": sorted(
            host_key(container, container["address"]) for container in living if container["address"] in ready
        )
    }


def main() -> int:
    """Do what the first argument says."""
    specification = json.loads(sys.argv[2])
    settings = Path(specification["state_directory"], "containers.conf")
    if settings.exists():
        os.environ["CONTAINERS_CONF"] = str(settings)
    os.environ["PATH"] += os.pathsep + PLACES
    try:
        print(json.dumps({"look": look, "wait": wait}[sys.argv[1]](specification)))
    except Failure as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
