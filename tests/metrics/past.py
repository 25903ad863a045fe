# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print eight days of a service that is used by day more than by night, up to now, as OpenMetrics for ``promtool``."""

from __future__ import annotations

import math
import time

DAYS = 8
STEP_S = 60
DAY_S = 86_400
# requests a second, on average and by how much more or less
MEAN, SWING = 250, 200


def main() -> None:
    """Print it."""
    now = int(time.time()) // STEP_S * STEP_S
    total = 0.0
    print("# TYPE shop_requests counter")
    for at in range(now - DAYS * DAY_S, now, STEP_S):
        print(f'shop_requests_total{{instance="localhost:8000",job="shop"}} {total:.0f} {at}')
        total += STEP_S * (MEAN - SWING * math.cos(2 * math.pi * at / DAY_S))
    print("# EOF")


if __name__ == "__main__":
    main()
