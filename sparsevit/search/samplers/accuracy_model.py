"""A model of accuracy fitted on the trials so far: smooth in every layer's ratio, with a term for every pair of layers.

Bayesian linear regression. How strong its kinds of terms are, and how noisy accuracies are, is what makes the trials
likeliest (MacKay, "Bayesian Interpolation", 1992). Its cost depends on the number of terms, hardly on that of trials.
Legend: N configurations, L layers, R ratios, F terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NOISES = 10.0 ** np.arange(-5.0, 1.1, 0.5)
"""Variances of the noise to choose from, relative to those of the terms."""

PAIRS = (0.03, 0.3)
STEPS = (0.003, 0.1)
"""Standard deviations of the weights of pairs and of steps to choose from, those of a layer's own terms being 1."""

SHARED = 10.0
"""Standard deviation of the weights that all layers share: barely held back."""


@dataclass(frozen=True)
class AccuracyModel:
    """Predicts accuracies with their uncertainty.

    Attributes:
        ratios: the grid, scaled to end at 1, shape `(R,)`.
        weights: means of the weights, shape `(F,)`.
        root: a square root of their covariance, shape `(F, F)`.
        noise: standard deviation of an accuracy around what the terms make of it.
    """

    ratios: Array
    weights: Array
    root: Array
    noise: float

    @classmethod
    def fit(cls, ratios: Array, levels: NDArray[np.integer], accuracies: Array) -> AccuracyModel:
        """The likeliest model of some trials.

        Args:
            ratios: the grid, shape `(R,)`.
            levels: shape `(N, L)`.
            accuracies: shape `(N,)`.
        """
        ratios = ratios / max(float(ratios.max()), 1e-9)
        terms = _terms(ratios, levels)
        centre, scale = float(accuracies.mean()), max(float(accuracies.std()), 1e-9)
        values = (accuracies - centre) / scale
        gram, products = terms.T @ terms, terms.T @ values
        layers = levels.shape[1]
        priors = (_prior(layers, len(ratios), pairs, steps) for pairs, steps in product(PAIRS, STEPS))
        fits = (one for prior in priors for one in _posteriors(gram, products, values, prior))
        best = max(fits, key=lambda one: one.evidence)
        weights = best.weights * scale
        weights[0] += centre
        return cls(ratios, weights, best.root * scale, best.noise * scale)

    def predict(self, levels: NDArray[np.integer]) -> tuple[Array, Array]:
        """Expected accuracies of `levels`, shape `(N, L)`, and their deviations with the noise: shape `(N,)` each."""
        terms = _terms(self.ratios, levels)
        deviations: Array = np.sqrt(((terms @ self.root) ** 2).sum(axis=1) + self.noise**2)
        return terms @ self.weights, deviations

    def mean(self, levels: NDArray[np.integer]) -> Array:
        """Expected accuracies alone, which takes far less time: shape `(N, L)` to `(N,)`."""
        layers, ratios = levels.shape[1], self.ratios
        shared, curves, steps, pairs = np.split(self.weights, np.cumsum(_sizes(layers, len(ratios)))[:-1])
        own = ratios[:, None] * curves[:layers] + ratios[:, None] ** 2 * curves[layers:]
        own += (ratios[:, None] * shared[1] + ratios[:, None] ** 2 * shared[2]) / layers
        own[1:] += np.cumsum(steps.reshape(layers, -1), axis=1).T
        total = np.full(len(levels), shared[0])
        for layer in range(layers):
            total += own[:, layer][levels[:, layer]]
        for (first, second), weight in zip(combinations(range(layers), 2), pairs, strict=True):
            total += weight * (ratios[levels[:, first]] * ratios[levels[:, second]])
        return total


@dataclass(frozen=True)
class _Posterior:
    weights: Array
    root: Array
    noise: float
    evidence: float


def _posteriors(gram: Array, products: Array, values: Array, prior: Array) -> Iterator[_Posterior]:
    """The posterior of the weights for every noise, where `prior` are their standard deviations; by eigenvectors, so
    that all noises cost little more than one."""
    count, square = len(values), float(values @ values)
    eigenvalues, vectors = np.linalg.eigh(gram * np.outer(prior, prior))
    eigenvalues = eigenvalues.clip(0)
    along = vectors.T @ (prior * products)
    for noise in NOISES:
        shrunk = along / (eigenvalues + noise)
        # The scale of noise and weights together that is likeliest, with a little weight on 1.
        scale = (square - float(along @ shrunk) + 0.02 * noise) / noise / (count + 2)
        logs = np.log1p(eigenvalues / noise).sum() + count * np.log(noise * scale)
        root = prior[:, None] * vectors * np.sqrt(scale * noise / (eigenvalues + noise))
        yield _Posterior(prior * (vectors @ shrunk), root, float(np.sqrt(scale * noise)), -0.5 * float(logs))


def _sizes(layers: int, ratios: int) -> tuple[int, int, int, int]:
    """How many terms there are: shared, of curves, of steps, of pairs."""
    return 3, 2 * layers, layers * (ratios - 1), layers * (layers - 1) // 2


def _prior(layers: int, ratios: int, pairs: float, steps: float) -> Array:
    return np.repeat([SHARED, 1.0, steps, pairs], _sizes(layers, ratios))


def _terms(ratios: Array, levels: NDArray[np.integer]) -> Array:
    """Terms of `levels`, shape `(N, L)` to `(N, F)`.

    A constant, mean ratio and mean squared ratio; each layer's ratio and its square; whether a layer is at least at
    each level (a random walk over its levels, which follows what a parabola does not); products of two layers' ratios.
    """
    x = ratios[levels]
    shared = np.stack([np.ones(len(x)), x.mean(axis=1), (x**2).mean(axis=1)], axis=1)
    steps = (levels[:, :, None] >= np.arange(1, len(ratios))).reshape(len(x), -1).astype(np.float64)
    pairs = [x[:, first] * x[:, second] for first, second in combinations(range(x.shape[1]), 2)]
    return np.concatenate([shared, x, x**2, steps, np.stack(pairs, axis=1) if pairs else x[:, :0]], axis=1)
