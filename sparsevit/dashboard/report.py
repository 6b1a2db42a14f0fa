"""One self-contained HTML page about a study: opens offline, asks no server for anything, prints."""

from __future__ import annotations

import base64
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sparsevit import __version__
from sparsevit.assets import asset
from sparsevit.dashboard import tables
from sparsevit.dashboard.figures import FIGURES
from sparsevit.dashboard.page import Page
from sparsevit.dashboard.server.thin import thin
from sparsevit.dashboard.text import accuracy_text, figure_of, metric_label, ms_text, shown_metrics
from sparsevit.errors import UserError
from sparsevit.search.results import StudyResults


@dataclass(frozen=True)
class Fact:
    """A figure of the summary, what it is, and a remark."""

    value: str
    name: str
    remark: str = ""


def write_report(results: StudyResults, path: Path, *, page: Page | None = None, study: str = "STUDY.toml") -> Path:
    """Write the report to `path` and return it.

    Args:
        results: what is reported.
        path: an HTML file; its folder is made if it is not there.
        page: which figures in which order; `dashboards/report.toml` if not given.
        study: the study file as it is typed in a shell, for the commands that reproduce the study.

    Raises:
        UserError: if the file cannot be written; nothing half-written is left.
    """
    write_text(path, render(results, page or Page.load(asset("dashboards", "report.toml")), study))
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def render(results: StudyResults, page: Page, study: str) -> str:
    """The report as one HTML text."""
    metrics = shown_metrics(results.metric, results.metrics)
    front = tables.front_rows(results)
    best = tables.trial_row(results.best, "best") if results.best else None
    compared = [row for row in (tables.dense_row(results), best) if row]
    names = [name for section in page.sections for name in section.figures]
    plotly_js, script = get_plotlyjs(), _source("report.js")
    context = {
        "page": page,
        "results": results,
        "version": __version__,
        "facts": summary(results),
        "columns": tables.columns(results),
        "compared": [(row.label, row.cells(metrics), row is best) for row in compared],
        "rows": [(row.label, row.cells(metrics), best is not None and row.sparsity == best.sparsity) for row in front],
        "footnote": "" if all(row.confirmed for row in [*front, *compared]) else tables.FOOTNOTE,
        "kinds": FIGURES,
        # Plotly escapes <, > and / in its JSON, so no text in a figure can end the element that holds it.
        "figures": {name: Markup(thin(FIGURES[name].draw(results)).to_json()) for name in names},
        "reproduce": _commands(results, study),
        "provenance": _provenance(results),
        "plotly_js": Markup(plotly_js),
        "script": Markup(script),
        "style": Markup(_source("report.css")),
        "script_hashes": [_csp_hash(plotly_js), _csp_hash(script)],
    }
    return _environment().get_template("report.html").render(context)


def summary(results: StudyResults) -> list[Fact]:
    """Dense against best in a few figures; only measured latencies make a speed-up."""
    return [_speed(results), _accuracy(results), _bound(results), _effort(results)]


def _speed(results: StudyResults) -> Fact:
    dense, best = tables.dense_row(results), results.best
    if best is None:
        return Fact("none", "configuration within the bounds", "no finished trial meets them yet")
    if dense is None or dense.measured is None or best.measured is None:
        return Fact("–", "speed-up", "known once dense and best are measured")
    before, after = dense.measured.median_ms, best.measured.median_ms
    return Fact(f"{before / after:.2f}×", "as fast as dense", f"measured: {ms_text(before)} → {ms_text(after)} ms")


def _accuracy(results: StudyResults) -> Fact:
    dense, best, label = tables.dense_row(results), results.best, metric_label(results.metric)
    before = figure_of(dense.accuracy, results.metric) if dense else None
    if best is None:
        return Fact(accuracy_text(before), label, "of the dense subnet")
    after = figure_of(best.confirmed, results.metric)
    if before is None or after is None:
        searched = figure_of(best.accuracy, results.metric)
        return Fact(accuracy_text(searched), label, "of the best, on the search images, not confirmed")
    change = f"{100 * (after - before):+.1f}".replace("-", "−")
    return Fact(change, f"points of {label}", f"dense {before:.3f} → best {after:.3f}")


def _bound(results: StudyResults) -> Fact:
    bounds = results.bounds
    lower = f"; at least {ms_text(bounds.min_ms)} ms" if bounds.min_ms > 0 else ""
    return Fact(f"{ms_text(bounds.max_ms)} ms", "latency bound", f"on the predicted latency{lower}")


def _effort(results: StudyResults) -> Fact:
    spent = sum(trial.seconds for trial in results.trials)
    remarks = [f"{spent / 60:.1f} min of evaluation", f"{results.failed} failed"]
    remarks += [f"{results.infeasible_avoided} infeasible and {results.duplicates_avoided} repeated ones avoided"]
    return Fact(str(len(results.trials)), f"of {results.trials_asked} trials", ", ".join(remarks))


def _commands(results: StudyResults, study: str) -> list[str]:
    return [f"sparsevit search {study} --trials {results.trials_asked}", f"sparsevit report {study}"]


def _provenance(results: StudyResults) -> list[tuple[str, str]]:
    known = {
        "target": results.target,
        "layers": ", ".join(results.layer_names),
        "search images": str(results.images_search or "all"),
        "confirmation images": str(results.images_confirm or "all"),
    }
    return list((known | dict(results.provenance)).items())


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("sparsevit.dashboard"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def _source(name: str) -> str:
    return resources.files("sparsevit.dashboard").joinpath("templates", name).read_text(encoding="utf-8")


def _csp_hash(script: str) -> str:
    """What a content security policy lets run: this very script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
