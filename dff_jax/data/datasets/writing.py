"""Records to a tfds dataset of array_record files, one after another as they come, without TensorFlow.

A tfds builder would keep a split in memory and, above 1 GB, in temporary files that only TensorFlow can write. Here
each record goes straight to its file: no limit, no copy, the order of the iterator.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.core.splits import SplitDict

from dff_jax.data.datasets.base import VERSION, Dataset, Facts
from dff_jax.data.datasets.records import record_features

SHARD_BYTES = 512 * 2**20
# Half the size of smooth images, nothing lost on noisy ones; reads about as fast as no compression at all.
WRITER_OPTIONS = "group_size:1,zstd:1"


def write_split(folder: Path, family: str, split: str, records: Iterable[bytes]) -> tfds.core.SplitInfo:
    """Writes the records of one split into `folder`, in their order."""
    template = tfds.core.ShardedFileTemplate(
        dataset_name=family, data_dir=tfds.core.Path(folder), split=split, filetype_suffix="array_record"
    )
    lengths, shard_bytes, total, writer = [], 0, 0, None
    try:
        for record in records:
            if writer is None or shard_bytes + len(record) > SHARD_BYTES:
                if writer is not None:
                    writer.close()
                writer = ArrayRecordWriter(str(folder / f"{split}-{len(lengths):05d}.part"), WRITER_OPTIONS)
                lengths.append(0)
                shard_bytes = 0
            writer.write(record)
            lengths[-1] += 1
            shard_bytes += len(record)
            total += len(record)
    finally:
        if writer is not None:
            writer.close()
    for index in range(len(lengths)):  # only now is their number known, which is part of the names
        goal = template.sharded_filepath(shard_index=index, num_shards=len(lengths))
        os.rename(folder / f"{split}-{index:05d}.part", goal)
    return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=total, filename_template=template)


def write_description(
    folder: Path, dataset: Dataset, facts: Facts, splits: list[tfds.core.SplitInfo], all_in_focus: bool = False
) -> None:
    """Writes tfds's own description beside the records, so that tfds alone can open `folder`.

    Args:
      all_in_focus: whether the records have that picture.
    """
    family, _, config = dataset.name.partition("/")
    options = json.dumps(dataset.options, sort_keys=True)
    identity = DatasetIdentity(family, tfds.core.Version(VERSION), str(folder), __package__ or "", config)
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=dataset.description,
        features=record_features(all_in_focus),
        metadata=tfds.core.MetadataDict(**facts._asdict(), options=options, **dataset.fingerprint),
        license=facts.licence,
        citation=facts.citation,
        disable_shuffling=True,  # record i is item i
    )
    info.set_file_format("array_record")
    info.set_splits(SplitDict(splits))
    info.write_to_directory(folder)
