"""Names of the operations that the analysis knows, and what each does to a closed unit's 0."""

from __future__ import annotations

import operator

from torch import fx, nn

from maskcl.nn.tasks.state import TaskAware


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Move, repeat or drop elements and compute nothing.
MOVES = _words(
    "flatten ravel reshape view permute transpose t swapaxes swapdims movedim moveaxis unsqueeze "
    "squeeze unflatten expand repeat tile repeat_interleave contiguous clone detach chunk split "
    "tensor_split unbind getitem select narrow cat concat concatenate stack hstack vstack roll "
    "flip pixel_shuffle pixel_unshuffle channel_shuffle"
)
# Of one tensor, by element: 0 to 0 in evaluation mode.
KEEP_ZERO = _words(
    "relu relu_ relu6 gelu silu mish tanh tanh_ leaky_relu leaky_relu_ elu elu_ selu celu "
    "hardswish softsign tanhshrink softshrink hardshrink dropout dropout1d dropout2d dropout3d "
    "alpha_dropout feature_alpha_dropout neg abs sign square sqrt sin asin atan sinh expm1 log1p "
    "normalize float double half bfloat16 to type cpu cuda nan_to_num round floor ceil trunc"
)
# Of one tensor, shape unchanged, 0 not kept.
CHANGE_ZERO = _words(
    "sigmoid sigmoid_ hardsigmoid logsigmoid softplus softmax log_softmax softmin exp exp2 cos "
    "cosh log reciprocal rsqrt layer_norm group_norm"
)
CLAMPS = _words("clamp clamp_ clip hardtanh")
SUMS = _words("add iadd add_ sub isub sub_ maximum minimum")
PRODUCTS = _words("mul imul mul_ multiply")
QUOTIENTS = _words("div truediv itruediv div_ true_divide")
REDUCTIONS = _words("mean sum amax amin")
# Of torch_geometric: from the rows of each graph to one row.
READOUTS = _words("global_add_pool global_mean_pool global_max_pool")
# Sum over many units, so that all tasks use each element.
MIXES = _words("linear addmm baddbmm")
# Make tensors of sizes.
FACTORIES = _words("arange zeros ones full empty eye linspace")
# Pick rows by a tensor of numbers.
PICKS = _words("getitem index_select")
POOLS = (
    "max_pool",
    "avg_pool",
    "lp_pool",
    "adaptive_max_pool",
    "adaptive_avg_pool",
    "instance_norm",
    "interpolate",
    "upsample",
)
MOVING_MODULES = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)

# May return memory of their argument.
ALIASES = _words(
    "flatten ravel reshape view permute transpose t swapaxes movedim unsqueeze squeeze unflatten "
    "expand contiguous chunk split unbind getitem select narrow detach dropout to float"
)
ALIAS_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WRITES = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem)


def is_frozen_layer(module: nn.Module | None) -> bool:
    """Whether it is a linear layer or convolution that stays as it is for all tasks."""
    return isinstance(module, _LAYERS) and not isinstance(module, TaskAware)


def operation(node: fx.Node) -> str:
    """Name of the tensor operation that a node calls, empty for anything else.

    A function of the user's own (``torch.fx.wrap``) has no name here, whatever it is called.
    """
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    module = getattr(node.target, "__module__", None) or "torch"
    known = ("torch", "torch_geometric", "_operator", "builtins")
    is_known = module.split(".")[0] in known
    return str(getattr(node.target, "__name__", "")) if is_known else ""


def writes_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node, calling ``module`` if that is not None, writes into its first argument."""
    if module is not None:
        return getattr(module, "inplace", False) is True
    if node.op not in ("call_method", "call_function"):
        return False
    if node.target in _WRITES or node.kwargs.get("inplace", False):
        return True
    name = operation(node)
    return name.endswith("_") and not name.endswith("__")
