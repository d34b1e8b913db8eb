"""The table of a list, as a CUDA graph needs it."""

import pytest
import torch

from maskcl.triton import _lists


class Table:
    def to(self, device, non_blocking):
        assert non_blocking
        return self


@pytest.mark.parametrize("capturing", [False, True])
def test_the_tables_of_captured_graphs_are_kept(capturing, monkeypatch):
    """A graph copies from the same pinned memory at each replay."""
    made = Table()
    monkeypatch.setattr(torch, "tensor", lambda *_, **options: made if options["pin_memory"] else 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(_lists, "_captured", [])
    device = type("Device", (), {"type": "cuda"})()
    assert _lists.on_device([(1, 2), (3, 4)], device) is made
    assert _lists._captured == [made] * capturing
