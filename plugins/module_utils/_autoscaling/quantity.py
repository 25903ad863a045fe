# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Quantities of the Kubernetes API: read exactly, and written as the API server writes them. Pure.

The notation is that of the API's ``resource.Quantity``: a decimal number and at most one suffix, either of tens (``n u m k M G T P E``),
of 1024 (``Ki Mi Gi Ti Pi Ei``) or an exponent (``e3``). What is finer than a billionth is rounded away from zero, and what is beyond
2^63-1 is that.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass
from fractions import Fraction

DECIMAL = "decimal"
BINARY = "binary"
EXPONENT = "exponent"

_TENS = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_TENS_SUFFIX = {power: suffix for suffix, power in _TENS.items()}
_BINARY_SUFFIXES = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_FORM = re.compile(r"([+-]?)([0-9]+\.?[0-9]*|\.[0-9]+)([KMGTPE]i|[eE][+-]?[0-9]{1,2}|[numkMGTPE]?)")
_FINEST = 10**9
_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Quantity:
    """An exact value, and the notation that it was written in: ``decimal``, ``binary`` or ``exponent``."""

    value: Fraction
    notation: str = DECIMAL

    @property
    def milli(self) -> int:
        """The value in thousandths, rounded away from zero as the API does."""
        return _away(self.value * 1000)

    def canonical(self) -> str:
        """Return the form in which the API server gives the quantity back: whole, with the largest suffix that fits."""
        notation = self.notation
        # the API writes small binary quantities without a suffix, so with decimal ones
        if notation == BINARY and abs(self.value) < 1024:
            notation = DECIMAL
        if notation == BINARY:
            number, power = _away(self.value), 0
            while number % 1024 == 0 and power < len(_BINARY_SUFFIXES) - 1:
                number, power = number // 1024, power + 1
            return f"{number}{_BINARY_SUFFIXES[power]}"
        number, power = _away(self.value * _FINEST), -9
        if number == 0:
            return "0"
        while number % 1000 == 0 and (notation == EXPONENT or power < 18):
            number, power = number // 1000, power + 3
        if notation == EXPONENT:
            return f"{number}e{power}" if power else str(number)
        return f"{number}{_TENS_SUFFIX[power]}"


def parse_quantity(given: t.Any) -> Quantity:
    """Read a quantity from text or a number.

    :raises ValueError: when it is none; the text says which forms there are.
    """
    text = str(given) if isinstance(given, (str, int, float)) and not isinstance(given, bool) else ""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError("not a quantity such as 500m, 1.5, 2Gi or 1e3")
    sign, digits, suffix = found.groups()
    value = Fraction(digits if not digits.startswith(".") else f"0{digits}")
    notation = DECIMAL
    if suffix.endswith("i"):
        notation = BINARY
        value *= 1024 ** _BINARY_SUFFIXES.index(suffix)
    elif suffix[:1] in ("e", "E") and len(suffix) > 1:
        notation = EXPONENT
        value *= Fraction(10) ** int(suffix[1:])
    else:
        value *= Fraction(10) ** _TENS[suffix]
    value = min(Fraction(_away(value * _FINEST), _FINEST), Fraction(_LARGEST))
    return Quantity(-value if sign == "-" else value, notation)


def canonical(given: t.Any) -> str:
    """Return a quantity as the API server gives it back.

    :raises ValueError: when it is none.
    """
    return parse_quantity(given).canonical()


def format_milli(milli: int) -> str:
    """Return a number of thousandths as a quantity."""
    return Quantity(Fraction(milli, 1000)).canonical()


def _away(value: Fraction) -> int:
    """Return the value rounded to a whole number, away from zero."""
    whole = -(-abs(value.numerator) // value.denominator)
    return whole if value >= 0 else -whole
