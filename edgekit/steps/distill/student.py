"""A smaller model of the same family, to be taught: fewer layers, or another shape.

Rules:

1. Without ``hidden``, ``ffn`` and ``heads`` it is the model with ``layers`` of its layers, byte for
   byte, in order; embeddings and head stay. ``init`` says which, from 1: ``uniform`` every N/M-th
   up to the last, ``top``, ``bottom``, ``distilbert`` (1, 3, 5, 8, 10 and 12 of 12: Sanh et al.
   2019, arXiv 1910.01108, and its code), or a list such as ``2-4-6``.
2. With any of them it is fresh: the family's own random init, by the seed. With ``words=pca`` its
   tables of words, positions and types are the model's on the directions in which the word table
   varies most; with ``words=random`` they are fresh too.
3. Vocabulary, task and labels stay. What is pruned or factored already can only lose layers: its
   shapes are not those that a config alone builds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekit.errors import RecipeError
from edgekit.steps.distill.lessons import layer_pairs
from edgekit.steps.needs import need_encoder, need_float

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.step import Context

# No width of a text encoder is beyond this.
_LARGEST = 16384
# Sanh et al.'s layers, from 1.
_DISTILBERT = (1, 3, 5, 8, 10, 12)


@dataclass(frozen=True)
class Student:
    """Makes a smaller model of the same family; follow it with distill.

    layers: how many. init: the layers that it begins as. hidden, ffn, heads: its width, neurons
    and heads, for a fresh one. words: what a fresh one's word table begins as.
    """

    layers: int
    init: str | None = None
    hidden: int | None = None
    ffn: int | None = None
    heads: int | None = None
    words: Literal["pca", "random"] = "pca"

    def requires(self, model: Model, context: Context) -> None:
        from edgekit.steps.prune.drop_layers import depth_of

        need_float("student", model)
        if self.layers < 1:
            raise RecipeError(f"student: layers must be at least 1, is {self.layers}")
        if not self._fresh:
            depth = depth_of(model)
            if self.layers >= depth:
                raise RecipeError(
                    f"student: the model has {depth} layers, so that {self.layers} are no fewer; "
                    "give a smaller number, or a hidden, ffn or heads of its own"
                )
            kept_layers(self.init or "uniform", self.layers, depth)
            return
        if self.init is not None:
            raise RecipeError(
                "student: init copies layers, and those of another shape are fresh; leave init "
                "out, or hidden, ffn and heads"
            )
        described = need_encoder("student", model)
        if described.norm_first or not described.reads_text or not described.learns:
            raise RecipeError("student: only text encoders can be made in another shape")
        self._config(model)
        from edgekit import structure

        if structure.record(model.module) is not None:
            raise RecipeError(
                "student: this model has shapes of its own already; put the step before those that "
                "prune or factorize"
            )

    def apply(self, model: Model, context: Context) -> Model:
        from edgekit.steps.prune.drop_layers import depth_of, keep_layers

        if not self._fresh:
            kept = kept_layers(self.init or "uniform", self.layers, depth_of(model))
            listed = ", ".join(str(layer + 1) for layer in kept)
            note = f"student: layers {listed} of {depth_of(model)}"
            return model.with_module(keep_layers(model, kept), note)
        module = self._made(model, context.seed)
        config: Any = module.config
        note = (
            f"student: {config.num_hidden_layers} fresh layers of width {config.hidden_size}, "
            f"{config.num_attention_heads} heads and {_ffn(config)} neurons, {self.words} words"
        )
        return model.with_module(module, note)

    def ensures(self, before: Model, after: Model) -> None:
        from edgekit.steps.prune.drop_layers import depth_of

        if depth_of(after) != self.layers:
            raise RecipeError("student: another number of layers was made; a bug of edgekit")

    @property
    def _fresh(self) -> bool:
        return not self.hidden is self.ffn is self.heads is None

    def _config(self, model: Model) -> Any:
        """The family's config with this shape. Raises RecipeError for one that cannot be."""
        import copy

        whole: Any = model.module
        config = copy.deepcopy(whole.config)
        for name, value in (("hidden", self.hidden), ("ffn", self.ffn), ("heads", self.heads)):
            if value is not None and not 1 <= value <= _LARGEST:
                raise RecipeError(f"student: {name} must be from 1 to {_LARGEST}, is {value}")
        before = config.hidden_size
        config.num_hidden_layers = self.layers
        config.hidden_size = self.hidden or before
        config.num_attention_heads = self.heads or config.num_attention_heads
        setattr(config, _ffn_name(config), self.ffn or _ffn(config))
        if getattr(config, "embedding_size", None) == before:
            config.embedding_size = config.hidden_size
        if config.hidden_size % config.num_attention_heads:
            raise RecipeError(
                f"student: a width of {config.hidden_size} does not part into "
                f"{config.num_attention_heads} heads; give heads a number that divides it"
            )
        if config.hidden_size > before and self.words == "pca":
            raise RecipeError(
                f"student: words=pca makes the word table narrower, and {config.hidden_size} is "
                f"wider than {before}; take words=random"
            )
        return config

    def _made(self, model: Model, seed: int) -> Any:
        """Rule 2."""
        import torch

        from edgekit.checkpoint import quiet

        whole: Any = model.module
        device = next(whole.parameters()).device
        config = self._config(model)
        config._attn_implementation = "eager"
        with quiet(), torch.random.fork_rng(), device:
            torch.manual_seed(seed)
            made = type(whole)(config)
        made = made.to(device).eval()
        if self.words == "pca" and device.type != "meta":
            _project_tables(model, made)
        return made


def kept_layers(init: str, count: int, depth: int) -> list[int]:
    """Rule 1: layers from 0, ascending. Raises RecipeError."""
    if init == "distilbert":
        if (count, depth) != (len(_DISTILBERT), 12):
            raise RecipeError(
                f"student: init=distilbert takes 6 of 12 layers, not {count} of {depth}; list the "
                "layers"
            )
        return [layer - 1 for layer in _DISTILBERT]
    try:
        pairs = layer_pairs(init, count, depth)
    except RecipeError as error:
        said = str(error).replace("distill: map", "student: init", 1).replace("map=", "init=")
        raise RecipeError(said) from None
    kept = [layer - 1 for _, layer in pairs]
    if sorted(set(kept)) != kept:
        raise RecipeError(f"student: init lists layers in order, each once, and {init} does not")
    return kept


def _project_tables(model: Model, made: Any) -> None:
    """The tables on the word table's first principal directions, with its mean as a constant."""
    import torch

    described = model.architecture
    assert described is not None and described.embeddings is not None
    whole: Any = model.module
    theirs, ours = described.embeddings(whole.base_model), described.embeddings(made.base_model)
    words: Any = theirs.words
    table: Any = ours.words
    with torch.no_grad():
        rows = words.weight.double()
        mean = rows.mean(0)
        _, _, directions = torch.linalg.svd(
            (rows - mean).T @ (rows - mean) / len(rows), full_matrices=False
        )
        basis = directions[: table.weight.shape[1]].T
        table.weight.copy_((rows - mean) @ basis)
        if ours.positions is not None and theirs.positions is not None:
            ours.positions.weight.copy_((theirs.positions.weight.double() + mean) @ basis)
        if ours.types is not None and theirs.types is not None:
            ours.types.weight.copy_(theirs.types.weight.double() @ basis)


def _ffn_name(config: Any) -> str:
    return "hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size"


def _ffn(config: Any) -> int:
    return int(getattr(config, _ffn_name(config)))
