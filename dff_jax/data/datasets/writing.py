"""Records to array_record files, one after another as they come, without TensorFlow.

tfds keeps a split in memory and, above 1 GB, in temporary files that only TensorFlow can write. Here each record goes
straight to its file: no limit, no copy, the order of the generator.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

SHARD_BYTES = 512 * 2**20
# Half the size of smooth images, nothing lost on noisy ones; reads about as fast as no compression at all.
WRITER_OPTIONS = "group_size:1,zstd:1"


class LocalInfo(tfds.core.DatasetInfo):
    """What tfds knows of a dataset made here, which is not among those that its bucket has facts about."""

    def initialize_from_bucket(self) -> None:
        """Nothing: tfds would ask the network, and leave an empty folder in the system's temporary one each time."""


class StreamedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A tfds builder whose generators are written as they run."""

    OPEN: ClassVar[bool] = False
    """Whether any config name is valid, chosen by the user; BUILDER_CONFIGS then holds one pattern."""

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[tfds.core.SplitInfo]:
        try:
            splits = [self._write(name, generator) for name, generator in self._split_generators(dl_manager).items()]
            self._finish(Path(self.data_path))
        finally:
            self._abandon()
        return splits

    def _finish(self, folder: Path) -> None:
        """Called when all splits are written to `folder`, which is still hidden; may write beside them."""

    def _abandon(self) -> None:
        """Called at the end, whether it went well or not."""

    def _write(self, split: str, examples: Iterable[tuple[int, dict[str, Any] | bytes]]) -> tfds.core.SplitInfo:
        """Examples that are bytes have been through `serialize` already."""
        template = self._get_filename_template(split_name=split)
        lengths, shard_bytes, total = [], 0, 0
        writer, features = None, self.info.features
        assert isinstance(features, tfds.features.FeaturesDict)
        try:
            for _, example in examples:
                record = example if isinstance(example, bytes) else serialize(example, features)
                if writer is None or shard_bytes + len(record) > SHARD_BYTES:
                    if writer is not None:
                        writer.close()
                    writer = ArrayRecordWriter(str(_part(template, len(lengths))), WRITER_OPTIONS)
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
            os.rename(_part(template, index), goal)
        return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=total, filename_template=template)


def serialize(example: dict[str, Any], features: tfds.features.FeaturesDict) -> bytes:
    """One example as it is written; equal examples give equal bytes."""
    specs: Any = features.get_serialized_info()  # a dict, by any name
    message = ExampleSerializer(specs).get_tf_example(features.encode_example(example))
    return message.SerializeToString(deterministic=True)  # else its fields come in any order


def _part(template: Any, index: int) -> Path:
    return Path(template.data_dir) / f"{template.split}-{index:05d}.part"
