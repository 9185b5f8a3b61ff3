"""The researcher's page does what it says: its surface runs, its variant is trained and evaluated by name."""

import json
import pathlib
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from training_fakes import write_stacks

from dff_jax import cli
from dff_jax.config import own_code
from dff_jax.estimators.weights import load_weights
from dff_jax.network.focus_volume import Scores

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "dff_jax" / "unroll" / "README.md").read_text()
SURFACE, VARIANT = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_surface_on_one_screen_runs(key):
    k1, k2, k3 = jax.random.split(key, 3)
    names = {
        "candidates": jax.random.uniform(k1, (1, 12, 14, 3)),
        "weights": jax.nn.softplus(jax.random.normal(k2, (1, 12, 14, 3))),
        "guide": jax.random.uniform(k3, (1, 12, 14, 3)),
    }
    exec(SURFACE, names)
    assert names["history"].shape == (5, 1, 12, 14)
    assert 1 <= names["trace"].num_steps < 500
    assert names["trace"].contraction < 1


def test_the_page_names_all_there_is():
    from dff_jax import unroll

    for name in [*unroll.SCHEMES, *unroll.PROXES, "box", "pull_to_prior", "learned_step", "resize_stack"]:
        assert f"`{name}`" in PAGE, name
    assert "dff_jax/unroll/README.md" in (ROOT / "README.md").read_text()


class Sharpness(nn.Module):
    """In the place of the focus volume's network, of which the unroll knows nothing: one convolution."""

    config: object

    @nn.compact
    def __call__(self, frames, train):
        score = 10 * nn.Conv(1, (3, 3))(frames)[..., 0]
        return Scores(score, (score,))


def test_the_variant_outside_the_package_is_trained_and_evaluated_by_its_dotted_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "kept as conftest set it")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for module in ("estimators.proximal", "network.focus_volume"):
        monkeypatch.setattr(f"dff_jax.{module}.FocusVolume", Sharpness)
    (tmp_path / "my_unroll.py").write_text(VARIANT)
    write_stacks(tmp_path / "data", train=2, val=1)
    scheme = re.search(r"--model\.scheme (\S+)", PAGE)[1]
    small = "--data.source folder --data.dataset data --data.crop 16 16 --data.num-threads 1 --model.width 0.13"
    small += " --model.head-width 0.13 --model.prox residual_cnn --model.refiner-steps 0 --model.num-candidates 2"
    small += " --training.num-steps 3 --training.eval-every 3 --training.save-every 3"
    small += " --training.num-devices 1 --training.no-tensorboard --optimizer.peak-learning-rate 0.01"
    config = str(ROOT / "configs" / "procedural_tiny.py")
    try:
        assert cli.main(["train", config, "--model.scheme", scheme, *small.split(), "--output", "runs/momentum"]) == 0
        weights = load_weights("runs/momentum/weights_last.safetensors")
        assert weights.model.scheme == scheme
        momentum = [x for path, x in jax.tree_util.tree_leaves_with_path(weights.variables) if "momentum" in str(path)]
        assert len(momentum) == 1 and momentum[0].shape == (3,)
        assert jnp.abs(momentum[0] + 2).max() > 1e-4  # it was trained
        evaluate = ["evaluate", "runs/momentum", "--source", "data/val", "--iterations", "5", "--output", "out"]
        monkeypatch.setattr(own_code, "_trusted", set())  # as in another process
        assert cli.main(evaluate) == 2
        assert f"--trust {scheme}" in capsys.readouterr().err and f"--trust {scheme}" in PAGE
        assert cli.main([*evaluate, "--trust", scheme]) == 0
        rows = json.loads(pathlib.Path("out/metrics.json").read_text())["rows"]
        assert "D(5)" in rows and np.isfinite(rows["final"]["MAE"])
    finally:
        sys.modules.pop("my_unroll", None)
    # elsewhere, without the file, one line says what is missing
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    assert cli.main(["evaluate", "../runs/momentum", "--source", "../data/val", "--output", "out"]) == 2
    assert "my_unroll:learned_momentum" in capsys.readouterr().err
