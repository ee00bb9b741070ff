"""Accuracy-driven pruning: its trace replayed with masks, what was planted found, its files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.hard_attention import describe
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.step import Context, apply_steps
from edgekit.steps.heldout import set_aside
from edgekit.steps.prune.accuracy_driven import PruneAccuracyDriven, Tried, read_trace
from edgekit.steps.prune.slicing import own_layers
from tests.steps.prune.pruned import hard, mask, masked, model_of, reader
from tests.tiny import tiny_texts

TEXTS = tuple(tiny_texts(400, longest=8))
GROUPS = 4


def answers(model: Model, rows: Rows) -> Any:
    assert model.preprocessor is not None
    return reference_outputs(model, model.preprocessor.encode(rows))


def sure(model: Model) -> Model:
    """The model with answers of all labels, far apart: a random one gives nearly one answer."""
    head = [each for each in model.module.modules() if isinstance(each, torch.nn.Linear)][-1]
    given = answers(model, Rows(texts=TEXTS))
    scale = 4 / float(given.std(0).mean())
    with torch.no_grad():
        head.weight.mul_(scale)
        head.bias.sub_(torch.from_numpy(given.mean(0))).mul_(scale)
    return model


def labelled(model: Model, wrong: float = 0.25) -> Rows:
    """Rows of which the model answers that share wrongly."""
    best = answers(model, Rows(texts=TEXTS)).argmax(1)
    shift = np.random.default_rng(0).random(len(best)) < wrong
    return Rows(texts=TEXTS, labels=tuple("abc"[n] for n in (best + shift) % 3))


def losses(model: Model, rows: Rows) -> Any:
    """Cross entropy of each row by numpy."""
    given = answers(model, rows).astype(np.float64)
    assert rows.labels is not None
    gold = np.array(["abc".index(label) for label in rows.labels])
    top = given.max(1, keepdims=True)
    lengths = np.log(np.exp(given - top).sum(1)) + top[:, 0]
    return lengths - given[np.arange(len(gold)), gold]


def spoil(model: Model, seed: int) -> Rows:
    """Rows that the model is good at, before a head of its last layer begins to shout noise.

    The layer itself does little, so that the noise is worse than to be without it.
    """
    with torch.no_grad():
        for part in ("heads", "neurons"):
            for parameter in reader(model, "bert", part, 2).parameters():
                parameter.mul_(0.3)
    rows = labelled(sure(model), wrong=0.1)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        reader(model, "bert", "heads", 2).weight[:, 6:12].normal_(0, 1, generator=chance)
    return rows


def replay(
    model: Model, judged: Rows, trace: list[Tried], top: int | None = None
) -> dict[tuple[int, str], list[int]]:
    """Every tried change again, with masks in transformers' own forward; what is left of each."""
    depth = len(own_layers(model))
    kept = {(n, "heads"): list(range(4)) for n in range(depth)}
    kept |= {(n, "neurons"): list(range(32)) for n in range(depth)}
    baseline = losses(model, judged)
    least = float(baseline.mean())
    expected = iter(trace)
    hardened: list[str] = []
    for layer in range(depth if top else 0):
        attempt = [*hardened, f"bert.encoder.layer.{layer}.attention.self"]
        with hard(model, attempt, top or 0):
            each = losses(model, judged)
        found = next(expected)
        assert (found.layer, found.part, found.first) == (layer + 1, "probabilities", top)
        assert each.mean() == pytest.approx(found.loss, abs=1e-5)
        assert found.accepted == (found.loss < least - 1e-7 and found.as_good > len(each) // 2)
        if found.accepted:
            hardened, least = attempt, found.loss

    def tried(layer: int, part: Any, units: list[int]) -> Tried:
        nonlocal least
        found = next(expected)
        assert (found.layer, found.part) == (layer + 1, part)
        assert (found.first, found.last) == (units[0], units[-1])
        left = [unit for unit in kept[layer, part] if unit not in units]
        changed = kept | {(layer, part): left}
        masks = [
            mask(4 if p == "heads" else 32, units) if units else None
            for (_, p), units in changed.items()
        ]
        readers = [reader(model, "bert", p, n) for n, p in changed]
        with masked(readers, masks), hard(model, hardened, top or 1):
            each = losses(model, judged)
        assert each.mean() == pytest.approx(found.loss, abs=1e-5)
        assert abs(int((each <= baseline + 1e-6).sum()) - found.as_good) <= len(each) // 10
        assert found.accepted == (found.loss < least - 1e-7 and found.as_good > len(each) // 2)
        if found.accepted:
            kept[layer, part] = left
            least = found.loss
        return found

    for layer in reversed(range(depth)):
        for part, count in (("neurons", GROUPS), ("heads", 4)):
            units, before = list(kept[layer, part]), least
            whole = tried(layer, part, units)
            if whole.accepted or whole.loss >= 1.1 * before:
                continue
            for group in np.array_split(units, count):
                if len(group) < len(kept[layer, part]):
                    tried(layer, part, group.tolist())
    assert next(expected, None) is None
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_the_trace_replays_with_masks_and_noise_goes(seed: int, tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", num_hidden_layers=3, seed=seed)
    rows = spoil(model, seed)
    context = Context(rows, 0, folder=tmp_path)
    after = apply_steps([PruneAccuracyDriven(groups=GROUPS)], model, context)
    save_model(after, tmp_path / "pruned")
    loaded = load_model(identify(str(tmp_path / "pruned")))
    trace = read_trace(loaded.lineage)
    _, judged = set_aside(rows, 0)
    kept = replay(model, judged, trace)
    assert 1 not in kept[2, "heads"]
    accepted = [each.loss for each in trace if each.accepted]
    assert accepted == sorted(accepted, reverse=True)
    assert losses(loaded, judged).mean() == pytest.approx(accepted[-1], abs=1e-5)
    assert losses(loaded, judged).mean() <= losses(model, judged).mean()
    assert [(layer.heads, layer.neurons) for layer in own_layers(loaded)] == [
        (len(kept[n, "heads"]), len(kept[n, "neurons"])) for n in range(3)
    ]


@pytest.mark.slow
def test_hard_attention_is_tried_first_and_kept_where_it_is_better(tmp_path: Path) -> None:
    """Labels are what the model answers with hard attention in its second layer of three."""
    model = sure(model_of(tmp_path / "model", num_hidden_layers=3))
    with hard(model, ["bert.encoder.layer.1.attention.self"], 2):
        rows = labelled(model, wrong=0.1)
    step = PruneAccuracyDriven(groups=GROUPS, hard_attention=2)
    after = apply_steps([step], model, Context(rows, 0, folder=tmp_path))
    save_model(after, tmp_path / "pruned")
    loaded = load_model(identify(str(tmp_path / "pruned")))
    trace = read_trace(loaded.lineage)
    _, judged = set_aside(rows, 0)
    replay(model, judged, trace, 2)
    assert [each.layer for each in trace[:3]] == [1, 2, 3]
    assert trace[1].accepted
    kept = {
        f"bert.encoder.layer.{each.layer - 1}.attention.self" for each in trace[:3] if each.accepted
    }
    assert set(describe(loaded.module)) == kept
    accepted = [each.loss for each in trace if each.accepted]
    assert accepted == sorted(accepted, reverse=True)
    assert losses(loaded, judged).mean() == pytest.approx(accepted[-1], abs=1e-5)
    # As many as there are tokens change nothing, and no tolerance takes it then.
    step = PruneAccuracyDriven(groups=GROUPS, hard_attention=40, tolerance=0.5)
    again = apply_steps([step], model, Context(rows, 0, folder=tmp_path))
    assert not describe(again.module)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "albert", "electra"])
def test_a_harmful_network_goes_whole(family: str, tmp_path: Path) -> None:
    """A network whose output drowns the state; in ALBERT it is every layer's."""
    model = model_of(tmp_path / "model", family)
    harmed = len(own_layers(model)) - 1
    chosen = reader(model, family, "neurons", harmed)
    with torch.no_grad():
        chosen.weight.mul_(1e-3)
        chosen.bias.zero_()
    rows = labelled(sure(model), wrong=0)
    with torch.no_grad():
        chosen.bias.normal_(0, 50)
    context = Context(rows, 0, folder=tmp_path)
    after = apply_steps([PruneAccuracyDriven(groups=GROUPS)], model, context)
    assert own_layers(after)[harmed].neurons == 0
    save_model(after, tmp_path / "pruned")
    loaded = load_model(identify(str(tmp_path / "pruned")))
    _, judged = set_aside(rows, 0)
    np.testing.assert_allclose(answers(loaded, judged), answers(after, judged), atol=1e-6)
    least = [each.loss for each in read_trace(after.lineage) if each.accepted][-1]
    assert losses(loaded, judged).mean() == pytest.approx(least, abs=1e-4)


def test_a_model_that_nothing_helps_stays(tmp_path: Path) -> None:
    """Labels are its own answers, of which it is sure."""
    model = sure(model_of(tmp_path / "model"))
    rows = labelled(model, wrong=0)
    _, judged = set_aside(rows, 0)
    context = Context(rows, 0, folder=tmp_path)
    after = apply_steps([PruneAccuracyDriven(groups=GROUPS)], model, context)
    assert losses(after, judged).mean() <= losses(model, judged).mean() + 1e-6


def test_a_tolerance_lets_more_go_and_the_loss_stays_within_it(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model")
    rows = labelled(model)
    _, judged = set_aside(rows, 0)
    first = losses(model, judged).mean()
    left = []
    for tolerance in (0.0, 0.1):
        step = PruneAccuracyDriven(groups=GROUPS, tolerance=tolerance)
        after = apply_steps([step], model, Context(rows, 0, folder=tmp_path))
        least = min([first, *(each.loss for each in read_trace(after.lineage) if each.accepted)])
        assert losses(after, judged).mean() < least + tolerance * first + 1e-6
        left.append(sum(layer.neurons + layer.heads for layer in own_layers(after)))
    assert left[1] < left[0]


def test_eval_rows_and_the_rows_learned_from_are_not_looked_at(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model")
    rows = labelled(model)
    learned, judged = set_aside(rows, 0)
    assert not set(learned.texts or ()) & set(judged.texts or ()) or len(set(TEXTS)) < len(TEXTS)
    others = [n for n, text in enumerate(rows.texts or ()) if text not in set(judged.texts or ())]
    texts = list(rows.texts or ())
    for n in others:
        texts[n] = "bank"
    spoiled = Rows(texts=tuple(texts), labels=rows.labels)
    one, two = (
        apply_steps(
            [PruneAccuracyDriven(groups=GROUPS)], model, Context(each, 0, folder=tmp_path)
        ).lineage
        for each in (rows, spoiled)
    )
    assert one == two


@pytest.mark.parametrize(
    ("family", "rows", "options", "said"),
    [
        ("bert", None, {}, "give --data"),
        ("bert", Rows(texts=TEXTS), {}, "needs training rows with labels"),
        ("bert", Rows(texts=TEXTS[:50], labels=("a",) * 50), {}, "too few; give at least 320"),
        ("bert", Rows(texts=TEXTS, labels=("a",) * 400), {"groups": 33}, "from 1 to the 32"),
        ("bert", Rows(texts=TEXTS, labels=("a",) * 400), {"groups": 0}, "from 1 to the 32"),
        ("bert", Rows(texts=TEXTS, labels=("a",) * 400), {"tolerance": 1}, "from 0 to below 1"),
        ("bert", Rows(texts=TEXTS, labels=("a",) * 400), {"hard_attention": 0}, "below the 64 tok"),
        ("bert", Rows(texts=TEXTS, labels=("a",) * 400), {"hard_attention": 64}, "below the 64"),
        ("mpnet", Rows(texts=TEXTS, labels=("a",) * 400), {}, "heads of mpnet"),
        ("mobilebert", Rows(texts=TEXTS, labels=("a",) * 400), {}, "neurons of mobilebert"),
        ("vit", None, {}, "only models of text"),
    ],
)
def test_refusals(
    family: str, rows: Rows | None, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = model_of(tmp_path, family)
    with pytest.raises(RecipeError, match=said):
        apply_steps([PruneAccuracyDriven(**options)], model, Context(rows, 0, folder=tmp_path))


def test_only_whole_sizes_are_predicted(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    after = apply_steps([PruneAccuracyDriven(groups=4)], model, Context(labelled(model), 0))
    assert after is model
