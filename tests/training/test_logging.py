"""The log of a run."""

import json

from dff_jax.training import logging


def test_log_resumed_is_cut_and_survives_a_torn_line(tmp_path):
    writer = logging.JsonlWriter(tmp_path)
    for step in (1, 2, 3):
        writer.scalars(step, "train", {"loss": float("nan")})
        writer.scalars(step, "validation", {"MAE": 1.5})
    writer.close()
    with (tmp_path / logging.FILE_NAME).open("a") as file:
        file.write('{"step": 4, "ki')
    logging.JsonlWriter(tmp_path, step=2, evaluated=1).close()
    lines = [json.loads(x) for x in (tmp_path / logging.FILE_NAME).read_text().splitlines()]
    assert [(x["step"], x["kind"]) for x in lines] == [(1, "train"), (1, "validation"), (2, "train")]
    assert lines[0]["loss"] is None  # JSON has no NaN
