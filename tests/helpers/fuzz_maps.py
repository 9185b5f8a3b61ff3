"""Damaged photographs and depth maps."""

import io
import shutil
import struct
import zipfile
import zlib

import dataset_files as files
import imagecodecs
import numpy as np
import OpenEXR
import tifffile
from fuzz_damage import ANY, BIG, ERROR, SUMMED, H, W, depth_map, photograph
from PIL import Image

# Pictures -----------------------------------------------------------------------------------------------------------


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, bits=8, kind=2, pixels=b"x"):
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(width, height, rows=1, size=60, compression=1, offset=8, next_page=0):
    """One strip of `size` bytes."""
    entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, compression), (262, 3, 1), (273, 4, offset),
               (277, 3, 1), (278, 4, rows), (279, 4, size)]  # fmt: skip
    place = 8 + 60
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in entries)
    return b"II*\0" + struct.pack("<I", place) + bytes(60) + table + struct.pack("<I", next_page)


def pictures(cases):
    def pillow(image, kind, **options):
        out = io.BytesIO()
        Image.fromarray(image).save(out, kind, **options)
        return out.getvalue()

    def tifffiled(image, **options):
        out = io.BytesIO()
        tifffile.imwrite(out, image, photometric="rgb", **options)
        return out.getvalue()

    deep = photograph(1).astype(np.uint16) * 257
    formats = {
        "JPEG": ("b.jpg", pillow(photograph(1), "JPEG", quality=90), ANY),
        "progressive JPEG": ("b.jpg", pillow(photograph(1), "JPEG", progressive=True), ANY),
        "PNG": ("b.png", pillow(photograph(1), "PNG"), SUMMED),
        "palette PNG": ("b.png", pillow(np.asarray(Image.fromarray(photograph(1)).quantize(9)), "PNG"), SUMMED),
        "16-bit PNG": ("b.png", imagecodecs.png_encode(deep), SUMMED),
        "TIFF": ("b.tif", tifffiled(photograph(1)), ANY),
        "16-bit TIFF": ("b.tif", tifffiled(deep, compression="deflate"), ANY),
        "tiled TIFF": ("b.tif", tifffiled(photograph(1), bigtiff=True, tile=(16, 16)), ANY),
        "LZW TIFF": ("b.tif", pillow(photograph(1), "TIFF", compression="tiff_lzw"), ANY),
        "BMP": ("b.bmp", pillow(photograph(1), "BMP"), ANY),
        "WebP": ("b.webp", pillow(photograph(1), "WEBP", lossless=True), ANY),
        "GIF": ("b.gif", pillow(photograph(1), "GIF"), ANY),
        "16-bit PPM": ("b.ppm", b"P6\n%d %d\n65535\n" % (W, H) + deep.astype(">u2").tobytes(), ANY),
    }
    for seed, (name, (inner, data, allowed)) in enumerate(formats.items()):
        base = cases.root / f"stack{seed}"
        base.mkdir()
        first = deep if "16-bit" in name else photograph(0)
        (base / "a.png").write_bytes(imagecodecs.png_encode(first))
        (base / inner).write_bytes(data)
        cases.damage(name, "stack", base, inner, allowed, seed=seed)

    base = cases.root / "stack0"
    big_bmp = bytearray(formats["BMP"][1])
    big_bmp[18:26] = struct.pack("<ii", BIG - 1, BIG - 1)
    big_jpeg = formats["JPEG"][1]
    place = big_jpeg.index(b"\xff\xc0") + 5
    big_jpeg = big_jpeg[:place] + struct.pack(">HH", 65500, 65500) + big_jpeg[place + 4 :]
    nan = io.BytesIO()
    tifffile.imwrite(nan, np.full((H, W), np.nan, np.float32))
    volume = io.BytesIO()
    tifffile.imwrite(volume, np.zeros((3, 4, H, W), np.uint8), photometric="minisblack", metadata=None, volumetric=True)
    for name, data in {
        "PNG of 2^31 x 2^31": png(BIG - 1, BIG - 1),
        "16-bit PNG of 2^31 x 2^31": png(BIG - 1, BIG - 1, 16),
        "PNG of 13000 x 13000 with no pixels": png(13000, 13000, 16, 6),
        "PNG of 0 x 0": png(0, 0),
        "PNG of 1 x 0": png(1, 0),
        "PNG of unknown kind": png(W, H, 7, 5),
        "PNG with a chunk of 4 GiB": b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIHDR" + bytes(40),
        "TIFF of 2^31 x 2^31": tiff(BIG, BIG),
        "TIFF of 2^31 x 2^31, deflated": tiff(BIG, BIG, BIG, compression=8),
        "TIFF of 13000 x 13000 in one strip": tiff(13000, 13000, 13000),
        "TIFF of 0 x 0": tiff(0, 0),
        "TIFF whose strip lies behind the end": tiff(W, H, H, W * H, offset=10**9),
        "TIFF whose pages run in a circle": tiff(W, H, next_page=68),
        "TIFF whose strip is 4 GiB": tiff(W, H, H, 2**32 - 1),
        "TIFF of NaN": nan.getvalue(),
        "TIFF of a volume": volume.getvalue(),
        "BMP of 2^31 x 2^31": bytes(big_bmp),
        "JPEG of 65500 x 65500": big_jpeg,
        "GIF of two frames": pillow(photograph(1), "GIF", save_all=True, append_images=[Image.new("RGB", (W, H))]),
    }.items():
        cases.inside(name, "stack", base, "b.jpg", data, ERROR)
    cases.inside("PNG with more pixels than its size", "stack", base, "b.jpg", png(W, H, pixels=bytes(10**7)), ANY)


# Maps ---------------------------------------------------------------------------------------------------------------


def npy(values):
    out = io.BytesIO()
    np.save(out, values, allow_pickle=True)
    return out.getvalue()


def npy_header(shape, kind="<f4", body=b"", order="False"):
    text = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1") + body


def npz(members, compression=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


def maps(cases):
    root, depth = cases.root / "maps", depth_map()
    root.mkdir()
    half = depth.astype(np.float16)
    files.write_exr(root / "zip.exr", {"Y": depth})
    files.write_exr(root / "half.exr", {"R": half, "G": half, "B": half})
    for name, kind in (("plain", OpenEXR.NO_COMPRESSION), ("piz", OpenEXR.PIZ_COMPRESSION)):
        with OpenEXR.File({"compression": kind, "type": OpenEXR.scanlineimage}, {"Y": depth}) as file:
            file.write(str(root / f"{name}.exr"))
    pfm = b"Pf\n%d %d\n%s\n"
    (root / "little.pfm").write_bytes(pfm % (W, H, b"-1.0") + depth[::-1].tobytes())
    (root / "big.pfm").write_bytes(pfm % (W, H, b"1.0") + depth[::-1].astype(">f4").tobytes())
    (root / "a.npy").write_bytes(npy(depth))
    (root / "double.npy").write_bytes(npy(depth.astype(np.float64)[..., None]))
    (root / "a.npz").write_bytes(npz({"arr_0.npy": npy(depth)}))
    (root / "stored.npz").write_bytes(npz({"depth.npy": npy(depth)}, zipfile.ZIP_STORED))
    (root / "a.png").write_bytes(imagecodecs.png_encode((depth * 2).astype(np.uint8)))
    (root / "deep.png").write_bytes(imagecodecs.png_encode((depth * 700).astype(np.uint16)))
    for seed, path in enumerate(sorted(root.iterdir())):
        # of a map whose length follows from its header, no part is the whole
        allowed = SUMMED if path.suffix == ".png" else ANY
        cases.damage(path.name, "map", path, None, allowed, seed=100 + seed)

    exr = (root / "zip.exr").read_bytes()
    window = exr.index(b"box2i") + 10

    def exr_window(*box, both=True):
        data = bytearray(exr)
        data[window : window + 16] = struct.pack("<4i", *box)
        if both:
            other = exr.index(b"box2i", window) + 10
            data[other : other + 16] = struct.pack("<4i", *box)
        return bytes(data)

    for name, base, data in (
        ("EXR of 2^31 x 2^31", "zip.exr", exr_window(0, 0, BIG - 1, BIG - 1)),
        ("EXR of 2^31 x 1", "zip.exr", exr_window(0, 0, BIG - 1, 0)),
        ("EXR from -2^31 to 2^31", "zip.exr", exr_window(-BIG, -BIG, BIG - 1, BIG - 1)),
        ("EXR of 8000 x 8000 in 2 KiB", "zip.exr", exr_window(0, 0, 7999, 7999)),
        ("EXR of negative size", "zip.exr", exr_window(5, 5, 0, 0)),
        ("EXR with rows cut off by its header", "zip.exr", exr_window(0, 0, W - 1, 15, both=False)),
        ("PFM of 2^31 x 2^31", "little.pfm", pfm % (BIG, BIG, b"-1") + bytes(100)),
        ("PFM of 999999999 x 999999999", "little.pfm", pfm % (999999999, 999999999, b"-1") + bytes(100)),
        ("PFM of 0 x 0", "little.pfm", pfm % (0, 0, b"-1")),
        ("PFM of scale 0", "little.pfm", pfm % (W, H, b"0") + depth.tobytes()),
        ("PFM of scale NaN", "little.pfm", pfm % (W, H, b"nan") + depth.tobytes()),
        ("PFM in colour", "little.pfm", b"PF\n%d %d\n-1\n" % (W, H) + np.arange(H * W * 3, dtype="<f4").tobytes()),
        ("PFM with a row too many", "little.pfm", pfm % (W, H, b"-1") + depth.tobytes() + bytes(4 * W)),
        ("PFM with an endless header", "little.pfm", b"Pf\n" + b"#\n" * 10**6),
        ("npy of 2^31 x 2^31", "a.npy", npy_header((BIG, BIG))),
        ("npy of 2^62 x 4", "a.npy", npy_header((2**62, 4))),
        ("npy of 8000 x 8000 in 128 bytes", "a.npy", npy_header((8000, 8000))),
        ("npy of 0 x 0", "a.npy", npy_header((0, 0))),
        ("npy of negative size", "a.npy", npy_header((-H, -W), body=depth.tobytes())),
        ("npy of true x true", "a.npy", npy_header("(True, True)", body=bytes(4))),
        ("npy whose shape is a call", "a.npy", npy_header("(__import__('os').getpid(), 2)")),
        ("npy with a deep header", "a.npy", npy_header("(" * 3000 + ")" * 3000)),
        ("npy of objects", "a.npy", npy(np.array([[None, {}]], object))),
        ("npy of text", "a.npy", npy(np.full((H, W), "x"))),
        ("npy of complex numbers", "a.npy", npy(depth.astype(complex))),
        ("npy of truth values", "a.npy", npy(depth > 3)),
        ("npy of records", "a.npy", npy(np.zeros((H, W), [("a", "f4")]))),
        ("npy of three maps", "a.npy", npy(np.stack([depth] * 3))),
        ("npy of one row", "a.npy", npy(depth[0])),
        ("npz of two arrays", "a.npz", npz({"a.npy": npy(depth), "b.npy": npy(depth)})),
        ("npz without arrays", "a.npz", npz({})),
        ("npz of a text", "a.npz", npz({"arr_0.npy": b"hello"})),
        ("npz of a folder", "a.npz", npz({"arr_0.npy/": b""})),
        ("npz of objects", "a.npz", npz({"arr_0.npy": npy(np.array([[None]], object))})),
        ("npz that expands without limit", "a.npz", npz({"arr_0.npy": npy_header((BIG, 4)) + bytes(10**7)})),
        ("npz packed by bzip2", "a.npz", npz({"arr_0.npy": npy(depth)}, zipfile.ZIP_BZIP2)),
        ("npz packed by lzma", "a.npz", npz({"arr_0.npy": npy(depth)}, zipfile.ZIP_LZMA)),
        ("PNG map in colour", "a.png", imagecodecs.png_encode(photograph())),
        ("PNG map of 2^31 x 2^31", "a.png", png(BIG - 1, BIG - 1, 16, 0)),
        ("PNG map of 8000 x 8000 in 70 bytes", "a.png", png(8000, 8000, 16, 0)),
        ("PNG map of 4 bits", "a.png", png(W, H, 4, 0, bytes((W // 2 + 1) * H))),
        ("PNG map with a palette", "a.png", png(W, H, 8, 3, bytes((W + 1) * H))),
    ):
        cases.file(name, "map", root / base, data, ERROR)
    for name in ("../../evil.npy", "/tmp/evil.npy", "C:\\evil.npy"):  # nothing is unpacked, so these are names
        cases.file(f"npz with {name}", "map", root / "a.npz", npz({name: npy(depth)}), SUMMED)
    folder = root.parent / "a-folder" / "a.npy"
    folder.mkdir(parents=True)
    cases.add("a folder for a file", "map", folder, root / "a.npy", ERROR)
    cases.add("no file", "map", root.parent / "none.exr", root / "zip.exr", ERROR)

    labelled = cases.root / "labelled"
    files.write_stack(labelled, 10.0, 100.0, size=(H, W))
    for i, value in enumerate((np.nan, np.inf, -np.inf)):
        holes = depth_map(3)
        holes[2, 3 + i] = value
        cases.inside(f"truth with {value}", "labelled", labelled, "disp.exr", exr_bytes(cases, holes), ANY)
    cases.inside("truth of another size", "labelled", labelled, "disp.exr", exr_bytes(cases, depth_map()[1:]), ERROR)
    cases.inside("truth that is 0", "labelled", labelled, "disp.exr", exr_bytes(cases, depth * 0), ERROR)
    cases.inside("no truth", "labelled", labelled, "disp.exr", None, ERROR)
    scene = cases.root / "scene"
    scene.mkdir()
    Image.fromarray(photograph()).save(scene / "rgb.png")
    shutil.copy(root / "deep.png", scene / "disp.png")
    (scene / "scale.txt").write_text("1/256\n")
    for text in ("", "0", "-1", "nan", "inf", "1/0", "a/b", "1e999", "\0", "9" * 10**5, "\x80"):
        cases.inside(f"scale of {text[:9]!r}", "scenes", scene, "scale.txt", text.encode("latin1"), ERROR)
    cases.damage("map of a scene", "scenes", scene, "disp.png", SUMMED, count=4, seed=200)


def exr_bytes(cases, values):
    path = cases.root / "temporary.exr"
    files.write_exr(path, {"Y": np.ascontiguousarray(values)})
    return path.read_bytes()
