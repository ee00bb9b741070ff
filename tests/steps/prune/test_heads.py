"""Heads and neurons taken out: the same answers as with them masked, budgets, files, refusals."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.export import export_artifact
from edgekit.model import Model, export_forward, identify, load_model, reference_outputs, save_model
from edgekit.plan.predict import weight_bytes
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.steps.prune.drop_layers import DropLayers
from edgekit.steps.prune.ffn import PruneFfn
from edgekit.steps.prune.heads import PruneHeads
from edgekit.steps.prune.importance import importances
from edgekit.steps.prune.pruning import Amount
from edgekit.steps.prune.slicing import Kept, cut, everything, own_layers
from edgekit.steps.quantize.calibrate import Calibrate
from tests.fresh import run_fresh
from tests.steps.prune.pruned import ROWS, mask, masked, model_of, reader, rows_of

FAMILIES = ("bert", "roberta", "electra", "distilbert", "albert", "vit")
IMPORTANCES = ("taylor", "magnitude", "activation")
Part = Literal["heads", "neurons"]
PARTS: tuple[Part, ...] = ("heads", "neurons")


def answers(model: Model) -> Any:
    assert model.preprocessor is not None
    return reference_outputs(model, model.preprocessor.encode(rows_of(model)))


def pruned(model: Model, folder: Path | None, *texts: str) -> Model:
    context = Context(rows_of(model), 0, folder=folder)
    return apply_steps([parse_step(text).step for text in texts], model, context)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_cut_is_masked_and_loads_again(family: str, tmp_path: Path) -> None:
    model = model_of(tmp_path / "whole", family)
    layers = len(own_layers(model))
    kept = [Kept((0, 2, 3), tuple(range(1, 32, 2))), Kept((1,), (4, 5, 30))][:layers]
    with masked(
        [reader(model, family, part, n) for part in PARTS for n in range(layers)],
        [mask(4, k.heads) for k in kept] + [mask(32, k.neurons) for k in kept],
    ):
        expected = answers(model)
    after = model.with_module(cut(model, kept), "by hand")
    np.testing.assert_allclose(answers(after), expected, atol=1e-5)
    assert np.abs(answers(model) - expected).max() > 1e-2
    save_model(after, tmp_path / "cut")
    if family == "bert":
        found = answers_of_a_fresh_process(tmp_path / "cut")
    else:
        found = answers(load_model(identify(str(tmp_path / "cut"))))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    shapes = {n: each.shape for n, each in load_file(tmp_path / "cut/model.safetensors").items()}
    assert shapes == {n: tuple(t.shape) for n, t in after.module.state_dict().items()}


def answers_of_a_fresh_process(checkpoint: Path) -> Any:
    program = (
        "import sys, numpy as np\n"
        "from edgekit.model import identify, load_model, reference_outputs\n"
        "from tests.steps.prune.pruned import rows_of\n"
        "model = load_model(identify(sys.argv[1]))\n"
        "rows = model.preprocessor.encode(rows_of(model))\n"
        "np.save(sys.argv[2], reference_outputs(model, rows))\n"
    )
    out = checkpoint.parent / "out.npy"
    run_fresh(["-c", program, str(checkpoint), str(out)])
    return np.load(out)


@pytest.mark.parametrize("family", ["bert", "albert", "distilbert"])
def test_blocks_that_are_gone_leave_the_norm_of_what_came_in(family: str, tmp_path: Path) -> None:
    model = model_of(tmp_path / "whole", family)
    layers = len(own_layers(model))
    kept = [Kept((), range(32)), Kept((0, 3), ())][:layers]
    with masked(
        [reader(model, family, part, n) for part in PARTS for n in range(layers)],
        [mask(4, k.heads) if k.heads else None for k in kept]
        + [mask(32, k.neurons) if len(k.neurons) else None for k in kept],
    ):
        expected = answers(model)
    after = model.with_module(cut(model, kept), "by hand")
    np.testing.assert_allclose(answers(after), expected, atol=1e-5)
    save_model(after, tmp_path / "cut")
    loaded = load_model(identify(str(tmp_path / "cut")))
    np.testing.assert_allclose(answers(loaded), expected, atol=1e-5)
    assert [(layer.heads, layer.neurons) for layer in own_layers(loaded)] == [
        (len(k.heads), len(k.neurons)) for k in kept
    ]
    outline = load_model(identify(str(tmp_path / "cut")), meta=True)
    assert weight_bytes(outline) == weight_bytes(after) < weight_bytes(model)
    again = pruned(loaded, tmp_path, "prune-ffn:ratio=0.5") if family == "bert" else loaded
    assert [layer.neurons for layer in own_layers(again)] == (
        [16, 0] if family == "bert" else [len(k.neurons) for k in kept]
    )


def uneven(folder: Path) -> Model:
    """Layers that differ, the first without its attention and the last without its network."""
    model = model_of(folder, num_hidden_layers=3)
    kept = [Kept((), range(8)), Kept((0, 1, 3), range(16)), Kept((1, 2), ())]
    return model.with_module(cut(model, kept), "by hand")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "scheme"),
    [
        ("onnx", "int8-static"),
        ("tflite", "int8-dynamic"),
        ("torchscript", "fp32"),
    ],
)
def test_files_of_uneven_layers_answer_as_the_model(
    format: Any, scheme: Any, tmp_path: Path
) -> None:
    from tests.export.test_onnx import run
    from tests.export.test_tflite import run_all

    model = uneven(tmp_path)
    assert model.preprocessor is not None
    rows = model.preprocessor.encode(ROWS)
    expected = answers(model)
    if scheme == "int8-static":
        model = apply_steps([Calibrate()], model, Context(ROWS, 0, folder=tmp_path))
    made = export_artifact(model, tmp_path, format, scheme, any_length=True)
    feeds = {name: array.astype(np.int64) for name, array in rows.arrays.items()}
    if format == "onnx":
        found = run(made.path, feeds)
    elif format == "tflite":
        found = np.stack(run_all(made.path, rows, model.inputs))
    else:
        loaded = torch.jit.load(str(made.path))
        found = loaded(*(torch.from_numpy(feeds[name]) for name in model.inputs)).numpy()
    if scheme == "fp32":
        np.testing.assert_allclose(found, expected, atol=1e-4)
    cosine = (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 0.98


@pytest.mark.slow
def test_the_files_parameters_fall_by_the_formula(tmp_path: Path) -> None:
    import onnx

    model = model_of(tmp_path / "whole")
    after = pruned(model, tmp_path, "prune-heads:count=3", "prune-ffn:ratio=0.5")
    wide, width = 24, 6

    def held(each: Model, name: str) -> int:
        made = export_artifact(each, tmp_path / name, "onnx", "fp32")
        graph = onnx.load(made.path).graph
        floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        return sum(len(onnx.numpy_helper.to_array(t).tobytes()) for t in floats)

    head = 3 * (wide * width + width) + wide * width
    neuron = 2 * wide + 1
    assert held(model, "a") - held(after, "b") == 4 * (3 * head + 32 * neuron)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("by", IMPORTANCES)
@pytest.mark.parametrize("family", ["bert", "vit"])
def test_what_was_planted_dead_goes_first(family: str, by: Any, part: Part, tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", family)
    width = 6 if part == "heads" else 1
    dead = {0: [1, 3], 1: [2]}
    with torch.no_grad():
        for layer, units in dead.items():
            for unit in units:
                chosen = reader(model, family, part, layer)
                chosen.weight[:, unit * width : (unit + 1) * width].normal_(0, 1e-4)
    found = importances(model, Context(rows_of(model), 0, folder=tmp_path), part, by)
    for layer, units in dead.items():
        order = np.argsort(found[layer]).tolist()
        assert sorted(order[: len(units)]) == units
    name = "prune-heads" if part == "heads" else "prune-ffn"
    option = "count=3" if part == "heads" else "count=3,multiple=1"
    after = pruned(model, tmp_path, f"{name}:importance={by},{option}")
    np.testing.assert_allclose(answers(after), answers(model), atol=1e-2)
    assert [getattr(layer, part) for layer in own_layers(after)] == [
        getattr(layer, part) - len(dead[n]) for n, layer in enumerate(own_layers(model))
    ]


@pytest.mark.slow
def test_taylor_ranks_as_removing_each_head_does(tmp_path: Path) -> None:
    """One batch, and heads that add little, so that the first order is most of it."""
    model = model_of(tmp_path / "model", num_hidden_layers=4)
    with torch.no_grad():
        for layer in own_layers(model):
            layer.attention_output.weight.mul_(0.02)  # type: ignore[union-attr,operator]
    rows = ROWS.take(range(32))
    found = np.concatenate(importances(model, Context(rows, 0, folder=tmp_path), "heads", "taylor"))
    assert rows.labels is not None
    gold = torch.tensor(["abc".index(label) for label in rows.labels])

    def loss(each: Model) -> float:
        assert each.preprocessor is not None
        given = torch.from_numpy(reference_outputs(each, each.preprocessor.encode(rows))).double()
        return float(torch.nn.functional.cross_entropy(given, gold))

    whole, kept = loss(model), everything(model)
    changes = []
    for layer in range(4):
        for head in range(4):
            left = [each for each in range(4) if each != head]
            tried = [*kept[:layer], Kept(left, range(32)), *kept[layer + 1 :]]
            changes.append(abs(loss(model.with_module(cut(model, tried), "")) - whole))
    ranks = np.argsort(np.argsort(found)), np.argsort(np.argsort(changes))
    assert np.corrcoef(*ranks)[0, 1] > 0.8


def test_activation_is_the_length_of_what_a_head_adds(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    found = importances(model, Context(ROWS, 0, folder=tmp_path), "heads", "activation")
    assert model.preprocessor is not None
    rows = model.preprocessor.encode(ROWS)
    assert rows.lengths is not None
    seen: list[Any] = []
    chosen = reader(model, "bert", "heads", 0)
    handle = chosen.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    for row, length in enumerate(rows.lengths):
        with torch.no_grad():
            model.module(torch.from_numpy(rows.arrays["input_ids"][row : row + 1, :length]).long())
    handle.remove()
    weight = chosen.weight.detach().numpy()
    given = torch.cat(seen).numpy()
    for head in range(4):
        part = slice(6 * head, 6 * head + 6)
        lengths = np.linalg.norm(given[:, part] @ weight[:, part].T, axis=1)
        assert found[0][head] == pytest.approx(lengths.mean(), rel=1e-4)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    st.floats(0.01, 0.99),
    st.booleans(),
    st.sampled_from([1, 4, 8]),
    st.integers(0, 99),
)
def test_budgets_are_exact(
    blocks: list[int], ratio: float, even: bool, multiple: int, seed: int
) -> None:
    widths = [block * multiple for block in blocks]
    amount = Amount(None, ratio, None, even, multiple)
    chance = np.random.default_rng(seed)
    scores = [chance.random(width) for width in widths]
    kept = amount.choose(scores)
    counts = [len(each) for each in kept]
    assert all(count >= multiple and count % multiple == 0 for count in counts)
    assert all(each == sorted(set(each)) for each in kept)

    def rounded(left: int) -> int:
        return -(-left // multiple) * multiple

    if even:
        assert counts == [rounded(w - int(ratio * w + 1e-9)) for w in widths]
    else:
        total = sum(widths)
        least = multiple * len(widths)
        assert sum(counts) == max(least, rounded(total - int(ratio * total + 1e-9)))
    for score, stays in zip(scores, kept, strict=True):
        gone = np.delete(score, stays)
        assert not len(gone) or score[stays].min() >= gone.max()


def test_global_ranks_are_normalised_by_layer() -> None:
    low, high = np.array([1.0, 9.0, 1.0, 9.0]), np.array([100.0, 900.0, 100.0, 900.0])
    assert Amount(4, None, None, False).choose([low, high]) == [[1, 3], [1, 3]]
    uneven = np.array([1.0, 1.0, 1.0, 1.0])
    assert Amount(3, None, None, False).choose([low, uneven]) == [[1, 3], [0, 1, 2]]
    assert Amount(None, None, 0.2, False).choose([low, high]) == [[1, 3], [1, 3]]
    assert Amount(None, None, 0.9, False).choose([low, uneven]) == [[1], [0]]


@pytest.mark.parametrize(
    "steps",
    [
        (
            "prune-heads:ratio=0.5,even=true,importance=magnitude",
            "drop-layers:strategy=odd,count=2",
        ),
        ("prune-ffn:ratio=0.5,even=true,importance=magnitude", "drop-layers:count=1"),
    ],
)
def test_dropping_layers_and_pruning_without_data_commute(
    steps: tuple[str, str], tmp_path: Path
) -> None:
    model = model_of(tmp_path / "model", num_hidden_layers=4)
    one, other = pruned(model, tmp_path, *steps), pruned(model, tmp_path, *steps[::-1])
    ours, theirs = one.module.state_dict(), other.module.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("family", ["bert", "albert", "distilbert"])
@pytest.mark.parametrize(
    "text",
    ["prune-heads:ratio=0.3", "prune-heads:count=2,even=true", "prune-ffn:ratio=0.4,even=true"],
)
def test_shapes_are_known_without_weights(family: str, text: str, tmp_path: Path) -> None:
    if family == "albert":
        text = text.replace("0.3", "0.5")
    whole = model_of(tmp_path / "whole", family)
    outline = load_model(identify(str(tmp_path / "whole")), meta=True)
    predicted = pruned(outline, None, text)
    assert predicted.module.device.type == "meta"
    assert weight_bytes(predicted) == weight_bytes(pruned(whole, tmp_path, text))


def test_more_than_one_kind_of_answer_has_a_loss(tmp_path: Path) -> None:
    from tests.tiny import tiny_checkpoint

    words = tuple(tuple(text.split()) for text in ROWS.texts or ())
    kinds: list[tuple[dict[str, Any], Rows]] = [
        (
            {"task": "token-classification"},
            Rows(words=words, labels=tuple(tuple("abc"[len(w) % 3] for w in ws) for ws in words)),
        ),
        (
            {"problem": "multi-label"},
            Rows(texts=ROWS.texts, labels=tuple(("a", "c")[: n % 3] for n in range(40))),
        ),
        (
            {"problem": "regression"},
            Rows(texts=ROWS.texts, labels=tuple(n / 40 for n in range(40))),
        ),
    ]
    for number, (config, rows) in enumerate(kinds):
        folder = tiny_checkpoint(tmp_path / str(number), "bert", **config)
        model = load_model(identify(str(folder)))
        found = importances(model, Context(rows, 0, folder=tmp_path), "heads", "taylor")
        assert all(len(each) == 4 and (each > 0).all() for each in found)


@pytest.mark.parametrize("family", ["xlnet", "mpnet"])
def test_neurons_of_families_whose_heads_stay(family: str, tmp_path: Path) -> None:
    model = model_of(tmp_path / "whole", family)
    after = pruned(model, tmp_path, "prune-ffn:ratio=0.5")
    save_model(after, tmp_path / "cut")
    loaded = load_model(identify(str(tmp_path / "cut")))
    np.testing.assert_allclose(answers(loaded), answers(after), atol=1e-6)
    assert sum(layer.neurons for layer in own_layers(loaded)) == 32
    forward = export_forward(loaded)
    rows = model.preprocessor.encode(ROWS)  # type: ignore[union-attr]
    with torch.no_grad():
        clean = forward(*(torch.from_numpy(rows.arrays[name]).long() for name in model.inputs))
    np.testing.assert_allclose(clean.numpy(), answers(after), atol=1e-4)


@pytest.mark.parametrize(
    ("family", "text", "said"),
    [
        ("bert", "prune-heads", "one of count, ratio and threshold"),
        ("bert", "prune-heads:count=2,ratio=0.5", "one of count, ratio and threshold"),
        ("bert", "prune-heads:count=7", "from 1 to 6 of 8"),
        ("bert", "prune-heads:count=0", "from 1 to 6 of 8"),
        ("bert", "prune-heads:count=3,even=true", "cannot be taken evenly from 2 layers"),
        ("bert", "prune-heads:ratio=1", "between 0 and 1"),
        ("bert", "prune-heads:ratio=0.1", "rounds to nothing"),
        ("bert", "prune-heads:threshold=1.5", "between 0 and 1"),
        ("bert", "prune-heads:threshold=0.5,even=true", "leave even out"),
        ("bert", "prune-ffn:count=50", "from 1 to 48 of 64"),
        ("bert", "prune-ffn:count=3", "rounds to nothing"),
        ("bert", "prune-ffn:ratio=0.5,multiple=0", "at least 1"),
        ("xlnet", "prune-heads:ratio=0.5", "heads of xlnet cannot be taken out"),
        ("mpnet", "prune-heads:ratio=0.5", "heads of mpnet cannot be taken out"),
        ("mobilebert", "prune-ffn:ratio=0.5", "neurons of mobilebert cannot be taken out"),
    ],
)
def test_refusals(family: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        pruned(model_of(tmp_path, family), None, text)


def test_sentence_embeddings_are_pruned_without_labels(tmp_path: Path) -> None:
    from tests.tiny import tiny_checkpoint

    folder = tiny_checkpoint(tmp_path / "whole", "bert", "sentence-embedding")
    model = load_model(identify(str(folder)))
    with pytest.raises(RecipeError, match="sentence embeddings have none"):
        pruned(model, tmp_path, "prune-heads:ratio=0.5")
    after = pruned(model, tmp_path, "prune-heads:ratio=0.5,importance=activation")
    assert sum(layer.heads for layer in own_layers(after)) == 4


def test_a_model_without_any_left_is_refused(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    bare = model.with_module(cut(model, [Kept((), range(32))] * 2), "by hand")
    with pytest.raises(RecipeError, match="no layer has any left"):
        pruned(bare, None, "prune-heads:ratio=0.5,even=true")


@pytest.mark.parametrize("step", [PruneHeads(ratio=0.5), PruneFfn(ratio=0.5)])
def test_refusals_for_want_of_data(step: Any, tmp_path: Path) -> None:
    model = model_of(tmp_path)
    unlabelled = Rows(texts=ROWS.texts)
    for rows, said in ((None, "give --data"), (unlabelled, "with labels")):
        with pytest.raises(RecipeError, match=said + ".*magnitude needs no data"):
            apply_steps([step], model, Context(rows, 0))


@pytest.mark.slow
def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    for name in ("prune-heads", "prune-ffn"):
        with pytest.raises(RecipeError, match="put the step before"):
            pruned(model, tmp_path, "calibrate", f"{name}:ratio=0.5")


def test_a_convolutional_model_has_no_heads(tmp_path: Path) -> None:
    from tests.tiny import tiny_checkpoint

    folder = tiny_checkpoint(tmp_path, "resnet", "image-classification")
    with pytest.raises(RecipeError, match="no encoder layers"):
        pruned(load_model(identify(str(folder))), None, "prune-heads:ratio=0.5")


def test_mobilebert_heads(tmp_path: Path) -> None:
    model = model_of(tmp_path / "whole", "mobilebert")
    after = pruned(model, tmp_path, "prune-heads:ratio=0.5")
    save_model(after, tmp_path / "cut")
    np.testing.assert_allclose(
        answers(load_model(identify(str(tmp_path / "cut")))), answers(after), atol=1e-6
    )
    fields = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert fields["edgekit"]["shapes"]
    assert "kept 4 of 8" in after.lineage[-1]


def test_layers_of_a_pruned_model_drop_too(tmp_path: Path) -> None:
    model = model_of(tmp_path / "whole", num_hidden_layers=3)
    context = Context(ROWS, 0, folder=tmp_path)
    after = apply_steps([PruneHeads(count=5), DropLayers(count=1)], model, context)
    save_model(after, tmp_path / "cut")
    loaded = load_model(identify(str(tmp_path / "cut")))
    np.testing.assert_allclose(answers(loaded), answers(after), atol=1e-6)
