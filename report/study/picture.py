"""A study as one PNG: IQ against EQ with intervals, lambda and reward in training."""

from collections.abc import Sequence
from dataclasses import dataclass

from conf.study import BASE_METHOD
from report.run.curves import MetricColumn
from report.study import data as study_data
from report.study.canvas import INK_COLOUR, SOFT_COLOUR, Axes, Box, Canvas, Dash, Point
from report.study.comparison import StudyRow
from report.study.findings import StudyFindings
from report.study.paired import IntervalEstimate

PICTURE_WIDTH, PICTURE_HEIGHT = 1800, 1000
METHOD_COLOURS = ("#2463c9", "#b45309", "#2f7d32", "#8b4fc2", "#c23a4b", "#0e7490")  # as in page.css
METHOD_DASHES: tuple[Dash | None, ...] = (None, (12, 6), (3, 5))


@dataclass(frozen=True, slots=True)
class MethodStyle:
    """How a method is drawn."""

    colour: str
    dash: Dash | None

    @classmethod
    def for_method(cls, method: str, methods: Sequence[str]) -> "MethodStyle":
        """Six colours, then the same six dashed, then dotted; the base is grey."""
        if method == BASE_METHOD:
            return cls("#5f646d", None)
        place = [candidate for candidate in methods if candidate != BASE_METHOD].index(method)
        return cls(
            METHOD_COLOURS[place % len(METHOD_COLOURS)],
            METHOD_DASHES[place // len(METHOD_COLOURS) % len(METHOD_DASHES)],
        )


def draw_study_picture(findings: StudyFindings) -> bytes:
    """PNG of the main arm; a study without any finished run is a sentence."""
    canvas = Canvas(PICTURE_WIDTH, PICTURE_HEIGHT)
    arms = [arm for arm, _ in findings.list_arm_methods()]
    if not arms:
        canvas.text(
            PICTURE_WIDTH / 2, PICTURE_HEIGHT / 2, f"{findings.study.name}: no finished run", 24, INK_COLOUR, "mm"
        )
        return canvas.png()
    rows = [row for row in findings.rows if row.arm == arms[0]]
    methods = list(dict.fromkeys(row.method for row in rows))
    canvas.text(40, 34, findings.study.name, 26, INK_COLOUR)
    seeds = max(row.seeds for row in rows)
    caption = f"{rows[0].prompts} test prompts, {seeds} seeds, {findings.study.bootstrap.level:.0%} intervals"
    canvas.text(PICTURE_WIDTH - 40, 34, caption, 15, anchor="rm")
    _draw_pareto(canvas, (90, 110, 980, 850), rows, methods)
    trials = {method: findings.trials_of(arms[0], method) for method in methods}
    for (name, title, _), box in zip(
        study_data.STUDY_CURVES, ((1090, 110, 1760, 440), (1090, 530, 1760, 850)), strict=True
    ):
        _draw_curves(canvas, box, title, study_data.overlay_curves(trials, name), methods, findings.study.baseline)
    _draw_legend(canvas, methods)
    return canvas.png()


def _draw_pareto(canvas: Canvas, box: Box, rows: Sequence[StudyRow], methods: Sequence[str]) -> None:
    of = {(row.method, row.measure): row.mean for row in rows}
    known = [
        (method, iq.value, eq.value, iq, eq)
        for method in methods
        for iq, eq in [(of[method, "iq"], of[method, "eq"])]
        if iq.value is not None and eq.value is not None
    ]
    title = "EQ (acoustic score) against IQ (answers right as heard, %)"
    if not known:
        canvas.text(box[0], box[1], f"{title}: not known", 18, SOFT_COLOUR)
        return
    axes = Axes(
        canvas,
        box,
        _list_interval_ends([method_point[3] for method_point in known]),
        _list_interval_ends([method_point[4] for method_point in known]),
        title,
    )
    points: dict[str, Point] = {}
    for method, across, up, iq, eq in known:
        look = MethodStyle.for_method(method, methods)
        points[method] = axes.to_pixels(across, up)
        if iq.lo is not None and iq.hi is not None:
            canvas.line([axes.to_pixels(iq.lo, up), axes.to_pixels(iq.hi, up)], look.colour, 1.5)
        if eq.lo is not None and eq.hi is not None:
            canvas.line([axes.to_pixels(across, eq.lo), axes.to_pixels(across, eq.hi)], look.colour, 1.5)
        canvas.dot(*points[method], 7, look.colour, hollow=look.dash is not None)
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in points.values()]
    for method, point in points.items():
        _draw_label(canvas, point, method, taken, box)


def _list_interval_ends(estimates: Sequence[IntervalEstimate]) -> list[float]:
    return [v for estimate in estimates for v in (estimate.value, estimate.lo, estimate.hi) if v is not None]


def _draw_label(canvas: Canvas, point: Point, words: str, taken: list[Box], box: Box) -> None:
    """Beside the point, where it covers the least of what is there."""
    size, (x, y) = 15.0, point
    wide = canvas.width_of(words, size)
    right, left = 12.0, -12 - wide
    offsets = [(right, -14), (left, -14), (right, 14), (left, 14), (right, -32), (left, -32), (right, 32)]
    spots = [(x + dx, y + dy - 10, x + dx + wide, y + dy + 10) for dx, dy in offsets]

    def covered(spot: Box) -> float:
        outside = spot[0] < box[0] or spot[2] > box[2] + 30
        return 1e6 * outside + sum(
            max(0.0, min(spot[2], other[2]) - max(spot[0], other[0]))
            * max(0.0, min(spot[3], other[3]) - max(spot[1], other[1]))
            for other in taken
        )

    best = min(spots, key=covered)
    taken.append(best)
    canvas.text(best[0], (best[1] + best[3]) / 2, words, size, INK_COLOUR)


def _draw_curves(
    canvas: Canvas,
    box: Box,
    title: str,
    drawn: study_data.CurveOverlay,
    methods: Sequence[str],
    baseline: str,
) -> None:
    values = [v for line in drawn.lines for column in (line.mean, *line.seeds) for v in column if v is not None]
    if not values:
        canvas.text(box[0], box[1], f"{title}: not logged", 18, SOFT_COLOUR)
        return
    axes = Axes(canvas, box, drawn.steps, values, title)
    for line in drawn.lines:
        look = MethodStyle.for_method(line.method, methods)
        pale = _mix_with_white(look.colour, 0.7)
        for column in line.seeds if len(line.seeds) > 1 else ():
            for part in _split_at_gaps(drawn.steps, column, axes):
                canvas.line(part, pale, 0.8)
    for line in drawn.lines:
        look = MethodStyle.for_method(line.method, methods)
        for part in _split_at_gaps(drawn.steps, line.mean, axes):
            canvas.line(part, look.colour, 4 if line.method == baseline else 2.2, look.dash)


def _draw_legend(canvas: Canvas, methods: Sequence[str]) -> None:
    x, y = 90.0, 920.0
    for method in methods:
        look, wide = MethodStyle.for_method(method, methods), canvas.width_of(method, 15) + 70
        if x + wide > PICTURE_WIDTH - 40:
            x, y = 90.0, y + 30
        canvas.line([(x, y), (x + 34, y)], look.colour, 3, look.dash)
        canvas.text(x + 42, y, method, 15, INK_COLOUR)
        x += wide


def _split_at_gaps(steps: Sequence[float], column: MetricColumn, axes: Axes) -> list[list[Point]]:
    """A curve in pixels, in pieces without gaps."""
    parts: list[list[Point]] = [[]]
    for step, value in zip(steps, column, strict=True):
        if value is None:
            parts.append([])
        else:
            parts[-1].append(axes.to_pixels(step, value))
    return [part for part in parts if part]


def _mix_with_white(colour: str, white: float) -> str:
    """A colour with that share of white."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (255 - part) * white):02x}" for part in parts)
