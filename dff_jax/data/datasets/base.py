"""What every dataset that is converted from files shares: items to read, facts to know, one record layout.

A family is one `StackBuilder` in its own file. It says what lies in a source folder (`survey`, quick) and how one stack
is read (`Item.read`); checking, parallel reading, writing, statistics and the picture sheet are here and in
`preparing`, `writing` and `summary`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import tensorflow_datasets as tfds

from dff_jax.data.datasets.reading import Outcome, read_items, record_features
from dff_jax.data.datasets.summary import Summary, fingerprint
from dff_jax.data.datasets.writing import LocalInfo, StreamedBuilder
from dff_jax.errors import InputError, SourceError
from dff_jax.focus_axis import check_unit
from dff_jax.types import FocalStack

LAYOUT_VERSION = 1
"""Raise it when the layout of the records changes: data of another version is then made anew."""

SPLITS = ("train", "validation", "test")


class Item(NamedTuple):
    """One stack to be."""

    name: str  # unique in the split, such as "train/0007"
    # Picklable: functools.partial of a module-level function. Gives frames [Z,H,W,3] uint8 RGB sorted so that q
    # ascends, focus [Z] float64 in the dataset's unit, and depth [H,W] float32 (0 where mask is False) with mask
    # [H,W] bool, or both None without truth. Raises InputError for a damaged file.
    read: Callable[[], FocalStack]


class Inventory(NamedTuple):
    """What a source folder holds."""

    splits: dict[str, tuple[Item, ...]]  # of "train", "validation", "test": only those it has
    problems: tuple[str, ...] = ()  # everything missing or damaged, a line each: which file or key, and what to do
    notes: tuple[str, ...] = ()  # assumptions, one sentence each
    shape: tuple[int, int, int] | None = None  # Z, H, W if all stacks share it
    bytes_needed: int | None = None  # of all records, where `shape` is None and the headers say it
    facts: Facts | None = None  # where the files decide what the configuration cannot know, such as the unit


class Facts(NamedTuple):
    """What a reader of the records must know."""

    unit: str  # of focus settings and truth: "disparity", "diopter", "metre" or "index"
    focus_range: tuple[float, float] | None  # lowest and highest setting in `unit`; None: each stack has its own
    order: str  # of the frames as distributed: "far to near", "near to far" or what else is known
    truth: str  # one line
    licence: str
    citation: str
    where: str  # where to get it
    convention: str = "default"  # masks of the literature, a key of `evaluation.conventions`
    has_truth: bool = True


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

    OPEN: ClassVar[bool] = False
    """Whether any config name is valid, chosen by the user; BUILDER_CONFIGS then holds one pattern."""
    IN_PROCESS: ClassVar[bool] = False
    """Whether `Item.read` needs this process, because it computes on a device; else it runs in workers."""

    # Set by `prepare`; with tfds alone the manual folder is surveyed.
    source: Path | None = None
    inventory: Inventory | None = None
    workers: int = 1
    _outcomes: Iterator[Outcome | InputError] | None = None

    def survey(self, source: Path) -> Inventory:
        """What `source` holds, from names, headers, sizes and keys; decodes nothing whole.

        Raises:
          InputError: not this dataset at all; the message says which files were looked for and where.
        """
        raise NotImplementedError

    @classmethod
    def config_named(cls, name: str, options: dict[str, Any] | None = None) -> StackConfig:
        """The config `name`, with `options` of `dff-jax prepare`.

        Raises:
          InputError: no such config, or an option that this family does not take.
        """
        table = cls.builder_configs
        if cls.OPEN and not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(f"dataset: {name!r} cannot be a name; use letters, digits, '.', '-' and '_'")
        if not cls.OPEN and name not in table:
            choices = ", ".join(f"{cls.name}/{key}" for key in table)
            raise InputError(f"dataset: {cls.name}/{name} is unknown; choose one of {choices}")
        pattern = next(iter(table.values())) if cls.OPEN else table[name]
        for option in options or {}:
            if option not in pattern.options:
                flag = option.replace("_", "-")
                takes = ", ".join(f"--{key.replace('_', '-')}" for key in pattern.options) or "no options"
                raise InputError(f"--{flag}: {cls.name} does not know it; it takes {takes}")
        return dataclasses.replace(pattern, name=name, **(options or {}))

    def _create_builder_config(self, builder_config: Any, version: Any) -> StackConfig:
        """Lets a config of the table be given with other options, which tfds would refuse."""
        if isinstance(builder_config, StackConfig):
            return builder_config
        return super()._create_builder_config(builder_config, version)

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
        if self.inventory is None:
            self.source = Path(dl_manager.manual_dir)
            self.inventory = self.survey(self.source)
        full_name = f"{self.name}/{self.builder_config.name}"
        if self.inventory.problems:
            raise SourceError(full_name, self.source, self.inventory.problems)
        self._problems: list[str] = []
        self._summary = Summary(
            full_name, self.builder_config.facts, self.inventory, fingerprint(self.source, Path(self.data_path))
        )
        splits = {split: self.inventory.splits[split] for split in SPLITS if self.inventory.splits.get(split)}
        self._outcomes = read_items(splits, full_name, 1 if self.IN_PROCESS else self.workers, Path(self.data_path))
        return {split: self._generate_examples(split, len(items)) for split, items in splits.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, bytes]]:
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
