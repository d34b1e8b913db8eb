"""Triton kernels and their launchers: the functions of :mod:`maskcl.reference`, name for name.

Importable where Triton is absent; a call then raises and says so. Address arithmetic is int64, sums
are float32 and in a fixed order (no atomics), and no launcher waits for the device.
"""

from maskcl.triton._compat import DTYPES

__all__ = ["DTYPES"]
