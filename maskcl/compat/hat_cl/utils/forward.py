"""Where hat-cl has the way of a payload through any module."""

from maskcl.compat.hat_cl.payload import forward_hat_payload

__all__ = ["forward_hat_payload"]
