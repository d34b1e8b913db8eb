"""In the emulated GPU's process the tests that start one are not run."""

from tests.cuda.emulator import device

collect_ignore = ["test_emulated.py", "test_emulator.py"] if device.wanted() else []
