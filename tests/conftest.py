"""What all tests share: a cache of their own, and no network."""

import functools
import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Speed is a benchmark, never a test: a busy machine fails nothing.
hypothesis.settings.register_profile("edgekit", deadline=None)
hypothesis.settings.load_profile("edgekit")

# Libraries read these when they are imported, so before any test is.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
    # Filled while a model is traced: layers beyond the second make up for that, and ours have two.
    TORCH_FAKE_TENSOR_DISPATCH_CACHE="0",
)
_TIMED = {
    "edgekit.stages.prove": ("_LATENCY_SECONDS", "_COMPARISON_SECONDS"),
    "edgekit.measure.proof": ("_PROFILE_SECONDS",),
}
# Workers are more than cores: threads of their own would wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that at the end there is something short for each worker."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The store of all tests of a run, and of all its workers; the user's own is never touched.

    Conversions take most of the suite's time, and tests of many files begin with the same ones.
    Temporary files go where pytest clears up.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    folder.mkdir(exist_ok=True)
    scratch = str(tmp_path_factory.mktemp("scratch"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(folder))
        patch.setenv("TMPDIR", scratch)
        patch.setattr(tempfile, "tempdir", scratch)
        yield folder


# Tracing makes objects by the million, and hardly any garbage: looking for it took a tenth of all
# time. ``small_heap`` takes out what there is.
gc.set_threshold(100_000, 50, 1000)


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> None:
    """accelerate collects garbage after each training: among what is new, not all of torch."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def converters_look_once() -> None:
    """What torch looks up anew for each conversion, a second or two each time."""
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    if registration is not None:
        registry = registration.ONNXRegistry
        if not hasattr(registry.from_torchlib, "cache_info"):
            registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))
    exporting = sys.modules.get("torch._export.utils")
    if exporting is not None and not hasattr(exporting._materialize_cpp_cia_ops, "cache_info"):
        once = functools.cache(exporting._materialize_cpp_cia_ops)
        exporting._materialize_cpp_cia_ops = once


@pytest.fixture(autouse=True)
def converters_ask_jax_once() -> None:
    """What litert-torch has JAX lower anew in each conversion, by the operator and its shapes."""
    bridge = sys.modules.get("litert_torch.backend.jax_bridge._wrap")
    if bridge is None or hasattr(bridge, "lowered"):
        return
    bridge.lowered = lowered = {}
    lower, serialize = bridge._lower_to_ir_text, bridge._stablehlo_to_vhlo

    def lower_once(
        function: Any, args: Any, kwargs: Any, ir_input_names: Any = None
    ) -> tuple[Any, Any]:
        text, inputs = lower(function, args, kwargs, ir_input_names=ir_input_names)
        key = bridge.get_cache_fingerprint((function, args, kwargs, ir_input_names))

        def serialized() -> Any:
            if key is None or key not in lowered:
                made = serialize(text())
                return made if key is None else lowered.setdefault(key, made)
            return lowered[key]

        return serialized, inputs

    bridge._lower_to_ir_text, bridge._stablehlo_to_vhlo = lower_once, lambda made: made


@pytest.fixture(autouse=True)
def timed_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a build times, it times long enough to be right, which no test asks of it."""
    for module, names in _TIMED.items():
        if module in sys.modules:
            for name in names:
                monkeypatch.setattr(f"{module}.{name}", 0.05)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real checkpoints and data sets, in a folder beside the repository where there is one."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no folder 'shared' beside the repository")
    return folder
