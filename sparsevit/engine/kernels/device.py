"""What a kernel may use of the device it runs on."""

from __future__ import annotations

from functools import cache

import torch


@cache
def is_hopper(device: torch.device) -> bool:
    """Whether it has what came with compute capability 9.0: dependent launches, bulk prefetches, tensor maps."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def is_sm90(device: torch.device) -> bool:
    """Whether it is of compute capability 9.0 and no later one: code for all of its instructions runs nowhere else."""
    return is_hopper(device) and torch.cuda.get_device_capability(device) == (9, 0)


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have; Triton's interpreter on a CPU sets no limit."""
    if device.type != "cuda":
        return 1 << 30
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block))


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; 1 elsewhere."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
