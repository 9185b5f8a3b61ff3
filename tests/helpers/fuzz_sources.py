"""Damaged HDF5 files, lists and parameters of published datasets."""

import dataset_files as files
import h5py
import imagecodecs
import numpy as np
from fuzz_damage import ANY, BIG, ERROR, SUMMED, H, W, depth_map, photograph
from PIL import Image

# HDF5 ---------------------------------------------------------------------------------------------------------------


def hci_data():
    rng = np.random.default_rng(5)
    data = {"focus_position_disp": np.linspace(-2.5, 2.5, 10)[None]}
    for part, names in (("train", ["town", "dots"]), ("val", ["boxes"])):
        n = len(names)
        data[f"stack_{part}"] = rng.integers(0, 256, (n, 10, 16, 18, 3)).astype(np.float32)
        data[f"disp_{part}"] = rng.uniform(-3, 3, (n, 16, 18)).astype(np.float32)
        data[f"name_{part}"] = np.array([[name] for name in names], object)
    return data


def write_h5(path, data, libver=None, **options):
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w", libver=libver) as file:
        for key, value in data.items():
            if isinstance(value, np.ndarray) and value.dtype == object:
                file.create_dataset(key, data=value, dtype=h5py.string_dtype())
            elif isinstance(value, np.ndarray):
                file.create_dataset(key, data=value, **options)
            elif value is not None:
                file[key] = value
    return path


def hdf5(cases):
    data = hci_data()
    plain = write_h5(cases.root / "h5a" / "HCI_FS_trainval.h5", data)
    packed = write_h5(cases.root / "h5b" / "HCI_FS_trainval.h5", data, compression="gzip")
    recent = write_h5(cases.root / "h5c" / "HCI_FS_trainval.h5", data, libver="latest", chunks=True)
    for seed, base in enumerate((plain, packed, recent)):
        cases.damage(f"h5 {base.parent.name}", "hci", base, None, ANY, count=20, seed=300 + seed)
        raw = base.read_bytes()
        rng = np.random.default_rng(seed)
        for i in range(24):  # among names, types and shapes, found by what is near them
            near = [k for k in range(len(raw) - 4) if raw[k : k + 4] in (b"TREE", b"SNOD", b"HEAP", b"OHDR", b"FADB")]
            byte = int(near[int(rng.integers(len(near)))] if near else 0) + int(rng.integers(0, 200))
            flipped = bytearray(raw)
            flipped[min(byte, len(raw) - 1)] ^= 1 << int(rng.integers(8))
            cases.file(f"h5 {base.parent.name}: byte {byte}, {i}", "hci", base, bytes(flipped), ANY)

    stack = data["stack_train"]
    other = cases.root / "other.h5"
    write_h5(other, {"x": stack, "disp": data["disp_train"]})
    (cases.root / "raw.bin").write_bytes(stack.tobytes())
    virtual = h5py.VirtualLayout(stack.shape, stack.dtype)
    virtual[:] = h5py.VirtualSource(str(other), "x", stack.shape)
    changes = {
        "no stack": {"stack_train": None},
        "no truth": {"disp_train": None},
        "no settings": {"focus_position_disp": None},
        "settings with NaN": {"focus_position_disp": np.full((1, 10), np.nan)},
        "settings that repeat": {"focus_position_disp": np.zeros((1, 10))},
        "no settings in the list": {"focus_position_disp": np.zeros((1, 0))},
        "stack of text": {"stack_train": np.full(stack.shape, "x", object)},
        "stack of bytes": {"stack_train": np.full(stack.shape, b"x")},
        "stack of complex numbers": {"stack_train": stack.astype(complex)},
        "stack of NaN": {"stack_train": stack * np.nan},
        "stack in [0, 1]": {"stack_train": stack / 255},
        "stack beyond 255": {"stack_train": stack * 9},
        "one frame too few": {"stack_train": stack[:, :9]},
        "stack without colours": {"stack_train": stack[..., 0]},
        "stack with nothing in it": {"stack_train": stack[:0]},
        "truth of another size": {"disp_train": data["disp_train"][:, 1:]},
        "truth of integers": {"disp_train": data["disp_train"].astype(int)},
        "names that repeat": {"name_train": np.array([["a"], ["a"]], object)},
        "names that lead out": {"name_train": np.array([["../../.."], [".."]], object), "allowed": ANY},
        "names of control characters": {"name_train": np.array([["a\n"], ["b\x1b[2J"]], object), "allowed": ANY},
        "names of 10^6 letters": {"name_train": np.array([["a" * 10**6], ["b"]], object)},
        "external link": {"stack_train": h5py.ExternalLink(str(other), "x")},
        "external link for names": {"name_train": h5py.ExternalLink(str(other), "x")},
        "soft link": {"stack_train": h5py.SoftLink("/stack_val")},
        "soft link to itself": {"stack_train": h5py.SoftLink("/stack_train")},
        "external link to nothing": {"disp_train": h5py.ExternalLink("/proc/self/mem", "x")},
    }
    for name, change in changes.items():
        allowed = change.pop("allowed", ERROR)
        path = write_h5(cases.root / f"v{len(cases.found)}" / plain.name, data | change)
        cases.add(f"h5: {name}", "hci", path, plain, allowed)

    def special(name, make):
        path = write_h5(cases.root / f"v{len(cases.found)}" / plain.name, data | {"stack_train": None})
        with h5py.File(path, "a") as file:
            make(file)
        cases.add(f"h5: {name}", "hci", path, plain, ERROR)

    key, huge = "stack_train", (2, 10, BIG, BIG, 3)
    special("external storage", lambda f: f.create_dataset(
        key, stack.shape, "f4", external=[(str(cases.root / "raw.bin"), 0, stack.nbytes)]))  # fmt: skip
    special("external storage in /proc", lambda f: f.create_dataset(
        key, stack.shape, "f4", external=[("/proc/self/environ", 0, stack.nbytes)]))  # fmt: skip
    special("virtual", lambda f: f.create_virtual_dataset(key, virtual))
    special("2^31 x 2^31, never written", lambda f: f.create_dataset(key, huge, "f4", chunks=(1, 1, 64, 64, 3)))
    special("2^31 x 2^31, compressed", lambda f: f.create_dataset(
        key, huge, "u1", chunks=(1, 1, 64, 64, 3), compression="gzip"))  # fmt: skip
    special("chunks of 1 GiB", lambda f: f.create_dataset(
        key, (2, 10, 16384, 16384, 3), "f4", chunks=(1, 1, 16384, 16384, 1)))  # fmt: skip
    special("a group", lambda f: f.create_group(key))
    special("nothing", lambda f: f.create_dataset(key, data=h5py.Empty("f4")))
    special("not finished", lambda f: f.create_dataset(key, stack.shape, "f4", chunks=(1, 10, 16, 18, 3)))
    special("records", lambda f: f.create_dataset(key, stack.shape[:4], [("a", "f4"), ("b", "f4"), ("c", "f4")]))
    special("references", lambda f: f.create_dataset(key, (2,), h5py.ref_dtype))
    path = write_h5(cases.root / "h5d" / "my_ddff_trainVal.h5", {k: v for k, v in data.items() if k[0] in "sd"})
    cases.damage("h5 of ddff12", "ddff12", path, None, ANY, count=10, seed=330)


# Lists and parameters -----------------------------------------------------------------------------------------------


def texts(cases):
    base = cases.root / "distances"
    base.mkdir()
    for i in range(3):
        (base / f"{i}.png").write_bytes(imagecodecs.png_encode(photograph(i)))
    inner = "focus_distance.txt"
    (base / inner).write_text("0.5\n1.25\n7.5\n")
    cases.damage("distances", "stack", base, inner, ANY, count=24, seed=400)
    for text in ("0.5\n1\n", "0.5\n1\n2\n3\n", "nan\n1\n2\n", "-inf\n1\n2\n", "0\n1\n2\n", "-1\n1\n2\n", "1\n1\n2\n",
                 "-1e999\n1\n2\n", "../../etc/passwd\n1\n2\n", "0x10\n1\n2\n", "1\0\n2\n3\n",
                 "9" * 10**7):  # fmt: skip
        cases.inside(f"distances {text[:18]!r}", "stack", base, inner, text.encode(), ERROR)

    field = cases.root / "field"
    field.mkdir()
    for i in range(9):
        Image.fromarray(photograph(i)).save(field / f"input_Cam{i:03d}.png")
    truth = b"Pf\n%d %d\n-1\n" % (W, H) + depth_map().tobytes()
    (field / "gt_disp_lowres.pfm").write_bytes(truth)
    inner = "parameters.cfg"
    (field / inner).write_text("[extrinsics]\nnum_cams_x = 3\nnum_cams_y = 3\n\n[meta]\ncategory = training\n")
    cases.damage("parameters", "light_field", field, inner, ANY, count=16, seed=420)
    for text in ("[extrinsics]\nnum_cams_x = 49\nnum_cams_y = 49\n", "[extrinsics]\nnum_cams_x = 10000000000\n",
                 "[extrinsics]\nnum_cams_x = -3\nnum_cams_y = 3\n", "[extrinsics]\nnum_cams_x = 3.0\nnum_cams_y = 3\n",
                 "[extrinsics]\nnum_cams_x = %(x)s\nnum_cams_y = 3\n", "[extrinsics]\n" * 10**5,
                 "[other]\nnum_cams_x = 3\nnum_cams_y = 3\n", "num_cams_x = 3\n"):  # fmt: skip
        cases.inside(f"parameters {text[13:40]!r}", "light_field", field, inner, text.encode(), ERROR)
    cases.damage("truth of a light field", "light_field", field, "gt_disp_lowres.pfm", ANY, count=4, seed=430)
    cases.damage("a view", "light_field", field, "input_Cam004.png", SUMMED, count=4, seed=431)

    mobile = files.mobile_depth(cases.root / "mobile", frames=3)
    inner = "depth_from_focus_data2/calibration/keyboard/calibrated.txt"
    cases.damage("calibration", "mobile", mobile, inner, ANY, count=10, seed=440)
    cases.inside("calibration with NaN", "mobile", mobile, inner, b"nan 1\n2 1\n3 1\n.2\n", ERROR)
    cases.inside("calibration of 0", "mobile", mobile, inner, b"0 1\n2 1\n3 1\n.2\n", ERROR)
    cases.inside("calibration with a row too few", "mobile", mobile, inner, b"1 1\n2 1\n.2\n", ERROR)
