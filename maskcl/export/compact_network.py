"""One task's network with nothing in it that the task does not use."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from maskcl.export.channel_flow import Flow
from maskcl.export.follow_channels import follow_channels
from maskcl.export.rebuild_graph import Builder
from maskcl.export.traced_node import Plan
from maskcl.nn import ConversionError, HATNetwork, ImportanceNetwork, PiggybackNetwork, to_plain
from maskcl.nn.following.in_place_writes import written_modules
from maskcl.nn.following.trace import trace
from maskcl.nn.following.trees import leaves_of
from maskcl.nn.hat.message_passing import Aggregated
from maskcl.nn.hat.plain import UnitMask
from maskcl.nn.tasks.replace_modules import replace_modules
from maskcl.sharded_modules import class_name

Network = HATNetwork | PiggybackNetwork | ImportanceNetwork


def compact(net: Network, task: int, example_inputs: Any = None) -> fx.GraphModule:
    """One task's network as an ordinary dense module that holds only what the task uses.

    Rows and columns of closed units are gone from all layers, and so is what nothing reads.
    Channels that meet in a sum or a product go only together; those that a LayerNorm, a softmax or
    an operation unknown here reads stay, with zeros where they are closed. It computes the same as
    ``to_plain``, up to the rounding of sums that have fewer zeros in them.

    The result is a ``torch.fx.GraphModule``, as a forward may spell out sizes that are others now;
    so it also works without the classes of the user's model. Names of parameters are those of
    ``to_plain``, modules are torch's (and torch_geometric's) own, and it shares nothing with
    ``net``. What returns an object with entries, as models of transformers do, returns a dict.

    Args:
        net: as ``to_hat`` made it, or a PiggybackNetwork or ImportanceNetwork, whose tasks close no
            units: from these goes what their masks cut off altogether.
        task: finished, or in training (its masks are hard then).
        example_inputs: a tensor, a tuple of the forward's arguments, or a dict of them by name;
            None for those that a HATNetwork was made with. A forward that branches on sizes is
            written for theirs.

    Raises:
        ValueError: no such task, or example_inputs is missing.
        RuntimeError: the task is neither finished nor in training.
        ConversionError: the forward cannot be traced.
    """
    net._check_task("compact", task)
    _check_trained(net, task)
    inputs = example_of(net, example_inputs)
    return _compacted(to_plain(net, task), inputs)


def _compacted(plain: nn.Module, inputs: Any) -> fx.GraphModule:
    root = nn.ModuleList([plain])
    replace_modules(root, _opened)
    try:
        traced = trace(root[0], inputs, leaves=(UnitMask,))
        written_modules(traced)
    except ConversionError as error:
        reason = str(error.__cause__ or error).split("; name by hand")[0]
        raise ConversionError(
            f"compact: the network has no graph to find its units in ({reason.splitlines()[0]});"
            " to_plain gives the task's network at full size"
        ) from error
    plan = follow_channels(traced)
    return Builder(traced, plan, _solved(plan)).build()


def _solved(plan: Plan) -> Tensor:
    """What stays once every operation that moves elements can be written for it."""
    while True:
        kept = plan.labels.solve()
        failed = [node for node, fits in plan.checks.items() if not fits(kept)]
        if not failed:
            return kept
        for node in failed:
            read = [plan.flows[n] for n in node.all_input_nodes]
            for flow in leaves_of([*read, plan.flows[node]], Flow):
                _pin(plan, flow)


def _pin(plan: Plan, flow: Flow) -> None:
    for axis in flow.axes:
        plan.labels.pin(axis)


def _opened(module: nn.Module) -> nn.Module | None:
    """A GINConv as its sum and its network, so that the layers in it can be followed."""
    name, home = type(module).__name__, type(module).__module__
    if name != "GINConv" or not home.startswith("torch_geometric"):
        return None
    try:
        return Aggregated(module)
    except ConversionError:  # it trains its eps
        return None


def _check_trained(net: Network, task: int) -> None:
    if bool(net.finished[task]) or isinstance(net, ImportanceNetwork):
        return
    if isinstance(net, HATNetwork):
        # begin_task leaves gradients to its own task's embedding alone.
        training = [k for k, e in enumerate(net.embeddings) if e.requires_grad]
        if training == [task]:
            return
        raise RuntimeError(
            f"compact: task {task} is neither finished nor in training: train it and call"
            f" finish_task({task}) first"
        )


def example_of(net: Network, given: Any) -> Any:
    """The inputs that were given, else zeros like those that a HATNetwork was made with.

    Raises:
        ValueError: there are none.
    """
    if given is not None:
        return given
    if not isinstance(net, HATNetwork):
        raise ValueError(
            f"compact: example_inputs is missing; a {class_name(net)} is made without any"
        )
    try:
        return net.example.make(net._device(), net.embeddings[0].dtype)
    except ValueError as error:
        raise ValueError(f"compact: example_inputs is missing; {error}") from None
