"""The grid's front page: how to join, what is under way, what is new. Plain HTML; everything is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from memgrid_coordinator.records import Campaign, PoolCube

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "code{background:#f2f2f2;padding:.2rem .4rem;overflow-wrap:anywhere}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem .3rem 0;"
    "border-bottom:1px solid #ddd}td.number,th.number{text-align:right}progress{width:10rem}"
)


def front_page(*, name: str, url: str, campaigns: Iterable[Campaign], cubes: Iterable[PoolCube]) -> str:
    """The whole page."""
    body = (
        f"<h1>{escape(name)}</h1>"
        "<p>Memory for language models, computed once by volunteers, checked, and free to use.</p>"
        f"<h2>Give idle time</h2><p><code>memgrid volunteer join {escape(url)}</code></p>"
        f"<h2>Use a cube</h2><p><code>memgrid --grid {escape(url)} search</code></p>"
        f"<h2>Campaigns</h2>{_campaigns(campaigns)}<h2>Newest cubes</h2>{_cubes(cubes)}"
    )
    head = f'<meta charset="utf-8"><title>{escape(name)}</title><style>{_STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width">'
    return f'<!doctype html><html lang="en"><head>{head}{view}</head><body>{body}</body></html>\n'


def _campaigns(campaigns: Iterable[Campaign]) -> str:
    rows = [
        f"<tr><td>{escape(campaign.name)}</td><td>{escape(campaign.state)}</td>"
        f"<td><progress max='{max(1, campaign.tokens)}' value='{campaign.tokens_accepted}'></progress></td>"
        f"<td class='number'>{campaign.tokens_accepted:,} of {campaign.tokens:,} tokens</td></tr>"
        for campaign in campaigns
    ]
    return f"<table>{''.join(rows)}</table>" if rows else "<p>None yet.</p>"


def _cubes(cubes: Iterable[PoolCube]) -> str:
    rows = [
        f"<tr><td>{escape(cube.title)}</td><td><code>{escape(cube.repository)}:{escape(cube.tag)}</code></td>"
        f"<td>{escape(cube.base)}</td><td class='number'>{cube.tokens:,}</td>"
        f"<td class='number'>{cube.payload_bytes / 1e6:,.1f} MB</td><td>{escape(cube.licence)}</td></tr>"
        for cube in cubes
    ]
    head = (
        "<tr><th>Title</th><th>Name</th><th>For model</th><th class='number'>Tokens</th>"
        "<th class='number'>Size</th><th>Licence</th></tr>"
    )
    return f"<table>{head}{''.join(rows)}</table>" if rows else "<p>None yet.</p>"
