"""From the `[supernet]` table to an evaluator, and the names under which its figures are kept."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sparsevit.errors import UserError
from sparsevit.latency.target import Target, environment
from sparsevit.search.evaluator import EndToEnd, Evaluator, Identified
from sparsevit.search.ledger import Subject, digest
from sparsevit.search.restriction import Restriction
from sparsevit.search.spec import StudySpec, SupernetSpec
from sparsevit.search.spec_errors import nearest
from sparsevit.sparsity import SparsitySpace, windows_per_stage

if TYPE_CHECKING:
    from torch import nn

    from sparsevit.model.protocol import SparseBackbone

_FROM_TARGET = ("device", "dtype")
_METRICS = "metrics"


def load_evaluator(
    supernet: SupernetSpec, target: Target, folder: Path | None = None, metrics: Sequence[str] = ()
) -> Evaluator:
    """Call the factory that the study file names, with the rest of its table and the target's device and dtype.

    The current folder and `folder`, the study file's, are searched for the module too: a user's own file works there.
    A factory with a parameter `metrics` is told which ones the study asks for, and may compute no others.

    Raises:
        UserError: if there is no such factory, or it knows no such key.
    """
    factory = _factory(supernet.evaluator, [Path.cwd(), *([folder] if folder else [])])
    arguments = supernet.arguments | {"device": target.device, "dtype": target.dtype}
    if _METRICS in inspect.signature(factory).parameters:
        arguments[_METRICS] = tuple(metrics)
    _check_arguments(factory, supernet, arguments)
    evaluator: Evaluator = factory(**arguments)
    return evaluator


@dataclass(frozen=True)
class Supernet:
    """An evaluator, opened for one study on one target.

    Attributes:
        evaluator: judges a sparsity.
        backbone: what is timed: the backbone itself, or the detector around it, as the target's scope says.
        space: its configurations, over the whole grid.
        restriction: what the study lets layers take of it.
        target: resolved.
        environment: of that target on this machine, in words.
        identity: what accuracies depend on besides the sparsity, in words.
        subject: the same as the ledger has it.
    """

    evaluator: Evaluator
    backbone: nn.Module
    space: SparsitySpace
    restriction: Restriction
    target: Target
    environment: Mapping[str, str]
    identity: Mapping[str, str]
    subject: Subject


def open_supernet(spec: StudySpec) -> Supernet:
    """Build the supernet of a study on its target.

    Raises:
        UserError: if the factory or one of its keys is wrong, the target is not there, or the backbone has not a layer
            that the study names.
    """
    target = spec.target.target().resolve()
    evaluator = load_evaluator(spec.supernet, target, spec.settings.folder, spec.accuracy.metrics)
    backbone = timed_part(evaluator, target, spec.supernet.evaluator)
    shape = cast("SparseBackbone", backbone)
    space = spec.space.of(shape.depths)
    restriction = spec.space.restriction(space)
    identity = evaluator_identity(evaluator, spec.supernet)
    found = environment(target)
    windows = windows_per_stage(target.size, stages=len(space.depths), window=shape.window_size, patch=shape.patch_size)
    subject = Subject(
        size=target.size,
        windows=windows,
        evaluator=digest(identity),
        target=str(target),
        environment=digest(found),
        backbone=backbone_identity(backbone),
    )
    return Supernet(evaluator, backbone, space, restriction, target, found, identity, subject)


def timed_part(evaluator: Evaluator, target: Target, name: str) -> nn.Module:
    """What the target's latency is of: the evaluator's backbone, or its detector end to end.

    Raises:
        UserError: if the evaluator has no detector to time.
    """
    if target.scope == "backbone":
        return evaluator.backbone()
    if not isinstance(evaluator, EndToEnd):
        raise UserError(f"target.scope = 'detector', but {name} has no detector(): write backbone, or give it one")
    return evaluator.detector()


def evaluator_identity(evaluator: Evaluator, supernet: SupernetSpec) -> dict[str, str]:
    """What accuracies depend on besides the sparsity: the evaluator's own word, or else its factory and arguments.

    Files among the arguments count by content, so an evaluator without an `identity` is told apart by its weights too.
    """
    if isinstance(evaluator, Identified):
        return {"evaluator": supernet.evaluator, **evaluator.identity()}
    return {"evaluator": supernet.evaluator} | {key: _content(value) for key, value in supernet.arguments.items()}


def backbone_identity(backbone: nn.Module) -> str:
    """A hash of what a backbone's latency depends on: its class, its attributes of shape, and its tensors' shapes."""
    kind = type(backbone)
    tensors = {name: list(tensor.shape) for name, tensor in backbone.state_dict().items()}
    shape = {name: getattr(backbone, name, None) for name in ("depths", "window_size", "patch_size")}
    return digest([f"{kind.__module__}.{kind.__qualname__}", shape, tensors])


def _factory(name: str, folders: Sequence[Path]) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    for folder in map(str, folders):
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UserError(f"supernet.evaluator = {name!r}: there is no module {error.name}") from None
        raise
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise UserError(f"supernet.evaluator = {name!r}: module {module_name} has no function {attribute}")
    return factory  # type: ignore[no-any-return]


def _check_arguments(factory: Callable[..., Any], supernet: SupernetSpec, arguments: Mapping[str, Any]) -> None:
    parameters = inspect.signature(factory).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    named = {name for name, one in parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    for key in arguments:
        if key in _FROM_TARGET and key not in named:
            raise UserError(f"{supernet.evaluator} takes no argument {key!r}, which a search passes from its target")
        if key not in named:
            hint = nearest(key, named - {*_FROM_TARGET, _METRICS} | {"evaluator"})
            raise UserError(f"unknown key supernet.{key} for {supernet.evaluator}; {hint}")
    for name in sorted(named - set(arguments)):
        if parameters[name].default is inspect.Parameter.empty:
            raise UserError(f"supernet.{name} is missing: {supernet.evaluator} needs it")


def _content(value: Any) -> str:
    if isinstance(value, str) and Path(value).is_file():
        with Path(value).open("rb") as stream:
            return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
    return str(value)
