"""What `sparsevit search --dry-run` prints: the resolved study, its space, what is feasible, how long it may take."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from sparsevit.console import console
from sparsevit.search.duration import duration_text

if TYPE_CHECKING:
    from sparsevit.search.preview import Preview, Work
    from sparsevit.search.results import Bounds
    from sparsevit.search.spec import StudySpec


def print_preview(preview: Preview, spec: StudySpec, study: Path) -> None:
    """The study as TOML that can be read back, then comments: sizes, feasible share, expected duration."""
    from sparsevit.search.resolved import resolved_lines

    lines = [f"# {study}, resolved; each value with the place that it comes from", *resolved_lines(spec), ""]
    lines += [f"# {line}" for line in [*_space(preview), *_feasible(preview, study), *_duration(preview)]]
    lines.append("# dry run: nothing was searched")
    console.print("\n".join(lines), markup=False)


def _space(preview: Preview) -> list[str]:
    narrowed = f" of {preview.whole:,}, as space.layers says" if preview.allowed < preview.whole else ""
    return [
        f"target    {preview.target}",
        f"study     {preview.stored}",
        f"space     {preview.allowed:,} configurations{narrowed}; {preview.distinct:,} differ in the windows they keep",
    ]


def _feasible(preview: Preview, study: Path) -> list[str]:
    if preview.feasible is None or preview.error is None:
        bound = f"{_range(preview.bounds)}, but " if preview.bounds else ""
        return [
            f"feasible  {bound}how many is not known: the database has no latency model of this target",
            f"          (the search fits one first; sparsevit latency fit {shlex.quote(str(study))} does so alone)",
        ]
    share = preview.feasible / preview.distinct
    assert preview.bounds is not None
    lines = [f"feasible  {preview.feasible:,} of them ({share:.1%}) take {_range(preview.bounds)}"]
    if preview.feasible == 0:
        lines[0] += ": the search would refuse to start"
    lines.append(
        f"          (dense {preview.dense_ms:.4g} ms; the latency model errs by {preview.error.mean:.1%} in the mean)"
    )
    return lines


def _range(bounds: Bounds) -> str:
    low, high = bounds.min_ms, bounds.max_ms
    return f"{low:.4g} to {high:.4g} ms" if low else f"at most {high:.4g} ms"


def _duration(preview: Preview) -> list[str]:
    total = preview.duration
    head = "not known before such images were judged once" if total is None else f"about {duration_text(total)}"
    return [f"duration  {head}", *(f"          {_part(one)}" for one in preview.work if one.count)]


def _part(work: Work) -> str:
    from sparsevit.search.preview import Seconds

    limit = f", for at most {duration_text(work.most)}" if work.most is not None else ""
    count = f"{work.name}{limit}: " if work.count == 1 else f"{work.count} {work.name}{limit}: "
    if work.seconds is None:
        return f"{count}not known"
    if not isinstance(work.seconds, Seconds):
        return f"{count}about {duration_text(work.seconds)}"
    each = f"{work.seconds.each:.3g} s" + (" each" if work.count > 1 else "")
    scaled = work.seconds.images
    basis = f"median of {work.seconds.known}" + (f" on {scaled} images, scaled" if scaled else "")
    return f"{count}{each} ({basis})"
