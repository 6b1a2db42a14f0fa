"""`sparsevit latency`: fit the latency model of a target, check it on new configurations, show what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsevit.cli.measure import load_subject
from sparsevit.cli.options import Settings
from sparsevit.console import console, progress
from sparsevit.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from sparsevit.latency.model import LatencyError, LatencyModel
    from sparsevit.search.factory import Supernet
    from sparsevit.search.ledger import Ledger

app = typer.Typer(help="Fit, check and show the latency model of a target.", no_args_is_help=True)

Source = Annotated[
    str,
    typer.Argument(
        metavar="STUDY.toml|CONFIG",
        help="A study file, whose database keeps the model; or a detector's config (it is executed), or 'builtin'.",
    ),
]
Checkpoint = Annotated[str | None, typer.Argument(help="With a config: weights; none are needed.")]
Seconds = Annotated[float | None, typer.Option(help="Measure about this long; 12 on a GPU, 60 on a CPU by default.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the configurations that are measured.")]


@app.callback()
def latency() -> None:
    """Fit, check and show the latency model of a target: a sum over layers, from about a minute of measuring.

    Example: sparsevit latency fit studies/digits.toml
    """


@app.command()
def fit(
    source: Source,
    checkpoint: Checkpoint = None,
    out: Annotated[Path | None, typer.Option(help="Write the model to this JSON file; needed with a config.")] = None,
    size: Annotated[str, typer.Option(help="With a config: image size in pixels, one side or HEIGHTxWIDTH.")] = "448",
    batch: Annotated[int, typer.Option(help="With a config: images per call.")] = 1,
    dtype: Annotated[str, typer.Option(help="With a config: float32, bfloat16 or float16.")] = "float32",
    engine: Annotated[str, typer.Option(help="With a config: how it is run, as in sparsevit measure.")] = "eager",
    device: Annotated[str, typer.Option(help="With a config: cpu, cuda:N or auto.")] = "auto",
    threads: Annotated[int, typer.Option(help="With a config: CPU threads; 0 for all.")] = 0,
    seconds: Seconds = None,
    seed: Seed = 0,
    setting: Settings = None,
) -> None:
    """Measure a designed set of configurations, fit the model to them, and check it on random others.

    With a study file the model is stored in the study's database, in place of an older one, and searches use it.

    Example: sparsevit latency fit builtin --size 448 --device cpu --threads 1 --out digits-latency.json
    """
    from sparsevit.latency.fitting import PROGRESS
    from sparsevit.latency.fitting import fit as fit_model

    _check_seconds(seconds)
    if out is not None:
        _check_out(out)
    if _is_study(source):
        with _opened(source, setting) as study:
            supernet = study.supernet
            with progress("latency model", PROGRESS) as step:
                model = fit_model(
                    supernet.backbone, supernet.target, supernet.space, budget_s=seconds, seed=seed, step=step
                )
            study.store(model)
            where = study.where
    else:
        if out is None:
            raise UserError(f"a config has no database to keep a latency model of {source}: name a file with --out")
        from sparsevit.latency.target import Target, parse_size
        from sparsevit.sparsity import SparsitySpace

        target = Target(device, threads, dtype, batch, parse_size(size), engine).resolve()
        backbone, _ = load_subject(source, checkpoint, "backbone", "latency fit")
        space = SparsitySpace(backbone.depths)  # type: ignore[arg-type]
        with progress("latency model", PROGRESS) as step:
            model = fit_model(backbone, target, space, budget_s=seconds, seed=seed, step=step)
        where = str(out)
    if out is not None:
        _write(out, model)
    _print_model(model)
    console.print(f"stored in {where}", markup=False)


@app.command()
def check(
    source: Source,
    checkpoint: Checkpoint = None,
    model: Annotated[Path | None, typer.Option(help="The model's JSON file; needed with a config.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="How many random configurations to measure.")] = 40,
    seconds: Seconds = None,
    seed: Seed = 2,
    setting: Settings = None,
) -> None:
    """Measure new random configurations, and say how far off the model's predictions are.

    None of them had a part in the fit or in its own check. Exit code 1 if the mean error is above the limit of the
    study file, or of the kind of target.

    Example: sparsevit latency check studies/digits.toml --count 40
    """
    from sparsevit.latency.fitting import PROGRESS
    from sparsevit.latency.fitting import check as check_model
    from sparsevit.latency.model import error_limit, error_of

    _check_seconds(seconds)
    limit = None
    if _is_study(source):
        with _opened(source, setting) as study:
            backbone, limit = study.supernet.backbone, study.limit
            found = study.model() if model is None else _read(model)
    else:
        if model is None:
            raise UserError(f"a config has no database to keep a latency model of {source}: name its file with --model")
        found = _read(model)
        backbone, _ = load_subject(source, checkpoint, found.target.scope, "latency check")
    _require_same(found, backbone)
    with progress("checking", PROGRESS) as step:
        checks = check_model(found, backbone, count, budget_s=seconds, seed=seed, step=step)
    error = error_of(checks)
    limit = error_limit(found.target) if limit is None else limit
    console.print(f"\n{found.environment['device']}, {found.target}", markup=False)
    _print_errors(error, len(checks))
    if error.mean > limit:
        console.print(f"the mean error is above {limit:.1%}: fit again, or close what else runs on the machine")
        raise typer.Exit(1)


@app.command()
def show(
    source: Annotated[
        str, typer.Argument(metavar="STUDY.toml|URL|FILE.json", help="A study file, a database, or a model's file.")
    ],
    setting: Settings = None,
) -> None:
    """Show stored latency models: target, environment, what each layer and ratio adds, error and age.

    Says where the environment has changed since.

    Example: sparsevit latency show studies/digits.toml
    """
    from sparsevit.latency.model import LatencyModel, OldModelError

    if "://" not in source and not _is_study(source):
        _print_model(_read(Path(source)))
        return
    from sparsevit.search.ledger import all_latency_models
    from sparsevit.search.spec import StudySpec
    from sparsevit.search.storage import shown, storage_at

    url = source if "://" in source else StudySpec.load(source, setting or []).url()
    with storage_at(url, create=False) as storage:
        texts = all_latency_models(storage.engine)
    if not texts:
        raise UserError(f"{shown(url)} keeps no latency model: sparsevit latency fit makes one")
    for text in texts:
        try:
            _print_model(LatencyModel.from_json(text))
        except OldModelError as error:
            console.print(f"\n{error}", markup=False)


@dataclass(frozen=True)
class _Study:
    """A study's supernet and ledger."""

    supernet: Supernet
    ledger: Ledger
    limit: float | None
    where: str

    def store(self, model: LatencyModel) -> None:
        from sparsevit.search.latency import store

        store(self.supernet, self.ledger, model)

    def model(self) -> LatencyModel:
        from sparsevit.latency.model import LatencyModel
        from sparsevit.search.ledger import space_key

        text = self.ledger.latency_model(space_key(self.supernet.space))
        if text is None:
            raise UserError(
                f"{self.where} keeps no latency model of {self.supernet.target} in this environment: "
                "sparsevit latency fit makes one"
            )
        return LatencyModel.from_json(text)


@contextmanager
def _opened(source: str, setting: list[str] | None) -> Iterator[_Study]:
    from sparsevit.folders import check_folder
    from sparsevit.search.factory import open_supernet
    from sparsevit.search.ledger import Ledger
    from sparsevit.search.spec import StudySpec
    from sparsevit.search.storage import check_storage, shown, storage_at

    spec = StudySpec.load(source, setting or [])
    check_folder(spec.folder())
    check_storage(spec.url())
    supernet = open_supernet(spec)
    with storage_at(spec.url()) as storage:
        ledger = Ledger(storage.engine, supernet.subject)
        yield _Study(supernet, ledger, spec.latency.error_limit, shown(spec.url()))


def _is_study(source: str) -> bool:
    return source.endswith(".toml")


def _check_seconds(seconds: float | None) -> None:
    if seconds is not None and not 0 < seconds < float("inf"):
        raise UserError(f"--seconds {seconds:g} is no time to measure in: give seconds above 0")


def _check_out(out: Path) -> None:
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"cannot write {out}: " + ("it is a folder" if out.is_dir() else f"no folder {out.parent}"))


def _read(file: Path) -> LatencyModel:
    from sparsevit.latency.model import LatencyModel

    try:
        return LatencyModel.from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"cannot read the latency model {file}: {reason}") from None
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _write(out: Path, model: LatencyModel) -> None:
    part = out.with_name(f".{out.name}.part")
    part.write_text(model.to_json() + "\n", encoding="utf-8")
    part.replace(out)


def _require_same(model: LatencyModel, backbone: nn.Module) -> None:
    """See that a model is of this backbone, on this machine.

    Raises:
        UserError: if not; says what differs.
    """
    from sparsevit.latency.environment import difference, environment

    if tuple(backbone.depths) != model.space.depths:  # type: ignore[arg-type]
        raise UserError(f"the latency model is of depths {model.space.depths}, but the backbone has {backbone.depths}")
    changed = difference(model.environment, environment(model.target))
    if changed:
        raise UserError(f"the latency model is stale: its environment was another ({changed}); fit it again")


def _print_model(model: LatencyModel) -> None:
    from rich.table import Table

    from sparsevit.cli.tables import print_whole
    from sparsevit.latency.environment import difference, environment

    console.print(f"\n{model.environment['device']}, {model.target}", markup=False)
    facts = ", ".join(f"{name} {value}" for name, value in model.environment.items() if name != "device")
    console.print(f"environment: {facts}", markup=False)
    try:
        changed = difference(model.environment, environment(model.target))
    except UserError as error:
        changed = str(error)
    if changed:
        console.print(f"stale: this is another environment now ({changed}); searches here fit a model of their own")
    console.print(
        f"fitted {_age(model.created)} ago to {len(model.cells)} measurements in {model.seconds:.0f} s; "
        f"dense {model.dense.median_ms:.4g} ms measured",
        markup=False,
    )
    kept = model.space.kept_table(model.windows)
    titles = ["the device computes, ms", "the host launches, ms"]
    for title, terms in zip(titles, model.terms, strict=False):
        table = Table(title=title if len(model.terms) > 1 else None, box=None, pad_edge=False, title_justify="left")
        table.add_column("layer", no_wrap=True)
        table.add_column("windows", justify="right")
        for value in model.space.grid:
            table.add_column(f"{value:f}", justify="right", no_wrap=True)
        for name, row, counts in zip(model.space.layer_names, terms.cells, kept, strict=True):
            table.add_row(name, str(counts.max()), *(f"{change:+.3g}" if change else "0" for change in row))
        for stage, row in enumerate(terms.repeats, 1):
            if any(row):
                table.add_row(f"s{stage} repeated", "", *(f"{change:+.3g}" if change else "0" for change in row))
        print_whole(table)
    if len(model.terms) > 1:
        console.print("the larger of the two sums is the latency")
    console.print(f"each entry: what pruning a layer so far adds to {model.terms[0].dense_ms:.4g} ms, by the model")
    _print_errors(model.error, len(model.held_out))


def _print_errors(error: LatencyError, count: int) -> None:
    if error.worst is None:
        console.print("error: nothing was held out to tell it")
        return
    worst = error.worst
    console.print(
        f"error on {count} held-out configurations: {error.mean:.2%} in the mean, {error.largest:.2%} at most, "
        f"Kendall's tau {error.tau:.3f}"
    )
    console.print(
        f"worst: {worst.sparsity}, {worst.predicted_ms:.4g} ms predicted, {worst.measured_ms:.4g} ms measured",
        markup=False,
    )


def _age(created: str) -> str:
    """`3 minutes`, `5 hours`, `12 days`; `some time` where nobody knows."""
    from datetime import UTC, datetime

    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    except (ValueError, TypeError):
        return "some time"
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"
