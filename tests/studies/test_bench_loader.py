"""The loader benchmark, at a size that only shows that it works."""

import json

import jax
import pytest
import training_fakes as fakes

from dff_jax import cli, estimators
from dff_jax.errors import InputError
from dff_jax.studies.bench import loader


@pytest.mark.slow
def test_all_ways_are_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(estimators, "build", fakes.build)
    monkeypatch.setattr(loader, "WAYS", ((1, 0), (2, 0)))  # worker processes have a test of their own
    report = loader.bench_loader(
        size=16, num_frames=3, stacks=3, batches=3, steps=2, full_size=(24, 32), output=tmp_path / "out"
    )
    assert json.loads((tmp_path / "out/loader.json").read_text()) == report
    assert [(r["threads"], r["workers"]) for r in report["rows"]] == [(1, 0), (2, 0)]
    assert all(r["stacks_per_s"] > 0 and r["first_batch_s"] > 0 for r in report["rows"])
    for row in report["rows"]:
        assert row["core_s_per_stack"] > 0
        assert row["MB_per_s"] == pytest.approx(row["stacks_per_s"] * report["MB_per_stack"])
    assert report["MB_per_stack"] * 1e6 > 24 * 32 * (3 * 3 + 5) * 0.5 and min(report["read_MB_per_s"].values()) > 0
    training = report["training"]
    assert 0 <= training["waiting_share"] < 1 and training["step_s"] > 0 and training["steps"] == 2
    table = (tmp_path / "out/loader.md").read_text()
    assert table == loader.markdown(report) and "| 2 threads |" in table and "spent waiting for a batch" in table
    assert jax.devices()[0].device_kind in table
    with pytest.raises(InputError, match="at least 1 stack of 2 frames"):
        loader.bench_loader(num_frames=1)


def test_the_command_asks_for_it(monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(loader, "bench_loader", lambda *a, **k: asked.update(a=a, **k))
    monkeypatch.setattr(loader, "markdown", lambda report: "the table")
    assert cli.main(["bench", "loader", "--dataset", "procedural/tiny", "--steps", "0", "--preset", "physical"]) == 0
    assert asked["a"] == ("procedural/tiny", None) and asked["size"] == 256 and asked["preset"] == "physical"
    assert asked["steps"] == 0 and "the table" in capsys.readouterr().out
