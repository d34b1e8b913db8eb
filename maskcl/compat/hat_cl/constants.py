"""Defaults of `types_.HATConfig`."""

from __future__ import annotations

from typing import Final

DEF_HAT_MAX_TRN_MASK_SCALE: Final[float] = 100.0
"""Largest scale of a mask in training, s_max."""
DEF_HAT_INIT_STRAT: Final[str] = "normal"
"""How a task's attention starts."""
DEF_HAT_GRAD_COMP_CLAMP: Final[float] = 50.0
"""|scale * attention| beyond which the compensation of the attention's gradient stops growing."""
DEF_HAT_GRAD_COMP_FACTOR: Final[float] = 100.0
"""s_max of the compensation where the largest scale is `DEF_HAT_MAX_TRN_MASK_SCALE`."""
DEF_HAT_ATTN_CLAMP: Final[float] = 6.0
"""Attentions stay within +- this."""
DEF_HAT_TRN_MASK_SCALE_STRAT: Final[str] = "linear"
"""How the scale goes over an epoch."""
