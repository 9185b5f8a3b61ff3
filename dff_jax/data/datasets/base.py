"""The tfds builder that converts files: it reads what a family finds in a source folder and writes the records.

A family is one `StackBuilder` in its own file. It says what a source folder holds (`survey`, quick) and how one stack
is read (`Item.read`). Checking, reading in parallel, writing, statistics and the overview are shared.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from dff_jax.data.datasets.reading import read_items
from dff_jax.data.datasets.records import (
    LAYOUT_VERSION,
    SPLITS,
    Facts,
    Inventory,
    Outcome,
    fingerprint,
    record_features,
)
from dff_jax.data.datasets.summary import Summary
from dff_jax.data.datasets.writing import LocalInfo, StreamedBuilder
from dff_jax.errors import InputError, SourceError
from dff_jax.focus_axis import check_unit


@dataclasses.dataclass(eq=False, kw_only=True)
class StackConfig(tfds.core.BuilderConfig):
    """One dataset of a family. A subclass adds fields for the options of `dff-jax prepare` that it takes."""

    facts: Facts

    @property
    def fingerprint(self) -> dict[str, str]:
        """What decides the content beside the source and the options; equal fingerprints mean equal data."""
        return {"layout_version": str(LAYOUT_VERSION)}

    @property
    def options(self) -> dict[str, Any]:
        """The fields that a subclass adds, by name."""
        known = {field.name for field in dataclasses.fields(StackConfig)}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in known}


class StackBuilder(StreamedBuilder, skip_registration=True):
    """Base of the tfds builders that convert files. A subclass sets `name`, BUILDER_CONFIGS and `survey`.

    Records: stack uint8 [Z,H,W,3], focus float32 [Z], depth float32 [H,W], mask bool [H,W], name. Frames are sorted so
    that q ascends; depth is 0 and mask False where, or if, there is no truth. Z, H and W may differ between records.
    """

    VERSION = tfds.core.Version(f"{LAYOUT_VERSION}.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Get the files as `dff-jax prepare --list` says and give their folder."

    IN_PROCESS: ClassVar[bool] = False
    """Whether `Item.read` needs this process, because it computes on a device; else it runs in workers."""

    builder_config: StackConfig
    # Set by `prepare`; with tfds alone the manual folder is surveyed.
    source: Path | None = None
    inventory: Inventory | None = None
    workers: int = 1
    _outcomes: Generator[Outcome | InputError] | None = None

    def survey(self, source: Path) -> Inventory:
        """What `source` holds, from names, headers, sizes and keys; decodes nothing whole.

        Raises:
          InputError: not this dataset at all; the message says which files were looked for and where.
        """
        raise NotImplementedError

    @classmethod
    def config_named(cls, name: str, options: dict[str, Any] | None = None) -> StackConfig:
        """The config `name` of BUILDER_CONFIGS (any name if the family is OPEN), with `options` of `dff-jax prepare`.

        Raises:
          InputError: a name that cannot be a folder's, or an option that this family does not take.
        """
        if cls.OPEN and not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(f"dataset: {name!r} cannot be a name; use letters, digits, '.', '-' and '_'")
        table = cls.builder_configs
        pattern = next(iter(table.values())) if cls.OPEN else table[name]
        assert isinstance(pattern, StackConfig)
        for option in options or {}:
            if option not in pattern.options:
                takes = ", ".join(f"--{key.replace('_', '-')}" for key in pattern.options) or "no options"
                raise InputError(f"--{option.replace('_', '-')}: {cls.name} does not know it; it takes {takes}")
        return dataclasses.replace(pattern, name=name, **(options or {}))

    def _create_builder_config(self, builder_config: Any, version: Any) -> StackConfig:
        """Lets a config of the table be given with other options, which tfds would refuse."""
        if isinstance(builder_config, StackConfig):
            return builder_config
        config = super()._create_builder_config(builder_config, version)
        assert isinstance(config, StackConfig)
        return config

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        facts = config.facts
        check_unit(facts.unit)
        bounds = None if facts.focus_range is None else [float(value) for value in facts.focus_range]
        return LocalInfo(
            builder=self,
            description=f"{type(self).__doc__} {config.description or ''}".strip(),
            features=record_features(),
            metadata=tfds.core.MetadataDict(
                **(facts._asdict() | {"focus_range": bounds}),
                options=json.dumps(config.options, sort_keys=True),
                **config.fingerprint,
            ),
            license=facts.licence,
            citation=facts.citation,
            disable_shuffling=True,  # record i is item i
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        source, inventory = self.source, self.inventory
        if source is None or inventory is None:
            source = self.source = Path(dl_manager.manual_dir)
            inventory = self.survey(source)
        full_name = f"{self.name}/{self.builder_config.name}"
        if inventory.problems:
            raise SourceError(full_name, source, inventory.problems)
        self._problems: list[str] = []
        splits = {split: inventory.splits[split] for split in SPLITS if inventory.splits.get(split)}
        counts = {split: len(items) for split, items in splits.items()}
        made_of = fingerprint(source, Path(self.data_path))
        self._summary = Summary(full_name, self.builder_config.facts.unit, counts, made_of)
        self._outcomes = read_items(splits, full_name, 1 if self.IN_PROCESS else self.workers)
        return {split: self._generate_examples(split, count) for split, count in counts.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, bytes]]:
        assert self._outcomes is not None
        for index in range(count):
            outcome = next(self._outcomes)
            if isinstance(outcome, InputError):  # go on, to name all that is damaged in one report
                self._problems.append(str(outcome))
            elif not self._problems:
                self._summary.add(split, outcome)
                yield index, outcome.record

    def _finish(self, folder: Path) -> None:
        if self._problems:
            raise SourceError(f"{self.name}/{self.builder_config.name}", self.source, tuple(self._problems))
        self._summary.write(folder)

    def _abandon(self) -> None:
        if self._outcomes is not None:
            self._outcomes.close()
