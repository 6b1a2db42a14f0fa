"""Where a point's label goes, so that it covers as few other points and labels as it can."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]
_Box = tuple[float, float, float, float]

# Size of a letter as shares of a plot, on a desk and on a phone, which shows labels larger.
LETTERS, HEIGHT = (0.011, 0.028), 0.06
_SIDES = {
    "bottom right": (0.0, -1.0),
    "bottom left": (-1.0, -1.0),
    "bottom center": (-0.5, -1.0),
    "top left": (-1.0, 0.0),
    "top right": (0.0, 0.0),
    "top center": (-0.5, 0.0),
}


def label_positions(
    labels: Sequence[str],
    labelled: Sequence[Point],
    others: Sequence[Point],
    x_range: Sequence[float],
    y_range: Sequence[float],
) -> list[str]:
    """Plotly's `textposition` for each labelled point: the side where the fewest points and earlier labels are.

    Sides that leave the plot are taken only if all do. `others` need not hold the labelled points themselves.
    """

    def share(point: Point) -> Point:
        (x, y), (left, right), (bottom, top) = point, x_range, y_range
        return (x - left) / ((right - left) or 1), (y - bottom) / ((top - bottom) or 1)

    points = [share(point) for point in [*others, *labelled]]
    placed: list[list[_Box]] = [[] for _ in LETTERS]
    positions = []
    for label, point in zip(labels, labelled, strict=True):
        boxes = {
            side: [_box(share(point), len(label) * letter, *shift) for letter in LETTERS]
            for side, shift in _SIDES.items()
        }
        # What reads well on a desk comes first; among that, what does on a phone.
        best = min(boxes, key=lambda side: [_cost(*one, points) for one in zip(boxes[side], placed, strict=True)])
        for others_placed, box in zip(placed, boxes[best], strict=True):
            others_placed.append(box)
        positions.append(best)
    return positions


def _box(point: Point, width: float, right: float, up: float) -> _Box:
    x, y = point[0] + right * width, point[1] + up * HEIGHT
    return x, x + width, y, y + HEIGHT


def _cost(box: _Box, placed: Sequence[_Box], points: Sequence[Point]) -> int:
    left, right, bottom, top = box
    covered = sum(left < x < right and bottom < y < top for x, y in points)
    written_over = sum(left < x1 and x0 < right and bottom < y1 and y0 < top for x0, x1, y0, y1 in placed)
    outside = left < 0 or right > 1 or bottom < 0 or top > 1
    return covered + (written_over + outside) * (len(points) + 1)
