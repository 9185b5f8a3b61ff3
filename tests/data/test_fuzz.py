"""Every reader, fed with damaged files: a clear error or a right result; no crash, no hang, no 2 GiB of memory."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fuzz_cases
import pytest

WORKER = Path(__file__).parents[1] / "helpers" / "fuzz_worker.py"
SECONDS = 300  # for a worker on a busy machine; a case has a limit of its own


def run(cases, folder, worker=WORKER):
    """The verdict on each case, and its seconds. A worker that dies is replaced, and the case it died of is told."""
    manifest = folder / "cases.json"
    manifest.write_text(json.dumps(cases))
    found = {}
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(WORKER.parent)}
    environment.pop("XLA_FLAGS", None)
    while len(found) < len(cases):
        command = [sys.executable, str(worker), str(manifest), str(len(found))]
        with open(folder / "errors.txt", "w+b") as errors:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=errors, timeout=SECONDS, env=environment, check=False
            )
            errors.seek(0)
            said = errors.read()[-2000:].decode("utf-8", "replace")
        begun = None
        for line in done.stdout.decode("utf-8", "replace").splitlines():
            word, _, rest = line.partition(" ")
            if word == "begin" and rest.isdigit():
                begun = int(rest)
            elif word == "end":
                number, _, result = rest.partition(" ")
                found[int(number)] = json.loads(result)
        if len(found) < len(cases):
            assert begun == len(found), f"the worker failed outside of a case: {said}"
            what = "took too long" if done.returncode == -14 else f"ended the process with {done.returncode}"
            found[begun] = [f"{what}: {said[-300:]}", 0.0]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("group", fuzz_cases.GROUPS)
def test_damaged_files(tmp_path, group):
    cases = fuzz_cases.make(tmp_path, group)
    assert len(cases) > 300
    found = run(cases, tmp_path)
    wrong = [
        f"{case['name']} ({case['reader']}, {case['path']}): {verdict}"
        for i, case in enumerate(cases)
        if (verdict := found[i][0]) not in case["allowed"]
    ]
    counts = Counter(verdict for verdict, _ in found.values())
    assert not wrong, f"{len(wrong)} of {len(cases)}, {dict(counts)}:\n" + "\n".join(wrong)
    assert counts["error"] > len(cases) / 3 and counts["equal"] + counts["changed"] > 20  # the damage is of both kinds


MISBEHAVING = """
import os, sys, time
import numpy as np
import fuzz_worker

def when_damaged(act):
    return lambda path: [np.zeros(1)] if path.name == "whole" else act(path)

def refuse(path):
    raise fuzz_worker.InputError("something is wrong somewhere")

fuzz_worker.SECONDS = 1
fuzz_worker.READERS = {
    "equal": when_damaged(lambda path: [np.zeros(1)]),
    "crash": when_damaged(lambda path: os.abort()),
    "hang": when_damaged(lambda path: time.sleep(30)),
    "memory": when_damaged(lambda path: [np.ones(2**28 + 2**20)]),
    "shape": when_damaged(lambda path: [np.zeros(2)]),
    "nan": when_damaged(lambda path: [np.array([np.nan])]),
    "anonymous": when_damaged(refuse),
    "raises": when_damaged(lambda path: {}["x"]),
}
fuzz_worker.main(sys.argv[1], int(sys.argv[2]))
"""


def test_what_must_not_happen_is_seen(tmp_path):
    worker = tmp_path / "misbehaving.py"
    worker.write_text(MISBEHAVING)
    readers = ("equal", "crash", "hang", "memory", "shape", "nan", "anonymous", "raises", "equal")
    found = run([{"reader": reader, "path": "damaged", "base": "whole"} for reader in readers], tmp_path, worker)
    words = ("equal", "ended the process with -6", "took too long", "MemoryError", "nonsense", "nonsense",
             "without the file's name", "KeyError", "equal")  # fmt: skip
    assert [found[i][0].startswith(word) or word in found[i][0] for i, word in enumerate(words)] == [True] * 9, found
