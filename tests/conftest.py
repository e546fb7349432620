"""Set-up of all tests: threads, the fixtures of tests/fixtures/, the marker ``slow``, and the order of the tests."""

import gc
import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes that share the processor's cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from fixtures.launching import SHARED, start_server

FIXTURES = ("audio", "machine", "programs", "text_encoders", "tiny_models", "training")
PROGRAMS = {"launch", "slurm_cluster"}  # a test with one of these fixtures starts programs of the project: it is slow
#: files and folders whose tests take longest, the longest first, so that none of them is left alone at the end
LONGEST_FIRST = (
    "slurm/test_lives.py", "slurm/test_scripts.py", "ranks", "faults/test_kills.py", "faults/test_signals.py", "faults",
    "cli", "test_package.py", "checkpoints",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """The fixtures, which import PyTorch and Lightning: in all processes but one that only hands out tests.

    That one starts the server of tests/launcher.py for the others.
    """
    if config.getoption("dist", "no") == "no" or hasattr(config, "workerinput"):
        for name in FIXTURES:
            config.pluginmanager.import_plugin(f"fixtures.{name}")
    elif _takes_slow(config) and not config.getoption("collectonly"):
        server = start_server()
        os.environ[SHARED] = server.address
        config.add_cleanup(server.stop)


def _takes_slow(config: pytest.Config) -> bool:
    return "not slow" not in config.getoption("markexpr")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process a core; with the slow tests two more, since those of Slurm, signals and kills mostly wait."""
    return (os.cpu_count() or 1) + 2 * _takes_slow(config)


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start programs are slow; the files that take longest come first, as each process takes the next."""
    here = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(here).as_posix()
        return next((i for i, name in enumerate(LONGEST_FIRST) if path.startswith(name)), len(LONGEST_FIRST))

    items.sort(key=place)
    for item in items:
        if PROGRAMS & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """What is imported by now stays: searching it for garbage, again and again, would take seconds."""
    gc.collect()
    gc.freeze()
