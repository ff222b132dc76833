"""Lines, dots and words on a PNG, and axes around them. Drawn with Pillow.

The same calls give the same bytes with the same Pillow: nothing is read from the machine, not even a font.
"""

from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from math import ceil, floor, hypot, log10

from PIL import Image, ImageDraw, ImageFont

SUPERSAMPLING = 2  # drawn this much larger, then reduced: smooth edges
INK_COLOUR, SOFT_COLOUR, GRID_COLOUR = "#1c1d20", "#676b73", "#e6e7ea"

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom
Dash = tuple[float, float]  # lengths of stroke and gap


class Canvas:
    """A picture in units of its final pixels."""

    def __init__(self, width: int, height: int) -> None:
        self._image = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING), "white")
        self._draw = ImageDraw.Draw(self._image)

    def line(
        self,
        points: Sequence[Point],
        colour: str,
        width: float = 1.5,
        dash: Dash | None = None,
    ) -> None:
        """Joined points."""
        for part in [points] if dash is None else list(_cut_into_dashes(points, dash)):
            if len(part) > 1:
                scaled = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in part]
                self._draw.line(scaled, fill=colour, width=max(1, round(width * SUPERSAMPLING)), joint="curve")

    def dot(self, x: float, y: float, radius: float, colour: str, *, hollow: bool = False) -> None:
        """A filled circle, or a ring."""
        box = [
            (x - radius) * SUPERSAMPLING,
            (y - radius) * SUPERSAMPLING,
            (x + radius) * SUPERSAMPLING,
            (y + radius) * SUPERSAMPLING,
        ]
        self._draw.ellipse(box, fill="white" if hollow else colour, outline=colour, width=round(2.2 * SUPERSAMPLING))

    def text(
        self, x: float, y: float, words: str, size: float = 15, colour: str = SOFT_COLOUR, anchor: str = "lm"
    ) -> None:
        """One line; ``anchor``: Pillow's."""
        font = ImageFont.load_default(size * SUPERSAMPLING)
        self._draw.text((x * SUPERSAMPLING, y * SUPERSAMPLING), words, fill=colour, font=font, anchor=anchor)

    def width_of(self, words: str, size: float) -> float:
        """Of one line, in pixels."""
        return self._draw.textlength(words, font=ImageFont.load_default(size * SUPERSAMPLING)) / SUPERSAMPLING

    def png(self) -> bytes:
        """The file."""
        out = BytesIO()
        size = (self._image.width // SUPERSAMPLING, self._image.height // SUPERSAMPLING)
        self._image.resize(size, Image.Resampling.LANCZOS).save(out, "PNG", optimize=True)
        return out.getvalue()


class Axes:
    """A plot in a box of the canvas: grid, numbers, and from data to pixels."""

    def __init__(self, canvas: Canvas, box: Box, xs: Sequence[float], ys: Sequence[float], title: str) -> None:
        self._box = box
        left, top, right, bottom = box
        self._x, self._y = _pad_range(xs), _pad_range(ys)
        canvas.text(left, top - 20, title, 18, INK_COLOUR)
        for value in _choose_ticks(*self._y):
            y = self.to_pixels(self._x[0], value)[1]
            canvas.line([(left, y), (right, y)], GRID_COLOUR)
            canvas.text(left - 8, y, f"{value:g}", 13, anchor="rm")
        for value in _choose_ticks(*self._x):
            x = self.to_pixels(value, self._y[0])[0]
            canvas.line([(x, bottom), (x, bottom + 5)], SOFT_COLOUR)
            canvas.text(x, bottom + 16, f"{value:g}", 13, anchor="mm")
        canvas.line([(left, bottom), (right, bottom)], SOFT_COLOUR)

    def to_pixels(self, x: float, y: float) -> Point:
        """Pixels of a point."""
        left, top, right, bottom = self._box
        across, up = ((v - lo) / (hi - lo) for v, (lo, hi) in ((x, self._x), (y, self._y)))
        return left + across * (right - left), bottom - up * (bottom - top)


def _cut_into_dashes(points: Sequence[Point], dash: Dash) -> list[list[Point]]:
    """The strokes of a dashed line; the pattern runs on over the corners."""
    strokes: list[list[Point]] = [[points[0]]]
    on, left = True, dash[0]
    for (x0, y0), (x1, y1) in pairwise(points):
        length, done = hypot(x1 - x0, y1 - y0), 0.0
        while length - done > left:
            done += left
            here = (x0 + (x1 - x0) * done / length, y0 + (y1 - y0) * done / length)
            if on:
                strokes[-1].append(here)
            else:
                strokes.append([here])
            on = not on
            left = dash[0] if on else dash[1]
        left -= length - done
        if on:
            strokes[-1].append((x1, y1))
    return strokes


def _pad_range(values: Sequence[float]) -> tuple[float, float]:
    """An axis around the values, with a little room."""
    lo, hi = min(values), max(values)
    room = 0.05 * (hi - lo) or 0.5
    return lo - room, hi + room


def _choose_ticks(lo: float, hi: float) -> list[float]:
    """Round numbers on the axis, about six."""
    rough = (hi - lo) / 6
    power = 10.0 ** floor(log10(rough))
    unit = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return [round(n * unit, 10) for n in range(ceil(lo / unit), floor(hi / unit) + 1)]
