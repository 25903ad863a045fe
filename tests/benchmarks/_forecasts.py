# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheduled floors from a library's seasonal forecast, to be judged in the same way as those of `hpa_tune`. Needs statsmodels."""

from __future__ import annotations

import math
import typing as t
import warnings

import numpy as np
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.floors import (
    DAY_S,
    FIRST_DAY,
    MARGINS,
    Schedule,
    ahead,
)

MODELS = ("holt_winters", "stl")


def forecaster(model: str) -> t.Callable[..., list[Schedule]]:
    """Return what takes the place of `forecast`: the next week by a model of what each stretch needed, with quantiles of its errors."""

    def forecast(
        load: t.Sequence[float], first_s: float, sync_s: int, per_replica: float, lead_s: float, slot_s: int
    ) -> list[Schedule]:
        needs = ahead([math.ceil(one / per_replica - 1e-9) for one in load], math.ceil(lead_s / sync_s))
        per_slot, per_day = slot_s // sync_s, DAY_S // slot_s
        needed = np.reshape(needs[: len(needs) // per_slot * per_slot], (-1, per_slot)).max(axis=1).astype(float)
        period = per_day * (7 if len(needed) >= 14 * per_day else 1)
        if len(needed) < 2 * period:
            return []
        with warnings.catch_warnings():
            # a search for the best fit that ends early says so
            warnings.simplefilter("ignore")
            fitted, told = _fit(model, needed, period, 7 * per_day)
        errors = (needed - fitted)[period:]
        first = int((first_s + FIRST_DAY * DAY_S) // slot_s) + len(needed)
        found = []
        for share, margin in MARGINS:
            floors = [0] * (7 * per_day)
            for slot, need in enumerate(told):
                value = max(0.0, (need + np.quantile(errors, share)) * margin)
                floors[(first + slot) % len(floors)] = math.ceil(value - 1e-9)
            found.append(Schedule(slot_s, tuple(floors)))
        return list(dict.fromkeys(found))

    return forecast


def _fit(model: str, values: t.Any, period: int, steps: int) -> tuple[t.Any, t.Any]:
    """Return what a model says of the values that it was given, and of those that come after."""
    if model == "stl":
        from statsmodels.tsa.exponential_smoothing.ets import ETSModel  # noqa: PLC0415
        from statsmodels.tsa.seasonal import STL  # noqa: PLC0415

        parts = STL(values, period=period, seasonal=7).fit()
        level = ETSModel(values - parts.seasonal, trend="add").fit(disp=False)
        again = [parts.seasonal[len(values) - period + step % period] for step in range(steps)]
        return level.fittedvalues + parts.seasonal, level.forecast(steps) + again
    from statsmodels.tsa.holtwinters import ExponentialSmoothing  # noqa: PLC0415

    fit = ExponentialSmoothing(
        values,
        trend="add",
        damped_trend=True,
        seasonal="add",
        seasonal_periods=period,
        initialization_method="heuristic",
    ).fit()
    return fit.fittedvalues, fit.forecast(steps)
