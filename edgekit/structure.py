"""How a compressed model is saved: shapes that differ from the family's own, in ``config.json``.

transformers builds a model from its config, where one number stands for the width of all layers.
A pruned model has other widths in each, and so its config has one key more, ``edgekit``:

- ``shapes``: of each tensor that differs from what the rest of the config builds, by name.
- ``tied``: a module and the other module that it is, of which alone the file has the weights.
- ``factored``: what is a product of smaller tensors, if anything is (see ``factored``).
- ``unit_length``: the classifier, if it reads its input at length 1 (see there).
- ``hard_attention``: what counts its largest probabilities alone, if anything does (see there).
- ``absent``: projections that were removed with their whole block. In their place is a
  ``Threshold`` that nothing reaches: it has no weights and gives zeros of its input's shape, so
  that transformers' own forward adds nothing to the state. The clean forward skips the block.

A sentence embedding may have one part more, ``projection``: a Linear behind the mean of its states,
which the mean goes through before its length is made 1.

All else is as transformers has it: fewer layers are fewer ``num_hidden_layers``, fewer tokens a
smaller ``vocab_size``. Nothing of edgekit is needed to load it again (docs/steps.md):

    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_config(config)
    for name in config.edgekit["absent"]:
        model.set_submodule(name, torch.nn.Threshold(float("inf"), 0))
    for name, of in config.edgekit["tied"].items():
        model.set_submodule(name, model.get_submodule(of))
    for name, tensor in load_file(folder + "/model.safetensors").items():
        owner, _, last = name.rpartition(".")
        part = model.get_submodule(owner)
        setattr(part, last, tensor if last in part._buffers else torch.nn.Parameter(tensor))
        if getattr(part, "groups", 1) > 1:
            part.groups = len(tensor)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

KEY = "edgekit"
_PROJECTION = "projection"


def record(module: Any) -> dict[str, Any] | None:
    """What ``config.json`` has to say besides the family's own fields; ``None`` if nothing."""
    from edgekit import factored, hard_attention, unit_length

    tied = _tied(module)
    products = factored.describe(module)
    absent = [name for name, part in module.named_modules() if is_absent(part)]
    plain = {name: tuple(t.shape) for name, t in _outline(module).state_dict().items()}
    shapes = {}
    for name, tensor in module.state_dict().items():
        made = factored.inside(name, products)
        if name not in plain and not made and not _inside(name, (*tied, _PROJECTION)):
            raise ModelError(f"{name} is no part of this model's family, and cannot be saved")
        if (made or tuple(tensor.shape) != plain.get(name)) and not _inside(name, tied):
            shapes[name] = list(tensor.shape)
    found = {"shapes": shapes, "tied": tied, "absent": absent}
    rare = {
        "factored": products,
        "hard_attention": hard_attention.describe(module),
        "unit_length": unit_length.describe(module),
    }
    found |= {name: said for name, said in rare.items() if said}
    return found if any(found.values()) else None


def save(module: Any, folder: Path, differs: Mapping[str, Any]) -> None:
    """Write ``config.json`` and ``model.safetensors``, each weight once."""
    import copy

    from safetensors.torch import save_file

    config = copy.deepcopy(module.config)
    config.architectures = [type(module).__name__]
    setattr(config, KEY, dict(differs))
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in seen and not _inside(name, differs["tied"]):
            kept[name] = tensor.contiguous()
            if tensor.numel():
                seen.add(tensor.data_ptr())
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def rebuild(module: Any, differs: Mapping[str, Any], tensors: Mapping[str, Tensor] | None) -> None:
    """Give ``module``, as its config alone builds it, the saved shapes and weights in place.

    tensors: of the file; ``None`` for a module on the meta device, of which only shapes count.
    Raises ModelError when the file lacks a weight or holds another shape than recorded.
    """
    import torch

    from edgekit import factored, hard_attention, unit_length

    for name in differs["absent"]:
        module.set_submodule(name, absent_part())
    for name, of in differs["tied"].items():
        module.set_submodule(name, module.get_submodule(of))
    if f"{_PROJECTION}.weight" in differs["shapes"]:
        project(module, *differs["shapes"][f"{_PROJECTION}.weight"])
    if "factored" in differs:
        factored.install(module, differs["factored"], differs["shapes"])
    for name, top in differs.get("hard_attention", {}).items():
        hard_attention.harden(module, module.get_submodule(name), top)
    for name in differs.get("unit_length", ()):
        unit_length.install(module, name)
    if tensors is None:
        for name, shape in differs["shapes"].items():
            place(module, name, torch.empty(shape, device="meta"))
        return
    known = module.state_dict(keep_vars=True)
    held = {id(known[name]) for name in tensors if name in known}
    for name, tensor in known.items():
        shape = differs["shapes"].get(name, list(tensor.shape))
        if id(tensor) not in held or (name in tensors and list(tensors[name].shape) != shape):
            raise ModelError(
                f"config.json says that {name} is {shape}, and model.safetensors does not hold "
                "that; save the two together"
            )
    for name, tensor in tensors.items():
        place(module, name, tensor)


def sharing_copy(module: Any) -> Any:
    """A copy whose parts may be replaced; its weights are the original's until they are."""
    import copy

    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def place(module: Any, name: str, tensor: Tensor) -> None:
    """Put a weight of any shape where ``name`` says; its module's own sizes follow."""
    import torch
    from torch import nn

    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    if last in owner._buffers:
        owner._buffers[last] = tensor
        return
    frozen = not tensor.is_floating_point()
    value = tensor if frozen else tensor.to(torch.float32)
    setattr(owner, last, nn.Parameter(value, requires_grad=not frozen))
    if last == "weight":
        _fit(owner)


def project(module: Any, outputs: int, inputs: int) -> nn.Linear:
    """Give an encoder a projection, whose weights are on the meta device."""
    from torch import nn

    made = nn.Linear(inputs, outputs, device="meta")
    module.add_module(_PROJECTION, made)
    return made


def projection(module: Any) -> nn.Linear | None:
    """What the mean of an encoder's states goes through, if anything."""
    found: nn.Linear | None = getattr(module, _PROJECTION, None)
    return found


def absent_part() -> nn.Module:
    """What stands for a projection whose whole block is gone: zeros of its input's shape."""
    from torch import nn

    return nn.Threshold(float("inf"), 0)


def is_absent(part: object) -> bool:
    """Whether this stands for a projection that is gone."""
    from torch import nn

    return isinstance(part, nn.Threshold)


def _fit(owner: nn.Module) -> None:
    """Sizes that a module says beside its weight's; only grouped convolutions compute with them."""
    from torch import nn

    weight: Any = owner.weight
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = weight.shape
    elif isinstance(owner, nn.Embedding):
        owner.num_embeddings, owner.embedding_dim = weight.shape
    elif isinstance(owner, nn.Conv2d):
        by_channel = owner.groups > 1 and owner.groups == owner.in_channels
        owner.groups = weight.shape[0] if by_channel else owner.groups
        owner.out_channels, owner.in_channels = weight.shape[0], weight.shape[1] * owner.groups
    elif isinstance(owner, nn.BatchNorm2d):
        owner.num_features = weight.shape[0]


def _outline(module: Any) -> Any:
    """The module as its config alone builds it, on the meta device."""
    import copy

    import torch

    config = copy.deepcopy(module.config)
    if hasattr(config, KEY):
        delattr(config, KEY)
    with torch.device("meta"):
        return type(module)(config)


def _tied(module: Any) -> dict[str, str]:
    """Modules that are in the tree twice: the later name, and the first."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        known = first.setdefault(id(part), name)
        if known != name and not _inside(name, tied):
            tied[name] = known
    return tied


def _inside(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)
