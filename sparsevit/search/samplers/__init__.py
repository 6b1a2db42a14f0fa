"""The samplers that a study file names. All propose only feasible configurations that were never tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, get_args

from sparsevit.errors import UserError

if TYPE_CHECKING:
    from sparsevit.search.candidates import Candidates
    from sparsevit.search.samplers.base import CandidateSampler

SamplerName = Literal["surrogate", "nsga2", "tpe", "gp", "random", "paper"]
NAMES: tuple[SamplerName, ...] = get_args(SamplerName)


def check_sampler(name: SamplerName) -> None:
    """Raises: UserError: if a package is missing that this sampler needs."""
    if name == "gp" and find_spec("scipy") is None:
        raise UserError("search.sampler = 'gp' needs scipy: pip install scipy, or choose 'surrogate'")


def make_sampler(
    name: SamplerName,
    candidates: Candidates,
    *,
    population: int,
    seed: int,
    accept: Callable[[int], bool] | None = None,
    refused: Iterable[int] = (),
) -> CandidateSampler:
    """The sampler of that name.

    Args:
        name: `surrogate` (a model of accuracy), `nsga2` (Optuna's NSGA-II), `tpe`, `gp` and `random` (Optuna's own), or
            `paper` (the evolution of the paper's code).
        candidates: what may be proposed.
        population: trials of a generation of `nsga2`; the others have none, or their own.
        seed: of the study.
        accept: see `CandidateSampler`.
        refused: rows known to be refused already.

    Raises:
        UserError: if a package is missing that this sampler needs.
    """
    check_sampler(name)
    # Each is loaded where it is used: the study file needs nothing but the names.
    if name == "surrogate":
        from sparsevit.search.samplers.surrogate import SurrogateSampler

        return SurrogateSampler(candidates, seed=seed, accept=accept, refused=refused)
    if name == "nsga2":
        from sparsevit.search.sampler import SparsitySampler

        return SparsitySampler(candidates, population=population, seed=seed, accept=accept, refused=refused)
    if name == "paper":
        from sparsevit.search.samplers.paper import PaperSampler

        return PaperSampler(candidates, seed=seed, accept=accept, refused=refused)
    from sparsevit.search.samplers.wrapped import WrappedSampler

    return WrappedSampler(candidates, name, seed=seed, accept=accept, refused=refused)
