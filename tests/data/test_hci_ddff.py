"""HCI light fields and DDFF-12: files in the published formats, and what is made of them."""

import functools

import h5py
import numpy as np
import pytest
from PIL import Image

from dff_jax.data import datasets
from dff_jax.data.datasets.ddff12 import FOCUS
from dff_jax.data.files.light_fields import probe_light_field, read_parameters
from dff_jax.errors import InputError

H, W = 20, 24
SETTINGS = np.linspace(-2.5, 2.5, 10)


# Raw light fields -------------------------------------------------------------------------------------------------


def picture(y, x):
    """A smooth colour picture, uint8, known between the pixels too."""
    planes = [128 + 50 * np.sin(0.9 * x + 0.5 * y + k) + 50 * np.cos(0.4 * x - 1.1 * y + 2 * k) for k in range(3)]
    return np.rint(np.stack(planes, -1)).astype(np.uint8)


def write_scene(folder, disparity, views=9, category="training", truth=True):
    """A fronto-parallel plane: (y, x) of the centre view lies at (y - d(r-4), x - d(c-4)) in view (r, c)."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:H, :W].astype(float)
    for i in range(views * views):
        r, c = divmod(i, views)
        view = picture(y + disparity * (r - views // 2), x + disparity * (c - views // 2))
        Image.fromarray(view).save(folder / f"input_Cam{i:03d}.png")
    (folder / "parameters.cfg").write_text(  # still speaks of 512, as that of a crop does
        "[intrinsics]\nfocal_length_mm = 100.0\nimage_resolution_x_px = 512\nimage_resolution_y_px = 512\n"
        f"sensor_size_mm = 35.0\nfstop = 100.0\n\n[extrinsics]\nnum_cams_x = {views}\nnum_cams_y = {views}\n"
        f"baseline_mm = 30.0\n\n[meta]\nscene = {folder.name}\ncategory = {category}\ndisp_min = -1.7\n"
    )
    if truth:
        values = np.full((H, W), disparity, "<f4")
        values[0] = -3.0  # the top row, which a PFM file has last
        (folder / "gt_disp_lowres.pfm").write_bytes(f"Pf\n{W} {H}\n-1\n".encode() + values[::-1].tobytes())


@pytest.fixture(scope="module")
def light_fields(tmp_path_factory):
    root = tmp_path_factory.mktemp("hci")
    write_scene(root / "full_data" / "training" / "boxes", SETTINGS[6])
    write_scene(root / "full_data" / "stratified" / "dots", 0.0)
    write_scene(root / "full_data" / "test" / "herbs", 0.0, category="test", truth=False)
    return root


@pytest.fixture(scope="module")
def refocused(light_fields, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    datasets.prepare("hci/lightfields", folder, source=light_fields)
    return folder


def records(name, folder, split):
    return list(datasets.open_builder(name, folder).as_data_source(split=split))


def test_light_fields_become_stacks_over_signed_disparity(refocused):
    builder = datasets.open_builder("hci/lightfields", refocused)
    metadata = builder.info.metadata
    assert metadata["unit"] == "disparity" and metadata["convention"] == "hci" and metadata["licence"]
    assert {s: i.num_examples for s, i in builder.info.splits.items()} == {"train": 1, "test": 1}
    (train,), (test,) = (records("hci/lightfields", refocused, split) for split in ("train", "test"))
    assert train["name"] == b"train/dots" and test["name"] == b"test/boxes"
    for record, disparity in ((train, 0.0), (test, SETTINGS[6])):
        np.testing.assert_allclose(record["focus"], SETTINGS, rtol=1e-6)
        assert record["stack"].shape == (10, H, W, 3) and record["stack"].dtype == np.uint8
        assert record["mask"].all()  # 0 and negative values are truth
        np.testing.assert_allclose(record["depth"][1:], disparity, rtol=1e-6)
        np.testing.assert_array_equal(record["depth"][0], -3.0)  # the top row, so the file was turned over


def test_the_frame_at_the_planes_disparity_is_the_centre_view(refocused):
    (record,) = records("hci/lightfields", refocused, "test")
    y, x = np.mgrid[:H, :W].astype(float)
    error = np.abs(record["stack"].astype(float) - picture(y, x))[:, 4:-4, 4:-4].mean((1, 2, 3))
    assert error.argmin() == 6 and error[6] < 0.5 and np.sort(error)[1] > 3


def test_frames_and_range_may_be_chosen(light_fields, tmp_path):
    datasets.prepare("hci/lightfields", tmp_path, source=light_fields, frames=3, focus_range=(-1.0, 1.0))
    builder = datasets.open_builder("hci/lightfields", tmp_path)
    assert builder.info.metadata["focus_range"] == [-1.0, 1.0]
    (record,) = records("hci/lightfields", tmp_path, "train")
    np.testing.assert_allclose(record["focus"], [-1, 0, 1])
    with pytest.raises(InputError, match="low < high"):
        datasets.prepare("hci/lightfields", tmp_path / "x", source=light_fields, focus_range=(1.0, -1.0))


def test_everything_missing_is_in_one_report(tmp_path):
    source = tmp_path / "source"
    for name in ("a", "b", "c", "d", "e"):
        write_scene(source / name, 0.0, views=3)
    for i in (0, 3, 4, 5, 6):
        (source / "a" / f"input_Cam{i:03d}.png").unlink()
    (source / "b" / "gt_disp_lowres.pfm").unlink()
    (source / "c" / "parameters.cfg").write_text("[extrinsics]\nnum_cams_x = 9999999999\n")
    Image.new("RGB", (W + 1, H)).save(source / "d" / "input_Cam004.png")
    (source / "e" / "input_Cam007.png").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        datasets.prepare("hci/lightfields", tmp_path / "out", source=source)
    found = "\n".join(caught.value.problems)
    for words in (
        "a: 5 of 9 views missing (input_Cam000.png, input_Cam003.png, input_Cam004.png, input_Cam005.png, ...)",
        "gt_disp_lowres.pfm: missing", "num_cams_y in [extrinsics]", "d/input_Cam004.png: 25 x 20 where",
        "e/input_Cam007.png: the file is empty",
    ):  # fmt: skip
        assert words in found, words
    assert not (tmp_path / "out").exists()


def test_a_grid_is_as_the_parameters_say(tmp_path):
    write_scene(tmp_path / "s", 0.0, views=3)
    assert read_parameters(tmp_path / "s" / "parameters.cfg") == (3, 3, "training")
    problems, scene = probe_light_field(tmp_path / "s")
    assert not problems and scene.size == (H, W)
    Image.new("RGB", (W, H)).save(tmp_path / "s" / "input_Cam009.png")
    problems, scene = probe_light_field(tmp_path / "s")
    assert scene is None and "more views than the 3 x 3" in problems[0]


@pytest.mark.parametrize(
    "name, looked_for",
    [
        ("hci/lightfields", "input_Cam000.png"),
        ("hci/stacks", "HCI_FS_trainval.h5"),
        ("ddff12/trainval", "ddff-dataset-trainval.h5"),
        ("ddff12/test", "ddff-dataset-test.h5"),
        ("ddff12/scenes", "my_ddff_trainVal.h5"),
    ],
)
def test_the_wrong_folder_is_told_what_was_looked_for(tmp_path, name, looked_for):
    (tmp_path / "source" / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match=looked_for):
        datasets.prepare(name, tmp_path / "out", source=tmp_path / "source")
    assert not (tmp_path / "out").exists()


# HDF5 -------------------------------------------------------------------------------------------------------------


def frames(count, scale=1.0, dtype=np.uint8):
    """Stacks [N,10,H,W,3] in which frame z of stack n is n + 10 z, with red, green, blue 0, 1, 2 above that."""
    n, z, c = np.ogrid[:count, :10, :3]
    values = np.broadcast_to((n + 10.0 * z + c)[:, :, None, None, :], (count, 10, H, W, 3))
    return (values * scale).astype(dtype)


def hci_file(path, **changes):
    """Keys, shapes and types as the publisher's script writes them; `changes` replaces or (None) leaves out a key."""
    text = h5py.string_dtype()
    names = ["boxes", "cotton", "dino", "sideboard"]
    data = {
        "stack_train": frames(3, dtype=np.float32), "stack_val": frames(4, dtype=np.float32),
        "AiF_train": np.zeros((3, H, W, 3), np.float32), "AiF_val": np.zeros((4, H, W, 3), np.float32),
        "disp_train": np.linspace(-3, 3, 3 * H * W, dtype=np.float32).reshape(3, H, W),
        "disp_val": np.zeros((4, H, W), np.float32),
        "name_train": np.array([["town"], ["dots"], ["pens"]], object), "name_val": np.array(names, object)[:, None],
        "focus_position_disp": SETTINGS[None],
        "focal_length_mm_train": np.full((3, 1), 100.0), "baseline_mm_train": np.full((3, 1), 30.0),
    } | changes  # fmt: skip
    with h5py.File(path, "w") as file:
        for key, value in data.items():
            if value is not None:
                file.create_dataset(key, data=value, dtype=text if value.dtype == object else None)
    return path


def test_published_hci_stacks(tmp_path):
    hci_file(tmp_path / "HCI_FS_trainval.h5")
    datasets.prepare("hci/stacks", tmp_path, source=tmp_path)
    train, test = (records("hci/stacks", tmp_path, split) for split in ("train", "test"))
    assert [r["name"] for r in train] == [b"train/town", b"train/dots", b"train/pens"]
    assert [r["name"] for r in test] == [b"test/boxes", b"test/cotton", b"test/dino", b"test/sideboard"]
    for n, record in enumerate(train):
        np.testing.assert_array_equal(record["stack"], frames(3)[n])  # far to near already, RGB
        np.testing.assert_allclose(record["focus"], SETTINGS, rtol=1e-6)
    np.testing.assert_allclose([r["depth"] for r in train], np.linspace(-3, 3, 3 * H * W).reshape(3, H, W), atol=1e-6)
    assert test[0]["mask"].all() and not test[0]["depth"].any()  # 0 is a disparity here


def test_hci_frames_follow_the_focus_settings_of_the_file(tmp_path):
    path = hci_file(tmp_path / "other.h5", focus_position_disp=SETTINGS[None, ::-1].copy())
    datasets.prepare("hci/stacks", tmp_path, source=path)
    record = records("hci/stacks", tmp_path, "train")[0]
    np.testing.assert_array_equal(record["stack"], frames(3)[0, ::-1])
    np.testing.assert_allclose(record["focus"], SETTINGS, rtol=1e-6)


def test_hci_problems_come_in_one_report(tmp_path):
    path = hci_file(
        tmp_path / "HCI_FS_trainval.h5", stack_train=None, disp_val=np.zeros((4, H, W + 1)),
        focus_position_disp=np.full((1, 10), np.nan),
    )  # fmt: skip
    with pytest.raises(InputError) as caught:
        datasets.prepare("hci/stacks", tmp_path / "out", source=path)
    found = "\n".join(caught.value.problems)
    assert all(word in found for word in ("stack_train", "disp_val", "focus_position_disp")), found
    hci_file(path, name_val=np.array([["boxes"], ["boxes"], ["dino"], ["x"]], object))
    with pytest.raises(InputError, match="name_val must hold 4 different names"):
        datasets.prepare("hci/stacks", tmp_path / "out", source=path)
    hci_file(path, name_train=np.zeros((3, 1)))
    with pytest.raises(InputError, match="name_train must hold 3 names as text"):
        datasets.prepare("hci/stacks", tmp_path / "out", source=path)


@pytest.mark.parametrize(
    "stack, words",
    [
        (frames(3, 1 / 255, np.float32), "multiplied by 255"),
        (frames(3, 3.0, np.float32), "0 to 255"),
        (frames(3, np.nan, np.float32), "0 to 255"),
        (frames(3, -1.0, np.int16), "0 to 255"),
    ],
)
def test_pixels_of_another_scale_are_refused(tmp_path, stack, words):
    path = hci_file(tmp_path / "HCI_FS_trainval.h5", stack_train=stack)
    with pytest.raises(InputError) as caught:
        datasets.prepare("hci/stacks", tmp_path / "out", source=path)
    assert len(caught.value.problems) == 3  # one for each stack, and nothing is kept
    assert "stack_train[0]: holds" in caught.value.problems[0] and words in caught.value.problems[0]
    assert not list((tmp_path / "out").rglob("*.array_record*"))


def ddff_file(path, keys, **changes):
    """Stacks from near to far, uint8, and float64 disparity with 0 for none."""
    with h5py.File(path, "w") as file:
        for key, count in keys.items():
            part = key.rpartition("_")[2]
            stack = changes.get(key, frames(count))
            file[key] = stack
            if part != "test":
                disp = np.full((count, H, W), 0.1)
                disp[:, :5] = 0.0
                disp[:, 5] = np.inf
                file[f"disp_{part}"] = changes.get(f"disp_{part}", disp)
    return path


def test_the_official_ddff_file_is_turned_around(tmp_path):
    ddff_file(tmp_path / "ddff-dataset-trainval.h5", {"stack_train": 3, "stack_val": 2})
    datasets.prepare("ddff12/trainval", tmp_path, source=tmp_path)
    builder = datasets.open_builder("ddff12/trainval", tmp_path)
    assert builder.info.metadata["convention"] == "ddff12" and builder.info.metadata["order"] == "near to far"
    assert {s: i.num_examples for s, i in builder.info.splits.items()} == {"train": 3, "validation": 2}
    for n, record in enumerate(records("ddff12/trainval", tmp_path, "train")):
        expected = [0.0201768, 0.0493211, 0.0784653, 0.1076096, 0.1367538, 0.1658981, 0.1950424, 0.2241866, 0.2533309,
                    0.2824751]  # fmt: skip
        np.testing.assert_allclose(record["focus"], expected, atol=1e-7)
        # frames go with their settings, and blue comes last
        np.testing.assert_array_equal(record["stack"], frames(3)[n, ::-1, :, :, ::-1])
        assert not record["mask"][:6].any() and record["mask"][6:].all()
        np.testing.assert_allclose(record["depth"][6:], 0.1, rtol=1e-6)
        assert not record["depth"][:6].any()


def test_colour_order_is_an_option_and_the_key_of_the_readme_is_known(tmp_path):
    path = ddff_file(tmp_path / "d.h5", {"stacks_train": 2, "stack_val": 1}, stacks_train=frames(2, 1.0, np.float32))
    datasets.prepare("ddff12/trainval", tmp_path, source=path, bgr=False)
    record = records("ddff12/trainval", tmp_path, "train")[1]
    np.testing.assert_array_equal(record["stack"], frames(2)[1, ::-1])


def test_the_ddff_test_set_has_no_truth_and_its_scenes_names(tmp_path):
    small = np.zeros((120, 10, 16, 16, 3), np.uint8)
    small[:, :] = np.arange(120, dtype=np.uint8)[:, None, None, None, None]
    ddff_file(tmp_path / "ddff-dataset-test.h5", {"stack_test": 120}, stack_test=small)
    datasets.prepare("ddff12/test", tmp_path, source=tmp_path)
    builder = datasets.open_builder("ddff12/test", tmp_path)
    assert not builder.info.metadata["has_truth"] and list(builder.info.splits) == ["test"]
    found = records("ddff12/test", tmp_path, "test")
    assert len(found) == 120 and not any(r["mask"].any() for r in found)
    names = [r["name"].decode() for r in found]
    assert names[0] == "test/lockeroom/0001" and names[20] == "test/cafeteria/0001"
    assert names[-1] == "test/magistrale/0020" and (found[-1]["stack"] == 119).all()


def test_the_scene_disjoint_split_is_rgb(tmp_path):
    path = tmp_path / "my_ddff_trainVal.h5"
    as_float = functools.partial(frames, dtype=np.float32)
    ddff_file(path, {"stack_train": 2, "stack_val": 1}, stack_train=as_float(2), stack_val=as_float(1))
    datasets.prepare("ddff12/scenes", tmp_path, source=path)
    builder = datasets.open_builder("ddff12/scenes", tmp_path)
    assert {s: i.num_examples for s, i in builder.info.splits.items()} == {"train": 2, "test": 1}
    np.testing.assert_array_equal(records("ddff12/scenes", tmp_path, "test")[0]["stack"], frames(1)[0, ::-1])


def test_damaged_ddff_files_are_refused_by_key(tmp_path):
    path = ddff_file(tmp_path / "ddff-dataset-trainval.h5", {"stack_train": 2}, disp_train=np.zeros((3, H, W)))
    with pytest.raises(InputError) as caught:
        datasets.prepare("ddff12/trainval", tmp_path / "out", source=path)
    found = "\n".join(caught.value.problems)
    assert "disp_train" in found and "stack_val" in found and "disp_val" in found
    ddff_file(path, {"stack_train": 2, "stack_val": 2}, stack_val=frames(2)[:, :9])
    with pytest.raises(InputError, match="stack_val"):
        datasets.prepare("ddff12/trainval", tmp_path / "out", source=path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="ddff-dataset-trainval.h5"):
        datasets.prepare("ddff12/trainval", tmp_path / "out", source=path)
    assert not (tmp_path / "out").exists()


def test_one_ddff_file_is_not_taken_for_the_other(tmp_path):
    wide = np.zeros((1, 10, 383, 552, 3), np.uint8)
    keys = {"stack_train": 1, "stack_val": 1}
    truth = np.zeros((1, 383, 552))
    path = tmp_path / "d.h5"
    ddff_file(path, keys, stack_train=wide, stack_val=wide, disp_train=truth, disp_val=truth)
    with pytest.raises(InputError) as caught:
        datasets.prepare("ddff12/trainval", tmp_path / "out", source=path)
    assert "stack_train has frames of 552 x 383, which is ddff12/scenes's file" in caught.value.problems[0]


def test_focus_settings_are_one_over_the_distance():
    np.testing.assert_allclose(np.array([FOCUS[0], FOCUS[-1]]), 0.14123757 / np.array([0.5, 7.0]), rtol=1e-6)
    np.testing.assert_allclose(np.diff(FOCUS), np.diff(FOCUS)[0])


def test_absurd_sizes_and_links_are_refused(tmp_path):
    path = tmp_path / "ddff-dataset-test.h5"
    with h5py.File(path, "w") as file:  # takes no room until written to
        file.create_dataset("stack_test", (2**40, 10, 16, 16, 3), np.uint8, chunks=(1, 10, 16, 16, 3))
    with pytest.raises(InputError, match="stack_test"):
        datasets.prepare("ddff12/test", tmp_path / "out", source=path)
    with h5py.File(path, "w") as file:
        file.create_dataset("stack_test", (1, 10, 2**20, 2**20, 3), np.uint8, chunks=(1, 1, 64, 64, 3))
    with pytest.raises(InputError, match="stack_test"):
        datasets.prepare("ddff12/test", tmp_path / "out", source=path)
    path = hci_file(tmp_path / "HCI_FS_trainval.h5", name_val=None)
    with h5py.File(path, "r+") as file:
        file["name_val"] = h5py.ExternalLink(str(tmp_path / "elsewhere.h5"), "name_val")
    with pytest.raises(InputError, match="name_val: a link"):
        datasets.prepare("hci/stacks", tmp_path / "out", source=path)
