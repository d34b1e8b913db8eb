"""What no emulation shows, read for in the text of every kernel file: waits, launches inside the
arguments of another, sizes multiplied in 32 bits, an asm that the compiler may move.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CUDA = sorted((ROOT / "csrc/cuda").iterdir())
TRITON = sorted((ROOT / "maskcl/triton").glob("*.py"))
# The host waits for the device, or memory comes from elsewhere than torch's pools: neither can be
# captured into a CUDA graph.
WAITS = r"\w*Synchronize\w*|cudaMemcpy\w*|cudaMalloc\w*|cudaFree\w*|cudaHost\w*|\bitem\(|nonzero"
MAY_LAUNCH = r"\b(scalar_of|select_of|to_dtype|contiguous|in_order_of|empty\w*|new_\w+|copy_)\b"
# Of a block or thread, in 32 bits: a product with a size wants 64.
INDEX = r"(?:blockIdx|gridDim)\.[xyz]"


def without_comments(path: Path) -> str:
    return re.sub(r"//.*", "", path.read_text())


def launch_arguments(text: str) -> list[str]:
    """The arguments of each ``kernel<<<...>>>(arguments)``."""
    found = []
    for launch in re.finditer(r">>>\s*\(", text):
        depth, at = 1, launch.end()
        while depth:
            depth += (text[at] == "(") - (text[at] == ")")
            at += 1
        found.append(text[launch.end() : at])
    return found


def narrow_products(text: str) -> list[str]:
    """Products of a block's index or a grid's size by another number than kThreads, uncast."""
    products = rf"(?<!<int64_t>\(){INDEX}\s*\*\s*(?!kThreads\b)\w+|\w+\s*\*\s*{INDEX}"
    return re.findall(products, text)


@pytest.mark.parametrize("path", CUDA, ids=lambda path: path.name)
def test_cuda_files(path):
    text = without_comments(path)
    assert not re.findall(WAITS, text)
    for arguments in launch_arguments(text):
        assert not re.findall(MAY_LAUNCH, arguments), arguments
    wide = {"gridDim.y * channels", "gridDim.y * layout", "blockIdx.y * splits"}  # int64_t all
    assert set(narrow_products(text)) <= wide
    for call in re.findall(r"\basm\b\s*(\w*)", text):  # lanes must meet where they are written to
        assert call == "volatile"


class Narrow(ast.NodeVisitor):
    """Finds products of ``tl.program_id`` and ``tl.num_programs``, and of names that are these."""

    def __init__(self) -> None:
        self.found: list[int] = []
        self.names: set[str] = set()

    def _narrow(self, node: ast.AST) -> bool:
        text = ast.unparse(node)
        if "tl.int64" in text:
            return False
        return "program_id(" in text or "num_programs(" in text or text in self.names

    def visit_FunctionDef(self, node):
        self.names = set()
        self.generic_visit(node)

    def visit_Assign(self, node):
        if self._narrow(node.value):
            self.names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        self.generic_visit(node)

    def visit_BinOp(self, node):
        wide = any("tl.int64" in ast.unparse(side) for side in (node.left, node.right))
        if isinstance(node.op, ast.Mult) and not wide:
            for side in (node.left, node.right):
                if self._narrow(side) and not isinstance(side, ast.Constant):
                    self.found.append(node.lineno)
        self.generic_visit(node)


@pytest.mark.parametrize("path", TRITON, ids=lambda path: path.name)
def test_triton_files(path):
    finder = Narrow()
    finder.visit(ast.parse(path.read_text()))
    kept = [path.read_text().splitlines()[line - 1].strip() for line in finder.found]
    assert [line for line in kept if "row * tl.num_programs(1)" not in line] == []  # row is int64


def test_the_checks_find_what_they_are_for():
    text = "k<<<1, 2, 0, s>>>(a, f(to_dtype(b)), c); x = blockIdx.x * width; y = n * gridDim.x;"
    assert re.findall(MAY_LAUNCH, launch_arguments(text)[0]) == ["to_dtype"]
    assert narrow_products(text) == ["blockIdx.x * width", "n * gridDim.x"]
    assert not narrow_products("static_cast<int64_t>(blockIdx.x) * width")
    finder = Narrow()
    finder.visit(ast.parse("def f():\n p = tl.program_id(0)\n q = p * n\n r = q.to(tl.int64) * p"))
    assert finder.found == [3]
