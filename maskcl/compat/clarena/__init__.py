"""CLArena's surface for HAT (https://github.com/pengxiang-wang/continual-learning-arena) on maskcl.

Change the imports' prefix: ``from clarena.backbones import HATMaskMLP`` becomes
``from maskcl.compat.clarena.backbones import HATMaskMLP``, and so on for ``clarena.cl_algorithms``
(HAT, AdaHAT) and ``clarena.heads`` (HeadsTIL, HeadsCIL, HeadDIL). Arguments have CLArena's names
and places, those of today and those of versions before 1.1. The algorithms are Lightning modules
where ``lightning`` is installed, and run in a loop of your own everywhere; where ``clarena`` is
installed its pipelines drive them, with changed ``_target_`` lines. What is different, and why, in
short:

- The scale goes from 1 / s_max at the first batch (number 0) to s_max at the last.
- All documented modes work; a mode, stage or argument that is not documented is a ValueError.
- Masks are bits in ``state_dict``; cumulative and summative masks follow from them, unless they are
  assigned.
- In mode "hat" stored tasks' outputs stay as they are, bit for bit, whatever the optimizer:
  momentum, moments and weight decay do not move protected weights, and shortcuts' convolutions and
  the one head of HeadDIL are protected too.
- Masks come behind the activation; closed units are exactly 0.

``docs/compat-clarena.md`` has the whole table. Of CLArena's other algorithms none is here.
"""
