"""Two kinds of Triton tests, which exclude each other in one process.

TRITON_INTERPRET is read when Triton is imported: with it, kernels run on the CPU
(``interpreted/``); without it, they compile. An ordinary run compiles them and starts the
interpreted ones in a process of their own (``test_interpreter.py``).
"""

import os

_INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore = ["test_interpreter.py", "test_compile.py"] if _INTERPRETING else ["interpreted"]
