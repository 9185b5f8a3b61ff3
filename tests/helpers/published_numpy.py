"""The published networks once more, in NumPy alone: written from their description, slow, in double precision.

Arrays are PyTorch's: [B,C,Z,H,W], kernels (out,in,z,y,x), transposed ones (in,out,z,y,x); weights lie under published
names. Nothing here comes from `dff_jax`, so that a mistake there is not repeated here.
"""

import numpy as np


def published_state(variables, torch_key):
    """Our flat variables "params/.../kernel" -> x, under published names and in PyTorch's axes, in double precision."""
    turned = {path: np.float64(x) for path, x in variables.items()}
    turned = {p: np.moveaxis(x, (-1, -2), (0, 1)) if p.endswith("/kernel") else x for p, x in turned.items()}
    return {torch_key(path): x for path, x in turned.items()}


def relu(x):
    return np.maximum(x, 0)


def cat(*parts):
    return np.concatenate(parts, 1)


def conv(x, w, b=0.0, stride=1, dilation=1):
    """Padded by half a kernel; stride and dilation are those of H and W."""
    steps = (1, dilation, dilation)
    x = np.pad(x, [(0, 0), (0, 0), *((s * (k // 2),) * 2 for s, k in zip(steps, w.shape[2:], strict=True))])
    size = [n - s * (k - 1) for n, s, k in zip(x.shape[2:], steps, w.shape[2:], strict=True)]
    y = 0.0
    for tap in np.ndindex(*w.shape[2:]):
        z, h, v = (slice(s * i, s * i + n) for s, i, n in zip(steps, tap, size, strict=True))
        y = y + np.einsum("oi,bizhw->bozhw", w[:, :, *tap], x[:, :, z, h, v][..., ::stride, ::stride])
    return y + np.reshape(b, (1, -1, 1, 1, 1))


def conv_transpose(x, w, b=0.0):
    """To twice H and W: each value spreads its kernel, and one row is cut off at each side."""
    n, _, z, h, v = x.shape
    y = np.zeros((n, w.shape[1], z + 2, 2 * h + 2, 2 * v + 2))
    for i, j, k in np.ndindex(*w.shape[2:]):
        y[:, :, i : i + z, j : j + 2 * h : 2, k : k + 2 * v : 2] += np.einsum("io,bizhw->bozhw", w[:, :, i, j, k], x)
    return y[:, :, 1 : 1 + z, 1 : 1 + 2 * h, 1 : 1 + 2 * v] + np.reshape(b, (1, -1, 1, 1, 1))


def windows(x, size, stride, pad=0, fill=0.0):
    """Windows over the last three axes, padded by `pad` (z, y, x) on both sides; an incomplete one is left out."""
    pads = np.broadcast_to(pad, 3)
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in pads)], constant_values=fill)
    found = np.lib.stride_tricks.sliding_window_view(x, size, (2, 3, 4))
    return found[:, :, :: stride[0], :: stride[1], :: stride[2]]


def max_pool(x, size, stride, pad=0):
    return windows(x, size, stride, pad, -np.inf).max((-3, -2, -1))


def average_pool(x, size):
    return windows(x, size, size).mean((-3, -2, -1))


def resize(x, *size):
    """Linear, half-pixel centres, the ends held: the last axes to `size`."""
    for axis, n in zip(range(-len(size), 0), size, strict=True):
        m = x.shape[axis]
        at = np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1)
        low = np.minimum(np.int64(at), max(m - 2, 0))
        share = (at - low).reshape(-1, *(1,) * (-1 - axis))
        x = x.take(low, axis) * (1 - share) + x.take(np.minimum(low + 1, m - 1), axis) * share
    return x


class Layers:
    """Convolutions and BatchNorm by the names of their weights; training moves the running statistics in `state`."""

    def __init__(self, state, prefix="", train=False):
        self.state, self.prefix, self.train = state, prefix, train

    def array(self, name):
        return self.state[self.prefix + name]

    def bias(self, name):
        return self.state.get(f"{self.prefix}{name}.bias", 0.0)

    def conv(self, x, name, **how):
        w = self.array(f"{name}.weight")
        return conv(x, w if w.ndim == 5 else w[:, :, None], self.bias(name), **how)  # 2-D: of each frame

    def up(self, x, name):
        return conv_transpose(x, self.array(f"{name}.weight"), self.bias(name))

    def norm(self, x, name):
        running_mean, running_var = f"{self.prefix}{name}.running_mean", f"{self.prefix}{name}.running_var"
        mean, var = self.state[running_mean], self.state[running_var]
        if self.train:
            n = x.size // x.shape[1]
            self.state[running_mean], self.state[running_var] = 0.9 * mean, 0.9 * var
            mean, var = x.mean((0, 2, 3, 4)), x.var((0, 2, 3, 4))
            self.state[running_mean] += 0.1 * mean
            self.state[running_var] += 0.1 * var * n / (n - 1)
        mean, var, gain, bias = (
            a.reshape(1, -1, 1, 1, 1) for a in (mean, var, self.array(f"{name}.weight"), self.array(f"{name}.bias"))
        )
        return (x - mean) / np.sqrt(var + 1e-5) * gain + bias

    def cb(self, x, name, **how):
        return self.norm(self.conv(x, f"{name}.0", **how), f"{name}.1")

    def ct(self, x, name):
        return self.norm(self.up(x, f"{name}.0"), f"{name}.1")


def padded(frames):
    """Frames [B,Z,H,W,3] as [B,3,Z,H',W'], zeros below and right up to multiples of 32."""
    height, width = frames.shape[2:4]
    frames = np.pad(frames, ((0, 0), (0, 0), (0, -height % 32), (0, -width % 32), (0, 0)))
    return np.moveaxis(np.float64(frames), -1, 1)


def mean_depth(weights, focus, height, width):
    """sum w f of weights [B,Z,H',W'], without the padding."""
    return np.einsum("bzhw,bz->bhw", weights[:, :, :height, :width], np.float64(focus))


def dwild(state, frames, focus, train=False):
    """Frames [B,Z,H,W,3] in [0,1] and focus [B,Z] -> D4, D3, D2, D1, each [B,H,W]."""
    net = Layers(state, "DFF_net.", train)
    cb, ct = net.cb, net.ct
    x = 2 * padded(frames)[:, ::-1] - 1  # BGR
    size = x.shape[-2:]

    def sharpness(x, name):
        f = relu(x + cb(relu(cb(x, f"{name}.Focus_Measure.conv.0")), f"{name}.Focus_Measure.conv.2"))
        attention = relu(net.conv(f, f"{name}.N_ch_attention.0"))
        return f + relu(net.conv(attention, f"{name}.N_ch_attention.2"))

    def halve(x, name):
        pooled = max_pool(x, (1, 2, 2), (1, 2, 2))
        return relu(cb(x, f"{name}.stride_conv", stride=2) + cb(pooled, f"{name}.max_pooling.1"))

    def pooled(x, n):
        x = average_pool(x, (1, n // 4, n // 4))
        x = relu(cb(relu(cb(x, f"SPP_module.dres{n}_0.0")), f"SPP_module.dres{n}_0.2"))
        return x + cb(relu(cb(x, f"SPP_module.dres{n}_1.0")), f"SPP_module.dres{n}_1.2")

    def pyramid(x):
        x8, x16, x32 = (pooled(x, n) for n in (8, 16, 32))
        name = "SPP_module."
        c2 = relu(cb(cat(net.conv(x8, f"{name}conv1", stride=2), x16), f"{name}combine1.0"))
        c2 = relu(cb(c2, f"{name}conv2.0"))
        c4 = relu(cb(cat(net.conv(c2, f"{name}conv3", stride=2), x32), f"{name}combine2.0"))
        c4 = relu(cb(c4, f"{name}conv4.0"))
        c8 = relu(ct(c4, f"{name}conv8") + cb(c2, f"{name}redir2"))
        return relu(ct(c8, f"{name}conv9") + cb(x8, f"{name}redir1"))

    def hourglass(x, name, presqu=None, postsqu=None):
        p1 = relu(cb(x, f"{name}.conv0.0"))
        t = cb(relu(cb(p1, f"{name}.conv1.0", stride=2)), f"{name}.conv2")
        pre = relu(t if postsqu is None else t + postsqu)
        t = relu(cb(relu(cb(pre, f"{name}.conv3.0", stride=2)), f"{name}.conv4.0"))
        t = relu(ct(t, f"{name}.conv5") + (pre if presqu is None else presqu))
        return ct(t, f"{name}.conv6"), p1

    def answer(logits):
        w = np.logaddexp(0, resize(logits[:, 0], *size)) + 1e-6
        return mean_depth(w / w.sum(1, keepdims=True), focus, *frames.shape[2:4])

    v1 = sharpness(relu(cb(x, "FM_measure.Focus_extraction.0", dilation=2)), "FM_measure.Focus_extraction.2")
    v2 = sharpness(halve(v1, "FM_conv1.0"), "FM_conv1.1")
    v3 = sharpness(halve(v2, "FM_conv2.0"), "FM_conv2.1")
    v = pyramid(v3)
    d1 = net.conv(relu(cb(v, "confidence.0")), "confidence.2")
    a = ct(relu(cb(relu(cb(v, "dres0.0")), "dres0.2")), "deconv_1")
    o, p = hourglass(cat(a, v3), "dres2")
    a = a + o
    d2, a = net.conv(a, "classif1.0"), ct(a, "deconv_2")
    o, p = hourglass(cat(a, v2), "dres3", p, o)
    a = a + o
    d3, a = net.conv(a, "classif2.0"), ct(a, "deconv_3")
    o, _ = hourglass(cat(a, v1), "dres4", p, o)
    d4 = net.conv(a + o, "classif3.0")
    return [answer(d) for d in (d4, d3, d2, d1)]


def aifdnet(state, frames, focus, train=False, normalize_attention=False):
    """Frames [B,Z,H,W,3] in [0,1] and focus [B,Z] -> depth [B,H,W], with one class; 3 or 4 channels by the weights."""
    net = Layers(state, "", train)

    def c3(x, name, stride=1):
        return relu(net.cb(x, f"{name}.conv3d", stride=stride))

    def mixed(x, *names):
        for name in (f"Mixed_{name}" for name in names):
            pooled = max_pool(x, (3, 3, 3), (1, 1, 1), 1)
            x = cat(
                c3(x, f"{name}.branch0"),
                c3(c3(x, f"{name}.branch1_0"), f"{name}.branch1_1"),
                c3(c3(x, f"{name}.branch2_0"), f"{name}.branch2_1"),
                c3(pooled, f"{name}.branch3_1"),
            )
        return x

    def t3(x, name):
        return c3(relu(net.norm(net.up(x, f"{name}.trans3d.0"), f"{name}.trans3d.1")), f"{name}.trans3d.3")

    def halve(x):
        return max_pool(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))

    x = padded(frames)
    if net.array("conv3d_1a.conv3d.0.weight").shape[1] == 4:
        s = np.arange(x.shape[2]).reshape(1, 1, -1, 1, 1)
        x = cat(x, np.broadcast_to((s + 1) / x.shape[2], x[:, :1].shape))
    c1a = c3(x, "conv3d_1a", 2)
    c2c = c3(c3(halve(c1a), "conv3d_2b"), "conv3d_2c")
    m3c = mixed(halve(c2c), "3b", "3c")
    m4f = mixed(halve(m3c), "4b", "4c", "4d", "4e", "4f")
    m5c = mixed(max_pool(m4f, (1, 2, 2), (1, 2, 2)), "5b", "5c")
    x = cat(t3(m5c, "up_5c"), c3(m4f, "up_4f"))
    x = cat(t3(x, "up_5c4f"), c3(m3c, "up_3c"))
    x = cat(t3(x, "up_5c4f3c"), c3(c2c, "up_2c"))
    x = cat(t3(x, "up_5c4f3c2c"), c3(c1a, "up_1a"))
    logits = net.conv(net.up(x, "final_up"), "out")[:, 0]
    w = np.logaddexp(0, logits) if normalize_attention else np.exp(logits)
    return mean_depth(w / w.sum(1, keepdims=True), focus, *frames.shape[2:4])


def dfv(state, frames, focus, diff=False, train=False):
    """Frames [B,Z,H,W,3] in [0,1], H and W multiples of 32, and focus [B,Z] -> depths of four scales, finest first."""
    net = Layers(state, "feature_extraction.", train)
    deep = Layers(state, "", train)
    height, width = frames.shape[2:4]

    def cbl(x, name, double=False):
        x = x.repeat(2, -1).repeat(2, -2) if double else x
        x = net.cb(x, f"{name}.1.cbr_unit" if double else f"{name}.cbr_unit")
        return np.where(x > 0, x, 0.1 * x)

    def basic(x, name, stride):
        y = relu(net.norm(net.conv(x, f"{name}.conv1", stride=stride), f"{name}.bn1"))
        y = net.norm(net.conv(y, f"{name}.conv2"), f"{name}.bn2")
        return relu(y + (net.cb(x, f"{name}.downsample", stride=2) if stride == 2 else x))

    def pyramid(x, sizes, branch):
        total = sum(resize(branch(average_pool(x, size), i), *x.shape[2:]) for i, size in enumerate(sizes))
        return relu((x + 0.25 * total) / 2)

    def counts(*lengths):
        return [int(p) for p in np.linspace(1, min(lengths) // 2, 4)]

    def residual(x, name):
        y = deep.cb(relu(deep.cb(x, f"{name}.conv1")), f"{name}.conv2")
        if f"{name}.downsample.conv1.weight" in state:
            x = deep.norm(deep.conv(x, f"{name}.downsample.conv1"), f"{name}.downsample.bn")
        return relu(y + x)

    def decoder(x, name, pool=False):
        x = residual(residual(x, f"{name}.convs.0"), f"{name}.convs.1")
        s, h, w = x.shape[2:]
        if pool:
            sizes = [(s // p, h // p, w // p) for p in counts(s, h, w)]
            x = pyramid(x, sizes, lambda y, i: deep.cb(y, f"{name}.pool_convs.{i}"))
        cost = deep.conv(relu(deep.cb(x, f"{name}.classify.0")), f"{name}.classify.2.0")[:, 0]
        if name != "decoder3":
            x = relu(deep.cb(resize(x, 2 * h, 2 * w), f"{name}.up.1"))
        return cost, x

    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = np.moveaxis((frames - mean) / std, -1, 1)
    x = relu(net.norm(net.conv(x, "encoder.conv1", stride=2), "encoder.bn1"))
    x, layers = max_pool(x, (1, 3, 3), (1, 2, 2), (0, 1, 1)), []
    for i in (1, 2, 3, 4):
        x = basic(basic(x, f"encoder.layer{i}.0", 1 if i == 1 else 2), f"encoder.layer{i}.1", 1)
        layers.append(x)
    h, w = x.shape[-2:]
    sizes = [(1, h // p, w // p) for p in reversed(counts(h, w))]
    c6 = pyramid(x, sizes, lambda y, i: cbl(y, f"pyramid_pooling.path_module_list.{i}"))
    c5 = cbl(cat(layers[2], cbl(c6, "upconv6", True)), "iconv5")
    c4 = cbl(cat(layers[1], cbl(c5, "upconv5", True)), "iconv4")
    c3 = cbl(cat(layers[0], cbl(c4, "upconv4", True)), "iconv3")
    volumes = [cbl(c, f"proj{i}") for i, c in ((3, c3), (4, c4), (5, c5), (6, c6))]
    if diff:
        volumes = [np.concatenate([v[:, :, :-1] - v[:, :, 1:], v[:, :, -1:]], 2) for v in volumes]
    cost6, x = decoder(volumes[3], "decoder6", True)
    cost5, x = decoder(cat(x, volumes[2]), "decoder5", True)
    cost4, x = decoder(cat(x, volumes[1]), "decoder4")
    cost3, _ = decoder(cat(x, volumes[0]), "decoder3")
    found = []
    for cost in (cost3, cost4, cost5, cost6):
        p = np.exp(resize(cost, height, width))
        found.append(mean_depth(p / p.sum(1, keepdims=True), focus, height, width))
    return found
