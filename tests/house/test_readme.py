"""The front page says what is true: its functions and links exist, and its example runs."""

import ast
import pathlib
import re

import jax
import pytest

import dff_jax

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = pathlib.Path(dff_jax.__file__).parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted(PACKAGE.rglob("*.md")), *sorted((ROOT / "configs").rglob("*.md"))]
PAGES += [ROOT / "scripts" / "README.md", ROOT / ".github" / "CONTRIBUTING.md"]


def equations():
    """(equation, file, name) of each function in the table of equations."""
    table = README.split("| equation |")[1].split("\n\n")[0]
    for line in table.splitlines()[2:]:
        equation, files, names = (cell.strip() for cell in line.strip("|").split("|"))
        for name in re.findall(r"`(\w+)`", names):
            yield equation, re.findall(r"`([\w/.]+)`", files), name


@pytest.mark.parametrize("equation, files, name", list(equations()))
def test_each_equation_has_its_function(equation, files, name):
    defined = {
        node.name
        for file in files
        for node in ast.parse((PACKAGE / file).read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert name in defined, f"{equation}: no {name} in {', '.join(files)}"


def test_the_table_has_every_equation():
    told = " ".join(equation for equation, _, _ in equations())
    numbers = {int(n) for n in re.findall(r"\d+", re.sub(r"D\(0\)", "", told))}
    numbers |= {n for low, high in re.findall(r"(\d+)-(\d+)", told) for n in range(int(low), int(high) + 1)}
    assert numbers >= set(range(1, 27))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_front_page_is_short():
    assert README.count("\n") <= 150


def test_the_example_of_the_unroll_runs(key):
    example = next(code for code in re.findall(r"```python\n(.*?)```", README, re.S) if "unroll" in code)
    names = {"candidates": jax.random.uniform(key, (1, 8, 8, 3)), "weights": jax.numpy.ones((1, 8, 8, 3))}
    exec(example, names)
    assert names["history"].shape == (5, 1, 8, 8)
