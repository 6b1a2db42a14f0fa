"""SparseViT search: find, for your data and your device, which share of windows each Swin layer may skip."""

from sparsevit.errors import UserError
from sparsevit.sparsity import Sparsity, SparsitySpace

__version__ = "0.1.0"
__all__ = ["Sparsity", "SparsitySpace", "UserError", "__version__"]
