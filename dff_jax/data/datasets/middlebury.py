"""tfds dataset `middlebury`: focal stacks rendered from Middlebury stereo scenes, to test only.

As distributed: `focal_stack/<Scene>/` with 15 frames named by their focus disparity, `AiF.png` and `disp.exr`. Sizes
differ between scenes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dff_jax.data.datasets.base import StackBuilder, StackConfig
from dff_jax.data.datasets.frames import inventory
from dff_jax.data.datasets.labelled import labelled_stacks, settings_problems
from dff_jax.data.datasets.records import Facts, Inventory
from dff_jax.errors import InputError

SETTINGS = np.linspace(10.0, 60.0, 15).tolist()
PUBLISHED = 15
PLACES = ("focal_stack", "Middlebury_FS/focal_stack")

FACTS = Facts(
    unit="disparity",
    focus_range=(10.0, 60.0),
    order="far to near",
    truth="disparity in pixels as rendered, not limited to the focus range; none where it is 0 or below",
    licence="none stated",
    citation="D. Scharstein et al., High-Resolution Stereo Datasets with Subpixel-Accurate Ground Truth, GCPR 2014; "
    "focal stacks: N.-H. Wang et al., Bridging Unsupervised and Supervised Depth from Focus via All-in-Focus "
    "Supervision, ICCV 2021",
    where="the Google Drive link in the readme of albert100121/AiFDepthNet or khurramashfaq/ddl-gru-sff",
    convention="middlebury",
)


class Middlebury(StackBuilder):
    """Middlebury focal stacks: 15 frames, focus settings 10 to 60 pixels of disparity, 15 scenes to test."""

    name = "middlebury"
    BUILDER_CONFIGS = [
        StackConfig(name="focal_stack", facts=FACTS, description="15 frames, sizes differ; 15 scenes, to test")
    ]

    def survey(self, source: Path) -> Inventory:
        folder = next((source / place for place in PLACES if (source / place).is_dir()), None)
        if folder is None and source.name == "focal_stack":
            folder = source
        if folder is None:
            raise InputError(
                f"{source}: not the Middlebury focal stacks; looked for {' and '.join(f'{p}/' for p in PLACES)} with a "
                "folder a scene; give the folder that holds focal_stack/"
            )
        stacks, problems = labelled_stacks(folder, "test", FACTS.unit)
        splits = {"test": stacks}
        found, notes = settings_problems(splits, SETTINGS)
        if len(stacks) != PUBLISHED:
            notes.append(f"{len(stacks)} scenes where {PUBLISHED} were published")
        return inventory(splits, problems + found, notes)
