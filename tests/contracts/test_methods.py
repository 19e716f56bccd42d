"""What every distillation method keeps to. A new file in smskd/methods is found and tested without a word here.

All but `ce`, which isn't built for a Task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from smskd import methods
from smskd.methods.base import Batch, Method, Task, View
from smskd.models import Output

NAMES = [name for name in methods.available() if name != "ce"]
CLASSES, IMAGES, SIZE = 10, 40, 8
LABELS = torch.arange(IMAGES) % CLASSES
# Channels and sides of the feature maps, shallow to deep, and the hint's place: widths, sizes and depths all differ.
STUDENT = (((8, 4), (16, 4)), 0)
TEACHER = (((32, 8), (24, 4), (20, 2)), 1)


def view(spec: tuple[tuple[tuple[int, int], ...], int], *, seed: int, size: int = SIZE) -> View:
    """A network's outputs for `size` images, as leaves that want a gradient; embeddings as wide as the last map."""
    maps, hint_index = spec
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(size, *shape, generator=generator).requires_grad_()

    features = tuple(drawn(channels, side, side) for channels, side in maps)
    return View(Output(logits=drawn(CLASSES), features=features, embedding=drawn(maps[-1][0])), hint_index)


def tensors(of: View) -> list[Tensor]:
    return [of.output.logits, of.output.embedding, *of.output.features]


def changed(of: View, change: Callable[[Tensor], Tensor]) -> View:
    """The same outputs after a change, as leaves again."""

    def leaf(tensor: Tensor) -> Tensor:
        return change(tensor.detach()).clone().requires_grad_()

    logits, features, embedding = of.output
    return View(Output(leaf(logits), tuple(map(leaf, features)), leaf(embedding)), of.hint_index)


def batch(size: int = SIZE) -> Batch:
    index = torch.arange(size) * 3
    return Batch(LABELS[index], index)


def build(name: str, **weights: float) -> Method:
    """A fresh method, always from the same seed, in train mode."""
    torch.manual_seed(7)
    task = Task(view(STUDENT, seed=0, size=2), view(TEACHER, seed=1, size=2), _weights(name) | weights, LABELS)
    built: Method = methods.load(name).build(task)
    return built.train()


def _weights(name: str) -> dict[str, float]:
    published: dict[str, float] = methods.load(name).WEIGHTS
    return published


def losses(method: Method, student: View, teacher: View, of: Batch) -> dict[str, Tensor]:
    """Its terms, with all that it draws drawn from one seed."""
    torch.manual_seed(11)
    found: dict[str, Tensor] = method(student, teacher, of)
    return found


def backward(terms: dict[str, Tensor]) -> None:
    torch.autograd.backward(torch.stack(list(terms.values())).sum())


def gradients(of: View) -> list[Tensor]:
    return [t.grad for t in tensors(of) if t.grad is not None]


@pytest.fixture(autouse=True)
def _own_generator() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def one_hot(tensor: Tensor) -> Tensor:
    """1000 at one place of dimension 1, the same for all of a sample, and 0 elsewhere: logits that are sure."""
    places = torch.arange(len(tensor)) % tensor.shape[1]
    result = torch.zeros_like(tensor)
    result[torch.arange(len(tensor)), places] = 1000
    return result


HOSTILE: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "identical samples": lambda t: t[:1].expand_as(t),
    "huge": lambda t: 1e4 * t,
    "all huge": lambda t: torch.full_like(t, 1e4),
    "one-hot": one_hot,
    "tiny": lambda t: 1e-12 * t,
}


def test_the_methods_are_found() -> None:
    assert {"kd", "fitnets", "rkd", "vid", "reviewkd", "logit_std", "crd"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_says_what_it_reads_and_its_published_weights(name: str) -> None:
    module = methods.load(name)
    assert module.READS and module.READS.issubset({"logits", "embedding", "hint", "features"})
    assert module.WEIGHTS and all(weight > 0 for weight in module.WEIGHTS.values())
    assert all(term == name or term.startswith(f"{name}_") for term in module.WEIGHTS)
    assert "arXiv" in (module.__doc__ or "")


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_float32_scalars_named_as_their_weights(name: str) -> None:
    terms = losses(build(name), view(STUDENT, seed=2), view(TEACHER, seed=3), batch())
    assert terms and set(terms) <= set(_weights(name))
    assert all(term.shape == () and term.dtype == torch.float32 and term.isfinite() for term in terms.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_multiplies_its_own_term(name: str) -> None:
    def found(**weights: float) -> dict[str, float]:
        terms = losses(build(name, **weights), view(STUDENT, seed=2), view(TEACHER, seed=3), batch())
        return {term: loss.item() for term, loss in terms.items()}

    plain = found()
    for term, loss in plain.items():
        assert found(**{term: 0.0}) == pytest.approx(plain | {term: 0.0}, rel=1e-6)
        assert found(**{term: 2 * _weights(name)[term]}) == pytest.approx(plain | {term: 2 * loss}, rel=1e-6)
        assert loss != 0


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_the_student_and_all_parameters_and_never_the_teacher(name: str) -> None:
    method, student, teacher = build(name), view(STUDENT, seed=2), view(TEACHER, seed=3)
    backward(losses(method, student, teacher, batch()))
    assert any(gradient.abs().sum() > 0 for gradient in gradients(student))
    assert gradients(teacher) == []
    unreached = [n for n, p in method.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unreached == []


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_read_is_looked_at(name: str) -> None:
    """The teacher's other outputs may be empty, as smskd.teacher.Teacher leaves them."""
    reads = methods.load(name).READS
    student, teacher = view(STUDENT, seed=2), view(TEACHER, seed=3)
    empty = torch.empty(0)
    logits, features, embedding = teacher.output
    kept = Output(
        logits if "logits" in reads else empty,
        tuple(
            maps if "features" in reads or ("hint" in reads and place == teacher.hint_index) else empty
            for place, maps in enumerate(features)
        ),
        embedding if "embedding" in reads else empty,
    )
    whole = losses(build(name), student, teacher, batch())
    assert losses(build(name), student, View(kept, teacher.hint_index), batch()) == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("name", NAMES)
def test_hostile_outputs_give_finite_losses_and_gradients(name: str, case: str, side: str, dtype: torch.dtype) -> None:
    student, teacher = (
        changed(of, lambda t, bad=bad: (HOSTILE[case](t) if bad else t).to(dtype))  # type: ignore[misc]
        for of, bad in (
            (view(STUDENT, seed=2), side != "teacher"),
            (view(TEACHER, seed=3), side != "student"),
        )
    )
    method = build(name)
    for _ in range(2):  # the second time with whatever the first one left in a memory
        terms = losses(method, student, teacher, batch())
        assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values()), terms
        backward(terms)
    found = [*gradients(student), *(p.grad for p in method.parameters() if p.grad is not None)]
    # a gradient may be beyond float16, which is why half precision trains with a loss scale
    overflow = dtype == torch.float16
    assert found and all(not g.isnan().any() and (overflow or g.isfinite().all()) for g in found)
    assert all(b.isfinite().all() for b in method.buffers())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_single_image_gives_a_finite_loss(name: str, training: bool) -> None:
    method, student = build(name).train(training), view(STUDENT, seed=2, size=1)
    terms = losses(method, student, view(TEACHER, seed=3, size=1), batch(1))
    assert all(term.isfinite() for term in terms.values())
    backward(terms)
    assert all(gradient.isfinite().all() for gradient in gradients(student))


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_build_knows_nothing_of_another(name: str) -> None:
    student, teacher = view(STUDENT, seed=2), view(TEACHER, seed=3)
    first = build(name)
    start = losses(first, student, teacher, batch())
    for _ in range(3):
        backward(losses(first, student, teacher, batch()))
        with torch.no_grad():
            for parameter in first.parameters():
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad
    second = build(name)
    assert losses(second, student, teacher, batch()) == start
    owned = [{t.data_ptr() for t in (*m.parameters(), *m.buffers())} for m in (first, second)]
    assert owned[0].isdisjoint(owned[1])
    assert LABELS.data_ptr() not in owned[0]


@pytest.mark.parametrize("name", NAMES)
def test_in_eval_mode_nothing_changes_and_images_may_be_new(name: str) -> None:
    method, student, teacher = build(name), view(STUDENT, seed=2), view(TEACHER, seed=3)
    new = replace(batch(), index=torch.empty(0, dtype=torch.long))
    measured = []
    for steps in (0, 1):  # before training, and in its course
        for _ in range(steps):
            losses(method, student, teacher, batch())
        method.eval()
        before = {n: t.clone() for n, t in method.state_dict().items()}
        generator = torch.get_rng_state()
        terms = method(student, teacher, new)
        assert torch.equal(torch.get_rng_state(), generator), "measuring would change what training draws next"
        assert all(term.isfinite() for term in terms.values())
        assert method(student, teacher, new) == terms
        assert all(torch.equal(t, before[n]) for n, t in method.state_dict().items())
        measured.append(terms)
        method.train()
    assert set(measured[0]) == set(measured[1])
