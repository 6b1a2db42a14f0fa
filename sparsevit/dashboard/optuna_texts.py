"""Notes for optuna-dashboard, in Markdown: of a study, and of a trial on its front. Names in them stay text."""

from __future__ import annotations

from sparsevit.dashboard.report import summary
from sparsevit.dashboard.tables import dense_row, plain, to_markdown
from sparsevit.dashboard.text import accuracy_text, measured_text, metric_label, ms_text, shown_metrics
from sparsevit.search.results import StudyResults, TrialResult


def study_note(results: StudyResults, typed: str) -> str:
    """What was found, in a few figures and the table of the front; `typed` is the study file as a shell takes it."""
    facts = [f"- **{plain(fact.value)}** {plain(fact.name)}: {plain(fact.remark)}" for fact in summary(results)]
    return "\n".join(
        [to_markdown(results), *facts, "", "From here:", "", _command("report", typed), _command("export", typed), ""]
    )


def trial_note(results: StudyResults, trial: TrialResult, typed: str) -> str:
    """A trial's ratios by layer, its accuracies, its latencies and how it compares with the dense subnet."""
    place = "The best within the bounds" if results.best and trial.number == results.best.number else "On the front"
    searched = f"first {results.images_search} images" if results.images_search else "all images"
    confirmed = f"first {results.images_confirm} images" if results.images_confirm else "all images"
    lines = [
        f"{place}: **{trial.sparsity}**",
        "",
        _line([plain(name) for name in results.layer_names]),
        _line(["---:"] * len(results.layer_names)),
        _line([f"{value:f}" for value in trial.sparsity.flat]),
        "",
    ]
    for metric in shown_metrics(results.metric, results.metrics):
        label = plain(metric_label(metric))
        line = f"- {label}: {accuracy_text(trial.accuracy.get(metric))} ({searched})"
        if trial.confirmed is not None:
            line += f", confirmed {accuracy_text(trial.confirmed.get(metric))} ({confirmed})"
        lines.append(line)
    latency = f"- latency: {ms_text(trial.predicted_ms)} ms predicted"
    if trial.measured is not None:
        latency += f", {measured_text(trial.measured)} ms measured".replace("[", "\\[").replace("]", "\\]")
    lines += [f"{latency} ({plain(results.target)})", *_speed_up(results, trial)]
    if trial.confirmed is None:
        lines.append("- not confirmed: nothing of it was measured yet")
    return "\n".join(
        [
            *lines,
            "",
            "As a config to finetune, below or by",
            "",
            _command("export", typed, f" --trial {trial.number}"),
            "",
        ]
    )


def _speed_up(results: StudyResults, trial: TrialResult) -> list[str]:
    """Measured against measured alone."""
    dense = dense_row(results)
    if dense is None or dense.measured is None or trial.measured is None:
        return []
    ratio = dense.measured.median_ms / trial.measured.median_ms
    return [f"- {ratio:.2f}× as fast as dense ({ms_text(dense.measured.median_ms)} ms measured)"]


def _command(name: str, typed: str, rest: str = "") -> str:
    # By its indent it is code, which no sign in it can end.
    return f"    sparsevit {name} {' '.join(typed.split())}{rest}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
