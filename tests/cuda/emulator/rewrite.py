"""CUDA C++ to C++ for the host: what of csrc/cuda a host compiler does not read, line by line.

Everything else of CUDA that the kernels use is declared in ``host/cuda_runtime.h``. A construct
that these rules do not know is an error here or at compilation, not code that does something else.
"""

from __future__ import annotations

import re

# Words that have another meaning on the emulator's devices, which are all in the host's memory.
WORDS = {
    r"\bSTABLE_TORCH_LIBRARY_IMPL\(maskcl, CUDA, ": "STABLE_TORCH_LIBRARY_IMPL(maskcl, CPU, ",
    r"\busing torch::stable::accelerator::DeviceGuard;": "using emulator::DeviceGuard;",
    r"(\w+(?:\[\w+\])?)\.(is_cuda|get_device_index)\(\)": r"emulator::\2(\1)",
    r"(?<!_)\bassert\((.*)\);": r'emulator::assert_that(\1, "\1", emulator::Location::current());',
    # By reference: each thread would copy the table.
    r"\b__grid_constant__ (\w+<[^>]*>) (\w+)": r"\1& \2",
}
SHARED = re.compile(
    r"(?<!extern )__shared__ (?:alignas\((?P<bytes>\d+)\) )?(?P<type>\w+) (?P<arrays>\w+\[[^;]*\]);"
)
MMA = re.compile(r'\basm volatile\("mma\.sync\..*?\);', re.DOTALL)
MMA_TEXT = re.compile(
    r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(bf16|f16)\.\1\.f32"
    r" \{%0, %1, %2, %3\}, \{%4, %5, %6, %7\}, \{%8, %9\}, \{%0, %1, %2, %3\};"
)


class RewriteError(ValueError):
    """A construct that the emulator does not know."""


def rewrite(text: str, path: str) -> str:
    """``text`` of the CUDA file ``path`` for the host; compilers and errors name its own lines."""
    bounded = len(re.findall(r"\b__launch_bounds__\(kThreads[,)]", text))
    if text.count("__global__") != bounded:
        raise RewriteError(f"{path}: a __global__ function has no __launch_bounds__(kThreads)")
    found = SHARED.sub(_shared, text)
    found = MMA.sub(_mma, found)
    for pattern, replacement in WORDS.items():
        found = re.sub(pattern, replacement, found)
    found = _launches(found)
    code = re.sub(r"//.*", "", found)
    for word in ("__shared__", "<<<", "asm", "__grid_constant__"):
        if re.search(rf"{word}(?!\w)", code):
            raise RewriteError(f"{path}: the emulator does not know this use of {word}")
    if found.count("\n") != text.count("\n"):
        raise AssertionError(f"{path}: lines were lost")
    return f'#line 1 "{path}"\n{found}'


def _shared(match: re.Match[str]) -> str:
    """An array of the block's, known by the address of a static byte beside it."""
    lines = []
    for array in re.split(r",\s*(?=\w+\[)", match["arrays"]):
        name, sizes = re.fullmatch(r"(\w+)((?:\[[^\]]*\])+)", array).groups()  # type: ignore[union-attr]
        kind = f"{match['type']}{sizes}"
        aligned = match["bytes"] or f"alignof({kind})"
        lines.append(
            f"static char {name}_here; auto& {name} = *static_cast<std::add_pointer_t<{kind}>>("
            f"emulator::shared(&{name}_here, sizeof({kind}), {aligned}));"
        )
    return " ".join(lines) + "\n" * match[0].count("\n")


def _mma(match: re.Match[str]) -> str:
    """A product of the tensor cores, from the warp that makes it together."""
    strings = "".join(re.findall(r'"([^"]*)"', match[0].split(":")[0]))
    known = MMA_TEXT.fullmatch(strings)
    operands = re.findall(r'"(?:\+f|r)"\(([^)]*)\)', match[0])
    if known is None or len(operands) != 10:
        raise RewriteError(f"the emulator does not know this instruction: {strings}")
    operands.append("emulator::Location::current()")
    call = f"emulator::multiply(emulator::Call::multiply_{known[1]}, {', '.join(operands)});"
    return call + "\n" * match[0].count("\n")


def _launches(text: str) -> str:
    """``kernel<T><<<grid, block, shared, stream>>>(...)`` calls an object of the kernel's type."""
    while (at := text.find("<<<")) >= 0:
        begin = _start_of_kernel(text, at)
        close = text.index(">>>", at)
        kernel, configuration = text[begin:at], text[at + 3 : close]
        lines = "\n" * kernel.count("\n")
        call = f"emulator::Kernel<({kernel.strip()})>{lines}{{{{{configuration}}}}}"
        text = text[:begin] + call + text[close + 3 :]
    return text


def _start_of_kernel(text: str, end: int) -> int:
    """Where ``name<...>`` begins that ends, but for spaces, at ``end``."""
    at = len(text[:end].rstrip())
    depth = 0
    while depth or text[at - 1] == ">":
        at -= 1
        depth += {">": 1, "<": -1}.get(text[at], 0)
    return at - len(re.search(r"[\w:]*$", text[:at])[0])  # type: ignore[index]
