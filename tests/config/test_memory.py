import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.config import memory


def test_the_machines_memory_is_that_of_the_operating_system():
    assert memory.physical_bytes() == psutil.virtual_memory().total
    assert memory.machine_bytes() <= memory.physical_bytes()


@pytest.fixture
def unlimited(monkeypatch):
    """A shell without limits."""
    if memory.resource:
        nothing = (memory.resource.RLIM_INFINITY,) * 2
        monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: nothing)


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize(
    ("groups", "files", "found"),
    [
        pytest.param("0::/a/b", {"a/b/memory.max": "4096"}, [4096], id="v2"),
        pytest.param("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "9"}, [9], id="outer"),
        pytest.param("0::/", {"memory.max": "4096"}, [4096], id="v2-in-a-container"),
        pytest.param("3:cpu,memory:/a", {"memory/a/memory.limit_in_bytes": "7"}, [7], id="v1"),
        pytest.param("3:memory:/a", {"memory/memory.limit_in_bytes": "7"}, [7], id="v1-container"),
        pytest.param("3:memory:/", {"memory/memory.limit_in_bytes": str(2**63)}, [], id="v1-none"),
        pytest.param("3:cpu:/a", {"memory/a/memory.limit_in_bytes": "7"}, [], id="other"),
        pytest.param("0::/a", {"a/memory.max": "rubbish"}, [], id="rubbish"),
        pytest.param("0", {}, [], id="cut-short"),
        pytest.param(None, {}, [], id="no-proc"),
    ],
)
def test_limits_of_control_groups_are_found(tmp_path, groups, files, found):
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(f"{groups}\n")
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")

    assert [limit for limit, _ in memory.memory_limits(tmp_path)] == found


@pytest.mark.skipif(not memory.resource, reason="where there are such limits")
def test_limits_of_the_shell_are_found(monkeypatch, tmp_path):
    shell = {memory.resource.RLIMIT_AS: 3 << 30, memory.resource.RLIMIT_DATA: 2 << 30}
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (shell[kind], -1))

    assert memory.memory_limits(tmp_path) == [(3 << 30, "ulimit -v"), (2 << 30, "ulimit -d")]
    monkeypatch.setattr(memory, "physical_bytes", lambda: 1 << 40)
    assert memory.machine_bytes() <= 2 << 30


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (5 << 30, "5 GiB"),
        (1 << 60, "1 EiB"),
        (10**400, "8.674e+381 EiB"),
    ],
)
def test_bytes_are_written_as_people_read_them(count, text):
    assert memory.human_bytes(count) == text


@given(st.integers(min_value=0, max_value=10**4000))
def test_any_number_of_bytes_can_be_written(count):
    assert len(memory.human_bytes(count)) < 20
