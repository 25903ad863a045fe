# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmarks share: the time of one task as ansible-core reports it, and the line that a figure is printed as."""

from __future__ import annotations

import datetime
import json
import os
import statistics
import subprocess
import typing as t
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLAY_TIMEOUT_S = 3600


@dataclass(frozen=True)
class Span:
    """When something began and ended, in seconds of the wall clock."""

    began_s: float
    ended_s: float

    @property
    def seconds(self) -> float:
        """The time that it took."""
        return self.ended_s - self.began_s


def task_span(
    play: str, task: str, inventories: t.Iterable[str | Path], extra: t.Mapping[str, t.Any], folder: str
) -> Span:
    """Run a play and return when one of its tasks began and ended. The start of ansible-playbook is not part of it.

    :param task: name of the task, in any case.
    :param folder: where the play may be written to.
    :raises RuntimeError: when the play fails or has no such task.
    """
    path = Path(folder, "bench.yml")
    path.write_text(play, encoding="utf-8")
    command = ["ansible-playbook", *(f"--inventory={one}" for one in inventories), "-e", json.dumps(extra), str(path)]
    environment = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_LOCALHOST_WARNING": "false"}
    environment.setdefault("ANSIBLE_CONFIG", str(ROOT / "ansible.cfg"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PLAY_TIMEOUT_S, check=False)
    start = done.stdout.find("{")
    if start < 0:
        raise RuntimeError(done.stderr.strip() or done.stdout.strip())
    tasks = json.loads(done.stdout[start:])["plays"][0]["tasks"]
    if done.returncode != 0:
        raise RuntimeError(json.dumps(tasks[-1]["hosts"])[:2000])
    for entry in tasks:
        if entry["task"]["name"].lower() == task.lower():
            duration = entry["task"]["duration"]
            return Span(_moment(duration["start"]), _moment(duration["end"]))
    raise RuntimeError(f"no task named {task}")


def _moment(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def figure(
    bench: str,
    name: str,
    unit: str,
    ours: t.Sequence[float],
    peer: t.Sequence[float],
    peer_name: str,
    more_is_better: bool = False,
    digits: int = 3,
    ratio_digits: int = 1,
    **more: t.Any,
) -> dict[str, t.Any]:
    """Return a figure's line: medians, how many times better ours is, and the spread from the smallest to the largest.

    :param ours: one value for each round, as in ``peer``.
    :param more: what else the line is to say.
    """
    ratios = [(one / other if more_is_better else other / one) for one, other in zip(ours, peer, strict=True)]
    middle, middle_peer = statistics.median(ours), statistics.median(peer)
    ratio = middle / middle_peer if more_is_better else middle_peer / middle
    return {
        "bench": bench,
        "figure": name,
        "ours": round(middle, digits),
        "peer": round(middle_peer, digits),
        "ratio": round(ratio, ratio_digits),
        "unit": unit,
        "ours_spread": [round(min(ours), digits), round(max(ours), digits)],
        "peer_spread": [round(min(peer), digits), round(max(peer), digits)],
        "ratio_spread": [round(min(ratios), ratio_digits), round(max(ratios), ratio_digits)],
        "rounds": len(ours),
        "peer_name": peer_name,
        **more,
    }
