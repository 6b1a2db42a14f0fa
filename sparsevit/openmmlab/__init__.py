"""All that touches mmdet and mmcv. Importing it makes them work here and registers the backbone, hooks and data sets.

In a config: `custom_imports = dict(imports=["sparsevit.openmmlab"])`.
"""

from sparsevit.openmmlab import compat

compat.prepare()
compat.quiet()

from sparsevit.openmmlab import backbone, batched_roi, batched_rpn, digits, hooks  # noqa: E402
from sparsevit.openmmlab.evaluator import detector_evaluator  # noqa: E402

__all__ = ["backbone", "batched_roi", "batched_rpn", "detector_evaluator", "digits", "hooks"]
