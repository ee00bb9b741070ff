"""Contrastive pruning: its loss by numpy, its budgets, its banks, and a kill half-way."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.recipe import parse_step
from edgekit.stages.stage import step_fields
from edgekit.step import Context, apply_steps
from edgekit.steps.heldout import set_aside
from edgekit.steps.prune.banks import Bank, contrast, summaries
from edgekit.steps.prune.contrastive import PruneContrastive, _stages, schedule
from edgekit.steps.prune.slicing import own_layers
from tests.steps.prune.pruned import ROWS, model_of
from tests.tiny import tiny_checkpoint

STEP = PruneContrastive(ratio=0.5, step=0.3, epochs=1, batch=16)


def drawn_bank(seed: int = 0) -> tuple[Bank, Any, Any]:
    """A bank of 2 models and 9 rows of 5 labels, and the states of 4 of the rows."""
    chance = np.random.default_rng(seed)
    bank = Bank.of(list(chance.normal(size=(2, 9, 6)).astype(np.float32)), np.arange(9) % 5)
    return bank, torch.from_numpy(chance.normal(size=(4, 6))).float(), torch.tensor([0, 3, 5, 8])


def by_numpy(bank: Bank, states: Any, rows: Any, weights: tuple[float, float], seed: int) -> float:
    """The loss row by row, from its definition."""
    torch.manual_seed(seed)
    extra = torch.randint(18, (18,)).numpy()
    known = bank.summaries.double().numpy()
    z = states.double().numpy()
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    total = 0.0
    for weight, names in ((weights[0], np.arange(9) % 5), (weights[1], np.arange(9))):
        losses = []
        for i, row in enumerate(rows.tolist()):
            others = [(z[j], r) for j, r in enumerate(rows.tolist()) if j != i]
            others += [(known[m, r], r) for m in range(2) for r in rows.tolist()]
            others += [(known[e // 9, e % 9], e % 9) for e in extra]
            scores = np.array([z[i] @ each / 0.1 for each, _ in others])
            log_p = scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
            positive = np.array([names[r] == names[row] for _, r in others])
            if positive.any():
                losses.append(-log_p[positive].mean())
        total += weight * float(np.mean(losses))
    return total


@pytest.mark.parametrize("weights", [(3.0, 0.3), (1.0, 0.0), (0.0, 2.0)])
def test_the_loss_is_that_of_its_definition(weights: tuple[float, float]) -> None:
    bank, states, rows = drawn_bank()
    torch.manual_seed(7)
    found = contrast(states, rows, bank, *weights)
    assert float(found) == pytest.approx(by_numpy(bank, states, rows, weights, 7), rel=1e-5)


def test_no_gradient_reaches_a_candidate_and_nearer_is_better() -> None:
    bank, states, rows = drawn_bank()
    held = replace(bank, summaries=bank.summaries.clone().requires_grad_())
    states.requires_grad_()
    torch.manual_seed(0)
    loss = contrast(states, rows, held, 3.0, 0.3)
    loss.backward()
    assert held.summaries.grad is None
    assert states.grad is not None and bool(states.grad.abs().sum() > 0)
    before = []
    for share in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        nearer = (1 - share) * states.detach() + share * bank.summaries[0, rows]
        before.append(float(contrast(nearer, rows, bank, 0.0, 1.0)))
    assert before[0] > before[1] > before[2]


@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_the_schedule_rises_to_its_ratio(ratio: float, step: float) -> None:
    shares = schedule(ratio, step)
    assert shares[-1] == ratio
    assert list(shares) == sorted(set(shares))
    assert all(b - a <= step + 1e-6 for a, b in zip((0.0, *shares), shares, strict=False))


def test_the_papers_schedule() -> None:
    assert schedule(0.9, 0.1) == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert schedule(0.3, 0.5) == (0.3,)


def test_summaries_are_the_summary_tokens_states(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    assert model.preprocessor is not None and ROWS.texts is not None
    encoded = model.preprocessor.encode(ROWS)
    found = summaries(model, encoded, tmp_path / "kept.npy")
    base: Any = model.module.base_model
    for row in (0, 7):
        length = int(encoded.lengths[row])  # type: ignore[index]
        inputs = {
            k: torch.from_numpy(v[row : row + 1, :length]).long() for k, v in encoded.arrays.items()
        }
        with torch.no_grad():
            states = base(**inputs).last_hidden_state
        np.testing.assert_allclose(found[row], states[0, 0].numpy(), atol=1e-4)
    np.testing.assert_array_equal(np.load(tmp_path / "kept.npy"), found)


@dataclass(frozen=True)
class Done:
    step: PruneContrastive
    model: Model
    after: Model
    folder: Path


class _Killed(Exception):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A model of 3 layers and what the step makes of it, with a bank of an encoder before it."""
    folder = tmp_path_factory.mktemp("whole")
    pretrained = tiny_checkpoint(
        folder / "pretrained", "bert", "sentence-embedding", seed=5, num_hidden_layers=3
    )
    step = replace(STEP, pretrained=pretrained)
    model = model_of(folder / "model", num_hidden_layers=3)
    after = apply_steps([step], model, Context(ROWS, 0, folder=folder))
    return Done(step, model, after, folder / "step-0")


@pytest.mark.slow
def test_budgets_are_exact_and_the_model_loads_again(whole: Done, tmp_path: Path) -> None:
    model, after = whole.model, whole.after
    told = [each for each in after.lineage if each.startswith("prune-contrastive at ")]
    # floor(12 * 0.3) = 3 of 12 heads are gone, then 6; floor(96 * 0.3) = 28 of the neurons, in
    # eights 24, then 48.
    assert [each.partition(";")[0] for each in told] == [
        f"prune-contrastive at {share}%: {heads} heads left, by layer {by_layer(0, told[n])}, "
        f"{neurons} neurons left, by layer {by_layer(1, told[n])}"
        for n, (share, heads, neurons) in enumerate([(30, 9, 72), (50, 6, 48)])
    ]
    layers = own_layers(after)
    assert sum(each.heads for each in layers) == 6 and min(each.heads for each in layers) >= 1
    assert sum(each.neurons for each in layers) == 48
    assert all(each.neurons % 8 == 0 and each.neurons for each in layers)
    save_model(after, tmp_path)
    encoded = model.preprocessor.encode(ROWS)  # type: ignore[union-attr]
    np.testing.assert_allclose(
        reference_outputs(load_model(identify(str(tmp_path))), encoded),
        reference_outputs(after, encoded),
        atol=1e-6,
    )
    outline = apply_steps([whole.step], model, Context(ROWS, 0))
    shapes = [
        sum(t.numel() for t in each.module.state_dict().values()) for each in (outline, after)
    ]
    assert shapes[0] == shapes[1]


def by_layer(place: int, told: str) -> str:
    return told.split("by layer ")[place + 1].partition(",")[0].partition(";")[0]


def test_the_model_that_came_in_is_as_it_was(whole: Done, tmp_path: Path) -> None:
    model = whole.model
    same = model_of(tmp_path, num_hidden_layers=3)
    for (name, one), two in zip(
        model.module.state_dict().items(), same.module.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


@pytest.mark.slow
def test_a_kill_in_the_second_training_changes_nothing(whole: Done, tmp_path: Path) -> None:
    model, expected = whole.model, whole.after

    def kill(done: float, text: str) -> None:
        if text.startswith("share 2 of 2, step 1"):
            raise _Killed

    context = Context(ROWS, 0, folder=tmp_path)
    with pytest.raises(_Killed):
        apply_steps([whole.step], model, replace(context, on_progress=kill))
    began = {path.name for path in (tmp_path / "step-0").iterdir()}
    assert {"training-0", "snapshot-0.npy", "teacher.npy", "original.npy"} <= began
    after = apply_steps([whole.step], model, context)
    for (name, one), two in zip(
        expected.module.state_dict().items(), after.module.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


def test_there_is_a_bank_of_the_pretrained_encoder_and_of_the_original(whole: Done) -> None:
    learned, _ = set_aside(ROWS, 0)
    pretrained = load_model(identify(str(whole.step.pretrained)), task="sentence-embedding")
    for name, model in (("before", pretrained), ("original", whole.model)):
        encoded = model.preprocessor.encode(learned)  # type: ignore[union-attr]
        banked = np.load(whole.folder / f"{name}.npy")
        np.testing.assert_allclose(banked, summaries(model, encoded), atol=1e-5)


def test_the_checkpoint_that_a_step_names_belongs_to_its_key(tmp_path: Path) -> None:
    spec = parse_step(f"prune-contrastive:pretrained={tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = step_fields(spec)
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert before != step_fields(spec)


@pytest.mark.parametrize(
    ("family", "rows", "options", "said"),
    [
        ("bert", None, {}, "give --data"),
        ("bert", Rows(texts=ROWS.texts), {}, "needs training rows with labels"),
        ("bert", ROWS, {"ratio": 1.0}, "ratio is a share between 0 and 1"),
        ("bert", ROWS, {"ratio": 0.8}, "leaves 2 of 8 heads|at most 0.75"),
        ("bert", ROWS, {"ratio": 0.1}, "rounds to nothing"),
        ("bert", ROWS, {"step": 0.0}, "step is a share"),
        ("bert", ROWS, {"supervised": -1.0}, "supervised is a weight from 0 on"),
        ("bert", ROWS, {"epochs": 0.0}, "epochs must be above 0"),
        ("bert", ROWS, {"max_minutes": float("nan")}, "max-minutes must be above 0"),
        ("bert", ROWS, {"pretrained": Path("nowhere")}, "nowhere is no checkpoint folder"),
        ("mpnet", ROWS, {}, "heads of mpnet"),
        ("mobilebert", ROWS, {}, "neurons of mobilebert"),
        ("vit", None, {}, "only single-label text classification has"),
    ],
)
def test_refusals(
    family: str, rows: Rows | None, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = model_of(tmp_path, family)
    with pytest.raises(RecipeError, match=said):
        apply_steps([PruneContrastive(**options)], model, Context(rows, 0, folder=tmp_path))


def test_a_pretrained_checkpoint_of_another_width_is_refused(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model")
    for number, (family, sizes) in enumerate([("bert", {"hidden_size": 16}), ("distilbert", {})]):
        folder = tiny_checkpoint(tmp_path / str(number), family, "sentence-embedding", **sizes)
        with pytest.raises(RecipeError, match="another family or width"):
            apply_steps([PruneContrastive(pretrained=folder)], model, Context(ROWS, 0))


@pytest.mark.slow
def test_rows_set_aside_rank_nothing(whole: Done, tmp_path: Path) -> None:
    """Texts and labels of the judged rows are others'; the model that comes of it is the same."""
    _, judged = set_aside(ROWS, 0)
    aside = set(judged.texts or ())
    texts = tuple("bank" if text in aside else text for text in ROWS.texts or ())
    labels = tuple(
        "b" if text in aside else label
        for text, label in zip(ROWS.texts or (), ROWS.labels or (), strict=True)
    )
    other = Context(Rows(texts=texts, labels=labels), 0, folder=tmp_path)
    after = apply_steps([whole.step], whole.model, other)
    ours, theirs = (each.module.state_dict() for each in (after, whole.after))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_step_of_next_to_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"step must be at least 0\.01"):
        replace(STEP, step=1e-12).requires(model_of(tmp_path), Context(ROWS, 0))


def test_a_share_at_which_nothing_more_goes_is_passed_over(tmp_path: Path) -> None:
    """Of 8 heads and 64 neurons at hundredths: four heads, and four times eight neurons."""
    model = model_of(tmp_path)
    stages = _stages(model, schedule(0.5, 0.01))
    assert stages == [0.13, 0.25, 0.38, 0.5]
