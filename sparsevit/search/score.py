"""What is maximised: one metric of the evaluator, or the mean of several, kept under their joined names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

JOIN = "+"


def joined(names: Sequence[Any]) -> str:
    """`bbox_mAP+segm_mAP` for two names.

    Raises:
        ValueError: if there is none, one is no text, or one is named twice.
    """
    if not names or not all(isinstance(one, str) and one.strip() for one in names):
        raise ValueError("name one metric or more, each as a text")
    if len(set(names)) < len(names):
        raise ValueError("a metric is named twice")
    return JOIN.join(names)


def parts(metric: str) -> tuple[str, ...]:
    """The metrics whose mean `metric` is."""
    return tuple(metric.split(JOIN))


def missing(metrics: Mapping[str, float], metric: str) -> list[str]:
    """The parts of `metric` that are not among an evaluator's."""
    return [] if metric in metrics else [one for one in parts(metric) if one not in metrics]


def scored(metrics: Mapping[str, float], metric: str) -> dict[str, float]:
    """`metrics` (fractions) with the one that is maximised first: it is one of them, or the mean of several."""
    if metric in metrics:
        return {metric: metrics[metric], **metrics}
    chosen = [metrics[one] for one in parts(metric)]
    return {metric: sum(chosen) / len(chosen), **metrics}
