import dataclasses

import pytest

from dff_jax import config as cfg
from dff_jax.errors import ConfigError


@pytest.mark.parametrize("name", list(cfg.MODEL_PRESETS))
def test_presets_survive_json(name):
    preset = cfg.model_preset(name)
    assert cfg.from_json(cfg.to_json(preset), cfg.ModelConfig) == preset
    hash(preset)  # usable as a static argument


def test_whole_config_survives_json_with_tuples():
    config = cfg.Config(data=cfg.DataConfig(crop=(64, 96)))
    assert cfg.from_json(cfg.to_json(config)) == config


def test_the_flat_json_of_earlier_versions_loads():
    flat = cfg.to_dict(cfg.paper()) | {"frame_order": "descending", "width": 0.5}
    for method in cfg.METHODS:
        model = cfg.from_dict({"model": flat | {"method": method}}).model
        assert type(model) is cfg.METHODS[method] and model.coordinate == ("raw" if model.trained else "unit")
    assert cfg.from_dict({"model": flat | {"method": "dfv"}}).model == cfg.DFV(width=0.5, frame_order="descending")
    assert cfg.from_dict({"model": flat}).model == dataclasses.replace(cfg.paper(), width=0.5)
    with pytest.raises(ConfigError, match="model.method: 'unet' is not a choice; choose one of proximal, dfv"):
        cfg.from_dict({"model": flat | {"method": "unet"}})


def test_paper_preset_is_the_papers_reading():
    paper = cfg.paper()
    assert (paper.planes, paper.coordinate, paper.weight_norm, paper.prox_output) == (
        "index", "raw", "softmax", "direct",
    )  # fmt: skip
    assert (paper.guide, paper.measure_prior, paper.num_planes, paper.num_candidates) == ("none", "none", None, 3)
    assert (paper.num_iterations, paper.refiner_steps, paper.tied, paper.encoder) == (3, 1, True, "resnet18")


@pytest.mark.parametrize(
    "data, match",
    [
        ({"model": {"num_iteration": 3}}, "model.num_iteration: unknown field.*num_iterations"),
        ({"model": {"planes": "metric"}}, "model.planes.*'metric'.*index, focus"),
        ({"model": {"num_candidates": 0}}, "model.num_candidates.*at least 1"),
        ({"model": {"width": "wide"}}, "model.width: expected a number"),
        ({"data": {"crop": [64]}}, "data.crop: expected 2 values"),
        ({"data": {"world": {"focus_range": [5.0, 5.0]}}}, "data.world.focus_range"),
        ({"training": {"num_steps": True}}, "training.num_steps: expected a whole number"),
        ({"optimizer": {"peak_learning_rate": float("nan")}}, "optimizer.peak_learning_rate"),
        ({"model": {"planes": "index", "coordinate": "unit"}}, "model.coordinate"),
    ],
)
def test_errors_name_the_field_and_the_choices(data, match):
    with pytest.raises(ConfigError, match=match):
        cfg.from_dict(data)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.Config().seed = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_unknown_preset_lists_the_choices():
    with pytest.raises(ConfigError, match="'huge' is unknown.*paper, physical, tiny, .*classical"):
        cfg.model_preset("huge")


@pytest.mark.parametrize(
    ("model", "loss", "optimizer", "idle"),
    [
        ({}, {}, {}, []),
        ({"prox": "tv", "tied": False}, {}, {}, ["model.tied"]),
        ({"tied": False}, {}, {}, []),
        ({"refiner_steps": 0, "refiner_inputs": "depth_volume_candidates"}, {}, {}, ["model.refiner_inputs"]),
        ({}, {"kind": "mse_final", "penalty": "l1", "gamma": 0.3}, {}, ["loss.penalty", "loss.gamma"]),
        ({}, {"kind": "mse_final", "penalty": "mse"}, {}, []),
        ({}, {"scale_weights": (1.0, 0.5)}, {}, ["loss.scale_weights"]),
        ({}, {"depth": 0.0, "image": 1.0, "gamma": 0.3, "penalty": "l1"}, {}, ["loss.gamma", "loss.penalty"]),
        ({}, {"image": 1.0, "smoothness": 0.1}, {}, []),
        ({}, {}, {"schedule": "constant", "warmup_share": 0.1}, ["optimizer.warmup_share"]),
    ],
)
def test_fields_without_effect_are_told(model, loss, optimizer, idle):
    config = cfg.Config(
        model=dataclasses.replace(cfg.tiny(), **model), loss=cfg.LossConfig(**loss),
        optimizer=cfg.OptimizerConfig(**optimizer),
    )  # fmt: skip
    assert [text.partition(" ")[0] for text in config.idle()] == idle
