"""`dff-jax prepare`: survey, one report of all problems, room on the disk, then the writing."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from dff_jax.data.datasets.base import SPLITS, Dataset, Facts, Item
from dff_jax.data.datasets.reading import available_cores, read_items
from dff_jax.data.datasets.summary import Summary
from dff_jax.data.datasets.writing import write_description, write_split
from dff_jax.errors import InputError, SourceError
from dff_jax.focus_axis import check_unit
from dff_jax.runtime.files import check_output, staged_output
from dff_jax.runtime.progress import say, track
from dff_jax.runtime.replacing import digest

SOURCE = "source.json"  # the digests of the files that a dataset was made of
STACKS_PER_WORKER = 16
MARGIN_BYTES = 16 * 2**20  # indices, statistics, images


def make(dataset: Dataset, path: Path, source: Path, workers: int) -> None:
    """Writes the dataset into the folder `path`, or nothing. Says beforehand what it takes.

    Args:
      path: made, or replaced.
      source: the folder or file that it is made of.
      workers: processes that read; 0: as many as are worth while.

    Raises:
      SourceError: files that are missing or damaged; all of them.
      InputError: no stack in `source`, not enough room, or a folder that cannot be written.
    """
    found = dataset.survey(source)
    if found.problems:
        raise SourceError(dataset.name, source, tuple(found.problems))
    if not found.items:
        raise InputError(f"{dataset.name}: no stack in {source}; {dataset.facts.where}")
    with_picture = sum(item.all_in_focus for item in found.items)
    if with_picture < len(found.items):
        if with_picture:
            found.notes.append(
                f"all-in-focus pictures are left out: only {with_picture} of {len(found.items)} stacks have one"
            )
        found.splits = {s: [i._replace(all_in_focus=False) for i in items] for s, items in found.splits.items()}
    splits = {split: found.splits[split] for split in SPLITS if found.splits.get(split)}
    counts = {split: len(splits.get(split, ())) for split in SPLITS}
    listed = ", ".join(f"{counts[split]} in {split}" for split in splits)
    say(f"{dataset.name}: {listed}; at most {found.bytes_needed / 1e6:,.1f} MB of disk")
    for split, published in dataset.published.items():
        if counts[split] != published:
            found.notes.append(f"{split}: {counts[split]} stacks where {published} were published")
    found.notes += [
        f"{left} was left by a run that was killed; delete it, unless it is still running"
        for left in path.parent.glob(".dff-jax-*.partial")
    ]
    for note in found.notes:
        say(f"note: {note}")
    check_output(path, needed=found.bytes_needed + MARGIN_BYTES)
    workers = 1 if dataset.in_process else workers or sensible_workers(len(found.items))
    with staged_output(path, whole=True) as staging:
        _write(dataset, found.facts or dataset.facts, splits, source, staging, workers)


def _write(
    dataset: Dataset, facts: Facts, splits: dict[str, list[Item]], source: Path, folder: Path, workers: int
) -> None:
    """Writes records, description, statistics and overview into `folder`, which is still hidden."""
    summary = Summary(dataset.name, check_unit(facts.unit), {split: len(items) for split, items in splits.items()})
    problems: list[str] = []
    if dataset.needs_source:  # first, so that a file that changes meanwhile is noticed as well
        (folder / SOURCE).write_text(json.dumps(digests(source, folder), indent=0) + "\n")

    def good(split: str, outcomes: Iterator[bytes | InputError]) -> Iterator[bytes]:
        for outcome in outcomes:
            if isinstance(outcome, InputError):  # go on, to name all that is damaged in one report
                problems.append(str(outcome))
            elif not problems:
                summary.add(split, outcome)
                yield outcome

    family = dataset.name.partition("/")[0]
    with contextlib.closing(read_items(splits, dataset.name, workers)) as outcomes:
        written = [
            write_split(folder, family, split, good(split, itertools.islice(outcomes, len(items))))
            for split, items in splits.items()
        ]
    if problems:
        raise SourceError(dataset.name, source, tuple(problems))
    sharp = any(item.all_in_focus for items in splits.values() for item in items)
    write_description(folder, dataset, facts, written, sharp)
    summary.write(folder)


def digests(source: Path, made: Path) -> dict[str, str]:
    """A digest of each file below `source` by its name there, to notice that it holds other files now.

    Args:
      made: the dataset's folder, or one beside it. Files of its family, which may be below `source`, are left out.
    """
    own = made.resolve().parents[1]
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    files = [path for path in files if own not in path.resolve().parents]
    found = track(map(_readable_digest, files), "digests of the source", len(files), unit="file")
    return {path.relative_to(source).as_posix(): one for path, one in zip(files, found, strict=True)}


def _readable_digest(path: Path) -> str:
    """Its digest; a file that cannot be read is none of the dataset's, which were read before."""
    with contextlib.suppress(OSError):
        return digest(path)
    return ""


def check_unchanged(name: str, made: Path, source: Path) -> None:
    """Raises InputError if the dataset in `made` is of other files than `source` holds now."""
    try:
        before = json.loads((made / SOURCE).read_text())
    except (OSError, ValueError):
        before = None
    if before is not None and before != (now := digests(source, made)):
        changed = sorted(file for file in before.keys() | now.keys() if before.get(file) != now.get(file))
        raise InputError(
            f"{name}: {made} was made of other files than {source} holds now (first {changed[0]}); make it again with "
            "--overwrite, or under another name or --data-dir"
        )
    say(f"{name} is there already; --overwrite makes it again")


def sensible_workers(stacks: int) -> int:
    """One a core, but none for so few stacks that starting it takes longer than the work."""
    return min(available_cores(), max(1, stacks // STACKS_PER_WORKER))
