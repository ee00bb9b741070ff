"""Heads on a shared body: what is shared, who teaches whom, and that it ships like any model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgekit
from edgekit.architectures.cerberus import EachHead
from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.examples import Batch
from edgekit.export import export_artifact
from edgekit.model import Model, export_forward, identify, load_model, reference_outputs, save_model
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.steps.distill.cerberus import Cerberus, heads_loss
from edgekit.workbench import encode
from tests.fresh import run_fresh
from tests.tiny import tiny_checkpoint, tiny_texts
from tests.tiny_project import TinyProject, tiny_project

ROWS = Rows(texts=tuple(tiny_texts(64)))
TEACHERS = tuple(Path(f"teacher-{number}.npy") for number in range(3))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("tiny")
    return load_model(identify(str(tiny_checkpoint(folder, "bert", num_hidden_layers=3))))


def several(model: Model, heads: int = 3, **options: Any) -> Model:
    """As the step makes it before it learns, but for heads that differ."""
    made = Cerberus(TEACHERS[:heads], **options).apply(model, Context(ROWS, 0))
    module: Any = made.module
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("heads.") and heads > 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def inputs_of(model: Model, rows: Rows = ROWS) -> list[torch.Tensor]:
    return [torch.from_numpy(array).long() for array in encode(model, rows).arrays.values()]


def by_head(model: Model, rows: Rows = ROWS) -> Any:
    """[N, k, C], by transformers' own forward of each head."""
    module: Any = model.module
    ids, mask = inputs_of(model, rows)
    with torch.inference_mode():
        return module.head_logits(input_ids=ids, attention_mask=mask).double().numpy()


@pytest.mark.parametrize(("heads", "head_layers", "body_layers"), [(3, 1, None), (2, 2, 1)])
def test_parameters_are_the_body_and_what_each_head_has(
    bert: Model, heads: int, head_layers: int, body_layers: int | None
) -> None:
    made = several(bert, heads, head_layers=head_layers, body_layers=body_layers)
    width, ffn, labels = 24, 32, 3
    layer = 4 * width**2 + 2 * width * ffn + ffn + 9 * width
    head = width**2 + width + width * labels + labels
    embeddings = sum(
        p.numel() for n, p in bert.module.named_parameters() if n.startswith("bert.embeddings")
    )
    body = embeddings + (body_layers or 3 - head_layers) * layer
    found = sum(p.numel() for p in made.module.parameters())
    assert found == body + heads * head_layers * layer + heads * head


@pytest.mark.slow
def test_the_answer_is_the_mean_of_the_heads(bert: Model) -> None:
    made = several(bert)
    each = by_head(made)
    assert np.abs(each[:, 0] - each[:, 1]).max() > 0.1
    answers = reference_outputs(made, encode(made, ROWS))
    assert softmax(answers) == pytest.approx(softmax(each).mean(1), abs=1e-6)
    assert np.exp(answers) == pytest.approx(softmax(each).mean(1), abs=1e-6)
    plain = several(bert, combine="logits")
    assert reference_outputs(plain, encode(plain, ROWS)) == pytest.approx(each.mean(1), abs=1e-5)


def test_one_head_is_the_plain_model(bert: Model) -> None:
    encoded = encode(bert, ROWS)
    expected = reference_outputs(bert, encoded)
    assert softmax(reference_outputs(several(bert, 1), encoded)) == pytest.approx(
        softmax(expected), abs=1e-6
    )
    same = several(bert, 1, combine="logits", body_layers=1, head_layers=2)
    assert reference_outputs(same, encoded) == pytest.approx(expected, abs=1e-5)


def test_heads_read_the_same_states_of_a_body_that_runs_once(bert: Model) -> None:
    made = several(bert)
    module: Any = made.module
    layers = module.encoder.encoder.layer
    ran: list[int] = []
    read: list[torch.Tensor] = []

    def watch(place: int, part: Any) -> None:
        def see(_: Any, given: tuple[torch.Tensor, ...]) -> None:
            ran.append(place)
            read.append(given[0])

        part.register_forward_pre_hook(see)

    for place, layer in enumerate(layers):
        watch(place, layer.attention.self.key)
    export_forward(made)(*inputs_of(made))
    assert ran == [0, 1, 2, 3, 4]
    assert torch.equal(read[2], read[3]) and torch.equal(read[3], read[4])


def test_a_teacher_reaches_its_own_head_and_the_body_alone(bert: Model) -> None:
    made = several(bert)
    module: Any = made.module
    forward: Any = export_forward(made, learning=True)
    learner = EachHead(forward)
    ids, mask = inputs_of(made)
    inputs = {"input_ids": ids, "attention_mask": mask}
    answer = learner(ids, mask).detach()
    for taught in range(3):
        teacher = answer.clone()
        teacher[:, taught] = teacher[:, taught].flip(-1)
        module.zero_grad()
        heads_loss(2.0)(learner, Batch(inputs, torch.arange(64), teacher=teacher)).backward()
        sizes = {}
        for name, parameter in module.named_parameters():
            gradient = torch.zeros(1) if parameter.grad is None else parameter.grad
            sizes[name] = float(gradient.abs().max())
        for head in range(3):
            own = (f"heads.{head}.", f"encoder.encoder.layer.{2 + head}.")
            largest = max(size for name, size in sizes.items() if name.startswith(own))
            # What else a head gets is the rounding of its own answer against itself.
            assert (largest > 1e-4) if head == taught else (largest < 1e-7)
        body = ("encoder.embeddings.word", "encoder.encoder.layer.0.", "encoder.encoder.layer.1.")
        assert all(max(s for n, s in sizes.items() if n.startswith(part)) > 1e-4 for part in body)


@pytest.mark.slow
def test_with_teachers_at_odds_each_head_sides_with_its_own(bert: Model, tmp_path: Path) -> None:
    rows = Rows(texts=tuple(tiny_texts(320, 5)))
    answers = reference_outputs(bert, encode(bert, rows))
    centre = answers.mean(0)
    for number, sign in enumerate((4, -4)):
        np.save(tmp_path / f"{number}.npy", sign * (answers - centre))
    step = Cerberus((tmp_path / "0.npy", tmp_path / "1.npy"), epochs=6, learning_rate=4e-3)
    made = apply_steps([step], bert, Context(rows, 0, tmp_path / "scratch"))
    fresh = Rows(texts=tuple(tiny_texts(128, 9)))
    wanted = reference_outputs(bert, encode(bert, fresh)) - centre
    found = by_head(made, fresh).argmax(-1)
    for head, sign in enumerate((1, -1)):
        own, other = (np.mean(found[:, head] == (s * sign * wanted).argmax(-1)) for s in (1, -1))
        assert own > other + 0.2, (head, own, other)
    assert "each head learned from its teacher" in made.lineage[-1]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["distilbert", "electra", "roberta"])
def test_other_families_are_bodies_too(tmp_path: Path, family: str) -> None:
    made = several(load_model(identify(str(tiny_checkpoint(tmp_path / "m", family)))))
    save_model(made, tmp_path / "made")
    again = load_model(identify(str(tmp_path / "made")))
    encoded = encode(again, ROWS)
    answers = reference_outputs(again, encoded)
    assert answers == pytest.approx(reference_outputs(made, encoded), abs=1e-5)
    with torch.inference_mode():
        clean = export_forward(again)(*inputs_of(again)).numpy()
    assert clean == pytest.approx(answers, abs=1e-5)


@pytest.mark.slow
def test_a_pruned_body_is_saved_with_its_shapes(bert: Model, tmp_path: Path) -> None:
    pruned = apply_steps(
        [parse_step("prune-ffn:ratio=0.5,importance=magnitude").step],
        bert,
        Context(ROWS, 0, tmp_path),
    )
    made = several(pruned)
    save_model(made, tmp_path / "made")
    again = load_model(identify(str(tmp_path / "made")))
    encoded = encode(made, ROWS)
    assert reference_outputs(again, encoded) == pytest.approx(
        reference_outputs(made, encoded), abs=1e-5
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("head-layers=3", "head-layers must be from 1 to 2 of 3 layers"),
        ("body-layers=3", "body-layers must be from 1 to 2"),
        ("epochs=0", "epochs must be above 0"),
        ("augment=-1", "augment is how many copies"),
        ("augment-with=x", "add augment=10"),
    ],
)
def test_refusals(bert: Model, tmp_path: Path, options: str, said: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((64, 3), np.float32))
    step = parse_step(f"cerberus:teachers={tmp_path / 'a.npy'},{options}").step
    with pytest.raises(RecipeError, match=said):
        step.requires(bert, Context(ROWS, 0))


def test_teachers_that_do_not_fit_are_refused(bert: Model, tmp_path: Path) -> None:
    context = Context(ROWS, 0, tmp_path / "scratch")
    with pytest.raises(RecipeError, match="each head wants a teacher"):
        Cerberus(()).requires(bert, context)
    with pytest.raises(RecipeError, match=r"missing\.npy"):
        Cerberus((tmp_path / "missing.npy",)).requires(bert, context)
    np.save(tmp_path / "a.npy", np.zeros((64, 3), np.float32))
    more = replace(context, unlabeled=Rows(texts=("another",)))
    with pytest.raises(RecipeError, match="answers the training rows alone"):
        apply_steps([Cerberus((tmp_path / "a.npy",))], bert, more)
    albert = load_model(identify(str(tiny_checkpoint(tmp_path / "albert", "albert"))))
    with pytest.raises(RecipeError, match=r"albert cannot be the body|no stack of layers"):
        Cerberus((tmp_path / "a.npy",)).requires(albert, context)


def test_its_layers_are_no_stack_to_cut_or_tie(bert: Model) -> None:
    made = several(bert)
    for step in (
        "drop-layers:count=1",
        "tie-layers",
        "prune-heads:ratio=0.5",
        "cerberus:teachers=x",
    ):
        with pytest.raises(RecipeError, match=r"side by side|no stack of layers"):
            parse_step(step).step.requires(made, Context(ROWS, 0))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyProject, Path]:
    folder = tmp_path_factory.mktemp("built")
    project = tiny_project(folder, layers=2)
    steps = [
        f"cerberus:epochs=1,teachers={project.checkpoint};{project.checkpoint}",
        "trim-vocabulary",
    ]
    edgekit.build(
        project.checkpoint,
        data=project.train,
        eval=project.eval,
        steps=steps,
        target=["linux-x86_64", "android-arm64"],
        # A tiny model's ONNX in int8 is too rough on processors that saturate.
        scheme="fp32",
        save_model=folder / "made",
        output=folder / "dist",
    )
    return project, folder


@pytest.mark.slow
def test_it_ships_in_every_format(built: tuple[TinyProject, Path], tmp_path: Path) -> None:
    for target in ("linux-x86_64", "android-arm64"):
        assert edgekit.verify(built[1] / "dist" / target).verdict.outcome == "pass"
    made = load_model(identify(str(built[1] / "made")))
    encoded = encode(made, ROWS)
    path = export_artifact(made, tmp_path, "torchscript", "fp32").path
    ids = (torch.from_numpy(encoded.arrays[name]).long() for name in made.inputs)
    with torch.no_grad():
        answers = torch.jit.load(str(path))(*ids).numpy()
    assert answers == pytest.approx(reference_outputs(made, encoded), abs=1e-5)


@pytest.mark.slow
def test_another_process_loads_it_without_its_teachers(built: tuple[TinyProject, Path]) -> None:
    code = (
        "import sys, torch, edgekit\n"
        "module = edgekit.load(sys.argv[1])\n"
        "print(type(module).__name__, module.config.model_type, module.config.heads)\n"
        "print(module(torch.tensor([[3, 7, 4]])).logits.exp().sum().item())\n"
    )
    name, total = run_fresh(["-c", code, str(built[1] / "made")]).splitlines()
    assert name == "CerberusForSequenceClassification edgekit-cerberus 2"
    assert float(total) == pytest.approx(1, abs=1e-5)
