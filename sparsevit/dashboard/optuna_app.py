"""Stock optuna-dashboard as a WSGI application, with one thing set right: its best trials are within the bounds.

Release 0.21 takes the best trials of a multi-objective study without a look at constraints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsevit.errors import MissingExtraError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from optuna.storages import BaseStorage, RDBStorage

_DETAIL = re.compile(r"/api/studies/(\d+)/?")


def optuna_app(storage: RDBStorage, artifacts: Path) -> WSGIApplication:
    """optuna-dashboard over a database.

    Args:
        storage: an open database; its schema is there.
        artifacts: folder of the studies' artifacts, which need not be there yet.

    Raises:
        MissingExtraError: if optuna-dashboard is not installed.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise MissingExtraError("optuna-dashboard", "dashboard") from None
    from optuna.artifacts import FileSystemArtifactStore
    from optuna.storages import get_storage

    # With Optuna's cache a poll reads only the trials that were not finished at the one before.
    cached = get_storage(storage)
    stock: WSGIApplication = wsgi(cached, artifact_store=FileSystemArtifactStore(artifacts))

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        asked = _DETAIL.fullmatch(environ.get("PATH_INFO", ""))
        if asked is None or environ.get("REQUEST_METHOD") != "GET":
            return stock(environ, start_response)
        return _changed(stock, environ, start_response, lambda study: _with_best_trials(study, cached, int(asked[1])))

    return application


def _changed(
    stock: WSGIApplication,
    environ: WSGIEnvironment,
    start_response: StartResponse,
    change: Callable[[dict[str, Any]], dict[str, Any]],
) -> list[bytes]:
    """The answer of `stock` with its JSON changed, unless it is an error."""
    started: list[Any] = []

    def keep(status: str, headers: list[tuple[str, str]], error: Any = None) -> Callable[[bytes], object]:
        started[:] = [status, headers]
        return lambda _: None

    parts = stock(environ, keep)
    try:
        body = b"".join(parts)
    finally:
        if hasattr(parts, "close"):
            parts.close()
    status, headers = started
    if status.startswith("200"):
        body = json.dumps(change(json.loads(body))).encode()
        headers = [pair for pair in headers if pair[0].lower() != "content-length"]
        headers.append(("Content-Length", str(len(body))))
    start_response(status, headers)
    return [body]


def _with_best_trials(answer: dict[str, Any], storage: BaseStorage, study: int) -> dict[str, Any]:
    """A study as optuna-dashboard describes it, its best trials being those that Optuna itself calls best."""
    from optuna.study._multi_objective import _get_pareto_front_trials_by_trials
    from optuna.trial import TrialState
    from optuna_dashboard._serializer import serialize_frozen_trial

    directions = storage.get_study_directions(study)
    if len(directions) == 1 or answer.get("is_preferential"):
        return answer
    trials = storage.get_all_trials(study, deepcopy=False, states=(TrialState.COMPLETE,))
    attributes = storage.get_study_system_attrs(study)
    best = _get_pareto_front_trials_by_trials(trials, directions, consider_constraint=True)
    return answer | {"best_trials": [serialize_frozen_trial(study, one, attributes) for one in best]}
