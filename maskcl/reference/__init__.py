"""The specification: every low-level op in plain torch, readable before fast.

Each file holds one stem. The functions have the names and signatures of the schemas in
:mod:`maskcl.ops._library`; the other backends are tested against them.
"""
