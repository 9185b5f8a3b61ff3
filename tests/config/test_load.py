"""Config files, and fields changed on the command line."""

import dataclasses
import pathlib

import pytest

from dff_jax import config as cfg
from dff_jax.config.load import fields_of, load_config, override
from dff_jax.errors import ConfigError

ROOT = pathlib.Path(cfg.__file__).parent.parent.parent
TINY = str(ROOT / "configs" / "procedural_tiny.py")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_builds_survives_json_and_says_how_to_run_it(path):
    kind, command = (cfg.Comparison, "compare") if path.stem.startswith("compare") else (cfg.Config, "train")
    config = load_config(str(path), kind)
    assert cfg.from_json(cfg.to_json(config), kind) == config
    assert f"dff-jax {command} configs/{path.name}" in path.read_text()


def test_overrides_change_fields_and_nothing_else():
    base = load_config(TINY)
    changed = override(base, ["--model.num-iterations", "5", "--data.crop", "64", "80", "--model.no-tied"])
    expected = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, num_iterations=5, tied=False),
        data=dataclasses.replace(base.data, crop=(64, 80)),
    )
    assert changed == expected
    other = override(base, ["--model.method", "dfv", "--model.volume=diff", "--data.frames", "None"])
    assert other.model == cfg.DFV(volume="diff", width=base.model.width, coordinate="unit")


def test_every_field_of_every_config_can_be_given_as_it_is_shown():
    base = load_config(str(ROOT / "configs" / "pretrained.py"))
    words = []
    for name, (value, _) in fields_of(base).items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    assert override(base, words) == base


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["--model.num-iteration", "5"], "--model.num-iteration: unknown field; choose one of --model.num-iterations"),
        (["--model.planes", "metric"], "'metric' is not a choice; choose one of index, focus"),
        (["--model.num-candidates", "0"], "model.num_candidates: must be at least 1, got 0"),
        (["--model.width", "wide"], "model.width: expected a number, got 'wide'"),
        (["--model.width"], "model.width: expected one value, got none"),
        (["--data.crop", "64", "64", "64"], "data.crop: expected 2 values, got (64, 64, '64')"),
        (["--model.method", "dwild", "--model.tied"], "--model.tied: unknown field; choose one of"),
        (["--crop", "3"], "choose one of --data.crop"),
        (["5"], "'5' is not a field"),
        (["--model.width", "inf"], "model.width: expected a number, got inf"),
        (["--training.num-steps", str(10**18)], "training.num_steps: must lie within"),
        (["--model.num-iterations", "10001"], "model.num_iterations: must be at most 10000, got 10001"),
        (["--seed", "-1"], "seed: must be at least 0, got -1"),
    ],
)
def test_bad_overrides_name_the_field_and_the_choices(arguments, match):
    with pytest.raises(ConfigError) as error:
        override(load_config(TINY), arguments)
    assert match in str(error.value)


def test_unknown_config_file_and_wrong_contents(tmp_path):
    (tmp_path / "bad.py").write_text("def config():\n    return 3\n")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "mine.py").write_text(
        "from dff_jax.config import Config, PartConfig\ndef config():\n    return PartConfig(wieght=2.0)\n"
    )
    for spec, match in (
        ("physical", "physical is a preset of the network"),
        (str(tmp_path / "bad.py"), "returns int, not a Config"),
        (str(tmp_path / "broken.py"), "broken.py, line 1: ModuleNotFoundError"),
        (f"{TINY}:other", "no function 'other'; it has config"),
        (str(tmp_path / "mine.py"), "mine.py, line 3: PartConfig has no field 'wieght'; choose one of weight"),
    ):
        with pytest.raises(ConfigError, match=match):
            load_config(spec)
