"""What every test shares: no thread outlives it, and `cuda` tests run where there is a GPU; and
what tests of the command line find in place."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ccdstream.bundle import Bundle
    from ccdstream.engine.select import SelectedEngine

# Before anything imports torch: without this, two threads that share a core with another process
# spin while they wait for each other, and tests take several times as long. Networks of tests are
# so small that a second thread costs more than it gives.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")


LONGEST_FIRST = (
    *("test_batch.py", "test_train.py", "test_cluster.py", "test_detectors.py"),
    *("test_torch_program.py", "test_live_cli.py", "test_inherit.py", "test_export.py"),
    *("test_tensorrt.py", "test_deid.py", "test_student.py", "test_live_session.py"),
    *("test_fuzz_decode.py", "test_torch_tensorrt.py", "test_batch_page.py", "test_console.py"),
)
"""So that no process is left alone with one of them in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest. Skip `cuda` tests where there is no GPU, but not on a machine
    that promised one."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
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


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> "Bundle":
    """The toy bundle, to which bright is unusual."""
    from tests.bundles import write_toy_bundle

    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture(scope="module")
def engine(bundle: "Bundle") -> "SelectedEngine":
    """Runs it on the CPU."""
    from ccdstream.engine.select import open_engine

    return open_engine(bundle, device="cpu")


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A picture of 48x64, to put into hostile containers."""
    from tests.videos import make_video, packets_of

    path = tmp_path_factory.mktemp("jpeg") / "one.avi"
    make_video(path, codec="mjpeg", pix_fmt="yuvj420p", frames=1)
    return packets_of(path, "video")[0][1]


# -- for tests of the command line ----------------------------------------------------------------


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, a recording with one alert, and one without."""
    from tests.bundles import write_toy_bundle
    from tests.commands import bright_between

    folder = tmp_path_factory.mktemp("shelf")
    write_toy_bundle(folder / "toy")
    bright_between(folder / "case12.mp4", 5, 49, 70)
    bright_between(folder / "calm.mp4", -1, -1, 12)
    return folder


@pytest.fixture
def here(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory but for case12.mp4 and calm.mp4."""
    for name in ("case12.mp4", "calm.mp4"):
        shutil.copy(shelf / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here: Path, shelf: Path) -> Callable[..., Any]:
    """`ccdstream run ...` with the toy bundle."""
    from tests.commands import ccdstream

    return lambda *arguments: ccdstream("run", "--model", shelf / "toy", *arguments)
