"""All damaged variants for test_fuzz.py; here those of weights, configurations and prepared datasets."""

import json
import re
import struct
from pathlib import Path

import dataset_files as files
import numpy as np
import training_fakes
from fuzz_damage import ANY, BIG, ERROR, SUMMED, Cases
from fuzz_maps import maps, pictures
from fuzz_sources import hdf5, texts
from safetensors.numpy import save

from dff_jax import config as configs
from dff_jax.data import datasets
from dff_jax.estimators.weights import save_weights


def weights(cases):
    rng = np.random.default_rng(7)
    net = {
        "Conv_0": {"kernel": rng.normal(size=(3, 3, 3, 4)).astype(np.float32)},
        "BatchNorm_0": {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)},
        "Conv_1": {"kernel": np.ones((3, 3, 4, 1), np.float32), "bias": np.zeros(1, np.float32)},
        "Conv_2": {"kernel": np.ones((3, 3, 1, 2), np.float32), "bias": np.zeros(2, np.float32)},
        "Conv_3": {"kernel": np.ones((3, 3, 1, 1), np.float32), "bias": np.zeros(1, np.float32)},
        "move": np.float32(0.5),
    }
    stats = {"BatchNorm_0": {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)}}
    path = cases.root / "w" / "weights.safetensors"
    save_weights(path, configs.tiny(), {"params": net, "batch_stats": stats}, {"num_frames": training_fakes.FRAMES})
    cases.damage("weights", "weights", path, None, SUMMED, count=40, seed=500)

    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])

    def again(name, change, allowed=ERROR):
        changed = json.loads(json.dumps(header))
        change(changed)
        text = json.dumps(changed).encode()
        cases.file(f"weights: {name}", "weights", path, struct.pack("<Q", len(text)) + text + data[8 + size :], allowed)

    key = "params/Conv_0/kernel"
    again("a key less", lambda h: h.pop(key))
    again("another key", lambda h: h.update({"params/../../x": h.pop(key)}))
    again("another type", lambda h: h[key].update(dtype="I32"))
    again("an unknown type", lambda h: h[key].update(dtype="F1"))
    again("a type of 8 bit", lambda h: h[key].update(dtype="F8_E4M3", shape=[3, 3, 3, 16]))
    again("another shape", lambda h: h[key].update(shape=[9, 3, 4]))
    again("a shape of 2^31", lambda h: h[key].update(shape=[BIG, BIG]))
    again("a negative shape", lambda h: h[key].update(shape=[-1]))
    again("an offset beyond the end", lambda h: h[key].update(data_offsets=[0, 10**12]))
    again("overlapping tensors", lambda h: h[key].update(data_offsets=h["params/Conv_1/kernel"]["data_offsets"]))
    again("no metadata", lambda h: h.pop("__metadata__"))
    for field in ("format", "version", "model", "info", "sha256"):
        again(f"no {field}", lambda h, field=field: h["__metadata__"].pop(field))
    model = header["__metadata__"]["model"]
    for name, text in {
        "10^9 iterations": re.sub(r'("num_iterations":) \d+', r"\1 1000000000", model),
        "nested": "[" * 10**5, "a list": "[]", "NaN": '{"width": NaN}', "a number of 10^5 digits": "9" * 10**5,
    }.items():  # fmt: skip
        again(f"model: {name}", lambda h, text=text: h["__metadata__"].update(model=text))
    for text in ("[]", "{", '{"num_frames": 1000000000000}', '{"num_frames": "x"}', '{"num_frames": -3}'):
        again(f"info {text}", lambda h, text=text: h["__metadata__"].update(info=text))
    for name, raw in {
        "a header of 2^60 bytes": struct.pack("<Q", 2**60) + data[8:],
        "a header of 2^32 bytes": struct.pack("<Q", 2**32) + data[8:],
        "a header of 0 bytes": struct.pack("<Q", 0) + data[8:],
        "other tensors": save({"x": np.zeros(3)}),
    }.items():
        cases.file(f"weights: {name}", "weights", path, raw, ERROR)


def configurations(cases):
    path = cases.root / "config" / "config.json"
    path.parent.mkdir()
    text = configs.to_json(configs.Config())
    path.write_text(text)
    cases.damage("config", "config", path, None, ANY, count=40, seed=600)
    for name, data in {
        "a list": "[]", "a number": "3", "null": "null", "nested": "[" * 10**5, "nested fields": '{"model":' * 10**4,
        "10^5 digits": '{"seed": ' + "9" * 10**5 + "}", "NaN": '{"loss": {"gamma": NaN}}',
        "a field of text": '{"seed": "1"}', "an unknown field": '{"modell": {}}', "true for 1": '{"seed": true}',
        "a field with a line break": '{"a\\nb": 1}',
        "a section that is a list": '{"model": [1, 2]}', "a section that is null": '{"model": null}',
        "negative steps": '{"training": {"num_steps": -5}}', "infinite": '{"optimizer": {"clip_norm": -Infinity}}',
        "a mixture of numbers": '{"data": {"mixture": [1, 2]}}', "a mixture of text": '{"data": {"mixture": "ab"}}',
        "a crop of three": '{"data": {"crop": [1, 2, 3]}}', "a crop of text": '{"data": {"crop": ["a", "b"]}}',
        "a choice that is a list": '{"model": {"method": ["proximal"]}}',
        "a choice that is a section": '{"model": {"method": {"a": 1}}}',
        "UTF-16": text.encode("utf-16").decode("latin1"),
    }.items():  # fmt: skip
        cases.file(f"config: {name}", "config", path, data.encode("latin1"), ERROR)


def records(cases):
    base = cases.root / "tfds"
    datasets.prepare("middlebury/focal_stack", base, source=files.middlebury(cases.root / "middlebury"))
    folder = next(base.rglob("*.array_record*")).parent
    inner = folder.relative_to(base)
    record = next(folder.glob("*.array_record*")).name
    cases.damage("records", "dataset", base, inner / record, SUMMED, count=30, seed=700)
    raw = (folder / record).read_bytes()
    for i, start in enumerate((64, 65536, 131072, len(raw) - 65536, len(raw) - 65500)):  # headers of blocks and chunks
        data = bytearray(raw)
        data[start : start + 64] = bytes(b ^ 255 for b in raw[start : start + 64])
        cases.inside(f"records: header {i}", "dataset", base, inner / record, bytes(data), SUMMED)
    cases.inside("records: gone", "dataset", base, inner / record, None, ERROR)
    for name in ("dataset_info.json", "features.json"):
        cases.damage(name, "dataset", base, inner / name, SUMMED, count=10, seed=710)
        cases.inside(f"{name}: gone", "dataset", base, inner / name, None, ERROR)
    cases.damage("metadata.json", "dataset", base, inner / "metadata.json", SUMMED, count=10, seed=720)
    cases.inside("metadata: unit", "dataset", base, inner / "metadata.json", b'{"unit": "mile"}', ERROR)
    cases.inside("metadata: a list", "dataset", base, inner / "metadata.json", b"[]", ERROR)


GROUPS = {
    "light": (pictures, maps, texts),
    "heavy": (hdf5, weights, configurations, records),
}


def make(root: Path, group: str) -> list[dict]:
    """All cases of a group, their files below `root`."""
    cases = Cases(root)
    for write in GROUPS[group]:
        write(cases)
    return cases.found
