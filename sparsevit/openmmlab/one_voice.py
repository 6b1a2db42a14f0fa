"""What goes wrong on all ranks of a training is said once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sparsevit.errors import UserError

_LEAVE_S = 1.0


@contextmanager
def one_voice() -> Iterator[None]:
    """Every rank runs the body, which talks to no other; a mistake is raised on the first rank that finds it.

    The other ranks, also those that found nothing, leave without a word and with the same exit code.
    """
    error: UserError | None = None
    try:
        yield
    except UserError as found:
        error = found
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        failed: list[bool] = [False] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(failed, error is not None)
        if any(failed) and failed.index(True) != torch.distributed.get_rank():
            time.sleep(_LEAVE_S)  # when one rank ends, torchrun stops the others, maybe before they have spoken
            raise SystemExit(2)
    if error is not None:
        raise error
