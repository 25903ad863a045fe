# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""What a rebalance was to do and has done, in a file that survives its writer: one JSON line for each event."""

from __future__ import annotations

import json
import os
import typing as t
from dataclasses import dataclass

from ..._common.errors import HeadroomError
from .plan import Move

FORMAT = "headroom.scale/redis_cluster_rebalance/1"


@dataclass(frozen=True)
class Record:
    """A journal as read: the moves of its last plan, by name and by the ids that the names had, and which are done."""

    plan_id: str
    moves: tuple[Move, ...]
    ids: t.Mapping[str, str]
    done: frozenset[int]
    state: str = "running"
    by: str = "slots"

    @property
    def goes_on(self) -> bool:
        """Whether its run was begun and has not ended."""
        return self.state in ("running", "reverting")

    @property
    def left(self) -> tuple[Move, ...]:
        """The moves that were not done."""
        return tuple(move for move in self.moves if move.slot not in self.done)


class Journal:
    """Appends events; a plan, and how it ended, are on the disk before anything else happens."""

    def __init__(self, path: str) -> None:
        """Take the path; the file and its directory are made with the first event, for their owner alone."""
        self.path = path

    def read(self) -> Record | None:
        """Return the last plan of the journal, or None when there is none.

        :raises HeadroomError: when the file is not a journal.
        """
        try:
            with open(self.path, encoding="utf-8") as file:
                lines = file.read().split("\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HeadroomError(
                f"Failed to read journal {self.path}: {error.strerror}. Give another path in option 'journal'.",
                code="journal_unreadable",
            ) from error
        # a line that its writer was killed in has no end: what it announces was not begun
        return parse(lines[:-1], self.path)

    def begin(
        self, plan_id: str, moves: t.Iterable[Move], ids: t.Mapping[str, str], state: str = "running", by: str = "slots"
    ) -> None:
        """Start a new journal in the place of the former one, which is kept beside it."""
        directory = os.path.dirname(os.path.abspath(self.path))
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            fresh = f"{self.path}.new"
            rows = [[move.slot, move.source, move.target] for move in moves]
            line = {"format": FORMAT, "plan_id": plan_id, "state": state, "by": by, "moves": rows, "ids": dict(ids)}
            self._append(fresh, line, os.O_TRUNC)
            if os.path.exists(self.path):
                os.replace(self.path, f"{self.path}.former")
            os.replace(fresh, self.path)
            self._sync(directory)
        except OSError as error:
            raise self._unwritable(error) from error

    def done(self, slots: t.Iterable[int]) -> None:
        """Note that slots have arrived. Should the note get lost, the next run sees them at their target."""
        self._note({"done": sorted(slots)}, durable=False)

    def finish(self, state: str) -> None:
        """Note how it ended: ``balanced``, ``reverted`` or ``stopped``."""
        self._note({"state": state})

    def _note(self, event: t.Mapping[str, t.Any], durable: bool = True) -> None:
        try:
            self._append(self.path, event, durable=durable)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> HeadroomError:
        return HeadroomError(
            f"Failed to write journal {self.path}: {error.strerror}. Give a path that can be written in option 'journal'.",
            code="journal_unwritable",
        )

    @staticmethod
    def _append(path: str, event: t.Mapping[str, t.Any], flags: int = os.O_APPEND, durable: bool = True) -> None:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
        try:
            # a line that a former writer could not end would make this one unreadable too
            size = _whole(handle)
            os.ftruncate(handle, size)
            try:
                _write(handle, (json.dumps(event, separators=(",", ":")) + "\n").encode())
            except OSError:
                os.ftruncate(handle, size)
                raise
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)

    @staticmethod
    def _sync(directory: str) -> None:
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _whole(handle: int) -> int:
    """Return the length of a file up to the end of its last whole line."""
    end = os.fstat(handle).st_size
    while end:
        first = max(0, end - 65536)
        at = os.pread(handle, end - first, first).rfind(b"\n")
        if at >= 0:
            return first + at + 1
        end = first
    return 0


def _write(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def parse(lines: t.Sequence[str], path: str) -> Record | None:
    """Read the lines of a journal. Pure.

    :raises HeadroomError: when they are not one.
    """
    if not lines:
        return None
    try:
        head = json.loads(lines[0])
        if head["format"] != FORMAT:
            raise ValueError(f"its format is {head['format']!r}")
        moves = tuple(Move(int(slot), str(source), str(target)) for slot, source, target in head["moves"])
        state, done = str(head["state"]), set()
        for line in lines[1:]:
            event = json.loads(line)
            done.update(int(slot) for slot in event.get("done", ()))
            state = event.get("state", state)
        return Record(
            str(head["plan_id"]), moves, dict(head["ids"]), frozenset(done), state, str(head.get("by", "slots"))
        )
    except (ValueError, KeyError, TypeError) as error:
        raise HeadroomError(
            f"Failed to read journal {path}: it is not a journal of this module ({error}). "
            "Move it away, or give another path in option 'journal'.",
            code="journal_unreadable",
        ) from error
