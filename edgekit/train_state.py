"""What a killed training goes on from: one safetensors file and one JSON in a folder.

The folder appears by one rename, so that it is whole or not there; the one before goes after
that. Nothing in it is a pickle. It holds what learns (parameters and buffers), the optimizer's
state, the state of torch's generators, and a record.
"""

import contextlib
import hashlib
import json
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import OutputError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgekit.examples import Examples
    from edgekit.train_processes import Processes

    Tensors = dict[str, torch.Tensor]

_STATE = "state.safetensors"
_RECORD = "record.json"
# Writing checkpoints may take this share of the time.
_SHARE = 0.05


@dataclass(frozen=True)
class Checkpoint:
    """One that was found. tensors: by part and name, ``model/classifier.bias``."""

    record: Mapping[str, Any]
    tensors: "Tensors"

    def part(self, name: str) -> "Tensors":
        """The tensors of a part, by their own names."""
        start = name + "/"
        return {
            key.removeprefix(start): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(start)
        }


class Checkpoints:
    """The checkpoints of one training in its folder; only the last one is kept.

    identity: digest of all that decides the training; a checkpoint of another one is removed.
    seconds: the least time between two; 0 is after every step, whatever it costs.
    """

    def __init__(self, folder: Path, identity: str, seconds: float) -> None:
        self.folder = folder
        self.identity = identity
        self.seconds = seconds
        self.next = time.perf_counter() + seconds

    def last(self) -> Checkpoint | None:
        """The newest one that is whole and of this training; anything else is removed."""
        found = None
        for path in sorted(self.folder.glob("checkpoint-*"), key=_step, reverse=True):
            if found is None and _step(path) >= 0:
                with contextlib.suppress(Exception):  # damaged in any way: as if it were not there
                    read = self.read(_step(path))
                    if read.record["identity"] == self.identity:
                        found = read
                        continue
            shutil.rmtree(path, ignore_errors=True)
        return found

    def read(self, step: int) -> Checkpoint:
        """The one of that step, whosever it is."""
        from safetensors.torch import load_file

        path = self.folder / f"checkpoint-{step}"
        record = json.loads((path / _RECORD).read_text(encoding="utf-8"))
        return Checkpoint(record, load_file(path / _STATE))

    def due(self) -> bool:
        """Whether it is time for another."""
        return time.perf_counter() >= self.next

    def save(self, step: int, record: Mapping[str, Any], parts: "Mapping[str, Tensors]") -> None:
        """Write one, then remove those before it. Raises OutputError when it cannot be written."""
        from safetensors.torch import save_file

        started = time.perf_counter()
        path = self.folder / f"checkpoint-{step}"
        partial = self.folder / f"checkpoint-{step}.partial"
        tensors = {
            f"{part}/{name}": tensor
            for part, named in parts.items()
            for name, tensor in named.items()
        }
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            save_file(tensors, partial / _STATE)
            text = json.dumps({"identity": self.identity, **record})
            (partial / _RECORD).write_text(text, encoding="utf-8")
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
        except OSError as error:
            raise OutputError(
                f"cannot write the training's state to {self.folder}: {error.strerror or error}; "
                "free some space there"
            ) from None
        for other in self.folder.glob("checkpoint-*"):
            if other != path:
                shutil.rmtree(other, ignore_errors=True)
        ended = time.perf_counter()
        self.next = ended + (max(self.seconds, (ended - started) / _SHARE) if self.seconds else 0)


def _step(path: Path) -> int:
    """A checkpoint's step; below all others for one that is not whole."""
    number = path.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else -1


def identity(module: "nn.Module", examples: "Examples", settings: Mapping[str, Any]) -> str:
    """Digest of the settings, the weights before training and the rows."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    arrays: dict[str, Any] = dict(examples.encoded.arrays)
    arrays |= {"lengths": examples.encoded.lengths}
    arrays |= {"labels": examples.labels, "teacher": examples.teacher}
    for name, tensor in module.state_dict().items():
        arrays["module/" + name] = tensor.detach().cpu().numpy()
    for name, parameter in module.named_parameters():
        digest.update(f"{name} {parameter.requires_grad}\n".encode())
    for name, array in arrays.items():
        if array is not None:
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


# What is in a checkpoint


def take(module: "nn.Module") -> "Tensors":
    """Copies, on the CPU, of all that training changes: parameters that learn, and buffers."""
    frozen = {
        name
        for name, each in module.named_parameters(remove_duplicate=False)
        if not each.requires_grad
    }
    return {
        # Cloned, since tied parameters share their memory and safetensors refuses that.
        name: tensor.detach().cpu().clone().contiguous()
        for name, tensor in module.state_dict().items()
        if name not in frozen
    }


def put(module: "nn.Module", tensors: "Tensors") -> None:
    """Write what ``take`` returned into the module, in place."""
    import torch

    own = module.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def take_optimizer(optimizer: "torch.optim.Optimizer") -> "Tensors":
    """The optimizer's state by the parameter's place: ``12.exp_avg``."""
    return {
        f"{place}.{name}": tensor.detach().cpu().contiguous()
        for place, state in optimizer.state_dict()["state"].items()
        for name, tensor in state.items()
    }


def put_optimizer(optimizer: "torch.optim.Optimizer", tensors: "Tensors") -> None:
    """Give a new optimizer of the same parameters the state that ``take_optimizer`` returned."""
    state: dict[int, Tensors] = {}
    for key, tensor in tensors.items():
        place, name = key.split(".")
        state.setdefault(int(place), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def take_chance(processes: "Processes") -> "Tensors":
    """The state of torch's generators in each process, uint8 [processes, …]."""
    import torch

    found = {"cpu": processes.gather(torch.get_rng_state())}
    if torch.cuda.is_available():
        found["cuda"] = processes.gather(torch.cuda.get_rng_state())
    return found


def put_chance(tensors: "Tensors", seed: int, processes: "Processes") -> None:
    """Set torch's generators to what ``take_chance`` returned.

    A process of which that says nothing draws numbers of its own; the first one keeps what it has.
    """
    import torch

    rank = processes.rank
    if rank and (not tensors or rank >= len(tensors["cpu"])):
        torch.manual_seed(int(np.random.default_rng([seed, rank]).integers(2**63)))
        return
    # Cloned, since torch reads a state from where its storage begins (2.13).
    if "cpu" in tensors:
        torch.set_rng_state(tensors["cpu"][rank].clone())
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"][rank].clone())


@contextlib.contextmanager
def chance_kept() -> Iterator[None]:
    """Whatever is drawn or seeded inside, all generators are afterwards as they were before."""
    import torch

    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
