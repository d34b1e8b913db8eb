"""maskcl's methods in the loops of other libraries.

``maskcl.integrations.lightning`` is a callback for Lightning, ``maskcl.integrations.avalanche`` a
model and a plugin for Avalanche's strategies, ``maskcl.integrations.mammoth`` a model for Mammoth.
Each takes any of ``maskcl.methods`` and its network, and imports its library; this package imports
none of them.
"""
