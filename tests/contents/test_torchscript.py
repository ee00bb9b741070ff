"""Reading TorchScript archives: what is in them, and that nothing in them is run."""

import contextlib
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from edgekit.artifact import Tensor
from edgekit.contents import StoredTensor, read_contents
from edgekit.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch:DeprecationWarning", "ignore:.*torch.q")


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.again = self.layer
        self.register_buffer("shift", torch.ones(3, dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.again(self.layer(x)[:, :1].repeat(1, 4)) + self.shift)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "small.pt"
    torch.jit.trace(Small().eval(), torch.ones(2, 4)).save(str(path))
    return path


def test_contents_list_what_the_archive_stores(archive: Path) -> None:
    contents = read_contents(archive)
    assert contents.format == "torchscript"
    assert contents.bytes == archive.stat().st_size
    # Another's archive says neither dtypes nor shapes of what it takes.
    assert contents.inputs == (Tensor("x", "unknown", ()),)
    stored = {(tensor.dtype, tensor.shape, tensor.bytes) for tensor in contents.tensors}
    assert {("float32", (3, 4), 48), ("float32", (3,), 12), ("int32", (3,), 12)} <= stored
    assert StoredTensor("layer.weight", "float32", (3, 4), 48) in contents.tensors
    assert len([t for t in contents.tensors if t.shape == (3, 4)]) == 1
    assert contents.ops["aten::relu"] == 1


def test_quantized_weights_count_with_their_scales(tmp_path: Path) -> None:
    from torch.ao.quantization import quantize_dynamic

    module = quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(8, 4)), dtype=torch.qint8)
    torch.jit.trace(module, torch.ones(2, 8)).save(str(tmp_path / "small.pt"))
    contents = read_contents(tmp_path / "small.pt")
    assert contents.bytes_per_dtype()["int8"] == 32
    assert any(name.startswith("quantized::linear_dynamic") for name in contents.ops)


def test_a_flipped_byte_and_a_missing_end_are_refused(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        entry = next(e for e in opened.infolist() if e.filename.endswith("/data/0"))
    place = content.index(opened_bytes(archive, entry.filename), entry.header_offset)
    for damaged in (
        content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
        content[:-100],
        content[: len(content) // 2],
    ):
        (tmp_path / "bad.pt").write_bytes(damaged)
        with pytest.raises(ModelError, match=r"bad\.pt"):
            read_contents(tmp_path / "bad.pt")


def opened_bytes(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as opened:
        return opened.read(name)


def test_a_pickle_that_calls_something_is_not_obeyed(archive: Path, tmp_path: Path) -> None:
    mark = tmp_path / "was-here"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(mark), "w")

    sly = tmp_path / "sly.pt"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(sly, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            hostile = name.endswith("/data.pkl")
            target.writestr(name, pickle.dumps(Hostile(), 2) if hostile else content)
    with contextlib.suppress(ModelError):
        read_contents(sly)
    assert not mark.exists()


def test_what_torch_save_wrote_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "state.pt")
    with pytest.raises(ModelError, match="damaged or no torchscript"):
        read_contents(tmp_path / "state.pt")
