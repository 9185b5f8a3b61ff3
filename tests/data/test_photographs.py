"""Which frame has which setting, what is a frame, and what is said about it: photographs as people have them."""

import itertools

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational
from scipy.ndimage import gaussian_filter

from dff_jax.data.files.focus_settings import labelled_settings
from dff_jax.data.files.folder import find, stacks_in
from dff_jax.data.files.series import natural_order
from dff_jax.data.files.stack import read_stack
from dff_jax.errors import InputError

H, W = 48, 64
CAPTURED, DISTANCE, ORIENTATION = 0x9003, 0x9206, 0x0112


def save(folder, names, values=None, **options):
    """Flat frames, the grey level of each is its number, or of `values`; or `values` are the frames."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        value = 40 + i if values is None else values[i]
        frame = np.full((H, W, 3), value, np.uint8) if np.isscalar(value) else value
        Image.fromarray(frame).save(folder / name, **options)
    return folder


def levels(stack):
    return (stack.frames[:, 0, 0, 0] - 40).tolist()


def said(read):
    return " | ".join(read.notes)


def ramp(count=6):
    """Frames of a slope: each is sharp in its own strip."""
    rng = np.random.default_rng(0)
    texture = np.clip(gaussian_filter(rng.random((H, W, 3)), (0.6, 0.6, 0)) * 2 - 0.5, 0, 1)
    frames, depth = [], np.linspace(0, count - 1, W)[None].repeat(H, 0)
    for z in range(count):
        blurred = [gaussian_filter(texture, (0.4 * s, 0.4 * s, 0)) for s in range(count + 1)]
        nearest = np.rint(np.abs(depth - z)).astype(int)
        frames.append(np.choose(nearest[..., None], blurred))
    return [np.rint(255 * frame).astype(np.uint8) for frame in frames]


# Order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["z_-10", "z_-2", "z_0", "z_+1", "z_10"],
        ["z-2", "z-1", "z0", "z1"],
        ["z-002", "z-001", "z+000", "z+001"],
        ["z_\N{MINUS SIGN}2", "z_\N{MINUS SIGN}1", "z_0"],
        ["scan-1", "scan-2", "scan-10"],  # a hyphen between words
        ["a 1,25", "a 1,5", "a 10,0"],
        ["p1.8", "p1.9", "p1.10", "p2.1"],
        ["2021-09-30 b", "2021-10-01 a"],
        ["x²1", "x²2", "x٣"],  # digits that are not ASCII are letters
    ],
)
def test_names_count(names, tmp_path):
    files = [tmp_path / f"{name}.png" for name in names]
    for shuffled in itertools.islice(itertools.permutations(files), 30):
        assert natural_order(shuffled) == files


def test_listed_files_keep_their_order_and_their_settings(tmp_path):
    save(tmp_path, ["a.png", "b.png", "c.png"])
    files = [tmp_path / name for name in ("c.png", "a.png", "b.png")]
    stack, read = read_stack(files, focus=[3, 1, 2])
    assert stack.focus.tolist() == [1, 2, 3] and levels(stack) == [0, 1, 2] and "the order listed" in said(read)
    stack, read = read_stack(files)
    assert levels(stack) == [2, 0, 1] and "the order listed, which is not that of their names" in said(read)
    _, read = read_stack(sorted(files))
    assert "listed" not in said(read)


def test_a_counter_that_wraps(tmp_path):
    names = ["IMG_9998.jpg", "IMG_9999.jpg", "IMG_0001.jpg", "IMG_0002.jpg"]
    save(tmp_path, names)
    stack, read = read_stack(tmp_path)
    assert "leaps from IMG_0002.jpg to IMG_9998.jpg" in said(read)
    for i, name in enumerate(names):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[CAPTURED] = f"2024:05:01 12:00:0{i // 2}"  # two in a second
        Image.fromarray(np.full((H, W, 3), 40 + i, np.uint8)).save(tmp_path / name, exif=exif, quality=100)
    stack, read = read_stack(tmp_path)
    assert levels(stack) == [0, 1, 2, 3] and "capture times" in said(read)
    save(tmp_path / "gap", ["f1.png", "f2.png", "f4.png", "f5.png"])
    assert "leaps from f2.png to f4.png" in said(read_stack(tmp_path / "gap")[1])
    save(tmp_path / "even", ["f2.png", "f4.png", "f6.png"])
    assert "leaps" not in said(read_stack(tmp_path / "even")[1])
    save(tmp_path / "signed", ["z-2.png", "z-1.png", "z1.png", "z2.png"])
    assert "leaps from z-1.png to z1.png" in said(read_stack(tmp_path / "signed")[1])
    save(tmp_path / "few", ["f1.png", "f98.png", "f99.png"])
    assert "leaps from f1.png to f98.png" in said(read_stack(tmp_path / "few")[1])
    save(tmp_path / "settings", ["f_0.35.png", "f_0.5.png", "f_0.9.png"])
    assert "leaps" not in said(read_stack(tmp_path / "settings")[1])


# Settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "unit", "focus", "note"),
    [
        (["a_0,35", "a_0,5", "a_1,25"], "metre", [1.25, 0.5, 0.35], "taken as metre"),
        (["a_1_0.35", "a_2_0.5", "a_3_inf"], "metre", [np.inf, 0.5, 0.35], "taken as metre"),
        (["a_0.35m", "a_0.5m", "a_1.25m"], "metre", [1.25, 0.5, 0.35], "taken as metre"),
        (["a_0.0005", "a_0.5", "a_1.25"], "index", [0, 1, 2], "cannot be distances"),
        (["a_20000.5", "a_30000.5", "a_40000.5"], "index", [0, 1, 2], "cannot be distances"),
        (["1638316800.25", "1638316801.25", "1638316802.25"], "index", [0, 1, 2], "dates or times"),
        (["20240501.1200", "20240501.1201", "20240501.1202"], "index", [0, 1, 2], "dates or times"),
        (["a_1.8", "a_1.9", "a_1.10"], "index", [0, 1, 2], "counter"),
        (["16.25", "16.4", "100.0"], "disparity", [16.25, 16.4, 100.0], "taken as disparity"),
    ],
)
def test_numbers_in_names(tmp_path, names, unit, focus, note):
    save(tmp_path, [f"{name}.png" for name in names])
    stack, read = read_stack(tmp_path)
    assert (stack.unit, stack.focus.tolist()) == (unit, focus) and note in said(read)


def test_positions_of_a_stage(tmp_path):
    save(tmp_path, ["z-2.png", "z-1.png", "z0.png", "z1.png"])
    stack, read = read_stack(tmp_path, unit="micron")
    assert stack.unit == "micron" and stack.focus.tolist() == [-2, -1, 0, 1] and "--reverse" in said(read)
    stack, _ = read_stack(tmp_path, unit="mm", reverse=True)
    assert stack.unit == "-mm" and stack.focus.tolist() == [1, 0, -1, -2] and levels(stack) == [3, 2, 1, 0]
    offset = 1.7e15  # nanometres of an encoder
    stack, _ = read_stack(tmp_path, focus=[offset + i for i in range(4)], unit="micron")
    assert np.diff(stack.focus).tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="no focus settings in metre"):
        read_stack(tmp_path, unit="metre")


@pytest.mark.parametrize(
    ("name", "text", "unit", "focus"),
    [
        ("Focus_Distance.TXT", "# of the lens\n350 mm\n500 mm\ninf\n", "metre", [np.inf, 0.5, 0.35]),
        ("focus_distance.csv", "file;distance\nf2.png;2,5\nf0.png;0,35\nf1.png;0,5\n", "metre", [2.5, 0.5, 0.35]),
        ("focus_distance.csv", "name,distance (mm)\nf0,350\nf1,500\nf2,2500\n", "metre", [2.5, 0.5, 0.35]),
        ("focus_distance.txt", "f0.png 2.5 D\nf1.png 0.5 D\nf2.png 0 D  # far\n", "diopter", [0, 0.5, 2.5]),
        ("focus_distance.txt", "0.35, 0.5, 2.5", "metre", [2.5, 0.5, 0.35]),
        ("focus_distance.txt", "1\t0.35 m\n2\t0.5 m\n3\t∞\n", "metre", [np.inf, 0.5, 0.35]),
        ("focus_distances.txt", "-1.5 um\n0 um\n1500 nm\n", "micron", [-1.5, 0, 1.5]),
        ("focus_distance.txt", "diopters\n2.5\n1.5\n0.5\n", "diopter", [0.5, 1.5, 2.5]),
        ("focus_distance.csv", "name,1/m\nf0,2.5\nf1,1.5\nf2,0.5\n", "diopter", [0.5, 1.5, 2.5]),
        ("Focus Distance.csv", '"x/f2.png","2,5"\n"x/f0.png","0,5"\n"x/f1.png","1"\n', "metre", [2.5, 1, 0.5]),
        ("focus_distance.txt", "[500 mm, 1 meter, 2 m]", "metre", [2, 1, 0.5]),
        ("focus_distance.txt", "1,2,3", "metre", [3, 2, 1]),
        ("focus_distance.txt", "0,35 0,5 0,9", "metre", [0.9, 0.5, 0.35]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_distance_files(tmp_path, name, text, unit, focus, encoding):
    save(tmp_path, ["f0.png", "f1.png", "f2.png"])
    (tmp_path / name).write_text(text, encoding=encoding)
    stack, read = read_stack(tmp_path)
    assert stack.unit == unit and name in read.notes[0]
    np.testing.assert_allclose(stack.focus, focus)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.35 m\n0.5 mile\n1 m", "line 2: unit 'mile' is unknown"),
        ("0.35 m\n0.5 D\n1 m", "several units"),
        ("a.png 0.35\nf1.png 0.5\nf2.png 1\n", "no line for f0.png"),
        ("0.35\n0.5\n-inf", "focus setting -inf is not a finite"),
        ("f0 0.35\nf0 0.5\nf2 1\n", "names a file twice"),
        ("1,000.5\n1,100.5\n1,200.5\n", "names a file twice"),
        ("f0 0.35\n0.5\nf2 1\n", "only in some lines"),
        ("3 0.9\n1 0.35\n2 0.5\n", "no line for f0.png"),
    ],
)
def test_bad_distance_files(tmp_path, text, message):
    save(tmp_path, ["f0.png", "f1.png", "f2.png"])
    (tmp_path / "focus_distance.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_stack(tmp_path)


def test_a_distance_file_in_another_unit(tmp_path):
    save(tmp_path, ["f0.png", "f1.png"])
    (tmp_path / "focus_distance.txt").write_text("350 mm\n500 mm\n")
    for read in (read_stack, labelled):
        with pytest.raises(InputError, match=r"focus_distance.txt: its settings are in metre, not in diopter"):
            read(tmp_path, unit="diopter")
    np.testing.assert_allclose(labelled(tmp_path, unit="mm"), [350, 500])


def labelled(folder, unit):
    return labelled_settings(sorted(folder.glob("*.png")), unit)


def test_what_is_not_used_is_named(tmp_path):
    save(tmp_path, ["a_0.5.png", "a_1.5.png"])
    (tmp_path / "focus_distance.txt").write_text("0.7\n1.7\n")
    assert "file names are not used" in said(read_stack(tmp_path)[1])
    assert "focus_distance.txt is not used" in said(read_stack(tmp_path, focus=[1, 2])[1])
    stack, read = read_stack(tmp_path, focus=[400, 900], unit="metre")
    assert "millimetres" in said(read)


def test_exif_distances(tmp_path):
    def shoot(distances):
        for i, metres in enumerate(distances):
            exif = Image.Exif()
            exif.get_ifd(0x8769)[DISTANCE] = metres
            Image.fromarray(np.full((H, W, 3), 40 + i, np.uint8)).save(tmp_path / f"f{i}.jpg", exif=exif, quality=100)
        return read_stack(tmp_path)

    stack, read = shoot([0.5, 2.0, 1.0])
    assert stack.unit == "metre" and stack.focus.tolist() == [2, 1, 0.5] and "EXIF" in read.notes[0]
    stack, _ = shoot([0.5, 2.0, IFDRational(2**32 - 1, 1)])
    assert stack.focus.tolist() == [np.inf, 2, 0.5]
    for some in ([0.5, 0.5, 65535], [0, 0.5, 1.0]):
        stack, read = shoot(some)
        assert stack.unit == "index" and "EXIF subject distances are not used" in said(read)


# What is a frame -------------------------------------------------------------------------------------------


def test_results_among_the_frames(tmp_path):
    frames = ["f1.png", "f2.png", "f3.png", "f4.png"]
    save(tmp_path, [*frames, "f_depthmap.png", "f_all_in_focus.png", "ZS DMap.png"])
    stack, read = read_stack(tmp_path)
    assert list(read.names) == frames
    assert "the name says that it is a result: f_all_in_focus.png, f_depthmap.png, ZS DMap.png" in said(read)
    save(tmp_path / "odd", [*frames, "holiday.png"])
    _, read = read_stack(tmp_path / "odd")
    assert len(read.names) == 5 and "named unlike the other frames, but taken as frames: holiday.png" in said(read)
    save(tmp_path / "all", ["depth1.png", "depth2.png", "depth3.png"])  # a name that all have says nothing
    assert len(read_stack(tmp_path / "all")[1].names) == 3
    _, read = read_stack([tmp_path / name for name in (*frames, "f_depthmap.png")])  # the user listed it
    assert len(read.names) == 5 and "taken as frames: f_depthmap.png" in said(read)


@pytest.mark.parametrize(("value", "what"), [(0, "black"), (255, "white")])
def test_a_black_or_white_frame_has_no_say(tmp_path, value, what):
    frames = ramp()
    frames[2] = np.full_like(frames[0], value)
    save(tmp_path, [f"f{i}.png" for i in range(6)], frames)
    stack, read = read_stack(tmp_path)
    assert f"left out: f2.png is {what}" in said(read) and len(stack.frames) == len(stack.focus) == 5
    assert stack.focus.tolist() == [0, 1, 3, 4, 5] and np.array_equal(stack.frames[2], frames[3])


def test_dim_frames_of_a_12_bit_camera_are_not_black(tmp_path):
    import tifffile

    for i, frame in enumerate(ramp()):
        tifffile.imwrite(tmp_path / f"f{i}.tif", frame.astype(np.uint16) * (16 if i else 4))
    tifffile.imwrite(tmp_path / "f6.tif", np.full((H, W, 3), 20, np.uint16))
    stack, read = read_stack(tmp_path)
    assert "left out: f6.tif is black" in said(read) and stack.focus.tolist() == [0, 1, 2, 3, 4, 5]


def test_odd_frames_are_named(tmp_path):
    frames = ramp()
    names = [f"f{i}.png" for i in range(6)]
    _, read = read_stack(save(tmp_path / "good", names, frames))
    assert len(read.notes) == 1  # on the missing settings
    shaken = [*frames[:3], gaussian_filter(frames[3], (4, 4, 0)), *frames[4:]]
    assert "f3.png is blurred against its neighbours" in said(read_stack(save(tmp_path / "blur", names, shaken))[1])
    moved = [*frames[:3], np.roll(frames[3], 9, 1), *frames[4:]]
    assert "f3.png has moved against its neighbours" in said(read_stack(save(tmp_path / "move", names, moved))[1])
    sharp = np.stack(frames)[np.rint(np.linspace(0, 5, W)).astype(int), :, np.arange(W)].swapaxes(0, 1)
    fused = read_stack(save(tmp_path / "fused", [*names, "f6.png"], [*frames, sharp]))[1]
    assert "f6.png is the sharpest frame everywhere" in said(fused)


def test_one_odd_size_or_orientation_is_the_one_named(tmp_path):
    save(tmp_path, ["a.png", "b.png", "c.png"])
    Image.fromarray(np.zeros((H, W + 1, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.png: 65 x 48 where b.png is 64 x 48"):
        read_stack(tmp_path)
    turned = np.full((H, W, 3), 50, np.uint8)
    turned[:8] = 200
    for i in range(4):
        exif = Image.Exif()
        exif[ORIENTATION] = 6 if i != 2 else 1  # the phone was held flat once
        (tmp_path / "turn").mkdir(exist_ok=True)
        Image.fromarray(turned).save(tmp_path / "turn" / f"f{i}.jpg", exif=exif)
    stack, read = read_stack(tmp_path / "turn")
    assert stack.frames.shape[1:3] == (W, H) and "f2.jpg: EXIF says another orientation" in said(read)
    np.testing.assert_array_equal(stack.frames[2], stack.frames[1])


def test_transparent_borders(tmp_path):
    frames = [np.dstack([frame, np.full((H, W), 255, np.uint8)]) for frame in ramp(4)]
    for z, frame in enumerate(frames):
        frame[:, : 4 + 3 * z] = 0
    stack, read = read_stack(save(tmp_path, [f"f{i}.png" for i in range(4)], frames))
    assert not read.everywhere[:, :13].any() and read.everywhere[:, 13:].all()
    assert read.nowhere[:, :4].all() and not read.nowhere[:, 4:].any() and "transparent" in said(read)
    np.testing.assert_array_equal(stack.frames[3][:, 10:13], stack.frames[2][:, 10:13])  # no edge is made
    np.testing.assert_array_equal(stack.frames[3][:, 4:7], stack.frames[0][:, 4:7])
    np.testing.assert_array_equal(stack.frames[0][:, 0], stack.frames[0][:, 4])


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_few_bits_in_sixteen(tmp_path, bits):
    import tifffile

    for i in range(2):
        frame = np.full((H, W), 2**bits - 1 - i, np.uint16)
        tifffile.imwrite(tmp_path / f"f{i}.tif", frame)
    stack, read = read_stack(tmp_path)
    assert stack.frames[0].min() == 65535 and f"use {bits} of 16 bits" in said(read)


def test_folders_of_stacks_and_circular_links(tmp_path):
    for name in ("b10", "b2", "result"):
        save(tmp_path / name, ["1.png", "2.png"])
    (tmp_path / "result" / "summary.json").write_text("{}")
    save(tmp_path / "out" / "b2", ["1.png", "2.png"])
    assert [path.name for path in stacks_in(tmp_path, tmp_path / "out")] == ["b2", "b10"]
    assert stacks_in(tmp_path / "b2", tmp_path / "out") == []
    assert len(stacks_in(tmp_path, tmp_path)) == len(stacks_in(tmp_path, tmp_path.parent)) == 3
    for name in ("x", "y"):
        (tmp_path / "b2" / name).symlink_to(tmp_path, target_is_directory=True)
    assert len(find(str(tmp_path / "b2" / "**" / "*.png")).files) == 2
    (tmp_path / "b2" / "2.png").rename(tmp_path / "b10" / "3.png")
    assert "from 2 folders and are taken as one stack" in find(str(tmp_path / "b*" / "[13].png")).notes[-1]


def test_pages_of_one_file(tmp_path):
    import tifffile

    pages = np.stack([np.full((H, W), 40 + i, np.uint8) for i in range(4)])
    plain, scaled = tmp_path / "plain.tif", tmp_path / "scaled.tif"
    tifffile.imwrite(plain, pages, photometric="minisblack")
    tifffile.imwrite(scaled, pages, imagej=True, metadata={"axes": "ZYX", "spacing": 2.5, "unit": "um"})
    stack, read = read_stack(plain)
    assert stack.unit == "index" and levels(stack) == [0, 1, 2, 3] and read.names[3] == "page 4"
    assert levels(read_stack(plain, reverse=True)[0]) == [3, 2, 1, 0]
    stack, read = read_stack(scaled)
    assert stack.unit == "micron" and stack.focus.tolist() == [0, 2.5, 5, 7.5]
    assert "the z positions in the file" in said(read)
    stack, _ = read_stack(scaled, unit="mm", reverse=True)
    np.testing.assert_allclose(stack.focus, [0.0075, 0.005, 0.0025, 0])
    stack, _ = read_stack(scaled, focus=[4, 3, 2, 1])
    assert stack.unit == "disparity" and levels(stack) == [3, 2, 1, 0]
    with pytest.raises(InputError, match="no focus settings in metre"):
        read_stack(scaled, unit="metre")
    tifffile.imwrite(tmp_path / "turned.tif", pages, photometric="minisblack", extratags=[(ORIENTATION, 3, 1, 6, True)])
    assert read_stack(tmp_path / "turned.tif")[0].frames.shape == (4, W, H, 3)  # only the first page says so
    with pytest.raises(InputError, match=r"plain.tif: has several pages; give it by itself"):
        read_stack(str(tmp_path / "pl*.tif"))
    save(tmp_path, ["z.png"])
    with pytest.raises(InputError, match=r"plain.tif: has several pages"):
        read_stack(tmp_path)
    with pytest.raises(InputError, match="z.png: one image; a focal stack is"):
        read_stack(tmp_path / "z.png")


def test_decoding_stays_within_memory(tmp_path):
    save(tmp_path, ["1.png", "2.png"])
    with pytest.raises(InputError, match=r"1.png: decoding its 64 x 48 pixels takes 0.0 GB; allow more \(--memory\)"):
        read_stack(tmp_path, memory=1000)
    read_stack(tmp_path, memory=1e6)
