# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for all unit tests."""

from __future__ import annotations

import pytest
from ansible.module_utils.common import warnings
from hypothesis import settings

# how long an example takes says nothing on cores that are shared
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def no_warnings_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test the warnings of its own modules alone, which Ansible keeps for the whole process."""
    monkeypatch.setattr(warnings, "_global_warnings", {})
