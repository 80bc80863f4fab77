"""Hooks of mkdocs: put the reference and the project's own pages into the manual, and lead links to them.

Pages link to files as they lie in the repository, so that they also work where they are read without the site.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from manual import calls, campaign_file, commands, manifest, routes, series, settings  # noqa: E402

REFERENCE = {
    "reference/commands.md": commands.page,
    "reference/campaign-file.md": campaign_file.page,
    f"reference/{campaign_file.SCHEMA_FILE}": campaign_file.schema,
    "reference/http.md": routes.page,
    "reference/calls.md": calls.page,
    "reference/series.md": series.page,
    "reference/manifest.md": manifest.page,
    "reference/settings.md": settings.page,
}
PROJECT = {
    f"project/{name.lower()}.md": f"{name}.md"
    for name in ("ARCHITECTURE", "CONTRIBUTING", "CONVENTIONS", "SECURITY", "CHANGELOG")
}
_DOCS = "docs/"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every runbook is in the navigation as soon as it is there."""
    books = sorted(path.relative_to(ROOT / _DOCS).as_posix() for path in (ROOT / _DOCS).glob("runbooks/*.md"))
    for section in config.nav or []:
        if isinstance(section, dict) and "Watch" in section and books:
            section["Watch"].append({"Runbooks": books})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what does not lie in docs/."""
    for uri, make in REFERENCE.items():
        files.append(File.generated(config, uri, content=make()))
    for uri, source in PROJECT.items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Let links between files of the repository be links between pages; a file that is no page is only named."""
    here = page.file.src_uri
    # Inside code nothing is a link.
    parts = re.split(r"(^```.*?^```$|`[^`\n]*`)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("`") else _LINK.sub(lambda m: _link(m, here), part) for part in parts)


def _link(match: re.Match[str], here: str) -> str:
    mark, text, target, anchor = match[1], match[2], match[3], match[4] or ""
    source = PROJECT.get(here, _DOCS + here)
    wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    uri = site_uri(wanted)
    if uri is None:
        return text
    return f"{mark}[{text}]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{anchor})"


def site_uri(path: str) -> str | None:
    """Where a file of the repository is in the manual; None when it is not.

    >>> site_uri("docs/why.md"), site_uri("SECURITY.md"), site_uri("proto")
    ('why.md', 'project/security.md', None)
    """
    if path.startswith(_DOCS):
        return path.removeprefix(_DOCS)
    return next((uri for uri, source in PROJECT.items() if source == path), None)
