# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for the controller over hundreds of steps, whatever the metric does."""

from __future__ import annotations

import random
import typing as t
from dataclasses import dataclass

from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.controller import reconcile
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.model import (
    Behavior,
    HpaSpec,
    Memory,
    Metric,
    Policy,
    Reading,
    Rules,
    Scale,
    Step,
)
from hypothesis import given, settings
from hypothesis import strategies as st

SYNC_S = 15
QUEUE = Metric("External", "queue", "AverageValue", 1000)

policies = st.builds(
    Policy, st.sampled_from(["Pods", "Percent"]), st.integers(1, 150), st.sampled_from([15, 30, 60, 100, 300])
)
rules = st.builds(
    Rules,
    st.sampled_from([0, 15, 40, 60, 300]),
    st.lists(policies, min_size=1, max_size=3).map(tuple),
    st.sampled_from(["Max", "Min", "Max", "Disabled"]),
)
behaviors = st.builds(Behavior, rules, rules)


@dataclass(frozen=True)
class Sync:
    """One step of a sequence: when it was, and the replicas before it."""

    at_s: float
    before: int
    step: Step


def play(spec: HpaSpec, loads: t.Iterable[float | None], current: int, **more: t.Any) -> list[Sync]:
    """Take a step for each load, which is what the queue holds for pods to work on; with None its metric fails."""
    memory, at_s, syncs = Memory(), 0.0, []
    for load in loads:
        reading = Reading(error="down") if load is None else Reading(values_milli=(int(load * 1000),))
        step = reconcile(spec, Scale(current, current), (), (reading,), now_s=at_s, memory=memory, **more)
        syncs.append(Sync(at_s, current, step))
        current, memory, at_s = step.replicas, step.memory, at_s + SYNC_S
    return syncs


def walk(seed: int, count: int = 300, failing: float = 0.05) -> list[float | None]:
    """Return loads that drift, jump and sometimes cannot be read."""
    chance, load, loads = random.Random(seed), 10.0, t.cast(list[float | None], [])
    for _number in range(count):
        load = chance.uniform(0, 120) if chance.random() < 0.03 else max(0.0, load + chance.gauss(0, 3))
        loads.append(None if chance.random() < failing else load)
    return loads


def changes(syncs: t.Sequence[Sync]) -> list[tuple[float, int]]:
    return [(sync.at_s, sync.step.replicas - sync.before) for sync in syncs]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.none() | behaviors, st.integers(1, 5), st.integers(0, 40), st.integers(1, 200))
def test_replicas_never_leave_the_bounds_once_they_are_within(
    seed: int, behavior: Behavior | None, least: int, room: int, current: int
) -> None:
    spec = HpaSpec(least + room, least, (QUEUE,), behavior)
    for sync in play(spec, walk(seed), current):
        assert least <= sync.step.replicas <= least + room


def allowed(rule: Rules, start_of: t.Callable[[Policy], int], up: bool) -> int:
    """Return the bound of all policies together, each from the replicas at the start of its period."""
    bounds = []
    for policy in rule.policies:
        start = start_of(policy)
        change = policy.value if policy.type == "Pods" else start * policy.value / 100
        bounds.append(start + change if up else start - change)
    # what is rounded up may be one more than the share
    widest = (max if up == (rule.select == "Max") else min)(bounds)
    return int(widest) + 1 if up else int(widest // 1)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), behaviors)
def test_rates_are_never_exceeded_in_any_period(seed: int, behavior: Behavior) -> None:
    spec = HpaSpec(1000, 1, (QUEUE,), behavior)
    # the same longest period for both lists, so that no event is forgotten that a policy of the other list counts
    longest_s = max(policy.period_s for one in (behavior.up, behavior.down) for policy in one.policies)
    same = any(policy.period_s == longest_s for policy in behavior.up.policies) and any(
        policy.period_s == longest_s for policy in behavior.down.policies
    )
    syncs = play(spec, walk(seed), 20)
    history = changes(syncs)
    for index, sync in enumerate(syncs):
        change = history[index][1]
        rule = behavior.up if change > 0 else behavior.down
        if not change:
            continue
        assert rule.select != "Disabled"

        def start_of(policy: Policy, index: int = index) -> int:
            """The replicas before all changes that are younger than the period."""
            young = [one for at_s, one in history[:index] if at_s > syncs[index].at_s - policy.period_s]
            return syncs[index].before - sum(young)

        if same:
            bound = allowed(rule, start_of, change > 0)
            assert sync.step.replicas <= bound if change > 0 else sync.step.replicas >= bound


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([15, 60, 300, 600]), st.booleans())
def test_it_never_goes_below_what_the_window_down_asked_for(seed: int, window_s: int, legacy: bool) -> None:
    behavior = None if legacy else Behavior(down=Rules(window_s, (Policy("Percent", 100, 15),)))
    window_s = 300 if legacy else window_s
    syncs = play(HpaSpec(1000, 1, (QUEUE,), behavior), walk(seed), 20)
    asked = [(sync.at_s, sync.step.proposal) for sync in syncs if sync.step.proposal is not None]
    for sync in syncs:
        if sync.step.replicas < sync.before:
            young = [wanted for at_s, wanted in asked if sync.at_s - window_s < at_s <= sync.at_s]
            assert sync.step.replicas >= max(young)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([15, 60, 300]))
def test_it_never_goes_above_what_the_window_up_asked_for(seed: int, window_s: int) -> None:
    behavior = Behavior(up=Rules(window_s, (Policy("Pods", 1000, 15),)))
    syncs = play(HpaSpec(1000, 1, (QUEUE,), behavior), walk(seed), 20)
    asked = [(sync.at_s, sync.step.proposal) for sync in syncs if sync.step.proposal is not None]
    for sync in syncs:
        if sync.step.replicas > sync.before:
            young = [wanted for at_s, wanted in asked if sync.at_s - window_s < at_s <= sync.at_s]
            assert sync.step.replicas <= max(min(young), 1)


@settings(max_examples=10, deadline=None)
@given(st.none() | behaviors.filter(lambda one: "Disabled" not in (one.up.select, one.down.select)), st.floats(1, 50))
def test_a_steady_load_is_reached_and_kept(behavior: Behavior | None, load: float) -> None:
    # the slowest policy adds a pod in 300 s, and 30 pods need 600 syncs
    syncs = play(HpaSpec(1000, 1, (QUEUE,), behavior), [load] * 800, 20)
    end = syncs[-1].step.replicas
    assert all(sync.step.replicas == end for sync in syncs[-100:])
    # within the tolerance, or stuck since a share of few pods is less than one
    assert 0.9 <= load / end <= 1.1 or end == -int(-load // 1)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.none() | behaviors)
def test_what_is_remembered_stays_bounded(seed: int, behavior: Behavior | None) -> None:
    memory = play(HpaSpec(1000, 1, (QUEUE,), behavior), walk(seed), 20)[-1].step.memory
    # no more than fit into the longest window and the longest period, and the one that is written over next
    assert len(memory.recommendations or ()) <= 300 // SYNC_S + 2
    assert max(len(memory.ups), len(memory.downs)) <= 300 // SYNC_S + 2
