# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options to reach AWS; they match ``module_utils/_common/aws/connection.py``."""

from __future__ import annotations


class ModuleDocFragment:
    """Options shared by all modules that talk to AWS."""

    DOCUMENTATION = r"""
options:
  access_key:
    description:
      - Access key id to log in with. Requires O(secret_key).
      - Without it the login is found as by the AWS command line, in the environment variables E(AWS_ACCESS_KEY_ID),
        E(AWS_SECRET_ACCESS_KEY) and E(AWS_SESSION_TOKEN), in E(AWS_PROFILE), or from the machine's role.
    type: str
    version_added: 0.1.0
  secret_key:
    description:
      - Secret access key. Requires O(access_key).
    type: str
    version_added: 0.1.0
  session_token:
    description:
      - Token of temporary credentials. Requires O(access_key).
    type: str
    version_added: 0.1.0
  profile:
    description:
      - Profile of the AWS configuration to log in with. Excludes O(access_key), O(secret_key) and O(session_token).
    type: str
    version_added: 0.1.0
  region:
    description:
      - Region that requests are signed for. CloudFront is global and has its API in V(us-east-1).
    type: str
    default: us-east-1
    version_added: 0.1.0
  endpoint_url:
    description:
      - URL of another endpoint than that of AWS, such as an emulator.
    type: str
    version_added: 0.1.0
  validate_certs:
    description:
      - Whether the certificate of the endpoint must be signed by a trusted authority and be its own.
    type: bool
    default: true
    version_added: 0.1.0
  aws_ca_bundle:
    description:
      - File with the certificates of the authorities that are trusted, in PEM format. By default those that botocore brings.
    type: path
    version_added: 0.1.0
requirements:
  - boto3 >= 1.34 on the host that runs the module
  - botocore >= 1.34 on the host that runs the module
"""
