"""Artifacts of finished trials, as optuna-dashboard finds them: a file in a store, and an attribute of the study.

Optuna's own `upload_artifact` is for trials that run; a finished one cannot be written to any more.
"""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

from sparsevit.dashboard.report import write_bytes

if TYPE_CHECKING:
    from optuna.study import Study

ARTIFACTS = "artifacts"
"""Folder of a store, below that of a study's results."""


def attach(
    study: Study, number: int, name: str, make: Callable[[], bytes], folder: Path, *, renew: bool = True
) -> None:
    """Attach a file to a trial, in the place of an earlier one of that name; one that a person has deleted stays away.

    Args:
        study: open for writing.
        number: of the trial.
        name: of the file.
        make: its content; not called if the file is not wanted.
        folder: of the study's results.
        renew: make it again where it is there already.
    """
    trial = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    # The same for the same file, so that two workers, or two runs, leave one.
    identity = str(uuid5(NAMESPACE_URL, f"sparsevit:{study.study_name}/{number}/{name}"))
    key = f"dashboard:artifacts:{trial}:{identity}"
    known = study._storage.get_study_system_attrs(study._study_id)
    if known.get(key) == json.dumps(None):
        return
    path = folder / ARTIFACTS / identity
    if renew or not path.is_file():
        write_bytes(path, make())
    if key not in known:
        kind, encoding = mimetypes.guess_type(name)
        described = {"artifact_id": identity, "filename": name, "mimetype": kind, "encoding": encoding}
        study._storage.set_study_system_attr(study._study_id, key, json.dumps(described))
