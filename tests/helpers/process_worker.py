"""`dff-jax train` with the small network of the training tests, for tests that start processes.

python process_worker.py CONFIG [options of dff-jax train] [--at STEP --then kill|term|raise]
"""

import os
import signal
import sys
from contextlib import ExitStack

import training_fakes as fakes

from dff_jax import cli, estimators
from dff_jax.errors import InputError
from dff_jax.runtime import processes


def main() -> int:
    arguments = sys.argv[1:]
    estimators.build = fakes.build
    processes.LOST_SECONDS = 8
    with ExitStack() as stack:
        if "--at" in arguments:
            i = arguments.index("--at")
            stack.enter_context(_befall(int(arguments[i + 1]), arguments[i + 3]))
            del arguments[i : i + 4]
        return cli.main(["train", *arguments])


def _befall(at: int, then: str):
    """Lets this process be killed, get SIGTERM or find bad data before it takes batch `at`."""

    def change(loader, following):
        if loader.get_state()["next_index"] == at:
            if then == "raise":
                raise InputError("stack7: cannot be read")
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[then])
        return following()

    return fakes.loading(change)


if __name__ == "__main__":
    sys.exit(main())
