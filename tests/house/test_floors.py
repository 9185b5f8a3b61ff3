"""The order of the rooms: a file imports only from rooms on a lower floor, no modules import each other in a circle,
and light imports stay light."""

import ast
import functools
import pathlib
import subprocess
import sys

import dff_jax

ROOT = pathlib.Path(dff_jax.__file__).parent
FLOORS = [
    "types errors",
    "runtime ops focus_axis",
    "config unroll classical pictures",
    "network optics",
    "estimators data",
    "evaluation prediction",
    "training",
    "studies",
    "cli",
    "__init__",
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS, 1) for room in rooms.split()}
UNKNOWN = len(FLOORS) + 1  # a room without a floor: nothing may import it
FILES_AT_THE_TOP = {"__init__", "types", "errors", "focus_axis", "cli"}
MOST_ROOMS = 21


def module_of(path: pathlib.Path) -> str:
    """Dotted name of a file, without the package's: "" for its own `__init__.py`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def room_of(module: str) -> str:
    return module.partition(".")[0] or "__init__"


def floor_of(module: str) -> int:
    return FLOOR.get(room_of(module), UNKNOWN)


@functools.cache
def imports() -> dict[str, set[str]]:
    """The modules of this package that each one imports, wherever in the file it does."""
    trees = {module_of(path): ast.parse(path.read_text()) for path in ROOT.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for module, tree in trees.items():
        names = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: a relative import"
                names += [f"{node.module}.{alias.name}" for alias in node.names]
        names = [f"{name}.".removeprefix("dff_jax.").strip(".") for name in names if f"{name}.".startswith("dff_jax.")]
        # a name that is no module is defined in its module; the package itself is loaded before all its modules
        found[module] = {name if name in trees else name.rpartition(".")[0] for name in names} - {module, ""}
        assert found[module] <= trees.keys(), f"{module} imports {found[module] - trees.keys()}, which does not exist"
    return found


def reached(module: str) -> set[str]:
    """All modules that `module` imports, and those that these import."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = imports()[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_rooms_import_only_from_lower_floors():
    wrong = [
        f"{module} (floor {floor_of(module)}) imports {other} (floor {floor_of(other)})"
        for module, others in sorted(imports().items())
        for other in sorted(others)
        if room_of(other) != room_of(module) and floor_of(other) >= floor_of(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle():
    circles = {module: reached(module) for module in imports()}
    wrong = {
        ", ".join(sorted(other for other in others if module in circles[other]))
        for module, others in circles.items()
        if module in others
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_the_unroll_stands_on_types_errors_and_ops_alone():
    wrong = {
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in others
        if room_of(module) == "unroll" and room_of(other) not in ("unroll", "types", "errors", "ops")
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_few_rooms_and_four_files_alone_at_the_top():
    assert {path.stem for path in ROOT.glob("*.py")} == FILES_AT_THE_TOP
    rooms = {room_of(module) for module in imports()}
    assert rooms == FLOOR.keys() and len(rooms) <= MOST_ROOMS


def test_light_imports_stay_light():
    heavy = "tensorflow tensorflow_datasets grain orbax matplotlib"
    code = "import importlib, sys\n"
    for module, forbidden in (  # each loads what those before it have loaded, and more
        ("dff_jax", f"{heavy} flax jax"),
        ("dff_jax.unroll", f"{heavy} flax optax PIL"),
        ("dff_jax.prediction.predict", f"{heavy} flax"),
        ("dff_jax.estimators.proximal", "tensorflow tensorflow_datasets grain matplotlib tyro"),
    ):
        code += f"importlib.import_module({module!r})\n"
        code += f"print(*['{module} imports ' + m for m in {forbidden.split()} if m in sys.modules], sep=', ')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip(), done.stdout
