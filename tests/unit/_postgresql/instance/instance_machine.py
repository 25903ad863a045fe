# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine in memory that carries out steps as the applier does, one change to its disk at a time."""

from __future__ import annotations

import collections.abc
import dataclasses
import typing as t

from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance import scram
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.files import files, parse
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.model import (
    Observed,
    Step,
    UpstreamFacts,
    Wanted,
)

FORK, OLDEST, HERE, NOW = 0x3000000, 0x2000000, 0x4000000, 0x5000000
UPSTREAM = UpstreamFacts(
    system_identifier="7", version=17, timeline=2, history=((1, FORK),), lsn=NOW, data_bytes=1, oldest_wal=OLDEST
)


class WillNotStart(Exception):
    """The server was started on a data directory that is not whole."""


@dataclasses.dataclass(eq=False)
class Data:
    """A data directory."""

    timeline: int = 2
    lsn: int = HERE
    signal: bool = False
    clean: bool = True
    whole: bool = True
    version: bool = True

    def follows(self) -> bool:
        """Say whether the upstream has the WAL that comes next here."""
        return self.whole and OLDEST <= self.lsn <= {1: FORK, 2: NOW}[self.timeline]


@dataclasses.dataclass
class Machine:
    """What outlives a killed run."""

    data: Data | None = None
    running: bool = False
    recovering: bool = False
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    modes: dict[str, int] = dataclasses.field(default_factory=dict)
    incoming: Data | None = None
    complete: bool = False
    replaced: Data | None = None
    rewinding: bool = False
    cloning: bool = False
    fence: dict[str, t.Any] | None = None
    logins: dict[str, dict[str, t.Any]] = dataclasses.field(default_factory=dict)
    function: bool = False
    slots: list[str] = dataclasses.field(default_factory=list)
    log: list[str] = dataclasses.field(default_factory=list)

    def configure(self, wanted: Wanted) -> Machine:
        """Take over the files that ``wanted`` describes."""
        for path, file in files(wanted, Observed()).items():
            self.files[path], self.modes[path] = file.content, file.mode
        return self

    def launch(self) -> Machine:
        """Let the server run."""
        if self.data is None or not self.data.whole:
            raise WillNotStart
        self.running, self.recovering, self.data.clean = True, self.data.signal, False
        return self

    def halt(self) -> None:
        """Shut the server down cleanly."""
        if self.running and self.data:
            self.data.clean = True
        self.running = False

    def streams(self, wanted: Wanted) -> bool:
        """Say whether the replica receives WAL."""
        conf = parse(self.files.get(f"{wanted.paths.config}/postgresql.conf", ""))
        return bool(
            self.running and self.recovering and self.data and self.data.follows() and conf.get("primary_conninfo")
        )

    def observe(self, wanted: Wanted) -> Observed:
        """Return what the observer would see."""
        exists = self.data is not None and self.data.version
        facts: dict[str, t.Any] = {}
        if self.data is not None and exists:
            clean = self.data.clean and not self.running
            facts = {
                "system_identifier": "7",
                "timeline": self.data.timeline,
                "lsn": self.data.lsn,
                "standby_signal": self.data.signal,
                "control": {"Database cluster state": "shut down" if clean else "in production"},
            }
        if self.running:
            facts |= {
                "running": True,
                "in_recovery": self.recovering,
                "slots": [{"slot_name": name, "active": False, "wal_status": "reserved"} for name in self.slots],
                "logins": dict(self.logins),
                "history_function": self.function,
            }
        streaming = self.streams(wanted)
        asked = wanted.state == "present" and wanted.role == "replica" and not streaming
        start = self.files.get(f"{wanted.paths.config}/start.conf")
        return Observed(
            installed=True,
            files=dict(self.files),
            modes=dict(self.modes),
            data_exists=exists,
            data_in_use=self.data is not None,
            config_exists=bool(self.files),
            autostart=start.strip() if start else None,
            incoming=self.incoming is not None,
            incoming_complete=self.incoming is not None and self.complete,
            replaced=self.replaced is not None,
            rewinding=self.rewinding,
            cloning=self.cloning,
            fence=self.fence,
            streaming=streaming,
            upstream=UPSTREAM if asked else None,
            **facts,
        )

    def apply(self, step: Step, wanted: Wanted, observed: Observed) -> collections.abc.Iterator[None]:
        """Carry out a step; between two changes a run may be killed."""
        self.log.append(step.action)
        yield from getattr(self, "_" + step.action)(step, wanted, observed) or ()

    def _write(self, step: Step, wanted: Wanted, observed: Observed) -> collections.abc.Iterator[None]:
        file = files(wanted, observed)[step.object]
        self.files[step.object], self.modes[step.object] = file.content, file.mode
        yield

    def _fresh_incoming(self) -> collections.abc.Iterator[None]:
        self.complete = False
        yield
        self.incoming = None
        yield
        self.incoming = Data(whole=False)
        yield

    def _create(self, *dummy: t.Any) -> collections.abc.Iterator[None]:
        yield from self._fresh_incoming()
        self.incoming = Data(timeline=1)
        yield
        self.data, self.incoming = self.incoming, None
        yield

    def _clone(self, step: Step, wanted: Wanted, observed: Observed) -> collections.abc.Iterator[None]:
        if not observed.cloning:
            yield from self._fresh_incoming()
            self.cloning = True
            yield
        self.cloning, self.incoming, self.complete = False, Data(), True
        yield
        yield from self._swap(step, wanted, observed)

    def _swap(self, *dummy: t.Any) -> collections.abc.Iterator[None]:
        assert self.incoming is not None
        self.incoming.signal = True
        yield
        if self.data is not None:
            self.halt()
            yield
            self.replaced = None
            yield
            self.replaced, self.data = self.data, None
            yield
        self.rewinding = False
        yield
        self.data, self.incoming = self.incoming, None
        yield
        self.complete = False
        yield

    def _discard(self, step: Step, wanted: Wanted, dummy: Observed) -> collections.abc.Iterator[None]:
        self.cloning = False
        yield
        gone = self.replaced if step.object == wanted.paths.replaced else self.incoming
        if gone is self.incoming:
            self.complete = False
            yield
        if gone is not None:
            gone.whole = False
            yield
        if step.object == wanted.paths.replaced:
            self.replaced = None
        else:
            self.incoming = None
        yield

    def _remove(self, step: Step, wanted: Wanted, dummy: Observed) -> collections.abc.Iterator[None]:
        if step.object == wanted.paths.config:
            self.files, self.modes = {}, {}
        elif step.object == wanted.paths.incoming:
            self.complete = False
            yield
            self.incoming = None
        elif step.object == wanted.paths.replaced:
            self.replaced = None
        else:
            assert self.data is not None
            assert step.object == wanted.paths.data
            self.data.version = False
            yield
            self.rewinding, self.fence = False, None
            yield
            # a tree is removed in any order
            self.data.signal = self.data.whole = False
            yield
            self.data = None
        yield

    def _demote(self, *dummy: t.Any) -> collections.abc.Iterator[None]:
        assert self.data is not None
        self.data.signal = True
        yield

    def _rewind(self, *dummy: t.Any) -> collections.abc.Iterator[None]:
        assert self.data is not None
        self.halt()
        yield
        self.rewinding = True
        yield
        self.data.whole = False
        yield
        self.data.whole, self.data.timeline, self.data.lsn = True, 2, HERE
        yield
        self.data.signal = True
        yield
        self.rewinding = False
        yield

    def _start(self, *dummy: t.Any) -> collections.abc.Iterator[None]:
        self.launch()
        yield

    def _restart(self, *dummy: t.Any) -> collections.abc.Iterator[None]:
        self.halt()
        yield
        self.launch()
        yield

    def _stop(self, *dummy: t.Any) -> collections.abc.Iterator[None]:
        self.halt()
        yield

    def _reload(self, *dummy: t.Any) -> collections.abc.Iterator[None]:
        assert self.running
        yield

    def _disable(self, dummy: Step, wanted: Wanted, dummy2: Observed) -> collections.abc.Iterator[None]:
        self.files[f"{wanted.paths.config}/start.conf"] = "disabled\n"
        yield

    def _login(self, step: Step, *dummy: t.Any) -> collections.abc.Iterator[None]:
        assert self.running
        assert not self.recovering
        login = step.detail["login"]
        self.logins[login.name] = {"password": scram.verifier(login.password, b"salt"), "complete": True}
        yield

    def _function(self, *dummy: t.Any) -> collections.abc.Iterator[None]:
        assert self.running
        self.function = True
        yield

    def _slot(self, step: Step, *dummy: t.Any) -> collections.abc.Iterator[None]:
        assert self.running
        if step.object not in self.slots:
            self.slots.append(step.object)
        yield

    def _unslot(self, step: Step, *dummy: t.Any) -> collections.abc.Iterator[None]:
        assert self.running
        self.slots.remove(step.object)
        yield

    def _fence(self, dummy: Step, wanted: Wanted, observed: Observed) -> collections.abc.Iterator[None]:
        assert self.data is not None
        self.fence = {"candidate": wanted.candidate, "timeline": observed.timeline}
        yield
        self.data.signal = True
        yield

    def _seal(self, dummy: Step, wanted: Wanted, dummy2: Observed) -> collections.abc.Iterator[None]:
        assert self.data is not None
        assert self.data.clean
        assert not self.running
        self.fence = {"candidate": wanted.candidate, "timeline": self.data.timeline, "wal_end_lsn": "0/5000000"}
        yield

    def _unfence(self, *dummy: t.Any) -> collections.abc.Iterator[None]:
        assert self.data is not None
        self.data.signal = False
        yield

    def _unjournal(self, *dummy: t.Any) -> collections.abc.Iterator[None]:
        self.fence = None
        yield

    def _promote(self, *dummy: t.Any) -> collections.abc.Iterator[None]:
        assert self.data is not None
        self.recovering = self.data.signal = False
        yield
