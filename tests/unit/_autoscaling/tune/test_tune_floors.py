# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a schedule says as stretches is what the role sets at each time of the week."""

from __future__ import annotations

import pathlib
import typing as t

import yaml
from ansible.template import Templar, trust_as_template
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.floors import DAY_S, DAYS, Schedule
from hypothesis import given, settings
from hypothesis import strategies as st

ROLE = pathlib.Path(__file__).parents[4] / "roles" / "autoscaling" / "tasks"
# a Monday
MONDAY_S = 1_760_918_400


def role(file: str, number: int) -> dict[str, t.Any]:
    """Return a task of the role, its texts as templates."""
    return _trusted(yaml.safe_load((ROLE / file).read_text(encoding="utf-8"))[number])


def _trusted(value: t.Any) -> t.Any:
    if isinstance(value, dict):
        return {key: _trusted(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_trusted(one) for one in value]
    return trust_as_template(value) if isinstance(value, str) else value


TASK = role("hpa.yml", 0)
CHECK = role("preflight.yml", 1)


def floor(service: dict[str, t.Any], at: str) -> int:
    """Return the floor that the role sets for a service at a time, such as ``monday 08:30``."""
    variables = {**TASK["vars"], "__autoscaling_item": service, "autoscaling_at": at}
    return Templar(loader=None, variables=variables).template(TASK["headroom.scale.hpa"]["spec"])["minReplicas"]


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Return a schedule of a day or a week, of stretches of any length that can be chosen."""
    slot_s = draw(st.sampled_from([15, 30, 60, 120, 180, 240])) * 60
    slots = DAY_S // slot_s * draw(st.sampled_from([1, 7]))
    # few values, so that stretches come to be
    return Schedule(slot_s, tuple(draw(st.lists(st.integers(0, 5), min_size=slots, max_size=slots))))


@settings(max_examples=15)
@given(schedule=schedules(), least=st.integers(1, 3), most=st.integers(3, 6), data=st.data())
def test_the_role_sets_what_the_schedule_says(schedule: Schedule, least: int, most: int, data: st.DataObject) -> None:
    service = {
        "name": "shop",
        "spec": {"minReplicas": least, "maxReplicas": most},
        "floors": schedule.entries(least, most),
    }
    for _time in range(8):
        day, minute = data.draw(st.integers(0, 6)), data.draw(st.integers(0, DAY_S // 60 - 1))
        for at in (minute, minute * 60 // schedule.slot_s * schedule.slot_s // 60):
            wanted = schedule.over(MONDAY_S + day * DAY_S + at * 60, 1, 15, least, most)[0]
            assert floor(service, f"{DAYS[day]} {at // 60:02d}:{at % 60:02d}") == wanted


@settings(max_examples=15)
@given(schedule=schedules(), least=st.integers(1, 3), most=st.integers(3, 6))
def test_the_role_takes_what_a_schedule_says(schedule: Schedule, least: int, most: int) -> None:
    """What the role would refuse before it does anything is never recommended."""
    service = {"name": "shop", "spec": {"minReplicas": least, "maxReplicas": most}}
    for entry in schedule.entries(least, most)[:30]:
        variables = {**CHECK["vars"], "__autoscaling_item": [service, entry]}
        templar = Templar(loader=None, variables=variables)
        for condition in CHECK["ansible.builtin.assert"]["that"]:
            assert templar.evaluate_conditional(condition) is True, (condition, entry)
