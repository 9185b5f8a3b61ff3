"""`dff-jax train` with the small network of the training tests, for tests that start processes.

python process_worker.py CONFIG [options of dff-jax train] [--at STEP --then kill|term|raise]
"""

import os
import signal
import sys

import training_fakes as fakes

from dff_jax import cli, estimators
from dff_jax.data import pipeline
from dff_jax.errors import InputError
from dff_jax.runtime import processes


def main() -> int:
    arguments = sys.argv[1:]
    estimators.build = fakes.build
    processes.LOST_SECONDS = 8
    if "--at" in arguments:
        i = arguments.index("--at")
        at, then = int(arguments[i + 1]), arguments[i + 3]
        del arguments[i : i + 4]
        _befall(at, then)
    return cli.main(["train", *arguments])


def _befall(at: int, then: str) -> None:
    """Lets this process be killed, get SIGTERM or find bad data before it takes batch `at`."""
    make = pipeline.training_loader

    def loader(*args, **kwargs):
        made = make(*args, **kwargs)
        inner = type(made).__next__

        class Befallen(type(made)):
            def __next__(self):
                if self.get_state()["next_index"] == at:
                    if then == "raise":
                        raise InputError("stack7: cannot be read")
                    os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[then])
                return inner(self)

        made.__class__ = Befallen
        return made

    pipeline.training_loader = loader


if __name__ == "__main__":
    sys.exit(main())
