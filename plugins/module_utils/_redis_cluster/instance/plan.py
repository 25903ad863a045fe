# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What one instance needs to be as declared. Pure."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from ..._common.errors import OptionError
from .model import AT_START_ONLY, MASK, SECRET, Observed, Step, Wanted, canonical

HEADER = "# Written by headroom.scale. The directives that it manages: "
WAITING = "# Not declared any more, and as they were until a restart: "
PENDING = "# Declared, and not known to the server until a restart: "
_SIZE = re.compile(r"(\d+)(k|kb|m|mb|g|gb)", re.IGNORECASE)
_FACTORS = {"k": 1000, "kb": 1 << 10, "m": 1000**2, "mb": 1 << 20, "g": 1000**3, "gb": 1 << 30}
# a value between quotes as the server writes it
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}
# what comes in several lines and is read back as one
_JOINED = frozenset({"save", "bind"})
# what the letter A stands for among the classes of events
_ALL_EVENTS = "g$lshztxed"


@dataclass(frozen=True)
class Plan:
    """The steps, what only a restart applies, and the files as they will be."""

    steps: tuple[Step, ...]
    restart_required: tuple[str, ...]
    config: str
    users: str


def parse(text: str | None) -> dict[str, list[str]]:
    """Return the directives of a configuration file: name to the value of each of its lines."""
    found: dict[str, list[str]] = {}
    for line in (text or "").splitlines():
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            name, _space, value = stripped.partition(" ")
            found.setdefault(name.lower(), []).append(value.strip())
    return found


def managed(text: str | None) -> set[str]:
    """Return the directives that the file says it was written with."""
    return _listed(text, HEADER)


def _listed(text: str | None, start: str) -> set[str]:
    for line in (text or "").splitlines():
        if line.startswith(start):
            return set(line[len(start) :].split())
    return set()


def same(name: str, now: str, then: str) -> bool:
    """Say whether a server that has the value ``now`` needs not be told ``then``."""
    if canonical(name) in SECRET:
        # a password is what it is to the last sign
        return now == then
    if canonical(name) == "client-output-buffer-limit":
        # the server tells all classes, and a declaration need not name them all
        has = _limits(now)
        return all(has.get(kind) == limit for kind, limit in _limits(then).items())
    return normal(now, name) == normal(then, name)


def _limits(value: str) -> dict[str, tuple[str, ...]]:
    words = normal(value).split()
    return {canonical(words[at]): tuple(words[at + 1 : at + 4]) for at in range(0, len(words), 4)}


def normal(value: str, name: str = "") -> str:
    """Return a value as it is compared: sizes in bytes, without quotes, words in lower case where they are yes or no."""
    if name == "notify-keyspace-events":
        return "".join(sorted(set(value.strip('"').replace("A", _ALL_EVENTS))))
    words = []
    for word in value.split():
        bare = word.strip('"')
        size = _SIZE.fullmatch(bare)
        if size:
            words.append(str(int(size[1]) * _FACTORS[size[2].lower()]))
        else:
            words.append(bare.lower() if bare.lower() in ("yes", "no") else bare)
    return " ".join(words)


def render(wanted: Wanted, observed: Observed, waiting: t.Iterable[str] = (), pending: t.Iterable[str] = ()) -> str:
    """Return the configuration file: what is declared, and below it what the server wrote about itself.

    :param waiting: directives that were declared and that the running server still has.
    :param pending: directives that are declared and that the running server takes at its start alone, and does not tell.
    """
    mine = {canonical(name) for name in managed(observed.config) | wanted.settings.keys()}
    lines = [HEADER + " ".join(sorted(wanted.settings))]
    if waiting:
        lines.append(WAITING + " ".join(sorted(waiting)))
    if pending:
        lines.append(PENDING + " ".join(sorted(pending)))
    lines += [f"{name} {quote(name, value)}" for name, value in sorted(wanted.settings.items())]
    others = [
        f"{name} {value}"
        for name, values in sorted(parse(observed.config).items())
        if canonical(name) not in mine
        for value in values
    ]
    return "\n".join([*lines, *others]) + "\n"


def quote(name: str, value: str) -> str:
    """Return a value as the file has it."""
    if canonical(name) in SECRET:
        # any sign may be in a password, and the server prints a line that it does not understand
        signs = {ord('"'): '\\"', ord("\\"): "\\\\"}
        inside = (signs.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}") for byte in value.encode())
        return f'"{"".join(inside)}"'
    return '""' if value == "" else value


def unquote(text: str) -> str | None:
    """Return the one value that the server reads from a text of its file, or None where it reads none or several."""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        inside = text[1:-1].encode()
        if text[0] == "'":
            return inside.replace(b"\\'", b"'").decode(errors="replace")
        # what is left without its escapes would end the value too early, or not at all
        if re.search(rb'["\\]', _ESCAPE.sub(b"", inside)):
            return None
        plain = _ESCAPE.sub(
            lambda found: bytes([int(found[1], 16)]) if found[1] else _ESCAPES.get(found[2], found[2]), inside
        )
        return plain.decode(errors="replace")
    return None if re.search(r"[\s\"']", text) else text


def render_users(wanted: Wanted) -> str:
    """Return the file of users."""
    return "".join(f"{user.line()}\n" for user in wanted.users)


def plan(wanted: Wanted, observed: Observed) -> Plan:
    """Return the steps from what was observed to what is wanted; none when it is so already.

    :raises OptionError: when the running server refuses the rules of a user.
    """
    paths = wanted.paths
    rules = {user.name: user.rules for user in wanted.users}
    for name, text in sorted(observed.refused_users.items()):
        raise OptionError("users[].rules", rules[name], f"the server refuses them for user {name}: {text}")
    waiting: set[str] = set()
    pending: set[str] = set()
    if observed.running:
        declared = {canonical(name) for name in wanted.settings}
        before = managed(observed.config) | _listed(observed.config, WAITING)
        waiting = {name for name in before if canonical(name) not in declared}
        pending = _pending(wanted, observed)
    config, users = render(wanted, observed, waiting, pending), render_users(wanted)
    steps: list[Step] = []
    if not observed.data_exists:
        steps.append(Step("make", paths.data, "it is the data directory"))
    for part, text in sorted(wanted.pem.items()):
        if observed.pem.get(part) != text:
            steps.append(Step("write", paths.tls(part), _why(observed.pem.get(part)), text))
    if observed.users != users:
        steps.append(Step("write", paths.users, _why(observed.users), users))
    if _differs(observed.config, config):
        steps.append(Step("write", paths.config, _why(observed.config), config))
    wrote = {step.object for step in steps}
    live, restart = _live(wanted, observed, waiting | pending) if observed.running else ([], [])
    steps += live
    if observed.running and (paths.users in wrote or observed.live_users != observed.meant_users):
        steps.append(Step("load", paths.users, "its users are others"))
    reload = any(paths.tls(part) in wrote for part in wanted.pem) or observed.certificate_shown is False
    if observed.running and reload and not any(step.object == "tls-cert-file" for step in live):
        steps.append(
            Step("set", "tls-cert-file", "its certificate is another", wanted.settings.get("tls-cert-file", ""))
        )
    if not observed.enabled:
        steps.append(Step("enable", paths.unit, "it does not start with the host"))
    if not observed.running:
        steps.append(Step("start", paths.unit, "it does not run"))
    elif restart and wanted.may_restart:
        steps.append(Step("restart", paths.unit, f"only a restart applies {', '.join(restart)}"))
        if waiting or pending:
            config = render(wanted, observed)
            steps.append(Step("write", paths.config, "nothing waits for a restart any more", config))
    return Plan(tuple(steps), tuple(restart), config, users)


def _why(text: str | None) -> str:
    return "it is missing" if text is None else "it is another"


def _differs(now: str | None, then: str) -> bool:
    """Compare what files say, not how: the server writes its own file anew in its own order."""
    if now is None or any(_listed(now, start) != _listed(then, start) for start in (HEADER, WAITING, PENDING)):
        return True
    return _compared(parse(now)) != _compared(parse(then))


def _compared(directives: t.Mapping[str, t.Sequence[str]]) -> dict[str, t.Any]:
    found: dict[str, t.Any] = {}
    for name, values in directives.items():
        key = canonical(name)
        if key == "client-output-buffer-limit":
            found[key] = _limits(" ".join(values))
        elif key in SECRET:
            found[key] = [unquote(value) for value in values]
        else:
            found[key] = normal(" ".join(values)) if key in _JOINED else sorted(normal(value, key) for value in values)
    return found


def _pending(wanted: Wanted, observed: Observed) -> set[str]:
    """Return the directives that a running server does not tell, such as loadmodule, and that it was not started with."""
    had, noted = parse(observed.config), _listed(observed.config, PENDING)
    return {
        name
        for name, value in wanted.settings.items()
        if observed.live.get(name) is None
        and (name in noted or name not in had or not same(name, " ".join(had[name]), value))
    }


def _live(wanted: Wanted, observed: Observed, waiting: t.Iterable[str]) -> tuple[list[Step], list[str]]:
    """Return what is set on the running server, and what it takes at its start alone."""
    steps, restart = [], []
    for name, value in sorted(wanted.settings.items()):
        now = observed.live.get(name)
        # what the server does not tell, it does not take either: that waits for a restart
        if now is None or same(name, now, value):
            continue
        if name in AT_START_ONLY:
            restart.append(name)
        else:
            shown = "another value" if name in SECRET else f"{now or 'nothing'}"
            steps.append(Step("set", name, f"it is {shown}", value))
    restart += sorted(waiting)
    if observed.installed_version and observed.running_version != observed.installed_version:
        restart.append(f"version {observed.installed_version}")
    elif observed.program_replaced:
        restart.append("the updated program")
    return steps, restart


def shown(text: str | None) -> str:
    """Return a configuration or users file for a diff, without its secrets."""
    lines = []
    for line in (text or "").splitlines():
        name, _space, _value = line.strip().partition(" ")
        if name in SECRET:
            line = f"{name} {MASK}"
        lines.append(re.sub(r"#[0-9a-f]{64}", f"#{MASK}", line))
    return "".join(f"{line}\n" for line in lines)
