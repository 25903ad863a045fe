"""CloudFront in miniature, over HTTP, for tests: moto's server with a layer for what moto lacks.

moto brings the server, the routes of the service model, the parser and serializer of requests, origin access controls, tags and pages.
The layer brings what moto 5.2 has not or loses: distributions with all their fields (moto drops origin access controls, functions,
policies and staging), If-Match, invalidations with their limits, cache, origin request and response headers policies, functions with two
stages, CopyDistribution, continuous deployment policies, promotion, and refusals of what a configuration names and is not there. Like
CloudFront it fills in defaults and gives sets back in another order than it got them. Each request is validated against the service model
of botocore, and what does not fit is kept in ``problems``.

Limits: nothing serves content. A distribution is deployed after ``polls`` looks at it, not after minutes. Of the rules by which
CloudFront refuses a configuration those are known that the tests need. Its defaults are spelled out here and not taken from the module.
"""

from __future__ import annotations

import copy
import datetime
import itertools
import typing as t
import xml.etree.ElementTree as ET

import botocore.session
import botocore.validate
from moto.cloudfront import urls
from moto.cloudfront.exceptions import CloudFrontException
from moto.cloudfront.models import cloudfront_backends
from moto.cloudfront.responses import CloudFrontResponse
from moto.core.responses import ActionResult, EmptyResult
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

Config = dict[str, t.Any]

ACCOUNT = "123456789012"
LOGIN = {"access_key": "testing", "secret_key": "testing-secret", "region": "us-east-1"}
MODEL = botocore.session.get_session().get_service_model("cloudfront")
# plural and singular of the policies, in answers and in what uses them
POLICIES = {
    "CachePolicy": ("CachePolicies", "CachePolicyId"),
    "OriginRequestPolicy": ("OriginRequestPolicies", "OriginRequestPolicyId"),
    "ResponseHeadersPolicy": ("ResponseHeadersPolicies", "ResponseHeadersPolicyId"),
}
_ID = "/(?P<id>[^/]+)"
_ROUTES = (
    f"distribution{_ID}/copy",
    f"distribution{_ID}/promote-staging-config",
    f"function{_ID}/publish",
    "continuous-deployment-policy",
    f"continuous-deployment-policy{_ID}",
    *(
        f"{name}{rest}"
        for name in ("cache-policy", "origin-request-policy", "response-headers-policy")
        for rest in ("", _ID)
    ),
)
_OFF = {"Enabled": False, "Quantity": 0}


class Item:
    """Something that is stored, with its version."""

    _numbers = itertools.count(1)

    def __init__(self, config: Config, **more: t.Any) -> None:
        number = next(Item._numbers)
        self.id = more.pop("id", f"E{number:012d}")
        self.etag = ""
        self.looks = 0
        self.more = more
        self.config: Config = {}
        self.store(config)

    def store(self, config: Config) -> None:
        """Take another configuration."""
        self.config = copy.deepcopy(config)
        self.touch()

    def touch(self) -> None:
        """Give it a new version, as each write does."""
        self.etag = f"V{next(Item._numbers):012d}"
        self.looks = 0


class Emulator:
    """The server and what it holds. ``hook`` is called with each operation and its parameters before it."""

    def __init__(self) -> None:
        _use(self)
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        self.url = "http://{}:{}".format(*self._server.get_host_and_port())
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        cloudfront_backends.reset()
        self.distributions: dict[str, Item] = {}
        self.policies: dict[str, dict[str, Item]] = {name: {} for name in POLICIES}
        self.deployments: dict[str, Item] = {}
        self.functions: dict[str, Item] = {}
        self.invalidations: dict[str, Item] = {}
        self.sent: list[tuple[str, Config]] = []
        self.problems: list[str] = []
        self.polls = 1
        self.hook: t.Callable[[str, Config], None] = lambda operation, params: None

    def snapshot(self) -> t.Any:
        """Return all that is stored, for :meth:`restore`."""
        backend = cloudfront_backends[ACCOUNT]["aws"]
        stored = (self.distributions, self.policies, self.deployments, self.functions)
        return copy.deepcopy((stored, backend.origin_access_controls, backend.tagger))

    def restore(self, snapshot: t.Any) -> None:
        """Store what was stored at the time of a snapshot."""
        backend = cloudfront_backends[ACCOUNT]["aws"]
        stored, backend.origin_access_controls, backend.tagger = copy.deepcopy(snapshot)
        self.distributions, self.policies, self.deployments, self.functions = stored

    def stop(self) -> None:
        """Stop the server."""
        self._server.stop()

    @property
    def writes(self) -> list[str]:
        """The operations so far that could change anything."""
        return [name for name, _params in self.sent if not name.startswith(("Get", "List", "Describe"))]

    def one(self, staging: bool = False) -> Item:
        """Return the only distribution there is of a kind."""
        (found,) = (item for item in self.distributions.values() if bool(item.config.get("Staging")) == staging)
        return found

    def one_policy(self, kind: str, **config: t.Any) -> Item:
        """The only policy of a kind with such settings."""
        (found,) = (item for item in self.policies[kind].values() if config.items() <= item.config.items())
        return found

    def note(self, operation: str, params: Config, body: bytes) -> None:
        """Keep a request, and check it against the service model."""
        shape = MODEL.operation_model(operation).input_shape
        assert shape is not None
        report = botocore.validate.ParamValidator().validate(params, shape)
        if report.has_errors():
            self.problems.append(f"{operation}: {report.generate_report()}")
        payload = shape.serialization.get("payload")
        if body and (payload is None or shape.members[payload].type_name == "structure"):
            _check_xml(ET.fromstring(body), shape.members[payload] if payload else shape, operation, self.problems)
        self.sent.append((operation, params))
        self.hook(operation, params)


def _check_xml(element: ET.Element, shape: t.Any, path: str, problems: list[str]) -> None:
    """Note each element that the service model does not know."""
    if shape.type_name == "structure":
        known = {member.serialization.get("name", name): member for name, member in shape.members.items()}
        for child in element:
            name = child.tag.rpartition("}")[2]
            if name in known:
                _check_xml(child, known[name], f"{path}.{name}", problems)
            else:
                problems.append(f"{path} has no {name}")
    elif shape.type_name == "list":
        for child in element:
            _check_xml(child, shape.member, f"{path}[]", problems)


_current: list[Emulator] = []


def _use(emulator: Emulator) -> None:
    """Let moto's server answer with the layer; its routes are read when the first request comes."""
    _current[:] = [emulator]
    for route in list(urls.url_paths):
        urls.url_paths[route] = Layer.dispatch
    for route in _ROUTES:
        urls.url_paths[f"{{0}}/2020-05-31/{route}$"] = Layer.dispatch


def _refuse(condition: t.Any, code: str, message: str) -> None:
    if condition:
        raise CloudFrontException(code, message)


def _items(value: t.Any) -> list[t.Any]:
    return list((value or {}).get("Items") or [])


def _counted(value: t.Any, path: str = "") -> None:
    """Refuse lists whose quantity is not that of their items."""
    if isinstance(value, dict):
        if "Quantity" in value:
            wrong = value["Quantity"] != len(_items(value))
            _refuse(wrong, "InconsistentQuantities", f"{path} says {value['Quantity']} and has {len(_items(value))}")
        for key, item in value.items():
            _counted(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            _counted(item, path)


class Layer(CloudFrontResponse):
    """moto's CloudFront with what it lacks."""

    @property
    def emulator(self) -> Emulator:
        return _current[0]

    def call_action(self) -> t.Any:
        operation = self._get_action()
        try:
            self.emulator.note(operation, dict(self.params), self.raw_body if isinstance(self.raw_body, bytes) else b"")
        except CloudFrontException as error:
            status, headers, body = self.serialized(ActionResult(error))
            return status, headers, body
        return super().call_action()

    # ---- distributions

    def _find(self, identifier: str) -> Item:
        found = self.emulator.distributions.get(identifier)
        if found is None:
            raise CloudFrontException("NoSuchDistribution", "The specified distribution does not exist.")
        return found

    def _match(self, item: Item, etag: str | None = None) -> None:
        given = self._get_param("IfMatch") if etag is None else etag
        _refuse(not given, "InvalidIfMatchVersion", "The If-Match version is missing or not valid for the resource.")
        _refuse(
            given != item.etag,
            "PreconditionFailed",
            "The precondition in one or more of the request fields evaluated to false.",
        )

    def _answer(self, item: Item) -> ActionResult:
        status = "Deployed" if item.looks >= self.emulator.polls else "InProgress"
        shown = {
            "Id": item.id,
            "ARN": item.more["arn"],
            "Status": status,
            "LastModifiedTime": datetime.datetime(2026, 1, 1),
            "InProgressInvalidationBatches": 0,
            "DomainName": item.more["domain_name"],
            "DistributionConfig": item.config,
        }
        return ActionResult({"Distribution": shown, "ETag": item.etag, "Location": f"/{item.id}"})

    def _add(self, config: Config, tags: t.Sequence[dict[str, str]]) -> ActionResult:
        for item in self.emulator.distributions.values():
            same = item.config["CallerReference"] == config["CallerReference"]
            _refuse(same, "DistributionAlreadyExists", f"The caller reference is that of {item.id}")
        self._check(config, None)
        item = Item({})
        item.more["arn"] = f"arn:aws:cloudfront::{ACCOUNT}:distribution/{item.id}"
        item.more["domain_name"] = f"d{item.id[-6:]}.cloudfront.net"
        item.store(_defaulted(config))
        self.emulator.distributions[item.id] = item
        self.backend.tagger.tag_resource(item.more["arn"], list(tags))
        return self._answer(item)

    def create_distribution(self) -> ActionResult:
        return self._add(self._get_param("DistributionConfig"), [])

    def create_distribution_with_tags(self) -> ActionResult:
        given = self._get_param("DistributionConfigWithTags")
        return self._add(given["DistributionConfig"], _items(given["Tags"]))

    def copy_distribution(self) -> ActionResult:
        primary = self._find(self._get_param("PrimaryDistributionId"))
        self._match(primary)
        config = copy.deepcopy(primary.config)
        config.update(
            CallerReference=self._get_param("CallerReference"),
            Staging=bool(self._get_param("Staging")),
            Enabled=bool(self._get_param("Enabled")),
            Aliases={"Quantity": 0},
            ContinuousDeploymentPolicyId="",
        )
        return self._add(config, [])

    def get_distribution(self) -> ActionResult:
        item = self._find(self._get_param("Id"))
        answer = self._answer(item)
        item.looks += 1
        return answer

    def get_distribution_config(self) -> ActionResult:
        item = self._find(self._get_param("Id"))
        return ActionResult({"DistributionConfig": item.config, "ETag": item.etag})

    def update_distribution(self) -> ActionResult:
        item = self._find(self._get_param("Id"))
        self._match(item)
        config = self._get_param("DistributionConfig")
        _refuse(
            config["CallerReference"] != item.config["CallerReference"],
            "IllegalUpdate",
            "CallerReference cannot change",
        )
        self._check(config, item)
        item.store(_defaulted(config))
        return self._answer(item)

    def delete_distribution(self) -> ActionResult:
        item = self._find(self._get_param("Id"))
        self._match(item)
        deployed = item.looks >= self.emulator.polls
        _refuse(
            item.config["Enabled"] or not deployed,
            "DistributionNotDisabled",
            "The distribution is not disabled everywhere.",
        )
        _refuse(
            item.config.get("ContinuousDeploymentPolicyId"),
            "ResourceInUse",
            "A continuous deployment policy is attached.",
        )
        staged = [
            policy for policy in self.emulator.deployments.values() if item.more["domain_name"] in _staged(policy)
        ]
        _refuse(staged, "ResourceInUse", "A continuous deployment policy names it.")
        del self.emulator.distributions[item.id]
        return EmptyResult()

    # ---- invalidations

    def _open(self, identifier: str) -> list[str]:
        """Return the paths of a distribution that are being invalidated."""
        stored = [item for item in self.emulator.invalidations.values() if item.more["of"] == identifier]
        return [path for item in stored if item.looks < self.emulator.polls for path in _items(item.config["Paths"])]

    @staticmethod
    def _shown(item: Item, done: bool) -> Config:
        shown = {"Id": item.id, "Status": "Completed" if done else "InProgress", "InvalidationBatch": item.config}
        return {**shown, "CreateTime": datetime.datetime(2026, 1, 1)}

    def create_invalidation(self) -> ActionResult:
        identifier = self._get_param("DistributionId")
        self._find(identifier)
        batch = self._get_param("InvalidationBatch")
        _counted(batch)
        paths = [*self._open(identifier), *_items(batch["Paths"])]
        bad = [path for path in paths if path[0] != "#" and (path[0] != "/" or "*" in path[:-1])]
        _refuse(bad, "InvalidArgument", "Your request contains one or more invalid invalidation paths.")
        full = len(paths) > 3000 or sum(path[0] == "/" and path[-1] == "*" for path in paths) > 15
        _refuse(full, "TooManyInvalidationsInProgress", "Processing your request will cause you to exceed the limits.")
        item = Item(batch, of=identifier)
        self.emulator.invalidations[item.id] = item
        return ActionResult({"Invalidation": self._shown(item, False), "Location": f"/{item.id}"})

    def get_invalidation(self) -> ActionResult:
        item = self.emulator.invalidations.get(self._get_param("Id"))
        if item is None or item.more["of"] != self._get_param("DistributionId"):
            raise CloudFrontException("NoSuchInvalidation", "The specified invalidation does not exist.")
        item.looks += 1
        return ActionResult({"Invalidation": self._shown(item, item.looks >= self.emulator.polls)})

    def list_distributions(self) -> ActionResult:
        shown = [
            {
                **{key: item.config[key] for key in ("Comment", "Enabled", "Aliases", "Origins")},
                "Id": item.id,
                "ARN": item.more["arn"],
                "ETag": item.etag,
                "Staging": bool(item.config.get("Staging")),
                "DomainName": item.more["domain_name"],
                "Status": "Deployed",
            }
            for item in self.emulator.distributions.values()
        ]
        return self._page("DistributionList", shown, full=True)

    def _page(self, name: str, shown: list[Config], full: bool = False) -> ActionResult:
        """Return a page of two, so that each list has more than one."""
        start = int(self._get_param("Marker") or 0)
        page, following = shown[start : start + 2], start + 2
        result: Config = {"MaxItems": 2, "Quantity": len(page), "Items": page}
        if following < len(shown):
            result["NextMarker"] = str(following)
        if full:
            result.update(Marker=str(start), IsTruncated=following < len(shown))
        return ActionResult({name: result})

    def _check(self, config: Config, present: Item | None) -> None:
        """Refuse what CloudFront would, of what the tests need."""
        _counted(config)
        emulator = self.emulator
        origins = {origin["Id"] for origin in _items(config["Origins"])}
        groups = {group["Id"] for group in _items(config.get("OriginGroups"))}
        for group in _items(config.get("OriginGroups")):
            unknown = {member["OriginId"] for member in _items(group["Members"])} - origins
            _refuse(unknown, "NoSuchOrigin", f"{group['Id']} has members that are no origins: {unknown}")
        for origin in _items(config["Origins"]):
            control = origin.get("OriginAccessControlId")
            unknown_control = control and control not in self.backend.origin_access_controls
            _refuse(unknown_control, "InvalidOriginAccessControl", f"there is no {control}")
            both = ("S3OriginConfig" in origin) == ("CustomOriginConfig" in origin)
            _refuse(both, "InvalidArgument", f"{origin['Id']} needs one of S3OriginConfig and CustomOriginConfig")
        for behavior in (config["DefaultCacheBehavior"], *_items(config.get("CacheBehaviors"))):
            target = behavior["TargetOriginId"]
            _refuse(target not in origins | groups, "NoSuchOrigin", f"there is no {target}")
            writes = {"POST", "PUT", "PATCH", "DELETE"} & set(_items(behavior.get("AllowedMethods")))
            _refuse(
                target in groups and writes,
                "InvalidArgument",
                "AllowedMethods cannot include writes with an origin group",
            )
            for name, (_many, key) in POLICIES.items():
                given = behavior.get(key)
                _refuse(given and given not in emulator.policies[name], f"NoSuch{name}", f"there is no {given}")
            legacy = {"ForwardedValues", "MinTTL", "MaxTTL", "DefaultTTL"} & behavior.keys()
            _refuse("CachePolicyId" in behavior and legacy, "InvalidArgument", f"a cache policy excludes {legacy}")
            for association in _items(behavior.get("FunctionAssociations")):
                live = [
                    item
                    for item in emulator.functions.values()
                    if item.id == association["FunctionARN"] and item.more["live"]
                ]
                _refuse(not live, "InvalidFunctionAssociation", f"{association['FunctionARN']} is not live")
        aliases = {alias.lower() for alias in _items(config.get("Aliases"))}
        _refuse(config.get("Staging") and aliases, "InvalidArgument", "a staging distribution has no aliases")
        certificate = config.get("ViewerCertificate", {})
        _refuse(
            aliases and not certificate.get("ACMCertificateArn"),
            "InvalidViewerCertificate",
            "aliases need a certificate",
        )
        for item in emulator.distributions.values():
            if item is not present:
                taken = aliases & {alias.lower() for alias in _items(item.config["Aliases"])}
                _refuse(taken, "CNAMEAlreadyExists", f"{taken} belong to {item.id}")
        policy = config.get("ContinuousDeploymentPolicyId")
        _refuse(
            policy and policy not in emulator.deployments, "NoSuchContinuousDeploymentPolicy", f"there is no {policy}"
        )
        http3 = "3" in config.get("HttpVersion", "")
        _refuse(policy and http3, "InvalidArgument", "continuous deployment excludes HTTP/3")
        _refuse(policy and config.get("Staging"), "IllegalUpdate", "a staging distribution has no policy")

    # ---- continuous deployment

    def update_distribution_with_staging_config(self) -> ActionResult:
        primary, staging = self._find(self._get_param("Id")), self._find(self._get_param("StagingDistributionId"))
        etags = [part.strip() for part in (self._get_param("IfMatch") or "").split(",")]
        _refuse(len(etags) != 2, "InvalidIfMatchVersion", "both versions are needed")
        self._match(primary, etags[0])
        self._match(staging, etags[1])
        _refuse(staging.looks < self.emulator.polls, "IllegalUpdate", "the staging distribution is not deployed")
        policy = self.emulator.deployments.get(primary.config.get("ContinuousDeploymentPolicyId", ""))
        if policy is None or staging.more["domain_name"] not in _staged(policy):
            raise CloudFrontException("IllegalUpdate", "the distributions do not belong together")
        kept = ("Aliases", "ContinuousDeploymentPolicyId", "Staging", "CallerReference")
        primary.store({**staging.config, **{key: primary.config[key] for key in kept}})
        policy.store({**policy.config, "Enabled": False})
        return self._answer(primary)

    def create_continuous_deployment_policy(self) -> ActionResult:
        config = self._get_param("ContinuousDeploymentPolicyConfig")
        self._check_deployment(config)
        item = Item(config)
        self.emulator.deployments[item.id] = item
        return self._deployment(item)

    def get_continuous_deployment_policy(self) -> ActionResult:
        return self._deployment(self._find_deployment())

    def update_continuous_deployment_policy(self) -> ActionResult:
        item, config = self._find_deployment(), self._get_param("ContinuousDeploymentPolicyConfig")
        self._match(item)
        self._check_deployment(config)
        item.store(config)
        return self._deployment(item)

    def delete_continuous_deployment_policy(self) -> ActionResult:
        item = self._find_deployment()
        self._match(item)
        used = [
            one
            for one in self.emulator.distributions.values()
            if one.config.get("ContinuousDeploymentPolicyId") == item.id
        ]
        _refuse(used, "ContinuousDeploymentPolicyInUse", "a distribution has it")
        del self.emulator.deployments[item.id]
        return EmptyResult()

    def list_continuous_deployment_policies(self) -> ActionResult:
        shown = [{"ContinuousDeploymentPolicy": _deployment(item)} for item in self.emulator.deployments.values()]
        return self._page("ContinuousDeploymentPolicyList", shown)

    def _find_deployment(self) -> Item:
        found = self.emulator.deployments.get(self._get_param("Id"))
        if found is None:
            raise CloudFrontException(
                "NoSuchContinuousDeploymentPolicy", "The continuous deployment policy doesn't exist."
            )
        return found

    def _deployment(self, item: Item) -> ActionResult:
        return ActionResult(
            {"ContinuousDeploymentPolicy": _deployment(item), "ETag": item.etag, "Location": f"/{item.id}"}
        )

    def _check_deployment(self, config: Config) -> None:
        _counted(config)
        names = {
            item.more["domain_name"] for item in self.emulator.distributions.values() if item.config.get("Staging")
        }
        unknown = set(_items(config["StagingDistributionDnsNames"])) - names
        _refuse(unknown, "InvalidArgument", f"no staging distribution has {unknown}")
        weight = config.get("TrafficConfig", {}).get("SingleWeightConfig", {}).get("Weight", 0)
        _refuse(weight > 0.15, "InvalidArgument", "the weight is above 0.15")

    # ---- policies

    def _create_policy(self, name: str) -> ActionResult:
        config, stored = self._get_param(f"{name}Config"), self.emulator.policies[name]
        self._check_policy(name, config)
        taken = any(item.config["Name"] == config["Name"] for item in stored.values())
        _refuse(taken, f"{name}AlreadyExists", f"there is a {config['Name']}")
        item = Item(config)
        stored[item.id] = item
        return self._policy(name, item)

    def _check_policy(self, name: str, config: Config) -> None:
        _counted(config)
        key = config.get("ParametersInCacheKeyAndForwardedToOrigin", {})
        if name == "CachePolicy" and config.get("MaxTTL") == 0:
            kinds = {
                value
                for part in key.values()
                if isinstance(part, dict)
                for label, value in part.items()
                if label.endswith("Behavior")
            }
            encodings = key.get("EnableAcceptEncodingGzip") or key.get("EnableAcceptEncodingBrotli")
            _refuse(encodings or kinds != {"none"}, "InvalidArgument", "a policy that keeps nothing has no key")
        if name == "OriginRequestPolicy":
            headers = {header.lower() for header in _items(config["HeadersConfig"].get("Headers"))}
            bad = headers & {"authorization", "accept-encoding"}
            _refuse(bad, "InvalidArgument", f"{bad} are not allowed")

    def _policy(self, name: str, item: Item) -> ActionResult:
        return ActionResult({name: _policy(name, item), "ETag": item.etag, "Location": f"/{item.id}"})

    def _find_policy(self, name: str) -> Item:
        found = self.emulator.policies[name].get(self._get_param("Id"))
        if found is None:
            raise CloudFrontException(f"NoSuch{name}", "The policy does not exist.")
        return found

    def _update_policy(self, name: str) -> ActionResult:
        item, config = self._find_policy(name), self._get_param(f"{name}Config")
        self._match(item)
        self._check_policy(name, config)
        item.store(config)
        return self._policy(name, item)

    def _delete_policy(self, name: str) -> ActionResult:
        item = self._find_policy(name)
        self._match(item)
        _refuse(self._used(item.id), f"{name}InUse", "a distribution has it")
        del self.emulator.policies[name][item.id]
        return EmptyResult()

    def _list_policies(self, name: str) -> ActionResult:
        managed = Item({**_MANAGED[name], "Name": "Managed-One"}, id="658327ea-f89d-4fab-a63d-7e88639e58f6")
        shown = [] if self._get_param("Type") == "custom" else [{"Type": "managed", name: _policy(name, managed)}]
        shown += [{"Type": "custom", name: _policy(name, item)} for item in self.emulator.policies[name].values()]
        return self._page(f"{name}List", shown)

    def _used(self, identifier: str) -> bool:
        return any(f"'{identifier}'" in str(item.config) for item in self.emulator.distributions.values())

    def delete_origin_access_control(self) -> ActionResult:
        # moto deletes one that is in use
        used = self._used(self._get_param("Id"))
        _refuse(used, "OriginAccessControlInUse", "an origin has it")
        return super().delete_origin_access_control()

    # ---- functions

    def _find_function(self) -> Item:
        found = self.emulator.functions.get(self._get_param("Name"))
        if found is None:
            raise CloudFrontException("NoSuchFunctionExists", "The specified function does not exist.")
        return found

    def _summary(self, item: Item, stage: str = "DEVELOPMENT") -> Config:
        return {
            "Name": item.more["name"],
            "Status": "DEPLOYED" if item.more["live"] else "UNPUBLISHED",
            "FunctionConfig": item.config["FunctionConfig"],
            "FunctionMetadata": {
                "FunctionARN": item.id,
                "Stage": stage,
                "CreatedTime": datetime.datetime(2026, 1, 1),
                "LastModifiedTime": datetime.datetime(2026, 1, 1),
            },
        }

    def _function(self, item: Item) -> ActionResult:
        return ActionResult({"FunctionSummary": self._summary(item), "ETag": item.etag, "Location": "/"})

    def create_function(self) -> ActionResult:
        name = self._get_param("Name")
        _refuse(name in self.emulator.functions, "FunctionAlreadyExists", f"there is a {name}")
        item = Item({}, id=f"arn:aws:cloudfront::{ACCOUNT}:function/{name}", name=name, live=b"")
        self.emulator.functions[name] = item
        return self._store_function(item)

    def update_function(self) -> ActionResult:
        item = self._find_function()
        self._match(item)
        return self._store_function(item)

    def _store_function(self, item: Item) -> ActionResult:
        code = self._get_param("FunctionCode")
        code = code if isinstance(code, bytes) else code.encode()
        _refuse(len(code) > 10240, "FunctionSizeLimitExceeded", "the function is too large")
        item.store({"FunctionConfig": self._get_param("FunctionConfig"), "Code": code})
        return self._function(item)

    def publish_function(self) -> ActionResult:
        item = self._find_function()
        self._match(item)
        item.more["live"] = item.config["Code"]
        return ActionResult({"FunctionSummary": self._summary(item, "LIVE")})

    def describe_function(self) -> ActionResult:
        return self._function(self._find_function())

    def get_function(self) -> ActionResult:
        item = self._find_function()
        live = self._get_param("Stage") == "LIVE"
        if live and not item.more["live"]:
            raise CloudFrontException("NoSuchFunctionExists", "The specified function does not exist.")
        code = item.more["live"] if live else item.config["Code"]
        return ActionResult({"FunctionCode": code, "ETag": item.etag, "ContentType": "application/octet-stream"})

    def list_functions(self) -> ActionResult:
        return self._page("FunctionList", [self._summary(item) for item in self.emulator.functions.values()])

    def delete_function(self) -> ActionResult:
        item = self._find_function()
        self._match(item)
        _refuse(self._used(item.id), "FunctionInUse", "a distribution has it")
        del self.emulator.functions[item.more["name"]]
        return EmptyResult()


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")


for _name, (_many, _key) in POLICIES.items():
    for _verb, _subject in (("create", _name), ("update", _name), ("delete", _name), ("list", _many)):
        _helper = f"_{_verb}_{'policies' if _verb == 'list' else 'policy'}"
        setattr(
            Layer, f"{_verb}_{_snake(_subject)}", lambda self, helper=_helper, name=_name: getattr(self, helper)(name)
        )
    setattr(Layer, f"get_{_snake(_name)}", lambda self, name=_name: self._policy(name, self._find_policy(name)))


def _policy(name: str, item: Item) -> Config:
    return {"Id": item.id, "LastModifiedTime": datetime.datetime(2026, 1, 1), f"{name}Config": item.config}


def _deployment(item: Item) -> Config:
    return {
        "Id": item.id,
        "LastModifiedTime": datetime.datetime(2026, 1, 1),
        "ContinuousDeploymentPolicyConfig": item.config,
    }


def _staged(policy: Item) -> list[str]:
    return _items(policy.config["StagingDistributionDnsNames"])


_NONE = {
    "HeadersConfig": {"HeaderBehavior": "none"},
    "CookiesConfig": {"CookieBehavior": "none"},
    "QueryStringsConfig": {"QueryStringBehavior": "none"},
}
_MANAGED: dict[str, Config] = {
    "CachePolicy": {
        "MinTTL": 1,
        "ParametersInCacheKeyAndForwardedToOrigin": {"EnableAcceptEncodingGzip": True, **_NONE},
    },
    "OriginRequestPolicy": _NONE,
    "ResponseHeadersPolicy": {},
}


def _turned(value: t.Any) -> t.Any:
    """Return a list of the API in an order that nobody has asked for: that of a set means nothing."""
    return {**value, "Items": sorted(value["Items"], key=str, reverse=True)} if value and value.get("Items") else value


def _defaulted(config: Config) -> Config:
    """Return a configuration as CloudFront stores it."""
    full: Config = {
        "DefaultRootObject": "",
        "OriginGroups": {"Quantity": 0},
        "CacheBehaviors": {"Quantity": 0},
        "CustomErrorResponses": {"Quantity": 0},
        "Restrictions": {"GeoRestriction": {"RestrictionType": "none", "Quantity": 0}},
        "WebACLId": "",
        "ContinuousDeploymentPolicyId": "",
        "Staging": False,
        **copy.deepcopy(config),
    }
    full["Aliases"] = _turned(full.get("Aliases", {"Quantity": 0}))
    full["Origins"] = _turned(full["Origins"])
    for origin in _items(full["Origins"]):
        origin.setdefault("OriginShield", {"Enabled": False})
        origin.setdefault("OriginPath", "")
        origin["CustomHeaders"] = _turned(origin.get("CustomHeaders", {"Quantity": 0}))
        if "S3OriginConfig" in origin:
            origin["S3OriginConfig"].setdefault("OriginReadTimeout", 30)
    for behavior in (full["DefaultCacheBehavior"], *_items(full["CacheBehaviors"])):
        for name in ("TrustedSigners", "TrustedKeyGroups"):
            behavior.setdefault(name, dict(_OFF))
        for name in ("LambdaFunctionAssociations", "FunctionAssociations"):
            behavior[name] = _turned(behavior.get(name, {"Quantity": 0}))
        behavior.setdefault("SmoothStreaming", False)
        behavior.setdefault("FieldLevelEncryptionId", "")
        behavior.setdefault("GrpcConfig", {"Enabled": False})
        methods = _turned(behavior["AllowedMethods"])
        behavior["AllowedMethods"] = {**methods, "CachedMethods": _turned(methods["CachedMethods"])}
    certificate = full.setdefault("ViewerCertificate", {"CloudFrontDefaultCertificate": True})
    if certificate.get("CloudFrontDefaultCertificate"):
        certificate.update(MinimumProtocolVersion="TLSv1", SSLSupportMethod="vip", CertificateSource="cloudfront")
    else:
        certificate.update(Certificate=certificate["ACMCertificateArn"], CertificateSource="acm")
    return full
