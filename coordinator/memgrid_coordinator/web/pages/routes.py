"""The pages: what each address shows, and the same under `/v1/` for machines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlencode

from aiohttp import web

from memgrid.leaderboard import Period, Ranked
from memgrid_coordinator.lifecycle import CampaignState
from memgrid_coordinator.services.overview import CAMPAIGNS_PAGE, CUBES_PAGE, DOCUMENTS_PAGE, Overview
from memgrid_coordinator.views import Span
from memgrid_coordinator.web.facts import GridFacts
from memgrid_coordinator.web.pages import drawing
from memgrid_coordinator.web.pages.asked import board_in, keys_in, page_in, span_in, state_in, words_in
from memgrid_coordinator.web.pages.assets import Assets
from memgrid_coordinator.web.pages.json_text import json_answer
from memgrid_coordinator.web.pages.rendering import Rendering
from memgrid_coordinator.web.pages.words import PERIOD_WORDS, RANKED_WORDS, SPAN_WORDS
from memgrid_coordinator.web.requests import OciError

_FOR_GOOD = "public, max-age=31536000, immutable"


class PageRoutes:
    """Handlers of everything that a browser is sent to."""

    def __init__(self, facts: Callable[[], GridFacts], overview: Overview) -> None:
        self._facts = facts
        self._overview = overview
        self._assets = Assets()
        self._rendering = Rendering(self._assets)

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        return (
            web.get("/", self.front),
            web.get("/campaigns", self.campaigns),
            web.get("/campaigns/{campaign_id}", self.campaign),
            web.get("/cubes", self.cubes),
            web.get("/cubes/{reference:.+}", self.cube),
            web.get("/leaderboard", self.leaderboard),
            web.get("/volunteers", self.moved),
            web.get("/join", self.join),
            web.get("/static/{name}", self.static),
            web.get("/favicon.ico", self.icon),
            web.get("/v1/overview", self.overview_json),
            web.get("/v1/campaigns", self.campaigns_json),
            web.get("/v1/campaigns/{campaign_id}", self.campaign_json),
            web.get("/v1/cubes/{reference:.+}", self.cube_json),
            web.get("/v1/leaderboard", self.leaderboard_json),
            web.get("/v1/units", self.units_json),
        )

    async def front(self, request: web.Request) -> web.Response:
        span = span_in(request) or Span.DAY
        view = await self._overview.grid(span)
        campaigns, cubes = await self._overview.campaigns(), await self._overview.cubes("")
        spans = [(f"/?span={each}", SPAN_WORDS[each], each) for each in Span]
        return self._page(
            request,
            "front.html",
            json=f"/v1/overview?span={span}",
            view=view,
            campaigns=campaigns,
            cubes=cubes,
            spans=spans,
            work_plot=drawing.work(view),
            pool_plot=drawing.pool(view),
            units=drawing.units(view.units_by_state),
            reports=drawing.reports(view.reports_by_state),
            rejections=drawing.rejections(view.rejections),
            devices=drawing.devices(view.machines.devices),
        )

    async def campaigns(self, request: web.Request) -> web.Response:
        state, page = state_in(request), page_in(request)
        view = await self._overview.campaigns(state=state, page=page)
        states = [("/campaigns", f"All {sum(view.by_state.values())}", None), *_states(view.by_state)]
        asked = {} if state is None else {"state": state.value}
        return self._page(
            request,
            "campaigns.html",
            section="/campaigns",
            json="/v1/campaigns" + _query(asked, page),
            view=view,
            state=state,
            states=states,
            page=page,
            size=CAMPAIGNS_PAGE,
            address=lambda page: "/campaigns" + _query(asked, page),
        )

    async def campaign(self, request: web.Request) -> web.Response:
        campaign_id, page = request.match_info["campaign_id"], page_in(request)
        view = await self._overview.campaign(campaign_id, page=page)
        return self._page(
            request,
            "campaign.html",
            section="/campaigns",
            json=f"/v1/campaigns/{campaign_id}" + _query({}, page),
            view=view,
            page=page,
            size=DOCUMENTS_PAGE,
            address=lambda page: f"/campaigns/{campaign_id}" + _query({}, page),
            progress_plot=drawing.progress(view),
            curves=drawing.curves(view.documents),
            units=drawing.units(view.line.units_by_state),
            reports=drawing.reports(view.reports_by_state),
            rejections=drawing.rejections(view.rejections),
        )

    async def cubes(self, request: web.Request) -> web.Response:
        asked, page = words_in(request, "q", "base", "kind"), page_in(request)
        view = await self._overview.cubes(asked["q"], base=asked["base"], kind=asked["kind"], page=page)
        filled = {name: text for name, text in asked.items() if text}
        return self._page(
            request,
            "cubes.html",
            section="/cubes",
            json="/v1/cubes" + _query(filled, 1),
            view=view,
            query=asked,
            now=self._overview.now(),
            page=page,
            size=CUBES_PAGE,
            address=lambda page: "/cubes" + _query(filled, page),
        )

    async def cube(self, request: web.Request) -> web.Response:
        reference = request.match_info["reference"]
        view = await self._overview.cube(reference)
        return self._page(
            request,
            "cube.html",
            section="/cubes",
            json=f"/v1/cubes/{reference}",
            view=view,
            prices=drawing.prices(view.info),
            curve=drawing.loss(view.losses),
        )

    async def leaderboard(self, request: web.Request) -> web.Response:
        ask = board_in(request)
        view = await self._overview.leaderboard(ask)
        return self._page(
            request,
            "leaderboard.html",
            section="/leaderboard",
            json="/v1/leaderboard" + _board(ask.ranked, ask.period, request.query.get("cursor", "")),
            view=view,
            boards=[(f"/leaderboard{_board(each, ask.period)}", RANKED_WORDS[each], each) for each in Ranked],
            periods=[(f"/leaderboard{_board(ask.ranked, each)}", PERIOD_WORDS[each], each) for each in PERIOD_WORDS],
            first="/leaderboard" + _board(ask.ranked, ask.period) if ask.skip else "",
            more="/leaderboard" + _board(ask.ranked, ask.period, view.cursor) if view.cursor else "",
        )

    async def moved(self, request: web.Request) -> web.Response:
        """Where the leaderboard was at first."""
        raise web.HTTPMovedPermanently("/leaderboard")

    async def join(self, request: web.Request) -> web.Response:
        return self._page(request, "join.html", section="/join", json="/v1/grid")

    async def static(self, request: web.Request) -> web.Response:
        asset = self._assets.at(request.path)
        if asset is None:
            raise OciError(404, "NAME_UNKNOWN", "there is no such file; load the page again")
        headers = {"Cache-Control": _FOR_GOOD, "Vary": "Accept-Encoding"}
        answer = web.Response(body=asset.content, content_type=asset.content_type, charset="utf-8", headers=headers)
        answer.enable_compression()
        return answer

    async def icon(self, request: web.Request) -> web.Response:
        raise web.HTTPFound(self._assets.url("icon.svg"))

    async def overview_json(self, request: web.Request) -> web.Response:
        return json_answer(await self._overview.grid(span_in(request) or Span.DAY))

    async def campaigns_json(self, request: web.Request) -> web.Response:
        return json_answer(await self._overview.campaigns(state=state_in(request), page=page_in(request)))

    async def campaign_json(self, request: web.Request) -> web.Response:
        campaign_id = request.match_info["campaign_id"]
        return json_answer(await self._overview.campaign(campaign_id, page=page_in(request)))

    async def cube_json(self, request: web.Request) -> web.Response:
        return json_answer(await self._overview.cube(request.match_info["reference"]))

    async def leaderboard_json(self, request: web.Request) -> web.Response:
        return json_answer(await self._overview.leaderboard(board_in(request)))

    async def units_json(self, request: web.Request) -> web.Response:
        return json_answer(await self._overview.units(keys_in(request)))

    def error(self, request: web.Request, status: int) -> web.Response:
        """What people see instead of the JSON of an error."""
        title, text = _ERRORS.get(status, _ERRORS[500])
        return self._page(request, "error.html", status=status, title=title, text=text)

    def _page(
        self,
        request: web.Request,
        template: str,
        *,
        status: int = 200,
        section: str = "/",
        json: str = "",
        **values: object,
    ) -> web.Response:
        shared = {"grid": self._facts(), "section": section, "json": json}
        return self._rendering.answer(request, template, status=status, **shared, **values)


_ERRORS = {
    400: ("That can't be read", "The address of this page has something in it that means nothing here."),
    404: ("There is nothing here", "No page, campaign or cube has this address. It may have been withdrawn."),
    405: ("That can't be done here", "Pages can only be looked at."),
    401: ("That token is not this grid's", "Look at the pages without one; nothing here needs it."),
    503: ("One moment", "The grid is busy or about to stop. Try again soon."),
    500: ("Something broke", "It is not your fault, and it has been written down."),
}


def _states(by_state: Mapping[str, int]) -> Iterable[tuple[str, str, CampaignState]]:
    """Where campaigns of each state are listed, and how many there are."""
    for state in CampaignState:
        yield f"/campaigns?state={state}", f"{state.value.capitalize()} {by_state.get(state, 0)}", state


def _board(ranked: Ranked, period: Period, cursor: str = "") -> str:
    asked = {"by": ranked.value if ranked is Ranked.TEAMS else "", "cursor": cursor}
    asked["period"] = "" if period is Period.ALL else period.value
    return _query({name: text for name, text in asked.items() if text}, 1)


def _query(asked: dict[str, str], page: int) -> str:
    """The end of an address, with nothing in it that goes without saying."""
    pairs = {**asked, **({"page": str(page)} if page > 1 else {})}
    return f"?{urlencode(pairs)}" if pairs else ""
