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
from dataclasses import dataclass, field

from ..._common.argspec import ArgumentSpec
from ..._common.errors import HeadroomError, OptionError
from .model import SECRET, Engine, Observed, Paths, Step, User, Wanted
from .plan import Plan, plan, shown

ENGINES = ("redis", "valkey")
PEM = ("certificate", "key", "ca")
# name of the user that tells what rules mean; it is never there outside of a transaction
PROBE = "headroom-probe"
STOP_S = 960
DROP_IN = (
    "# Written by headroom.scale.\n[Service]\n"
    "# the server says that it is ready once it has loaded its data, and saves it when it is stopped: both may take long\n"
    "TimeoutStartSec=3600\nTimeoutStopSec=900\n"
)


def instance_spec() -> ArgumentSpec:
    """Return the module's options."""
    instance = {"port": {"type": "int", "required": True}, "settings": {"type": "dict", "default": {}}}
    user = {
        "name": {"type": "str", "required": True},
        "password": {"type": "str", "no_log": True},
        "former_password": {"type": "str", "no_log": True},
        "rules": {"type": "str", "default": ""},
        "rules_since": {"type": "dict", "default": {}},
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
    # the present one, then the former one while it is still good
    login_passwords: tuple[str, ...] = field(repr=False)
    wait_s: float
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def scrub(self, text: str) -> str:
        """Return ``text`` without passwords."""
        for secret in self.secrets:
            text = text.replace(secret, "********")
        return text


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
    former = [entry["former_password"] for entry in params["users"] if entry["name"] == params["login_user"]]
    logins = [params["login_password"], *(password for password in former if password)]
    listed = [entry[key] for entry in params["users"] for key in ("password", "former_password")]
    secrets = [secret for secret in [*logins, params["replication_password"], *listed] if secret]
    return Options(engine, tuple(wanted), params["login_user"], tuple(logins), params["wait_s"], tuple(secrets))


def _name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", str(name).lower()):
        raise OptionError("settings", name, "give the name of a directive.")
    return str(name).lower()


def _users(given: t.Sequence[t.Mapping[str, t.Any]]) -> tuple[User, ...]:
    users: dict[str, User] = {}
    for entry in given:
        name, password, former, rules = entry["name"], entry["password"], entry["former_password"], entry["rules"]
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise OptionError("users[].name", name, "give a name of letters, digits, dots, dashes and underscores.")
        if name in users:
            raise OptionError("users[].name", name, "it is there twice; give each user once.")
        if password is not None and len(password) < 8:
            raise OptionError("users[].password", "********", f"give user {name} a password of at least 8 characters.")
        if former and not password:
            raise OptionError("users[].former_password", "********", f"give user {name} a password beside it.")
        since = tuple(sorted((str(version), str(more)) for version, more in entry["rules_since"].items()))
        for one in (rules, *(more for _version, more in since)):
            if "\n" in one or "#" in one or ">" in one:
                raise OptionError(
                    "users[].rules", one, f"give user {name} rules in one line and no password among them."
                )
        for version, _more in since:
            if not re.fullmatch(r"\d+(\.\d+)*", version):
                raise OptionError(
                    "users[].rules_since", version, "give a version, such as '9.0', for each of the rules."
                )
        digests = [hashlib.sha256(one.encode()).hexdigest() if one else None for one in (password, former)]
        users[name] = User(name, rules, *digests, rules_since=since)
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
        # the distribution rotates what is called like this
        "logfile": f"/var/log/{paths.engine.name}/{paths.engine.name}-server-{paths.port}.log",
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
    # all of them before anything is changed: what one of them must not be stops the others too
    seen = [
        (wanted, observed, plan(wanted=wanted, observed=observed))
        for declared in options.wanted
        for observed in [host.observe(declared)]
        for wanted in [declared.at(observed.running_version or observed.installed_version)]
    ]
    if not check_mode and host.installed_version() is None:
        raise HeadroomError(
            f"Failed to set up the instances: {options.engine.program} is not installed. Install {options.engine.name}-server.",
            code="not_installed",
        )
    drop_in = _read(options.engine.drop_in)
    if drop_in != DROP_IN:
        diffs.append(_diff(options.engine.drop_in, drop_in or "", DROP_IN))
        if not check_mode:
            host.write(options.engine.drop_in, DROP_IN, 0o644, "root")
            host.run(["systemctl", "daemon-reload"], "read the units again")
    for wanted, observed, planned in seen:
        diffs += _diffs(wanted, observed, planned)
        if planned.steps and not check_mode:
            host.apply(wanted, observed, planned)
            observed = host.observe(wanted)
            left = plan(wanted=wanted, observed=observed)
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


def _ask_users(client: t.Any, names: t.Sequence[str], users: t.Sequence[User], transaction: bool) -> list[t.Any]:
    with client.pipeline(transaction=transaction) as pipe:
        for name in names:
            pipe.execute_command("ACL", "GETUSER", name)
        for user in users:
            pipe.execute_command("ACL", "SETUSER", PROBE, *user.words())
            pipe.execute_command("ACL", "GETUSER", PROBE)
            pipe.execute_command("ACL", "DELUSER", PROBE)
        return pipe.execute(raise_on_error=False)


def _replaced(process_id: t.Any) -> bool:
    """Say whether the file of a running program is not the one that it was started from."""
    try:
        return os.readlink(f"/proc/{process_id}/exe").endswith(" (deleted)")
    except OSError:
        return False


def _shown(wanted: Wanted, live: t.Mapping[str, str]) -> bool | None:
    """Say whether the server shows the declared certificate; None where it cannot be seen."""
    if "certificate" not in wanted.pem:
        return None
    import ssl

    host = next((address for address in live.get("bind", "").split() if address[:1] not in "*-"), "127.0.0.1")
    end = "-----END CERTIFICATE-----"
    try:
        declared = ssl.PEM_cert_to_DER_cert(wanted.pem["certificate"].partition(end)[0].strip() + "\n" + end)
        return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, wanted.paths.port), timeout=5)) == declared
    except (OSError, ValueError):
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
        if not self._runs(paths):
            self._require_free(paths)
            return Observed(**facts)
        info, live = self._ask(paths)
        version = info.get("valkey_version") or info.get("redis_version")
        return Observed(
            **facts,
            **self._users(wanted.at(version)),
            running=True,
            live=live,
            running_version=version,
            program_replaced=_replaced(info.get("process_id")),
            certificate_shown=_shown(wanted, live),
        )

    def _runs(self, paths: Paths) -> bool:
        """Say whether the server runs. One that loads its data does; one that systemd starts over and over does not."""
        said = self.run(["systemctl", "show", "--property=ActiveState,SubState", paths.unit], "look at the unit")
        state = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        if state.get("ActiveState") == "activating":
            return state.get("SubState", "").startswith("start")
        return state.get("ActiveState") in ("active", "reloading")

    def _users(self, wanted: Wanted) -> dict[str, t.Any]:
        """Return the users that the server has, and what it makes of those declared.

        It is asked with a user that exists inside of one transaction only: so its own words are compared with its own words,
        whatever its version calls the same rights, and rules that it refuses are found before anything is written.
        """
        import redis

        with self.connect(wanted.paths) as client:
            names = client.execute_command("ACL", "USERS")
            try:
                answers = _ask_users(client, names, wanted.users, transaction=True)
            except redis.exceptions.ResponseError:
                # some versions queue nothing while their memory is full, and that is when maxmemory has to be raised
                answers = _ask_users(client, names, wanted.users, transaction=False)
        live = dict(zip(names, answers, strict=False))
        meant, refused = {}, {}
        for user, at in zip(wanted.users, range(len(names), len(answers), 3), strict=True):
            if isinstance(answers[at], Exception):
                refused[user.name] = self.options.scrub(str(answers[at]))
            meant[user.name] = answers[at + 1]
        return {"live_users": live, "meant_users": meant, "refused_users": refused}

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
        """Return a connection over the instance's own socket, with the password that it takes."""
        import redis

        for left, password in reversed(list(enumerate(reversed(self.options.login_passwords)))):
            client = redis.Redis(
                unix_socket_path=paths.socket,
                username=self.options.login_user,
                password=password,
                socket_timeout=10,
                decode_responses=True,
            )
            if left:
                try:
                    client.ping()
                except redis.exceptions.RedisError as error:
                    # older libraries know this answer by its text alone
                    if isinstance(error, redis.exceptions.AuthenticationError) or "WRONGPASS" in str(error):
                        continue
                    # whoever asks next gets to know
            break
        return client

    def _ask(self, paths: Paths) -> tuple[dict[str, t.Any], dict[str, str]]:
        """Return INFO and CONFIG GET of an instance, once it answers."""
        import redis

        deadline = time.monotonic() + self.options.wait_s
        while True:
            if self.run(["systemctl", "is-failed", paths.unit], "look at the unit", check=False) == "failed":
                raise HeadroomError("it ended", code="ended")
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
        text = self.options.scrub(str(error)).rstrip(".")
        return HeadroomError(
            f"Failed to ask the instance on port {paths.port} as {self.options.login_user}: {text}. "
            f"Look at {paths.unit} and at the login's password; a password that changes needs the one before it as former_password.",
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
            self._start(wanted, stop_first=step.action == "restart")

    def _start(self, wanted: Wanted, stop_first: bool) -> None:
        """Start an instance and wait until it has loaded its data and answers."""
        paths = wanted.paths
        purpose = f"start {paths.unit}"
        if stop_first:
            self.run(["systemctl", "stop", paths.unit], f"stop {paths.unit}", timeout_s=STOP_S)
        # one that failed before is started at once again
        self.run(["systemctl", "reset-failed", paths.unit], purpose, check=False)
        self.run(["systemctl", "start", "--no-block", paths.unit], purpose)
        try:
            self._ask(paths)
        except HeadroomError as error:
            if error.code != "ended" and self._runs(paths):
                raise
            raise HeadroomError(
                f"Failed to {purpose}: it ended again. Its last words: {self._log(wanted)}",
                code="not_started",
                port=paths.port,
            ) from error

    def _log(self, wanted: Wanted) -> str:
        """Return what an instance said last, in one line: of a bad directive to the journal, of a bad user to its log."""
        unit = wanted.paths.unit
        argv = ["journalctl", "--no-pager", "--output=cat", "--lines=6", f"--unit={unit}"]
        lines = self.run(argv, f"read the journal of {unit}", check=False).splitlines()
        lines += (_read(wanted.settings["logfile"]) or "").splitlines()[-3:]
        # the server repeats the line that it does not understand
        told = [line.strip() for line in lines if line.strip() and not any(name in line for name in SECRET)]
        return self.options.scrub(" | ".join(told))[-800:] or "there are none."

    def _set(self, paths: Paths, name: str, value: str) -> None:
        self._command(paths, f"set {name}", "CONFIG", "SET", name, value)

    def _command(self, paths: Paths, purpose: str, *command: str) -> None:
        import redis

        try:
            with self.connect(paths) as client:
                client.execute_command(*command)
        except redis.exceptions.RedisError as error:
            text = self.options.scrub(str(error)).rstrip(".")
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
