"""The mean over samples of |dF/dW|, at the price of a batch: by the rules of known layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.importance.groups import Groups
from maskcl.importance.layers import rules_of
from maskcl.importance.per_sample import PerSample
from maskcl.importance.recording import Record, recorded
from maskcl.importance.rules import Call, Rule, Use, arrange
from maskcl.importance.subject import Subject
from maskcl.nn.tasks.own_parts import all_modules


@dataclass
class Known:
    """A parameter whose owners are all known.

    Attributes:
        parameter: it.
        rules: by layer that owns it.
        layout: where samples are in the layers' inputs.
    """

    parameter: Tensor
    rules: dict[nn.Module, Rule]
    layout: str = "first"

    @property
    def layouts(self) -> list[str]:
        """Those that every rule allows."""
        names = next(iter(self.rules.values())).layouts
        return [n for n in names if all(n in rule.layouts for rule in self.rules.values())]


class Exact:
    """Adds batches to the importances.

    Attributes:
        known: the parameters with rules.
        rest: the others.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.known = known_parameters(subject)
        self.rest = [p for p in subject.omegas if p not in self.known]
        self.per_sample = PerSample(subject)

    @property
    def layers(self) -> list[nn.Module]:
        """Those that own known parameters."""
        return list(dict.fromkeys(m for known in self.known.values() for m in known.rules))

    def record(
        self, batch: Any, labels: Tensor | None = None
    ) -> tuple[list[Record], Tensor | None, int]:
        """One forward and the gradients of the known layers' outputs; labels; how many samples."""
        layers = self.layers
        with recorded(layers) as recorder, torch.set_grad_enabled(bool(layers)):
            outputs, targets = self.subject.outputs(batch)
            if labels is None:
                labels = self.subject.objective.choose(outputs, targets)
            if layers and outputs.shape[0]:
                values = self.subject.objective.values(outputs, labels)
                recorder.differentiate(values.sum())
        return recorder.records, labels, outputs.shape[0]

    def finish(
        self,
        batch: Any,
        records: list[Record],
        labels: Tensor | None,
        count: int,
        groups: Groups | None = None,
    ) -> None:
        """Turn records into importances, and measure in the slow way what they do not tell."""
        if not count:
            return
        for parameter, known in list(self.known.items()):
            uses = uses_of(known, records, count, groups)
            if uses is None:
                self.forget(parameter)
            elif uses:
                self._check_unchanged(known, records)
                omega = self.subject.omegas[parameter]
                add_uses(omega, uses, self.subject)
        self.per_sample.add(batch, labels, count, self.rest, groups)

    def forget(self, parameter: Tensor) -> None:
        """Measure the parameter in the slow way from now on."""
        del self.known[parameter]
        self.rest.append(parameter)

    def _check_unchanged(self, known: Known, records: list[Record]) -> None:
        for record in records:
            rule = known.rules.get(record.module)
            if rule is not None and rule.reads_input and record.changed:
                raise RuntimeError(
                    f"estimate: the input of the layer that owns"
                    f" {self.subject.names[known.parameter]} was changed in place after the layer"
                    " had read it; its importance needs the input as it was"
                )


def add_uses(omega: Tensor, uses: list[Use], subject: Subject) -> None:
    """Add what the rules make of a parameter's uses, at full precision."""
    with torch.no_grad(), torch.autocast(omega.device.type, enabled=False):
        uses[0].rule.add(omega, uses, subject.square, subject.memory)


def uses_of(
    known: Known, records: list[Record], count: int, groups: Groups | None = None
) -> list[Use] | None:
    """The parameter's uses with samples in front; None where one is not laid out as it should."""
    uses = []
    for record in records:
        rule = known.rules.get(record.module)
        if rule is None or record.dy is None:
            continue
        if record.dy.dim() < 2:
            return None
        whole = record.x.to_dense()  # bags of words are in CSR
        if groups is not None:
            x, dy = groups.arrange(whole), groups.arrange(record.dy)
        else:
            x = arrange(whole, count, known.layout)
            dy = arrange(record.dy, count, known.layout)
        if x is None or dy is None:
            return None
        uses.append(Use(rule, Call(record.module, x, dy)))
    return uses


def known_parameters(subject: Subject) -> dict[Tensor, Known]:
    """The wanted parameters with a rule in every module that owns them, and of one kind."""
    found: dict[Tensor, dict[nn.Module, Rule]] = {}
    unknown: set[Tensor] = set()
    # Attention reads its output layer's weight instead of calling the layer.
    modules = all_modules(subject.model)
    inside = {c for m in modules if isinstance(m, nn.MultiheadAttention) for c in m.children()}
    wanted = set(map(id, subject.omegas))
    for module in modules:
        if wanted.isdisjoint(map(id, module._parameters.values())):
            continue
        rules = {} if module in inside else rules_of(module)
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            rule = rules.get(name)
            if parameter not in subject.omegas:
                continue
            if rule is None or module in found.get(parameter, {}):
                unknown.add(parameter)
            else:
                found.setdefault(parameter, {})[module] = rule
    return {
        p: Known(p, rules)
        for p, rules in found.items()
        if p not in unknown and len({rule.kind for rule in rules.values()}) == 1
    }
