"""Loading mmdet data sets so that what is random depends on seed, epoch and index alone.

Worker processes live through many epochs, and a resumed run starts new ones: whatever they drew from generators of
their own would differ from an uninterrupted run. Here every image seeds the generators that transforms draw from.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from mmcv.parallel import collate
from mmdet.datasets.samplers import DistributedGroupSampler, GroupSampler
from torch.utils.data import DataLoader, Dataset, Sampler


def seeded_loader(dataset: Any, batch: int, workers: int, rank: int, ranks: int, seed: int) -> DataLoader[Any]:
    """mmdet's own loader of a training data set, of this rank's share, with repeatable randomness.

    Args:
        batch: images of a batch, on each rank.
    """
    return DataLoader(
        SeededImages(dataset, seed),
        batch_size=batch,
        sampler=EpochSampler(group_sampler(dataset, batch, rank, ranks, seed)),
        num_workers=workers,
        collate_fn=partial(collate, samples_per_gpu=batch),
        persistent_workers=workers > 0,
        generator=own_generator(),
    )


def own_generator() -> torch.Generator:
    """For a loader that keeps its workers: it draws a number when it starts them, in the first epoch of a run alone.

    From the common generator, that draw would set a resumed run apart from an uninterrupted one.
    """
    return torch.Generator()


def group_sampler(dataset: Any, batch: int, rank: int, ranks: int, seed: int) -> Any:
    """mmdet's order of images: shuffled, wide and tall ones in batches of their own, every rank others.

    On one rank it is drawn from numpy's generator, which `SeedEpochs` seeds.
    """
    return (
        DistributedGroupSampler(dataset, batch, ranks, rank, seed=seed) if ranks > 1 else GroupSampler(dataset, batch)
    )


class SeededImages(Dataset[Any]):
    """A data set indexed by epoch and index; its attributes are those of the data set inside."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed % 2**63

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        epoch, index = place
        with drawing(np.random.SeedSequence((self.seed, epoch, index))):
            return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not yet there, while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


class EpochSampler(Sampler[tuple[int, int]]):
    """Indices of a sampler with the epoch beside each, for workers that live through many epochs."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self._epoch, int(index)) for index in self._sampler)


@contextmanager
def drawing(draws: np.random.SeedSequence) -> Iterator[None]:
    """Seeds the generators that mmdet's transforms draw from, and puts them back."""
    generator = torch.default_generator
    before = random.getstate(), np.random.get_state(), generator.get_state()
    words = draws.generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        generator.set_state(before[2])
