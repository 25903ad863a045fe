# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles nginx_load_balancer and cdn refuse before they change anything, each in one sentence."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import typing as t

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BALANCER = {
    "nginx_load_balancer_upstreams": [{"name": "app", "servers": [{"address": "127.0.0.1:9"}]}],
    "nginx_load_balancer_virtual_servers": [{"name": "app", "upstream": "app"}],
    "nginx_load_balancer_group": "load_balancers",
    "nginx_load_balancer_management_address": "127.0.0.1",
    # what is not refused must not install anything where the tests run
    "nginx_load_balancer_manage_packages": False,
}
EDGE = {
    "cdn_provider": "nginx_edge",
    "cdn_name": "shop",
    "cdn_origins": [{"name": "app", "domain_name": "127.0.0.1"}],
    "cdn_default_behavior": {"origin": "app"},
    "cdn_nginx_edge_region": "eu",
    "cdn_nginx_edge_manage_packages": False,
}


@pytest.mark.parametrize(
    ("role", "variables", "sentence"),
    [
        (
            "nginx_load_balancer",
            {"nginx_load_balancer_group": "others"},
            "Variable nginx_load_balancer_group has the value 'others', a group that lb is not in: name the group of the load balancers.",
        ),
        (
            "nginx_load_balancer",
            {"nginx_load_balancer_management_address": "lb.example"},
            "Variable nginx_load_balancer_management_address has the value 'lb.example': give an address of version 4 that lb has.",
        ),
        (
            "nginx_load_balancer",
            {
                "nginx_load_balancer_tls": "given",
                "nginx_load_balancer_tls_directory": "/nonexistent",
                "nginx_load_balancer_virtual_servers": [{"name": "app", "upstream": "app", "port": 443, "tls": True}],
            },
            "Variable nginx_load_balancer_tls is 'given', and these files are missing: /nonexistent/",
        ),
        (
            "cdn",
            {"cdn_origins": []},
            "cdn_origins and cdn_default_behavior describe the CDN shop; give both, or set cdn_state to absent.",
        ),
        ("cdn", {"cdn_state": "absent"}, "With cdn_provider nginx_edge, cdn_state is 'absent',"),
        ("cdn", {"cdn_rollout": "staged"}, "cdn_rollout is 'staged',"),
        (
            "cdn",
            {"cdn_enabled": False},
            "cdn_enabled is 'False' and cdn_nginx_edge_region is 'eu': give present, direct, true",
        ),
        (
            "cdn",
            {"cdn_nginx_edge_region": ""},
            "cdn_nginx_edge_region is '': give present, direct, true and the region of lb.",
        ),
    ],
)
def test_bad_variables_are_refused_in_one_sentence(
    tmp_path: pathlib.Path, role: str, variables: dict[str, t.Any], sentence: str
) -> None:
    hosts = tmp_path / "hosts.json"
    group = {"lb": {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}}
    hosts.write_text(json.dumps({"all": {"children": {"load_balancers": {"hosts": group}}}}))
    given = {**(EDGE if role == "cdn" else BALANCER), **variables}
    playbook = tmp_path / "play.yml"
    one = {
        "name": "Edge",
        "hosts": "all",
        "gather_facts": False,
        "roles": [{"role": f"headroom.scale.{role}", "vars": given}],
    }
    playbook.write_text(json.dumps([one]))
    ended = subprocess.run(
        [ROOT / ".venv" / "bin" / "ansible-playbook", f"--inventory={hosts}", playbook],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        },
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2, ended.stdout + ended.stderr
    said = json.loads(ended.stdout)
    results = [task["hosts"]["lb"] for played in said["plays"] for task in played["tasks"] if "lb" in task["hosts"]]
    assert said["stats"]["lb"]["changed"] == 0
    assert sentence in results[-1]["msg"]
