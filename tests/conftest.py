"""What every test shares: no thread outlives it, and `cuda` tests run where there is a GPU."""

import os
import threading
from collections.abc import Iterator

import pytest

# Before anything imports torch: without this, two threads that share a core with another process
# spin while they wait for each other, and tests take several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `cuda` tests where there is no GPU, but not on a machine that promised one."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked or os.environ.get("CCDSTREAM_REQUIRE_CUDA") == "1":
        return
    from ccdstream.engine.gpu import find_gpus

    if not find_gpus().found:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests compile does not land among the user's engines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CCDSTREAM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """A stage that outlives its pipeline holds files and GPU memory: fail the test that left it."""
    before = set(threading.enumerate())
    yield
    leaked = set(threading.enumerate()) - before
    assert not leaked, f"threads still alive: {sorted(t.name for t in leaked)}"
