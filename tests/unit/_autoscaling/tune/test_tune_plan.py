# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The search on its own: what it may try, what it may recommend, and what it must never do."""

from __future__ import annotations

import functools
import math
import random
import typing as t
from dataclasses import replace

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.kube.model import complete
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.simulate import PodModel, Resource, Simulation
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.spec import parse_spec
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.days import Days
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.floors import (
    DAYS,
    Schedule,
    ahead,
    forecast,
)
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.model import (
    RISKS,
    differences,
    parameters_of,
    to_api,
    undone,
)
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.plan import (
    Candidate,
    Figures,
    Objective,
    Verdict,
    approved,
    search,
)
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.space import Limits, Space
from hypothesis import given, settings
from hypothesis import strategies as st

CPU = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}}
ROOMY = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 35}}}
QUEUE = {
    "type": "External",
    "external": {"metric": {"name": "queue"}, "target": {"type": "AverageValue", "averageValue": "2500m"}},
}
BEHAVIOR = {
    "scaleUp": {"stabilizationWindowSeconds": 60, "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]},
    "scaleDown": {"selectPolicy": "Min", "policies": [{"type": "Percent", "value": 10, "periodSeconds": 60}]},
}
PODS = PodModel(100.0, startup_s=60, resources={"cpu": Resource(500, 20, 500)}, factors={"queue": 0.05})
SYNC_S = 60
EVEN = 99  # a load that is the same each day, but for a little noise

specs = st.builds(
    lambda least, more, metrics, behavior: complete(
        {
            "minReplicas": least,
            "maxReplicas": least + more,
            "metrics": metrics,
            **({} if behavior is None else {"behavior": behavior}),
        }
    ),
    st.integers(1, 8),
    st.integers(0, 30),
    st.sampled_from([[CPU], [CPU, QUEUE], [QUEUE]]),
    st.sampled_from([None, BEHAVIOR, {"scaleDown": BEHAVIOR["scaleDown"]}]),
)
limits = st.builds(
    Limits,
    replicas_percent=st.sampled_from([0.0, 30.0, 100.0]),
    target_percent=st.sampled_from([0.0, 25.0, 60.0]),
    window_s=st.sampled_from([0, 120, 3600]),
    least=st.integers(1, 4),
    most=st.sampled_from([5, 1000]),
    keep_floor=st.booleans(),
    tolerances=st.booleans(),
)


def space_of(api: dict[str, t.Any], limit: Limits) -> Space:
    """Return the space around a spec."""
    spec = parse_spec(api)
    return Space(spec, parameters_of(spec), limit)


def walk(space: Space, seed: int, steps: int = 12) -> t.Iterator[t.Any]:
    """Yield parameters as a search tries them."""
    chance = random.Random(seed)
    for level, one in enumerate(space.anchors(12)):
        yield space.at(one, level / 12)
        yield space.moved(one, 30 - 5 * level)
    one = space.draw(chance)
    for _step in range(steps):
        yield one
        one = space.vary(one, chance)


# ---- what may be tried


@settings(max_examples=60, deadline=None)
@given(specs, limits, st.integers(0, 2**32))
def test_what_is_tried_is_within_the_limits(api: dict[str, t.Any], limit: Limits, seed: int) -> None:
    space = space_of(api, limit)
    before = space.before
    for one in walk(space, seed):
        assert space.contains(one)
        assert 1 <= one.min_replicas <= one.max_replicas
        if limit.keep_floor:
            assert one.min_replicas >= min(before.min_replicas, before.max_replicas)
        assert one.min_replicas >= min(limit.least, before.min_replicas)
        assert one.max_replicas <= max(limit.most, before.max_replicas)
        for was, will in zip(before.targets, one.targets, strict=True):
            assert abs(will - was) <= was * limit.target_percent / 100 + 1e-9
        if not limit.tolerances:
            for rules, present in ((one.up, before.up), (one.down, before.down)):
                assert rules is None or rules.tolerance == (None if present is None else present.tolerance)


@settings(max_examples=60, deadline=None)
@given(specs, limits, st.integers(0, 2**32))
def test_parameters_survive_the_words_of_the_api(api: dict[str, t.Any], limit: Limits, seed: int) -> None:
    space, spec = space_of(api, limit), parse_spec(api)
    for one in walk(space, seed):
        written = parse_spec(to_api(api, space.before, one))
        assert parameters_of(written) == parameters_of(one.spec(spec))
    assert to_api(api, space.before, space.before) == api


@settings(max_examples=60, deadline=None)
@given(specs, limits, st.integers(0, 2**32))
def test_differences_can_be_taken_back_one_by_one(api: dict[str, t.Any], limit: Limits, seed: int) -> None:
    space, spec = space_of(api, limit), parse_spec(api)
    for one in walk(space, seed, 6):
        rest, found = one, differences(space.before, one, spec)
        assert all(each.before != each.after and each.risk in RISKS for each in found)
        for each in found:
            rest = undone(rest, space.before, each)
            left = [(other.name, other.index) for other in differences(space.before, rest, spec)]
            assert (each.name, each.index) not in left
        assert differences(space.before, rest, spec) == []


@pytest.mark.parametrize(
    ("change", "risk"),
    [
        ({"minReplicas": 8}, "LOW"),
        ({"minReplicas": 4}, "MEDIUM"),
        ({"minReplicas": 2}, "HIGH"),
        ({"minReplicas": 1}, "HIGH"),
        ({"maxReplicas": 25}, "LOW"),
        ({"maxReplicas": 41}, "MEDIUM"),
        ({"maxReplicas": 19}, "MEDIUM"),
        ({"target": 50}, "LOW"),
        ({"target": 70}, "MEDIUM"),
        ({"target": 80}, "HIGH"),
        ({"scaleUp": {"stabilizationWindowSeconds": 30}}, "MEDIUM"),
        ({"scaleUp": {"tolerance": "0.05"}}, "LOW"),
        ({"scaleUp": {"tolerance": "0.2"}}, "MEDIUM"),
        ({"scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}}, "MEDIUM"),
        ({"scaleDown": {"stabilizationWindowSeconds": 600}}, "LOW"),
        ({"scaleDown": {"stabilizationWindowSeconds": 200}}, "MEDIUM"),
        ({"scaleDown": {"stabilizationWindowSeconds": 60}}, "HIGH"),
        ({"scaleDown": {"tolerance": "0.05"}}, "MEDIUM"),
        ({"scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}}, "LOW"),
    ],
)
def test_what_takes_room_away_is_riskier(change: dict[str, t.Any], risk: str) -> None:
    def made(minReplicas: int = 6, maxReplicas: int = 20, target: int = 60, **behavior: t.Any) -> t.Any:  # noqa: N803
        metric = {
            "type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": target}},
        }
        given = {"minReplicas": minReplicas, "maxReplicas": maxReplicas, "metrics": [metric]}
        return parse_spec({**given, **({"behavior": behavior} if behavior else {})})

    before, after = made(), made(**change)
    found = differences(parameters_of(before), parameters_of(after), before)
    assert [one.risk for one in found] == [risk]


# ---- what may be recommended


def load_of(seed: int, days: int = 2) -> list[float]:
    """Return a load of a day's rhythm with noise and a crowd now and then."""
    chance = random.Random(seed)
    crowds = [chance.randrange(days * 1440) for _crowd in range(chance.randrange(4))]
    height, noise = chance.uniform(0, 900), chance.choice((0.0, 0.03, 0.1))
    if seed == EVEN:
        crowds, height, noise = [], 900.0, 0.02
    return [
        max(
            0.0,
            (200 + height * (1 - math.cos(2 * math.pi * minute / 1440)) / 2)
            * chance.gauss(1, noise)
            * (3 if any(0 <= minute - start < 20 for start in crowds) else 1),
        )
        for minute in range(days * 1440)
    ]


@functools.cache
def parts(seed: int, text: str, threads: int = 1) -> tuple[t.Any, Days, Days]:
    """Return a spec with training and held-out days, by a name for the spec."""
    api = complete(
        {
            "plain": {"minReplicas": 6, "maxReplicas": 20, "metrics": [CPU]},
            "slow": {"minReplicas": 2, "maxReplicas": 20, "metrics": [CPU, QUEUE], "behavior": BEHAVIOR},
            "roomy": {"minReplicas": 6, "maxReplicas": 40, "metrics": [ROOMY]},
            "small": {"minReplicas": 1, "maxReplicas": 4, "metrics": [CPU]},
        }[text]
    )
    spec = parse_spec(api)
    simulation = Simulation(spec, PODS, sync_s=SYNC_S, initial=4)
    load = load_of(seed, 3)
    return spec, Days(load[:2880], 0.0, simulation, threads), Days(load[2880:], 172_800.0, simulation, threads)


def tuned(seed: int, text: str, objective: Objective, limit: Limits, chance: int = 0, floors: bool = True) -> Verdict:
    """Search a little."""
    spec, train, held = parts(seed, text)
    schedules = forecast(train.load, 0.0, SYNC_S, PODS.capacity, 120, 3600) if floors else ()
    space = Space(spec, parameters_of(spec), limit)
    return search(space, spec, objective, train, held, schedules, 60, chance)


objectives = st.builds(Objective, st.sampled_from([1.0, 0.999, 0.98]), st.booleans())
names = st.sampled_from(["plain", "slow", "small"])


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 12), names, objectives, limits, st.integers(0, 3))
def test_it_is_never_worse_on_held_out_days(
    seed: int, text: str, objective: Objective, limit: Limits, chance: int
) -> None:
    verdict = tuned(seed, text, objective, limit, chance)
    spec, train, held = parts(seed, text)
    space = Space(spec, parameters_of(spec), limit)
    before, after = verdict.held

    assert (before, after) == tuple(held([verdict.present, verdict.chosen]))
    assert verdict.train == tuple(train([verdict.present, verdict.chosen]))
    if not objective.use_budget:
        assert after.violating <= before.violating
    assert after.share >= before.share or (objective.kept(after) and objective.kept(before))
    if verdict.keeps:
        assert after == before
        assert verdict.reasons == ()
    else:
        assert objective.holds_up(verdict.train, verdict.held)
        days = ([*train.by_day(one), *held.by_day(one)] for one in (verdict.chosen, verdict.present))
        assert objective.steady(*days)
        assert space.contains(verdict.chosen.parameters)
        assert verdict.reasons
    assert verdict.chosen.schedule is None
    assert verdict.tried <= 60
    for (one, _held), (other, _other) in zip(verdict.curve, verdict.curve[1:], strict=False):
        assert one.figures.violating < other.figures.violating
        assert one.figures.replica_syncs > other.figures.replica_syncs
    if verdict.planned is not None:
        planned, _figures, raised = verdict.planned
        assert planned.schedule is not None
        assert objective.better(raised, after)
        assert space.contains(planned.parameters)


def test_the_worse_half_of_the_days_keeps_the_objective_too() -> None:
    def days(*violating: int) -> list[Figures]:
        return [Figures(1000, one, 1.0) for one in violating]

    objective = Objective(0.999, True)
    quiet = days(0, 0, 0, 0)
    assert objective.steady(days(1, 0, 1, 0), quiet)
    # as many in all, and in no other days
    assert not objective.steady(days(0, 3, 0, 0), quiet)
    # the middle one of three days belongs to the worse ones
    assert not objective.steady(days(0, 3, 0), quiet[:3])
    # the present spec does no better
    assert objective.steady(days(0, 3, 0, 0), days(2, 0, 1, 0))
    assert not objective.steady(days(0, 4, 0, 0), days(2, 0, 1, 0))


def test_each_day_is_simulated_by_itself() -> None:
    _spec, train, _held = parts(3, "plain")
    present = tuned(3, "plain", Objective(0.999), Limits(), floors=False).present
    days = train.by_day(present)
    assert [one.syncs for one in days] == [1440, 1440]
    assert sum(one.replica_syncs for one in days) == pytest.approx(train([present])[0].replica_syncs, rel=0.02)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 12), names, limits, st.sampled_from(RISKS))
def test_a_part_of_the_changes_is_judged_as_a_spec_of_its_own(seed: int, text: str, limit: Limits, risk: str) -> None:
    objective = Objective(0.999)
    verdict = tuned(seed, text, objective, limit, floors=False)
    spec, train, held = parts(seed, text)
    one = approved(verdict, spec, objective, train, held, risk)
    found = differences(verdict.present.parameters, one.parameters, spec)
    assert all(RISKS.index(each.risk) <= RISKS.index(risk) for each in found)
    pairs = [(present, figures([one])[0]) for present, figures in ((verdict.train[0], train), (verdict.held[0], held))]
    assert one == verdict.present or objective.holds_up(*pairs)
    if risk == "HIGH":
        assert one == verdict.chosen


def test_a_part_of_the_changes_has_room_between_floor_and_ceiling() -> None:
    verdict = tuned(3, "plain", Objective(0.999), Limits(), floors=False)
    spec, train, held = parts(3, "plain")
    before = verdict.present.parameters
    wide = replace(before, min_replicas=before.max_replicas + 1, max_replicas=before.max_replicas + 5)
    one = approved(replace(verdict, chosen=Candidate(wide)), spec, Objective(0.999), train, held, "LOW").parameters
    assert one.min_replicas <= one.max_replicas


def test_the_seed_decides_and_threads_do_not() -> None:
    spec, _train, _held = parts(3, "plain")
    space = Space(spec, parameters_of(spec), Limits())

    def once(threads: int, seed: int) -> Verdict:
        _spec, train, held = parts.__wrapped__(3, "plain", threads)
        return search(space, spec, Objective(0.999), train, held, (), 80, seed)

    assert once(1, 5) == once(2, 5)
    assert [point for point, _held in once(1, 5).curve] != [point for point, _held in once(1, 6).curve]


def test_too_many_replicas_are_taken_away_and_too_few_are_added() -> None:
    wide = Limits(replicas_percent=100, target_percent=60, window_s=3600, least=1)
    cheaper = tuned(EVEN, "roomy", Objective(0.999), wide, floors=False)
    assert cheaper.held[1].replica_syncs < cheaper.held[0].replica_syncs
    spec, train, held = parts(EVEN, "small")
    short = search(Space(spec, parameters_of(spec), wide), spec, Objective(0.999), train, held, (), 120, 0)
    assert short.train[0].share < 0.999
    assert short.train[1].violating < short.train[0].violating
    assert short.chosen.parameters.max_replicas > spec.max_replicas


def test_each_reason_is_the_training_days_without_that_change() -> None:
    verdict = tuned(EVEN, "roomy", Objective(0.999), Limits(target_percent=60), floors=False)
    _spec, train, _held = parts(EVEN, "roomy")
    assert len(verdict.reasons) >= 1
    for one in verdict.reasons:
        without = undone(verdict.chosen.parameters, verdict.present.parameters, one.difference)
        assert train([Candidate(without)])[0] == one.without


def test_the_allowance_is_that_of_the_objective_and_of_the_present_spec() -> None:
    present = Figures(1000, 3, 100.0)
    assert Objective(0.999).allowed(present) == 1
    assert Objective(0.99).allowed(present) == 3
    assert Objective(0.99, use_budget=True).allowed(present) == 10
    assert Objective(0.99, use_budget=True).aimed(present) == 7
    assert Objective(0.99).aimed(present) == 3
    cheap, dear = Figures(1000, 9, 50.0), Figures(1000, 2, 200.0)
    assert not Objective(0.99).better(cheap, present)
    assert Objective(0.99, use_budget=True).better(cheap, present)
    assert not Objective(0.99).better(dear, present)
    # what breaks the objective may cost more to keep it
    assert Objective(0.999).better(dear, present)


def test_quiet_held_out_days_do_not_excuse_what_breaks_the_objective() -> None:
    objective = Objective(0.99)
    broken, kept, quiet = Figures(1000, 30, 100.0), Figures(1000, 5, 110.0), Figures(500, 2, 50.0)
    assert objective.holds_up((broken, kept), (quiet, Figures(500, 2, 55.0)))
    # never more violations than the present spec, and never dearer for nothing
    assert not objective.holds_up((broken, kept), (quiet, Figures(500, 3, 55.0)))
    assert not objective.holds_up((kept, Figures(1000, 5, 90.0)), (quiet, Figures(500, 2, 55.0)))
    assert quiet + kept == Figures(1500, 7, 160.0)
    # what mends training days and saves on held-out ones must not cost more in all where the present spec is good enough
    present, dear = (Figures(1000, 12, 100.0), Figures(500, 0, 50.0)), (Figures(1000, 5, 120.0), Figures(500, 0, 40.0))
    assert not objective.holds_up((present[0], dear[0]), (present[1], dear[1]))


# ---- floors


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 12))
def test_needs_are_looked_at_ahead(values: list[int], syncs: int) -> None:
    assert ahead(values, syncs) == [max(values[index : index + syncs + 1]) for index in range(len(values))]


@given(
    st.sampled_from([1, 7]).flatmap(lambda days: st.lists(st.integers(0, 12), min_size=24 * days, max_size=24 * days)),
    st.integers(0, 6),
    st.integers(0, 6),
)
def test_a_schedule_only_raises_the_floor_and_its_entries_say_it_all(floors: list[int], least: int, more: int) -> None:
    schedule, most = Schedule(3600, tuple(floors)), least + more
    # 1970-01-05 was a Monday
    monday_s = 4 * 86_400
    over = schedule.over(monday_s, 7 * 24, 3600, least, most)
    assert all(least <= one <= most for one in over)
    said = [least] * (7 * 24)
    for entry in schedule.entries(least, most):
        start, end = (int(entry[key][:2]) for key in ("start", "end"))
        assert entry["min_replicas"] > least
        for name in entry["days"]:
            for hour in range(start, end):
                said[DAYS.index(name) * 24 + hour] = entry["min_replicas"]
    assert said == over


def test_a_forecast_tells_weekdays_apart_once_each_was_seen_twice() -> None:
    day = [100.0] * 1440
    busy = [1000.0] * 1440
    load = (busy + day * 6) * 2
    monday_s = 4 * 86_400.0
    weekly = forecast(load, monday_s, 60, 100.0, 0, 3600)[0]
    assert weekly.weekly
    assert [weekly.at(monday_s + number * 86_400) for number in range(8)] == [10, 1, 1, 1, 1, 1, 1, 10]
    assert not forecast(load[: 13 * 1440], monday_s, 60, 100.0, 0, 3600)[0].weekly


def test_a_daily_peak_is_met_by_a_floor_that_was_made_from_other_days() -> None:
    # a jump each morning that what reacts is late for; one of two pods is lost at night
    load = ([150.0] * 480 + [1500.0] * 480 + [150.0] * 480) * 4
    api = complete({"minReplicas": 3, "maxReplicas": 30, "metrics": [CPU]})
    spec = parse_spec(api)
    simulation = Simulation(spec, PODS, sync_s=SYNC_S, initial=4)
    train, held = Days(load[:4320], 0.0, simulation), Days(load[4320:], 259_200.0, simulation)
    schedules = forecast(train.load, 0.0, SYNC_S, PODS.capacity, 120, 1800)
    verdict = search(Space(spec, parameters_of(spec), Limits()), spec, Objective(0.999), train, held, schedules, 80, 0)
    assert verdict.held[1].violating > 0
    assert verdict.planned is not None
    assert verdict.planned[2].violating < verdict.held[1].violating
