"""The evaluation loop, its table and its figures, with an estimator whose errors are known."""

from __future__ import annotations

import json
import math

import jax
import numpy as np
import pytest
from known_errors import VARIABLES, H, W, evaluate, fake_estimator, loaded_batch

from dff_jax.errors import InputError
from dff_jax.evaluation import evaluate as module
from dff_jax.evaluation import figures, metrics, programs, tables
from dff_jax.evaluation.evaluate import evaluated
from dff_jax.evaluation.rows import gather
from dff_jax.pictures import panels
from dff_jax.types import Batch, LoadedBatch


def test_rows_dynamics_and_gains_of_every_stage():
    estimator, _ = fake_estimator(refiner_steps=2)
    found = evaluate(estimator, VARIABLES, [loaded_batch(["a", "b"])])
    mae = {name: row["MAE"] for name, row in found.rows.items()}
    expected = {"expected": 8, "candidate_1": 6, "candidate_2": 2, "D(0)": 4, "D(1)": 2, "D(2)": 1}
    expected |= {"refined_1": 1, "refined": 0.5, "final": 0.5}
    assert list(mae) == [*expected, "classical", "sml"]
    for name, value in expected.items():
        assert mae[name] == pytest.approx(value, rel=1e-4)
    assert mae["classical"] > 5 and mae["sml"] > 5  # noise has no depth
    assert mae["classical"] != mae["sml"]
    step = {"D(1)": 2, "D(2)": 1, "refined_1": 2, "refined": 0.5}
    assert found.dynamics["step"] == pytest.approx(step, rel=1e-4)
    assert found.dynamics["gain"]["refined"] == pytest.approx(3.5, rel=1e-4)
    assert found.dynamics["gain"]["expected"] == pytest.approx(-4, rel=1e-4)


def test_a_batch_is_split_over_the_devices_it_divides_over():
    """Eight stacks over eight simulated devices, with the numbers of two batches of four on one."""
    estimator, _ = fake_estimator()
    eight = loaded_batch(list("abcdefgh"))
    ((measured, _, prediction),) = evaluated(estimator, VARIABLES, [eight])
    assert len(prediction.depth.sharding.device_set) == jax.local_device_count() == 8
    found = gather([measured], "disparity")
    fours = [LoadedBatch(Batch(*(x[i : i + 4] for x in eight.batch[:4])), eight.names[i : i + 4]) for i in (0, 4)]
    alone = evaluate(estimator, VARIABLES, fours)
    assert found.stacks == alone.stacks
    for line, other in zip(found.per_stack, alone.per_stack, strict=True):
        for name, value in line.items():
            assert value == (other[name] if isinstance(value, str) else pytest.approx(other[name], rel=1e-5, abs=1e-6))


def test_all_in_focus_images_are_measured_where_there_is_a_picture():
    estimator, _ = fake_estimator()  # whose image is the first frame
    loaded, other = loaded_batch(["a", "", "c"]), loaded_batch(["d"], height=30)

    def with_picture(one, error):
        return one._replace(batch=one.batch._replace(all_in_focus=one.batch.frames[:, 0] + np.float32(error)))

    assert evaluate(estimator, VARIABLES, [loaded], baselines=False).all_in_focus == {}
    given = [with_picture(loaded, 0.1), with_picture(other, 0.01)]
    found = evaluate(estimator, VARIABLES, given)
    assert list(found.all_in_focus) == ["final", "classical", "sml"]
    final = found.all_in_focus["final"]
    assert final["stacks"] == 3 and final["PSNR"] == pytest.approx((20 + 20 + 40) / 3, rel=1e-3)
    assert 0.9 < final["SSIM"] < 1 and all(final["SSIM"] > found.all_in_focus[b]["SSIM"] for b in ("classical", "sml"))
    report = tables.report(found, label="fake", dataset="noise", iterations=None, unit="disparity")
    assert json.loads(json.dumps(report, allow_nan=False))["all_in_focus"]["final"] == final
    text = tables.summary(report)
    assert "## All-in-focus image" in text and f"| final | **{final['PSNR']:.2f}** |" in text


def test_iterations_pass_through_and_stages_that_do_not_exist_have_no_row():
    estimator, _ = fake_estimator(refiner_steps=0)
    found = evaluate(estimator, VARIABLES, [loaded_batch(["a"])], num_iterations=0, baselines=False)
    assert list(found.rows) == ["expected", "candidate_1", "candidate_2", "D(0)", "final"]
    assert found.dynamics["step"] == {} and found.rows["final"]["MAE"] == found.rows["D(0)"]["MAE"]
    found = evaluate(estimator, VARIABLES, [loaded_batch(["a"])], num_iterations=5, baselines=False)
    assert found.rows["D(5)"]["MAE"] == found.rows["final"]["MAE"] == pytest.approx(4 / 32, rel=1e-3)
    estimator, _ = fake_estimator(history=False)
    found = evaluate(estimator, VARIABLES, [loaded_batch(["a"])], baselines=False)
    assert list(found.rows) == ["final"] and found.dynamics == {}


def test_metrics_are_those_of_each_stack_alone_in_both_regions():
    batch = loaded_batch(["a", "b", "c"])
    estimator, _ = fake_estimator()
    found = evaluate(estimator, VARIABLES, [batch], baselines=False)
    truth, mask = batch.batch.depth, batch.batch.mask
    answer = 100 * batch.batch.frames[:, 0, ..., 0] - 1
    alone = [metrics.compute(answer[i], truth[i], mask[i], (10, 50)) for i in range(3)]
    for i in range(3):
        assert 0 < alone[i]["in_range"]["valid_pixels"] < alone[i]["valid_pixels"]
        for region, expected in (("all", alone[i]), ("in_range", alone[i]["in_range"])):
            one = found.of_stack(i, region)["refined"]
            assert one["stack"] == "abc"[i]
            for name in (*metrics.METRICS, *metrics.COUNTS):
                assert one[name] == pytest.approx(expected[name], rel=1e-4), name
    assert found.rows["refined"]["in_range"]["RMS"] == pytest.approx(
        np.mean([one["in_range"]["RMS"] for one in alone]), rel=1e-4
    )


def test_padding_is_never_evaluated_and_empty_stacks_are_reported():
    estimator, _ = fake_estimator()
    two = loaded_batch(["a", "b"])
    filled = loaded_batch(["c", ""], seed=1)
    hollow = loaded_batch(["d", "e"], empty=("d",), seed=2)
    found = evaluate(estimator, VARIABLES, [two, filled, hollow], baselines=False)
    assert found.stacks == ("a", "b", "c", "e") and found.excluded == ("d",)
    assert any("excluded" in note and "d" in note for note in found.notes)
    ones = [LoadedBatch(Batch(*(x[:1] for x in filled.batch[:4])), ("c",)), two]
    ones.append(LoadedBatch(Batch(*(x[1:] for x in hollow.batch[:4])), ("e",)))
    alone = evaluate(estimator, VARIABLES, ones, baselines=False)
    for name, row in alone.rows.items():
        for metric in metrics.METRICS:
            assert found.rows[name][metric] == pytest.approx(row[metric], rel=1e-6), (name, metric)
    with pytest.raises(InputError, match="none of its 1 stacks has ground truth"):
        evaluate(estimator, VARIABLES, [loaded_batch(["d"], empty=("d",))], baselines=False)


def test_metres_are_measured_in_metres():
    """The estimator answers in diopters; an error of 1 diopter is another number of metres at every depth."""
    estimator, _ = fake_estimator(refiner_steps=1)
    batch = loaded_batch(["a"])
    found = evaluate(estimator, VARIABLES, [batch], unit="metre", baselines=False)
    q, mask = batch.batch.depth[0].astype(np.float64), batch.batch.mask[0]
    q, near = q[mask], (q[mask] >= 10) & (q[mask] <= 50)
    error = np.abs(1 / (q - 1) - 1 / q)
    assert found.rows["final"]["MAE"] == pytest.approx(error.mean(), rel=1e-3)
    assert found.rows["final"]["AbsRel"] == pytest.approx((error * q).mean(), rel=1e-3)
    assert found.rows["final"]["in_range"]["MAE"] == pytest.approx(error[near].mean(), rel=1e-3)
    assert found.dynamics["step"]["D(1)"] == pytest.approx(np.abs(1 / (q + 2) - 1 / (q + 4)).mean(), rel=1e-3)


def test_a_failed_prediction_is_loud():
    estimator, _ = fake_estimator()
    batch = loaded_batch(["good", "bad"])
    batch.batch.frames[1, 0, np.nonzero(batch.batch.mask[1])[0][0], :, 0] = np.nan
    found = evaluate(estimator, VARIABLES, [batch], baselines=False)
    assert math.isnan(found.rows["final"]["MAE"]) and found.rows["final"]["nonfinite_pixels"] > 0
    assert math.isfinite(found.of_stack(0)["final"]["MAE"])
    assert any(note.startswith("WARNING: final is not finite") and "bad" in note for note in found.notes)
    assert figures.choose(found)[1] == "worst"
    report = tables.report(found, label="x", dataset="y", unit="disparity", iterations=2)
    assert report["rows"]["final"]["MAE"] is None  # JSON has no NaN
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_one_compilation_a_shape_also_over_repeated_evaluations():
    estimator, traces = fake_estimator()
    small, large = loaded_batch(["a", "b"]), loaded_batch(["c", "d"], height=H + 2)
    before = programs.measure._cache_size()
    for _ in range(2):
        evaluate(estimator, VARIABLES, [small, large, small], baselines=False)
    assert len(traces) == 2
    assert programs.measure._cache_size() - before <= 2
    seen = [
        (loaded.names, prediction.depth.shape)
        for _, loaded, prediction in evaluated(estimator, VARIABLES, [small, large], baselines=False)
    ]
    assert seen == [(("a", "b"), (2, H, W)), (("c", "d"), (2, H + 2, W))]
    assert len(traces) == 2


def test_the_loop_may_end_early_and_what_it_measured_counts():
    estimator, _ = fake_estimator()
    parts = []
    for measured, _, _ in evaluated(estimator, VARIABLES, [loaded_batch(["a"]), loaded_batch(["b"])], baselines=False):
        parts.append(measured)
        break
    assert gather(parts, "disparity").stacks == ("a",)


def test_times_hold_no_compilation():
    """Each program is compiled before its first run, and the run does not compile again."""
    estimator, _ = fake_estimator()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        listener := lambda name, seconds, **_: compiled.append(seconds) if "backend_compile" in name else None
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            counts = []
            before = module.compile_for

            def counting(*args):
                before(*args)
                counts.append(len(compiled))

            patch.setattr(module, "compile_for", counting)
            found = evaluate(estimator, VARIABLES, [loaded_batch(["a"], height=H + 4)] * 2, baselines=False)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert counts == [len(compiled)] and compiled
    assert found.seconds["compilation"] > 0 and found.seconds["programs"] == 1
    assert 0 < found.seconds["per_stack"] < found.seconds["total"]


def test_table_marks_the_best_and_says_which_row_is_the_answer():
    estimator, _ = fake_estimator(refiner_steps=0)
    found = evaluate(estimator, VARIABLES, [loaded_batch(["a"])], baselines=False)
    text = tables.summary(tables.report(found, label="x", dataset="y", unit="disparity", iterations=2))
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    cells = [cell.strip() for cell in lines["D(2) = final"].split("|")]
    assert cells[2] == "**1**" and "final" not in lines  # MAE
    assert cells[8] == f"**{found.rows['final']['Acc_1']:.2f}**"  # larger is better
    assert "**" not in lines["expected"].split("|")[2]


def test_truth_and_depths_share_one_colour_scale_and_warm_is_near():
    estimator, _ = fake_estimator()
    loaded = loaded_batch(["a"])
    truth, mask = loaded.batch.depth[0], loaded.batch.mask[0]
    prediction = jax.device_get(estimator.apply(VARIABLES, loaded.batch.frames, loaded.batch.focus)[0])
    baselines = [1.0 + prediction.depth, 2.0 + prediction.depth]
    for unit in ("disparity", "metre"):
        rows = figures.sheet(loaded.batch, prediction, baselines, {"D(0)": 4.0}, unit)
        found = {panel.caption: panel for row in rows for panel in row}
        short = {"disparity": "px", "metre": "m"}[unit]
        shown = found[f"ground truth [{short}]"]
        bar = shown.bar
        assert truth[mask].min() <= bar.low < bar.high <= truth[mask].max()
        depth = {title: panel for title, panel in found.items() if "MAE" in title or panel is shown}
        assert len(depth) == 10  # truth, expected, D(0)..D(2), refined, classical, sml, two candidates
        assert {panel.bar for panel in depth.values() if panel.bar} == {bar}
        drawn = panels.colorize(prediction.history.iterates[0, 0], bar.low, bar.high)
        np.testing.assert_array_equal(found["D(0)  MAE 4"].image, drawn)
        np.testing.assert_array_equal(shown.image, panels.colorize(truth, bar.low, bar.high, mask=mask))
        near, far = (shown.image[np.nonzero(mask & (truth == x))] for x in (
            truth[mask].max(), truth[mask].min()))  # fmt: skip
        assert near[0, 0] > near[0, 2] and far[0, 2] > far[0, 0]  # q is larger where it is nearer, in every unit
        assert f"error of D(0) [{short}]" in found and any("weight of candidate_1" in title for title in found)
