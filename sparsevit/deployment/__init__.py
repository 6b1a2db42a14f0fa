"""A subnet as one file that runs without this package: a `torch.export` program, or ONNX."""

from sparsevit.deployment.deploy import Deployed, deploy

__all__ = ["Deployed", "deploy"]
