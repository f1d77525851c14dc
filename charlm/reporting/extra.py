"""What a report needs, looked at before the work, which may take hours: packages, and a name for the page."""

from importlib.util import find_spec
from pathlib import Path

from charlm.errors import MachineError, UsageError

PAGES = (".html", ".htm")

# What is imported, and what installs it.
PACKAGES = {
    "altair": "altair",
    "jinja2": "jinja2",
    "PIL": "pillow",
    "vl_convert": "vl-convert-python",
}


def check_installed() -> None:
    """Raise MachineError if a package that a report needs is missing; it imports none of them."""
    for module, package in PACKAGES.items():
        if find_spec(module) is None:
            what = f"cannot be made: the package {package} is missing"
            raise MachineError("a report", what, "pip install 'charlm[report]'")


def check_name(page: Path, named: str, mend: str = "end the name in .html") -> None:
    """Raise UsageError if a file is not named as a page is; `named` is what the user gave."""
    if page.suffix.lower() not in PAGES:
        raise UsageError(named, "a report is a page of HTML", mend)
