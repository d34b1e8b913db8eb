"""What ops and training steps take beside careful eager torch, torch.compile and a copy."""

from maskcl.bench.case import Case
from maskcl.bench.cases import SHAPES, case, cases
from maskcl.bench.networks import NETWORKS
from maskcl.bench.op_text import op_data, op_text
from maskcl.bench.op_times import OpTimes, time_op
from maskcl.bench.step_text import step_data, step_text
from maskcl.bench.step_times import METHODS, OPTIMIZERS, Setting, StepTimes, time_steps
from maskcl.bench.timing import machine

__all__ = [
    "METHODS",
    "NETWORKS",
    "OPTIMIZERS",
    "SHAPES",
    "Case",
    "OpTimes",
    "Setting",
    "StepTimes",
    "case",
    "cases",
    "machine",
    "op_data",
    "op_text",
    "step_data",
    "step_text",
    "time_op",
    "time_steps",
]
