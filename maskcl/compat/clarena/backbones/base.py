"""Base classes of backbones."""

from maskcl.compat.clarena.backbones.masked import HATMaskBackbone
from maskcl.compat.clarena.backbones.plain import Backbone, CLBackbone

__all__ = ["Backbone", "CLBackbone", "HATMaskBackbone"]
