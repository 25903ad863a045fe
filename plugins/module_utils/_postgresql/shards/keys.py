# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Shard keys: their types, how they compare, and the hash partition that PostgreSQL puts them into. Pure.

The hash follows PostgreSQL's source (versions 11 to 18): ``compute_partition_hash_value`` and ``satisfies_hash_partition`` in
``partitioning/partbounds.c``, ``HASH_PARTITION_SEED`` in ``catalog/partition.h``, ``hash_combine64`` and
``hash_bytes_extended`` in ``common/hashfn.[hc]``, ``hashint8extended`` in ``access/hash/hashfunc.c``. Its core is lookup3 by
Bob Jenkins (2006, public domain). PostgreSQL reads the bytes of text and uuid as words of the server's byte order: what is here
is that of little-endian servers (x86-64, arm64). Text is hashed in the database's encoding, here UTF-8, under a deterministic
collation.
"""

from __future__ import annotations

import datetime
import typing as t
import uuid

Key: t.TypeAlias = "int | str | uuid.UUID | datetime.date"

INTEGERS = {"smallint": 16, "integer": 32, "bigint": 64}
"""Integer types and their bits."""
KEY_TYPES = (*INTEGERS, "text", "varchar", "uuid", "date")
HASH_TYPES = (*INTEGERS, "text", "varchar", "uuid")
"""Types that can be hashed here."""

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF
_PARTITION_SEED = 0x7A5B22367996DCFD
_COMBINE = 0x49A0F4DD15E5A8E3
_START = 0x9E3779B9 + 3923095


def parse_key(key_type: str, value: t.Any) -> Key:
    """Return a value as a key of the type.

    :raises ValueError: with half a sentence on what is needed, when it is none.
    """
    if key_type in INTEGERS:
        return _parse_integer(INTEGERS[key_type], value)
    if key_type in ("text", "varchar"):
        if not isinstance(value, str) or "\0" in value:
            raise ValueError("a text without NUL is needed")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("a text that UTF-8 has bytes for is needed") from None
        # Ansible marks texts by subclasses of str
        return str(value)
    if key_type == "uuid":
        try:
            return value if isinstance(value, uuid.UUID) else uuid.UUID(str(value))
        except ValueError:
            raise ValueError("a UUID is needed") from None
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value
    try:
        return datetime.date.fromisoformat(str(value))
    except ValueError:
        raise ValueError("a date as YYYY-MM-DD is needed") from None


def _parse_integer(bits: int, value: t.Any) -> int:
    try:
        number = int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or not -(1 << bits - 1) <= number < 1 << bits - 1:
        raise ValueError(f"an integer of {bits} bits is needed")
    return number


def sort_key(key: Key) -> t.Any:
    """Return what orders keys of one type as PostgreSQL does; texts as under the collation C in UTF-8."""
    return key.encode() if isinstance(key, str) else key


def successor(key_type: str, key: Key) -> Key | None:
    """Return the next key of the type, or None where there is none that both sides could name, as with texts."""
    if isinstance(key, int):
        return key + 1 if key + 1 < 1 << INTEGERS[key_type] - 1 else None
    if isinstance(key, uuid.UUID):
        return uuid.UUID(int=key.int + 1) if key.int < (1 << 128) - 1 else None
    if isinstance(key, datetime.date) and key < datetime.date.max:
        return key + datetime.timedelta(days=1)
    return None


def key_to_json(key: Key) -> int | str:
    """Return the key as JSON can hold it; :func:`parse_key` reads it back."""
    return key if isinstance(key, int) else str(key)


def hash_remainder(key: Key, modulus: int) -> int:
    """Return the remainder of the hash partition that holds the key, with a partition key of this one column.

    :param key: of one of :data:`HASH_TYPES`. The integer types give equal numbers equal hashes.
    :param modulus: number of partitions.
    :raises TypeError: for a key of another type.
    """
    if isinstance(key, int):
        hashed = _hash_integer(key)
    elif isinstance(key, str):
        hashed = _hash_bytes(key.encode())
    elif isinstance(key, uuid.UUID):
        hashed = _hash_bytes(key.bytes)
    else:
        raise TypeError(f"no hash for {type(key).__name__}")
    # hash_combine64 of 0 and the hash
    return ((hashed + _COMBINE) & _MASK64) % modulus


def _hash_integer(value: int) -> int:
    """The 64-bit value is folded to 32 bits so that numbers that fit into those hash as integers of 32 bits do."""
    low, high = value & _MASK32, (value >> 32) & _MASK32
    folded = low ^ (high if value >= 0 else high ^ _MASK32)
    a, b, c = _seeded(4)
    return _final((a + folded) & _MASK32, b, c)


def _hash_bytes(data: bytes) -> int:
    a, b, c = _seeded(len(data))
    whole = len(data) // 12 * 12
    for at in range(0, whole, 12):
        a, b, c = _mix(
            (a + int.from_bytes(data[at : at + 4], "little")) & _MASK32,
            (b + int.from_bytes(data[at + 4 : at + 8], "little")) & _MASK32,
            (c + int.from_bytes(data[at + 8 : at + 12], "little")) & _MASK32,
        )
    rest = data[whole:]
    a += int.from_bytes(rest[:4], "little")
    b += int.from_bytes(rest[4:8], "little")
    # the lowest byte of c is left to the length
    c += int.from_bytes(rest[8:], "little") << 8
    return _final(a & _MASK32, b & _MASK32, c & _MASK32)


def _seeded(length: int) -> tuple[int, int, int]:
    start = (_START + length) & _MASK32
    return _mix((start + (_PARTITION_SEED >> 32)) & _MASK32, (start + (_PARTITION_SEED & _MASK32)) & _MASK32, start)


def _rotate(word: int, bits: int) -> int:
    return ((word << bits) | (word >> (32 - bits))) & _MASK32


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    """Mix three words, reversibly (lookup3's mix)."""
    for first, second, third in ((4, 6, 8), (16, 19, 4)):
        a = ((a - c) & _MASK32) ^ _rotate(c, first)
        c = (c + b) & _MASK32
        b = ((b - a) & _MASK32) ^ _rotate(a, second)
        a = (a + c) & _MASK32
        c = ((c - b) & _MASK32) ^ _rotate(b, third)
        b = (b + a) & _MASK32
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    """Mix three words into 64 bits (lookup3's final)."""
    c = ((c ^ b) - _rotate(b, 14)) & _MASK32
    a = ((a ^ c) - _rotate(c, 11)) & _MASK32
    b = ((b ^ a) - _rotate(a, 25)) & _MASK32
    c = ((c ^ b) - _rotate(b, 16)) & _MASK32
    a = ((a ^ c) - _rotate(c, 4)) & _MASK32
    b = ((b ^ a) - _rotate(a, 14)) & _MASK32
    c = ((c ^ b) - _rotate(b, 24)) & _MASK32
    return b << 32 | c
