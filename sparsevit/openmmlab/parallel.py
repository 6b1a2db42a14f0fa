"""Running a detector's training step on one device, or on one rank of many."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from mmcv.parallel import DataContainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparsevit.errors import UserError
from sparsevit.openmmlab.step import total_loss

_Result = TypeVar("_Result")
BUCKET_MB = 64
"""Gradients averaged at once: few enough for the host, and enough that most travel during the backward pass."""
_PATIENCE = timedelta(hours=6)  # ranks wait for the first one while it evaluates


def init_ranks() -> tuple[int, int]:
    """Join the ranks that `torchrun` started, if any; returns rank and number of ranks.

    Several ranks may share a GPU (small models keep one busy from several processes); NCCL cannot do that, Gloo can.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return 0, 1
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank(), ranks
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    backend = "nccl" if torch.cuda.is_available() and local <= torch.cuda.device_count() else "gloo"
    torch.distributed.init_process_group(backend, timeout=_PATIENCE)
    return torch.distributed.get_rank(), ranks


def on_first_rank(function: Callable[[], _Result]) -> _Result | None:
    """What `function` returns on rank 0, None on the others, which wait for it. Without ranks, a plain call."""
    ranked = torch.distributed.is_initialized()
    result = function() if not ranked or torch.distributed.get_rank() == 0 else None
    if ranked:
        torch.distributed.barrier()
    return result


def leave_ranks() -> None:
    """End what `init_ranks` began."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def own_device(name: str | None = None) -> torch.device:
    """The device that `name` says; for `auto` or None this rank's GPU, or the CPU where there is none.

    Raises:
        UserError: if there is no such device.
    """
    name, count = name or "auto", torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if name in ("auto", "cuda") and count:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % count)
    elif name.startswith("cuda:") and name[5:].isdecimal() and int(name[5:]) < count:
        device = torch.device(name)
    else:
        raise UserError(f"device {name!r} is not there: torch sees {count or 'no'} CUDA device(s); write cpu or auto")
    torch.cuda.set_device(device)
    return device


def to_device(data: Any, device: torch.device) -> Any:
    """A batch on `device`, mmcv's containers opened. What describes its images, a list of dicts, stays as it is."""
    if isinstance(data, DataContainer):
        return data.data[0] if data.cpu_only else to_device(data.data[0], device)
    if isinstance(data, Tensor):
        return data.to(device, non_blocking=True)
    if isinstance(data, dict):
        return {key: to_device(value, device) for key, value in data.items()}
    if isinstance(data, list | tuple) and not (data and isinstance(data[0], dict)):
        return [to_device(value, device) for value in data]
    return data


def casting(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to `dtype`; nothing for None or float32."""
    return torch.autocast(device.type, dtype, enabled=dtype not in (None, torch.float32))


class OneDevice(nn.Module):
    """A detector on one device, as mmcv's runner wants it."""

    def __init__(self, module: nn.Module, device: torch.device, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.module = _placed(module, device)
        self.device = device
        self.autocast = autocast

    def train_step(self, data: dict[str, Any], optimizer: Any) -> dict[str, Any]:
        """Losses of one batch."""
        return _outputs(self.module, to_device(data, self.device), self.device, self.autocast)


class ManyRanks(DistributedDataParallel):
    """A detector on one rank of many. mmcv's own class of this kind relies on parts that PyTorch has removed."""

    def __init__(self, module: nn.Module, device: torch.device, autocast: torch.dtype | None = None) -> None:
        # No `device_ids`: batches are on the device, and looking through all they hold for what is not takes time.
        super().__init__(
            _placed(module, device), broadcast_buffers=False, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MB
        )
        self.own_device = device
        self.output_device = device  # type: ignore[assignment]  # where mmcv's log adds up memory over the ranks
        self.autocast = autocast

    def train_step(self, data: dict[str, Any], optimizer: Any) -> dict[str, Any]:
        """Losses of one batch; gradients are averaged over the ranks in the backward pass."""
        return _outputs(self, to_device(data, self.own_device), self.own_device, self.autocast)


def _placed(module: nn.Module, device: torch.device) -> nn.Module:
    """The model on its device; on a GPU with channels last in memory, which spares convolutions two copies each."""
    module = module.to(device)
    return module.to(memory_format=torch.channels_last) if device.type == "cuda" else module  # type: ignore[call-overload]


def _outputs(
    model: nn.Module, batch: dict[str, Any], device: torch.device, autocast: torch.dtype | None
) -> dict[str, Any]:
    """What the hooks of an iteration need: the loss, and figures to log that are still on the device."""
    with casting(device, autocast):
        loss, figures = total_loss(model(**batch))
    return {"loss": loss, "figures": figures, "num_samples": len(batch["img_metas"])}
