"""What holds for the collection as a whole, whatever it comes to contain."""

from __future__ import annotations

import ast
import importlib
import pathlib
import typing as t

import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule

ROOT = pathlib.Path(__file__).resolve().parents[2]
COLLECTION = "ansible_collections.headroom.scale"
UTILS = f"{COLLECTION}.plugins.module_utils"

# modules that belong to no action group, each with the reason why
UNGROUPED: dict[str, str] = {}
# playbooks that nobody runs as a job, so that they need no survey
NO_SURVEY = {"demo", "demo_edge", "demo_grow", "demo_shards"}

PURE = {"plan.py", "model.py", "judge.py"}
# what reaches out of the process, or is Ansible
IMPURE = {
    "ansible",
    "asyncio",
    "boto3",
    "botocore",
    "http",
    "kubernetes",
    "psycopg",
    "redis",
    "requests",
    "socket",
    "ssl",
    "subprocess",
    "urllib",
}
# the types of an option that a question of a type of AWX can set
SURVEY_TYPES = {
    "text": {"str", "path"},
    "textarea": {"str", "list", "dict"},
    "password": {"str"},
    "integer": {"int", "float"},
    "float": {"float"},
    "multiplechoice": {"str", "bool"},
    "multiselect": {"list"},
}
NOTHING = object()

Options = dict[str, dict[str, t.Any]]


def plugins(kind: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "plugins" / kind).glob("[a-z]*.py"))


def load(path: pathlib.Path) -> t.Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


MODULES = plugins("modules")
ROLES = sorted(path.name for path in (ROOT / "roles").glob("[a-z]*"))
SURVEYS = {path.name.removesuffix(".survey.yml"): path for path in sorted((ROOT / "playbooks").glob("*.survey.yml"))}
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml") if path not in SURVEYS.values())
UTIL_FILES = sorted((ROOT / "plugins" / "module_utils").rglob("*.py"))


def relative(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


# --- documentation and argument specs


class SpecSeen(Exception):  # noqa: N818
    """Carries what a module passes to AnsibleModule, and ends the module there."""

    def __init__(self, arguments: dict[str, t.Any]) -> None:
        super().__init__("seen")
        self.arguments = arguments


def module(name: str) -> t.Any:
    return importlib.import_module(f"{COLLECTION}.plugins.modules.{name}")


def passed_to_ansible(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, t.Any]:
    def capture(_self: AnsibleModule, argument_spec: Options, **arguments: t.Any) -> None:
        raise SpecSeen({"argument_spec": argument_spec, **arguments})

    monkeypatch.setattr(AnsibleModule, "__init__", capture)
    with pytest.raises(SpecSeen) as seen:
        module(name).main()
    return seen.value.arguments


def documented(name: str) -> dict[str, t.Any]:
    """The documentation of a module together with that of its fragments."""
    documentation = yaml.safe_load(module(name).DOCUMENTATION)
    options: Options = {}
    attributes: Options = {}
    fragments = documentation.get("extends_documentation_fragment", [])
    for fragment in [fragments] if isinstance(fragments, str) else fragments:
        _namespace, _collection, file, *part = fragment.split(".")
        plugin = importlib.import_module(f"{COLLECTION}.plugins.doc_fragments.{file}").ModuleDocFragment
        variable = part[0].upper() if part else "DOCUMENTATION"
        assert hasattr(plugin, variable), f"There is no fragment {fragment}"
        content = yaml.safe_load(getattr(plugin, variable))
        options.update(content.get("options", {}))
        for attribute, details in content.get("attributes", {}).items():
            attributes[attribute] = {**attributes.get(attribute, {}), **details}
    for attribute, details in documentation.get("attributes", {}).items():
        attributes[attribute] = {**attributes.get(attribute, {}), **details}
    # a module may say something of an option of its fragment otherwise, as ansible-core merges them
    for option, details in documentation.get("options", {}).items():
        options[option] = {**options.get(option, {}), **details}
    return {**documentation, "options": options, "attributes": attributes}


def comparable(options: Options, children: str) -> Options:
    """The parts of options that documentation and argument specs have in common, in one shape."""
    return {
        name: {
            "type": option.get("type", "str"),
            "elements": option.get("elements"),
            "required": option.get("required", False),
            "default": option.get("default"),
            "choices": sorted(option["choices"]) if "choices" in option else None,
            "aliases": sorted(option.get("aliases", [])),
            "options": comparable(option.get(children) or {}, children),
        }
        for name, option in options.items()
    }


@pytest.mark.parametrize("name", MODULES)
def test_documentation_equals_argument_spec(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = passed_to_ansible(name, monkeypatch)["argument_spec"]
    assert comparable(documented(name)["options"], "suboptions") == comparable(spec, "options")


@pytest.mark.parametrize("name", MODULES)
def test_check_mode_is_supported_and_documented(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passed_to_ansible(name, monkeypatch)["supports_check_mode"] is True
    attributes = documented(name)["attributes"]
    for attribute in ("check_mode", "diff_mode", "idempotent"):
        assert attributes[attribute]["support"] in ("full", "partial", "none", "N/A"), attribute
        assert attributes[attribute]["description"], attribute


@pytest.mark.parametrize("name", MODULES)
def test_options_that_hold_secrets_are_not_logged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(options: Options) -> None:
        for option, spec in options.items():
            if any(word in option for word in ("password", "secret", "token")):
                assert "no_log" in spec, f"{option} does not say whether it is logged"
            check(spec.get("options") or {})

    check(passed_to_ansible(name, monkeypatch)["argument_spec"])


@pytest.mark.parametrize("name", MODULES)
def test_module_documents_itself(name: str) -> None:
    documentation = documented(name)
    assert documentation["module"] == name
    assert documentation["short_description"]
    assert documentation["version_added"]
    assert yaml.safe_load(module(name).RETURN)
    for task in yaml.safe_load(module(name).EXAMPLES):
        assert task["name"], "an example without a name"


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in ("filter", "lookup") for name in plugins(kind)])
def test_plugin_documents_itself(kind: str, name: str) -> None:
    sidecar = ROOT / "plugins" / kind / f"{name}.yml"
    if sidecar.exists():
        texts = load(sidecar)
        assert {"DOCUMENTATION", "EXAMPLES", "RETURN"} <= set(texts)
        documentation = texts["DOCUMENTATION"]
    else:
        plugin = importlib.import_module(f"{COLLECTION}.plugins.{kind}.{name}")
        assert plugin.EXAMPLES
        assert plugin.RETURN
        documentation = yaml.safe_load(plugin.DOCUMENTATION)
    assert documentation["name"] == name
    assert documentation["short_description"]


@pytest.mark.parametrize("name", plugins("action"))
def test_action_has_a_module_that_documents_it(name: str) -> None:
    assert name in MODULES


def test_modules_are_in_an_action_group() -> None:
    groups = load(ROOT / "meta" / "runtime.yml")["action_groups"]
    grouped = {member for members in groups.values() for member in members if isinstance(member, str)}
    assert grouped | set(UNGROUPED) == set(MODULES)


def test_dependencies_are_the_same_everywhere() -> None:
    listed = {entry["name"]: entry["version"] for entry in load(ROOT / "requirements.yml")["collections"]}
    assert listed == load(ROOT / "galaxy.yml")["dependencies"]


# --- roles


@pytest.mark.parametrize("role", ROLES)
def test_role_has_documentation(role: str) -> None:
    assert (ROOT / "roles" / role / "README.md").is_file()
    for name, entry_point in load(ROOT / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"].items():
        assert entry_point.get("short_description"), name
        assert entry_point.get("description"), name
        for option, spec in entry_point.get("options", {}).items():
            assert spec.get("description"), f"{name}: {option}"


@pytest.mark.parametrize("role", ROLES)
def test_role_argument_specs_equal_its_defaults(role: str) -> None:
    """An argument spec sets nothing: what it says of a default is only true if defaults/main.yml says the same."""
    folder = ROOT / "roles" / role
    defaults = load(folder / "defaults" / "main.yml") or {}
    entry_points = load(folder / "meta" / "argument_specs.yml")["argument_specs"]
    options: Options = {}
    for entry_point in entry_points.values():
        options.update(entry_point.get("options", {}))

    assert set(defaults) <= set(options), "defaults that no argument spec knows"
    assert [name for name in entry_points["main"].get("options", {}) if not name.startswith(f"{role}_")] == []
    for name, spec in options.items():
        if not name.startswith(f"{role}_"):
            continue  # what a playbook passes to one of the other entry points
        assert not (spec.get("required") and name in defaults), f"{name} is required and has a default"
        default = defaults.get(name, NOTHING)
        if "default" in spec:
            assert default == spec["default"], f"{name} has another default in defaults/main.yml"
        elif default is not NOTHING:
            templated = isinstance(default, str) and "{{" in default
            assert templated or default in ("", None), (
                f"{name} has the default {default!r}, which its argument spec lacks"
            )


# --- playbooks


@pytest.mark.parametrize("playbook", [name for name in PLAYBOOKS if name not in NO_SURVEY])
def test_playbook_has_a_survey(playbook: str) -> None:
    assert playbook in SURVEYS, f"playbooks/{playbook}.survey.yml is missing"


def playbook_text(playbook: str) -> str:
    """The text of a playbook and of those that it imports."""
    text = (ROOT / "playbooks" / f"{playbook}.yml").read_text(encoding="utf-8")
    imported = [play.get("ansible.builtin.import_playbook", "") for play in yaml.safe_load(text)]
    return text + "".join(playbook_text(name.removesuffix(".yml")) for name in imported if name)


@pytest.mark.parametrize("playbook", SURVEYS)
def test_survey_sets_what_its_playbook_knows(playbook: str) -> None:
    """A survey is what an AWX job template takes as survey_spec."""
    survey = load(SURVEYS[playbook])
    assert survey["name"]
    assert survey["description"]
    text = playbook_text(playbook)
    options: Options = {}
    for role in ROLES:
        for entry_point in load(ROOT / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"].values():
            options.update(entry_point.get("options", {}))

    variables = [question["variable"] for question in survey["spec"]]
    assert len(variables) == len(set(variables))
    for question in survey["spec"]:
        name = question["variable"]
        assert question["question_name"], name
        assert question["question_description"], name
        assert isinstance(question["required"], bool), name
        assert question["type"] in SURVEY_TYPES, name
        assert name in options or name in text, f"{name} is neither an option of a role nor used in the playbook"
        option = options.get(name, {})
        if option:
            assert option["type"] in SURVEY_TYPES[question["type"]], name
        if "choices" in option:
            assert set(question["choices"]) <= set(option["choices"]), name
        if question["type"] == "multiplechoice" and question.get("default"):
            assert question["default"] in question["choices"], name
        if "default" in option and "default" in question:
            assert yaml.safe_load(str(question["default"])) == option["default"], (
                f"{name} has another default in its role"
            )


# --- which way imports point


def dotted(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join((COLLECTION, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(path: pathlib.Path) -> set[str]:
    """The full names that a file imports, except those that only type annotations need."""
    package = dotted(path) if path.name == "__init__.py" else dotted(path).rpartition(".")[0]
    names: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if is_for_types_only(node):
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
        nodes.extend(ast.iter_child_nodes(node))
    return names


def own_files(names: t.Iterable[str]) -> set[pathlib.Path]:
    """The files of this collection that imported names stand for."""
    found = set()
    for name in names:
        if name.startswith(f"{COLLECTION}."):
            parts = name.removeprefix(f"{COLLECTION}.").split(".")
            for length in (len(parts), len(parts) - 1):
                path = ROOT.joinpath(*parts[:length]).with_suffix(".py")
                if path.is_file():
                    found.add(path)
                    break
    return found


def room(path: pathlib.Path) -> str:
    return path.relative_to(ROOT / "plugins" / "module_utils").parts[0]


@pytest.mark.parametrize("path", [path for path in UTIL_FILES if path.name in PURE], ids=relative)
def test_what_only_thinks_imports_nothing_that_acts(path: pathlib.Path) -> None:
    """Neither itself nor by way of what it imports."""
    seen: dict[pathlib.Path, str] = {path: relative(path)}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        names = imports(file)
        acting = sorted(name for name in names if name.split(".")[0] in IMPURE)
        assert not acting, f"{seen[file]} imports {', '.join(acting)}"
        for other in own_files(names) - set(seen):
            seen[other] = f"{seen[file]} > {relative(other)}"
            waiting.append(other)


@pytest.mark.parametrize("path", UTIL_FILES, ids=relative)
def test_domain_packages_know_only_themselves_and_what_is_common(path: pathlib.Path) -> None:
    for name in imports(path):
        if name.startswith(f"{COLLECTION}."):
            assert name.startswith(f"{UTILS}."), f"{name} lies above module_utils"
            other = name.removeprefix(f"{UTILS}.").split(".")[0]
            assert other in (room(path), "_common"), f"{name} belongs to another domain"
