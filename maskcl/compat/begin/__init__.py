"""BeGin's surface (https://github.com/ShinhwanKang/BeGin) on maskcl: change the imports' prefix.

``from begin.algorithms.hat.links import *`` becomes
``from maskcl.compat.begin.algorithms.hat.links import *``, and so on for ``begin.scenarios``,
``begin.trainers``, ``begin.evaluators`` and ``begin.utils``. Trainers, loaders, models, evaluators
and event functions take BeGin's arguments; what computes is maskcl's, on torch_geometric.

docs/compat-begin.md lists what is not here and what is different, each with its reason. In short:

Methods:
- HAT: embeddings train, are annealed (over the task where an epoch has few steps), clamped, and in
  ``state_dict``; every layer that has a mask uses it in the forward; the protection is of all
  earlier tasks and holds against any optimizer. Each task has its own norms and head.
- Piggyback: masks are bits in ``state_dict``, scores never decay, masks act on the weights of all
  layers but the head; each task has its own norms and head.
- MAS, EWC: where graphs are classified importances are exact, means over samples; nodes and links
  mix in a batch, so there they come from the batch's mean gradient. Negatives of link prediction
  come from a generator of their own. In the task setting heads are the tasks' own and are not held.
- A trainer of a method trains ``trainer.model``, a converted copy of the model that it was given.

Metrics:

- AF = sum over tasks but the last of (M[j, j] - M[T-1, j]), divided by T - 1: positive is
  forgotten. FWT is divided by T - 1 too. (So BeGin's code; its documents have another sign and
  divide by T.)
- ``exp_INT`` is in the result. Scores on samples that do not exist yet are NaN.
- The base and joint models of ``full_mode`` are trained without the method.

Data:

- Graphs are `data.DataGraph`, not DGL's; mini-batches are `data.Block`. Classes are cut into tasks
  evenly, and none is left out. Validation samples are drawn from the training ones, a tenth.
  Messages do not use test links. Chance comes from ``seed``, or is drawn by torch's generator.
- ``save_path`` is only read. Nothing is written but with ``tmp_save_path``.

Everything runs on the CPU too. A keyword that nobody knows raises a TypeError.
"""

__version__ = "0.4.0"
