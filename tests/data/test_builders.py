"""Each converted dataset, from small files in its exact format to records."""

import numpy as np
import pytest
from dataset_files import flyingthings, fod500, frame, middlebury, mobile_depth, truth, write_exr
from PIL import Image

from dff_jax.data import datasets, pipeline
from dff_jax.errors import InputError, SourceError


def _records(name, data_dir, split):
    return list(datasets.open_builder(name, data_dir).as_data_source(split=split))


def _metadata(name, data_dir):
    return datasets.open_builder(name, data_dir).info.metadata


def _equals_frames(record, seed, order, size=(24, 32), tolerance=0):
    expected = np.stack([frame(i, seed, size) for i in order])
    assert record["stack"].dtype == np.uint8 and record["stack"].shape == expected.shape
    assert np.abs(record["stack"].astype(int) - expected).max() <= tolerance


def test_flyingthings(tmp_path):
    source = flyingthings(tmp_path / "ft")
    (source / "train" / "focal_stack" / "0000" / "Thumbs.db").write_text("no picture")
    datasets.prepare("flyingthings/focal_stack", tmp_path / "d", source=source)
    metadata = _metadata("flyingthings/focal_stack", tmp_path / "d")
    assert metadata["unit"] == "disparity" and metadata["focus_range"] == [10.0, 100.0]
    assert metadata["convention"] == "flyingthings" and metadata["order"] == "far to near"
    train, test = (_records("flyingthings/focal_stack", tmp_path / "d", split) for split in ("train", "test"))
    assert [r["name"] for r in train + test] == [b"train/0000", b"train/0001", b"test/0000"]
    for record, seed in zip(train + test, (0, 1, 100), strict=True):
        _equals_frames(record, seed, range(15))  # by value: as text, 100.0 comes second
        np.testing.assert_allclose(record["focus"], np.linspace(10, 100, 15), rtol=1e-6)
        assert record["focus"].dtype == np.float32 and record["depth"].dtype == np.float32
        expected = truth(seed)
        np.testing.assert_array_equal(record["mask"], expected > 0)  # also beyond the focus range
        np.testing.assert_array_equal(record["depth"], np.where(expected > 0, expected, 0))
    stack = pipeline.tfds_source("flyingthings/focal_stack", "test", tmp_path / "d")[0]
    assert stack.unit == "disparity" and stack.mask.dtype == bool and not stack.mask[0, :2].any()


def test_middlebury_sizes_differ(tmp_path):
    datasets.prepare("middlebury/focal_stack", tmp_path / "d", source=middlebury(tmp_path / "mb"))
    records = _records("middlebury/focal_stack", tmp_path / "d", "test")
    assert [r["name"] for r in records] == [b"test/ArtL", b"test/Piano"]
    assert [r["stack"].shape for r in records] == [(15, 20, 28, 3), (15, 24, 32, 3)]
    _equals_frames(records[0], 2, range(15), (20, 28))
    np.testing.assert_allclose(records[1]["focus"], np.linspace(10, 60, 15), rtol=1e-6)
    np.testing.assert_array_equal(records[0]["mask"], truth(2, size=(20, 28)) > 0)
    assert _metadata("middlebury/focal_stack", tmp_path / "d")["convention"] == "middlebury"


def test_fod500_is_turned_round_with_its_frames(tmp_path):
    source = fod500(tmp_path / "fs_6").parent  # the folder around it will do
    datasets.prepare("fod500/default", tmp_path / "d", source=source)
    train, test = (_records("fod500/default", tmp_path / "d", split) for split in ("train", "test"))
    assert [r["name"] for r in train + test] == [b"train/000000", b"train/000399", b"test/000400"]
    for record, seed in zip(train + test, (0, 399, 400), strict=True):
        np.testing.assert_allclose(record["focus"], [1.5, 0.7, 0.3, 0.15, 0.1], rtol=1e-6)
        _equals_frames(record, seed, (4, 3, 2, 1, 0))
        expected = np.abs(truth(seed, 0.05, 3.0)).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(record["depth"], expected)
        np.testing.assert_array_equal(record["mask"], expected > 0)
    metadata = _metadata("fod500/default", tmp_path / "d")
    assert metadata["unit"] == "metre" and metadata["order"] == "near to far"
    stack = pipeline.tfds_source("fod500/default", "test", tmp_path / "d")[0]
    batch = pipeline.to_batch([stack])  # sorted already: q ascends
    np.testing.assert_array_equal(batch.frames[0], stack.frames.astype(np.float32) / np.float32(255))
    assert (np.diff(batch.focus[0]) > 0).all()


def test_mobile_depth_by_frame_number_and_by_calibration(tmp_path):
    source = mobile_depth(tmp_path / "md")
    datasets.prepare("mobile_depth/aligned", tmp_path / "d", source=source)
    keyboard, metals = _records("mobile_depth/aligned", tmp_path / "d", "test")
    assert (keyboard["name"], metals["name"]) == (b"test/keyboard", b"test/metals")
    expected = np.sort(1.0 / np.geomspace(3.0, 1e6, 12))
    np.testing.assert_allclose(keyboard["focus"], expected, rtol=1e-6)
    np.testing.assert_allclose(metals["focus"], expected, rtol=1e-6)
    _equals_frames(keyboard, 1, range(11, -1, -1), tolerance=20)  # the last number is farthest: first
    _equals_frames(metals, 5, range(12), tolerance=20)
    means = keyboard["stack"].mean((1, 2, 3))
    assert (np.diff(means) < -8).all()
    assert not keyboard["mask"].any() and not keyboard["depth"].any()
    metadata = _metadata("mobile_depth/aligned", tmp_path / "d")
    assert metadata["unit"] == "diopter" and metadata["has_truth"] is False

    (source / "depth_from_focus_data2/calibration/metal/calibrated.txt").unlink()
    with pytest.raises(SourceError, match=r"no calibration of metals; looked for .*calibrated\.txt"):
        datasets.prepare("mobile_depth/aligned", tmp_path / "e", source=source)
    datasets.prepare("mobile_depth/frame_index", tmp_path / "d", source=source)
    keyboard, _ = _records("mobile_depth/frame_index", tmp_path / "d", "test")
    np.testing.assert_array_equal(keyboard["focus"], np.arange(12))
    assert (np.diff(keyboard["stack"].mean((1, 2, 3))) > 8).all()

    text = source / "depth_from_focus_data2/calibration/keyboard/calibrated.txt"
    text.write_text("\n".join(text.read_text().splitlines()[1:]))
    with pytest.raises(SourceError) as error:
        datasets.prepare("mobile_depth/aligned", tmp_path / "e", source=source)
    assert any("11 rows and the focal length, for 12 frames" in p for p in error.value.problems)
    assert not (tmp_path / "e").exists()


def _own(folder, names, size=(20, 24), dtype=np.uint8):
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        Image.fromarray(frame(i, 7, size).astype(dtype)).save(folder / name)


def test_own_stacks_with_and_without_truth(tmp_path):
    source = tmp_path / "own"
    _own(source / "train" / "a", ["2.5.png", "10.0.png", "-1.0.png"])
    np.save(source / "train" / "a" / "disp.npy", truth(size=(20, 24)).astype(np.float64))
    _own(source / "val" / "b" / "c", ["x_1.5.png", "x_0.5.png"], (22, 20))
    (source / "val" / "b" / "c").rename(source / "val" / "c")
    (source / "val" / "c" / "focus_distance.txt").write_text("3\n4\n")
    datasets.prepare("stacks/mine", tmp_path / "d", source=source, unit="disparity")
    (train,), (other,) = (_records("stacks/mine", tmp_path / "d", split) for split in ("train", "validation"))
    np.testing.assert_array_equal(train["focus"], [-1, 2.5, 10])
    _equals_frames(train, 7, (2, 0, 1), (20, 24))
    np.testing.assert_array_equal(train["mask"], truth(size=(20, 24)) != 0)  # signed disparities are values
    assert train["depth"][0, 1] == -3
    assert other["name"] == b"validation/c" and not other["mask"].any() and other["stack"].shape == (2, 22, 20, 3)
    metadata = _metadata("stacks/mine", tmp_path / "d")
    assert metadata["unit"] == "disparity" and '"unit": "disparity"' in metadata["options"]
    stack = pipeline.tfds_source("stacks/mine", "train", tmp_path / "d")[0]
    assert stack.unit == "disparity" and stack.frames.shape == (3, 20, 24, 3)


def test_own_stacks_of_frame_indices(tmp_path, capsys):
    source = tmp_path / "own"
    _own(source / "one", ["f2.png", "f10.png", "f1.png"], (40, 60))
    datasets.prepare("stacks/mine", tmp_path / "d", source=source, reverse=True, max_size=30)
    (record,) = _records("stacks/mine", tmp_path / "d", "test")
    np.testing.assert_array_equal(record["focus"], [0, 1, 2])
    assert record["stack"].shape == (3, 20, 30, 3)
    means = record["stack"].mean((1, 2, 3))  # f1 (number 2), f2 (0), f10 (1), counted from f10
    assert means[0] < means[2] and means.argmin() == 1
    err = capsys.readouterr().err
    assert "everything goes to the test split" in err and "which end is near is not known" in err
    assert _metadata("stacks/mine", tmp_path / "d")["unit"] == "index"
    with pytest.raises(InputError, match="made with max_size 30, not 40; make it again with --overwrite"):
        datasets.prepare("stacks/mine", tmp_path / "d", source=source, max_size=40)
    assert datasets.prepare("stacks/mine", tmp_path / "d", max_size=30).is_dir()  # as it is


def test_own_stacks_that_do_not_go_together(tmp_path):
    source = tmp_path / "own"
    _own(source / "index", ["a1.png", "a2.png"])
    _own(source / "metres", ["x_1.5.png", "x_0.5.png"])
    _own(source / "truth", ["1.5.png", "0.5.png"])
    (source / "truth" / "disp.npy").write_bytes(b"")
    with pytest.raises(SourceError) as error:
        datasets.prepare("stacks/mine", tmp_path / "d", source=source)
    problems = "\n".join(error.value.problems)
    assert "several units" in problems and "give --unit" in problems and "disp.npy: the file is empty" in problems
    with pytest.raises(InputError, match="--noise: stacks does not know it; it takes --unit, --reverse"):
        datasets.prepare("stacks/mine", tmp_path / "d", source=source, noise=0.1)
    for name in ("stacks/", "stacks/../x", "stacks/a/b", "stacks/.hidden"):
        with pytest.raises(InputError, match="unknown|cannot be a name"):
            datasets.prepare(name, tmp_path / "d", source=source)
    assert not (tmp_path / "d").exists()


def test_own_stacks_are_aligned(tmp_path):
    pytest.importorskip("cv2")
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    wide = gaussian_filter(rng.uniform(0, 1, (80, 100)), 1.5)
    wide = ((wide - wide.min()) / np.ptp(wide) * 255).astype(np.uint8)
    folder = tmp_path / "own" / "one"
    folder.mkdir(parents=True)
    for i, shift in enumerate((0, 2, 5)):
        Image.fromarray(wide[4 : 68, shift : shift + 80]).save(folder / f"f{i}.png")
    datasets.prepare("stacks/mine", tmp_path / "d", source=tmp_path / "own", align="translation")
    (record,) = _records("stacks/mine", tmp_path / "d", "test")
    inner = record["stack"][:, 8:-8, 8:-8].astype(int)
    assert np.abs(inner[0] - inner[1]).mean() < 3 and np.abs(inner[2] - inner[1]).mean() < 3
    with pytest.raises(InputError, match="align: 'bent' is unknown; choose one of similarity"):
        datasets.prepare("stacks/other", tmp_path / "d", source=tmp_path / "own", align="bent")


@pytest.mark.parametrize(
    "name, looked_for",
    [
        ("flyingthings/focal_stack", "train/focal_stack/"),
        ("middlebury/focal_stack", "focal_stack/"),
        ("fod500/default", "000000_00All.tif"),
        ("mobile_depth/aligned", "Aligned/Figure"),
        ("stacks/mine", "no focal stack here or below"),
    ],
)
def test_a_wrong_folder_is_told_what_was_looked_for(tmp_path, name, looked_for):
    (tmp_path / "wrong" / "sub").mkdir(parents=True)
    (tmp_path / "wrong" / "readme.txt").write_text("not this")
    with pytest.raises(InputError, match=looked_for) as error:
        datasets.prepare(name, tmp_path / "d", source=tmp_path / "wrong")
    assert "wrong" in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "a_file").write_text("")
    with pytest.raises(InputError):
        datasets.prepare(name, tmp_path / "d", source=tmp_path / "a_file")
    with pytest.raises(InputError, match="--source DIR is needed"):
        datasets.prepare(name, tmp_path / "d")
    with pytest.raises(InputError, match="there is no"):
        datasets.prepare(name, tmp_path / "d", source=tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"dff-jax prepare {name} --source DIR"):
        datasets.open_builder(name, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_truth_that_is_not_finite_is_no_truth(tmp_path):
    source = middlebury(tmp_path / "mb")
    path = source / "Middlebury_FS" / "focal_stack" / "ArtL" / "disp.exr"
    values = truth(2, size=(20, 28))
    values[3, 4], values[5, 6] = np.inf, np.nan
    write_exr(path, {"Y": values})
    datasets.prepare("middlebury/focal_stack", tmp_path / "d", source=source)
    record = _records("middlebury/focal_stack", tmp_path / "d", "test")[0]
    assert not record["mask"][3, 4] and not record["mask"][5, 6] and record["mask"][5, 7]
    assert np.isfinite(record["depth"]).all() and record["depth"][5, 7] == values[5, 7]
