"""Everything needed to run mmdet 2.28 and mmcv 1.7 on today's Python and PyTorch, in one place, each guarded.

Nothing here changes what a working installation does: where mmcv-full is installed its own ops stay in use, and only
tensors that they cannot read are copied for them.
"""

from __future__ import annotations

import logging
import warnings
from importlib.metadata import PackageNotFoundError, version

from sparsevit.errors import MissingExtraError, UserError

# Said while running, at every call of a sound old function.
_NOISE = (
    (FutureWarning, r".*torch\.cuda\.amp"),
    (UserWarning, r"torch\.meshgrid: in an upcoming release"),
)


def prepare() -> None:
    """Make `import mmdet` work here. Cheap, and safe to call again.

    Raises:
        MissingExtraError: if mmdet or mmcv is not installed.
        UserError: if another major version is.
    """
    for category, message in _NOISE:
        warnings.filterwarnings("ignore", message=message, category=category)
    if _installed("torchvision") is None:
        raise MissingExtraError("reading mmdet configs", "openmmlab")
    _require("mmdet", "2.28")
    if _installed("mmcv-full"):
        if _installed("mmcv"):
            raise UserError(
                "mmcv and mmcv-full are both installed and overwrite each other: "
                "pip uninstall -y mmcv mmcv-full, then install one of them"
            )
        _require("mmcv-full", "1.7")
    else:
        _require("mmcv", "1.7")
        from sparsevit.openmmlab import ops  # needs torchvision, so not before

        ops.serve_with_torchvision()
    # Where a compiler for CUDA is there but no GPU, the extension builder that mmcv imports says so.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with warnings.catch_warnings():  # notices about their own end and moved names, at import alone
        warnings.simplefilter("ignore")
        import mmdet.apis
        import mmdet.datasets
        import mmdet.models  # noqa: F401
    if _installed("mmcv-full"):
        from sparsevit.openmmlab.any_tensor import serve_any_tensor

        serve_any_tensor()


def quiet() -> None:
    """Keep mmcv and mmdet from logging every parameter's initialisation; warnings still show."""
    from mmcv.utils import get_logger

    for name in ("mmcv", "mmdet"):
        get_logger(name).setLevel(logging.WARNING)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _require(package: str, series: str) -> None:
    found = _installed(package)
    if found is None:
        raise MissingExtraError("reading mmdet configs", "openmmlab")
    if not found.startswith(series + "."):
        raise UserError(
            f"{package} {found} is installed, but {series}.x is needed: pip install '{package}~={series}.0'"
        )
