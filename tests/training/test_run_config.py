"""What a checkpoint says of a method."""

from __future__ import annotations

from maskcl.methods import Piggyback
from maskcl.training.run_config import _values


def test_what_came_later_is_said_where_it_is_not_its_default():
    """Checkpoints of before do not name it, and are gone on with."""
    values = _values(Piggyback())
    assert "score_dtype" not in values
    assert values["threshold"] == 5e-3
    assert _values(Piggyback(score_dtype="bfloat16"))["score_dtype"] == "bfloat16"
