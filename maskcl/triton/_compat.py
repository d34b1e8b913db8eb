"""Triton where it is installed; where it is not, a stand-in that lets the kernels be defined."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rounding after each operation, as the reference does: the kernels wait for memory anyway.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}

try:
    import triton
    import triton.language as tl

    ABSENT: str | None = None
except ImportError as error:
    ABSENT = f"Triton cannot be imported ({error})"

    class _Language:
        """Stands for triton.language in annotations and default values."""

        def __getattr__(self, name: str) -> Any:
            return None

    class _Triton:
        """Stands for the decorators that the kernel files use when they are imported."""

        @staticmethod
        def jit(function: Callable[..., Any] | None = None, **_: Any) -> Any:
            return function if function is not None else lambda decorated: decorated

    triton, tl = _Triton(), _Language()

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def check(
    op: str, name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...] | None = DTYPES
) -> None:
    """Raise before anything is written unless a kernel can run on ``tensor``.

    Raises:
        RuntimeError: Triton is absent, or the tensor is on the CPU and Triton is not interpreting.
        TypeError: the dtype is not one of ``dtypes`` (None: any will do).
    """
    if ABSENT is not None:
        raise RuntimeError(f"{op}: {ABSENT}; wanted triton installed, or another backend")
    if tensor.device.type == "cpu" and not INTERPRETED:
        raise RuntimeError(
            f"{op}: {name} is on the CPU, wanted a GPU (or TRITON_INTERPRET=1 before Python starts)"
        )
    if dtypes is not None and tensor.dtype not in dtypes:
        wanted = ", ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{op}: {name} is {tensor.dtype}, wanted one of {wanted}")


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, so make it the tensor's."""
    return torch.cuda.device_of(tensor)


def cdiv(a: int, b: int) -> int:
    """Quotient rounded up."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The least power of two that is not below ``n``; 1 for 0."""
    return 1 << max(n - 1, 0).bit_length()
