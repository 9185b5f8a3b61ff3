"""Checks of an accelerator against float64 on the host, or against this process's CPU, in full precision.

They are skipped where there is no accelerator. `DEVICE_CHECKS=cpu` runs them on a CPU with a stand-in network, which
shows that the checks themselves work.
"""

import os
from collections.abc import Callable

import jax
import pytest
import training_fakes

from dff_jax import config, estimators
from dff_jax.studies.bench import subjects

SMALL = os.environ.get("DEVICE_CHECKS") == "cpu"


def pytest_collection_modifyitems(items):
    if jax.default_backend() == "cpu" and not SMALL:
        for item in items:
            if item.get_closest_marker("device"):
                item.add_marker(pytest.mark.skip(reason="needs an accelerator; DEVICE_CHECKS=cpu tries it on a CPU"))


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def network(monkeypatch):
    """The config of a small network, which `estimators.build` builds; a stand-in for it on a CPU."""
    if SMALL:
        monkeypatch.setattr(estimators, "build", training_fakes.build)
        monkeypatch.setattr(subjects, "_variables", subjects._variables.__wrapped__)
    return config.tiny().replace_known(num_iterations=2)


@pytest.fixture
def within(record_property) -> Callable[[float, float], None]:
    """Asserts an error's tolerance and puts both into the report."""

    def check(error: float, tolerance: float) -> None:
        record_property("error", f"{error:.2g}")
        record_property("tolerance", f"{tolerance:.2g}")
        assert error <= tolerance

    return check
