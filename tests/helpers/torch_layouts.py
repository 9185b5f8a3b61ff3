"""Published PyTorch layouts, key by key, and arrays to fill them: written from the layouts, not from our networks."""

import zlib

import numpy as np


def norm(name, c):
    return {f"{name}.{leaf}": (c,) for leaf in ("weight", "bias", "running_mean", "running_var")}


def resnet18_shapes(width=1.0, prefix=""):
    """torchvision's and timm's ResNet-18, without the classifier `fc`."""
    c1, c2, c3, c4 = (max(4, round(c * width)) for c in (64, 128, 256, 512))
    shapes = {"conv1.weight": (c1, 3, 7, 7)} | norm("bn1", c1)
    for level, (i, o) in enumerate(((c1, c1), (c1, c2), (c2, c3), (c3, c4)), 1):
        for block in (0, 1):
            name, inner = f"layer{level}.{block}", o if block else i
            shapes |= {f"{name}.conv1.weight": (o, inner, 3, 3)} | norm(f"{name}.bn1", o)
            shapes |= {f"{name}.conv2.weight": (o, o, 3, 3)} | norm(f"{name}.bn2", o)
        if level > 1:
            name = f"layer{level}.0.downsample"
            shapes |= {f"{name}.0.weight": (o, i, 1, 1)} | norm(f"{name}.1", o)
    return {prefix + key: shape for key, shape in shapes.items()}


def dfv_shapes(width=1.0):
    """DFV, four levels, without the idle classifier of its encoder."""
    c16, c32, c64, c128, c256, c512 = (max(4, round(c * width)) for c in (16, 32, 64, 128, 256, 512))
    shapes = resnet18_shapes(width, "feature_extraction.encoder.")

    def unit(name, i, o, k):
        return {f"{name}.cbr_unit.0.weight": (o, i, k, k)} | norm(f"{name}.cbr_unit.1", o)

    def conv3d(name, i, o, k):
        return {f"{name}.0.weight": (o, i, k, k, k)} | norm(f"{name}.1", o)

    features = {}
    for i in range(4):
        features |= unit(f"pyramid_pooling.path_module_list.{i}", c512, c512, 1)
    for level, i, o in ((6, c512, c256), (5, c256, c128), (4, c128, c64)):
        features |= unit(f"upconv{level}.1", i, o, 3) | unit(f"iconv{level - 1}", i, o, 3)
    for level, i, o in ((6, c512, c128), (5, c256, c64), (4, c128, c32), (3, c64, c16)):
        features |= unit(f"proj{level}", i, o, 1)
    shapes |= {f"feature_extraction.{key}": shape for key, shape in features.items()}

    for level, i, c, up in ((3, 2 * c16, c32, 0), (4, 2 * c32, c32, c16), (5, 2 * c64, c64, c32), (6, c128, c128, c64)):
        name = f"decoder{level}"
        shapes |= conv3d(f"{name}.convs.0.conv1", i, c, 3)
        for rest in ("convs.0.conv2", "convs.1.conv1", "convs.1.conv2", "classify.0"):
            shapes |= conv3d(f"{name}.{rest}", c, c, 3)
        shapes |= {f"{name}.classify.2.0.weight": (1, c, 3, 3, 3), f"{name}.classify.2.0.bias": (1,)}
        if i != c:
            shapes |= {f"{name}.convs.0.downsample.conv1.weight": (c, i, 1, 1)}
            shapes |= norm(f"{name}.convs.0.downsample.bn", c)
        if up:
            shapes |= conv3d(f"{name}.up.1", c, up, 3)
        if level > 4:
            for branch in range(4):
                shapes |= conv3d(f"{name}.pool_convs.{branch}", c, c, 1)
    return shapes


def waves(shapes):
    """Arrays by a closed formula of key and position, of sizes that keep a signal alive."""
    found = {}
    for key, shape in shapes.items():
        size = int(np.prod(shape))
        wave = np.sin(zlib.crc32(key.encode()) % 1000 + 1.7 * np.arange(size)).reshape(shape)
        if len(shape) > 1:
            wave = wave * np.sqrt(4 / np.prod(shape[1:]))
        elif key.endswith("var"):
            wave = 1 + 0.5 * wave
        else:
            wave = (0.0 if key.endswith(("bias", "mean")) else 1.0) + 0.2 * wave
        found[key] = wave.astype(np.float32)
    return found


def wave_stacks(b, z, h, w):
    """Frames [b,z,h,w,3] in [0,1] and focus settings [b,z] by a closed formula."""
    index = np.arange(b * z * h * w * 3)
    frames = 0.5 + 0.25 * np.sin(0.37 * index) + 0.25 * np.sin(0.00113 * index)
    focus = 10 + 90 * (np.arange(z) / (z - 1)) ** 1.5 + np.arange(b)[:, None]
    return frames.reshape(b, z, h, w, 3).astype(np.float32), focus.astype(np.float32)
