"""What every distillation method keeps to, as tests that a class with its name inherits.

All but `ce`, which isn't built for a Task. That a loss is the published one is for a test of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from smskd import methods
from smskd.methods.base import Batch, Method, Task, View
from smskd.models import Output
from smskd.settings import Setting, Value
from smskd.stage import reads_of

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
    logits, embedding = drawn(CLASSES), drawn(maps[-1][0])
    raw = tuple(drawn(channels, side, side) for channels, side in maps)
    return View(Output(logits=logits, features=features, embedding=embedding, before_relu=raw), hint_index)


def batch(size: int = SIZE) -> Batch:
    """Labels and places of `size` training images."""
    index = torch.arange(size) * 3
    return Batch(LABELS[index], index)


def losses(method: Method, student: View, teacher: View, of: Batch) -> dict[str, Tensor]:
    """The method's terms, with all that it draws drawn from one seed."""
    torch.manual_seed(11)
    found: dict[str, Tensor] = method(student, teacher, of)
    return found


def other_values(one: Setting) -> list[Value]:
    """Values that a setting may have beside its default, as far as they can be guessed from its declaration."""
    default = one.default
    if one.many or (one.kind is str and not one.choices):
        return []
    if one.kind is str or one.kind is bool:
        tried: list[Value] = [value for value in one.choices or (True, False) if value != default]
    else:
        tried = [2 * default, default / 2, default + 1, default - 1, one.low, one.high]
        tried = [round(value) if one.kind is int else value for value in tried if value is not None]
    found = []
    for value in tried:
        try:
            read = one.read(value)
        except ValueError:
            continue
        if read != default and read not in found:
            found.append(read)
    return found


def _changed(of: View, change: Callable[[Tensor], Tensor]) -> View:
    """The same outputs after a change, as leaves again."""

    def leaf(tensor: Tensor) -> Tensor:
        return change(tensor.detach()).clone().requires_grad_()

    logits, features, embedding, raw = of.output
    made = Output(leaf(logits), tuple(map(leaf, features)), leaf(embedding), tuple(map(leaf, raw)))
    return View(made, of.hint_index)


def _gradients(of: View) -> list[Tensor]:
    logits, features, embedding, raw = of.output
    return [t.grad for t in (logits, embedding, *features, *raw) if t.grad is not None]


def _backward(terms: Mapping[str, Tensor]) -> None:
    torch.autograd.backward(torch.stack(list(terms.values())).sum())


def _one_hot(tensor: Tensor) -> Tensor:
    """1000 at one place of dimension 1, the same for all of a sample, and 0 elsewhere: logits that are sure."""
    places = torch.arange(len(tensor)) % tensor.shape[1]
    result = torch.zeros_like(tensor)
    result[torch.arange(len(tensor)), places] = 1000
    return result


HOSTILE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "identical samples": lambda t: t[:1].expand_as(t),
    "huge": lambda t: 1e4 * t,
    "all huge": lambda t: torch.full_like(t, 1e4),
    "one-hot": _one_hot,
    "tiny": lambda t: 1e-12 * t,
}


class MethodContract:
    """Tests of the method of this name."""

    method: str

    @property
    def declared(self) -> Mapping[str, Setting]:
        """Its settings, as its file declares them."""
        return methods.declaration(self.method).settings

    def settings(self, **others: Value) -> dict[str, Value]:
        """The default of each setting, unless another value is given."""
        return {name: one.default for name, one in self.declared.items()} | others

    def build(self, **settings: Value) -> Method:
        """The method as a stage builds it, always from the same seed, in train mode."""
        torch.manual_seed(7)
        task = Task(view(STUDENT, seed=0, size=2), view(TEACHER, seed=1, size=2), self.settings(**settings), LABELS)
        built: Method = methods.load(self.method).build(task)
        return built.train()

    def variants(self) -> Iterator[dict[str, Value]]:
        """Settings with one other value each, as far as the method can be built with it on these networks."""
        for name, one in self.declared.items():
            for value in other_values(one):
                try:
                    self.build(**{name: value})
                except ValueError:  # a layer that there isn't
                    continue
                yield {name: value}

    @pytest.fixture(autouse=True)
    def _own_generator(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            yield

    # --- what its file says

    def test_it_is_found_and_says_what_it_is(self) -> None:
        assert self.method in methods.available()
        assert (methods.load(self.method).__doc__ or "").strip()

    def test_its_settings_are_declared_once_with_defaults_within_their_bounds(self) -> None:
        said = methods.load(self.method).SETTINGS
        assert isinstance(said, tuple) and len({one.name for one in said}) == len(said)
        assert {one.name: one for one in said} == self.declared, "what is read without running the file is the same"
        for name, one in self.declared.items():
            assert re.fullmatch("[a-z][a-z0-9_]*", name)
            assert one.help.strip(), f"{name} must say what it is for"
            assert one.read(one.default) == one.default
        assert self.declared["weight"].low == 0 and self.declared["weight"].kind is float
        assert self.declared["weight"].default > 0
        assert methods.declaration(self.method).ce >= 0

    def test_it_says_what_it_reads(self) -> None:
        for settings in ({}, *self.variants()):
            reads = reads_of(self.method, self.settings(**settings))
            assert reads and reads <= {"logits", "embedding", "hint", "features", "before_relu"}

    def test_it_is_built_with_its_settings(self) -> None:
        for settings in ({}, *self.variants()):
            assert self.build(**settings).settings == self.settings(**settings)

    # --- its terms

    def test_terms_are_float32_scalars_named_after_it(self) -> None:
        terms = losses(self.build(), view(STUDENT, seed=2), view(TEACHER, seed=3), batch())
        assert terms and all(term == self.method or term.startswith(f"{self.method}_") for term in terms)
        assert all(loss.shape == () and loss.dtype == torch.float32 and loss.isfinite() for loss in terms.values())
        assert all(loss != 0 for loss in terms.values())

    def test_weight_multiplies_all_its_terms(self) -> None:
        def found(weight: float) -> dict[str, float]:
            terms = losses(self.build(weight=weight), view(STUDENT, seed=2), view(TEACHER, seed=3), batch())
            return {term: loss.item() for term, loss in terms.items()}

        published = self.settings()["weight"]
        plain = found(published)
        for factor in (0.0, 0.5, 2.0):
            wanted = {term: factor * loss for term, loss in plain.items()}
            assert found(factor * published) == pytest.approx(wanted, rel=1e-5)

    def test_each_setting_has_an_effect(self) -> None:
        """On the terms of two steps, or on what is built or remembered. Values that can't be guessed aren't tried."""

        def effect(**settings: Value) -> list[Any]:
            method = self.build(**settings)
            built = [(name, tuple(t.shape), t.double().sum().item()) for name, t in method.state_dict().items()]
            student, teacher = view(STUDENT, seed=2), view(TEACHER, seed=3)
            terms = [{n: t.item() for n, t in losses(method, student, teacher, batch()).items()} for _ in range(2)]
            return [built, *terms]

        plain = effect()
        changed = {name for settings in self.variants() if effect(**settings) != plain for name in settings}
        tried = {name for name, one in self.declared.items() if other_values(one)}
        assert tried - changed == set(), "these settings change nothing"

    def test_gradient_reaches_the_student_and_all_parameters_and_never_the_teacher(self) -> None:
        method, student, teacher = self.build(), view(STUDENT, seed=2), view(TEACHER, seed=3)
        _backward(losses(method, student, teacher, batch()))
        assert any(gradient.abs().sum() > 0 for gradient in _gradients(student))
        assert _gradients(teacher) == []
        unreached = [n for n, p in method.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert unreached == []

    def test_only_what_is_read_is_looked_at(self) -> None:
        """The teacher's other outputs may be empty, as smskd.teacher.Teacher leaves them."""
        student, teacher = view(STUDENT, seed=2), view(TEACHER, seed=3)
        for settings in ({}, *self.variants()):
            reads = reads_of(self.method, self.settings(**settings))
            empty = torch.empty(0)
            logits, features, embedding, raw = teacher.output
            kept = Output(
                logits if "logits" in reads else empty,
                tuple(
                    maps if "features" in reads or ("hint" in reads and place == teacher.hint_index) else empty
                    for place, maps in enumerate(features)
                ),
                embedding if "embedding" in reads else empty,
                raw if "before_relu" in reads else (),
            )
            whole = losses(self.build(**settings), student, teacher, batch())
            assert losses(self.build(**settings), student, View(kept, teacher.hint_index), batch()) == whole

    # --- hostile input

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("side", ["student", "teacher", "both"])
    @pytest.mark.parametrize("case", HOSTILE)
    def test_hostile_outputs_give_finite_losses_and_gradients(self, case: str, side: str, dtype: torch.dtype) -> None:
        student, teacher = (
            _changed(of, lambda t, bad=bad: (HOSTILE[case](t) if bad else t).to(dtype))  # type: ignore[misc]
            for of, bad in (
                (view(STUDENT, seed=2), side != "teacher"),
                (view(TEACHER, seed=3), side != "student"),
            )
        )
        method = self.build()
        for _ in range(2):  # the second time with whatever the first one left in a memory
            terms = losses(method, student, teacher, batch())
            assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values()), terms
            _backward(terms)
        found = [*_gradients(student), *(p.grad for p in method.parameters() if p.grad is not None)]
        # a gradient may be beyond float16, which is why half precision trains with a loss scale
        overflow = dtype == torch.float16
        assert found and all(not g.isnan().any() and (overflow or g.isfinite().all()) for g in found)
        assert all(b.isfinite().all() for b in method.buffers())

    @pytest.mark.parametrize("training", [True, False])
    def test_a_single_image_gives_a_finite_loss(self, training: bool) -> None:
        method, student = self.build().train(training), view(STUDENT, seed=2, size=1)
        terms = losses(method, student, view(TEACHER, seed=3, size=1), batch(1))
        assert all(term.isfinite() for term in terms.values())
        _backward(terms)
        assert all(gradient.isfinite().all() for gradient in _gradients(student))

    # --- its state

    def test_a_fresh_build_knows_nothing_of_another(self) -> None:
        student, teacher = view(STUDENT, seed=2), view(TEACHER, seed=3)
        first = self.build()
        start = losses(first, student, teacher, batch())
        for _ in range(3):
            _backward(losses(first, student, teacher, batch()))
            with torch.no_grad():
                for parameter in first.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(0.1 * parameter.grad)
        second = self.build()
        assert losses(second, student, teacher, batch()) == start
        owned = [{t.data_ptr() for t in (*m.parameters(), *m.buffers())} for m in (first, second)]
        assert owned[0].isdisjoint(owned[1])
        assert LABELS.data_ptr() not in owned[0]

    def test_in_eval_mode_nothing_changes_and_images_may_be_new(self) -> None:
        method, student, teacher = self.build(), view(STUDENT, seed=2), view(TEACHER, seed=3)
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
