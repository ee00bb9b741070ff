"""Train a classification head on a frozen BERT encoder.

Rules:

1. The encoder's weights stay byte for byte what they were; only pooler and classifier learn.
2. A frozen encoder answers the same in every epoch, so that its [CLS] states are computed once.
3. The head learns from smoothed labels (Szegedy et al. 2016, section 7) and from states with
   Gaussian noise (Bishop 1995), so that its answers survive small changes of the encoder.
4. Labels are numbered in the order in which the training rows first name them.
5. The outcome depends on the inputs alone: a fixed seed, on the CPU.
"""

import csv
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.parallel import parallel

if TYPE_CHECKING:
    import torch
    from transformers import BertForSequenceClassification

_SEED = 0
# Rows in one pass through the encoder: more of them no longer fit the processor's cache.
_ENCODER_BATCH = 32
_HEAD_BATCH = 256
_EPOCHS = 40
_LEARNING_RATE = 3e-3
# Smoothed labels and noisy states leave the head a margin for what compression changes in them.
_LABEL_SMOOTHING = 0.1
_STATE_NOISE = 0.3
# The share of the time that the encoder takes.
_ENCODER_SHARE = 0.95


def train_checkpoint(
    encoder: Path, train: Path, folder: Path, on_progress: Callable[[float], None]
) -> None:
    """Write the classifier as a Hugging Face checkpoint into the new ``folder``.

    encoder: a BertModel checkpoint. train: a CSV with the columns ``text`` and ``category``.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig, BertForSequenceClassification

    with train.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels = list(dict.fromkeys(row["category"] for row in rows))
    config = BertConfig.from_pretrained(
        encoder,
        architectures=["BertForSequenceClassification"],
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = BertForSequenceClassification(config).eval()
        # Not strict, since old checkpoints also hold a table of position numbers.
        model.bert.load_state_dict(load_file(encoder / "model.safetensors"), strict=False)
        states = _cls_states(
            model, encoder / "tokenizer.json", [r["text"] for r in rows], on_progress
        )
        gold = torch.tensor([labels.index(row["category"]) for row in rows])
        _train_head(model, states, gold, on_progress)

    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(encoder / name, folder / name)


def _cls_states(
    model: "BertForSequenceClassification",
    tokenizer_json: Path,
    texts: Sequence[str],
    on_progress: Callable[[float], None],
) -> "torch.Tensor":
    """The encoder's last state of each text's first token: float32 [N, hidden]."""
    import torch
    from tokenizers import Tokenizer
    from torch.nn.utils.rnn import pad_sequence

    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    tokenizer.no_padding()
    tokenizer.enable_truncation(model.config.max_position_embeddings)
    ids = [torch.tensor(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    by_length = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    batches = [
        by_length[start : start + _ENCODER_BATCH] for start in range(0, len(ids), _ENCODER_BATCH)
    ]

    def encode(batch: list[int]) -> torch.Tensor:
        chosen = [ids[row] for row in batch]
        padded = pad_sequence(
            chosen, batch_first=True, padding_value=model.config.pad_token_id or 0
        )
        mask = pad_sequence([torch.ones_like(row) for row in chosen], batch_first=True)
        with torch.no_grad():
            output = model.bert(input_ids=padded, attention_mask=mask)
        first: torch.Tensor = output.last_hidden_state[:, 0]
        return first

    states = torch.empty(len(ids), model.config.hidden_size)
    for number, (batch, found) in enumerate(zip(batches, parallel(encode, batches), strict=True)):
        states[batch] = found
        on_progress(_ENCODER_SHARE * (number + 1) / len(batches))
    return states


def _train_head(
    model: "BertForSequenceClassification",
    states: "torch.Tensor",
    gold: "torch.Tensor",
    on_progress: Callable[[float], None],
) -> None:
    """Fit pooler and classifier to ``gold`` (int64 [N]), given the encoder's ``states``."""
    import torch

    pooler, classifier = model.bert.pooler, model.classifier
    assert pooler is not None
    optimizer = torch.optim.AdamW(
        [*pooler.parameters(), *classifier.parameters()], lr=_LEARNING_RATE
    )
    steps = -(-len(gold) // _HEAD_BATCH) * _EPOCHS
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    noise = _STATE_NOISE * states.std()
    for epoch in range(_EPOCHS):
        for batch in torch.randperm(len(gold)).split(_HEAD_BATCH):
            noisy = states[batch] + noise * torch.randn_like(states[batch])
            logits = classifier(pooler(noisy[:, None]))
            loss = torch.nn.functional.cross_entropy(
                logits, gold[batch], label_smoothing=_LABEL_SMOOTHING
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        on_progress(_ENCODER_SHARE + (1 - _ENCODER_SHARE) * (epoch + 1) / _EPOCHS)
