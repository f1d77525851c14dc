"""The packages of the extra `report`: they are looked for before the work, which may take hours."""

from importlib.util import find_spec

from charlm.errors import MachineError

# What is imported, and what installs it.
PACKAGES = {
    "altair": "altair",
    "jinja2": "jinja2",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "vl_convert": "vl-convert-python",
}


def check_installed() -> None:
    """Raise MachineError if a package that a report needs is missing; it imports none of them."""
    for module, package in PACKAGES.items():
        if find_spec(module) is None:
            what = f"cannot be made: the package {package} is missing"
            raise MachineError("a report", what, "pip install 'charlm[report]'")
