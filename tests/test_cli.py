"""The command line: what it prints, its exit status, and that bad input writes nothing."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from dff_jax import cli
from dff_jax.runtime import stopping

ROOT = pathlib.Path(__file__).parent.parent
TINY = str(ROOT / "configs" / "procedural_tiny.py")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "kept as conftest set it")


def run(capsys, *arguments):
    """Status, stdout and stderr of a command line."""
    try:
        status = cli.main([str(a) for a in arguments])
    except SystemExit as error:  # argparse
        status = error.code
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "stack"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in (1, 2, 10):
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), np.uint8)).save(folder / f"frame{i}.png")
    return folder


def test_a_bad_config_or_field_is_one_line_and_writes_nothing(capsys, tmp_path):
    for arguments, match in (
        ([TINY, "--model.width", "wide"], "model.width: expected a number, got 'wide'"),
        ([f"{TINY}:other"], "no function 'other'; it has config"),
    ):
        status, _, err = run(capsys, "train", *arguments, "--output", tmp_path / "run")
        assert status == 2 and match in err and err.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_fields_lists_values(capsys):
    status, out, _ = run(capsys, "train", TINY, "--model.num-iterations", "5", "--fields")
    assert status == 0 and "--model.num-iterations 5" in out and "--data.world.height" in out


def test_predict_classical_from_the_command_line(capsys, tmp_path, photographs):
    output = tmp_path / "out"
    status, out, _ = run(capsys, "predict", photographs, "--output", output, "--method", "classical")
    assert status == 0 and "overview.png" in out and "index" in out
    summary = json.loads((output / "summary.json").read_text())
    assert summary["frames"] == ["frame1.png", "frame2.png", "frame10.png"]
    depth = np.load(output / "depth.npy")
    assert depth.shape == (40, 48) and depth.dtype == np.float32 and np.isfinite(depth).all()


def test_predict_takes_a_shell_expanded_glob(capsys, tmp_path, photographs):
    files = sorted(photographs.glob("*.png"))
    focus = ["--focus", "1.5", "2.5", "4"]
    status, _, _ = run(capsys, "predict", *files, "--output", tmp_path / "out", *focus, "--method", "sml")
    assert status == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["focus"] == [1.5, 2.5, 4.0] and summary["frames"][-1] == "frame2.png"  # listed last
    assert any("in the order listed, which is not that of their names" in note for note in summary["notes"])


def test_bad_input_is_status_2_and_writes_nothing(capsys, tmp_path, photographs):
    output = tmp_path / "out"
    (photographs / "frame2.png").write_text("not a picture")
    status, _, err = run(capsys, "predict", photographs, "--output", output)
    assert status == 2 and "frame2.png" in err and err.count("\n") == 1
    assert not output.exists()
    status, _, err = run(capsys, "predict", photographs, "--output", output, "--unit", "inch")
    assert status == 2 and "inch" in err
    status, _, err = run(capsys, "prepare", "procedural/huge")
    assert status == 2 and "procedural/quickstart" in err
    status, _, err = run(capsys, "evaluate", tmp_path / "no_run", "--dataset", "procedural/tiny", "--output", output)
    assert status == 2 and "no_run" in err and not output.exists()


@pytest.mark.slow
def test_prepare_export_evaluate_round_trip(capsys, tmp_path):
    """A dataset written out as folders of pictures is read back as the same stacks."""
    data, folders = tmp_path / "data", tmp_path / "folders"
    status, out, _ = run(capsys, "prepare", "procedural/tiny", "--data-dir", data, "--export", folders)
    assert status == 0 and str(folders / "00001") in out
    common = ["evaluate", "classical", "--output"]
    assert run(capsys, *common, tmp_path / "a", "--dataset", "procedural/tiny", "--data-dir", data)[0] == 0
    assert run(capsys, *common, tmp_path / "b", "--source", folders)[0] == 0
    one, two = (json.loads((tmp_path / x / "metrics.json").read_text())["rows"]["classical"] for x in "ab")
    assert one["MAE"] == pytest.approx(two["MAE"], rel=1e-5)


def test_names_with_dollar_signs_and_other_scripts(capsys, tmp_path, photographs):
    folder = photographs.rename(tmp_path / "shots_$5_and_$6_日本")
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(folder / f"$x_$y_{i}.5.png")
    status, out, err = run(capsys, "predict", folder, "--output", tmp_path / "out", "--method", "sml")
    assert status == 0 and "Glyph" not in err and (tmp_path / "out" / "overview.png").is_file()


def test_a_console_that_knows_only_ascii_gets_escaped_text(tmp_path, photographs, monkeypatch):
    folder = photographs.rename(tmp_path / "日本\x1b[31m")
    (folder / "x\u202e.heic").touch()
    console = [io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", console[0])
    monkeypatch.setattr(sys, "stderr", console[1])
    assert cli.main(["predict", str(folder), "--output", str(folder) + "-out", "--method", "sml"]) == 0
    assert cli.main(["predict", str(folder) + "-no", "--output", "out"]) == 2
    out, err = (stream.detach().getvalue() for stream in console)
    assert rb"\u65e5\u672c\x1b[31m-out/overview.png" in out and rb"note: not read: x\u202e.heic" in out
    assert rb"\u65e5\u672c\x1b[31m-no: " in err and b"\x1b" not in out + err


def test_photographs_in_other_formats_are_not_passed_over_in_silence(capsys, tmp_path, photographs):
    (photographs / "frame3.heic").write_bytes(b"x")
    (photographs / "frame1.CR2").write_bytes(b"x")  # beside frame1.png, as cameras write both
    status, out, _ = run(capsys, "predict", photographs, "--output", tmp_path / "out", "--method", "sml")
    assert status == 0 and "note: not read: frame3.heic; export" in out
    (photographs / "focus_distance.txt").write_text("1\n2\n3\n4\n")
    status, _, err = run(capsys, "predict", photographs, "--output", tmp_path / "other", "--method", "sml")
    assert status == 2 and "4 distances for 3 frames" in err and "not read: frame3.heic" in err


@pytest.mark.parametrize(
    "words, expected",
    [
        ("predict a.png b.png --output o --focus 1 2.5", {"source": ["a.png", "b.png"], "focus": [1.0, 2.5]}),
        ("predict --align --reverse --output o stack", {"source": "stack", "align": "similarity", "reverse": True}),
        ("predict stack --output o --align affine", {"align": "affine", "max_size": None, "memory": 4.0}),
        ("evaluate sml --dataset d --output=o --report", {"spec": "sml", "output": "o", "report": 24}),
        ("evaluate sml --dataset d --output o --report 3 --resize 64 96", {"report": 3, "resize": (64, 96)}),
        ("evaluate sml --source d --output o --figure-stacks 2 1", {"report": 0, "figure_stacks": (2, 1)}),
        ("evaluate sml --dataset d --output o --against a b", {"against": ("a", "b"), "figure_stacks": None}),
        ("ablate a --dataset d --output o --figure-stacks 1 16 54", {"figure_stacks": (1, 16, 54)}),
        ("ablate a b --dataset d --output o --schemes --iterations 0 5", {"runs": ["a", "b"], "schemes": []}),
        ("prepare ddff12/test --source d --bgr", {"name": "ddff12/test", "bgr": True, "workers": None}),
        ("prepare stacks/mine --source d --align --no-bgr", {"align": "similarity", "bgr": False}),
        ("prepare rgbd/rooms --source d --focus-range 10 60", {"focus_range": (10.0, 60.0)}),
        ("predict --output o --focus -1 -0.5 -1e-3 --reverse s", {"source": "s", "focus": [-1.0, -0.5, -0.001]}),
        ("predict --output o s --focus=-1 -.5 0", {"source": "s", "focus": [-1.0, -0.5, 0.0]}),
        ("prepare rgbd/rooms --source d --focus-range -5 -1", {"focus_range": (-5.0, -1.0)}),
        ("prepare --list", {"name": None, "list": True}),
        ("import-weights w.tar --model dwild --near-first", {"source": "w.tar", "frame_order": "descending"}),
        ("pack run --output o --score a A --score b B", {"weights": "run", "score": (("a", "A"), ("b", "B"))}),
        ("train c.py --no-resume --model.width 0.5 --data.crop 64 96", {"config": "c.py", "resume": False}),
        ("train c.py --seed 3 --fields", {"fields": True, "changes": ("--seed", "3")}),
        ("compare c.py --only ours DFV-Diff", {"only": ("ours", "DFV-Diff"), "output": None}),
        ("bench unroll --preset tiny --size 64", {"subject": "unroll", "preset": ("tiny",), "size": (64,)}),
    ],
)
def test_words_become_arguments(words, expected):
    name, *rest = words.split()
    _, given = cli.parse(name, rest)
    assert {key: given[key] for key in expected} == expected


def test_every_command_says_what_it_takes(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0 and all(name in out for name in cli.COMMANDS)
    assert run(capsys, "--version")[1].startswith("dff-jax ")
    for name in cli.COMMANDS:
        status, out, _ = run(capsys, name, "--help")
        assert status == 0 and f"dff-jax {name}" in out


def test_wrong_usage_is_one_line(capsys):
    for words, match in (
        ("", "give a command"),
        ("predicted", "'predicted' is no command"),
        ("predict", "missing: --output"),
        ("predict --output y", "missing: source"),
        ("prepare x --split dev", "--split: 'dev' is not a choice; choose one of test, train, validation"),
        ("predict x --output y --no-such-option", "unrecognized arguments: --no-such-option"),
        ("bench --size big", "--size: expected"),
        ("bench all", "subject: 'all' is not a choice; choose one of loader, model, unroll"),
        ("evaluate sml --output y --dataset d --resize 3", "--resize: expected INT INT"),
        ("evaluate sml --dataset d --output", "--output: expected"),
        ("train", "missing: config"),
        (f"predict x --output y --iterations {10**18}", "--iterations: at most 10000, got 1000000000000000000"),
        ("predict x --output y --iterations 1e18", "--iterations: expected INT"),
        (f"ablate x --output y --dataset d --iterations 3 {10**18}", "--iterations: at most 10000"),
        (f"evaluate sml --output y --dataset d --batch-size {10**18}", "--batch-size: at most 2147483647"),
        (f"predict x --output y --tile {10**30}", "--tile: at most 2147483647"),
    ):
        status, out, err = run(capsys, *words.split())
        assert status == 2 and out == "" and err.count("\n") == 1 and "--help shows" in err and match in err


def test_too_little_memory_is_one_line(capsys, monkeypatch, photographs, tmp_path):
    monkeypatch.setattr("dff_jax.prediction.predict.read_stack", lambda *_, **__: np.empty((2**20, 2**20, 2**10), "u1"))
    status, _, err = run(capsys, "predict", photographs, "--output", tmp_path / "out", "--method", "sml")
    assert status == 2 and err.startswith("dff-jax: error: not enough memory") and err.count("\n") == 1


def test_bench_refuses_numbers_below_their_least(capsys):
    for option, match in (("--frames -1", "--frames: must be"), ("--batch 0", "--batch: must be at least 1, got 0")):
        status, _, err = run(capsys, "bench", "unroll", *option.split())
        assert status == 2 and match in err and err.count("\n") == 1


def test_an_interrupt_that_python_drops_comes_again(default_signals):
    class Finalized:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # interrupted here, where nothing can be raised

    with pytest.raises(KeyboardInterrupt), stopping.interruptible():
        Finalized()
        time.sleep(5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "terminated"])
def test_stopped_at_any_moment_it_ends_without_a_traceback_and_leaves_nothing(
    tmp_path, photographs, number, default_signals
):
    start = "import sys; from dff_jax import cli; print(flush=True); sys.exit(cli.main(sys.argv[1:]))"
    # Not a network: the second signal would wait until it is compiled. Large frames keep the command at work.
    for file in photographs.iterdir():
        Image.effect_noise((2400, 1800), 50).convert("RGB").save(file, compress_level=0)
    command = [sys.executable, "-c", start, "predict", photographs, "--output", tmp_path / "out", "--method", "sml"]
    for seconds in (0.2, 0.8, 2.5):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")},
        )  # fmt: skip
        assert process.stdout
        process.stdout.readline()
        time.sleep(seconds)
        for _ in range(2):  # a hasty second one changes nothing
            process.send_signal(number)
            time.sleep(0.03)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (130, -number, -signal.SIGINT), err
        told = [line for line in err.splitlines() if not line.startswith(("compiling", "stopping"))]
        assert told[-1:] in ([], ["dff-jax: interrupted"]) and "Traceback" not in err
        assert sorted(file.name for file in tmp_path.iterdir() if file.name != "cache") == ["stack"]


def test_the_environment_is_set_before_jax_is_imported():
    found = "import sys, dff_jax.cli; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", found], check=False).returncode == 0
