"""Where things are inside each model family.

One file a family describes its modules and says how it runs: a step or an exporter asks the
description and never a family's own attribute names. The files import torch, so they are loaded
when a model of their family is.
"""

import difflib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekit.errors import ModelError
from edgekit.structure import is_absent, sharing_copy

if TYPE_CHECKING:
    from torch import Tensor, nn

# transformers' model_type, or for a light student ours, and the file here that knows it.
_FILES = {
    "albert": "albert",
    "bert": "bert",
    "distilbert": "distilbert",
    "edgekit-bilstm": "bilstm",
    "edgekit-cerberus": "cerberus",
    "edgekit-cmow": "cmow",
    "edgekit-cnn": "cnn",
    "edgekit-ngram": "ngram",
    "electra": "electra",
    "mobilebert": "mobilebert",
    "mobilenet_v2": "mobilenet_v2",
    "mpnet": "mpnet",
    "resnet": "resnet",
    "roberta": "roberta",
    "vit": "vit",
    "xlm-roberta": "roberta",
    "xlnet": "xlnet",
}
FAMILIES = tuple(_FILES)


@dataclass(frozen=True)
class Layer:
    """The parts of one encoder layer, each a module from [..., in] to [..., out].

    The numbers of heads and of neurons belong to the layer: pruning may have made them differ
    from the others', or taken a whole block away (see ``structure``). attention: what
    transformers' attention functions are told, where it may be hard (see ``hard_attention``).
    """

    query: "nn.Module"
    key: "nn.Module"
    value: "nn.Module"
    attention_output: "nn.Module"
    attention_norm: "nn.Module"
    up: "nn.Module"
    down: "nn.Module"
    output_norm: "nn.Module"
    activation: "Callable[[Tensor], Tensor]"
    head_width: int
    attention: "nn.Module | None" = None

    @property
    def heads(self) -> int:
        """0 where the attention is gone."""
        query: Any = self.query
        return 0 if is_absent(query) else query.weight.shape[0] // self.head_width

    @property
    def neurons(self) -> int:
        """Of the feed-forward network; 0 where it is gone."""
        up: Any = self.up
        return 0 if is_absent(up) else up.weight.shape[0]


@dataclass(frozen=True)
class Embeddings:
    """What turns token ids into the first states.

    words: from ids to rows; where it is factored (``factored.factored_table``) no one table.
    positions: ``None`` where positions enter in the attention. first_position: its row for the
    first token. types: ``None`` where the family has no token types. projection: to the width
    of the layers where the tables are narrower, applied after the norm.
    """

    words: "nn.Module"
    positions: "nn.Embedding | None" = None
    first_position: int = 0
    types: "nn.Embedding | None" = None
    norm: "nn.Module | None" = None
    projection: "nn.Module | None" = None


@dataclass(frozen=True)
class Head:
    """What makes logits: ``classifier(activation(hidden(state)))``.

    hidden: ``None`` where the classifier reads the encoder's own state.
    """

    classifier: "nn.Linear"
    hidden: "nn.Linear | None" = None
    activation: "Callable[[Tensor], Tensor] | None" = None

    def read(self, state: "Tensor") -> "Tensor":
        """What the classifier reads."""
        if self.hidden is None or self.activation is None:
            return state
        return self.activation(self.hidden(state))


@dataclass(frozen=True)
class Architecture:
    """One family.

    forward: the one clean forward of a ``Model``, for all exporters (see ``blocks``). Its type is
    left open, because ``model.py`` stands on this room.
    layers: of an encoder (the task model's ``base_model``), in the order in which they run; one
    that runs twice is there twice. embeddings: of a family that reads text.
    stack: where an encoder's layers are; ``None`` where they share weights, or there are none.
    head: of a text-classification model; it reads the summary token's state [B, D].
    last_norm: what gives an encoder's states, where that is not the last layer's ``output_norm``.
    token_types: whether the model reads them "never", for "pairs" of texts or "always".
    types_until: the last major version of transformers whose tokenizer makes them; a checkpoint
    of a later one was trained without.
    norm_first: whether norms stand before the parts of a layer, which alone read them (ViT), not
    behind, where the sum around the next part reads them too (BERT).
    frees_length: whether a TFLite graph of it can serve any length (see ``tflite_any_length``).
    cuts: what of a layer can be removed exactly through its ``Layer``: "heads" where nothing else
    knows their number, "neurons" where ``up`` and ``down`` are the layer's whole feed-forward.
    branches: whether layers stand side by side, so that they are no stack to be run in a row.
    reads_ngrams: whether its ids are those of n-grams (``edgekit.ngrams``), not of tokens.
    summary: the place of the token that stands for the whole text: 0, or -1 for the last.
    learns: whether the clean forward's gradients reach the model's own weights.
    masked_score: what a padded position's attention score is lowered by. MiniLM's answers on
    BANKING77 padded to 512 tokens are off by 1.3 with -20 and by rounding alone (1e-5) with -50;
    -100 leaves room for models with larger scores. Far below, static int8 suffers: its range
    has to hold the masked scores.
    """

    forward: "Callable[[Any, bool], nn.Module]"
    embeddings: Callable[[Any], Embeddings] | None = None
    layers: Callable[[Any], tuple[Layer, ...]] | None = None
    stack: "Callable[[Any], nn.ModuleList] | None" = None
    head: "Callable[[Any], Head] | None" = None
    last_norm: "Callable[[Any], nn.Module] | None" = None
    token_types: Literal["never", "pairs", "always"] = "never"
    types_until: int | None = None
    masked_score: float = -100.0
    norm_first: bool = False
    frees_length: bool = True
    learns: bool = True
    cuts: frozenset[str] = frozenset()
    branches: bool = False
    reads_ngrams: bool = False
    summary: int = 0

    @property
    def reads_text(self) -> bool:
        return self.embeddings is not None

    def task_head(self, module: Any, task: str) -> Head | None:
        """What makes the logits of a text model for this task; ``None`` where nothing does."""
        if task == "token-classification" and self.reads_text:
            return Head(module.classifier)
        return self.head(module) if task == "text-classification" and self.head else None

    def word_embeddings(self, module: Any) -> "nn.Embedding":
        """The word table of a task model; of a factored one, the table that has a row a token."""
        from edgekit.factored import is_table

        assert self.embeddings is not None
        words: Any = self.embeddings(module.base_model).words
        table: nn.Embedding = words.left if is_table(words) else words
        return table

    def keep_word_rows(self, module: Any, kept: Sequence[int]) -> Any:
        """A copy of the model that knows the tokens ``kept`` only, renumbered from zero.

        All other weights are shared with the original.
        """
        from torch import nn

        changed = sharing_copy(module)
        words = self.word_embeddings(changed)
        words.weight = nn.Parameter(words.weight.detach()[list(kept)])
        words.num_embeddings = len(kept)
        numbers = {old: new for new, old in enumerate(kept)}
        if words.padding_idx is not None:
            words.padding_idx = numbers.get(words.padding_idx)
        config = changed.config
        config.vocab_size = len(kept)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(config, name, numbers.get(getattr(config, name, -1)))
        return changed


def architecture(family: str) -> Architecture:
    """The description of a family, by transformers' ``model_type``. Imports torch.

    Raises ModelError when the family is not known.
    """
    check_family(family, family)
    described: Architecture = importlib.import_module(f"{__name__}.{_FILES[family]}").ARCHITECTURE
    return described


def check_family(family: object, source: str) -> None:
    """Raise ModelError, with the nearest name, unless we know the family. Imports nothing."""
    if isinstance(family, str) and family in _FILES:
        return
    near = difflib.get_close_matches(str(family), _FILES, n=1)
    raise ModelError(
        f"{source}: unknown architecture '{family}'"
        + (f", did you mean '{near[0]}'?" if near else "")
        + f" (known: {', '.join(_FILES)})"
    )
