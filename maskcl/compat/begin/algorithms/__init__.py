"""BeGin's methods, by problem: ``from maskcl.compat.begin.algorithms.hat.links import *``."""
