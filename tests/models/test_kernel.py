import importlib.util
import sys

from numba.core.caching import CacheImpl

from charlm.models.kernel import kernel

CALLER = """
from {callee} import once
from charlm.models.kernel import kernel

@kernel
def twice(x):
    return once(once(x))
"""
CALLEE = """
from charlm.models.kernel import kernel

@kernel
def once(x):
    return x + {number}
"""


def twice(x):
    return 2 * x


def test_where_no_machine_code_can_be_kept_it_is_compiled_all_the_same(monkeypatch):
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])

    assert kernel(twice)(21) == 42


def test_it_is_compiled_again_if_a_function_in_another_file_changes(tmp_path, monkeypatch):
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
    for number in (10, 10, 20):
        (tmp_path / "called_by_it.py").write_text(CALLEE.format(number=number))
        compiled = load()
        found.append(compiled(1))
    again = load()

    assert found == [21, 21, 41]
    assert (again(1), sum(again.stats.cache_hits.values())) == (41, 1)
