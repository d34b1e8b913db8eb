"""Checkpoints: one safetensors file whose metadata holds the JSON, so that the two cannot differ.

Nothing is unpickled. A file is written beside its name, flushed to the disk and renamed, so that at
every moment the name stands for a whole checkpoint, the old one or the new one. It holds a SHA-256
of all its bytes, and that of each file that it names beside it (`maskcl.checkpoint.parts`): what
several processes have of a sharded network, and what stays as it is and is written once.
"""

from maskcl.checkpoint.content import (
    FORMAT,
    VERSION,
    Checkpoint,
    CheckpointError,
    check_config,
    misfits,
)
from maskcl.checkpoint.files import load_checkpoint, load_facts, remove_unnamed, save_checkpoint
from maskcl.checkpoint.loops import Resumed, load_training, save_training
from maskcl.checkpoint.networks import give_up, load_network, network_state, take
from maskcl.checkpoint.optimizers import describe_optimizer, load_optimizer, optimizer_state

__all__ = [
    "FORMAT",
    "VERSION",
    "Checkpoint",
    "CheckpointError",
    "Resumed",
    "check_config",
    "describe_optimizer",
    "give_up",
    "load_checkpoint",
    "load_facts",
    "load_network",
    "load_optimizer",
    "load_training",
    "misfits",
    "network_state",
    "optimizer_state",
    "remove_unnamed",
    "save_checkpoint",
    "save_training",
    "take",
]
