"""Published PyTorch checkpoints of the compared networks, and of ResNet-18 as an encoder, as weights of ours.

A network says by `torch_key`, in its file, where each of its variables lies in a published state dict. The arrays
follow from their kind: a kernel is (k...,B,A) of PyTorch's (A,B,k...), for convolutions and transposed ones alike;
everything else is as it is. Nothing in a file is ever executed.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dff_jax import config as configs
from dff_jax.config import ModelConfig, Proximal
from dff_jax.errors import InputError, WeightsError
from dff_jax.estimators.release import check_target
from dff_jax.estimators.weights import differences, read_safetensors, save_weights
from dff_jax.runtime.replacing import digest
from dff_jax.types import Variables

Published = Literal["dfv_fv", "dfv_diff", "aifdnet", "dwild", "resnet18"]
MODELS: tuple[str, ...] = get_args(Published)
"""What can be imported: presets, and the encoder."""
AIFDNET_FIRST = "conv3d_1a.conv3d.0.weight"  # whose inputs tell whether the network sees the place of a frame


class Imported(NamedTuple):
    """What an import did."""

    output: Path
    parameters: int
    idle: tuple[str, ...]  # keys of the file that nothing uses
    notes: tuple[str, ...] = ()  # what was assumed


def import_weights(
    source: str | Path,
    model: Published,
    output: str | Path | None = None,
    *,
    frame_order: Literal["ascending", "descending"] = "ascending",
    trained_on: Literal["disparity", "diopter", "metre"] | None = None,
    attention: Literal["softmax", "softplus"] | None = None,
) -> Imported:
    """Converts a published checkpoint (.safetensors, or what torch.save wrote) to a weights file.

    Args:
      source: The checkpoint.
      model: The network that it belongs to. A file cannot tell dfv_fv from dfv_diff; resnet18 (torchvision, timm) is an
        encoder for training.encoder_weights.
      output: The weights file to write; default <model>.safetensors.
      frame_order: Order of the frames in training: far first, or (descending, --near-first) near first, as
        DDFF-12 and FoD500 come.
      trained_on: Unit of the focus settings in training, whose mean the network gives: metre for FoD500. Default:
        disparity.
      attention: How AiFDNet normalises its attention: softplus where args_model of the checkpoint has
        normalize_attention. Default: what the file says, or softmax.

    Returns:
      Imported. A compared network's file is for `load_estimator`; that of `resnet18` is an encoder alone, for
      `training.encoder_weights`.

    Raises:
      InputError: no such model, an option that it does not have, the output cannot be written; as `check_target` and
        `read_checkpoint`.
      WeightsError: keys and shapes that are not the model's; lists both sides.
    """
    if model not in MODELS:
        raise InputError(f"--model: {model!r} cannot be imported; choose one of {', '.join(MODELS)}")
    if attention is not None and model != "aifdnet":
        raise InputError(f"--attention: {model} has no choice of it, only aifdnet; leave it out")
    if trained_on is not None and model == "resnet18":
        raise InputError("--trained-on: an encoder gives no depth; leave it out")
    source, output = Path(source), Path(output or f"{model}.safetensors")
    state, settings = read_checkpoint(source)
    if output.exists() and output.samefile(source):
        raise InputError(f"{output}: is the file to import; choose another --output")
    check_target(output)
    notes: list[str] = []
    info: dict[str, Any] = {"source": source.name, "sha256": digest(source), "model": model}
    if model == "resnet18":
        config, layout = Proximal(input_range="imagenet"), "resnet18"
        found, idle = place(source, state, _encoder_shapes(), layout)
        variables = {kind: {"encoder": tree} for kind, tree in found.items()}
        info["part"] = "encoder"
    else:
        config = configs.model_preset(model).replace_known(
            frame_order=frame_order, trained_on=trained_on or "disparity",
            attention=attention or ("softplus" if settings.get("normalize_attention") else "softmax"),
            frame_position=getattr(state.get(AIFDNET_FIRST), "shape", ())[1:2] == (4,),
        )  # fmt: skip
        layout = config.method
        if trained_on is None:
            notes.append("taken as trained on disparities or diopters; of metres (FoD500), say --trained-on metre")
        if model == "aifdnet" and attention is None and "normalize_attention" not in settings:
            notes.append(
                "the file does not say how attention is normalised, softmax is assumed; where its args_model has "
                "normalize_attention, say --attention softplus"
            )
        variables, idle = place(source, state, network_shapes(config), layout)
    save_weights(output, config, variables, info | {"idle": list(idle)})
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    return Imported(output, parameters, idle, tuple(notes))


def place(
    where: Any, state: Mapping[str, np.ndarray], shapes: Variables, layout: str
) -> tuple[Variables, tuple[str, ...]]:
    """A published state dict as variables, and the keys in it that nothing uses.

    Args:
      where: what to call the file in an error.
      state: arrays by published key, in PyTorch's axes.
      shapes: the variables to fill, as shapes (of any width).
      layout: name of a method, whose file says how it is published: `torch_key` maps the flat path of a variable to its
        key, and the pattern `TORCH_IDLE` matches keys that the network never uses; "resnet18": the encoder alone.

    Raises:
      WeightsError: a key without a place, a place without a key, or a wrong shape; lists them all.
    """
    home = "dff_jax.network.encoder" if layout == "resnet18" else f"dff_jax.estimators.{layout}"
    module = importlib.import_module(home)
    torch_key, idle = module.torch_key, re.compile(getattr(module, "TORCH_IDLE", r"(?!)"))
    arrays: dict[str, Any] = flatten_dict(shapes, sep="/")
    flat = {path: x.shape for path, x in arrays.items()}
    keys = {path: torch_key(path) for path in flat}
    used = set(keys.values())
    unused = tuple(key for key in state if key not in used and idle.fullmatch(key))
    given = {key: x for key, x in state.items() if key not in unused}
    for path, key in keys.items():  # DFV's skips are 2-D where ours are 3-D
        if key in given and flat[path][:-2] == (1, 1, 1) and given[key].shape[2:] == (1, 1):
            given[key] = given[key][..., None]
    want = {key: _torch_shape(path, flat[path]) for path, key in keys.items()}
    if complaint := differences(want, {key: x.shape for key, x in given.items()}):
        raise WeightsError(f"{where}: is not a checkpoint of {layout} as published: {complaint}")
    placed = {path: _from_torch(path, given[key]) for path, key in keys.items()}
    return unflatten_dict(placed, sep="/"), unused


def network_shapes(config: ModelConfig) -> Variables:
    """The variables of a network that takes any number of frames, as shapes."""
    from dff_jax import estimators

    given = jax.ShapeDtypeStruct((1, 5, 64, 64, 3), jnp.float32), jax.ShapeDtypeStruct((1, 5), jnp.float32)
    return jax.eval_shape(estimators.build(config).init, jax.random.key(0), *given)


def _encoder_shapes() -> Variables:
    from dff_jax.network.encoder import ResNet18

    init = lambda key: ResNet18(norm="torch_batch").init(key, jnp.zeros((1, 64, 64, 3)), False)  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))


def _torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[-1], shape[-2], *shape[:-2]) if path.endswith("/kernel") else shape


def _from_torch(path: str, x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(*range(2, x.ndim), 1, 0)) if path.endswith("/kernel") else x


def read_checkpoint(path: str | Path) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """The tensors of a published checkpoint by key, as float32, without `module.` and `num_batches_tracked`; and the
    settings of the network beside them, `args_model`, where they are plain data.

    Args:
      path: a `.safetensors` file, or what `torch.save` wrote: a state dict, or a dict that holds one as `state_dict`.

    Raises:
      WeightsError: no such file, damaged, Python objects beside the tensors, no state dict inside, or a tensor that
        does not hold finite floats.
      InputError: PyTorch is needed and not there, or too old to read safely.
    """
    path = Path(path)
    found, settings = (read_safetensors(path)[0], {}) if path.suffix == ".safetensors" else _read_torch(path)
    tensors = {}
    for key, x in found.items():
        key = str(key).removeprefix("module.")
        if key.endswith("num_batches_tracked"):
            continue
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise WeightsError(f"{path}: {key}: holds {x.dtype}, not floats; are these weights?")
        tensors[key] = np.asarray(x, np.float32)
        if not np.isfinite(tensors[key]).all():
            raise WeightsError(f"{path}: {key}: has values that are not finite numbers")
    return tensors, settings if isinstance(settings, Mapping) else {}


def _read_torch(path: Path) -> tuple[dict[str, np.ndarray], Any]:
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        import torch
    except ImportError:
        with path.open("rb") as file:
            if file.read(1) not in (b"P", b"\x80", b""):  # of a zip file and of a pickle
                raise WeightsError(f"{path}: not a PyTorch checkpoint; give what torch.save wrote") from None
        raise InputError(f"{path}: only PyTorch reads such files; pip install 'dff-jax[torch]' and repeat") from None
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 6):  # weights_only had a hole (CVE-2025-32434)
        raise InputError(f"{path}: PyTorch {torch.__version__} cannot read files safely; pip install 'torch>=2.6'")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # of the unpickler and the zip reader, EOFError, KeyError: whatever the bytes lead to
        if "global" in str(error).lower():
            raise WeightsError(
                f"{path}: holds Python objects beside its tensors, which are not loaded, as they could run any "
                "program; if you trust the file, save its tensors alone, in the folder of the code that it came from: "
                f'python -c "import torch; found = torch.load({str(path)!r}, map_location=\'cpu\', '
                "weights_only=False); torch.save(found['state_dict'], 'state_dict.pth'); "
                "print(found.get('args_model'))\""
            ) from None
        raise WeightsError(f"{path}: not a PyTorch checkpoint, or truncated") from None
    settings = None
    if isinstance(found, Mapping):
        settings, found = found.get("args_model"), found.get("state_dict", found)
    if not isinstance(found, Mapping) or not found:
        raise WeightsError(f"{path}: no state dict inside, but {type(found).__name__}")
    odd = [str(key) for key, x in found.items() if not isinstance(x, torch.Tensor)]
    if odd:
        raise WeightsError(f"{path}: no state dict inside; {odd[0]} is not a tensor")
    arrays = {key: (x.float() if x.is_floating_point() else x).detach().numpy() for key, x in found.items()}
    return arrays, settings


def _numpy_scalars() -> list[Any]:
    """What a checkpoint with a numpy number in it (the best error so far, say) refers to: plain data."""
    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"{module}.scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")]
    return [*names, np.dtype, type(np.dtype(np.float32)), type(np.dtype(np.float64))]
