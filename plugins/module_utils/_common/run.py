# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run contract: a module ends in exactly two ways, with what was seen or with one sentence."""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from .errors import HeadroomError

LIBRARIES = {
    "boto3": "boto3 >= 1.34",
    "botocore": "botocore >= 1.34",
    "psycopg": "psycopg[binary] >= 3.1",
    "hiredis": "hiredis >= 2.0",
    "numba": "numba >= 0.61",
    "numpy": "numpy >= 1.26",
    "redis": "redis >= 4.3",
    "requests": "requests >= 2.25",
    "yaml": "PyYAML",
}


def run(module: AnsibleModule, work: t.Callable[[AnsibleModule], dict[str, t.Any]]) -> t.NoReturn:
    """Do ``work`` and leave the module: ``exit_json`` with its result, or ``fail_json`` with one sentence and ``errors``.

    :param work: takes the module, returns the result, of which ``warnings`` are shown; raises :class:`HeadroomError` when it cannot.
    """
    try:
        result = work(module)
    except HeadroomError as error:
        errors = [error.as_dict(), *error.result.get("errors", ())]
        result = _warned(module, {"changed": False, **error.result, "msg": str(error), "errors": errors})
        module.fail_json(**result)
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in LIBRARIES:
            raise
        module.fail_json(
            msg=missing_required_lib(LIBRARIES[name]),
            errors=[{"code": "missing_library", "message": f"The Python library {name} is missing.", "library": name}],
        )
    module.exit_json(**_warned(module, result))


def _warned(module: AnsibleModule, result: dict[str, t.Any]) -> dict[str, t.Any]:
    """Show the warnings of a result and return the rest of it."""
    for warning in result.get("warnings", ()):
        module.warn(warning)
    return {name: value for name, value in result.items() if name != "warnings"}
