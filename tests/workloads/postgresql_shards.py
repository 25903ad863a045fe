# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write to and read from sharded tables as applications do, and check what was acknowledged.

Some writers know the map and go to the shards, as the reference client of ``headroom.route`` would; others use a router. Each writer
has keys of its own, so that it knows what every row of them must be. Accounts with two rows each are written to by all, in
transactions that leave their sum as it is, so that count and sum over all shards must be the same at every instant.

As a program it works until a file appears or a time has passed, checks, and prints one line of JSON with its figures;
it fails when anything was lost, wrong or refused.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import psycopg

MOVED = "HR001"
# an insert for a bucket that is not here
NOT_HERE = "23514"
# postgres_fdw reads under REPEATABLE READ, so two writers of one row may meet, move or no move
SERIALIZATION = "40001"
# a map is read again after so long: those who only read are told by nothing else
MAP_TTL_S = 1.0
RETRIES = 200
ACCOUNT_KEYS = 1_000_000
ACCOUNTS = 100
DEPOSIT = Decimal(1000)
Row = tuple[Decimal, str]


class Direct:
    """A client that knows where each key is: it reads the map at any shard and follows what it is told."""

    def __init__(self, shards: Sequence[str], login: str) -> None:
        """Take connection strings of shards, and what logs in."""
        self.shards = list(shards)
        self.login = login
        self.connections: dict[str, psycopg.Connection] = {}
        self.routes: dict[int, tuple[str, float]] = {}
        self.moved = 0
        self.retries = 0

    def run(self, key: int, work: Callable[[psycopg.Connection], Any]) -> Any:
        """Do work in one transaction where a key is."""
        for attempt in range(RETRIES):
            try:
                connection = self.connection(self.route(key))
                with connection.transaction():
                    return work(connection)
            except psycopg.Error as error:
                if error.sqlstate not in (MOVED, NOT_HERE, SERIALIZATION) or attempt == RETRIES - 1:
                    raise
                self.moved += error.sqlstate != SERIALIZATION
                self.retries += 1
                self.routes.clear()
                time.sleep(random.uniform(0.001, 0.02))
        raise AssertionError

    def route(self, key: int) -> str:
        """Return how to connect to the shard of a key."""
        known = self.routes.get(key)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        # the row of the highest epoch is true: those who were not told yet have a lower one
        found = []
        for shard in self.shards:
            row = (
                self.connection(shard)
                .execute("SELECT epoch, conninfo FROM headroom.route('users', %s::text)", [str(key)])
                .fetchone()
            )
            found.append(row)
        _epoch, conninfo = max(found)
        self.routes[key] = (f"{conninfo} {self.login}", time.monotonic() + MAP_TTL_S)
        return self.routes[key][0]

    def connection(self, conninfo: str) -> psycopg.Connection:
        """Return a connection that is kept."""
        found = self.connections.get(conninfo)
        if found is None or found.closed:
            found = self.connections[conninfo] = psycopg.connect(conninfo, autocommit=True, connect_timeout=5)
        return found

    def close(self) -> None:
        """Close all connections."""
        for one in self.connections.values():
            one.close()
        self.connections.clear()


class Routed:
    """A client of a router, which knows nothing."""

    def __init__(self, router: str) -> None:
        """Take the connection string."""
        self.router = router
        self.retries = 0
        self.moved = 0
        self.link: psycopg.Connection | None = None

    def run(self, _key: int, work: Callable[[psycopg.Connection], Any]) -> Any:
        """Do work in one transaction."""
        for attempt in range(RETRIES):
            try:
                if self.link is None or self.link.closed:
                    self.link = psycopg.connect(self.router, autocommit=True, connect_timeout=5)
                with self.link.transaction():
                    return work(self.link)
            except psycopg.Error as error:
                if error.sqlstate != SERIALIZATION or attempt == RETRIES - 1:
                    raise
                self.retries += 1
                time.sleep(random.uniform(0.001, 0.01))
        raise AssertionError

    def close(self) -> None:
        """Close the connection."""
        if self.link is not None:
            self.link.close()


class Writer(threading.Thread):
    """Works on keys of its own, and knows what they must hold."""

    def __init__(
        self, number: int, seed: int, client: Direct | Routed, keys: range, pause_s: float, cascades: bool = False
    ) -> None:
        """Take the client and the keys, and whether a row of the second table goes with its row of the first."""
        super().__init__(daemon=True)
        self.number = number
        self.client = client
        self.random = random.Random(seed * 1000 + number)
        self.keys = keys
        self.pause_s = pause_s
        self.cascades = cascades
        # what each row must be; a row whose fate is not known has more than one entry, None for no row
        self.rows: dict[tuple[int, int], set[Row | None]] = collections.defaultdict(lambda: {None})
        # the same of the second table of the group
        self.items: dict[tuple[int, int], set[int | None]] = collections.defaultdict(lambda: {None})
        self.next_id = 0
        self.statements = 0
        self.errors: list[str] = []
        self.wrong: list[str] = []
        # when an operation began and how long it took
        self.latencies_s: list[tuple[float, float]] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        """Work until told to stop."""
        operations = [
            self.insert,
            self.insert,
            self.update,
            self.update,
            self.update,
            self.delete,
            self.read,
            self.batch,
        ]
        operations += [self.transfer, self.transfer]
        if isinstance(self.client, Direct):
            operations += [self.upsert, self.upsert]
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                self.random.choice(operations)()
                self.latencies_s.append((began, time.monotonic() - began))
            except psycopg.Error as error:
                self.errors.append(f"{error.sqlstate}: {type(error).__name__}: {str(error).strip()}")
                time.sleep(0.05)
            if self.pause_s:
                time.sleep(self.random.uniform(0, 2 * self.pause_s))
        self.client.close()

    def change(
        self,
        key: int,
        wanted: dict[tuple[int, int], Row | None],
        work: Callable[[Any], None],
        items: dict[tuple[int, int], int | None] | None = None,
    ) -> None:
        """Do work that makes rows, and those of the second table, what is wanted. Should it fail, they may be either."""
        before = {name: set(self.rows[name]) for name in wanted}
        items_before = {name: set(self.items[name]) for name in items or ()}
        for name, number in (items or {}).items():
            self.items[name] |= {number}
        for name, row in wanted.items():
            self.rows[name] |= {row}
        try:
            self.client.run(key, work)
        except psycopg.Error as error:
            # an error of the server means that nothing happened; a lost connection says nothing
            if error.sqlstate is not None and not error.sqlstate.startswith(("08", "57")):
                self.rows.update(before)
                self.items.update(items_before)
            raise
        self.statements += len(wanted) + sum(number is not None for number in (items or {}).values())
        for name, row in wanted.items():
            self.rows[name] = {row}
        for name, number in (items or {}).items():
            self.items[name] = {number}

    def some(self) -> tuple[int, int] | None:
        """Return a row that is there for certain."""
        there = [name for name, rows in self.rows.items() if len(rows) == 1 and None not in rows]
        return self.random.choice(there) if there else None

    def insert(self) -> None:
        """Insert a row."""
        key = self.random.choice(self.keys)
        self.next_id += 1
        name, row = (key, self.next_id), (Decimal(self.random.randrange(1000)), f"w{self.number}")
        self.change(
            key,
            {name: row},
            lambda one: one.execute(
                "INSERT INTO public.orders (user_id, id, amount, note) VALUES (%s, %s, %s, %s)", [*name, *row]
            ),
        )

    def update(self) -> None:
        """Add to a row."""
        name = self.some()
        if name is None:
            return
        (was,) = self.rows[name]
        assert was is not None
        row = (was[0] + 1, f"u{self.random.randrange(1000)}")

        def work(one: psycopg.Connection) -> None:
            done = one.execute(
                "UPDATE public.orders SET amount = amount + 1, note = %s WHERE user_id = %s AND id = %s",
                [row[1], *name],
            )
            if done.rowcount != 1:
                self.wrong.append(f"update of {name} found {done.rowcount} rows")

        self.change(name[0], {name: row}, work)

    def upsert(self) -> None:
        """Insert a row, or add to it when it is there."""
        key = self.random.choice(self.keys)
        name = self.some() if self.random.random() < 0.5 else None
        if name is None:
            self.next_id += 1
            name = (key, self.next_id)
        (was,) = self.rows[name] if len(self.rows[name]) == 1 else (None,)
        row = (was[0] + 7, "upserted") if was else (Decimal(7), "upserted")
        self.change(
            name[0],
            {name: row},
            lambda one: one.execute(
                "INSERT INTO public.orders AS o (user_id, id, amount, note) VALUES (%s, %s, 7, 'upserted') "
                "ON CONFLICT (user_id, id) DO UPDATE SET amount = o.amount + 7, note = excluded.note",
                list(name),
            ),
        )

    def delete(self) -> None:
        """Delete a row."""
        name = self.some()
        if name is None:
            return

        def work(one: psycopg.Connection) -> None:
            done = one.execute("DELETE FROM public.orders WHERE user_id = %s AND id = %s", list(name))
            if done.rowcount != 1:
                self.wrong.append(f"delete of {name} found {done.rowcount} rows")

        self.change(name[0], {name: None}, work, {name: None} if self.cascades else None)

    def batch(self) -> None:
        """Insert rows of one key into both tables, in one transaction."""
        key = self.random.choice(self.keys)
        names = [(key, self.next_id + number) for number in range(1, 4)]
        self.next_id += 3
        row = (Decimal(3), "batch")

        def work(one: psycopg.Connection) -> None:
            for name in names:
                one.execute(
                    "INSERT INTO public.orders (user_id, id, amount, note) VALUES (%s, %s, %s, %s)", [*name, *row]
                )
                one.execute("INSERT INTO public.items (user_id, id, n) VALUES (%s, %s, %s)", [*name, 3])

        self.change(key, dict.fromkeys(names, row), work, dict.fromkeys(names, 3))

    def read(self) -> None:
        """Read all rows of a key and compare them."""
        key = self.random.choice(self.keys)
        rows = self.client.run(
            key,
            lambda one: one.execute("SELECT id, amount, note FROM public.orders WHERE user_id = %s", [key]).fetchall(),
        )
        self.statements += 1
        self.wrong += self.differences(key, {row[0]: (row[1], row[2]) for row in rows})

    def transfer(self) -> None:
        """Move money between the two rows of an account, which others use too."""
        key = ACCOUNT_KEYS + self.random.randrange(ACCOUNTS)
        amount = self.random.randrange(1, 50)

        def work(one: psycopg.Connection) -> None:
            for number, sign in ((1, -1), (2, 1)):
                done = one.execute(
                    "UPDATE public.orders SET amount = amount + %s WHERE user_id = %s AND id = %s",
                    [sign * amount, key, number],
                )
                if done.rowcount != 1:
                    self.wrong.append(f"account {key} has {done.rowcount} rows {number}")

        self.client.run(key, work)
        self.statements += 2

    def different_items(self, key: int, found: Sequence[tuple[int, int]]) -> list[str]:
        """Return what is not as it must be in the second table."""
        numbers = dict(found)
        wrong = [f"an item of {key} comes twice"] if len(numbers) < len(found) else []
        known = {name[1] for name in self.items if name[0] == key}
        wrong += [f"item {(key, number)} came from nowhere" for number in numbers if number not in known]
        return wrong + [
            f"item {(key, number)} is {numbers.get(number)}, and must be one of {sorted(map(str, self.items[key, number]))}"
            for number in known
            if numbers.get(number) not in self.items[key, number]
        ]

    def differences(self, key: int, found: dict[int, Row]) -> list[str]:
        """Return what is not as it must be."""
        known = {name[1] for name in self.rows if name[0] == key}
        wrong = [f"row {(key, number)} came from nowhere" for number in found if number not in known]
        for number in known:
            allowed = self.rows[key, number]
            if found.get(number) not in allowed:
                wrong.append(
                    f"row {(key, number)} is {found.get(number)}, and must be one of {sorted(map(str, allowed))}"
                )
        return wrong


class Counter(threading.Thread):
    """Counts the accounts over all shards, again and again; the answer is always the same."""

    def __init__(self, router: str) -> None:
        """Take the router."""
        super().__init__(daemon=True)
        self.client = Routed(router)
        self.counts = 0
        self.errors: list[str] = []
        self.wrong: list[str] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        """Count until told to stop."""
        wanted = (2 * ACCOUNTS, 2 * ACCOUNTS * DEPOSIT)
        query = f"SELECT count(*), sum(amount) FROM public.orders WHERE user_id >= {ACCOUNT_KEYS}"
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                found = self.client.run(0, lambda one: one.execute(query).fetchone())
                self.counts += 1
                if found != wanted:
                    self.wrong.append(f"the accounts are {found}, not {wanted}")
            except psycopg.Error as error:
                self.errors.append(f"{error.sqlstate}: {type(error).__name__}: {str(error).strip()}")
                time.sleep(0.05)
            # no more than half of the time, so that whoever needs the table to itself gets it
            time.sleep(0.02 + time.monotonic() - began)
        self.client.close()


class Workload:
    """Several writers and a counter."""

    def __init__(
        self,
        shards: Sequence[str],
        routers: Sequence[str],
        login: str = "",
        seed: int = 1,
        direct: int = 3,
        routed: int = 2,
        keys: int = 60,
        pause_s: float = 0.002,
        cascades: bool = False,
    ) -> None:
        """Take connection strings of shards and routers, and the number of writers of each kind.

        :param cascades: whether the second table refers to the first one, and what refers to a row is deleted with it.
        """
        self.seed = seed
        self.routers = [f"{one} {login}" for one in routers]
        clients: list[Direct | Routed] = [Direct([f"{one} {login}" for one in shards], login) for _one in range(direct)]
        clients += [Routed(self.routers[number % len(routers)]) for number in range(routed)]
        self.writers = [
            Writer(number, seed, client, range(number * keys, (number + 1) * keys), pause_s, cascades)
            for number, client in enumerate(clients)
        ]
        self.counter = Counter(self.routers[0]) if routed else None

    def fill(self) -> None:
        """Make the accounts, and remove what an earlier workload has left."""
        for writer in self.writers:
            for key in writer.keys:
                writer.client.run(
                    key, lambda one, key=key: one.execute("DELETE FROM public.items WHERE user_id = %s", [key])
                )
                writer.client.run(
                    key, lambda one, key=key: one.execute("DELETE FROM public.orders WHERE user_id = %s", [key])
                )
        client = self.writers[0].client
        for key in range(ACCOUNT_KEYS, ACCOUNT_KEYS + ACCOUNTS):

            def work(one: psycopg.Connection, key: int = key) -> None:
                one.execute("DELETE FROM public.orders WHERE user_id = %s", [key])
                one.execute(
                    "INSERT INTO public.orders (user_id, id, amount, note) VALUES (%s, 1, %s, 'a'), (%s, 2, %s, 'b')",
                    [key, DEPOSIT, key, DEPOSIT],
                )

            client.run(key, work)

    def start(self) -> None:
        """Begin."""
        for one in self.threads:
            one.start()

    @property
    def threads(self) -> list[Any]:
        """Writers and counter."""
        return [*self.writers, *([self.counter] if self.counter else [])]

    @property
    def errors(self) -> list[str]:
        """All errors so far."""
        return [error for one in self.threads for error in one.errors]

    @property
    def wrong(self) -> list[str]:
        """All that was wrong so far."""
        return [text for one in self.threads for text in one.wrong]

    @property
    def statements(self) -> int:
        """Statements so far."""
        return sum(writer.statements for writer in self.writers)

    def latencies_s(self, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """Return how long the operations took that began in a time, sorted."""
        return sorted(took for one in self.writers for began, took in list(one.latencies_s) if since <= began <= until)

    def finish(self) -> dict[str, Any]:
        """Stop, compare every row with what was acknowledged, and return the figures."""
        for one in self.threads:
            one.stopping.set()
        for one in self.threads:
            one.join(120)
        lost: list[str] = []
        for writer in self.writers:
            # both ways: what the shards hold for those who know the map, and what the routers find
            readers: list[Direct | Routed] = [Routed(router) for router in self.routers]
            direct = next((one.client for one in self.writers if isinstance(one.client, Direct)), None)
            if direct is not None:
                direct.routes.clear()
                readers.append(direct)
            for client in readers:
                for key in writer.keys:
                    rows = client.run(
                        key,
                        lambda one, key=key: one.execute(
                            "SELECT id, amount, note FROM public.orders WHERE user_id = %s", [key]
                        ).fetchall(),
                    )
                    lost += writer.differences(key, {row[0]: (row[1], row[2]) for row in rows})
                    if len(rows) != len({row[0] for row in rows}):
                        lost.append(f"key {key} has rows twice")
                    items = client.run(
                        key,
                        lambda one, key=key: one.execute(
                            "SELECT id, n FROM public.items WHERE user_id = %s", [key]
                        ).fetchall(),
                    )
                    lost += writer.different_items(key, items)
                client.close()
        ordered = self.latencies_s()
        return {
            "statements": self.statements,
            "counts": self.counter.counts if self.counter else 0,
            "lost": lost,
            "wrong": self.wrong,
            "errors": self.errors,
            "moved": sum(one.client.moved for one in self.writers),
            "retries": sum(one.client.retries for one in self.writers),
            "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))] * 1000, 1) if ordered else None,
            "max_ms": round(ordered[-1] * 1000, 1) if ordered else None,
        }


def main() -> int:
    """Work until a file appears or a time has passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shard", action="append", required=True, help="connection string of a shard, without the login"
    )
    parser.add_argument("--router", action="append", default=[], help="connection string of a router")
    parser.add_argument("--login", default="user=postgres", help="what logs in, as libpq parameters")
    parser.add_argument("--direct", type=int, default=3, help="writers that know the map")
    parser.add_argument("--routed", type=int, default=2, help="writers that use a router")
    parser.add_argument("--ready", help="make this file when the work begins")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--stop", help="end when this file is there")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--pause", type=float, default=0.002, help="seconds between two operations of a writer")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    workload = Workload(
        options.shard,
        options.router,
        options.login,
        options.seed,
        direct=options.direct,
        routed=options.routed if options.router else 0,
        pause_s=options.pause,
    )
    workload.fill()
    workload.start()
    if options.ready:
        with open(options.ready, "w", encoding="utf-8"):
            pass
    deadline = time.monotonic() + options.seconds
    while time.monotonic() < deadline and not (options.stop and os.path.exists(options.stop)):
        time.sleep(0.1)
    figures = workload.finish()
    figures["errors"] = dict(collections.Counter(error[:200] for error in figures["errors"]))
    figures["seed"] = options.seed
    print(json.dumps(figures))
    return int(bool(figures["lost"] or figures["wrong"] or figures["errors"]))


if __name__ == "__main__":
    sys.exit(main())
