"""What has to be the same: in all processes of a run, and in its folders of stacks when it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dff_jax import __version__
from dff_jax import config as configs
from dff_jax.config import Config, DataConfig
from dff_jax.data import pipeline
from dff_jax.runtime.progress import say
from dff_jax.training.checkpoint import Progress, flatten


def facts(config: Config, output: Path, resume: bool) -> dict[str, Any]:
    """What has to be the same in all processes of a run. A host may have its data and its cores in its own way."""
    own = ("data_dir", "num_threads", "num_workers")
    fields = flatten(configs.to_dict(config)).items()
    facts = {name: value for name, value in fields if name.rpartition(".")[2] not in own}
    return facts | {"version": __version__, "--output": str(output.resolve()), "--resume": resume}


def with_folders(progress: Progress, data: DataConfig) -> Progress:
    """Says which folders of stacks are not what they were when the run began; notes them if it begins here."""
    folders = pipeline.describe_folders(data)
    if progress.folders is None:
        return progress._replace(folders=folders)
    for root, now in folders.items():
        then = progress.folders.get(root, now)
        if then != now:
            counts = f"{then.partition(',')[0]} then, {now.partition(',')[0]} now"
            say(f"note: {root}: not the data with which the run began (names, sizes or dates differ; {counts})")
    return progress
