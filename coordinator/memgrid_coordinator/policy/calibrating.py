"""From samples of honest answers and of cheats to limits, and whether limits can tell the two apart at all.

A sample is one comparison: its statistics, each over what the check widens its limit by for few tokens or a cold
start. So limits of one row are limits of all its samples, whatever their lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

HONEST = ""
FAULT_FROM = 2.0
"""Times the limit: from there on a difference is a fault by itself (`memgrid.kinds.audit`)."""
_EULER = 0.5772156649015329
_RAISED_MAX = 100.0
_SEEN_BY_ITSELF = 0.99

Doubles = npt.NDArray[np.float64]
Row = Mapping[str, float]
Settle = Callable[[str, dict[str, float]], dict[str, float]]
"""What a check makes of a row's limits: some raise one statistic's by another's."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Comparisons of one kind: a row of the table of tolerances, the cheat ("" for honest), and which two ways.

    `values` [n, s] go with `names`; `pieces` [n] say which text each came from: samples of one text are alike.
    """

    row: str
    cheat: str
    ways: str
    names: tuple[str, ...]
    values: Doubles
    pieces: npt.NDArray[np.int64]

    def of(self, is_wanted: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]) -> Samples:
        """Those of some texts."""
        chosen = is_wanted(self.pieces)
        return Samples(
            row=self.row,
            cheat=self.cheat,
            ways=self.ways,
            names=self.names,
            values=self.values[chosen],
            pieces=self.pieces[chosen],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRule:
    """How limits are fitted.

    A limit is the largest honest value times `margin`, and more by as much as one over the texts it was found in,
    for the next of n texts is the largest yet with a chance of one in n + 1; or what an extreme-value fit over texts
    says is exceeded by one text in 1/`exceedance`, whichever is more. Where cheats lie far above that, the room
    between belongs to honest machines that were not here: limits are raised together, to the geometric middle at
    most, and so that every cheat still lies `clear` times above them.
    """

    margin: float = 1.2
    exceedance: float = 1e-3
    clear: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedStatistic:
    """One limit and what it was drawn from; `seen` are the cheats that it shows by itself, nearly always."""

    limit: float
    honest_median: float
    honest_max: float
    honest_extreme: float
    smallest_cheat: float | None
    """Of those seen by it."""
    seen: tuple[str, ...]

    @property
    def ratio(self) -> float | None:
        """How far the smallest of them lies above the largest honest value."""
        if self.smallest_cheat is None:
            return None
        return self.smallest_cheat / self.honest_max if self.honest_max else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """How well a row's limits see one cheat, on texts they were not fitted to.

    `smallest` and `median` are the worst statistic of a case over its limit: below 1 it passes, from 2 it is a fault.
    """

    cheat: str
    cases: int
    unseen: int
    faults: int
    smallest: float
    median: float
    may_be_missed: bool

    @property
    def is_seen(self) -> bool:
        return self.unseen == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedRow:
    """A row of the table with its evidence: honest samples it was fitted to, and held-out ones it was tried on."""

    row: str
    fitted_to: int
    texts: int
    raised: float
    """By how much limits were raised into the room that cheats leave."""
    statistics: Mapping[str, FittedStatistic]
    tried_on: int
    rejected: int
    furthest: float
    """The honest held-out case nearest to its limit, or furthest beyond."""
    sights: tuple[Sight, ...]

    @property
    def limits(self) -> dict[str, float]:
        return {name: statistic.limit for name, statistic in self.statistics.items()}

    @property
    def overlaps(self) -> tuple[Sight, ...]:
        """The cheats that have to be seen here and are not."""
        return tuple(sight for sight in self.sights if not sight.is_seen and not sight.may_be_missed)

    @property
    def unseen(self) -> tuple[Sight, ...]:
        """The cheats that may be missed here, and are."""
        return tuple(sight for sight in self.sights if not sight.is_seen and sight.may_be_missed)


def fit(
    samples: Sequence[Samples],
    *,
    fit_pieces: int,
    may_miss: Callable[[str, str], bool],
    floors: Callable[[str, Mapping[str, Row]], Row],
    settle: Settle = lambda row, limits: limits,
    rule: FitRule = FitRule(),
) -> dict[str, FittedRow]:
    """Every row that there are honest samples of, fitted to the first `fit_pieces` texts and tried on the others.

    `may_miss` says of a row and a cheat whether it may pass; `floors` gives limits that a row never goes below, for
    differences that one machine happens not to show: it is told the rows that are fitted already, those of a replay
    in float32 first.
    """
    fitted: dict[str, FittedRow] = {}
    keys = {each.row for each in samples if each.cheat == HONEST}
    for key in sorted(keys, key=lambda key: ("+float32" not in key, key)):
        here = [each for each in samples if each.row == key]
        known = [each.of(lambda pieces: pieces < fit_pieces) for each in here]
        new = [each.of(lambda pieces: pieces >= fit_pieces) for each in here]
        least = floors(key, {name: row.limits for name, row in fitted.items()})
        fitted[key] = _fit_row(key, known, new, may_miss, least, settle, rule)
    return fitted


def _fit_row(
    key: str,
    known: Sequence[Samples],
    new: Sequence[Samples],
    may_miss: Callable[[str, str], bool],
    floors: Row,
    settle: Settle,
    rule: FitRule,
) -> FittedRow:
    honest = _joined(each for each in known if each.cheat == HONEST)
    names = honest.names
    largest = honest.values.max(axis=0)
    extreme = np.array([extreme_value(honest, place, rule.exceedance) for place in range(len(names))])
    least = np.array([floors.get(name, 0.0) for name in names])
    margin = rule.margin + 1 / len(np.unique(honest.pieces))
    limits = np.maximum(np.maximum(margin * largest, extreme), least)
    nearest = {cheat: float(shares(cases.values, limits).min()) for cheat, cases in _by_cheat(known).items()}
    # A cheat that may be missed but is seen is not lost to the room that others leave.
    raised = room([share for cheat, share in nearest.items() if share > 1 or not may_miss(key, cheat)], rule)
    settled = settle(key, dict(zip(names, (raised * limits).tolist(), strict=True)))
    limits = np.array([settled[name] for name in names])
    tried = _joined(each for each in new if each.cheat == HONEST)
    found = shares(tried.values, limits)
    return FittedRow(
        row=key,
        fitted_to=len(honest.values),
        texts=len(np.unique(honest.pieces)),
        raised=raised,
        statistics=_statistics(honest, extreme, limits, [*known, *new]),
        tried_on=len(found),
        rejected=int((~(found <= 1)).sum()),
        furthest=float(found.max(initial=0.0)),
        sights=tuple(_sights(key, new, limits, may_miss)),
    )


def extreme_value(honest: Samples, place: int, exceedance: float) -> float:
    """What a statistic's largest value in a text exceeds with that probability, by a Gumbel fit of its moments.

    >>> values = np.array([[1.0], [1.2], [0.9], [1.1]])
    >>> even = Samples(row="", cheat="", ways="", names=("a",), values=values, pieces=np.arange(4))
    >>> round(extreme_value(even, 0, 1e-3), 2)
    1.69
    """
    pieces = np.unique(honest.pieces)
    maxima = np.array([honest.values[honest.pieces == piece, place].max() for piece in pieces])
    if len(maxima) < 2:
        return float(maxima.max(initial=0.0))
    scale = float(maxima.std(ddof=1)) * math.sqrt(6) / math.pi
    return float(maxima.mean()) + scale * (-_EULER - math.log(-math.log1p(-exceedance)))


def room(smallest: Sequence[float], rule: FitRule) -> float:
    """By how much limits may be raised, when the cheats' smallest cases lie so many times above them.

    >>> room([1.3, 40.0], FitRule()), room([12.0], FitRule()), room([], FitRule())
    (1.0, 3.4641016151377544, 1.0)
    """
    nearest = min(smallest, default=1.0)
    if not nearest > 1:
        return 1.0
    return max(1.0, min(math.sqrt(nearest), nearest / rule.clear, _RAISED_MAX))


def shares(values: Doubles, limits: Doubles) -> Doubles:
    """The worst statistic of each case [n, s] over its limit [s]: infinite for NaN and where nothing is allowed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(values == 0, 0.0, values / limits)
    worst: Doubles = np.where(np.isnan(ratios), np.inf, ratios).max(axis=1, initial=0.0)
    return worst


def _joined(samples: Iterable[Samples]) -> Samples:
    listed = list(samples)
    return Samples(
        row=listed[0].row,
        cheat=listed[0].cheat,
        ways="all",
        names=listed[0].names,
        values=np.concatenate([each.values for each in listed]),
        pieces=np.concatenate([each.pieces for each in listed]),
    )


def _by_cheat(samples: Sequence[Samples]) -> dict[str, Samples]:
    cheats = sorted({each.cheat for each in samples if each.cheat != HONEST and len(each.values)})
    return {cheat: _joined(each for each in samples if each.cheat == cheat) for cheat in cheats}


def _sights(
    key: str, new: Sequence[Samples], limits: Doubles, may_miss: Callable[[str, str], bool]
) -> Iterable[Sight]:
    for cheat, cases in _by_cheat(new).items():
        found = shares(cases.values, limits)
        yield Sight(
            cheat=cheat,
            cases=len(found),
            unseen=int((found <= 1).sum()),
            faults=int((found > FAULT_FROM).sum()),
            smallest=float(found.min()),
            median=float(np.median(found)),
            may_be_missed=may_miss(key, cheat),
        )


def _statistics(
    honest: Samples, extreme: Doubles, limits: Doubles, samples: Sequence[Samples]
) -> dict[str, FittedStatistic]:
    cheats = _by_cheat(samples)
    found = {}
    for place, name in enumerate(honest.names):
        values = {cheat: cases.values[:, place] for cheat, cases in cheats.items()}
        seen = [cheat for cheat, each in values.items() if (each > limits[place]).mean() >= _SEEN_BY_ITSELF]
        found[name] = FittedStatistic(
            limit=float(limits[place]),
            honest_median=float(np.median(honest.values[:, place])),
            honest_max=float(honest.values[:, place].max()),
            honest_extreme=float(extreme[place]),
            smallest_cheat=min((float(values[cheat].min()) for cheat in seen), default=None),
            seen=tuple(seen),
        )
    return found
