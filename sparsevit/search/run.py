"""One search from the study file to its results. Whatever is in the database already is not paid for again."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sparsevit.console import console, progress
from sparsevit.errors import UserError
from sparsevit.latency import timing
from sparsevit.latency.environment import allowed_cpus
from sparsevit.search.child import start_child
from sparsevit.search.claims import Claims
from sparsevit.search.duration import duration_text
from sparsevit.search.export import export_best
from sparsevit.search.factory import Supernet
from sparsevit.search.ledger import Ledger
from sparsevit.search.load import assemble
from sparsevit.search.objective import PaidAccuracy
from sparsevit.search.patience import AWAY, patiently
from sparsevit.search.pool import Pool, Process, share
from sparsevit.search.prepare import Prepared, prepared
from sparsevit.search.results import StudyResults
from sparsevit.search.selection import to_confirm
from sparsevit.search.trials import run_trials
from sparsevit.search.urls import variables
from sparsevit.search.worker import GRACE_S, Presence, Watch, stuck_workers

if TYPE_CHECKING:
    from sparsevit.latency.model import LatencyModel
    from sparsevit.search.evaluator import Evaluator
    from sparsevit.search.ray_pool import Cluster
    from sparsevit.search.spec import StudySpec

Finish = Callable[[Study, StudyResults, "Evaluator"], None]
"""What else is done with a study that is confirmed."""


def search(
    spec: StudySpec,
    *,
    trials: int | None = None,
    out: str | Path | None = None,
    then: Finish | None = None,
    workers: int | None = None,
    grace_s: float = GRACE_S,
    ray: str | None = None,
) -> StudyResults:
    """Run a study until so many trials are finished, or go on with it; confirm its front and export its best.

    A run that is interrupted loses at most the evaluations in flight. One that is stopped confirms nothing.

    Args:
        spec: the study.
        trials: finished trials in total, in place of the study file's number.
        out: folder of the results, in place of the study file's.
        then: called with the results once the front is confirmed, while study and supernet are still open.
        workers: processes that work at once, in place of the study file's number; one works in this process.
        grace_s: seconds after which a worker that gives no sign counts as dead.
        ray: address of a Ray cluster, `auto` or `host:port`, whose machines the workers run on; each has a GPU of its
            own where the target is one.

    Raises:
        UserError: for whatever the user can set right; nothing half-written is left.
    """
    folder = spec.folder(out)
    with ExitStack() as stack:
        cluster = None if ray is None else stack.enter_context(_cluster(ray, spec.url(out)))
        ready = stack.enter_context(prepared(spec, trials, out))
        with Presence(ready.storage.engine, spec.name) as presence:
            count = _count(ready, workers or spec.search.workers, cluster)
            if count == 1 and cluster is None:
                _run_alone(ready, presence, grace_s)
            else:
                _run_pool(ready, presence, count, folder, grace_s, cluster)
        results = _results(ready)
        if presence.stopped:
            console.print(f"stopped after {len(results.trials)} of {ready.asked} trials: sparsevit resume goes on")
        else:
            _confirm(spec, ready.supernet, ready.ledger, ready.judge, results, ready.model)
            results = _results(ready)
        export_best(ready.supernet.evaluator, results, folder)
        if then is not None:
            then(ready.study, results, ready.supernet.evaluator)
    return results


def work(
    spec: StudySpec,
    *,
    trials: int | None = None,
    out: str | Path | None = None,
    grace_s: float = GRACE_S,
    stopped: Callable[[], bool] = lambda: False,
    waiting: bool = False,
) -> None:
    """Work on a study beside others until it has so many finished trials; the first that comes prepares it.

    SIGTERM, and `sparsevit stop`, end it after the trial it is at. It confirms nothing: `search` does, in the end.

    Args:
        spec: the study; the same for all.
        trials: as for `search`; likewise `out` and `grace_s`.
        stopped: asked between trials whether to stop.
        waiting: wait for a database that is away from the start.

    Raises:
        UserError: for whatever the user can set right.
    """
    with prepared(spec, trials, out, waiting=waiting) as ready, Presence(ready.storage.engine, spec.name) as presence:
        before = signal.signal(signal.SIGTERM, lambda *_: presence.stop())
        try:
            _run_alone(ready, presence, grace_s, stopped)
        finally:
            signal.signal(signal.SIGTERM, before)


def _cluster(address: str, url: str) -> Cluster:
    from sparsevit.search.ray_pool import Cluster

    return Cluster(address, url)


def _count(ready: Prepared, workers: int, cluster: Cluster | None) -> int:
    """How many workers there may be: where candidates are measured, only as many as have a GPU each."""
    target = ready.supernet.target
    if workers > 1 and target.on_gpu and target.device != "cuda:0":
        raise UserError(
            f"target.device is {target.device}: with several workers write cuda:0, each takes a GPU in turn"
        )
    on_gpus = len(_gpus()) if cluster is None else workers
    most = on_gpus if target.on_gpu else 1
    if ready.record.measured and workers > most:
        console.print(
            f"note: each candidate is measured, and workers would disturb each other: {most} instead of {workers}"
        )
        return most
    return workers


def _todo(ready: Prepared) -> tuple[int, int]:
    """Finished trials, and how many there are still to do; says what the user may not expect."""
    study, asked = ready.study, ready.asked
    done = len(_complete(study))
    if done:
        console.print(f"study {study.study_name}: goes on after {done} finished trials; nothing is evaluated again")
    running = len(patiently(lambda: study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))))
    free = patiently(lambda: ready.objective.sampler.free(study)) + running
    if done + free < asked:
        console.print(
            f"note: only {len(ready.candidates)} configurations within the bounds keep different windows, "
            f"so the search ends after {done + free} trials"
        )
    return done, min(asked - done, free)


def _run_alone(
    ready: Prepared, presence: Presence, grace_s: float, stopped: Callable[[], bool] = lambda: False
) -> None:
    """Finish trials in this process until there are as many as asked for, none is left, or the time is over."""
    done, todo = _todo(ready)
    if todo <= 0:
        return
    over = _deadline(ready)
    claims = Claims(ready.storage, ready.study.study_name, ready.objective.sampler, Watch(grace_s, presence.clock))
    with progress("search", todo) as step:
        run_trials(
            claims,
            ready.objective,
            ready.judge,
            images=ready.record.images,
            asked=ready.asked,
            stopped=lambda: presence.stopped or stopped() or over() <= 0,
            finished=_note_best(ready, step),
        )
    _say_time(ready, over, done + todo)


def _run_pool(
    ready: Prepared, presence: Presence, count: int, folder: Path, grace_s: float, cluster: Cluster | None
) -> None:
    """The same in processes of their own, here or on a cluster, which this one starts and watches."""
    done, todo = _todo(ready)
    if todo <= 0:
        return
    over = _deadline(ready)
    target = ready.supernet.target
    # The threads that evaluate are shared out; those that a latency is of are not the worker's to choose.
    fixed = ready.spec.target.model_copy(update={"device": target.device, "threads": target.threads})
    watch = Watch(grace_s, presence.clock)

    def log(rank: int) -> Path:
        return folder / "workers" / f"{rank}.log"

    place = _here(count, log, gpu=target.on_gpu)
    if cluster is not None:
        named = {name: os.environ[name] for name in variables(ready.spec.storage.url or "")}
        place = cluster.starter(count, gpu=target.on_gpu, environment=named, log=log)

    def start(rank: int) -> Process:
        left = None if ready.spec.search.time_limit is None else max(over(), 1e-3)
        searching = ready.spec.search.model_copy(update={"time_limit": left})
        spec = ready.spec.model_copy(update={"target": fixed, "search": searching})
        arguments = {"spec": spec, "trials": ready.asked, "out": folder, "grace_s": grace_s}
        return place(rank, arguments)

    whose = "a worker, whose log is" if count == 1 else f"{count} workers, whose logs are"
    where = "" if cluster is None else ", each on its machine of the Ray cluster"
    console.print(f"{whose} in {folder / 'workers'}{where}", markup=False)
    with progress("search", todo) as step:
        shown = done

        def finished() -> int:
            nonlocal shown
            with suppress(*AWAY):  # workers wait for the database, and say when they give up
                complete = ready.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
                if len(complete) > shown:
                    step(len(complete) - shown, note=_note(ready, _best(complete)))
                    shown = len(complete)
            return shown

        def stuck() -> set[str]:
            with suppress(*AWAY):
                return stuck_workers(ready.storage.engine, watch)
            return set()

        pool = Pool(start, count)
        pool.run(
            finished=finished,
            stopped=lambda: presence.stopped,
            stuck=stuck,
            grace_s=grace_s,
        )
    _say_time(ready, over, done + todo)


def _here(count: int, log: Callable[[int], Path], *, gpu: bool) -> Callable[[int, Mapping[str, Any]], Process]:
    """What starts the worker of a rank on this machine."""
    environments = share(count, gpus=_gpus() if gpu else [], cpus=len(allowed_cpus()))
    return lambda rank, arguments: start_child(arguments, environments[rank], log(rank))


def _deadline(ready: Prepared) -> Callable[[], float]:
    """Tells the seconds that are left of the study file's time limit."""
    end = time.monotonic() + (ready.spec.search.time_limit or math.inf)
    return lambda: end - time.monotonic()


def _say_time(ready: Prepared, over: Callable[[], float], wanted: int) -> None:
    seconds, finished = ready.spec.search.time_limit, len(_complete(ready.study))
    if seconds is not None and over() <= 0 and finished < wanted:
        console.print(
            f"search.time_limit of {duration_text(seconds)} is over after {finished} of {wanted} trials; the same "
            "again goes on"
        )


def _gpus() -> list[str]:
    """The GPUs that this process may use, as workers are told theirs."""
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",") if listed else [str(index) for index in range(torch.cuda.device_count())]


def _note_best(ready: Prepared, step: Callable[..., None]) -> Callable[[tuple[float, float]], None]:
    """What moves the progress bar after a trial, with the best one so far behind it."""
    best = _best(_complete(ready.study))

    def finished(values: tuple[float, float]) -> None:
        nonlocal best
        best = max(best, (values[0], -values[1]))
        step(note=_note(ready, best))

    return finished


def _best(complete: list[FrozenTrial]) -> tuple[float, float]:
    """Of the most accurate trial, the fastest of several, what `_note` shows."""
    return max(((one.values[0], -one.values[1]) for one in complete), default=(-math.inf, 0.0))


def _note(ready: Prepared, best: tuple[float, float]) -> str:
    return f"best {ready.record.metric} {best[0]:.3f} at {-best[1]:.4g} ms"


def _complete(study: Study) -> list[FrozenTrial]:
    return patiently(lambda: study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _results(ready: Prepared) -> StudyResults:
    return patiently(lambda: assemble(ready.study, ready.record, ready.storage))


def _confirm(
    spec: StudySpec, supernet: Supernet, ledger: Ledger, judge: PaidAccuracy, results: StudyResults, model: LatencyModel
) -> None:
    """Evaluate the front, or as much of it as was asked for, on the images that confirm, and measure it."""
    images = spec.accuracy.confirm_images
    chosen = to_confirm(results.front, results.metric, spec.search.confirm)
    known = ledger.accuracies([one.sparsity for one in chosen], images)
    unpaid = [one for one, found in zip(chosen, known, strict=True) if found is None]
    if unpaid:
        with progress("confirm accuracy", len(unpaid)) as step:
            for one in unpaid:
                judge(one.sparsity, images)
                step()
    timed = ledger.latencies([one.sparsity for one in chosen])
    untimed = [one.sparsity for one, found in zip(chosen, timed, strict=True) if found is None]
    if untimed:
        with progress("confirm latency", timing.PROGRESS) as step:
            # What the device has drifted since the model was fitted is not these configurations' own.
            before = model.known(len(untimed))
            found = timing.measure(supernet.backbone, supernet.target, untimed, known=before, step=step)
        for sparsity, timed_now in zip(untimed, found, strict=True):
            ledger.put_latency(sparsity, timed_now)
