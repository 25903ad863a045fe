# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures as people read them."""

from __future__ import annotations

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.units import format_bytes, format_s


@pytest.mark.parametrize(
    ("count", "shown"),
    [(None, "?"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (16777216, "16.0 MiB"), (5 * 2**40, "5.0 TiB")],
)
def test_bytes(count: int | None, shown: str) -> None:
    assert format_bytes(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "?"), (0.0, "0.00 s"), (9.5, "9.50 s"), (12.4, "12 s"), (180, "3 min"), (7200, "2 h")],
)
def test_seconds(seconds: float | None, shown: str) -> None:
    assert format_s(seconds) == shown
