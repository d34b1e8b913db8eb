"""The step of an optimizer under protection: torch's fused steps where nothing is protected, and
bits that stay where something is."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from maskcl import backends, ops, reference
from tests.helpers import variants

INF, NAN = math.inf, math.nan
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
KINDS = [(F32, F32), (BF16, BF16), (BF16, F32), (F16, F16), (F16, F32)]
# (shape, groups) of a weight
SHAPES = [((7, 9), 1), ((33, 70), 1), ((6, 4, 3, 3), 1), ((6, 2, 3), 3), ((4, 1, 3, 3), 4)]
SHAPES += [((5,), 1), ((300,), 1), ((1, 77), 1), ((0, 4), 1), ((3, 0), 1), ((3, 150), 1)]


def _bits(units: int, words: int, device: str) -> Tensor:
    """Few tasks a unit, and none for some; the first units have them all."""
    tasks = torch.randint(0, 64, (units, words), device=device)
    sets = torch.where(torch.rand(units, words, device=device) < 0.5, 1 << tasks, 3 << (tasks % 8))
    sets[torch.rand(units, device=device) < 0.3] = 0
    sets[: units // 4] = -1
    return sets


class Model:
    """A list of parameters with all that their step needs; equal for equal seeds."""

    def __init__(self, device, dtype=F32, state=F32, words=1, seed=0):
        torch.manual_seed(seed)
        shapes = [shape for shape, _ in SHAPES]
        self.params, self.grads, self.first, self.second = (
            [torch.randn(s, device=device) for s in shapes] for _ in range(4)
        )
        self.params = [p.to(dtype) for p in self.params]
        self.grads = [g.to(dtype) for g in self.grads]
        self.first = [m.to(state) for m in self.first]
        self.second = [v.abs().to(state) for v in self.second]
        self.steps = [torch.tensor(float(t % 3), device=device) for t in range(len(shapes))]
        self.groups = [groups for _, groups in SHAPES]
        everyone = torch.full((1, words), -1, device=device)
        self.outs = [_bits(s[0], words, device) for s in shapes]
        self.ins = [_bits(s[1] * g, words, device) if len(s) > 1 else everyone for s, g in SHAPES]

    def taken(self, protection: str) -> list[Tensor]:
        """Which elements are protected."""
        return [
            ~reference.update._free(p, o, i, g, protection == "exact").expand(p.shape)
            for p, o, i, g in zip(self.params, self.outs, self.ins, self.groups, strict=True)
        ]

    def sides(self, **more):
        return {"groups": self.groups, **more}

    def sgd(self, momentum=0.0, **more):
        buffers = self.first if momentum else []
        more = self.sides(lr=0.1, momentum=momentum, **more)
        ops.sgd_update_(self.params, self.grads, buffers, self._outs(), self._ins(), **more)
        return [self.params, buffers]

    def adam(self, **more):
        lists = self.params, self.grads, self.first, self.second, self.steps
        ops.adam_update_(*lists, self._outs(), self._ins(), **self.sides(lr=0.1, **more))
        return [self.params, self.first, self.second, self.steps]

    def _outs(self):  # the public functions know a whole side by None
        return [None if o.shape[0] != p.shape[0] else o for o, p in self._with(self.outs)]

    def _ins(self):
        return [None if p.dim() < 2 else i for i, p in self._with(self.ins)]

    def _with(self, sides):
        return zip(sides, self.params, strict=True)


def scalars(device, found=0.0):
    def tensor(value):
        return torch.tensor(value, device=device)

    names = {"rate": tensor(0.7), "scale": tensor(3.0), "found_inf": tensor(found)}
    return {**names, "norm": tensor(5.0), "max_norm": 1.5}


HOWS = {
    "sgd": ("sgd", {}),
    "sgd decayed": ("sgd", {"weight_decay": 0.1, "maximize": True}),
    "sgd momentum": ("sgd", {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}),
    "sgd nesterov": ("sgd", {"momentum": 0.9, "nesterov": True, "maximize": True}),
    "sgd first": ("sgd", {"momentum": 0.9, "first": True}),
    "adam": ("adam", {"weight_decay": 0.1, "betas": (0.4, 0.9)}),
    "adamw": ("adam", {"weight_decay": 0.1, "decoupled": True, "maximize": True}),
    "adam bounded": ("adam", {"bounds": 0.5}),
}


def bits_of(t: Tensor) -> Tensor:
    return t.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def snapshot(lists: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[t.clone() for t in tensors] for tensors in lists]


def assert_near(found: Tensor, wanted: Tensor, before: Tensor) -> None:
    """Within 2 ulp of what was there, of what is, or of 1: a difference of both may be tiny."""
    size = torch.maximum(before.abs().double(), wanted.abs().double()).clamp(min=1)
    off = (found.double() - wanted.double()).abs() / size
    assert not off.numel() or off.max() <= 2 * torch.finfo(found.dtype).eps


def step_as_the_reference(backend, how, models, protection, more):
    """A step of one model by the backend, near the reference's of the other.

    Returns:
        The first model's parameters as they were.
    """
    (method, options), (found, wanted) = HOWS[how], models
    before = snapshot([wanted.params, wanted.first, wanted.second])
    with backends.use_backend(backend):
        results = getattr(found, method)(protection=protection, **options, **more)
    with backends.use_backend("reference"):
        rights = getattr(wanted, method)(protection=protection, **options, **more)
    for tensors, right, old in zip(results, rights, [*before, wanted.steps], strict=False):
        for f, w, b in zip(tensors, right, old, strict=bool(tensors)):
            assert_near(f, w, b)
    return before[0]


@pytest.mark.parametrize(("words", "protection"), [(1, "exact"), (2, "min")])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("how", HOWS)
def test_a_whole_model_equals_the_reference(backend, device, how, kind, words, protection):
    more = scalars(device) if words == 2 else {}
    found, wanted = Model(device, *kind, words), Model(device, *kind, words)
    before = step_as_the_reference(backend, how, (found, wanted), protection, more)
    assert any((p != b).any() for p, b in zip(found.params, before, strict=True))
    for g, h in zip(found.grads, wanted.grads, strict=True):
        assert torch.equal(g, h), "gradients are not written"


@pytest.mark.parametrize("protection", ops.grad_clamp.PROTECTIONS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("how", [how for how in HOWS if how != "sgd first"])
def test_protected_elements_keep_their_bits(backend, device, how, kind, protection):
    """NaN, infinity and -0 of parameters and moments; a protected gradient may be anything."""
    method, options = HOWS[how]
    model = Model(device, *kind, words=2)
    taken = model.taken(protection)
    for tensors in (model.params, model.first, model.second, model.grads):
        for value, share in ((-0.0, 0.5), (NAN, 0.2), (INF, 0.2)):
            for t, where in zip(tensors, taken, strict=True):
                t[where & (torch.rand(t.shape, device=device) < share)] = value
    before = snapshot([model.params, model.first, model.second])
    results = getattr(model, method)(protection=protection, **options, **scalars(device))
    for tensors, old in zip(results, before, strict=False):
        for t, b, where in zip(tensors, old, taken, strict=bool(tensors)):
            assert torch.equal(bits_of(t)[where], bits_of(b)[where])
            assert not tensors or torch.isfinite(t[~where]).all()


def test_fresh_momenta_are_not_read_and_0_where_protected(backend, device):
    model = Model(device)
    for m in model.first:
        m.fill_(NAN)
    model.sgd(momentum=0.9, dampening=0.5, first=True)
    for m, g, taken in zip(model.first, model.grads, model.taken("exact"), strict=True):
        assert torch.equal(m, torch.where(taken, 0.0, g))


@pytest.mark.parametrize("how", HOWS)
def test_an_infinite_gradient_anywhere_means_no_write(backend, device, how):
    method, options = HOWS[how]
    model = Model(device)
    before = snapshot([model.params, model.first, model.second, model.steps])
    getattr(model, method)(**options, **scalars(device, found=1.0))
    after = [model.params, model.first, model.second, model.steps]
    for tensors, old in zip(after, before, strict=True):
        assert all(torch.equal(t, b) for t, b in zip(tensors, old, strict=True))


@pytest.mark.parametrize("how", ["sgd nesterov", "sgd first", "adamw"])
def test_memory_orders_agree(backend, device, how):
    method, options = HOWS[how]
    results = []
    for name in variants(torch.zeros(2, 3, 4, 4)):
        model = Model(device)
        for tensors in (model.params, model.first, model.second):
            tensors[:] = [variants(t).get(name, t) for t in tensors]
        found = getattr(model, method)(**options)
        results.append([t.contiguous() for tensors in found for t in tensors])
    assert len(results) > 2
    for other in results:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_gradients_in_another_order_than_their_parameter(backend, device):
    models = [Model(device) for _ in range(2)]
    models[0].grads = [g.t().contiguous().t() if g.dim() == 2 else g for g in models[0].grads]
    images = torch.channels_last
    models[0].params[2] = models[0].params[2].contiguous(memory_format=images)
    found, wanted = (model.adam() for model in models)
    for a, b in zip(found, wanted, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("protection", ops.grad_clamp.PROTECTIONS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("how", HOWS)
def test_empty_sides_protect_nothing(backend, device, how, kind, protection, monkeypatch):
    """As the protected optimizers give them: the same bits as from sides without a task."""
    name, more = HOWS[how]
    free, found = Model(device, *kind), Model(device, *kind)
    for model in (free, found):
        model.outs = [torch.zeros_like(side) for side in model.outs]
    wanted = getattr(free, name)(protection=protection, **more)
    chosen = backends.select

    def without_sides(op, like):
        run = chosen(op, like)
        at = 3 if op.startswith("sgd") else 5
        return lambda *args: run(*args[:at], [], [], *args[at + 2 :])

    monkeypatch.setattr(backends, "select", without_sides)
    for found_list, wanted_list in zip(
        getattr(found, name)(protection=protection, **more), wanted, strict=True
    ):
        assert all(map(torch.equal, map(bits_of, found_list), map(bits_of, wanted_list)))


@pytest.mark.parametrize("protection", ops.grad_clamp.PROTECTIONS)
def test_the_norm_without_sides_is_that_of_all(backend, device, protection):
    model = Model(device)
    run = backends.select("unprotected_norm", model.grads[0])
    found = run(model.grads, [], [], model.groups, protection == "exact", torch.tensor(2.0))
    whole = torch.cat([g.flatten() for g in model.grads])
    torch.testing.assert_close(found, whole.double().norm().float() / 2)


def test_by_hand(backend, device):
    """SGD of 1 - 0.5 * 2, a protected element, and a bound."""
    param = torch.ones(1, 3, device=device)
    grad = torch.tensor([[2.0, 2.0, -9.0]], device=device)
    sides = [torch.tensor([1], device=device)], [torch.tensor([0, 1, 2], device=device)]
    ops.sgd_update_([param], [grad], [], *sides, lr=0.5, bounds=2.0)
    assert param.tolist() == [[0.0, 1.0, 2.0]]


def test_the_65th_task_is_a_task(backend, device):
    for word in ([-(2**63), 0], [0, 1]):
        param = torch.ones(2, 2, device=device)
        side = torch.tensor([word, [0, 0]], device=device)
        ops.sgd_update_([param], [param.clone()], [], [side], [side], lr=1.0)
        assert param.tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("protection", ops.grad_clamp.PROTECTIONS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_the_norm_of_what_is_not_protected(backend, device, dtype, protection):
    for words, scale in ((1, None), (2, torch.tensor(4.0, device=device))):
        model = Model(device, dtype, words=words)
        taken = model.taken(protection)
        for g, where in zip(model.grads, taken, strict=True):
            g[where] = NAN
        squares = [g.double()[~w].square().sum() for g, w in zip(model.grads, taken, strict=True)]
        wanted = torch.stack(squares).sum().sqrt() / (1 if scale is None else 4)
        sides = model._outs(), model._ins()
        more = {"groups": model.groups, "protection": protection, "scale": scale}
        found = ops.unprotected_norm(model.grads, *sides, **more)
        assert found.dtype == F32 and found.shape == ()
        assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_empty_lists():
    assert ops.unprotected_norm([], [], []) == 0
    ops.sgd_update_([], [], [], [], [], lr=0.1)
    ops.adam_update_([], [], [], [], [], [], [], lr=0.1)


OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {}),
    "SGD decay": (torch.optim.SGD, {"weight_decay": 0.1, "maximize": True}),
    "SGD momentum": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "SGD nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "Adam": (torch.optim.Adam, {"weight_decay": 0.1, "betas": (0.4, 0.9)}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.1, "maximize": True}),
}
LR = 0.02


def _leaves(device, dtype=F32):
    torch.manual_seed(3)
    # Whole vectors: what is left over torch computes by a scalar loop, rounded in other places.
    shapes = (64, 32), (128,), (32, 8, 2, 2)
    return [nn.Parameter(torch.randn(s, device=device).to(dtype)) for s in shapes]


def _our_step(params, grads, options, name, state):
    """One step from ``state``, a dict a parameter as torch's optimizers have it."""
    common = {k: options[k] for k in ("weight_decay", "maximize") if k in options}
    sides = [None] * len(params), [torch.zeros(_ins(p), dtype=torch.long) for p in params]
    sides = sides[0], [side.to(p.device) for side, p in zip(sides[1], params, strict=True)]
    with torch.no_grad():
        if name.startswith("SGD"):
            momenta = [s["momentum_buffer"] for s in state] if "momentum" in options else []
            more = {k: options[k] for k in ("momentum", "dampening", "nesterov") if k in options}
            ops.sgd_update_(params, grads, momenta, *sides, lr=LR, **common, **more)
        else:
            lists = [[s[k] for s in state] for k in ("exp_avg", "exp_avg_sq", "step")]
            more = {"betas": options.get("betas", (0.9, 0.999)), "decoupled": name == "AdamW"}
            ops.adam_update_(params, grads, *lists, *sides, lr=LR, **common, **more)


def _ins(param):
    return param.shape[1] if param.dim() > 1 else 1


def ulps(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach(), wanted.detach()
    step = torch.nextafter(wanted.abs(), torch.full_like(wanted, INF)) - wanted.abs()
    return ((found - wanted).abs() / step).max().item()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_step_is_within_an_ulp_of_torchs_fused(backend, device, name):
    if backend != "cpp" and device == "cpu":
        pytest.skip("an emulated GPU and Triton's interpreter round fused products twice")
    build, options = OPTIMIZERS[name]
    params = _leaves(device)
    optimizer = build(params, lr=LR, fused=True, **options)
    for step in range(6):
        for p in params:
            p.grad = torch.randn_like(p) * 10.0 ** (step - 3)
        if step == 0:  # state exists from here on
            optimizer.step()
            continue
        ours = [p.detach().clone() for p in params]
        state = [copy.deepcopy(optimizer.state[p]) for p in params]
        optimizer.step()
        _our_step(ours, [p.grad for p in params], options, name, state)
        for p, q, kept in zip(params, ours, state, strict=True):
            assert ulps(q, p) <= 1
            for key, value in optimizer.state[p].items():
                if value is not None:
                    assert ulps(kept[key], value) <= 1, key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_100_steps_no_further_from_fused_than_foreach_is(backend, device, name):
    if backend != "cpp" and device == "cpu":
        pytest.skip("the CPU kernels' and a real GPU's affair: it takes long")
    build, options = OPTIMIZERS[name]
    fused, foreach, ours = _leaves(device), _leaves(device), _leaves(device)
    optimizers = [
        build(fused, lr=LR, fused=True, **options),
        build(foreach, lr=LR, foreach=True, **options),
        build(ours, lr=LR, fused=True, **options),
    ]
    for step in range(100):
        for trio in zip(fused, foreach, ours, strict=True):
            grad = torch.randn_like(trio[0]) + trio[0].detach() * 0
            for p in trio:
                p.grad = grad.clone()
        optimizers[0].step()
        optimizers[1].step()
        if step == 0:
            optimizers[2].step()
        else:
            state = [optimizers[2].state[p] for p in ours]
            _our_step(ours, [p.grad for p in ours], options, name, state)
    far = max((a - b).abs().max().item() for a, b in zip(fused, foreach, strict=True))
    mine = max((a - b).abs().max().item() for a, b in zip(fused, ours, strict=True))
    assert mine <= far


def test_clipping_is_torchs(backend, device):
    """Unprotected, by the norm of all: clip_grad_norm_ and a step."""
    params = _leaves(device)
    for p in params:
        p.grad = torch.randn_like(p)
    ours = [p.detach().clone() for p in params]
    grads = [p.grad.clone() for p in params]
    nn.utils.clip_grad_norm_(params, 1.5)
    torch.optim.SGD(params, lr=LR).step()
    outs = [None] * 3
    ins = [torch.zeros(_ins(p), dtype=torch.long, device=device) for p in params]
    norm = ops.unprotected_norm(grads, outs, ins)
    ops.sgd_update_(ours, grads, [], outs, ins, lr=LR, norm=norm, max_norm=1.5)
    for p, q in zip(params, ours, strict=True):
        torch.testing.assert_close(q, p.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_bit(threads, two_threads):
    model, other = Model("cpu"), Model("cpu")
    big = torch.randn(300, 400)
    sides = [torch.randint(0, 2, (n,)) for n in (300, 400)]
    sums = []
    for m in (model, other):
        p = [big.clone()]
        torch.set_num_threads(threads if m is model else 2)
        v, s = [big.abs()], [torch.tensor(1.0)]
        ops.adam_update_(p, [big], [big.clone()], v, s, sides[:1], sides[1:], lr=0.1)
        sums.append((p[0], ops.unprotected_norm([big], sides[:1], sides[1:])))
    assert all(torch.equal(a, b) for a, b in zip(*sums, strict=True))


def test_compiles_to_one_graph(backend, device):
    found, wanted = Model(device), Model(device)

    def step(params, grads, first, second, steps, outs, ins, scale):
        norm = ops.unprotected_norm(grads, outs, ins, groups=wanted.groups)
        more = {"lr": 0.1, "scale": scale, "groups": wanted.groups}
        ops.adam_update_(params, grads, first, second, steps, outs, ins, **more)
        ops.sgd_update_(params, grads, [], outs, ins, norm=norm, max_norm=1.0, **more)

    def arguments(m):
        scale = torch.tensor(2.0, device=device)
        return m.params, m.grads, m.first, m.second, m.steps, m._outs(), m._ins(), scale

    torch.compile(step, fullgraph=True, backend="aot_eager")(*arguments(found))
    step(*arguments(wanted))
    for a, b in zip(found.params, wanted.params, strict=True):
        assert torch.equal(a, b)
