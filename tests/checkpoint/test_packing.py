"""Numbers leave the JSON and come back exactly; what is no packed value is refused."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch

from maskcl.checkpoint.packing import LEAST, MARK, pack, packed_names, unpack


def there_and_back(value):
    tensors: dict[str, torch.Tensor] = {}
    packed = json.loads(json.dumps(pack(value, "facts", tensors)))
    assert packed_names(packed) == set(tensors)
    return unpack(packed, tensors), packed, tensors


FLOATS = [0.1 * k for k in range(LEAST)]
VALUES = {
    "floats": FLOATS,
    "whole": list(range(-LEAST, LEAST)),
    "largest": [2**63 - 1, -(2**63 - 1)] * LEAST,
    "too large": [2**64] * LEAST,
    "mixed": [1, 2.0] * LEAST,
    "some missing": [1, None] * LEAST,
    "yes and no": [True, False] * LEAST,
    "texts": ["a", "b"] * LEAST,
    "ragged": [FLOATS, [], FLOATS[:3]],
    "deep": [[FLOATS, []], [], [[1.5]]],
    "objects": [{"a": {"x": k + 0.5, "y": 0.0}, "b": k} for k in range(LEAST)],
    "other keys": [{"a": 1.0}, {"b": 1.0}] * LEAST,
    "nothing": [[], [], {}],
    "one mark": {MARK: FLOATS, "other": {MARK: ["tensor", "facts"]}},
    "small": [[1.0, 2.0], [3.0, 4.0]],
    "plain": {"a": None, "b": [True, "x", 1, 1.5]},
}


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_as_they_were(name):
    found, _, _ = there_and_back(VALUES[name])
    assert json.dumps(found) == json.dumps(VALUES[name])


def test_every_bit_of_a_number_comes_back():
    rng = random.Random(0)
    values = [rng.uniform(-1, 1) * 10.0 ** rng.randrange(-300, 300) for _ in range(1000)]
    values += [-0.0, math.inf, -math.inf, 5e-324]
    found, _, _ = there_and_back(values)
    assert [v.hex() for v in found] == [v.hex() for v in values]
    assert math.isnan(there_and_back([math.nan] * LEAST)[0][0])


def test_arrays_are_lists():
    matrix = np.random.default_rng(0).normal(size=(9, 11))
    found, packed, tensors = there_and_back({"matrix": matrix, "small": matrix[:2, :2]})
    assert found == {"matrix": matrix.tolist(), "small": matrix[:2, :2].tolist()}
    assert packed["matrix"] == {MARK: ["tensor", "facts.matrix"]}
    assert tensors.keys() == {"facts.matrix"}


def test_the_json_of_a_run_does_not_grow_with_its_tasks():
    def size(tasks):
        result = {
            "matrix": np.zeros((tasks, tasks)),
            "losses": [[0.5] * 3 for _ in range(tasks)],
            "measures": [{"off": {f"layer.{k}": 0.5 for k in range(8)}} for _ in range(tasks)],
            "classes": [[2 * k, 2 * k + 1] for k in range(tasks)],
        }
        return len(json.dumps(pack(result, "facts", {})))

    assert size(1000) < size(100) + 10


def test_a_tensor_of_a_taken_name_gets_another():
    tensors = {"facts": torch.zeros(1)}
    packed = pack(FLOATS, "facts", tensors)
    assert tensors["facts"].shape == (1,)
    assert unpack(packed, tensors) == FLOATS


@pytest.mark.parametrize(
    "value",
    [
        ["tensor", "absent"], ["tensor", "text"], ["tensor", "number"], ["tensor"], ["tensor", 3],
        ["lists", [1, 2], [1]], ["lists", [-1, 2], [1]], ["lists", [0.5], [1]], ["lists", [1]],
        ["lists", {"a": 1}, [1]], ["rows", 2, {"a": [1]}], ["rows", 10**12, {}], ["rows", 1, [1]],
        ["rows", 2, {"a": 5}], ["other", 1], [], "tensor", None, 7, {"a": 1},
    ],
)  # fmt: skip
def test_what_was_never_packed_is_refused(value):
    tensors = {"text": torch.zeros(3, dtype=torch.uint8), "number": torch.zeros(())}
    assert packed_names({MARK: value}) <= {"absent", "text", "number"}
    with pytest.raises(ValueError, match="packed"):
        unpack({"facts": [{MARK: value}]}, tensors)
