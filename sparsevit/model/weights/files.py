"""Checkpoint files: reading the tensors of any kind of them without executing anything, and writing them whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import shlex
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsevit.errors import UserError, first_line
from sparsevit.model.weights.formats import key_format

BUILTIN = "builtin:"
SUFFIXES = (".safetensors", ".pth", ".pt")
# What training programs keep the weights under; averaged ones first, as those are what they judge by.
_WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "module")
_PARALLEL = ("module.", "_orig_mod.")  # prefixes of a model wrapped for parallel training, and of a compiled one


def weights_path(name: str | Path) -> Path:
    """The file behind a checkpoint's name; `builtin:digits` is the supernet that comes with the package.

    Raises:
        UserError: if there is no such file.
    """
    text = str(name)
    if text.startswith(("http://", "https://")):
        raise UserError(f"checkpoint {text} is a web address: download it and give the file's path in its place")
    if text.startswith(BUILTIN):
        path = Path(__file__).parents[2] / "weights" / f"{text.removeprefix(BUILTIN)}.safetensors"
    else:
        path = Path(text)
    if path.is_dir():
        raise UserError(f"checkpoint {text} is a folder: give a file in it")
    if not path.is_file():
        raise UserError(f"checkpoint not found: {text}")
    return path


def read_weights(path: Path, *, trust: bool = False) -> dict[str, Tensor]:
    """A checkpoint's tensors by name, without what they are wrapped in.

    A safetensors file, or one that `torch.save` wrote: of a state dict, or of a dictionary that has it under a usual
    name. Where averaged weights (`ema`) lie beside others, they are taken.

    Args:
        trust: execute what the file says to, if it holds more than tensors and plain values.

    Raises:
        UserError: if it is neither, is damaged, or holds more than weights and is not trusted.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
        if _is_safetensors(path, start):
            from safetensors.torch import load_file

            return _named(load_file(path))
        _check_kind(path, start)
        content = _load(path, trust)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"{path} needs the Python module {error.name!r} to be read: install it") from error
    except Exception as error:  # whatever torch and safetensors make of a damaged file
        raise UserError(f"cannot read the checkpoint {path}: {first_line(error)}") from error
    weights = _unwrapped(content)
    if weights is None:
        raise UserError(f"{path} holds no state dict")
    return _named(weights)


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a file, whole or not at all: safetensors, or torch's by the suffix `.pth` or `.pt`.

    The latter is wrapped as programs expect that use these keys: below `model` for the original Swin's, else below
    `state_dict`.

    Raises:
        UserError: if the suffix is another one, or the file cannot be written.
    """
    check_suffix(path)
    tensors = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in weights.items()}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(tensors, temporary, metadata={"format": "pt"})
        else:
            torch.save({"model" if key_format(weights) == "swin" else "state_dict": tensors}, temporary)
        os.replace(temporary, path)
    except Exception as error:  # torch and safetensors have their own for what the system refuses
        raise UserError(f"cannot write {path}: {first_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_suffix(path: Path) -> None:
    """Raises UserError for a file name whose suffix says no kind of checkpoint."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"cannot tell what to write from the name {path}: end it in {', '.join(SUFFIXES)}")


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _load(path: Path, trust: bool) -> Any:
    if trust:
        return torch.load(path, map_location="cpu", weights_only=False)
    try:
        with torch.serialization.safe_globals(_numpy_numbers()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|function|class|type) ([\w.]+\.\w+)", str(error))
        what = f" ({named[1]})" if named else ""
        names = shlex.join([str(path), f"{path.stem}.safetensors"])
        raise UserError(
            f"{path} holds more than weights{what}, and reading that could run code; if you trust where it comes "
            f"from, take the weights out once: sparsevit convert {names} --trust-checkpoint"
        ) from error


def _numpy_numbers() -> list[Any]:
    """What a checkpoint may hold beside tensors without being code: numpy's numbers, as a best score is one.

    Under their present name and that of numpy before 2.0.
    """
    import numpy as np
    from numpy._core.multiarray import scalar

    types = [type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *types]


def _is_safetensors(path: Path, start: bytes) -> bool:
    """Whether the suffix or the content says so: the length of a header in JSON, then that header."""
    return path.suffix == ".safetensors" or (start[8:9] == b"{" and start[4:8] == b"\0\0\0\0")


def _check_kind(path: Path, start: bytes) -> None:
    """Refuse what is no file of torch's: an archive, or, before version 1.6, a pickle."""
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page, not a checkpoint: download the file itself")
    if text.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not a checkpoint: fetch the file with git lfs pull")
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is cut short or damaged: download or copy it again")
    if not start.startswith((b"PK", b"\x80\x02")):
        raise UserError(f"{path} is not a checkpoint: neither safetensors nor a file that torch.save wrote")


def _unwrapped(content: Any) -> Mapping[str, Tensor] | None:
    """The state dict in what a file holds, if there is one."""
    if isinstance(content, nn.Module):  # from a trusted file alone
        content = content.state_dict()
    if not isinstance(content, Mapping):
        return None
    for name in _WRAPPERS:
        if (inner := _unwrapped(content.get(name))) is not None:
            return inner
    whole = bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    return content if whole else None


def _named(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the model's own names: without wrappers' prefixes, and without averages kept beside them.

    mmdet's averaging hook keeps what it swapped with the weights as `ema_backbone_…`; the plain keys are the averages.
    """
    named = {_without_wrapper(key): value for key, value in weights.items()}
    beside = {"ema_" + key.replace(".", "_") for key in named}
    return {key: value for key, value in named.items() if key not in beside}


def _without_wrapper(key: str) -> str:
    while key.startswith(_PARALLEL):
        key = key.split(".", 1)[1]
    return key
