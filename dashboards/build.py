"""Write the Grafana dashboards and the alert rules from code: `build.py`, or `build.py --check` to compare.

    python dashboards/build.py [--check] [--docs-url https://docs.example.org]

`--docs-url` is where your copy of the documentation is: runbook links begin with it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import campaigns
import commons
import grid
import rules
import volunteers
from grafana_foundation_sdk.cog.encoder import JSONEncoder

HERE = Path(__file__).resolve().parent
BOARDS = {"grid": grid, "volunteers": volunteers, "campaigns": campaigns, "commons": commons}
DOCS_URL = "https://memgrid.example/docs"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the Grafana dashboards and the alert rules.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is not fresh")
    parser.add_argument("--docs-url", default=DOCS_URL, help="where the documentation is, for runbook links")
    options = parser.parse_args()
    stale = []
    for path, text in files(options.docs_url.rstrip("/")).items():
        if path.exists() and path.read_text() == text:
            continue
        stale.append(str(path.relative_to(HERE.parent)))
        if not options.check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    if options.check and stale:
        raise SystemExit(f"not fresh: {', '.join(stale)}; run: python dashboards/build.py")


def files(docs_url: str) -> dict[Path, str]:
    """What every file should say."""
    found = {HERE / "grafana" / f"{name}.json": _json(module.build().build()) for name, module in BOARDS.items()}
    found[HERE / "rules" / "memgrid.yml"] = rules.to_yaml(docs_url)
    return found


def _json(made: Any) -> str:
    return json.dumps(made, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    main()
