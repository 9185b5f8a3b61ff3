"""State dicts of PyTorch as numpy arrays. Nothing in a file is ever executed."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from dff_jax.errors import InputError, WeightsError, one_line


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a published checkpoint by key, as float32, without `module.` and `num_batches_tracked`.

    Args:
      path: a `.safetensors` file, or what `torch.save` wrote: a state dict, or a dict that holds one as `state_dict`.

    Raises:
      WeightsError: no such file, damaged, pickled objects beside the tensors, no state dict inside, or a tensor that
        does not hold finite floats.
      InputError: PyTorch is needed and not there, or too old to read safely.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
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
    return tensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    except Exception as error:  # SafetensorError, OSError, and what numpy says to types that it has not
        raise WeightsError(f"{path}: not a safetensors file, or truncated ({one_line(error)})") from None


def _read_pickled(path: Path) -> dict[str, np.ndarray]:
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
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.serialization.safe_globals(_numpy_scalars()))
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():
            raise WeightsError(
                f"{path}: holds pickled objects beside its tensors, which are not loaded, as they could run any "
                "program; if you trust the file, save its tensors alone, in the folder of the code that it came from: "
                f'python -c "import torch; torch.save(torch.load({str(path)!r}, map_location=\'cpu\', '
                "weights_only=False)['state_dict'], 'state_dict.pth')\""
            ) from None
        raise WeightsError(f"{path}: not a PyTorch checkpoint, or truncated") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception:  # RuntimeError of the zip reader, EOFError, KeyError: whatever the bytes lead to
        raise WeightsError(f"{path}: not a PyTorch checkpoint, or truncated") from None
    if isinstance(found, Mapping):
        found = found.get("state_dict", found)
    if not isinstance(found, Mapping) or not found:
        raise WeightsError(f"{path}: no state dict inside, but {type(found).__name__}")
    odd = [str(key) for key, x in found.items() if not isinstance(x, torch.Tensor)]
    if odd:
        raise WeightsError(f"{path}: no state dict inside; {odd[0]} is not a tensor")
    return {key: _to_numpy(x, torch) for key, x in found.items()}


def _to_numpy(x: Any, torch: Any) -> np.ndarray:
    return (x.float() if x.is_floating_point() else x).detach().numpy()


def _numpy_scalars() -> list[Any]:
    """What a checkpoint with a numpy number in it (the best error so far, say) refers to: plain data."""
    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"{module}.scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")]
    return [*names, np.dtype, type(np.dtype(np.float32)), type(np.dtype(np.float64))]
