"""What latencies are measured on, and whether the weights that come with the package are whole."""

from __future__ import annotations

from pathlib import Path

from sparsevit.doctor import packages
from sparsevit.doctor.finding import Finding, State


def devices() -> list[Finding]:
    """The CPU and every GPU that torch sees; a warning where there is a GPU that it cannot use."""
    try:
        import torch
    except Exception:  # the packages' findings say why
        return []
    from sparsevit.latency.environment import environment
    from sparsevit.latency.target import Target

    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    findings = []
    for name in names:
        facts = environment(Target(device=name))
        detail = f"{facts['device']}, {facts['threads']} of {facts['cores']} cores"
        if "driver" in facts:
            detail = f"{facts['device']}, driver {facts['driver']}, CUDA {facts['cuda']}"
        findings.append(Finding(name, State.OK, detail))
    unseen = _gpus_of_driver() if len(names) == 1 else []
    if unseen:
        detail = f"{', '.join(unseen)}: there, but torch {torch.__version__} cannot use it"
        cure = f"update the NVIDIA driver to one that runs CUDA {torch.version.cuda}"
        findings.append(Finding("gpu", State.WARNING, detail, cure))
    return findings


def _gpus_of_driver() -> list[str]:
    """Names of the GPUs that the driver knows."""
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def weights(package: Path) -> Finding:
    """The built-in supernet: are there weights in the folder of the package, and can they be read to the end?"""
    from safetensors import SafetensorError, safe_open

    name = "built-in supernet"
    checkout = (package.parent / "pyproject.toml").is_file()
    cure = "git checkout -- sparsevit" if checkout else packages.install("--force-reinstall", "--no-deps", "sparsevit")
    files = sorted(package.rglob("*.safetensors"))
    if not files:
        return Finding(name, State.WRONG, f"no weights below {package}", cure)
    for path in files:
        try:
            with safe_open(path, framework="numpy") as tensors:  # reads the header and checks the size against it
                next(iter(tensors.keys()))
        except (SafetensorError, OSError, StopIteration) as error:
            return Finding(name, State.WRONG, f"{path}: {error}", cure)
    return Finding(name, State.OK, ", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in files))
