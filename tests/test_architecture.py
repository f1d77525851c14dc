"""The map in docs/architecture.md and the code agree."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(path.parent for path in (ROOT / "charlm").glob("*/__init__.py"))


def rooms():
    """Return the rooms that the page lists, in its order."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## Rooms in reading order")
    table, _, _ = section.partition("Beside the package")
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def modules(package):
    return {path.stem for path in package.glob("*.py") if not path.stem.startswith("_")}


def test_the_rooms_are_the_layers_of_the_import_contract():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]

    assert rooms() == [layer.removeprefix("charlm.") for layer in reversed(contract["layers"])]


def test_the_rooms_are_all_that_the_package_holds():
    assert set(rooms()) == {package.name for package in PACKAGES} | modules(ROOT / "charlm")
