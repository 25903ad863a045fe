# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as a whole, against CloudFront over HTTP: what it sends, what it leaves alone, and how it fails."""

from __future__ import annotations

import copy
import json
import pathlib
import socket
import typing as t

import botocore.loaders
import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

pytest.importorskip("moto")

from ansible_collections.headroom.scale.plugins.module_utils._cdn.cloudfront import apply, converge  # noqa: E402
from ansible_collections.headroom.scale.plugins.module_utils._common.aws import cloudfront  # noqa: E402
from ansible_collections.headroom.scale.plugins.modules import cloudfront_distribution  # noqa: E402
from cdn.emulator import LOGIN, Emulator  # noqa: E402
from cdn.table import DESCRIPTION, description  # noqa: E402
from moto.cloudfront.exceptions import CloudFrontException  # noqa: E402

LOADER = botocore.loaders.create_loader()
SECRET = DESCRIPTION["origins"][0]["headers"]["X-Origin-Key"]
WEIGHT = {"rollout": "staged", "staging": {"weight_percent": 5}}
WEB_ACL = "arn:aws:wafv2:us-east-1:123456789012:global/webacl/main/1a2b3c4d"
SMALL: dict[str, t.Any] = {
    "name": "small",
    "origins": [{"name": "web", "domain_name": "web.example.com"}],
    "default_behavior": {"origin": "web"},
}
# a bucket, one policy of each kind, and a function
ONE_OF_EACH: dict[str, t.Any] = {
    "name": "each",
    "origins": [{"name": "files", "domain_name": "files.s3.us-east-1.amazonaws.com", "type": "s3"}],
    "default_behavior": {"origin": "files", "forward": {"headers": ["Origin"]}},
    "edge_rules": {"cache_control": [{"path": "/static/*", "value": "public, max-age=60"}]},
}


@pytest.fixture(scope="module", name="server")
def server_fixture() -> t.Iterator[Emulator]:
    """Start the server once."""
    emulator = Emulator()
    yield emulator
    emulator.stop()


@pytest.fixture(name="aws")
def aws_fixture(server: Emulator, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Emulator]:
    """Give an empty CloudFront; each request that a test sends must fit the service model."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # the service model, of some megabytes, is read once and not by each run
    monkeypatch.setattr(botocore.loaders, "create_loader", lambda search_path_string=None: LOADER)
    monkeypatch.setattr(apply, "POLL_S", 0.0)
    monkeypatch.setattr(converge, "BACKOFF_S", 0.001)
    server.reset()
    yield server
    assert server.problems == []


@pytest.fixture(scope="module", name="made_once")
def made_once_fixture() -> list[t.Any]:
    """Give a place to keep what the first test has made for those after it."""
    return []


def run(aws: Emulator, capsys: pytest.CaptureFixture[str], **params: t.Any) -> tuple[int, dict[str, t.Any]]:
    """Run the module and return its exit code and result; secrets must not be in what it says."""
    given = {"endpoint_url": aws.url, **LOGIN, **params}
    with (
        patch_module_args({name: value for name, value in given.items() if value is not None}),
        pytest.raises(SystemExit) as ended,
    ):
        cloudfront_distribution.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert SECRET not in out
    assert LOGIN["secret_key"] not in out
    return int(ended.value.code or 0), json.loads(out)


def done(aws: Emulator, capsys: pytest.CaptureFixture[str], **params: t.Any) -> dict[str, t.Any]:
    """Run the module, which must succeed, and forget what was sent before."""
    aws.sent.clear()
    code, result = run(aws, capsys, **params)
    assert code == 0, result["msg"]
    return result


def failed(aws: Emulator, capsys: pytest.CaptureFixture[str], **params: t.Any) -> dict[str, t.Any]:
    """Run the module, which must fail in one sentence, and return its first error."""
    aws.sent.clear()
    code, result = run(aws, capsys, **params)
    assert code == 1, result
    assert result["msg"] == result["errors"][0]["message"]
    assert result["msg"].endswith(".")
    return {**result["errors"][0], "changed": result["changed"]}


def items(value: t.Any) -> list[t.Any]:
    return value.get("Items", [])


# ---- what it makes


def test_create_all_of_it_and_then_send_no_write(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    result = done(aws, capsys, **DESCRIPTION, tags={"team": "edge"})
    assert result["changed"]
    assert aws.writes.count("CreateDistributionWithTags") == 1
    stored = aws.one()
    config = stored.config
    assert sorted(items(config["Aliases"])) == ["trade.example.com", "www.example.com"]
    origins = {origin["Id"]: origin for origin in items(config["Origins"])}
    assert origins.keys() == {"us-east-1", "ap-northeast-1", "eu-central-1", "static"}
    assert origins["static"]["OriginAccessControlId"]
    assert origins["static"]["S3OriginConfig"]["OriginAccessIdentity"] == ""
    assert origins["us-east-1"]["CustomOriginConfig"]["OriginProtocolPolicy"] == "https-only"
    assert items(origins["us-east-1"]["CustomHeaders"]) == [{"HeaderName": "X-Origin-Key", "HeaderValue": SECRET}]
    (group,) = items(config["OriginGroups"])
    assert [member["OriginId"] for member in items(group["Members"])] == ["us-east-1", "eu-central-1"]
    assert [behavior["PathPattern"] for behavior in items(config["CacheBehaviors"])] == ["/api/*", "*.js", "/static/*"]
    assert config["ViewerCertificate"]["MinimumProtocolVersion"] == "TLSv1.2_2021"
    assert {item["EventType"] for item in items(config["DefaultCacheBehavior"]["FunctionAssociations"])} == {
        "viewer-request",
        "viewer-response",
    }
    (function,) = aws.functions.values()
    assert b"function handler(event)" in function.more["live"]
    assert result["function_bytes"] == len(function.more["live"])
    assert result["distribution"]["status"] == "Deployed"
    assert result["distribution"]["id"] == stored.id

    again = done(aws, capsys, **DESCRIPTION, tags={"team": "edge"})
    assert (again["changed"], again["plan"], again["changes"], aws.writes) == (False, [], [], [])
    assert again["diff"]["before"] == again["diff"]["after"]


def test_a_small_one_needs_no_function_and_has_no_names(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    result = done(aws, capsys, **SMALL)
    config = aws.one().config
    assert (config["Comment"], items(config["Aliases"]), aws.functions, result["function_bytes"]) == (
        "small",
        [],
        {},
        0,
    )
    assert config["ViewerCertificate"]["CloudFrontDefaultCertificate"] is True
    assert "OriginRequestPolicyId" not in config["DefaultCacheBehavior"]
    assert done(aws, capsys, **SMALL)["changed"] is False
    assert aws.writes == []


def test_order_and_case_are_no_change(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    done(aws, capsys, **DESCRIPTION)
    turned = description()
    for key in ("aliases", "origins"):
        turned[key].reverse()
    turned["aliases"][0] = turned["aliases"][0].upper()
    turned["origins"][-1]["domain_name"] = "US.example.com"
    turned["origin_groups"][0]["failover_status"].reverse()
    turned["default_behavior"]["methods"].reverse()
    turned["behaviors"][2]["forward"]["headers"] = ["ACCEPT", "origin"]
    result = done(aws, capsys, **turned)
    assert (result["changed"], result["changes"], aws.writes) == (False, [], [])


CHANGES: list[tuple[str, dict[str, t.Any], str, str]] = [
    # option, its new value, and what the change is told as with its new text
    ("comment", {"comment": "all regions"}, "Comment", "trading: all regions"),
    ("enabled", {"enabled": False}, "Enabled", "-"),
    ("aliases", {"aliases": ["www.example.com"]}, "Aliases", "www.example.com"),
    ("price_class", {"price_class": "PriceClass_All"}, "PriceClass", "PriceClass_All"),
    ("http_version", {"http_version": "http2and3"}, "HttpVersion", "http2and3"),
    ("ipv6", {"ipv6": False}, "IsIPV6Enabled", "-"),
    ("default_root_object", {"default_root_object": "index.html"}, "DefaultRootObject", "index.html"),
    ("access_logs", {"access_logs": {"bucket": "l.s3.amazonaws.com"}}, "Logging.Bucket", "l.s3.amazonaws.com"),
    (
        "minimum_protocol_version",
        {"certificate.minimum_protocol_version": "TLSv1.2_2025"},
        "ViewerCertificate.MinimumProtocolVersion",
        "TLSv1.2_2025",
    ),
    (
        "origin domain",
        {"origins.1.domain_name": "tokyo.example.com"},
        "Origins.ap-northeast-1.DomainName",
        "tokyo.example.com",
    ),
    ("origin path", {"origins.1.path": "/app"}, "Origins.ap-northeast-1.OriginPath", "/app"),
    (
        "origin timeout",
        {"origins.1.read_timeout_s": 31},
        "Origins.ap-northeast-1.CustomOriginConfig.OriginReadTimeout",
        "31",
    ),
    (
        "origin header",
        {"origins.1.headers": {"X-Key": "new-one"}},
        "Origins.ap-northeast-1.CustomHeaders.x-key",
        "********",
    ),
    (
        "origin secret",
        {"origins.0.headers": {"X-Origin-Key": "sesame-2"}},
        "Origins.us-east-1.CustomHeaders.x-origin-key",
        "******** (changed)",
    ),
    (
        "group order",
        {"origin_groups.0.members": ["eu-central-1", "us-east-1"]},
        "OriginGroups.both.Members.1.OriginId",
        "eu-central-1",
    ),
    (
        "group status",
        {"origin_groups.0.failover_status": [503]},
        "OriginGroups.both.FailoverCriteria.StatusCodes",
        "503",
    ),
    ("behavior order", {"behaviors": DESCRIPTION["behaviors"][::-1]}, "CacheBehaviors, order", "/static/* *.js /api/*"),
    ("behavior gone", {"behaviors": DESCRIPTION["behaviors"][:2]}, "CacheBehaviors, order", "/api/* *.js"),
    ("behavior origin", {"behaviors.2.origin": "us-east-1"}, "CacheBehaviors./static/*.TargetOriginId", "us-east-1"),
    (
        "methods",
        {"default_behavior.methods": ["GET", "HEAD"]},
        "DefaultCacheBehavior.AllowedMethods.Items",
        "GET, HEAD",
    ),
    (
        "protocol",
        {"behaviors.0.viewer_protocol_policy": "https-only"},
        "CacheBehaviors./api/*.ViewerProtocolPolicy",
        "https-only",
    ),
    ("ttl", {"default_behavior.ttl": {"default_s": 300}}, "DefaultCacheBehavior.CachePolicy.DefaultTTL", "300"),
    (
        "cache key",
        {"default_behavior.cache_key": {"cookies": ["lang"]}},
        "DefaultCacheBehavior.CachePolicy.ParametersInCacheKeyAndForwardedToOrigin.CookiesConfig.Cookies",
        "lang",
    ),
    (
        "forward",
        {"behaviors.2.forward": {"query_strings": ["*"]}},
        "CacheBehaviors./static/*.OriginRequestPolicy.QueryStringsConfig.QueryStringBehavior",
        "all",
    ),
    (
        "security headers",
        {"edge_rules.security_headers": {"frame_options": "SAMEORIGIN"}},
        "DefaultCacheBehavior.ResponseHeadersPolicy.SecurityHeadersConfig.FrameOptions.FrameOption",
        "SAMEORIGIN",
    ),
    (
        "deny",
        {"edge_rules.deny": [{"countries": ["KP"], "status": 403}]},
        "edge function, line 003",
        '  { countries: ["KP"], status: 403 },',
    ),
    ("web_acl", {"web_acl": WEB_ACL}, "WebACLId", WEB_ACL),
    ("cache_tag_header", {"cache_tag_header": "Cache-Tag"}, "CacheTagConfig.HeaderName", "cache-tag"),
    ("tags", {"tags": {"team": "edge"}}, "tag team", "edge"),
]


def changed(changes: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the description with other values, each under its path."""
    params = description()
    for path, value in changes.items():
        *way, last = path.split(".")
        at: t.Any = params
        for step in way:
            at = at[int(step)] if isinstance(at, list) else at[step]
        at[last] = value
    return params


@pytest.mark.parametrize(("changes", "what", "after"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_a_change_is_foretold_told_and_made(
    aws: Emulator, made_once: list[t.Any], capsys: pytest.CaptureFixture[str], changes: t.Any, what: str, after: str
) -> None:
    if made_once:
        aws.restore(made_once[0])
    else:
        done(aws, capsys, **DESCRIPTION)
        made_once.append(aws.snapshot())
    before = copy.deepcopy(aws.one().config)
    params = changed(changes)

    foretold = done(aws, capsys, **params, _ansible_check_mode=True)
    assert (aws.writes, aws.one().config) == ([], before)
    made = done(aws, capsys, **params, _ansible_diff=True)

    assert (foretold["plan"], foretold["changes"], foretold["diff"]) == (made["plan"], made["changes"], made["diff"])
    told = {change["what"]: change["after"] or "-" for change in made["changes"]}
    assert told.get(what) == after, told
    line = f"{what}: {after}\n"
    assert after == "-" or (line in made["diff"]["after"] and line not in made["diff"]["before"])
    assert ("sesame-2" in str(made), "new-one" in str(made)) == (False, False)
    assert aws.writes.count("UpdateDistribution") == (0 if what.startswith("tag") else 1)
    # what nothing refers to any longer is gone
    kept = str([item.config for item in aws.distributions.values()])
    stored = [item.id for one in (*aws.policies.values(), aws.functions) for item in one.values()]
    assert [one for one in stored if one not in kept] == []
    again = done(aws, capsys, **params)
    assert (again["changed"], aws.writes) == (False, [])


def test_what_has_no_option_is_left_as_it_is(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    done(aws, capsys, **DESCRIPTION, tags={"a": "1"}, web_acl=WEB_ACL)
    stored = aws.one()
    page = {"ErrorCode": 404, "ResponsePagePath": "/404.html", "ResponseCode": "404", "ErrorCachingMinTTL": 10}
    config = copy.deepcopy(stored.config)
    config["CustomErrorResponses"] = {"Quantity": 1, "Items": [page]}
    config["Restrictions"] = {"GeoRestriction": {"RestrictionType": "blacklist", "Quantity": 1, "Items": ["SY"]}}
    config["DefaultCacheBehavior"]["TrustedKeyGroups"] = {"Enabled": True, "Quantity": 1, "Items": ["k"]}
    stored.store(config)

    assert done(aws, capsys, **DESCRIPTION)["changed"] is False
    done(aws, capsys, **description(price_class="PriceClass_200"))

    after = aws.one().config
    for key in ("CustomErrorResponses", "Restrictions", "WebACLId"):
        assert after[key] == config[key]
    assert after["DefaultCacheBehavior"]["TrustedKeyGroups"]["Items"] == ["k"]


def test_the_header_of_cache_tags_is_set_left_alone_and_taken_off(
    aws: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    done(aws, capsys, **SMALL, cache_tag_header="Cache-Tag")
    assert done(aws, capsys, **SMALL)["changed"] is False
    assert aws.one().config["CacheTagConfig"] == {"HeaderName": "Cache-Tag"}
    assert done(aws, capsys, **SMALL, cache_tag_header="")["changed"]
    assert "CacheTagConfig" not in aws.one().config
    assert done(aws, capsys, **SMALL, cache_tag_header="")["changed"] is False


def test_tags_are_all_or_left_alone(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    done(aws, capsys, **SMALL, tags={"a": "1", "b": "2"})
    assert done(aws, capsys, **SMALL)["changed"] is False
    result = done(aws, capsys, **SMALL, tags={"b": "3", "c": "4"})
    assert aws.writes == ["UntagResource", "TagResource"]
    assert {change["what"]: change["after"] for change in result["changes"]} == {
        "tag a": None,
        "tag b": "3",
        "tag c": "4",
    }
    assert done(aws, capsys, **SMALL, tags={"b": "3", "c": "4"})["changed"] is False


def test_what_somebody_changed_by_hand_is_mended(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    done(aws, capsys, **DESCRIPTION)
    policy = next(iter(aws.policies["CachePolicy"].values()))
    policy.store({**policy.config, "DefaultTTL": policy.config["DefaultTTL"] + 1})
    (function,) = aws.functions.values()
    good, function.more["live"] = function.more["live"], b"function handler(event) { return event.request; }"
    aws.one().store({**aws.one().config, "PriceClass": "PriceClass_All"})

    result = done(aws, capsys, **DESCRIPTION)

    assert [step["action"] for step in result["plan"]] == ["update", "update", "update"]
    assert function.more["live"] == good
    assert done(aws, capsys, **DESCRIPTION)["changed"] is False


def test_one_made_in_another_way_is_adopted_by_its_id(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    done(aws, capsys, **SMALL)
    stored = aws.one()
    stored.store({**stored.config, "Comment": "made by hand"})
    error = failed(aws, capsys, **SMALL)
    assert (error["code"], error["changed"]) == ("already_exists", False)
    result = done(aws, capsys, **SMALL, distribution_id=stored.id)
    assert [change["what"] for change in result["changes"]] == ["Comment"]
    assert done(aws, capsys, **SMALL)["changed"] is False


# ---- when others write too


def test_a_conflict_starts_over_with_what_is_there_now(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    done(aws, capsys, **DESCRIPTION)
    stored = aws.one()
    page = {"Quantity": 1, "Items": [{"ErrorCode": 503, "ErrorCachingMinTTL": 1}]}
    others = iter([{**stored.config, "CustomErrorResponses": page}])

    def hook(operation: str, params: t.Any) -> None:
        # somebody else writes just before
        if operation == "UpdateDistribution":
            for config in others:
                stored.store(config)

    aws.hook = hook
    result = done(aws, capsys, **description(price_class="PriceClass_200"))
    assert (result["attempts"], result["changed"]) == (2, True)
    assert stored.config["CustomErrorResponses"] == page
    assert stored.config["PriceClass"] == "PriceClass_200"


def test_a_conflict_without_end_is_a_failure(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    done(aws, capsys, **SMALL)
    aws.hook = lambda operation, params: aws.one().touch() if operation == "UpdateDistribution" else None
    error = failed(aws, capsys, **SMALL, price_class="PriceClass_200")
    assert (error["code"], error["changed"]) == ("conflict", False)
    assert aws.writes == ["UpdateDistribution"] * 5
    assert aws.one().config["PriceClass"] == "PriceClass_100"


def test_what_is_not_kept_is_a_failure(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    done(aws, capsys, **SMALL)

    def hook(operation: str, params: t.Any) -> None:
        # something else sets it back after each write
        if operation == "ListDistributions" and "UpdateDistribution" in aws.writes:
            aws.one().store({**aws.one().config, "PriceClass": "PriceClass_100"})

    aws.hook = hook
    error = failed(aws, capsys, **SMALL, price_class="PriceClass_200")
    assert (error["code"], error["changed"]) == ("not_kept", True)
    assert "update distribution small" in error["message"]


def test_a_piece_that_is_still_used_is_left_and_told(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    done(aws, capsys, **DESCRIPTION)
    done(aws, capsys, **SMALL)
    policy = aws.one_policy("CachePolicy", DefaultTTL=0)
    other = next(item for item in aws.distributions.values() if item.config["Comment"] == "small")
    other.config["DefaultCacheBehavior"]["CachePolicyId"] = policy.id
    result = done(aws, capsys, **changed({"behaviors.0.ttl": {}}))
    assert result["left_behind"] == [policy.config["Name"]]
    other.config["DefaultCacheBehavior"]["CachePolicyId"] = ""
    assert [step["name"] for step in done(aws, capsys, **changed({"behaviors.0.ttl": {}}))["plan"]] == [
        policy.config["Name"]
    ]


def test_a_function_that_edges_still_run_is_deleted_when_they_do_not(
    aws: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    done(aws, capsys, **ONE_OF_EACH)
    (former,) = aws.functions
    aws.polls = 3

    def hook(operation: str, params: t.Any) -> None:
        if operation == "DeleteFunction" and aws.one().looks < aws.polls:
            raise CloudFrontException("FunctionInUse", "an edge runs it")

    aws.hook = hook
    rules = {"cache_control": [{"path": "/static/*", "value": "public, max-age=61"}]}
    result = done(aws, capsys, **{**ONE_OF_EACH, "edge_rules": rules})
    assert (result["left_behind"], former in aws.functions, len(aws.functions)) == ([], False, 1)
    rules = {"cache_control": [{"path": "/static/*", "value": "public, max-age=62"}]}
    result = done(aws, capsys, **{**ONE_OF_EACH, "edge_rules": rules}, wait=False)
    assert (len(result["left_behind"]), len(aws.functions)) == (1, 2)


def test_a_run_that_was_cut_goes_on(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut before each write in turn; what is left is always completed by the next run, and nothing is made twice."""
    cut = 0
    while True:
        cut += 1
        aws.reset()

        def hook(operation: str, params: t.Any, limit: int = cut) -> None:
            if len(aws.writes) == limit and not operation.startswith(("Get", "List", "Describe")):
                raise CloudFrontException("AccessDenied", "cut here")

        aws.hook = hook
        code, result = run(aws, capsys, **ONE_OF_EACH)
        aws.hook = lambda operation, params: None
        if code == 0:
            break
        assert (result["errors"][0]["code"], result["changed"]) == ("access_denied", cut > 1)
        done(aws, capsys, **ONE_OF_EACH)
        assert len(aws.distributions) == len(aws.functions) == len(aws.policies["ResponseHeadersPolicy"]) == 1
    # control, two policies, headers, function and its publication, distribution
    assert cut == 7 + 1


# ---- deletion


def test_delete_disables_waits_and_deletes_all_of_it(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    done(aws, capsys, **DESCRIPTION)
    aws.polls = 3
    foretold = done(aws, capsys, name="trading", state="absent", _ansible_check_mode=True)
    assert aws.writes == []
    result = done(aws, capsys, name="trading", state="absent")
    assert foretold["plan"] == result["plan"]
    assert [step["action"] for step in result["plan"]][:2] == ["disable", "delete"]
    assert aws.writes[:2] == ["UpdateDistribution", "DeleteDistribution"]
    assert (aws.distributions, aws.functions, *aws.policies.values()) == ({}, {}, {}, {}, {})
    assert result["distribution"] is None
    again = done(aws, capsys, name="trading", state="absent")
    assert (again["changed"], aws.writes) == (False, [])


def test_a_deletion_that_takes_too_long_goes_on_later(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    done(aws, capsys, **SMALL)
    aws.polls = 10**6
    error = failed(aws, capsys, name="small", state="absent", wait_timeout_s=0)
    assert (error["code"], error["changed"]) == ("not_deployed", True)
    assert aws.one().config["Enabled"] is False
    aws.polls = 0
    result = done(aws, capsys, name="small", state="absent")
    assert result["plan"][0]["action"] == "delete"
    assert aws.distributions == {}


def test_waiting_is_bounded_and_can_be_left_out(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    aws.polls = 10**6
    result = done(aws, capsys, **SMALL, wait=False)
    assert result["distribution"]["status"] == "InProgress"
    error = failed(aws, capsys, **SMALL, wait_timeout_s=0)
    assert (error["code"], error["changed"]) == ("not_deployed", False)
    assert "after 0 s it is InProgress" in error["message"]


# ---- staging


def staged(**changes: t.Any) -> dict[str, t.Any]:
    return {**SMALL, "price_class": "PriceClass_200", **WEIGHT, **changes}


def test_a_staged_change_reaches_a_part_and_is_promoted(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    done(aws, capsys, **SMALL)
    primary = aws.one()
    before = {**primary.config, "ContinuousDeploymentPolicyId": None}
    rules = {"cache_control": [{"path": "/static/*", "value": "public, max-age=60"}]}
    change = staged(edge_rules=rules, staging={"weight_percent": 5, "stickiness_idle_s": 300, "stickiness_max_s": 600})

    foretold = done(aws, capsys, **change, _ansible_check_mode=True)
    assert aws.writes == []
    result = done(aws, capsys, **change)
    assert (foretold["plan"], foretold["changes"]) == (result["plan"], result["changes"])
    assert {**primary.config, "ContinuousDeploymentPolicyId": None} == before
    staging = aws.one(staging=True)
    assert (staging.config["PriceClass"], items(staging.config["Aliases"])) == ("PriceClass_200", [])
    assert items(staging.config["DefaultCacheBehavior"]["FunctionAssociations"])
    (policy,) = aws.deployments.values()
    weight = policy.config["TrafficConfig"]["SingleWeightConfig"]
    assert weight == {"Weight": 0.05, "SessionStickinessConfig": {"IdleTTL": 300, "MaximumTTL": 600}}
    assert (result["staging_enabled"], result["staging_distribution"]["id"]) == (True, staging.id)
    assert done(aws, capsys, **change)["changed"] is False
    assert aws.writes == []

    # what is staged may not be passed over, and nothing else be promoted
    error = failed(aws, capsys, **SMALL, ipv6=False)
    assert (error["code"], aws.writes) == ("staging_open", [])
    error = failed(aws, capsys, **{**change, "rollout": "promoted", "ipv6": False})
    assert (error["code"], aws.writes) == ("staged_differs", [])
    assert "IsIPV6Enabled" in error["message"]

    promote = {**change, "rollout": "promoted"}
    foretold = done(aws, capsys, **promote, _ansible_check_mode=True)
    assert aws.writes == []
    result = done(aws, capsys, **promote)
    assert (foretold["plan"], foretold["changes"]) == (result["plan"], result["changes"])
    assert [step["action"] for step in result["plan"]] == ["promote"]
    assert (primary.config["PriceClass"], policy.config["Enabled"], result["staging_enabled"]) == (
        "PriceClass_200",
        False,
        False,
    )
    for options in (promote, change, {**change, "rollout": "direct"}, {**change, "rollout": "rolled_back"}):
        assert done(aws, capsys, **options)["changed"] is False
        assert aws.writes == []


def test_a_rollback_sends_all_viewers_back_and_what_was_staged_can_return(
    aws: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    done(aws, capsys, **SMALL)
    done(aws, capsys, **staged())
    primary = copy.deepcopy(aws.one().config)
    back = {**staged(), "rollout": "rolled_back"}
    foretold = done(aws, capsys, **back, _ansible_check_mode=True)
    result = done(aws, capsys, **back)
    assert foretold["plan"] == result["plan"]
    assert aws.writes == ["UpdateContinuousDeploymentPolicy"]
    assert (aws.one().config, result["staging_enabled"]) == (primary, False)
    assert done(aws, capsys, **back)["changed"] is False
    assert failed(aws, capsys, **{**staged(), "rollout": "promoted"})["code"] == "not_staged"

    again = done(aws, capsys, **staged(staging={"header": "aws-cf-cd-try", "header_value": "yes"}))
    assert aws.writes == ["UpdateContinuousDeploymentPolicy"]
    assert again["staging_enabled"]
    (policy,) = aws.deployments.values()
    assert policy.config["TrafficConfig"]["SingleHeaderConfig"] == {"Header": "aws-cf-cd-try", "Value": "yes"}
    done(aws, capsys, **staged(ipv6=False))
    assert aws.one(staging=True).config["IsIPV6Enabled"] is False

    # all of it goes, in the order that CloudFront wants
    result = done(aws, capsys, name="small", state="absent")
    assert [(step["action"], step["kind"].split("_")[0]) for step in result["plan"]][:5] == [
        ("disable", "distribution"),
        ("delete", "continuous"),
        ("disable", "staging"),
        ("delete", "staging"),
        ("delete", "distribution"),
    ]
    assert (aws.distributions, aws.deployments, aws.policies["CachePolicy"]) == ({}, {}, {})


def test_promotion_brings_aliases_along(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    done(aws, capsys, **SMALL)
    named = staged(aliases=["www.example.com"], certificate=DESCRIPTION["certificate"], tags={"a": "1"})
    done(aws, capsys, **named)
    assert items(aws.one().config["Aliases"]) == []
    result = done(aws, capsys, **{**named, "rollout": "promoted"})
    assert [step["action"] for step in result["plan"]] == ["promote", "update", "tag"]
    assert items(aws.one().config["Aliases"]) == ["www.example.com"]


def test_nothing_is_staged_beside_nothing(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    assert failed(aws, capsys, **staged())["code"] == "no_primary"
    assert failed(aws, capsys, **{**staged(), "rollout": "promoted"})["code"] == "not_staged"
    assert done(aws, capsys, **{**staged(), "rollout": "rolled_back"})["changed"] is False


# ---- what cannot be


BAD: list[tuple[dict[str, t.Any], str, str]] = [
    ({"name": "no blank"}, "name", "letters"),
    ({"cache_tag_header": "a b"}, "cache_tag_header", "name of a header"),
    ({"distribution_id": "x"}, "distribution_id", "give an id"),
    ({"wait_timeout_s": -1}, "wait_timeout_s", "0 to 86400"),
    ({"web_acl": "main"}, "web_acl", "global web ACL"),
    ({"tags": {"aws:x": "1"}}, "tags.aws:x", "aws:"),
    ({"tags": {"x": 1}}, "tags.x", "in quotes"),
    ({"endpoint_url": "localhost:5000"}, "endpoint_url", "URL"),
    ({"endpoint_url": "http://h:0"}, "endpoint_url", "URL"),
    ({"aws_ca_bundle": "/nowhere.pem"}, "aws_ca_bundle", "on the host"),
    ({"region": ""}, "region", "us-east-1"),
    ({"origins": [{"name": "web", "domain_name": "web.example.com", "type": "s3"}]}, "origins.domain_name", "bucket"),
    (
        {"default_behavior": {"origin": "web", "forward": {"headers": ["Authorization"]}}},
        "default_behavior.forward.headers",
        "cache_key",
    ),
    ({**WEIGHT, "http_version": "http3"}, "http_version", "http2"),
    ({"rollout": "staged", "staging": {}}, "staging", "one of"),
    ({"rollout": "staged", "staging": {"weight_percent": 5, "header": "aws-cf-cd-x"}}, "staging", "one of"),
    ({"rollout": "staged", "staging": {"weight_percent": 16}}, "staging.weight_percent", "up to 15"),
    ({"rollout": "staged", "staging": {"weight_percent": 0}}, "staging.weight_percent", "above 0"),
    (
        {"rollout": "staged", "staging": {"weight_percent": 1, "stickiness_idle_s": 300}},
        "staging.stickiness_max_s",
        "both",
    ),
    (
        {"rollout": "staged", "staging": {"weight_percent": 1, "stickiness_idle_s": 299, "stickiness_max_s": 300}},
        "staging.stickiness_idle_s",
        "300",
    ),
    (
        {"rollout": "staged", "staging": {"weight_percent": 1, "stickiness_idle_s": 600, "stickiness_max_s": 300}},
        "staging.stickiness_idle_s",
        "at most",
    ),
    (
        {"rollout": "staged", "staging": {"weight_percent": 1, "header_value": "x"}},
        "staging.header_value",
        "header too",
    ),
    ({"rollout": "staged", "staging": {"header": "x-try", "header_value": "x"}}, "staging.header", "aws-cf-cd-"),
    ({"rollout": "staged", "staging": {"header": "aws-cf-cd-x"}}, "staging.header_value", "printable"),
    (
        {"rollout": "staged", "staging": {"header": "aws-cf-cd-x", "header_value": "y", "stickiness_max_s": 300}},
        "staging.header",
        "leave out",
    ),
]


@pytest.mark.parametrize(("params", "option", "remedy"), BAD, ids=[f"{row[1]} {row[2]}" for row in BAD])
def test_bad_input_is_refused_before_anything_is_asked(
    aws: Emulator, capsys: pytest.CaptureFixture[str], params: t.Any, option: str, remedy: str
) -> None:
    error = failed(aws, capsys, **{**SMALL, **params})
    assert (error["code"], error["option"], aws.sent) == ("bad_option", option, [])
    assert remedy in error["message"]


@pytest.mark.parametrize(
    "params",
    [
        {"state": "gone"},
        {"rollout": "later"},
        {"rollout": "staged"},
        {"origins": None},
        {"default_behavior": None},
        {"price_class": "cheap"},
        {"profile": "p"},
        {"secret_key": None},
        {"origins": [{"name": "web", "domain_name": "w.example.com", "type": "ftp"}]},
    ],
    ids=str,
)
def test_ansible_refuses_what_is_no_choice_or_does_not_go_together(
    aws: Emulator, capsys: pytest.CaptureFixture[str], params: t.Any
) -> None:
    code, result = run(aws, capsys, **{**SMALL, **params})
    assert (code, aws.sent) == (1, [])
    assert next(iter(params)) in result["msg"] or "state is present" in result["msg"]


# ---- what goes wrong


@pytest.mark.parametrize(
    ("aws_code", "code"),
    [
        ("AccessDenied", "access_denied"),
        ("CNAMEAlreadyExists", "alias_taken"),
        ("InvalidViewerCertificate", "bad_certificate"),
        ("TooManyCacheBehaviors", "refused"),
    ],
)
def test_what_cloudfront_refuses_is_told_with_a_remedy(
    aws: Emulator, capsys: pytest.CaptureFixture[str], aws_code: str, code: str
) -> None:
    def hook(operation: str, params: t.Any) -> None:
        if operation == "CreateDistributionWithTags":
            raise CloudFrontException(aws_code, f"not so. {LOGIN['secret_key']}")

    aws.hook = hook
    error = failed(aws, capsys, **SMALL)
    assert (error["code"], error["aws_code"], error["changed"]) == (code, aws_code, True)
    assert error["message"].startswith(
        f"Failed to create distribution small at {aws.url}: {aws_code}: not so. ********. "
    )


def test_several_of_one_name_are_told_apart_by_nobody(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    done(aws, capsys, **SMALL)
    done(aws, capsys, **{**SMALL, "name": "other"})
    for item in aws.distributions.values():
        item.config["Comment"] = "small: twice"
    error = failed(aws, capsys, **SMALL)
    assert error["code"] == "ambiguous"
    assert all(identifier in error["message"] for identifier in aws.distributions)


def test_no_server_and_no_login_are_told(
    aws: Emulator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setattr(cloudfront, "ATTEMPTS", 1)
        error = failed(aws, capsys, **SMALL, endpoint_url=url)
    assert error["code"] == "connection_failed"
    assert url in error["message"]
    login = {"access_key": None, "secret_key": None}
    assert failed(aws, capsys, **SMALL, **login)["code"] == "no_access"
    assert failed(aws, capsys, **SMALL, **login, profile="nobody")["code"] == "no_access"


def test_a_secret_that_was_there_before_is_never_shown(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    done(aws, capsys, **changed({"origins.0.headers": {"X-Origin-Key": "former-key"}}))
    result = done(aws, capsys, **DESCRIPTION, _ansible_diff=True)
    line = "Origins.us-east-1.CustomHeaders.x-origin-key: ********"
    assert line in result["diff"]["before"]
    assert f"{line} (changed)" in result["diff"]["after"]
    assert "former-key" not in str(result)


# ---- documentation


def test_every_return_value_is_documented_with_a_sample(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    returned = yaml.safe_load(cloudfront_distribution.RETURN)
    result = done(aws, capsys, **SMALL)
    assert returned.keys() - {"errors"} == result.keys() - {"changed", "invocation", "diff", "warnings"}
    for name, entry in returned.items():
        assert entry["description"], name
        assert entry["type"], name
        assert "sample" in entry, name


def test_every_code_is_documented() -> None:
    folder = pathlib.Path(converge.__file__).parent
    common = pathlib.Path(cloudfront.__file__)
    source = "".join(path.read_text() for path in (*sorted(folder.glob("*.py")), common))
    codes = {part.split('"')[0] for part in source.split('code="')[1:]}
    codes |= {part.split('"')[0] for part in source.split('code = "')[1:]}
    hints = source.split("_HINTS = {")[1].split("\n}")[0]
    codes |= {part.split('"')[0] for part in hints.replace("(\n        ", "(").split(': ("')[1:]}
    assert len(codes) > 15
    assert [code for code in sorted(codes) if f"V({code})" not in cloudfront_distribution.RETURN] == []


def test_the_examples_work(aws: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    text = cloudfront_distribution.EXAMPLES.replace("{{ vault_origin_key }}", "key-of-the-vault")
    for number, task in enumerate(yaml.safe_load(text)):
        params = task["headroom.scale.cloudfront_distribution"]
        assert done(aws, capsys, **params)["changed"], number
        assert done(aws, capsys, **params)["changed"] is False, number
