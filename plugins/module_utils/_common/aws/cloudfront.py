# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Requests to CloudFront, each with a timeout and retries of what is transient; what goes wrong is one sentence."""

from __future__ import annotations

import typing as t

from ..errors import HeadroomError
from .connection import Access

CONNECT_S = 5
READ_S = 60
ATTEMPTS = 5
# answers that mean that somebody else has written in between
CONFLICTS = ("PreconditionFailed", "InvalidIfMatchVersion")


class Refused(HeadroomError):
    """CloudFront answered with an error; ``aws_code`` is its name there."""

    def __init__(self, message: str, code: str, aws_code: str) -> None:
        """Keep the sentence and the name."""
        super().__init__(message, code=code, aws_code=aws_code)
        self.aws_code = aws_code

    @property
    def conflict(self) -> bool:
        """Whether what was looked at has changed since, or is gone."""
        return self.aws_code in CONFLICTS or self.gone

    @property
    def gone(self) -> bool:
        """Whether what the request was about is not there."""
        return self.aws_code.startswith("NoSuch")

    @property
    def in_use(self) -> bool:
        """Whether something else still needs what was to be deleted."""
        return self.aws_code.endswith("InUse")


# the code of an error of CloudFront, and what to do about it
_HINTS = {
    "AccessDenied": ("access_denied", "Give the login the right to do this by a policy of IAM."),
    "InvalidClientTokenId": ("unauthorized", "Check access_key."),
    "SignatureDoesNotMatch": ("unauthorized", "Check secret_key."),
    "ExpiredToken": ("unauthorized", "Log in anew."),
    "CNAMEAlreadyExists": ("alias_taken", "Take the alias off the other distribution, or leave it out."),
    "DistributionAlreadyExists": (
        "already_exists",
        "A distribution of this name is there whose comment does not start with it; give its distribution_id.",
    ),
    "InvalidViewerCertificate": ("bad_certificate", "Give a certificate of us-east-1 that covers all aliases."),
    "PreconditionFailed": ("conflict", "Run again."),
    "InvalidIfMatchVersion": ("conflict", "Run again."),
    "Throttling": ("throttled", "Run again later."),
}


class Client:
    """A client of CloudFront."""

    def __init__(self, access: Access) -> None:
        """Prepare the client; nothing is sent yet."""
        # they take half a second, which a run that fails before does not need
        import boto3
        import botocore.config
        import botocore.exceptions

        self._exceptions = botocore.exceptions
        self._access = access
        config = botocore.config.Config(
            connect_timeout=CONNECT_S, read_timeout=READ_S, retries={"mode": "standard", "max_attempts": ATTEMPTS}
        )
        try:
            session = boto3.session.Session(
                aws_access_key_id=access.access_key,
                aws_secret_access_key=access.secret_key,
                aws_session_token=access.session_token,
                profile_name=access.profile,
                region_name=access.region,
            )
            self._client = session.client(
                "cloudfront", endpoint_url=access.endpoint_url, verify=access.verify, config=config
            )
        except (self._exceptions.BotoCoreError, ValueError) as error:
            raise HeadroomError(
                f"Failed to prepare a session with AWS: {self._said(error)}. Correct the connection options.",
                code="no_access",
            ) from error
        self.url = self._client.meta.endpoint_url

    def call(self, operation: str, purpose: str, **params: t.Any) -> dict[str, t.Any]:
        """Send one request and return the answer.

        :param operation: method of boto3, such as ``get_distribution``.
        :param purpose: what the request is for, as in ``Failed to PURPOSE``.
        :raises Refused: when CloudFront answers with an error.
        :raises HeadroomError: when it cannot be asked.
        """
        failed = f"Failed to {purpose} at {self.url}"
        raised = self._exceptions
        try:
            return getattr(self._client, operation)(**params)
        except raised.ClientError as error:
            name = error.response.get("Error", {}).get("Code", "unknown")
            said = self._said(error.response.get("Error", {}).get("Message") or name)
            code, hint = _HINTS.get(name, ("refused", "Correct what it names."))
            raise Refused(f"{failed}: {name}: {said}. {hint}", code, name) from error
        except (raised.NoCredentialsError, raised.PartialCredentialsError, raised.CredentialRetrievalError) as error:
            raise HeadroomError(
                f"{failed}: there is no login. Give access_key and secret_key, or profile.", code="no_access"
            ) from error
        except raised.ParamValidationError as error:
            raise HeadroomError(
                f"{failed}: the request does not fit the service model of botocore: {self._said(error)}. Use a newer botocore.",
                code="bad_request",
            ) from error
        except (raised.HTTPClientError, raised.BotoCoreError) as error:
            raise HeadroomError(
                f"{failed}: {self._said(error)}. Check the network and endpoint_url.", code="connection_failed"
            ) from error

    def pages(self, operation: str, purpose: str, **params: t.Any) -> t.Iterator[dict[str, t.Any]]:
        """Yield the items of a list, whatever the number of its pages."""
        marker: str | None = None
        while True:
            more = {"Marker": marker} if marker else {}
            (found,) = (
                value for key, value in self.call(operation, purpose, **params, **more).items() if key.endswith("List")
            )
            yield from found.get("Items") or []
            marker = found.get("NextMarker")
            if not marker:
                return

    def _said(self, error: t.Any) -> str:
        # what it says may have lines and a full stop of its own
        return self._access.scrub(" ".join(str(error).split())).rstrip(".")
