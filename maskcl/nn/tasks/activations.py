"""The activations that the ops fuse with a mask, and which modules map 0 to 0."""

from __future__ import annotations

from torch import nn

from maskcl.reference.masked_forward import ACTIVATIONS

_KEEP_ZERO: tuple[type[nn.Module], ...] = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Softsign,
    nn.Softshrink,
    nn.Hardshrink,
    # In evaluation, where an old task's outputs must hold, all of these are the identity.
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_CHANGE_ZERO: tuple[type[nn.Module], ...] = (
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.LogSigmoid,
    nn.Softplus,
    nn.Softmax,
    nn.LogSoftmax,
    nn.Softmin,
)


def fused_name(module: nn.Module) -> tuple[str, float] | None:
    """(name, negative slope) of an activation module that the ops compute themselves, else None."""
    match module:
        case nn.ReLU():
            return "relu", 0.0
        case nn.GELU():
            return ("gelu" if module.approximate == "none" else "gelu_tanh"), 0.0
        case nn.SiLU():
            return "silu", 0.0
        case nn.Tanh():
            return "tanh", 0.0
        case nn.Sigmoid():
            return "sigmoid", 0.0
        case nn.LeakyReLU():
            return "leaky_relu", float(module.negative_slope)
    return None


def module_of(name: str, slope: float) -> nn.Module:
    """The module that computes a fused activation by itself."""
    match name:
        case "relu":
            return nn.ReLU()
        case "gelu":
            return nn.GELU()
        case "gelu_tanh":
            return nn.GELU(approximate="tanh")
        case "silu":
            return nn.SiLU()
        case "tanh":
            return nn.Tanh()
        case "sigmoid":
            return nn.Sigmoid()
        case "leaky_relu":
            return nn.LeakyReLU(slope)
    return nn.Identity()


def check_activation(owner: str, name: str) -> None:
    """Raise ValueError unless ``name`` is an activation that the ops fuse."""
    if name not in ACTIVATIONS:
        raise ValueError(f"{owner}: activation is {name!r}, wanted one of {', '.join(ACTIVATIONS)}")


def keeps_zero(module: nn.Module) -> bool | None:
    """Whether an activation module maps 0 to 0; None for a module of another kind."""
    if isinstance(module, _KEEP_ZERO):
        return True
    if isinstance(module, nn.Hardtanh):
        return module.min_val <= 0 <= module.max_val
    if isinstance(module, _CHANGE_ZERO):
        return False
    return None
