# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulation: the kernel equals the controller's own steps, compiled or not, and no load gets lost unseen."""

from __future__ import annotations

import math
import random
import typing as t
from dataclasses import replace

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling import kernel
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.model import (
    Behavior,
    HpaSpec,
    Metric,
    Policy,
    Rules,
    Settings,
)
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.simulate import (
    PodModel,
    Resource,
    Run,
    Simulation,
    check,
    run,
    run_exactly,
    settle,
)
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import OptionError
from hypothesis import given, settings
from hypothesis import strategies as st

CPU = Metric("Resource", "cpu", "Utilization", 60)
PODS = PodModel(100.0, resources={"cpu": Resource(500, 20, 500), "memory": Resource(1000, 400, 900)})
SIMULATION = Simulation(HpaSpec(60, 2, (CPU,)), PODS, initial=10)

metrics = st.sampled_from(
    [
        CPU,
        replace(CPU, target=130),
        replace(CPU, kind="ContainerResource", container="web"),
        Metric("Resource", "cpu", "AverageValue", 300),
        Metric("Resource", "memory", "Utilization", 70),
        Metric("Resource", "memory", "AverageValue", 600),
        Metric("Pods", "rate", "AverageValue", 60_000),
        Metric("Object", "all", "Value", 700_000),
        Metric("Object", "all", "AverageValue", 60_000),
        Metric("External", "queue", "AverageValue", 150_000),
    ]
)
policies = st.builds(
    Policy, st.sampled_from(["Pods", "Percent"]), st.integers(1, 200), st.sampled_from([15, 20, 60, 100, 600])
)
rules = st.builds(
    Rules,
    st.sampled_from([0, 15, 50, 60, 300]),
    st.lists(policies, min_size=1, max_size=3).map(tuple),
    st.sampled_from(["Max", "Min", "Max", "Disabled"]),
    st.sampled_from([None, None, 0.0, 0.05, 0.3]),
)
behaviors = st.none() | st.builds(Behavior, rules, rules | rules.map(lambda one: replace(one, window_s=None)))


@st.composite
def simulations(draw: st.DrawFn) -> Simulation:
    """Draw a spec, pods and a controller."""
    chosen = tuple(draw(st.lists(metrics, min_size=1, max_size=3)))
    of_the_whole = any(one.kind in ("Object", "External") for one in chosen)
    least = draw(st.integers(0 if of_the_whole else 1, 4))
    most = least + draw(st.integers(1, 30))
    # a schedule that raises the floor every other time
    raised = draw(st.sampled_from([None, min(most, least + 3), most]))
    return Simulation(
        HpaSpec(most, least, chosen, draw(behaviors)),
        replace(
            PODS,
            startup_s=draw(st.sampled_from([0, 15, 40, 90, 400])),
            metric_age_s=draw(st.sampled_from([0, 15, 40, 75])),
            metric_window_s=draw(st.sampled_from([0, 15, 30, 65])),
            factors={"queue": 2.5},
        ),
        Settings(
            tolerance=draw(st.sampled_from([0.1, 0.02])),
            downscale_stabilization_s=draw(st.sampled_from([300, 60, 0])),
            cpu_initialization_period_s=draw(st.sampled_from([300, 60, 0])),
        ),
        version=draw(st.sampled_from(["1.32", "1.33"])),
        sync_s=draw(st.sampled_from([15, 15, 30])),
        initial=draw(st.integers(0, 40)),
        floors=() if raised is None else [raised if sync // 30 % 2 else least for sync in range(300)],
    )


def walk(seed: int, count: int = 150) -> list[float]:
    """Return a load that drifts, jumps and stops."""
    chance, level, loads = random.Random(seed), 500.0, []
    for _number in range(count):
        level = chance.choice((0.0, chance.uniform(0, 3000))) if chance.random() < 0.04 else level + chance.gauss(0, 60)
        level = max(0.0, level)
        loads.append(level)
    return loads


@settings(max_examples=40, deadline=None)
@given(simulations(), st.integers(0, 2**32))
def test_the_kernel_equals_the_controllers_steps(simulation: Simulation, seed: int) -> None:
    load = walk(seed)
    fast = run(load, simulation)
    steps, ready = run_exactly(load, simulation)
    assert list(fast.replicas) == [step.replicas for step in steps]
    assert list(fast.ready) == ready
    for sync, step in enumerate(steps):
        before = fast.replicas[sync - 1] if sync else simulation.initial
        assert step.reason == (fast.reason(sync, before, simulation.spec) if step.rescaled else "")
        told = {one.type: one for one in step.conditions}
        if step.winner is not None:
            assert fast.why[sync] == step.winner
            assert kernel.LIMITED_CODES[fast.limited[sync]] == told["ScalingLimited"].reason
        elif not step.rescaled:
            assert fast.why[sync] in (kernel.WHY_FAILED, kernel.WHY_DISABLED)
        if not step.rescaled:
            assert kernel.ABLE_CODES[fast.able[sync]] == told["AbleToScale"].reason


def test_compiled_figures_are_the_same() -> None:
    pytest.importorskip("numba")
    from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.batch import Batch

    behavior = Behavior(
        Rules(60, (Policy("Percent", 50, 60), Policy("Pods", 5, 60))), Rules(300, (Policy("Percent", 10, 60),))
    )
    rate = Metric("Object", "all", "Value", 1_000_000)
    candidates = [
        replace(SIMULATION, spec=HpaSpec(most, 2, chosen, acts), version=version, initial=initial)
        for most in (12, 60)
        for chosen in ((CPU,), (Metric("Resource", "memory", "Utilization", 70), rate, CPU))
        for acts in (None, Behavior(), behavior)
        for version in ("1.32", "1.33")
        for initial in (1, 10, 80)
    ]
    load = walk(7, 2000)
    batch = Batch(load, threads=2)
    assert batch.figures(candidates) == [run(load, one).totals for one in candidates]
    for one in candidates[::17]:
        whole, fast = run(load, one), batch.run(one)
        assert [list(row) for row in (fast.replicas, fast.ready, fast.why, fast.able, fast.limited, fast.proposed)] == [
            whole.replicas,
            whole.ready,
            whole.why,
            whole.able,
            whole.limited,
            whole.proposed,
        ]


def test_a_batch_refuses_what_does_not_fit_into_its_numbers() -> None:
    pytest.importorskip("numba")
    from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.batch import Batch

    large = replace(PODS, resources={"cpu": Resource(10**18, 0, 10**18)})
    with pytest.raises(OverflowError, match="smaller quantities"):
        Batch([1.0]).run(replace(SIMULATION, pods=large))
    queue = replace(SIMULATION, spec=HpaSpec(60, 2, (Metric("External", "queue", "AverageValue", 60_000),)))
    queue = replace(queue, pods=replace(PODS, factors={"queue": 1e3}))
    assert Batch([1e10]).run(queue).replicas[0] == 20
    with pytest.raises(OverflowError, match="smaller quantities"):
        Batch([1.0, 1e11]).run(queue)
    assert Batch([1.0, 1e15]).run(SIMULATION).replicas[0] == 10


@pytest.mark.parametrize(("now_s", "length", "changes"), [(160, 2, [5, 7]), (161, 1, [7, 0])])
def test_an_event_gives_its_place_once_it_is_older_than_the_longest_period(
    now_s: int, length: int, changes: list[int]
) -> None:
    at, change, old = [100, 0], [5, 0], [0, 0]
    assert kernel.store(at, change, old, 1, now_s, 60, 7) == length
    assert change == changes


def test_a_rise_that_an_earlier_recommendation_asks_for_has_the_reason_of_the_metrics() -> None:
    queue = Metric("External", "queue", "AverageValue", 10_000)
    pods = replace(PODS, metric_age_s=0)
    simulation = replace(SIMULATION, spec=HpaSpec(50, 1, (queue,)), pods=pods, initial=1)
    load = [10.0, 200.0, 40.0, 10.0, 10.0, 10.0, 10.0]
    done = run(load, simulation)
    assert done.replicas[:6] == [1, 1, 4, 8, 16, 20]
    reasons = [done.reason(sync, done.replicas[sync - 1], simulation.spec) for sync in range(2, 6)]
    assert reasons == ["external metric queue above target", "", "all metrics below target", "all metrics below target"]
    steps, _ready = run_exactly(load, simulation)
    assert [step.reason for step in steps[2:6]] == reasons


# ---- what the loop does to the load


@settings(max_examples=40, deadline=None)
@given(simulations(), st.integers(0, 2**32))
def test_what_is_offered_is_served_or_capped(simulation: Simulation, seed: int) -> None:
    load = walk(seed, 300)
    done = run(load, simulation)
    room = [ready * PODS.capacity for ready in done.ready]
    served = [min(one, most) for one, most in zip(load, room, strict=True)]
    capped = [max(0.0, one - most) for one, most in zip(load, room, strict=True)]
    assert math.isclose(done.totals[kernel.OFFERED], sum(load), rel_tol=1e-9, abs_tol=1e-6)
    assert math.isclose(done.totals[kernel.SERVED], sum(served), rel_tol=1e-9, abs_tol=1e-6)
    assert math.isclose(
        done.totals[kernel.OFFERED] - done.totals[kernel.SERVED], sum(capped), rel_tol=1e-9, abs_tol=1e-3
    )
    assert done.totals[kernel.VIOLATING] == sum(one > most for one, most in zip(load, room, strict=True))
    assert done.totals[kernel.REPLICA_SYNCS] == sum(done.replicas)
    changes = [
        after - before for before, after in zip([simulation.initial, *done.replicas], done.replicas, strict=False)
    ]
    assert done.totals[kernel.UPS] == sum(change > 0 for change in changes)
    assert done.totals[kernel.DOWNS] == sum(change < 0 for change in changes)
    assert all(ready <= replicas for ready, replicas in zip(done.ready, done.replicas, strict=True))


def first(done: Run, simulation: Simulation) -> int:
    """Return the sync in which a run first differs from its start."""
    return next(sync for sync, replicas in enumerate(done.replicas) if replicas != simulation.initial)


def test_a_jump_is_seen_after_the_age_of_the_metrics_and_served_after_the_start_of_pods() -> None:
    load = [600.0] * 20 + [1200.0] * 40
    for age_s, seen in ((0, 21), (15, 22), (31, 24)):
        simulation = replace(SIMULATION, pods=replace(PODS, metric_age_s=age_s, startup_s=45))
        done = run(load, simulation)
        assert first(done, simulation) == seen
        ready = next(sync for sync, count in enumerate(done.ready) if count > 10)
        assert ready == seen + 3


def test_a_steady_load_comes_to_the_target() -> None:
    # 500 thousandths at 100 of load, 20 without: 60 % are 300 thousandths, at 58.3 of load
    assert settle(5833.0, replace(SIMULATION, spec=HpaSpec(200, 2, (CPU,)))) in range(91, 112)
    assert settle(0.0, SIMULATION) == 2


def test_without_ready_pods_nothing_is_served() -> None:
    queue = Metric("External", "queue", "AverageValue", 100_000)
    simulation = replace(SIMULATION, spec=HpaSpec(5, 0, (queue,)), initial=0)
    done = run([0.0] * 3 + [300.0] * 10, simulation)
    assert done.totals[kernel.WORST_RATIO] == math.inf
    assert done.ready[-1] == 3
    assert done.totals[kernel.SERVED] < done.totals[kernel.OFFERED]


def test_the_objective_is_a_ratio_of_the_capacity() -> None:
    load = [900.0] * 4
    bound = replace(SIMULATION, spec=HpaSpec(10, 10, (CPU,)), initial=10)
    assert run(load, replace(bound, max_ratio=0.9)).totals[kernel.VIOLATING] == 0
    assert run(load, replace(bound, max_ratio=0.89)).totals[kernel.VIOLATING] == 4


# ---- what cannot be simulated


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"spec": HpaSpec(10_001)}, "spec.maxReplicas"),
        ({"settings": Settings(initial_readiness_delay_s=0)}, "controller.initial_readiness_delay_s"),
        ({"spec": HpaSpec(5, metrics=(Metric("Resource", "disk", "Utilization", 5),))}, "pods.resources"),
        ({"pods": PodModel(1.0, resources={"cpu": Resource(0, 0, 5)})}, "pods.resources[].request"),
        (
            {
                "spec": HpaSpec(
                    5, metrics=tuple(Metric("ContainerResource", "cpu", "Utilization", 5, name) for name in ("a", "b"))
                )
            },
            "spec.metrics[].containerResource.container",
        ),
    ],
)
def test_what_cannot_be_simulated_is_named(change: dict[str, t.Any], option: str) -> None:
    with pytest.raises(OptionError) as refused:
        check(replace(SIMULATION, **change))
    assert refused.value.facts["option"] == option
