"""The training loop: it learns, goes on after a kill, keeps to its time, and says when it fails."""

import itertools
import os
import pickle
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import DataError, TrainingError, UsageError
from edgekit.examples import Batch, Examples, batches, collate, teacher_outputs, token_labels
from edgekit.preprocess import Encoded
from edgekit.train import Training, train
from edgekit.train_curves import curves_in
from tests.fresh import Fresh

from .tiny_training import TRAINING, bag, cross_entropy, learn, texts

STEPS = 39


def weights(module: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    return {name: each.detach().numpy().copy() for name, each in module.state_dict().items()}


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one) and len(one) == len(other)


# Learning


def test_it_learns_and_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    examples, module = texts(), bag()
    report = learn(tmp_path, module, on_progress=lambda *each: told.append(each))
    inputs = [torch.from_numpy(array).long() for array in examples.encoded.arrays.values()]
    right = (module.eval()(*inputs).argmax(1).numpy() == examples.labels).mean()
    assert right > 0.9
    assert (report.steps, report.planned, report.epochs) == (STEPS, STEPS, 3.0)
    assert report.note is None and report.loss < report.losses[0] / 2
    assert [fraction for fraction, _ in told] == [step / STEPS for step in range(1, STEPS + 1)]
    assert told[0][1].startswith(f"step 1 of {STEPS}, loss 0.")


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    first, again, other = bag(), bag(), bag()
    reports = [
        learn(tmp_path / "a", first),
        learn(tmp_path / "b", again),
        learn(tmp_path / "c", other, training=replace(TRAINING, seed=6)),
    ]
    assert same(weights(first), weights(again))
    assert reports[0].losses == reports[1].losses
    assert not same(weights(first), weights(other))


def test_only_what_requires_a_gradient_learns_and_the_mode_stays(tmp_path: Path) -> None:
    module = bag().eval()
    module.words.weight.requires_grad_(False)
    seen = []
    module.dropout.register_forward_hook(lambda layer, *_: seen.append(layer.training))
    before = weights(module)
    learn(tmp_path, module)
    after = weights(module)
    assert np.array_equal(before["words.weight"], after["words.weight"])
    assert not np.array_equal(before["head.weight"], after["head.weight"])
    assert seen and not any(seen) and not module.training


def test_a_traced_module_learns_in_eval_mode(tmp_path: Path) -> None:
    module = torch.fx.symbolic_trace(bag().eval())
    report = learn(tmp_path, module)
    assert report.loss < report.losses[0] / 2


def test_tied_parameters_and_what_a_kill_leaves_of_them(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = bag()
            self.two = self.one

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.one(*inputs) + self.two(*inputs)

    whole, cut = Tied(), Tied()
    learn(tmp_path / "whole", whole)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", cut, on_progress=interrupt_at(20))
    cut = Tied()
    learn(tmp_path / "cut", cut)
    assert same(weights(whole), weights(cut))


def test_accumulated_batches_are_one_step_of_their_mean(tmp_path: Path) -> None:
    """Pictures' way, without lengths: two halves of a batch give the step of the whole."""
    chance = np.random.default_rng(0)
    arrays = {"x": chance.normal(size=(64, 4)).astype(np.float32)}
    examples = Examples(Encoded(arrays, None), labels=chance.normal(size=64))

    def squares(module: nn.Module, batch: Batch) -> torch.Tensor:
        assert batch.labels is not None and batch.inputs["x"].dtype == torch.float32
        return ((batch.run(module)[:, 0] - batch.labels) ** 2).mean()

    ends = []
    for size, accumulated in ((16, 1), (8, 2)):
        torch.manual_seed(0)
        module = nn.Linear(4, 1)
        training = Training(batch=size, gradient_accumulation=accumulated, learning_rate=1e-2)
        report = train(module, examples, squares, training, folder=tmp_path / str(size))
        assert report.steps == 12
        ends.append(module.weight.detach().numpy())
    assert ends[0] == pytest.approx(ends[1], abs=1e-5)


def test_the_learning_rate_rises_and_ends_near_zero(tmp_path: Path) -> None:
    """Seen from outside: with a constant gradient AdamW moves a weight by the learning rate."""
    examples = Examples(Encoded({"x": np.ones((100, 1), np.float32)}, None))
    places: list[float] = []

    def slope(module: nn.Module, batch: Batch) -> torch.Tensor:
        places.append(float(module.bias.detach()))
        return batch.run(module).mean()

    for schedule in ("linear", "cosine"):
        places.clear()
        module = nn.Linear(1, 1)
        training = Training(
            epochs=1, batch=1, learning_rate=1.0, schedule=schedule, weight_decay=0.0
        )
        train(module, examples, slope, training, folder=tmp_path / schedule)
        moves = -np.diff([*places, float(module.bias.detach())])
        assert moves.argmax() == pytest.approx(10, abs=1)
        assert moves[:10] == pytest.approx(np.arange(1, 11) / 11, abs=0.01)
        assert moves.max() == pytest.approx(1, abs=0.01) and moves[-1] < 0.02
        assert moves[55] == pytest.approx(0.5, abs=0.02)


def test_scores_come_after_each_epoch_and_disturb_nothing(tmp_path: Path) -> None:
    def evaluate() -> dict[str, float]:
        return {"drawn": float(torch.rand(()))}

    plain, scored = bag(), bag()
    learn(tmp_path / "plain", plain)
    report = learn(tmp_path / "scored", scored, evaluate=evaluate)
    assert [step for step, _ in report.scores] == [13, 26, 39]
    assert same(weights(plain), weights(scored))


# Precision, patience, curves


def test_half_the_bits_learn_as_well_and_weights_stay_whole(tmp_path: Path) -> None:
    module, seen = bag(), []

    def loss(module: nn.Module, batch: Batch) -> torch.Tensor:
        seen.append(batch.run(module).dtype)
        return cross_entropy(module, batch)

    training = replace(TRAINING, precision="bf16")
    report = train(module, texts(), loss, training, folder=tmp_path)
    whole = learn(tmp_path / "whole", bag())
    assert set(seen) == {torch.bfloat16}
    assert report.loss < report.losses[0] / 2 and report.losses != whole.losses
    assert {each.dtype for each in module.parameters()} == {torch.float32}


def scores_of(values: list[float]) -> tuple[Callable[[], dict[str, float]], list[Any]]:
    """An evaluation that returns these one after the other, and a list of its calls."""
    seen: list[Any] = []

    def evaluate() -> dict[str, float]:
        seen.append(len(seen))
        return {"accuracy": values[len(seen) - 1], "other": -1.0}

    return evaluate, seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "patience", "done", "kept"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.9], 2, 4, 2),
        ([0.1, 0.3, 0.2, 0.4, 0.1], 2, 5, 4),
        ([0.5, 0.4, 0.9, 0.9, 0.9], 1, 2, 1),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 1, 5, 5),
    ],
)
def test_patience_stops_at_its_epoch_and_the_best_is_put_back(
    tmp_path: Path, values: list[float], patience: int, done: int, kept: int
) -> None:
    """Epochs have 13 steps. What is put back is what a run that was cut there had."""
    evaluate, seen = scores_of(values)
    training = replace(TRAINING, epochs=5, patience=patience)
    module, best = bag(), bag()
    report = learn(tmp_path / "a", module, training=training, evaluate=evaluate)
    assert (len(seen), len(report.losses), report.steps) == (done, 13 * done, 13 * kept)
    assert report.restored == (None if kept == done else 13 * kept)
    assert (report.note is None) == (kept == done == 5)
    if done < 5:
        assert report.note is not None
        assert f"stopped after step {13 * done} of 65, since accuracy was not" in report.note
    with pytest.raises(KeyboardInterrupt):
        learn(
            tmp_path / "b",
            best,
            training=replace(training, patience=9),
            evaluate=scores_of(values)[0],
            on_progress=interrupt_at(13 * kept),
        )
    assert same(weights(module), weights(best))


def test_patience_outlives_a_kill(tmp_path: Path) -> None:
    values = [0.1, 0.3, 0.2, 0.1, 0.9]
    training = replace(TRAINING, epochs=5, patience=2)
    whole, cut = bag(), bag()
    expected = learn(tmp_path / "a", whole, training=training, evaluate=scores_of(values)[0])
    options: Any = {"training": training, "evaluate": scores_of(values)[0]}
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "b", bag(), on_progress=interrupt_at(30), **options)
    options["evaluate"] = scores_of(values[2:])[0]
    report = learn(tmp_path / "b", cut, **options)
    assert report.resumed_from == 29 and report.scores == expected.scores
    assert report.note == expected.note and same(weights(whole), weights(cut))


def test_patience_needs_a_score(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="patience needs a score"):
        learn(tmp_path, bag(), training=replace(TRAINING, patience=1))


def test_progress_has_the_running_metric(tmp_path: Path) -> None:
    told: list[str] = []
    evaluate, _ = scores_of([0.25, 0.5, 0.75])
    learn(tmp_path, bag(), evaluate=evaluate, on_progress=lambda _, text: told.append(text))
    assert "accuracy" not in told[0]
    assert told[13].endswith(", accuracy 0.25") and told[-1].endswith(", accuracy 0.75")


def test_curves_are_written_on_request_and_go_on(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    home, steps = tmp_path / "curves", tmp_path / "step-0" / "training"
    evaluate, _ = scores_of([0.25, 0.5, 0.75])
    with curves_in(home), pytest.raises(KeyboardInterrupt):
        learn(steps, bag(), evaluate=evaluate, on_progress=interrupt_at(20))
    with curves_in(home):
        report = learn(steps, bag(), evaluate=lambda: {"accuracy": 0.75})
    found = accumulator.EventAccumulator(str(home / "step-0")).Reload()
    assert [event.step for event in found.Scalars("loss")] == list(range(1, STEPS + 1))
    assert [event.value for event in found.Scalars("loss")] == pytest.approx(report.losses)
    assert [event.step for event in found.Scalars("accuracy")] == [13, 26, 39]
    assert found.Scalars("learning rate")[-1].value == pytest.approx(5e-2 / 35, rel=0.01)


# Going on


def interrupt_at(step: int) -> Callable[[float, str], None]:
    def on_progress(fraction: float, text: str) -> None:
        if text.startswith(f"step {step} "):
            raise KeyboardInterrupt

    return on_progress


@pytest.mark.slow
def test_a_killed_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL after step 20, in the second epoch, then to the end."""
    whole, cut = bag(), bag()
    learn(tmp_path / "whole", whole)
    with Fresh(["-m", "tests.tiny_training", str(tmp_path / "cut"), "20"]) as done:
        assert (done.wait(), done.stdout.read()) == (-signal.SIGKILL, ""), done.stderr.read()
    assert learn(tmp_path / "cut", cut).resumed_from == 19
    assert same(weights(whole), weights(cut))


@pytest.mark.parametrize("step", [1, 12, 13, 14, 38])
def test_interrupted_anywhere_it_goes_on_to_the_same_end(tmp_path: Path, step: int) -> None:
    whole, cut, resumed = bag(), bag(), bag()
    expected = learn(tmp_path / "whole", whole, evaluate=lambda: {"x": 1.0})
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", cut, on_progress=interrupt_at(step), evaluate=lambda: {"x": 1.0})
    report = learn(tmp_path / "cut", resumed, evaluate=lambda: {"x": 1.0})
    assert same(weights(whole), weights(resumed))
    assert report.losses == expected.losses and report.scores == expected.scores
    assert report.resumed_from == (step - 1 if step > 1 else None)


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    first, again = bag(), bag()
    learn(tmp_path, first)
    told: list[str] = []
    report = learn(tmp_path, again, on_progress=lambda _, text: told.append(text))
    assert told == [] and report.steps == STEPS and report.resumed_from == STEPS
    assert same(weights(first), weights(again))


@pytest.mark.parametrize("damage", ["truncate", "record", "half"])
def test_a_damaged_checkpoint_is_as_if_it_were_not_there(tmp_path: Path, damage: str) -> None:
    whole, resumed = bag(), bag()
    learn(tmp_path / "whole", whole)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", bag(), on_progress=interrupt_at(20))
    (found,) = (tmp_path / "cut").iterdir()
    if damage == "half":
        found = found.rename(found.with_name("checkpoint-19.partial"))
    elif damage == "record":
        (found / "record.json").write_text("{")
    else:
        state = found / "state.safetensors"
        state.write_bytes(state.read_bytes()[:-10])
    report = learn(tmp_path / "cut", resumed)
    assert report.resumed_from is None
    assert same(weights(whole), weights(resumed))
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [f"checkpoint-{STEPS}"]


@pytest.mark.parametrize("change", ["weights", "rows", "settings"])
def test_a_checkpoint_of_another_training_is_not_taken(tmp_path: Path, change: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, bag(), on_progress=interrupt_at(20))
    module = bag(1 if change == "weights" else 0)
    training = replace(TRAINING, epochs=1) if change == "settings" else TRAINING
    examples = texts(100) if change == "rows" else texts()
    report = train(module, examples, cross_entropy, training, folder=tmp_path)
    assert report.resumed_from is None


# What it leaves alone


def test_nothing_is_written_elsewhere_or_printed_and_nothing_global_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in ("home", "here", "temporary", "training"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    python, array = random.getstate(), np.random.get_state()[1]
    environment = dict(os.environ)
    learn(tmp_path / "training", bag())
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written == {"home", "here", "temporary", "training"}
    for folder in ("home", "here", "temporary"):
        assert list((tmp_path / folder).iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python and np.array_equal(np.random.get_state()[1], array)
    assert dict(os.environ) == environment


def test_no_pickle_is_written_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle")

    for place, name in ((torch, "save"), (torch, "load"), (pickle, "dump"), (pickle, "load")):
        monkeypatch.setattr(place, name, refuse)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, bag(), on_progress=interrupt_at(20))
    assert learn(tmp_path, bag()).resumed_from == 19
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {
        ".safetensors",
        ".json",
    }


# Time


def slow(seconds: float) -> Callable[[nn.Module, Batch], torch.Tensor]:
    def loss(module: nn.Module, batch: Batch) -> torch.Tensor:
        time.sleep(seconds)
        return cross_entropy(module, batch)

    return loss


def test_the_steps_are_fitted_to_the_time(tmp_path: Path) -> None:
    """20 epochs would take 13 seconds; two are given. The learning rate still ends near zero."""
    training = replace(TRAINING, epochs=20, max_minutes=2 / 60)
    module, places = bag().eval(), []

    def loss(module: nn.Module, batch: Batch) -> torch.Tensor:
        places.append(module.head.bias.detach().clone())
        return slow(0.05)(module, batch)

    started = time.perf_counter()
    report = train(module, texts(), loss, training, folder=tmp_path)
    assert time.perf_counter() - started < 10
    assert 2 <= report.steps < report.planned == 260
    assert report.seconds < 3
    assert report.note is not None and "max-minutes" in report.note
    moves = [float((b - a).abs().max()) for a, b in itertools.pairwise(places)]
    assert moves[-1] < max(moves) / 3


def test_a_limit_that_is_not_reached_changes_nothing(tmp_path: Path) -> None:
    free, limited = bag(), bag()
    learn(tmp_path / "free", free)
    report = learn(tmp_path / "limited", limited, training=replace(TRAINING, max_minutes=60))
    assert report.steps == STEPS
    assert same(weights(free), weights(limited))


def test_a_limit_too_short_for_one_step_is_refused_before_anything_changes(
    tmp_path: Path,
) -> None:
    module = bag()
    training = replace(TRAINING, max_minutes=0.1 / 60)
    with pytest.raises(UsageError, match=r"max-minutes 0\.00166667 is too short: one step"):
        train(module, texts(), slow(0.3), training, folder=tmp_path)
    assert same(weights(module), weights(bag()))
    assert list(tmp_path.iterdir()) == []


# Divergence


def spoiled(after: int, value: float, scale: float = 0.0) -> Any:
    """Cross entropy until a number of batches; then a value plus so many times the loss."""
    seen: list[Batch] = []

    def loss(module: nn.Module, batch: Batch) -> torch.Tensor:
        seen.append(batch)
        found = cross_entropy(module, batch)
        return found if len(seen) <= after else value + scale * found

    return loss, seen


@pytest.mark.parametrize(
    ("value", "scale"), [(np.nan, 1.0), (np.inf, 1.0), (1e6, 1.0)], ids=["nan", "inf", "huge"]
)
def test_a_diverging_training_stops_and_puts_the_last_good_state_back(
    tmp_path: Path, value: float, scale: float
) -> None:
    loss, seen = spoiled(25, value, scale)
    module = bag()
    report = train(module, texts(), loss, TRAINING, folder=tmp_path)
    good = bag()
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "good", good, on_progress=interrupt_at(20))
    assert (report.diverged_at, report.restored, report.steps) == (26, 20, 20)
    assert report.diverged_rows == tuple(seen[-1].rows.tolist())
    assert same(weights(module), weights(good))
    assert report.note is not None
    assert report.note.startswith("the training diverged at step 26 of 39: ")
    assert "the state after step 20 was put back" in report.note
    # Run again, it is not trained a second time.
    assert train(bag(), texts(), None, TRAINING, folder=tmp_path).note == report.note  # type: ignore[arg-type]


def test_an_infinite_gradient_of_a_finite_loss_touches_no_weight(tmp_path: Path) -> None:
    count = iter(range(100))

    def loss(module: nn.Module, batch: Batch) -> torch.Tensor:
        found = cross_entropy(module, batch)
        # The root has an endless slope at zero.
        return found + torch.sqrt(found - found.detach()) if next(count) == 15 else found

    module = bag()
    report = train(module, texts(), loss, TRAINING, folder=tmp_path)
    assert (report.diverged_at, report.restored) == (16, 10)
    assert all(np.isfinite(each).all() for each in weights(module).values())
    assert report.note is not None and "gradient" in report.note


def test_diverging_at_once_is_an_error_with_the_rows(tmp_path: Path) -> None:
    loss, seen = spoiled(3, np.nan)
    with pytest.raises(TrainingError, match="diverged at step 4 of 39: a loss of nan") as caught:
        train(bag(), texts(), loss, TRAINING, folder=tmp_path)
    assert str(int(seen[-1].rows[0])) in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_good_state_outlives_a_kill(tmp_path: Path) -> None:
    loss, seen = spoiled(25, np.nan)
    with pytest.raises(KeyboardInterrupt):
        train(
            bag(),
            texts(),
            loss,
            TRAINING,
            folder=tmp_path,
            checkpoint_seconds=0,
            on_progress=interrupt_at(24),
        )
    seen[:] = seen[:23]
    report = train(bag(), texts(), loss, TRAINING, folder=tmp_path)
    assert (report.resumed_from, report.diverged_at, report.restored) == (23, 26, 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be above zero"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"learning_rate": -1.0}, "learning-rate must be above zero"),
        ({"learning_rate": float("nan")}, "learning-rate must be above zero"),
        ({"warmup": 1.0}, "warmup is a share of the steps"),
        ({"max_minutes": 0}, "max-minutes must be above zero"),
        ({"gradient_accumulation": 0}, "gradient-accumulation must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        learn(tmp_path / "x", bag(), training=replace(TRAINING, **change))
    assert not (tmp_path / "x").exists()


def test_nothing_to_learn_from_or_with_is_refused(tmp_path: Path) -> None:
    none = Examples(texts().encoded.rows(slice(0, 0)))
    with pytest.raises(DataError, match="no rows"):
        train(bag(), none, cross_entropy, TRAINING, folder=tmp_path)
    with pytest.raises(TrainingError, match="frozen"):
        learn(tmp_path, bag().requires_grad_(False))
    with pytest.raises(DataError, match="200 rows and teacher for 3"):
        replace(texts(), teacher=np.zeros((3, 2), np.float32))


# Batches


def test_batches_hold_every_row_once_and_texts_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 101, 3000).astype(np.int32)
    epoch = batches(lengths, 3000, 32, seed=0, epoch=0)
    assert sorted(np.concatenate(epoch).tolist()) == list(range(3000))
    assert max(map(len, epoch)) == 32 and len(epoch) == 94
    padded = sum(len(rows) * lengths[rows].max() for rows in epoch)
    assert padded < 1.1 * lengths.sum()
    # Long and short batches take turns.
    longest = [lengths[rows].max() for rows in epoch]
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.4


def test_batches_differ_by_epoch_and_seed_and_are_the_same_again() -> None:
    def order(seed: int, epoch: int, lengths: Any = None) -> list[int]:
        return np.concatenate(batches(lengths, 100, 8, seed, epoch)).tolist()  # type: ignore[no-any-return]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    alike = np.full(100, 7)
    assert order(0, 0, alike) != order(0, 1, alike)


def test_a_batch_is_cut_to_its_longest_row_and_carries_its_targets() -> None:
    encoded = texts().encoded
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 3, (200, 24))
    teacher = chance.normal(size=(200, 24, 3)).astype(np.float32)
    examples = Examples(encoded, labels, teacher, per_token=True)
    rows = np.array([5, 2, 9])
    assert encoded.lengths is not None
    longest = encoded.lengths[rows].max()
    fields: Any = collate(examples, rows)
    assert fields["inputs"]["input_ids"].dtype == torch.int64
    assert list(fields["inputs"]) == ["input_ids", "attention_mask"]
    for name, array in encoded.arrays.items():
        assert np.array_equal(fields["inputs"][name].numpy(), array[rows, :longest])
    assert np.array_equal(fields["labels"].numpy(), labels[rows, :longest])
    assert np.array_equal(fields["teacher"].numpy(), teacher[rows, :longest])
    assert fields["rows"].tolist() == [5, 2, 9]
    assert collate(Examples(encoded, labels), rows)["labels"].shape == (3, 24)  # type: ignore[union-attr]


def test_labels_of_words_go_to_their_first_tokens() -> None:
    starts = (np.array([1, 3, -1]), np.array([1]))
    encoded = Encoded({"input_ids": np.ones((2, 5), np.int32)}, np.array([5, 3]), starts)
    found = token_labels(encoded, [np.array([4, 2, 7]), np.array([6])])
    assert found.tolist() == [[-100, 4, -100, 2, -100], [-100, 6, -100, -100, -100]]


def test_teacher_outputs_are_computed_once_and_mapped(tmp_path: Path) -> None:
    calls = []

    def answer(model: Any, encoded: Encoded) -> Any:
        calls.append(len(encoded))
        return np.arange(2.0 * len(encoded)).reshape(-1, 2)

    encoded, path = texts().encoded, tmp_path / "teacher.npy"
    model: Any = None
    first = teacher_outputs(model, encoded, path, answer)
    again = teacher_outputs(model, encoded, path, answer)
    assert calls == [200] and isinstance(again, np.memmap) and again.dtype == np.float32
    assert np.array_equal(first, again) and list(tmp_path.iterdir()) == [path]
    damaged = path.read_bytes()[:-1]
    path.unlink()
    path.write_bytes(damaged)
    assert np.array_equal(teacher_outputs(model, encoded, path, answer), again)
    assert calls == [200, 200]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """So that a kill and its resume agree whatever the machine; and quick where it is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
