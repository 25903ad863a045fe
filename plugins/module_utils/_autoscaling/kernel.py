# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The closed loop of controller and pods in plain numbers, so that the same code runs interpreted and compiled. Pure.

It equals stepping :func:`.controller.reconcile` over the same pods (:func:`.simulate.run_exactly`), which the tests compare. It need not
look at each pod, since pods that were made in the same step are alike, and the last ones made are the first to go: counts of them by
age are enough. It holds for every spec, and for controllers with a delay of initial readiness above 0. Only subscripts, numbers and
``math`` are used here; rows may be lists or arrays.
"""

from __future__ import annotations

import math
import typing as t

# columns of ``whole``: the numbers of a simulation that are whole
(
    MIN_REPLICAS,
    MAX_REPLICAS,
    INITIAL,
    SYNC_S,
    STARTUP_SYNCS,
    AGE_SYNCS,
    # syncs from the start of a pod until metrics of its time as a ready pod alone are seen
    SETTLED_SYNCS,
    INIT_SYNCS,
    HAS_BEHAVIOR,
    BY_DISTANCE,
    UP_WINDOW_S,
    DOWN_WINDOW_S,
    UP_SELECT,
    DOWN_SELECT,
    UP_LONGEST_S,
    DOWN_LONGEST_S,
    WHOLE,
) = range(17)

# columns of ``real``
CAPACITY, TOLERANCE_DOWN, TOLERANCE_UP, MAX_RATIO, REAL = range(5)

# columns of a metric
SOURCE, IS_CPU, IS_UTILIZATION, TARGET, REQUEST, IDLE, AT_CAPACITY = range(7)
FROM_USAGE, FROM_SHARE, VALUE_OF_LOAD, AVERAGE_OF_LOAD = range(4)

# columns of a policy
IS_PERCENT, CHANGE, PERIOD_S = range(3)
SELECT_MAX, SELECT_MIN, SELECT_DISABLED = range(3)

# rows of ``out``, each with a number for each sync
REPLICAS, READY, WHY, ABLE, LIMITED, PROPOSED, OUT_ROWS = range(7)

# why: the index of the metric that asked for most, or one of these
WHY_ABOVE_MAX, WHY_BELOW_MIN, WHY_FAILED, WHY_DISABLED = -1, -2, -3, -4
ABLE_CODES = ("SucceededGetScale", "ReadyForNewScale", "ScaleUpStabilized", "ScaleDownStabilized")
LIMITED_CODES = ("", "DesiredWithinRange", "ScaleUpLimit", "ScaleDownLimit", "TooManyReplicas", "TooFewReplicas")

# places of ``totals``; loads are load times syncs
OFFERED, SERVED, VIOLATING, REPLICA_SYNCS, UPS, DOWNS, AT_MAX, WORST_RATIO, TOTALS = range(9)

# rows of ``scratch``: what the windows and the rates remember, and when the pods were made
SCRATCH_ROWS = 11

LONG_AGO = -(10**9)
_MAX_INT32 = 2**31 - 1


def amount(value: float) -> int:
    """Return a value in whole thousandths, rounded half up."""
    return math.floor(value * 1000.0 + 0.5)


def usage(idle: int, at_capacity: int, share: float, capacity: float) -> int:
    """Return what a ready pod uses at its share of the load, in thousandths; it grows evenly from idle to capacity."""
    return idle + math.floor((at_capacity - idle) * (share / capacity) + 0.5)


def ceil_count(value: float) -> int:
    """Return a count rounded up, as far as the controller counts."""
    if value > _MAX_INT32:
        return _MAX_INT32
    return math.ceil(value)


def holds(ratio: float, down: float, up: float, by_distance: int) -> bool:
    """Return whether a ratio is within the tolerance."""
    if by_distance:
        return abs(1.0 - ratio) <= up
    return 1.0 - down <= ratio and ratio <= 1.0 + up


def made_by(created: t.Any, count: int, pointer: int, sync: int) -> int:
    """Return how many pods were made at a sync or before; the pointer is the last answer for an earlier sync."""
    if pointer > count:
        pointer = count
    while pointer < count and created[pointer] <= sync:
        pointer += 1
    return pointer


def changed(at: t.Any, change: t.Any, length: int, since_s: int) -> int:
    """Return the sum of the changes after a time."""
    total = 0
    for index in range(length):
        if at[index] > since_s:
            total += change[index]
    return total


def limit_of(
    policies: t.Any,
    select: int,
    current: int,
    now_s: int,
    up_at: t.Any,
    up_change: t.Any,
    ups: int,
    down_at: t.Any,
    down_change: t.Any,
    downs: int,
    up: bool,
) -> int:
    """Return how far one direction may go now, after so many changes up and down."""
    if select == SELECT_DISABLED:
        return current
    result = 0
    largest = (select == SELECT_MAX) == up
    for index in range(len(policies)):
        policy = policies[index]
        since_s, value = now_s - policy[PERIOD_S], policy[CHANGE]
        start = current - changed(up_at, up_change, ups, since_s) + changed(down_at, down_change, downs, since_s)
        if policy[IS_PERCENT]:
            limit = math.ceil(start * (1 + value / 100)) if up else int(start * (1 - value / 100))
        else:
            limit = start + value if up else start - value
        if index == 0 or (limit > result if largest else limit < result):
            result = limit
    return result


def store(at: t.Any, change: t.Any, old: t.Any, length: int, now_s: int, longest_s: int, value: int) -> int:
    """Keep a scale event in the place of the last outdated one, if there is one, and return the length of the list."""
    place = length
    for index in range(length):
        if at[index] < now_s - longest_s:
            old[index] = 1
        if old[index]:
            place = index
    at[place] = now_s
    change[place] = value
    old[place] = 0
    return length + 1 if place == length else length


def propose(
    metric: t.Any,
    factor: float,
    whole: t.Any,
    real: t.Any,
    load: float,
    share: float,
    current: int,
    measured: int,
    measured_ready: int,
    settled: int,
    ready: int,
) -> int:
    """Return the count that one metric asks for, or -1 when it fails.

    :param load: the load of the interval that was measured, and ``share`` what of it each ready pod served.
    :param measured: pods that have metrics, and ``measured_ready`` those of them that were ready when they were measured.
    :param settled: pods that count for cpu; ``ready`` those that are ready now.
    """
    down, up, by_distance = real[TOLERANCE_DOWN], real[TOLERANCE_UP], whole[BY_DISTANCE]
    source, target = metric[SOURCE], metric[TARGET]
    if source == VALUE_OF_LOAD:
        ratio = amount(load * factor) / target
        if current == 0:
            return ceil_count(ratio)
        if holds(ratio, down, up, by_distance):
            return current
        return ceil_count(ratio * ready)
    if source == AVERAGE_OF_LOAD:
        total = amount(load * factor)
        if current == 0:
            return ceil_count(total / target)
        if holds(total / (float(target) * current), down, up, by_distance):
            return current
        return ceil_count(total / target)
    members = settled if metric[IS_CPU] else measured
    if members == 0:
        return -1
    busy, idle = amount(share * factor), 0
    if source == FROM_USAGE:
        idle = metric[IDLE]
        busy = usage(idle, metric[AT_CAPACITY], share, real[CAPACITY])
    full = min(measured_ready, members)
    total = full * busy + (members - full) * idle
    unready = measured - members
    missing = current - measured
    request = metric[REQUEST]
    ratio = total * 100 // (members * request) / target if metric[IS_UTILIZATION] else total // members / target
    up_with_unready = unready > 0 and ratio > 1.0
    if missing == 0 and not up_with_unready:
        return current if holds(ratio, down, up, by_distance) else ceil_count(ratio * members)
    if ratio < 1.0:
        total += missing * (request * max(100, target) // 100 if metric[IS_UTILIZATION] else target)
        members += missing
    elif ratio > 1.0:
        members += missing
    if up_with_unready:
        members += unready
    filled = total * 100 // (members * request) / target if metric[IS_UTILIZATION] else total // members / target
    if holds(filled, down, up, by_distance) or (ratio < 1.0 and filled > 1.0) or (filled < 1.0 and ratio > 1.0):
        return current
    wanted = ceil_count(filled * members)
    if (filled < 1.0 and wanted > current) or (filled > 1.0 and wanted < current):
        return current
    return wanted


def loop(
    load: t.Any,
    floors: t.Any,
    whole: t.Any,
    real: t.Any,
    metrics: t.Any,
    factors: t.Any,
    up_policies: t.Any,
    down_policies: t.Any,
    shares: t.Any,
    scratch: t.Any,
    out: t.Any,
    totals: t.Any,
) -> None:
    """Run the loop over all syncs.

    A sync takes place at the start of its interval: the controller sees metrics of an earlier interval, pods come and go at once, and
    the load of the interval is divided evenly over the pods that are then ready.

    :param load: offered load in each interval.
    :param floors: fewest replicas at each sync, or nothing where those of ``whole`` always hold.
    :param shares: room for what each ready pod serves in each interval; ``scratch`` for a number more than syncs and pods in each row.
    :param out: a row for each of ``REPLICAS`` and so on, written for each sync; ``totals`` is written at the end.
    """
    least, most, sync_s = whole[MIN_REPLICAS], whole[MAX_REPLICAS], whole[SYNC_S]
    startup, age, settle, init = whole[STARTUP_SYNCS], whole[AGE_SYNCS], whole[SETTLED_SYNCS], whole[INIT_SYNCS]
    capacity, max_ratio = real[CAPACITY], real[MAX_RATIO]
    # the window without behavior includes its end, the others do not; times are whole seconds
    down_window_s = whole[DOWN_WINDOW_S] if whole[HAS_BEHAVIOR] else whole[DOWN_WINDOW_S] + 1
    has_behavior, up_window_s = whole[HAS_BEHAVIOR], whole[UP_WINDOW_S]
    most_at, most_wanted, least_at, least_wanted = scratch[0], scratch[1], scratch[2], scratch[3]
    up_at, up_change, up_old = scratch[4], scratch[5], scratch[6]
    down_at, down_change, down_old = scratch[7], scratch[8], scratch[9]
    created = scratch[10]
    out_replicas, out_ready, out_why = out[REPLICAS], out[READY], out[WHY]
    out_able, out_limited, out_proposed = out[ABLE], out[LIMITED], out[PROPOSED]
    count = whole[INITIAL]
    for index in range(count):
        created[index] = LONG_AGO
    first_share = min(load[0] / count, capacity) if count else 0.0
    # the recommendation that stands for the HPA when it is first seen
    most_head, most_tail, least_head, least_tail = 0, 1, 0, 1
    most_at[0] = least_at[0] = 0
    most_wanted[0] = least_wanted[0] = count
    ups = downs = measured = measured_ready = settled = ready = serving = 0
    offered = served = worst = 0.0
    violating = replica_syncs = rises = falls = at_max = 0
    for sync in range(len(load)):
        now_s = sync * sync_s
        current = count
        if len(floors) > 0:
            least = floors[sync]
        interval = sync - age - 1
        measured = made_by(created, count, measured, interval)
        measured_ready = made_by(created, count, measured_ready, interval - startup)
        ready = made_by(created, count, ready, sync - startup)
        # settled: metrics of a ready pod alone; past the initialization period readiness is enough
        settled = made_by(
            created, count, settled, min(interval, max(sync - age - settle, min(sync - init, sync - startup)))
        )
        desired, why, able, limited, proposed = current, 0, 0, 0, 0
        if current == 0 and least != 0:
            why = WHY_DISABLED
        elif current > most:
            desired, why = most, WHY_ABOVE_MAX
        elif current < least:
            desired, why = least, WHY_BELOW_MIN
        else:
            seen_load = load[interval] if interval >= 0 else load[0]
            seen_share = shares[interval] if interval >= 0 else first_share
            proposal, failed = 0, 0
            for index in range(len(metrics)):
                wanted = propose(
                    metrics[index],
                    factors[index],
                    whole,
                    real,
                    seen_load,
                    seen_share,
                    current,
                    measured,
                    measured_ready,
                    settled,
                    ready,
                )
                if wanted < 0:
                    failed += 1
                elif proposal == 0 or wanted > proposal:
                    proposal, why = wanted, index
            if failed == len(metrics) or (failed and proposal < current):
                why = WHY_FAILED
            else:
                proposed = proposal
                # the recommendations of the windows: the largest and the least come first
                while most_head < most_tail and most_at[most_head] <= now_s - down_window_s:
                    most_head += 1
                highest = proposal
                if most_head < most_tail:
                    highest = max(highest, most_wanted[most_head])
                while most_head < most_tail and most_wanted[most_tail - 1] <= proposal:
                    most_tail -= 1
                most_at[most_tail] = now_s
                most_wanted[most_tail] = proposal
                most_tail += 1
                if has_behavior:
                    while least_head < least_tail and least_at[least_head] <= now_s - up_window_s:
                        least_head += 1
                    lowest = proposal
                    if least_head < least_tail:
                        lowest = min(lowest, least_wanted[least_head])
                    while least_head < least_tail and least_wanted[least_tail - 1] >= proposal:
                        least_tail -= 1
                    least_at[least_tail] = now_s
                    least_wanted[least_tail] = proposal
                    least_tail += 1
                    stabilized = min(max(current, lowest), highest)
                    able = 1
                    if stabilized != proposal:
                        able = 2 if proposal >= current else 3
                    desired, limited = stabilized, 1
                    if stabilized > current:
                        bound = max(
                            current,
                            limit_of(
                                up_policies,
                                whole[UP_SELECT],
                                current,
                                now_s,
                                up_at,
                                up_change,
                                ups,
                                down_at,
                                down_change,
                                downs,
                                True,
                            ),
                        )
                        if stabilized > min(bound, most):
                            desired, limited = (bound, 2) if most > bound else (most, 4)
                    elif stabilized < current:
                        bound = min(
                            current,
                            limit_of(
                                down_policies,
                                whole[DOWN_SELECT],
                                current,
                                now_s,
                                up_at,
                                up_change,
                                ups,
                                down_at,
                                down_change,
                                downs,
                                False,
                            ),
                        )
                        if stabilized < max(bound, least):
                            desired, limited = (bound, 3) if least < bound else (least, 5)
                else:
                    able = 1 if highest == proposal else 3
                    bound = max(2 * current, 4)
                    desired, limited = highest, 1
                    if highest < least:
                        desired, limited = least, 5
                    elif highest > min(bound, most):
                        desired, limited = (bound, 2) if most > bound else (most, 4)
        if desired > current:
            rises += 1
            for index in range(current, desired):
                created[index] = sync
            if has_behavior:
                ups = store(up_at, up_change, up_old, ups, now_s, whole[UP_LONGEST_S], desired - current)
        elif desired < current:
            falls += 1
            if has_behavior:
                downs = store(
                    down_at,
                    down_change,
                    down_old,
                    downs,
                    now_s,
                    whole[DOWN_LONGEST_S],
                    current - desired,
                )
        count = desired
        serving = made_by(created, count, serving, sync - startup)
        room = serving * capacity
        taken = min(load[sync], room)
        shares[sync] = taken / serving if serving else 0.0
        offered += load[sync]
        served += taken
        if load[sync] > room * max_ratio:
            violating += 1
        if serving:
            worst = max(worst, load[sync] / room)
        elif load[sync] > 0:
            worst = math.inf
        replica_syncs += count
        if count >= most:
            at_max += 1
        out_replicas[sync] = count
        out_ready[sync] = serving
        out_why[sync] = why
        out_able[sync] = able
        out_limited[sync] = limited
        out_proposed[sync] = proposed
    totals[OFFERED] = offered
    totals[SERVED] = served
    totals[VIOLATING] = violating
    totals[REPLICA_SYNCS] = replica_syncs
    totals[UPS] = rises
    totals[DOWNS] = falls
    totals[AT_MAX] = at_max
    totals[WORST_RATIO] = worst
