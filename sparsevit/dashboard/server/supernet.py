"""The supernet behind a study, opened only when a page needs it: for pictures of windows and for finetune configs."""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sparsevit.errors import UserError, first_line
from sparsevit.search.export import export
from sparsevit.search.results import StudyResults

if TYPE_CHECKING:
    from sparsevit.search.evaluator import Evaluator
    from sparsevit.search.scene import Scene
    from sparsevit.search.spec import StudySpec
    from sparsevit.sparsity import Sparsity

CACHED = 32
"""Scenes that are kept."""


class LoadingError(UserError):
    """The supernet is being opened: ask again."""


class LazySupernet:
    """Opens a study's supernet in the background at the first call, on the CPU, to leave the search its GPU."""

    def __init__(self, spec: StudySpec | None) -> None:
        self._spec = spec
        self._lock = threading.Lock()
        self._using = threading.Lock()
        self._opener: threading.Thread | None = None
        self._evaluator: Evaluator | None = None
        self._error = ""
        self._scenes: OrderedDict[tuple[str, int], Scene] = OrderedDict()

    def open(self, *, wait: bool = False) -> Evaluator:
        """The study's evaluator.

        Raises:
            LoadingError: while it is being opened, unless `wait` is set.
            UserError: if it cannot be.
        """
        if self._spec is None:
            raise UserError("the supernet is known to the study file alone: start with sparsevit dashboard STUDY.toml")
        with self._lock:
            if self._opener is None:
                self._opener = threading.Thread(target=self._open, args=(self._spec,), daemon=True)
                self._opener.start()
        if wait:
            self._opener.join()
        if self._error:
            raise UserError(f"the supernet cannot be opened: {self._error}")
        if self._evaluator is None:
            raise LoadingError("The supernet is being opened, which takes a few seconds.")
        return self._evaluator

    def scenes(self) -> int:
        """How many images there are to show."""
        from sparsevit.search.scene import Illustrated

        evaluator = self.open()
        return evaluator.scenes() if isinstance(evaluator, Illustrated) else 0

    def scene(self, sparsity: Sparsity, index: int) -> Scene:
        """What the subnet does with an image of its data set.

        Raises:
            UserError: if there is no such image, or this study's evaluator cannot show it.
        """
        from sparsevit.search.scene import Illustrated

        evaluator = self.open()
        if not isinstance(evaluator, Illustrated):
            raise UserError("this study's evaluator shows no images: it has no method scene")
        key = (str(sparsity), index)
        with self._using:
            if key not in self._scenes:
                if not 0 <= index < evaluator.scenes():
                    raise UserError(f"there is no image {index}: they go from 0 to {evaluator.scenes() - 1}")
                self._scenes[key] = evaluator.scene(sparsity, index)
                while len(self._scenes) > CACHED:
                    self._scenes.popitem(last=False)
            return self._scenes[key]

    def finetune_config(self, results: StudyResults, sparsity: Sparsity) -> str:
        """The text of the config that finetunes this configuration; it names its base by a path of this machine."""
        evaluator = self.open(wait=True)
        with self._using, tempfile.TemporaryDirectory() as folder:
            return export(evaluator, results, sparsity, Path(folder) / "finetune.py").read_text(encoding="utf-8")

    def _open(self, spec: StudySpec) -> None:
        from sparsevit.search.factory import load_evaluator

        target = replace(spec.target.target(), device="cpu", dtype="float32", engine="eager")
        try:
            self._evaluator = load_evaluator(spec.supernet, target)
        except UserError as error:
            self._error = str(error)
        except Exception as error:  # a user's own factory may raise anything, and the page has to say so
            self._error = first_line(error)
