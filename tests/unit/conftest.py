# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for all unit tests."""

from __future__ import annotations

from hypothesis import settings

# how long an example takes says nothing on cores that are shared
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
