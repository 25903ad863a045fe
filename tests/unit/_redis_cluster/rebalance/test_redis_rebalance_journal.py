# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal survives its writer at any byte."""

from __future__ import annotations

import errno
import os
import pathlib
import stat

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance.journal import Journal
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance.plan import Move

MOVES = (Move(1, "a", "b"), Move(2, "a", "b"), Move(7, "c", "b"))
IDS = {"a": "1a", "b": "2b", "c": "3c"}


def test_what_was_written_is_read(tmp_path: pathlib.Path) -> None:
    journal = Journal(str(tmp_path / "deep" / "journal"))
    assert journal.read() is None
    journal.begin("p1", MOVES, IDS)
    journal.done([2, 1])
    record = journal.read()

    assert record is not None
    assert (record.plan_id, record.moves, record.ids, record.state) == ("p1", MOVES, IDS, "running")
    assert (record.done, record.left) == ({1, 2}, (MOVES[2],))
    journal.finish("balanced")
    assert journal.read().state == "balanced"
    # names and slots are no secret, and nobody else's business
    assert stat.S_IMODE((tmp_path / "deep" / "journal").stat().st_mode) == 0o600


def test_the_former_journal_is_kept_beside_a_new_one(tmp_path: pathlib.Path) -> None:
    journal = Journal(str(tmp_path / "journal"))
    journal.begin("p1", MOVES, IDS)
    journal.begin("p2", MOVES[:1], IDS, "reverting")

    assert (journal.read().plan_id, journal.read().state) == ("p2", "reverting")
    assert Journal(str(tmp_path / "journal.former")).read().plan_id == "p1"


def test_a_writer_killed_in_the_middle_of_a_line_loses_that_line_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(str(path))
    journal.begin("p1", MOVES, IDS)
    journal.done([1])
    whole = path.read_bytes()
    journal.done([2])
    last = path.read_bytes()
    for length in range(len(whole), len(last)):
        path.write_bytes(last[:length])
        assert journal.read().done == {1}
    path.write_bytes(last)
    assert journal.read().done == {1, 2}


def test_what_follows_a_torn_line_is_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(str(path))
    journal.begin("p1", MOVES, IDS)
    journal.done([1])
    whole = path.read_bytes()
    for torn in (b"{", b'{"done":[2', b'{"done":[2]}', b'{"done":[' + b"2," * 50_000):
        path.write_bytes(whole + torn)
        journal.finish("balanced")
        assert (journal.read().done, journal.read().state) == ({1}, "balanced")
        assert path.read_bytes() == whole + b'{"state":"balanced"}\n'


def test_a_line_that_the_disk_has_no_room_for_is_not_there_in_part(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    journal = Journal(str(path))
    journal.begin("p1", MOVES, IDS)
    whole = path.read_bytes()
    write = os.write
    room = [4, 3]

    def short(handle: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[: room.pop()])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", short)
        with pytest.raises(HeadroomError, match="No space left on device"):
            journal.done([1])
    assert path.read_bytes() == whole
    # a system may write less than it was asked to, and be asked again
    room = [1] * 1000
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", short)
        journal.done([1, 2])
    assert journal.read().done == {1, 2}


@pytest.mark.parametrize("text", ["nonsense\n", "{}\n", '{"format": "another"}\n', "[1]\n"])
def test_what_is_no_journal_is_refused_in_a_sentence(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / "journal"
    path.write_text(text)
    with pytest.raises(HeadroomError, match="it is not a journal of this module"):
        Journal(str(path)).read()
    assert path.read_text() == text


def test_a_path_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HeadroomError, match=r"Failed to write journal .*file/journal.*option 'journal'"):
        Journal(str(tmp_path / "file" / "journal")).begin("p", MOVES, IDS)
