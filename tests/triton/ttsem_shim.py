"""Pytest plugin: tests/triton/interpreted under ttsem, which runs what Triton's compiler makes.

    python -m ttsem.sanitize pytest -p tests.triton.ttsem_shim -o addopts= tests/triton/interpreted

ttsem (0.1.0, Python 3.12 or later) says at a kernel's line what the interpreter lets pass: an
access outside a tensor, two programs that meet in an element. Three things stand between:

- The tests ask for Triton's interpreter by TRITON_INTERPRET=1, and ttsem wants Triton to compile:
  the variable is set once every kernel has been defined without it; launchers take CPU tensors.
- Its device has no ``shared_memory_per_block_optin``: it gets Hopper's.
- Memory cannot be pinned without a driver, so tables of lists are not.

Tests of kernels that find their tensors in a table are left out: docs/gpu-model.md.
"""

import os
from importlib import import_module
from typing import Any

import torch

from maskcl import schemas
from maskcl.triton import _compat, _products

for _stem in schemas.SIGNATURES:
    import_module(f"maskcl.triton.{_stem}")
_compat.INTERPRETED = True
_products._wide = lambda x: False  # of the interpreter alone: compiled code multiplies bfloat16
os.environ["TRITON_INTERPRET"] = "1"  # tests/triton/conftest.py reads it

_properties = type(torch.cuda.get_device_properties(0))
if not hasattr(_properties, "shared_memory_per_block_optin"):
    _properties.shared_memory_per_block_optin = _products.LARGE_SHARED

LISTS = {"test_grad_clamp_kernels.py", "test_importance_kernels.py"}
INTERPRETERS = "test_memory.py"
_tensor = torch.tensor


def _unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
    return _tensor(*args, **kwargs)


torch.tensor = _unpinned


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what launches kernels over lists, and what is about the interpreter."""
    listed = [i for i in items if i.path.name in LISTS and "linear_importance" not in i.name]
    listed += [i for i in items if i.path.name == INTERPRETERS]
    config.hook.pytest_deselected(items=listed)
    items[:] = [i for i in items if i not in listed]
