"""Opens or creates the Optuna study, and refuses one with other settings."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection

from sparsevit import __version__
from sparsevit.errors import UserError
from sparsevit.search.evaluator import Described
from sparsevit.search.record import RECORD, WISHES, StudyRecord, Wishes, read_record, read_wishes
from sparsevit.search.storage import accept_experimental

if TYPE_CHECKING:
    from sparsevit.search.factory import Supernet
    from sparsevit.search.spec import StudySpec

DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
LATENCY, MEASURED_LATENCY = "predicted latency (ms)", "measured latency (ms)"
"""Names of the second objective; the first is named after its metric."""


def find_study(storage: RDBStorage, name: str) -> Study | None:
    """The study of that name, to read or to go on with; its sampler is not ours."""
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None


def open_study(storage: RDBStorage, name: str, record: StudyRecord, wishes: Wishes, sampler: BaseSampler) -> Study:
    """The study of that name with its sampler, made if there is none.

    Raises:
        UserError: if there is one with other objectives.
    """
    study = optuna.create_study(
        study_name=name, storage=storage, directions=DIRECTIONS, sampler=sampler, load_if_exists=True
    )
    if study.directions != list(DIRECTIONS):
        raise UserError(f"the study {name!r} was not made by sparsevit: give yours another name")
    if read_record(study) is None:
        with accept_experimental():
            study.set_metric_names([record.metric, MEASURED_LATENCY if record.measured else LATENCY])
        study.set_user_attr(RECORD, record.model_dump(mode="json"))
    if read_wishes(study) != wishes:
        study.set_user_attr(WISHES, wishes.model_dump(mode="json"))
    return study


def fingerprint(spec: StudySpec, supernet: Supernet) -> dict[str, str]:
    """What makes two runs the same study, by the keys of the study file; bounds as they are written there."""
    space = supernet.space
    return {
        "space.ratios": ",".join(f"{value:f}" for value in space.grid),
        "space.depths": ",".join(map(str, space.depths)),
        "space.layers": str(supernet.restriction),
        "target": str(supernet.target),
        **_prefixed("environment", supernet.environment),
        "backbone": supernet.subject.backbone[:12],
        **_prefixed("supernet", supernet.identity),
        "latency.max": str(spec.latency.max),
        "latency.min": "none" if spec.latency.min is None else str(spec.latency.min),
        "accuracy.metric": spec.accuracy.metric,
        "accuracy.images": str(spec.accuracy.images or "all"),
    }


def provenance(spec: StudySpec, supernet: Supernet) -> dict[str, str]:
    """For people: where the figures of a study come from."""
    packages = ("torch", "optuna", "numpy")
    described = supernet.evaluator
    return {
        "sparsevit": __version__,
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "seed": str(spec.search.seed),
        "target": str(supernet.target),
        **_prefixed("environment", supernet.environment),
        **_prefixed("supernet", supernet.identity),
        **_prefixed("supernet", described.description() if isinstance(described, Described) else {}),
    }


def _prefixed(prefix: str, values: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}.{key}": value for key, value in values.items()}
