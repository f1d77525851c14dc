"""The map in docs/architecture.md, the docstrings of the packages and the code agree."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page
    for folder in (".", "docs", "data", "findings")
    for page in (ROOT / folder).glob("*.md")
    if page.name != "CHANGELOG.md"  # which also names what was
)
PACKAGES = sorted(path.parent for path in (ROOT / "charlm").glob("*/__init__.py"))


def rooms():
    """Return the rooms that the page lists, in its order."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## Rooms in reading order")
    table, _, _ = section.partition("Beside the package")
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def modules(package):
    return {path.stem for path in package.glob("*.py") if not path.stem.startswith("_")}


def reading_order(package):
    """Return the modules that a package's docstring names, in its order."""
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))
    _, found, order = docstring.partition("Read in this order: ")
    assert found, "no 'Read in this order: '"
    return re.findall(r"`(\w+)`", order.partition("\n\n")[0])


def imported(path):
    """Return the modules of its own package that a file imports when it is imported itself."""
    package, names = f"charlm.{path.parent.name}", set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:  # not in functions, nor for types
        if isinstance(node, ast.ImportFrom) and node.module == package:
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package + "."):
            names.add(node.module.split(".")[2])
    return names & modules(path.parent)


def test_the_rooms_are_the_layers_of_the_import_contract():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]

    assert rooms() == [layer.removeprefix("charlm.") for layer in reversed(contract["layers"])]


def test_the_rooms_are_all_that_the_package_holds():
    assert set(rooms()) == {package.name for package in PACKAGES} | modules(ROOT / "charlm")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_path_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:charlm|configs|data|docs|findings|scripts|tests)/[\w./-]*)`", text)
    linked = [page.parent / link for link in re.findall(r"\]\(([\w./-]+)\)", text)]

    missing = [path for path in [*map(ROOT.joinpath, named), *linked] if not path.exists()]

    assert not missing


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_names_all_its_modules_in_reading_order(package):
    order = reading_order(package)

    assert sorted(order) == sorted(modules(package))
    for place, name in enumerate(order):
        ahead = imported(package / f"{name}.py") - set(order[:place])
        assert not ahead, f"{name} imports what is read after it"
