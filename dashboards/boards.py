"""A dashboard of memgrid: titled rows of panels, with the variables and links that all of them share."""

from __future__ import annotations

import itertools
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models
from panels import DATASOURCE

TAG = "memgrid"
_PAGE = "https://localhost:7070"


def board(
    name: str, title: str, about: str, *rows_of_panels: tuple[str, list[Any]], more: tuple[Any, ...] = ()
) -> dashboard.Dashboard:
    """A dashboard of titled rows, with the variables and links that all of them share, and `more` of its own."""
    made = dashboard.Dashboard(title).uid(f"memgrid-{name}").description(about).tags([TAG])
    made.readonly().timezone("browser").refresh("30s").time("now-6h", "now")
    made.tooltip(models.DashboardCursorSync.CROSSHAIR)
    for variable in (*_variables(), *more):
        made.with_variable(variable)
    made.link(
        dashboard.DashboardLink("Other dashboards")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(True)
        .keep_time(True)
    )
    made.link(
        dashboard.DashboardLink("The grid's own page")
        .type(models.DashboardLinkType.LINK)
        .url("${page}")
        .icon("external link")
        .target_blank(True)
    )
    made.annotation(_alerts())
    ids = itertools.count(1)
    for heading, panels in rows_of_panels:
        made.with_row(dashboard.Row(heading).id(next(ids)))
        for panel in panels:
            made.with_panel(panel.id(next(ids)))
    return made


def chooser(name: str, label: str, about: str, of: str) -> dashboard.QueryVariable:
    """A variable that takes one, several or all values of `of`, a label_values(…) query."""
    variable = dashboard.QueryVariable(name).label(label).description(about).query(of).datasource(DATASOURCE)
    variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    everything = models.VariableOption(selected=True, text=["All"], value=["$__all"])
    return variable.multi(True).include_all(True).all_value(".*").current(everything)


def _variables() -> list[Any]:
    job = dashboard.QueryVariable("job").label("Grid").description("The scrape job of a grid's coordinators.")
    job.query("label_values(memgrid_build_info, job)").datasource(DATASOURCE)
    job.refresh(models.VariableRefresh.ON_DASHBOARD_LOAD).sort(models.VariableSort.ALPHABETICAL_ASC)
    instances = 'label_values(memgrid_build_info{job="$job"}, instance)'
    return [
        dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"),
        job,
        chooser("instance", "Coordinator", "One coordinator, or all that share the work.", instances),
        dashboard.TextBoxVariable("page")
        .label("Page")
        .description("Where the grid's own page is, for links.")
        .default_value(_PAGE)
        .current(models.VariableOption(selected=True, text=_PAGE, value=_PAGE)),
    ]


def _alerts() -> models.AnnotationQuery:
    """Marks where an alert of ours began to fire."""
    return _Built(
        models.AnnotationQuery(
            name="Alerts",
            datasource=DATASOURCE,
            enable=True,
            icon_color="red",
            expr='ALERTS{alertname=~"Memgrid.*",alertstate="firing"}',
        )
    )


class _Built:
    """What is built already, where a builder is asked for."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def build(self) -> Any:
        return self._made
