"""What every test runs under: one thread, a fixed Hypothesis profile, tiers, golden files."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

# Before NumPy, PyTorch or JAX is loaded; subprocesses inherit it.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ[variable] = "1"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling dominates the simulators' tests: 7 s became 1 s with what the last run compiled.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # the other worker's too
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

if os.environ.get("TRIMTAB_TRAINERS"):
    from tests.trainers.packages import find_trainers

    find_trainers()

GOLDEN = Path(__file__).parent / "golden"

hypothesis.settings.register_profile(
    "fixed",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    print_blob=False,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite the golden files from what the code gives now",
    )


def no_skip() -> bool:
    """Whether a framework test that is skipped counts as failed, as it does in CI."""
    return os.environ.get("TRIMTAB_NO_SKIP", "") not in ("", "0")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    is_expected_failure = hasattr(report, "wasxfail")
    if (
        report.skipped
        and no_skip()
        and not is_expected_failure
        and item.get_closest_marker("framework")
    ):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and TRIMTAB_NO_SKIP=1: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    # A whole module skips before its markers are known: its text tells what it holds.
    if (
        report.skipped
        and no_skip()
        and isinstance(collector, pytest.Module)
        and "mark.framework" in collector.path.read_text(encoding="utf-8")
    ):
        report.outcome = "failed"
        report.longrepr = (
            f"{collector.nodeid} was skipped, and TRIMTAB_NO_SKIP=1: {report.longrepr}"
        )
    return report


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the golden file of that name, or rewrite it with --update-golden."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no golden file {name}; write it with pytest --update-golden"
        assert text == path.read_text(encoding="utf-8")

    return check


@pytest.fixture(autouse=True)
def heed_interrupts() -> Iterator[None]:
    """Undo what a job in the background of a shell hands on: interrupts that are ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def quick_compiling() -> Iterator[None]:
    """Compile a module's JAX programs as fast as can be; they run for milliseconds.

    Not where numbers of two programs are compared, which users' are to agree in.
    """
    jax = pytest.importorskip("jax")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # the next module gets programs as users do
