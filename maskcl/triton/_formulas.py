"""The scalar formulas of the kernels, each once, written so that exp cannot overflow."""

from maskcl.triton._compat import tl, triton


@triton.jit
def sigmoid(x):
    # exp never sees a positive number: no overflow, and no cancellation far below 0.
    p = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, p) / (1.0 + p)


@triton.jit
def sigmoid_slope(x):
    p = tl.exp(-tl.abs(x))
    return p / ((1.0 + p) * (1.0 + p))


@triton.jit
def size(x, SQUARE: tl.constexpr):
    return x * x if SQUARE else tl.abs(x)


@triton.jit
def cosh(x):
    return 0.5 * (tl.exp(tl.abs(x)) + tl.exp(-tl.abs(x)))


@triton.jit
def tanh(x):
    # Near 0 the quotient of exponentials cancels, so the series takes over.
    a = tl.abs(x)
    p = tl.exp(-2.0 * a)
    far = (1.0 - p) / (1.0 + p)
    q = tl.minimum(a, 0.25)
    q = q * q
    near = x * (1.0 - q * (1.0 / 3.0 - q * (2.0 / 15.0 - q * (17.0 / 315.0 - q * (62.0 / 2835.0)))))
    return tl.where(a < 0.25, near, tl.where(x < 0, -far, far))


@triton.jit
def gelu_tanh_inner(z):
    return tanh(0.7978845608028654 * (z + 0.044715 * z * z * z))  # sqrt(2 / pi)


@triton.jit
def activate(z, slope, ACTIVATION: tl.constexpr):
    a = z
    if ACTIVATION == "relu":
        a = tl.where(z <= 0, 0.0, z)  # NaN stays NaN
    elif ACTIVATION == "gelu":
        a = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        a = 0.5 * z * (1.0 + gelu_tanh_inner(z))
    elif ACTIVATION == "silu":
        a = z * sigmoid(z)
    elif ACTIVATION == "tanh":
        a = tanh(z)
    elif ACTIVATION == "sigmoid":
        a = sigmoid(z)
    elif ACTIVATION == "leaky_relu":
        a = tl.where(z > 0, z, z * slope)
    return a


@triton.jit
def activation_slope(z, a, slope, ACTIVATION: tl.constexpr):
    """Slope act' at z, from a = act(z) alone where that suffices."""
    d = tl.full(a.shape, 1.0, tl.float32)
    if ACTIVATION == "relu":
        d = tl.where(a > 0, 1.0, 0.0)
    elif ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)  # 1 / sqrt(2 pi)
        d = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * density
    elif ACTIVATION == "gelu_tanh":
        t = gelu_tanh_inner(z)
        inner = 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * z * z)
        d = 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * inner
    elif ACTIVATION == "silu":
        p = sigmoid(z)
        d = p * (1.0 + z * (1.0 - p))
    elif ACTIVATION == "tanh":
        d = 1.0 - a * a
    elif ACTIVATION == "sigmoid":
        d = a * (1.0 - a)
    elif ACTIVATION == "leaky_relu":
        d = tl.where(a > 0, 1.0, slope)
    return d


@triton.jit
def mask_value(s, kth, threshold, scale, LEVELS: tl.constexpr, INCLUSIVE: tl.constexpr):
    """m(s) of float32 scores; comparisons with NaN are false, so that NaN gives 0 (soft: NaN)."""
    if LEVELS == "soft":
        m = sigmoid(scale * (s - threshold))
    elif LEVELS == "topk":
        m = tl.where(tl.abs(s) >= kth, 1.0, 0.0)
    elif LEVELS == "ternary":
        m = tl.where(s > threshold, 1.0, tl.where(s < 0, -1.0, 0.0))
    elif LEVELS == "ternary_symmetric":
        sign = tl.where(s > 0, 1.0, tl.where(s < 0, -1.0, 0.0))
        m = tl.where(tl.abs(s) > threshold, sign, 0.0)
    elif INCLUSIVE:
        m = tl.where(s >= threshold, 1.0, 0.0)
    else:
        m = tl.where(s > threshold, 1.0, 0.0)
    return m


@triton.jit
def masked(w, m, SOFT: tl.constexpr):
    """W m in W's dtype: 0 where m is 0, whatever W is; other levels than soft do not multiply."""
    if SOFT:
        product = tl.where(m == 0, 0.0, w.to(tl.float32) * m).to(w.dtype)
    elif w.dtype.primitive_bitwidth == 16:
        sign = tl.where(m < 0, -0x8000, 0).to(tl.int16)
        # All in the integers: a select of halves by ``m == 0`` has its bools carried between the
        # layouts of tensor cores, which Triton 3.8 does not compile for weights of one column.
        kept = tl.where(m == 0, 0, -1).to(tl.int16)
        product = ((w.to(tl.int16, bitcast=True) ^ sign) & kept).to(w.dtype, bitcast=True)
    else:
        product = tl.where(m == 0, 0.0, tl.where(m < 0, -w, w))
    return product


@triton.jit
def bit_value(on, negative, TERNARY: tl.constexpr):
    """m of a weight, from words already shifted so that its bits are the lowest."""
    m = (on & 1).to(tl.float32)
    if TERNARY:
        m = tl.where((negative & 1) != 0, -m, m)
    return m
