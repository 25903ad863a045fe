# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules that act on running load balancers have in common."""

from __future__ import annotations


class ModuleDocFragment:
    """The options that say which load balancers are meant."""

    DOCUMENTATION = r"""
options:
  balancers:
    description:
      - The load balancers.
    type: list
    elements: dict
    required: true
    version_added: 0.1.0
    suboptions:
      name:
        description:
          - What it is called in the result.
        type: str
        required: true
      host:
        description:
          - Its management address.
        type: str
        required: true
      port:
        description:
          - TCP port of its management address.
        type: int
        default: 8181
  timeout_s:
    description:
      - Seconds that a load balancer is given for an answer.
    type: float
    default: 5
    version_added: 0.1.0
"""
