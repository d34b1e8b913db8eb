"""Problems: how a batch becomes logits, a loss and predictions."""

from maskcl.problems.base import Problem
from maskcl.problems.graphs import GraphBatch, Graphs
from maskcl.problems.link import Link, LinkBatch
from maskcl.problems.multilabel import MultiLabel
from maskcl.problems.node import Node, NodeBatch
from maskcl.problems.regression import Regression
from maskcl.problems.vision import Vision

__all__ = [
    "GraphBatch",
    "Graphs",
    "Link",
    "LinkBatch",
    "MultiLabel",
    "Node",
    "NodeBatch",
    "Problem",
    "Regression",
    "Vision",
]
