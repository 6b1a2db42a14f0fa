"""`sparsevit stop` and `sparsevit resume`: end a study's workers without losing what they are at, and go on."""

from __future__ import annotations

from sparsevit.cli.options import Grace, Out, Ray, Settings, StudyFile, Workers


def stop(study: StudyFile, out: Out = None, setting: Settings = None) -> None:
    """Ask all workers of a study, wherever they run, to end after the trial they are at.

    Example: sparsevit stop studies/digits.toml
    """
    from sparsevit.console import console
    from sparsevit.search.load import load_results
    from sparsevit.search.spec import StudySpec
    from sparsevit.search.storage import storage_at
    from sparsevit.search.worker import ask_to_stop

    spec = StudySpec.load(study, setting or [])
    load_results(spec, out=out)  # says it in one line if there is no such study
    with storage_at(spec.url(out)) as storage:
        count = ask_to_stop(storage.engine, spec.name)
    said = f"{count} asked to end after the trial at hand" if count else "nobody works on it"
    console.print(f"study {spec.name}: {said}; sparsevit resume goes on", markup=False)


def resume(
    study: StudyFile,
    out: Out = None,
    setting: Settings = None,
    workers: Workers = None,
    grace: Grace = None,
    ray: Ray = None,
) -> None:
    """Go on with a study to the number of trials it was last asked for. `search` does the same with a new number.

    Example: sparsevit resume studies/digits.toml --workers 4
    """
    from sparsevit.cli.search import search
    from sparsevit.search.load import load_results
    from sparsevit.search.spec import StudySpec

    asked = load_results(StudySpec.load(study, setting or []), out=out).trials_asked
    search(study, trials=asked, out=out, setting=setting, workers=workers, grace=grace, ray=ray)
