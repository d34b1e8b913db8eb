"""Products of layers between masked units: the device's library's, all units of them.

To leave closed units out a program would have to know their number before it is launched, and the
host would wait for the device at every layer. See :mod:`maskcl.reference.open_products`.
"""

from maskcl.reference.open_products import (
    open_conv,
    open_conv_backward,
    open_linear,
    open_linear_backward,
)

__all__ = ["open_conv", "open_conv_backward", "open_linear", "open_linear_backward"]
