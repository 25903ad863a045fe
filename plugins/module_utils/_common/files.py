# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Files that a module writes beside its result."""

from __future__ import annotations

import contextlib
import os
import tempfile
import typing as t

from .errors import HeadroomError, OptionError


def check_writable(option: str, path: str) -> None:
    """Make sure that a file can be written, before anything else is done.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    if not os.path.basename(path):
        raise OptionError(option, path, "it names no file; give the path of a file.")
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise OptionError(option, path, "it is a directory; give the path of a file.")
    if not os.path.isdir(folder):
        raise OptionError(option, path, f"the directory {folder} does not exist; create it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        remedy = f"the directory {folder} cannot be written; choose another one or run as another user."
        raise OptionError(option, path, remedy)


def write_file(option: str, path: str, text: str, mode: int, result: dict[str, t.Any]) -> None:
    """Replace a file as a whole, so that whoever reads it sees the old or the new content.

    :param result: what the module hands out beside the failure.
    :raises HeadroomError: when it cannot be written.
    """
    real = os.path.realpath(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(real)}.", dir=os.path.dirname(real))
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
        os.replace(temporary, real)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise HeadroomError(
            f"Failed to write {option} {path}: {error.strerror or error}. Check the directory's permissions and space.",
            code="write_failed",
            result=result,
        ) from error
