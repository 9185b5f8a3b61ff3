"""What the tests of training share."""

import pytest
import training_fakes as fakes

from dff_jax import estimators


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    return fakes.write_stacks(tmp_path_factory.mktemp("stacks"))


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setattr(estimators, "build", fakes.build)
