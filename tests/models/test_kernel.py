import importlib.util
import os
import sys

import pytest
from numba.core.caching import CacheImpl

from charlm.models.kernel import kernel

CALLER = """
from {callee} import ADDED, once
from charlm.models.kernel import kernel

@kernel
def twice(x):
    return below(below(x))

@kernel
def below(x):
    return once(x) + ADDED[0]
"""
CALLEE = """
import numpy as np
from charlm.models.kernel import {decorator}

ADDED = np.array([{number}])

@{decorator}
def once(x):
    return x + {more}
"""


def twice(x):
    return 2 * x


def test_where_no_machine_code_can_be_kept_it_is_compiled_all_the_same(monkeypatch):
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])

    assert kernel(twice)(21) == 42


@pytest.mark.parametrize("decorator", ["kernel", "inner"])
def test_it_is_compiled_again_if_a_function_in_another_file_changes(
    decorator, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "caller_of_it.py").write_text(CALLER.format(callee="called_by_it"))

    def load():
        for name in ("called_by_it", "caller_of_it"):
            spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        return module.twice

    found = []
    # The file keeps its size, and its time.
    for number, more in ((10, 1), (10, 2), (20, 2)):
        content = CALLEE.format(number=number, more=more, decorator=decorator)
        (tmp_path / "called_by_it.py").write_text(content)
        os.utime(tmp_path / "called_by_it.py", (0, 0))
        compiled = load()
        found.append(compiled(1))
    again = load()

    assert found == [23, 25, 45]
    assert (again(1), sum(again.stats.cache_hits.values())) == (45, 1)


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", [b"", b"x" * 99, "cut", "flip"])
def test_damaged_machine_code_is_compiled_again(suffix, damage, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = "from charlm.models.kernel import kernel\n\n@kernel\ndef twice(x):\n    return 2 * x\n"
    (tmp_path / "damaged_one.py").write_text(source)

    def load():
        spec = importlib.util.spec_from_file_location("damaged_one", tmp_path / "damaged_one.py")
        sys.modules["damaged_one"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.twice

    assert load()(21) == 42
    (stored,) = tmp_path.rglob(f"*.{suffix}")
    content = stored.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    stored.write_bytes({"cut": content[:middle], "flip": flipped}.get(damage, damage))

    again, then = load(), load()

    assert (again(21), sum(again.stats.cache_hits.values())) == (42, 0)
    assert (then(21), sum(then.stats.cache_hits.values())) == (42, 1)
