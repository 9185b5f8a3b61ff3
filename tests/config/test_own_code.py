"""Code that a file names is run only if the user named it, and nothing else is imported from the working directory."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dff_jax import config as cfg
from dff_jax.config import own_code
from dff_jax.config.load import load_config, override
from dff_jax.errors import ConfigError, UntrustedCode
from dff_jax.estimators.unrolled import resolve

MODULE = "planted_beside_the_photographs"


@pytest.fixture(autouse=True)
def planted(tmp_path, monkeypatch):
    """A module in the working directory that leaves a mark when it is imported; nothing is trusted."""
    monkeypatch.setattr(own_code, "_trusted", set())
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd())])
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{MODULE}.py").write_text("open('imported', 'w').close()\ndef make(prox): return prox\n")
    yield
    sys.modules.pop(MODULE, None)


@pytest.mark.parametrize("field", ["scheme", "prox"])
@pytest.mark.parametrize("name", [f"{MODULE}:make", f"{MODULE}:", ".x:y", f"{MODULE}.make"])
def test_a_name_from_a_file_is_refused_before_anything_is_imported(field, name):
    for text, cls in ((json.dumps({field: name}), cfg.ModelConfig), (json.dumps({"model": {field: name}}), cfg.Config)):
        with pytest.raises(UntrustedCode, match=f"model.{field}: .*add --trust ") as error:
            cfg.from_json(text, cls)
        assert "\n" not in str(error.value)
    assert not os.path.exists("imported")
    cfg.trust(name)
    assert getattr(cfg.from_json(text).model, field) == name


def test_the_words_to_copy_are_one_word_for_a_shell():
    with pytest.raises(UntrustedCode, match="--trust 'a:b; rm c' "):
        cfg.from_json('{"prox": "a:b; rm c"}', cfg.ModelConfig)


def test_what_the_user_writes_may_come_back_from_a_file():
    name, written = f"{MODULE}:make", json.dumps({"scheme": f"{MODULE}:make"})
    override(cfg.Config(), ["--model.scheme", name])
    assert cfg.from_json(written, cfg.ModelConfig).scheme == name
    own_code._trusted.clear()
    pathlib.Path("mine.py").write_text(
        "from dff_jax.config import Config, Proximal\ndef config(): return Config(model=Proximal(scheme='a:b'))\n"
    )
    config = load_config("mine.py")
    assert cfg.from_json(cfg.to_json(config)) == config
    with pytest.raises(UntrustedCode):
        cfg.from_json(written, cfg.ModelConfig)


def test_the_working_directory_is_on_the_path_only_meanwhile():
    before = list(sys.path)
    assert resolve(f"{MODULE}:make", {}, "model.prox")(3) == 3
    assert sys.path == before
    pathlib.Path("broken.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="model.prox: cannot load 'broken:x' .ZeroDivisionError"):
        resolve("broken:x", {}, "model.prox")
    pathlib.Path("mine.py").write_text(
        f"from dff_jax.config import Config\nimport {MODULE}\ndef config(): return Config()\n"
    )
    assert load_config("mine.py") == cfg.Config()
    assert sys.path == before


def test_modules_beside_photographs_are_not_imported(tmp_path):
    for name in ("torch", "numpy", "h5py", "cv2", "safetensors", "matplotlib", "jax_plugins/planted/__init__"):
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("open('imported', 'w').close()\n")
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 48, 3), np.uint8)).save(f"{i}.png")
    pathlib.Path("w.pth").write_bytes(b"PK\3\4")
    program = tmp_path / "bin" / "dff-jax"  # as pip makes it: its own folder is the first on the path
    program.parent.mkdir()
    program.write_text(
        "from dff_jax.cli import main\nassert not main(['predict', '.', '--output', 'out', '--method', 'sml'])\n"
        "assert main(['import-weights', 'w.pth', '--model', 'dwild']) == 2\n"
    )
    root = str(pathlib.Path(cfg.__file__).parents[2])
    subprocess.run([sys.executable, program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": root}, check=True)
    assert (tmp_path / "out" / "summary.json").exists() and not (tmp_path / "imported").exists()
