# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Many simulations of one load, compiled. Needs NumPy and Numba; a process compiles once, which takes some seconds.

Figures of a simulation are the same as those of :func:`.simulate.run`.
"""

from __future__ import annotations

import concurrent.futures
import functools
import threading
import types
import typing as t

from . import kernel
from .simulate import Run, Simulation, check, rows

_COMPILED = (
    "amount",
    "usage",
    "ceil_count",
    "holds",
    "made_by",
    "changed",
    "limit_of",
    "store",
    "propose",
    "loop",
)
_LARGEST = 2**62


@functools.cache
def _loop() -> t.Any:
    """Return the kernel, compiled once for a process; its functions find one another in a namespace of their own."""
    import numba

    whole, real, table = numba.int64[::1], numba.float64[::1], numba.int64[:, ::1]
    signature = numba.void(real, whole, whole, real, table, real, table, table, real, table, table, real)
    names = dict(vars(kernel))
    for name in _COMPILED:
        function = types.FunctionType(getattr(kernel, name).__code__, names, name)
        # only the loop is called from Python; the others need no way in, which takes as long to compile as they do
        if name == "loop":
            names[name] = numba.njit(signature, nogil=True)(function)
        else:
            names[name] = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    return names["loop"]


class Batch:
    """One load that many simulations replay, on several threads at a time."""

    def __init__(self, load: t.Sequence[float], threads: int = 1) -> None:
        """Take the load, one value for each sync.

        :param threads: how many processors to use.
        :raises ModuleNotFoundError: without NumPy or Numba.
        """
        import numpy as np

        _loop()
        self._load = np.asarray(load, dtype=np.float64)
        self._threads = threads
        self._room = threading.local()

    def figures(self, simulations: t.Sequence[Simulation]) -> list[t.Sequence[float]]:
        """Return the totals of each simulation, by the places of :mod:`.kernel`.

        :raises OptionError: when one cannot be simulated.
        """
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(lambda one: self.run(one).totals, simulations))

    def run(self, simulation: Simulation) -> Run:
        """Simulate once. What it returns but the totals is valid until this thread simulates again.

        :raises OptionError: when it cannot be simulated.
        :raises OverflowError: when its quantities are too large for the processor's whole numbers.
        """
        import numpy as np

        check(simulation)
        given = rows(simulation)
        pods = max(simulation.initial, simulation.spec.max_replicas)
        # resources are bounded by the pods, other metrics by the load
        metrics = zip(given["metrics"], given["factors"], strict=True)
        factors = [factor for row, factor in metrics if row[kernel.SOURCE] != kernel.FROM_USAGE]
        amount = float(self._load.max(initial=0)) * max(factors, default=0.0) * 1000
        if amount * 100 > _LARGEST or any(max(row) * 100 * pods > _LARGEST for row in given["metrics"]):
            raise OverflowError("The metrics of all pods together are too large; simulate with smaller quantities.")
        scratch, out, shares = self._rooms(max(len(self._load) + 2, pods))
        totals = np.zeros(kernel.TOTALS)
        _loop()(
            self._load,
            *(np.array(given[name], dtype=np.int64) for name in ("floors", "whole")),
            np.array(given["real"], dtype=np.float64),
            np.array(given["metrics"], dtype=np.int64),
            np.array(given["factors"], dtype=np.float64),
            np.array(given["up_policies"], dtype=np.int64),
            np.array(given["down_policies"], dtype=np.int64),
            shares,
            scratch,
            out,
            totals,
        )
        return Run(*out, totals.tolist())

    def _rooms(self, size: int) -> tuple[t.Any, t.Any, t.Any]:
        """Return this thread's arrays, which are written anew by each simulation."""
        import numpy as np

        if getattr(self._room, "size", 0) < size:
            self._room.size = size
            self._room.scratch = np.zeros((kernel.SCRATCH_ROWS, size), dtype=np.int64)
            self._room.out = np.zeros((kernel.OUT_ROWS, len(self._load)), dtype=np.int64)
            self._room.shares = np.zeros(len(self._load))
        return self._room.scratch, self._room.out, self._room.shares
