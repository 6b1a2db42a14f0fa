"""Weights: files of them, the three formats of keys that Swin weights come in, and fitting them to a model."""

from sparsevit.model.weights.files import BUILTIN, read_weights, sha256, weights_path, write_weights
from sparsevit.model.weights.fit import fit_weights
from sparsevit.model.weights.formats import FORMATS, KeyFormat, as_format, as_mmdet, key_format
from sparsevit.model.weights.tables import resize_tables, window_of

__all__ = [
    "BUILTIN",
    "FORMATS",
    "KeyFormat",
    "as_format",
    "as_mmdet",
    "fit_weights",
    "key_format",
    "read_weights",
    "resize_tables",
    "sha256",
    "weights_path",
    "window_of",
    "write_weights",
]
