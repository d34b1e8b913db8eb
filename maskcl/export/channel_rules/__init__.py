"""What each kind of layer and operation does to channels, and which it makes stay together.

A rule takes a `TracedNode` and returns the `Flow` of its result. It adds to the node's plan what
must stay with what, and how the node is written where that is not as it was. None says that the
rule does not fit: all channels that the node reads stay then.
"""
