"""A comparison: the methods, how each is trained, and the stacks that all are measured on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dff_jax.config.base import Checked
from dff_jax.config.data import DataSpec
from dff_jax.config.training import Config
from dff_jax.errors import ConfigError


@dataclass(frozen=True)
class Method(Checked):
    """One row of the table."""

    _section = "methods"

    label: str = ""
    recipe: str = ""
    """How it is trained, such as `equal budget`. A label may repeat with another recipe."""
    config: Config | None = None
    """The experiment to train, once for each seed."""
    weights: str | None = None
    """In place of `config`: a method without weights, a weights file, or a run folder."""

    def _check(self) -> None:
        if not self.label:
            raise ConfigError("methods.label: give each method a label")
        if (self.config is None) == (self.weights is None):
            raise ConfigError(f"methods: {self.label!r} needs either a config to train or weights")
        if self.config is not None and not self.config.model.trained:
            method = self.config.model.method
            raise ConfigError(f"methods: {self.label!r} has nothing to train; give weights={method!r}")

    @property
    def folder(self) -> str:
        """Name of its folder, of letters, digits, '-' and '_'."""
        return re.sub(r"\W+", "-", f"{self.label} {self.recipe}".strip().lower()).strip("-")


@dataclass(frozen=True)
class TestSet(DataSpec):
    """Stacks to measure on, with a name for the tables."""

    __test__ = False  # no test, whatever pytest makes of the name
    _section = "tests"

    name: str = ""

    def _check(self) -> None:
        if not self.name:
            raise ConfigError("tests.name: give each set of stacks a name")
        super()._check()


@dataclass(frozen=True)
class Comparison(Checked):
    """What `dff-jax compare` does."""

    _section = "comparison"

    name: str = "comparison"
    methods: tuple[Method, ...] = ()
    seeds: tuple[int, ...] = (0, 1)
    """Seeds with which each method is trained."""
    test: TestSet = field(default_factory=lambda: TestSet(name="test", dataset="procedural/quickstart"))
    """Stacks of the main table."""
    zero_shot: tuple[TestSet, ...] = ()
    """Further stacks, on which nothing is trained. A set that is missing is left out, and the table says so."""
    ratio: tuple[str, ...] = ()
    """Labels of methods: the table states the MAE of the first divided by that of each other, and of the best compared
    network."""
    figure_stacks: int | tuple[int, ...] = 4
    """Stacks of the figure of depth maps (the paper's Figure 7): their numbers in the test set, from 0; or how many,
    then evenly spread."""
    chart_stack: int | None = None
    """Number of the stack of the chart of metrics (Figure 8); None: the first of the figure."""

    def _check(self) -> None:
        if isinstance(self.figure_stacks, int):
            self._at_least(1, "figure_stacks")
        elif not self.figure_stacks:
            raise ConfigError("comparison.figure_stacks: give at least one number, from 0")
        if not self.methods or not self.seeds:
            raise ConfigError("comparison: needs at least one method and one seed")
        for what, names in (
            ("methods", [method.folder for method in self.methods]),
            ("seeds", [str(seed) for seed in self.seeds]),
            ("zero_shot", [one.name for one in (self.test, *self.zero_shot)]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ConfigError(f"comparison.{what}: {', '.join(twice)} is there more than once")
        missing = [label for label in self.ratio if label not in [method.label for method in self.methods]]
        if missing:
            raise ConfigError(f"comparison.ratio: no method is called {missing[0]!r}")
