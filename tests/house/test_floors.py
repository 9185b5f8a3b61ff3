"""Who may know whom: rooms import only from rooms below, and light imports stay light."""

import ast
import pathlib
import subprocess
import sys

import pytest

import dff_jax

ROOT = pathlib.Path(dff_jax.__file__).parent
FLOORS = {
    "errors": 0, "checked": 0, "types": 0, "focus_axis": 0, "config": 0, "compilation": 0, "processes": 1, "extent": 0,
    "terminal": 0, "kept": 0, "enlarging": 0,
    "optics": 1, "unroll": 1, "classical": 1,
    "network": 2,
    "estimators": 3, "data": 3, "pictures": 3, "output": 3, "tiles": 3, "tiled": 3, "points": 3, "report": 3,
    "training": 4, "prediction": 4, "packing": 4, "prediction_files": 4, "evaluation": 4,
    "bench": 5, "comparison": 5, "cli": 5, "arguments": 5, "__init__": 5,
}  # fmt: skip
# on the fourth floor, who may know whom
BESIDE = {("training", "evaluation"), ("prediction_files", "prediction"), ("prediction", "prediction_files")}


def room_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path: pathlib.Path):
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            if node.module == "dff_jax":
                modules = [f"dff_jax.{alias.name}" for alias in node.names]
        for module in modules:
            parts = module.split(".")
            if parts[0] == "dff_jax" and len(parts) > 1 and parts[1] in FLOORS:
                yield parts[1]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_from_below(path):
    room = room_of(path)
    for other in imported_rooms(path):
        if other != room:
            beside = FLOORS[other] == FLOORS[room] and (FLOORS[room] != 4 or (room, other) in BESIDE)
            allowed = FLOORS[other] < FLOORS[room] or beside
            assert allowed, f"{path.name} in {room} imports {other}"


@pytest.mark.parametrize(
    "module, forbidden",
    [
        ("dff_jax", "tensorflow tensorflow_datasets grain orbax matplotlib flax"),
        ("dff_jax.unroll", "tensorflow tensorflow_datasets grain orbax matplotlib flax optax PIL"),
        ("dff_jax.prediction.predict", "tensorflow tensorflow_datasets grain orbax matplotlib flax"),
        ("dff_jax.estimators.proximal", "tensorflow tensorflow_datasets grain matplotlib tyro"),
    ],
)
def test_light_imports_stay_light(module, forbidden):
    code = f"import sys, {module}; print(*[m for m in '{forbidden}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
