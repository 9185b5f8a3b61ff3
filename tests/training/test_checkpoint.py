"""What is kept, what is restored, what is ignored, and which configs may go on with a run."""

import dataclasses
import errno
import logging
import math
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dff_jax import config as configs
from dff_jax.errors import ConfigError, InputError
from dff_jax.training import checkpoint, optimizer, parallel, state

CONFIG = configs.Config()
DEVICES = parallel.choose_devices(configs.TrainingConfig(num_devices=2), 2)
TX = optimizer.build(configs.OptimizerConfig(schedule="torch_onecycle"), 100)


def make_state(step: int) -> state.TrainState:
    """With a parameter in bfloat16, empty parts, and an optimizer that has seen a gradient."""
    params = {"a": {"kernel": jnp.full((2, 3), float(step)), "bias": jnp.ones(3, jnp.bfloat16)}, "unroll": {}}
    grads = jax.tree.map(jnp.ones_like, params)
    _, opt_state = TX.update(grads, TX.init(params), params)
    return state.TrainState(jnp.int32(step), params, {}, opt_state, jnp.int32(-1))


def abstract(config_state=None):
    return checkpoint.abstract(config_state or make_state(0), DEVICES.whole)


def write(folder, steps, maes=None, keep=2, config=CONFIG):
    progress = checkpoint.Progress()
    with checkpoint.open_manager(folder, keep) as manager:
        for step, mae in zip(steps, maes or [None] * len(steps), strict=True):
            if mae is not None:
                progress = progress._replace(evaluated=step)
                if mae < progress.best_mae:
                    progress = progress._replace(best_step=step, best_mae=mae)
            checkpoint.save(manager, config, make_state(step), {"next_index": step}, progress)
        return sorted(manager.all_steps()), manager.best_step(), manager.latest_step()


def test_newest_are_kept_beside_the_best(tmp_path):
    """The traps: `max_to_keep` with `best_fn` would leave [7, 8] here, and the policy alone calls 11 the best."""
    assert write(tmp_path, range(7, 12), [0.5, 0.2, 0.9, 0.8, 0.95]) == ([8, 10, 11], 8, 11)


def test_saves_between_evaluations_do_not_pile_up(tmp_path):
    kept, best, newest = write(tmp_path, range(1, 9), [None, 0.5, None, 0.7, None, None, None, None], keep=2)
    assert kept == [2, 7, 8] and best == 2 and newest == 8


def test_restored_as_saved(tmp_path):
    """Values, types, bfloat16, empty parts, shardings; the iterator's state; the progress."""
    write(tmp_path, [3, 4], [0.25, None])
    with checkpoint.open_manager(tmp_path, 2) as manager:
        found = checkpoint.restore(manager, CONFIG, abstract())
    want = make_state(4)
    assert jax.tree.structure(found.state) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(found.state), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype and a.sharding == DEVICES.whole
    assert found.data == {"next_index": 4}
    assert found.progress == checkpoint.Progress(3, 3, 0.25)
    updates, _ = TX.update(want.params, found.state.opt_state, found.state.params)  # optax knows its own types
    again, _ = TX.update(want.params, want.opt_state, want.params)
    jax.tree.map(np.testing.assert_array_equal, updates, again)


def test_nothing_there_and_nothing_evaluated(tmp_path):
    with checkpoint.open_manager(tmp_path, 1) as manager:
        assert checkpoint.restore(manager, CONFIG, abstract()) is None
    write(tmp_path, [1])
    with checkpoint.open_manager(tmp_path, 1) as manager:
        assert checkpoint.restore(manager, CONFIG, abstract()).progress == checkpoint.Progress(-1, -1, math.inf)


@pytest.mark.parametrize("name", ["9.orbax-checkpoint-tmp", "9.orbax-checkpoint-tmp-17"])
def test_half_written_checkpoint_is_ignored_and_swept_away(tmp_path, name):
    write(tmp_path, [5, 6])
    folder = tmp_path / checkpoint.FOLDER
    shutil.copytree(folder / "6", folder / name)
    shutil.rmtree(folder / name / "state")
    with checkpoint.open_manager(tmp_path, 2) as manager:
        found = checkpoint.restore(manager, CONFIG, abstract())
        assert int(found.state.step) == 6
        checkpoint.save(manager, CONFIG, make_state(9), {}, found.progress)
    assert sorted(x.name for x in folder.iterdir()) == ["6", "9"]


def test_half_deleted_old_checkpoint_does_no_harm(tmp_path):
    write(tmp_path, [5, 6], [0.5, 0.4])
    shutil.rmtree(tmp_path / checkpoint.FOLDER / "5" / "state")
    shutil.rmtree(tmp_path / checkpoint.FOLDER / "5" / "metrics")
    assert write(tmp_path, [7], keep=1) == ([6, 7], 6, 7)


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    assert write(tmp_path, [5, 5])[0] == [5]


def changed(**sections):
    """CONFIG with fields of its sections replaced."""
    return dataclasses.replace(
        CONFIG, **{k: dataclasses.replace(getattr(CONFIG, k), **v) for k, v in sections.items()}
    )


def test_another_experiment_may_not_continue_a_run(tmp_path):
    write(tmp_path, [5])
    other = changed(
        model={"num_iterations": 5}, optimizer={"clip_norm": 2.0}, data={"crop": (64, 64)}, training={"num_steps": 7}
    )
    with checkpoint.open_manager(tmp_path, 2) as manager, pytest.raises(ConfigError) as caught:
        checkpoint.restore(manager, other, abstract())
    for field in (
        "model.num_iterations (3 -> 5)",
        "optimizer.clip_norm (1.0 -> 2.0)",
        "data.crop ([256, 256] -> [64, 64])",
        "training.num_steps (1000 -> 7)",
    ):
        assert field in str(caught.value)
    assert str(caught.value).count("->") == 4 and "\n" not in str(caught.value)


def test_how_a_run_is_watched_may_change(tmp_path):
    write(tmp_path, [5])
    training = {"log_every": 1, "eval_every": 3, "save_every": 2, "keep": 5, "parallel": "pmap", "num_devices": 1}
    other = changed(training=training | {"transfer": "x"}, data={"num_threads": 1, "data_dir": "elsewhere"})
    with checkpoint.open_manager(tmp_path, 2) as manager:
        assert checkpoint.restore(manager, other, abstract()) is not None


def test_procedural_worlds_count_only_where_they_are_rendered(tmp_path):
    live = changed(data={"source": "procedural_live"})
    for config, error in ((CONFIG, False), (live, True)):
        world = dataclasses.replace(config.data.world, num_objects=3)
        other = dataclasses.replace(config, data=dataclasses.replace(config.data, world=world))
        one, two = configs.to_dict(config), configs.to_dict(other)
        if error:
            with pytest.raises(ConfigError, match=r"data.world.num_objects \(\d+ -> 3\)"):
                checkpoint.check_config(one, two, "run")
        else:
            checkpoint.check_config(one, two, "run")


def test_a_field_that_came_later_has_its_default():
    saved, now = configs.to_dict(CONFIG), configs.to_dict(CONFIG)
    del saved["model"]["dtype"]
    checkpoint.check_config(saved, now, "run")
    now["model"]["dtype"] = "bfloat16"
    with pytest.raises(ConfigError, match=r"model.dtype \(float32 -> bfloat16\)"):
        checkpoint.check_config(saved, now, "run")
    saved["model"]["of_another_version"] = 1
    with pytest.raises(ConfigError, match=r"model.of_another_version \(1 -> absent\)"):
        checkpoint.check_config(saved, now, "run")


def test_free_fields_exist():
    flat = checkpoint.flatten(configs.to_dict(CONFIG))
    assert checkpoint.FREE_FIELDS <= flat.keys()


def test_network_that_has_changed_under_the_same_config(tmp_path):
    write(tmp_path, [5])
    now = make_state(0)
    now.params["a"]["kernel"] = jnp.ones((4, 3))
    with checkpoint.open_manager(tmp_path, 2) as manager, pytest.raises(InputError, match="does not fit the network"):
        checkpoint.restore(manager, CONFIG, abstract(now))


def test_a_damaged_one_is_named_with_what_to_do(tmp_path):
    """Whichever of its files is cut short, and whichever bit of it is another one: one line that names the file."""
    write(tmp_path / "run", [4, 5], [0.5, 0.4])
    whole = tmp_path / "run" / checkpoint.FOLDER / "5"
    rng = np.random.default_rng(0)
    for file in sorted(f.relative_to(whole) for f in whole.rglob("*") if f.is_file()):
        for cut in (True, False):
            shutil.copytree(tmp_path / "run", tmp_path / "copy")
            damaged = tmp_path / "copy" / checkpoint.FOLDER / "5" / file
            data = bytearray(damaged.read_bytes())
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
            damaged.write_bytes(damaged.read_bytes()[:-1][:60] if cut else data)
            with pytest.raises(InputError) as raised, checkpoint.open_manager(tmp_path / "copy", 2) as manager:
                checkpoint.restore(manager, CONFIG, abstract())
            error = str(raised.value)
            assert "/5: damaged (" in error and "move this folder away" in error and "\n" not in error
            assert file.parts[0] in (checkpoint.SUMS, "metrics") or f"'{file}' is not as it was saved" in error
            assert file.parts[0] == "metrics" or error.endswith("the run then goes on from step 4")
            shutil.rmtree(tmp_path / "copy")


def test_a_checkpoint_of_an_earlier_version_has_no_checksums(tmp_path):
    write(tmp_path, [4])
    (tmp_path / checkpoint.FOLDER / "4" / checkpoint.SUMS).unlink()
    with checkpoint.open_manager(tmp_path, 2) as manager:
        assert int(checkpoint.restore(manager, CONFIG, abstract()).state.step) == 4


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("FULL"), OSError(24, "many")])
def test_a_sound_one_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, error):
    write(tmp_path, [4, 5])
    with checkpoint.open_manager(tmp_path, 2) as manager:
        monkeypatch.setattr(manager, "restore", lambda *_, **__: (_ for _ in ()).throw(error))
        with pytest.raises((type(error), InputError)) as raised:
            checkpoint.restore(manager, CONFIG, abstract())
    assert "damaged" not in str(raised.value)


def test_a_full_disk_is_one_line_and_leaves_the_one_before(tmp_path, monkeypatch):
    """Whether it is noticed before the writing, or by tensorstore, which raises no OSError."""
    with checkpoint.open_manager(tmp_path, 2) as manager:
        checkpoint.save(manager, CONFIG, make_state(4), {}, checkpoint.Progress())
        text = "RESOURCE_EXHAUSTED: Error writing\\n: No space [os_error_code='28']"
        for where, name, error in (
            (os, "posix_fallocate", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
            (manager, "save", ValueError(text)),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(where, name, lambda *_, error=error, **__: (_ for _ in ()).throw(error))
                with pytest.raises(InputError, match=r"written \(No space left on device\); what was saved") as raised:
                    checkpoint.save(manager, CONFIG, make_state(5), {}, checkpoint.Progress())
            assert "\n" not in str(raised.value)
        assert int(checkpoint.restore(manager, CONFIG, abstract()).state.step) == 4


def test_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    assert write(Path("runs/here"), [1, 2])[0] == [1, 2]
    assert (tmp_path / "runs/here" / checkpoint.FOLDER / "2").is_dir()


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match="run/checkpoints: cannot be written"):
        checkpoint.open_manager(tmp_path / "run", 1)


def test_orbax_is_quiet(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        write(tmp_path, [1])
    assert not [x for x in caplog.records if x.name == "absl" and x.levelno < logging.ERROR]


def test_a_run_folder_whose_name_is_no_text_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"caf\\udce9/checkpoints: no name in UTF-8"):
        checkpoint.open_manager(tmp_path / "caf\udce9", 1)
    assert not any(tmp_path.iterdir())
