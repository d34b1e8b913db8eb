"""What NVIDIA publishes of the GPUs that the model predicts for, and what the model assumes.

Bandwidths and peaks: "NVIDIA A100 Tensor Core GPU" datasheet (June 2021), A100 80GB SXM: 2,039
GB/s, 19.5 TFLOPS float32, 312 TFLOPS bfloat16; "NVIDIA H100 Tensor Core GPU" datasheet (2023),
H100 SXM: 3.35 TB/s, 67 TFLOPS float32, 989 TFLOPS bfloat16 (half of the sparse figure).
Multiprocessors and L2: the A100 and H100 architecture whitepapers (108 and 132; 40 and 50 MB). L2
bandwidth: 5,120 bytes a clock (A100 whitepaper) at the 1,410 MHz of its datasheet; nothing is
published for H100, which gets the same per clock at 1,830 MHz.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class GPU:
    """Rates are per second: bytes, and floating-point operations."""

    name: str
    arch: str  # as the tables of resources have it
    multiprocessors: int
    bandwidth: float
    l2: int  # bytes
    l2_bandwidth: float
    float32: float
    halves: float  # products of bfloat16 and float16 on tensor cores


A100 = GPU("A100", "80", 108, 2.039e12, 40 << 20, 5120 * 1.41e9, 19.5e12, 312e12)
H100 = GPU("H100", "90", 132, 3.35e12, 50 << 20, 5120 * 1.83e9, 67e12, 989e12)
# "NVIDIA H200 Tensor Core GPU" datasheet (2024): an H100 with 4.8 TB/s.
H200 = replace(H100, name="H200", bandwidth=4.8e12)
GPUS = (A100, H100)
ALL = (A100, H100, H200)

# Assumptions, each for `make gpu` to refute.
COPY = 0.90  # of the published bandwidth that a large copy reaches
LATENCY = 650e-9  # seconds from a load to its value, when memory is busy
LAUNCH = 2.5e-6  # seconds of a kernel that does nothing, in a full stream or a CUDA graph
PRODUCT = 0.70  # of the published peak that a large product reaches
THREADS = 2048  # of a multiprocessor, at full occupancy
