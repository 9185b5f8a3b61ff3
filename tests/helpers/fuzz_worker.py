"""Reads damaged files in a process of its own, with little memory; started by test_fuzz.py.

`python fuzz_worker.py MANIFEST FIRST`: reads cases FIRST, FIRST + 1, ... of a JSON list of {reader, path, base} and
prints `begin I` and `end I VERDICT` for each. A case that crashes or hangs ends the process.
"""

import json
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from dff_jax.errors import InputError

MEMORY = 2 * 2**30  # beyond what the imports and the undamaged files took
SECONDS = 20  # a case


def raise_first(problems):
    if problems:
        raise InputError(problems[0])


def arrays_of(items):
    stacks = [item.read() for item in items]
    return [x for s in stacks for x in (s.frames, s.focus, s.depth, s.mask) if x is not None]


def converted(family, config, path):
    """What a builder makes of a source; all splits."""
    from dff_jax.data import datasets

    found = datasets.find(f"{family}/{config}").survey(path)
    raise_first(found.problems)
    return arrays_of(item for split in sorted(found.splits) for item in found.splits[split])


def read_stack(path):
    from dff_jax.data.files.stack import read_stack

    stack, _ = read_stack(path)
    return [stack.frames, stack.focus]


def read_labelled(path):
    from dff_jax.data.files import folder

    stack = folder.read_labelled_stack(path, "disparity")
    return [stack.frames, stack.focus, stack.depth, stack.mask]


def read_map(path):
    from dff_jax.data.files.depth_maps import read_depth_map

    return list(read_depth_map(path))


def read_scenes(path):
    from dff_jax.data.files import rgbd

    scenes = [rgbd.read_scene(files) for files in rgbd.list_scenes(path)]
    return [x for scene in scenes for x in (scene.rgb, scene.depth, scene.mask)]


def read_light_field(path):
    from dff_jax.data.files import light_fields

    problems, scene = light_fields.probe_light_field(path)
    raise_first(problems)
    views = light_fields.read_views(scene)
    return [views, *read_map(path / light_fields.TRUTH)]


def read_weights(path):
    import training_fakes

    from dff_jax import estimators
    from dff_jax.estimators.weights import load_weights

    estimators.build = training_fakes.build
    found = load_weights(path)
    text = json.dumps([repr(found.model), found.info], sort_keys=True)
    return [*_leaves(found.variables), np.frombuffer(text.encode(), np.uint8)]


def read_config(path):
    from dff_jax import config

    data = config.from_json(path.read_bytes().decode("utf-8", "replace"))
    return [np.frombuffer(config.to_json(data).encode(), np.uint8)]


def read_dataset(path):
    from dff_jax.data.pipeline import tfds_source

    source = tfds_source("middlebury/focal_stack", "test", path)
    return arrays_of(_Readable(source, i) for i in range(len(source)))


class _Readable:
    def __init__(self, source, index):
        self.read = lambda: source[index]


READERS = {
    "stack": read_stack, "labelled": read_labelled, "map": read_map, "scenes": read_scenes, "weights": read_weights,
    "light_field": read_light_field, "config": read_config, "dataset": read_dataset,
    "hci": lambda path: converted("hci", "stacks", path),
    "ddff12": lambda path: converted("ddff12", "scenes", path),
    "mobile": lambda path: converted("mobile_depth", "aligned", path),
}  # fmt: skip


def _leaves(tree):
    return [leaf for key in sorted(tree) for leaf in _leaves(tree[key])] if isinstance(tree, dict) else [tree]


def _same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _alike(a, b):
    """Other values, but of the same shapes and types, and finite."""
    shapes = [(x.shape, x.dtype) for x in a] == [(y.shape, y.dtype) for y in b]
    return shapes and all(np.isfinite(x).all() for x in a if x.dtype.kind == "f")


def verdict(case, base):
    """`error`, `equal`, `changed`, or what is wrong."""
    path = Path(case["path"])
    try:
        found = READERS[case["reader"]](path)
    except InputError as error:
        text = str(error)
        named = case["reader"] == "config" or path.name in text or str(path) in text
        if not named or "\n" in text or len(text) > 2000:
            return f"an error without the file's name, or too long: {text[:300]!r}"
        return "error"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if _same(found, base):
        return "equal"
    return "changed" if _alike(found, base) else f"nonsense: {[(x.shape, str(x.dtype)) for x in found][:6]}"


def main(manifest, first):
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=ResourceWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    cases = json.loads(Path(manifest).read_text())[first:]
    bases = {key: READERS[key[0]](Path(key[1])) for key in {(case["reader"], case["base"]) for case in cases}}
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number, case in enumerate(cases, first):
        print(f"begin {number}", flush=True)
        signal.alarm(SECONDS)
        start = time.perf_counter()
        found = verdict(case, bases[case["reader"], case["base"]])
        signal.alarm(0)
        print(f"end {number} {json.dumps([found, time.perf_counter() - start])}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
