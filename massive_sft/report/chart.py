"""Small SVG charts without a library: they take their colours from the page, so they follow its light or dark theme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

COLOURS = 10
FILLS = 3  # of dots and of the spots on lines: each ten names beyond the first ten have the colours again, another fill
DASHES = 6
SHAPES = 3
_WIDTH, _HEIGHT = 340, 224
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 10, 8, 36
_CHARACTER = 6.4  # the width of one in a label
_SPOTS = 12  # on a line at most: more would hide its dashes
_MANY = 60  # dots beyond which a series is one path with one tooltip


@dataclass(frozen=True)
class Line:
    """A line through points by ascending x; one that is not finite breaks it.

    ``colour`` is a number of ``COLOURS`` × ``FILLS`` looks (a fill shows where the line is ``marked``), ``dash`` one of
    ``DASHES``; both wrap around. ``faint`` marks points that carry no information.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int
    dash: int = 0
    marked: bool = False
    faint: Sequence[bool] = ()


@dataclass(frozen=True)
class Dot:
    """A point with its story and, if any, a vertical interval.

    ``colour`` is a number as that of a line. ``series`` is the tooltip that a dot shares with others of its colour and
    shape where a chart has very many; without one it keeps its own.
    """

    label: str
    x: float
    y: float
    colour: int
    shape: int = 0
    low: float = math.nan
    high: float = math.nan
    series: str = ""


@dataclass(frozen=True)
class Panel:
    """One chart. ``caption`` stands below the title, ``zero`` draws a line at y = 0.

    ``places`` names the whole numbers of x, from 0 on, in place of the numbers.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line] = ()
    dots: Sequence[Dot] = ()
    caption: str = ""
    log_x: bool = False
    log_y: bool = False
    zero: bool = False
    whole_x: bool = False
    places: Sequence[str] = ()

    @property
    def svg(self) -> Markup:
        """The chart; an empty text when it has no point."""
        return _draw(self)


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels, on a linear or a logarithmic scale."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @staticmethod
    def over(values: Iterable[float], start: float, end: float, log: bool, whole: bool = False) -> Axis:
        """Return the axis that shows all values with a little room; at least one must be finite."""
        kept = [value for value in values if math.isfinite(value) and (not log or value > 0)]
        low, high = min(kept), max(kept)
        if log:
            room = max(0.05 * math.log(high / low), 0.05)
            return Axis(low * math.exp(-room), high * math.exp(room), start, end, log)
        room = 0.06 * (high - low) or max(0.05 * abs(high), 0.5 if whole else 0.0) or 0.01
        return Axis(low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        share = (
            math.log(value / self.low) / math.log(self.high / self.low)
            if self.log
            else (value - self.low) / (self.high - self.low)
        )
        return self.start + share * (self.end - self.start)

    def shows(self, value: float) -> bool:
        return math.isfinite(value) and (not self.log or value > 0)

    def ticks(self, wanted: int, whole: bool = False) -> list[float]:
        """Return round values within the axis, about ``wanted`` of them."""
        if self.log:
            candidates = [
                m * 10.0**e for e in range(-12, 13) for m in (1, 2, 5) if self.low <= m * 10.0**e <= self.high
            ]
            if len(candidates) >= 2:
                return candidates[:: math.ceil(len(candidates) / wanted)]
        raw = (self.high - self.low) / wanted
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(step * power for step in (1, 2, 5, 10) if step * power >= raw * 0.999)
        step = max(1.0, math.ceil(step)) if whole else step
        return [index * step for index in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _draw(panel: Panel) -> Markup:
    xs = [x for line in panel.lines for x, _ in line.points] + [dot.x for dot in panel.dots]
    ys = [y for line in panel.lines for _, y in line.points] + [dot.y for dot in panel.dots]
    ys += [edge for dot in panel.dots for edge in (dot.low, dot.high)]
    if not any(map(math.isfinite, xs)) or not any(map(math.isfinite, ys)):
        return Markup("")
    x = Axis.over(xs, _LEFT, _WIDTH - _RIGHT, panel.log_x, panel.whole_x)
    y = Axis.over([*ys, *([0.0] if panel.zero else [])], _HEIGHT - _BOTTOM, _TOP, panel.log_y)
    parts = [*_axes(panel, x, y)]
    for line in panel.lines:
        parts += _line(line, x, y)
    parts += _dots(panel.dots, x, y)
    about = escape(f"{panel.title}: {panel.y} against {panel.x}. {panel.caption}")
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, about, Markup("").join(parts)
    )


def _axes(panel: Panel, x: Axis, y: Axis) -> Iterable[Markup]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for tick, label in _labels(y.ticks(5), panel.log_y):
        at = y(tick)
        yield Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(_LEFT, at, right)
        yield Markup('<text x="{}" y="{:.1f}" class="end">{}</text>').format(_LEFT - 6, at + 3.5, label)
    ticks = _labels(x.ticks(5, panel.whole_x), panel.log_x)
    for tick, label in [(float(place), name) for place, name in enumerate(panel.places)] or ticks:
        at = x(tick)
        yield Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(at, bottom, bottom + 4)
        middle = min(at, _WIDTH - len(label) * _CHARACTER / 2)  # a figure is cut at its edge
        yield Markup('<text x="{:.1f}" y="{}" class="mid">{}</text>').format(middle, bottom + 15, label)
    if panel.zero:
        yield Markup('<path class="zero" d="M{} {:.1f}H{}"/>').format(_LEFT, y(0.0), right)
    yield Markup('<text x="{}" y="{}" class="mid axis">{}</text>').format(
        (_LEFT + right) / 2, _HEIGHT - 4, panel.x + (" (log)" if panel.log_x else "")
    )
    middle = (_TOP + bottom) / 2
    yield Markup('<text transform="translate(11 {}) rotate(-90)" class="mid axis">{}</text>').format(
        middle, panel.y + (" (log)" if panel.log_y else "")
    )


def _labels(ticks: Sequence[float], log: bool) -> list[tuple[float, str]]:
    """Return each tick with its text, all of an axis in one notation."""
    sizes = [abs(tick) for tick in ticks if tick]
    largest, decisive = max(sizes, default=0.0), (min if log else max)(sizes, default=1.0)
    write = _power if largest >= 1e6 or decisive < 1e-3 else _thousands if largest >= 1e4 else _plain
    return [(tick, write(tick).replace("-", "\N{MINUS SIGN}")) for tick in ticks]


def _power(value: float) -> str:
    digits, power = f"{value:.6e}".split("e")
    return f"{float(digits):g}e{int(power)}" if value else "0"


def _thousands(value: float) -> str:
    return f"{value / 1e3:g}k" if abs(value) >= 1e3 else _plain(value)


def _plain(value: float) -> str:
    return f"{round(value, 10):g}"


def _line(line: Line, x: Axis, y: Axis) -> Iterable[Markup]:
    """Draw a path, and spots where it has them, for the sure part and for the faint, with gaps where points miss."""
    faint = line.faint or [False] * len(line.points)
    shown = [x.shows(at) and y.shows(value) for at, value in line.points]
    has_spots = line.marked or sum(shown) == 1  # of one point there is no line
    every = -(-sum(shown) // _SPOTS)
    for wanted in (False, True):
        path = spots = ""
        for index, (at, value) in enumerate(line.points):
            if not shown[index]:
                continue
            place = f"{x(at):.1f} {y(value):.1f}"
            joined = index > 0 and shown[index - 1] and (faint[index] or faint[index - 1]) == wanted
            path += f"{'L' if joined else 'M'}{place}"
            is_alone = not any(shown[max(0, index - 1) : index] + shown[index + 1 : index + 2])
            has_spot = has_spots and (is_alone or index % every == 0) and faint[index] == wanted
            spots += f"M{place}h0" if has_spot else ""
        tone, grey = _tone(line.colour), " faint" if wanted else ""
        if "L" in path:
            dash = f" d{line.dash % DASHES}"
            yield Markup('<path class="line {}" d="{}"><title>{}</title></path>').format(
                tone + dash + grey, path, line.label
            )
        if spots:
            yield Markup('<path class="spots {}" d="{}"><title>{}</title></path>').format(
                tone + grey, spots, line.label
            )


def _tone(number: int) -> str:
    return f"c{number % COLOURS} f{number // COLOURS % FILLS}"


def _dots(dots: Sequence[Dot], x: Axis, y: Axis) -> Iterable[Markup]:
    shown = [dot for dot in dots if x.shows(dot.x) and y.shows(dot.y)]
    for dot in shown:
        if math.isfinite(dot.low) and math.isfinite(dot.high):
            yield Markup('<path class="whisker {}" d="M{:.1f} {:.1f}V{:.1f}"/>').format(
                _tone(dot.colour), x(dot.x), y(dot.low), y(dot.high)
            )
    titles: dict[tuple[str, str], str] = {}
    for dot in shown:
        key = (_tone(dot.colour), dot.series if len(shown) > _MANY and dot.series else dot.label)
        titles[key] = titles.get(key, "") + _shape(dot, x, y)
    for (tone, title), path in titles.items():
        yield Markup('<path class="dot {}" d="{}"><title>{}</title></path>').format(tone, path, title)


def _shape(dot: Dot, x: Axis, y: Axis) -> str:
    at, height = x(dot.x), y(dot.y)
    shape = dot.shape % SHAPES
    if shape == 0:
        return f"M{at - 4:.1f} {height:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z"
    if shape == 1:
        return f"M{at:.1f} {height - 5:.1f}l5 5l-5 5l-5 -5z"
    return f"M{at:.1f} {height - 5:.1f}l5 8.5h-10z"


@dataclass(frozen=True)
class Key:
    """One entry of a legend: a colour, a dash or a shape, and what it stands for; ``marked`` as the lines are."""

    label: str
    colour: int | None = None
    dash: int | None = None
    shape: int | None = None
    marked: bool = False

    @property
    def svg(self) -> Markup:
        tone = _tone(self.colour) if self.colour is not None else "plain"
        if self.shape is not None:
            spot = Dot("", 12.0, 7.0, 0, self.shape)
            same = Axis(0.0, 1.0, 0.0, 1.0)
            return Markup(
                '<svg class="key" viewBox="0 0 24 14" aria-hidden="true"><path class="dot {}" d="{}"/></svg>'
            ).format(tone, _shape(spot, same, same))
        middle = Markup('<path class="spots {}" d="M12 7h0"/>').format(tone) if self.marked else ""
        return Markup(
            '<svg class="key" viewBox="0 0 24 14" aria-hidden="true"><path class="line {} d{}" d="M1 7H23"/>{}</svg>'
        ).format(tone, (self.dash or 0) % DASHES, middle)
