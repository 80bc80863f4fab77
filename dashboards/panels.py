"""How panels of memgrid look, so that each dashboard says only what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models
from promql import Query, rate

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8
FLOPS, FLOPS_PER_S = "si:FLOP", "si:FLOP/s"
COUNT, RATIO, SECONDS, BYTES, BYTES_PER_S, PER_S = "short", "percentunit", "s", "bytes", "Bps", "cps"


def lines(
    title: str,
    about: str,
    unit: str,
    *queries: Query,
    stacked: bool = False,
    limits: dict[float, str] | None = None,
    width: int = 8,
) -> timeseries.Panel:
    """A plot over time; `limits` draws thresholds, value to colour."""
    panel = _common(timeseries.Panel(), title, about, unit, queries, width, HEIGHT)
    panel.line_width(1).fill_opacity(35 if stacked else 8).show_points(common_models.VisibilityMode.NEVER)
    panel.min(0).span_nulls(120_000)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.TABLE)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max"])
    )
    mode, sort = common_models.TooltipDisplayMode.MULTI, common_models.SortOrder.DESCENDING
    panel.tooltip(common.VizTooltipOptions().mode(mode).sort(sort))
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if limits:
        panel.thresholds(_thresholds(limits))
        panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)
        )
    return panel


def number(
    title: str, about: str, unit: str, query: Query, *, limits: dict[float, str] | None = None, width: int = 4
) -> stat.Panel:
    """One figure, with its recent course behind it; `limits` colours it from each value on."""
    panel = _common(stat.Panel(), title, about, unit, (query,), width, 4)
    panel.graph_mode(common_models.BigValueGraphMode.AREA).color_mode(
        common_models.BigValueColorMode.VALUE if limits else common_models.BigValueColorMode.NONE
    )
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.thresholds(_thresholds(limits or {}))
    return panel


def version(title: str, about: str, query: Query, *, label: str, width: int = 4) -> stat.Panel:
    """A label's value, where the number says nothing."""
    panel = _common(stat.Panel(), title, about, COUNT, (Query(query.expr, f"{{{{{label}}}}}"),), width, 4)
    panel.text_mode(common_models.BigValueTextMode.NAME).graph_mode(common_models.BigValueGraphMode.NONE)
    return panel.color_mode(common_models.BigValueColorMode.NONE)


def bars(title: str, about: str, unit: str, query: Query, *, width: int = 8, highest: float | None = None) -> Any:
    """One bar a series, as it is now."""
    panel = _common(bargauge.Panel(), title, about, unit, (query,), width, HEIGHT)
    panel.orientation(common_models.VizOrientation.HORIZONTAL)
    panel.display_mode(common_models.BarGaugeDisplayMode.BASIC)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).min(0)
    panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    return panel if highest is None else panel.max(highest)


def cloud(title: str, about: str, histogram: str, *, where: str = "", width: int = 12) -> heatmap.Panel:
    """How a histogram's observations spread over its buckets, over time."""
    query = Query(rate(f"{histogram}_bucket{where}", "le"), "{{le}}")
    panel = _common(heatmap.Panel(), title, about, SECONDS, (), width, HEIGHT)
    target = _target(query, "A").format(prometheus_models.PromQueryFormat.HEATMAP)
    panel.with_target(target).calculate(False)
    panel.color(heatmap.HeatmapColorOptions().scheme("Turbo").mode(heatmap_models.HeatmapColorMode.SCHEME).steps(64))
    return panel.y_axis(heatmap.YAxisConfig().unit(SECONDS))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading, what it says of each row, and in which unit."""

    title: str
    expr: str
    unit: str = COUNT
    limits: tuple[tuple[float, str], ...] = ()


def rows(
    title: str,
    about: str,
    columns: tuple[Column, ...],
    *,
    by: tuple[str, ...],
    hidden: tuple[str, ...] = (),
    link: str,
) -> table.Panel:
    """A table with a row for each value of the labels `by`; `link` is where the first of them leads."""
    panel = _common(table.Panel(), title, about, COUNT, (), 24, HEIGHT + 1)
    names = [f"Value #{chr(ord('A') + place)}" for place in range(len(columns))]
    for place, column in enumerate(columns):
        target = _target(Query(column.expr, ""), chr(ord("A") + place))
        panel.with_target(target.instant().format(prometheus_models.PromQueryFormat.TABLE))
        properties = [models.DynamicConfigValue(id_val="unit", value=column.unit)]
        if column.limits:
            properties.append(
                models.DynamicConfigValue(id_val="thresholds", value=_thresholds(dict(column.limits)).build())
            )
            properties.append(models.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}))
        panel.override_by_name(column.title, properties)
    links = [{"title": "On the grid's page", "url": link, "targetBlank": True}]
    panel.override_by_name(by[0], [models.DynamicConfigValue(id_val="links", value=links)])
    for name in hidden:  # kept, because the link goes by it
        panel.override_by_name(name, [models.DynamicConfigValue(id_val="custom.hidden", value=True)])
    renamed = dict(zip(names, (column.title for column in columns), strict=True))
    order = {name: place for place, name in enumerate((*by, *names))}
    organize = {
        "excludeByName": {"Time": True},
        "renameByName": renamed,
        "indexByName": order,
    }
    panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    return panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=organize))


def _common(
    panel: Any, title: str, about: str, unit: str, queries: tuple[Query, ...], width: int, height: int
) -> Any:
    panel.title(title).description(about).datasource(DATASOURCE).span(width).height(height).unit(unit)
    for place, query in enumerate(queries):
        panel.with_target(_target(query, chr(ord("A") + place)))
    return panel


def _target(query: Query, name: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query.selected).legend_format(query.legend).ref_id(name)


def _thresholds(limits: dict[float, str]) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(value=None, color="green")]
    steps += [models.Threshold(value=value, color=colour) for value, colour in sorted(limits.items())]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
