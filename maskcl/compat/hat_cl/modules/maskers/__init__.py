"""Modules that multiply data with one mask element a unit."""

from maskcl.compat.hat_cl.modules.maskers.attention_masker import AttentionMasker
from maskcl.compat.hat_cl.modules.maskers.constant_masker import ConstantMasker
from maskcl.compat.hat_cl.modules.maskers.hat_masker import HATMasker

__all__ = ["AttentionMasker", "ConstantMasker", "HATMasker"]
