# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``redis_instance``: all instances of one host, observed, planned, applied and looked at again."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import subprocess
import tempfile
import time
import typing as t
from dataclasses import dataclass

from ..._common.argspec import ArgumentSpec
from ..._common.errors import HeadroomError, OptionError
from .model import Engine, Observed, Paths, Step, User, Wanted
from .plan import Plan, plan, shown

ENGINES = ("redis", "valkey")
PEM = ("certificate", "key", "ca")
DROP_IN = (
    "# Written by headroom.scale.\n[Service]\n# a stop saves and says goodbye to the cluster\nTimeoutStopSec=120\n"
)


def instance_spec() -> ArgumentSpec:
    """Return the module's options."""
    instance = {"port": {"type": "int", "required": True}, "settings": {"type": "dict", "default": {}}}
    user = {
        "name": {"type": "str", "required": True},
        "password": {"type": "str", "no_log": True},
        "rules": {"type": "str", "default": ""},
    }
    return ArgumentSpec(
        {
            "engine": {"type": "str", "choices": list(ENGINES), "default": "redis"},
            "instances": {"type": "list", "elements": "dict", "required": True, "options": instance},
            "settings": {"type": "dict", "default": {}},
            "users": {"type": "list", "elements": "dict", "default": [], "options": user},
            "login_user": {"type": "str", "required": True},
            "login_password": {"type": "str", "required": True, "no_log": True},
            "replication_user": {"type": "str"},
            "replication_password": {"type": "str", "no_log": True},
            "tls_certificate": {"type": "str"},
            "tls_key": {"type": "str", "no_log": True},
            "tls_ca": {"type": "str"},
            "restart": {"type": "list", "elements": "int", "default": []},
            "wait_s": {"type": "float", "default": 60.0},
        },
        required_together=[
            ("tls_certificate", "tls_key", "tls_ca"),
            ("replication_user", "replication_password"),
        ],
    )


@dataclass(frozen=True)
class Options:
    """The module's options, checked."""

    engine: Engine
    wanted: tuple[Wanted, ...]
    login_user: str
    login_password: str
    wait_s: float


def directive(value: t.Any) -> str:
    """Return a value as a directive has it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the module's options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    engine = Engine(params["engine"])
    ports = [entry["port"] for entry in params["instances"]]
    for port in ports:
        if not 1 <= port <= 55535:
            raise OptionError(
                "instances[].port", port, "give a TCP port from 1 to 55535; the bus has the port 10000 above it."
            )
        if ports.count(port) > 1:
            raise OptionError("instances[].port", port, "it is there twice; give each instance a port of its own.")
    for port in params["restart"]:
        if port not in ports:
            raise OptionError("restart", port, f"give ports of the instances: {', '.join(map(str, ports))}.")
    users = _users(params["users"])
    if params["login_user"] not in [user.name for user in users]:
        raise OptionError("login_user", params["login_user"], "list it in 'users' too: the module logs in as it.")
    pem = {part: params[f"tls_{part}"] for part in PEM if params[f"tls_{part}"]}
    wanted = []
    for entry in params["instances"]:
        paths = Paths(engine, entry["port"])
        given = {**params["settings"], **entry["settings"]}
        settings = {_name(name): directive(value) for name, value in given.items()}
        fixed = _fixed(paths, pem, params)
        for name in fixed.keys() & settings.keys():
            raise OptionError("settings", name, "the module sets this directive itself; leave it out.")
        for name, value in settings.items():
            if "\n" in value or "\0" in value:
                raise OptionError("settings", name, "its value has more than one line; give one.")
        may = entry["port"] in params["restart"]
        wanted.append(Wanted(paths, {**settings, **fixed}, users, pem, may))
    if not 1 <= params["wait_s"] <= 3600:
        raise OptionError("wait_s", params["wait_s"], "give a number of seconds from 1 to 3600.")
    return Options(engine, tuple(wanted), params["login_user"], params["login_password"], params["wait_s"])


def _name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name.lower()):
        raise OptionError("settings", name, "give the name of a directive.")
    return name.lower()


def _users(given: t.Sequence[t.Mapping[str, t.Any]]) -> tuple[User, ...]:
    users: dict[str, User] = {}
    for entry in given:
        name, password, rules = entry["name"], entry["password"], entry["rules"]
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise OptionError("users[].name", name, "give a name of letters, digits, dots, dashes and underscores.")
        if name in users:
            raise OptionError("users[].name", name, "it is there twice; give each user once.")
        if password is not None and len(password) < 8:
            raise OptionError("users[].password", "********", f"give user {name} a password of at least 8 characters.")
        if "\n" in rules or "#" in rules or ">" in rules:
            raise OptionError("users[].rules", rules, f"give user {name} rules in one line and no password among them.")
        digest = hashlib.sha256(password.encode()).hexdigest() if password else None
        users[name] = User(name, rules, digest)
    # whoever does not log in is nobody
    users.setdefault("default", User("default", "", None))
    return tuple(users[name] for name in sorted(users))


def _fixed(paths: Paths, pem: t.Mapping[str, str], params: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Return what makes an instance this one."""
    fixed = {
        "aclfile": paths.users,
        "cluster-config-file": f"nodes-{paths.port}.conf",
        "cluster-enabled": "yes",
        "dir": paths.data,
        "logfile": f"/var/log/{paths.engine.name}/{paths.engine.name}-{paths.port}.log",
        "unixsocket": paths.socket,
        "unixsocketperm": "700",
    }
    if params["replication_user"]:
        fixed.update({"masteruser": params["replication_user"], "masterauth": params["replication_password"]})
    if pem:
        fixed.update(
            {
                "port": "0",
                "tls-port": str(paths.port),
                "tls-replication": "yes",
                "tls-cluster": "yes",
                "tls-auth-clients": "optional",
                "tls-cert-file": paths.tls("certificate"),
                "tls-key-file": paths.tls("key"),
                "tls-ca-cert-file": paths.tls("ca"),
            }
        )
    else:
        fixed["port"] = str(paths.port)
    return fixed


def converge(options: Options, check_mode: bool = False) -> dict[str, t.Any]:
    """Bring every instance to what is declared and return what was seen and done."""
    host = Host(options)
    rows, diffs = [], []
    drop_in = _read(options.engine.drop_in)
    if drop_in != DROP_IN:
        diffs.append(_diff(options.engine.drop_in, drop_in or "", DROP_IN))
        if not check_mode:
            host.write(options.engine.drop_in, DROP_IN, 0o644, "root")
            host.run(["systemctl", "daemon-reload"], "read the units again")
    for wanted in options.wanted:
        observed = host.observe(wanted)
        planned = plan(wanted, observed)
        diffs += _diffs(wanted, observed, planned)
        if planned.steps and not check_mode:
            host.apply(wanted, observed, planned)
            observed = host.observe(wanted)
            left = plan(wanted, observed)
            planned = Plan(planned.steps, left.restart_required, planned.config, planned.users)
        rows.append(
            {
                "port": wanted.paths.port,
                "changed": bool(planned.steps),
                "plan": [step.as_dict() for step in planned.steps],
                "restart_required": list(planned.restart_required),
                "running": observed.running,
                "version": observed.running_version,
            }
        )
    return {
        "changed": bool(diffs),
        "instances": rows,
        "restart_required": [row["port"] for row in rows if row["restart_required"]],
        "diff": diffs,
    }


def _diff(header: str, before: str, after: str) -> dict[str, str]:
    return {"before_header": header, "after_header": header, "before": before, "after": after}


def _diffs(wanted: Wanted, observed: Observed, planned: Plan) -> list[dict[str, str]]:
    found = []
    files = {
        wanted.paths.config: (observed.config, planned.config),
        wanted.paths.users: (observed.users, planned.users),
    }
    steps: list[str] = []
    for step in planned.steps:
        if step.object in files and step.action == "write":
            before, after = files.pop(step.object)
            found.append(_diff(step.object, shown(before), shown(after)))
        else:
            steps.append(f"{step.action} {step.object}: {step.why}\n")
    if steps:
        found.append(_diff(wanted.paths.unit, "", "".join(steps)))
    return found


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


class Host:
    """The host that the instances are on."""

    def __init__(self, options: Options) -> None:
        """Take the options."""
        self.options = options
        self.engine = options.engine
        self._installed: str | None = None

    def run(self, argv: t.Sequence[str], purpose: str, check: bool = True, timeout_s: float = 180) -> str:
        """Run a command and return what it prints.

        :raises HeadroomError: when it fails or takes too long.
        """
        variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, errors="replace", timeout=timeout_s, env=variables, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HeadroomError(f"Failed to {purpose}: {error}.") from error
        if check and done.returncode:
            raise HeadroomError(f"Failed to {purpose}: {' '.join((done.stderr or done.stdout).split())[-300:]}")
        return done.stdout.strip()

    def installed_version(self) -> str | None:
        """Return the version of the program that is installed."""
        if self._installed is None and os.path.exists(self.engine.program):
            said = self.run([self.engine.program, "--version"], "ask for the version")
            found = re.search(r"\bv=([0-9.]+)", said)
            self._installed = found[1] if found else None
        return self._installed

    def observe(self, wanted: Wanted) -> Observed:
        """Return what is there of an instance."""
        paths = wanted.paths
        facts = {
            "config": _read(paths.config),
            "users": _read(paths.users),
            "pem": {part: text for part in wanted.pem if (text := _read(paths.tls(part))) is not None},
            "data_exists": os.path.isdir(paths.data),
            "installed_version": self.installed_version(),
        }
        if facts["installed_version"] is None:
            return Observed(**facts)
        state = self.run(["systemctl", "is-enabled", paths.unit], "look at the unit", check=False)
        facts["enabled"] = state == "enabled"
        if self.run(["systemctl", "is-active", paths.unit], "look at the unit", check=False) not in (
            "active",
            "reloading",
        ):
            self._require_free(paths)
            return Observed(**facts)
        info, live = self._ask(paths)
        version = info.get("valkey_version") or info.get("redis_version")
        return Observed(**facts, running=True, live=live, running_version=version)

    def _require_free(self, paths: Paths) -> None:
        """Require that nobody else listens on the port."""
        said = (
            self.run(["ss", "-Hltn", f"sport = :{paths.port}"], "look at the port", check=False)
            if os.path.exists("/usr/bin/ss")
            else ""
        )
        if said:
            raise OptionError(
                "instances[].port", paths.port, "another process listens on it; give a port that is free."
            )

    def connect(self, paths: Paths) -> t.Any:
        """Return a connection over the instance's own socket."""
        import redis

        return redis.Redis(
            unix_socket_path=paths.socket,
            username=self.options.login_user,
            password=self.options.login_password,
            socket_timeout=10,
            decode_responses=True,
        )

    def _ask(self, paths: Paths) -> tuple[dict[str, t.Any], dict[str, str]]:
        """Return INFO and CONFIG GET of an instance, once it answers."""
        import redis

        deadline = time.monotonic() + self.options.wait_s
        while True:
            try:
                with self.connect(paths) as client:
                    return client.info(), client.config_get("*")
            except (
                redis.exceptions.ConnectionError,
                redis.exceptions.TimeoutError,
                redis.exceptions.BusyLoadingError,
            ) as error:
                if isinstance(error, redis.exceptions.AuthenticationError) or time.monotonic() > deadline:
                    raise self._silent(paths, error) from error
                time.sleep(0.2)
            except redis.exceptions.RedisError as error:
                raise self._silent(paths, error) from error

    def _silent(self, paths: Paths, error: Exception) -> HeadroomError:
        text = str(error).replace(self.options.login_password, "********")
        return HeadroomError(
            f"Failed to ask the instance on port {paths.port} as {self.options.login_user}: {text}. "
            f"Look at {paths.unit} and at the login's password.",
            code="not_answering",
            port=paths.port,
        )

    def write(self, path: str, text: str, mode: int, owner: str) -> None:
        """Replace a file as a whole; it never exists with other rights than it is to have."""
        directory = os.path.dirname(path)
        account = pwd.getpwnam(owner)
        if not os.path.isdir(directory):
            os.makedirs(directory, mode=0o755)
            if owner != "root":
                os.chmod(directory, 0o750)
                os.chown(directory, account.pw_uid, account.pw_gid)
        handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=directory)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), mode)
                os.fchown(file.fileno(), account.pw_uid, account.pw_gid)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    def apply(self, wanted: Wanted, observed: Observed, planned: Plan) -> None:
        """Do the steps; when the running server refuses one, the files are put back.

        :raises HeadroomError: naming what it refused.
        """
        if observed.installed_version is None:
            raise HeadroomError(
                f"Failed to set up the instance on port {wanted.paths.port}: {self.engine.program} is not installed.",
                code="not_installed",
            )
        try:
            for step in planned.steps:
                self._step(wanted, step)
        except HeadroomError:
            if observed.running:
                self._put_back(wanted, observed)
            raise

    def _step(self, wanted: Wanted, step: Step) -> None:
        paths, user = wanted.paths, self.engine.name
        if step.action == "make":
            account = pwd.getpwnam(user)
            os.makedirs(step.object, mode=0o750)
            os.chown(step.object, account.pw_uid, account.pw_gid)
        elif step.action == "write":
            self.write(step.object, step.value, 0o640, user)
        elif step.action == "set":
            self._set(paths, step.object, step.value)
        elif step.action == "load":
            self._command(paths, "ACL LOAD", "ACL", "LOAD")
        elif step.action == "enable":
            self.run(["systemctl", "enable", "--quiet", paths.unit], f"enable {paths.unit}")
        else:
            # a unit that failed too often is not started any more
            self.run(["systemctl", "reset-failed", paths.unit], "forget former failures", check=False)
            try:
                self.run(["systemctl", step.action, paths.unit], f"{step.action} {paths.unit}")
            except HeadroomError as error:
                raise HeadroomError(f"{error} Its log ends with: {self._log(wanted)}", code="not_started") from error
            self._ask(paths)

    def _log(self, wanted: Wanted) -> str:
        """Return the last lines of an instance's log in one line."""
        text = _read(wanted.settings["logfile"])
        return " | ".join((text or "there is no log").splitlines()[-3:])

    def _set(self, paths: Paths, name: str, value: str) -> None:
        self._command(paths, f"set {name}", "CONFIG", "SET", name, value)

    def _command(self, paths: Paths, purpose: str, *command: str) -> None:
        import redis

        try:
            with self.connect(paths) as client:
                client.execute_command(*command)
        except redis.exceptions.RedisError as error:
            text = str(error).replace(self.options.login_password, "********")
            raise HeadroomError(
                f"Failed to {purpose} on port {paths.port}: {text}. The files are as they were; correct the setting.",
                code="refused",
                port=paths.port,
            ) from error

    def _put_back(self, wanted: Wanted, observed: Observed) -> None:
        """Undo what a refused run has written and set."""
        paths = wanted.paths
        for path, text in ((paths.config, observed.config), (paths.users, observed.users)):
            if text is not None and _read(path) != text:
                self.write(path, text, 0o640, self.engine.name)
        for name in wanted.settings:
            former = observed.live.get(name)
            if former is not None:
                try:
                    self._set(paths, name, former)
                except HeadroomError:
                    # it could not be changed, so it was not
                    continue
