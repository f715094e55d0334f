"""Compiled layers: they compute what the layers do, later trainings find them made, and what differs is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import make_base, make_samples, make_spec, train
from torch._dynamo.utils import counters

from massive_sft.core.errors import InvalidInput, Unsupported
from massive_sft.training.kernels import choose_kernels, compile_layers
from massive_sft.training.loading import load_for_training
from massive_sft.training.loss import SummedLoss
from massive_sft.training.packing import collate

CPU = torch.device("cpu")
SAMPLES = make_samples()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama")


def load(base: Path, **layout: Any) -> tuple[SummedLoss, Any]:
    spec = make_spec(base, layout=layout)
    return SummedLoss(load_for_training(spec, SAMPLES)), spec


def losses(loss: SummedLoss) -> list[float]:
    """Of micro-batches of one sample, two and three, each as wide as its longest."""
    groups = (range(1), range(1, 3), range(3, 6))
    return [float(loss(collate(SAMPLES, np.array(group), False)).detach()) for group in groups]


def made() -> int:
    return int(counters["stats"]["unique_graphs"])


def test_compiled_layers_compute_the_same_and_a_second_training_finds_them(base: Path) -> None:
    loss, spec = load(base)
    plain = losses(loss)
    assert compile_layers(loss, SAMPLES, spec.layout, CPU, backend="eager") is None
    before = made()
    assert losses(loss) == pytest.approx(plain, abs=1e-4)
    assert made() > before, "a single row has kernels of its own: the layers are compiled"
    again, _ = load(base)
    before = made()
    assert compile_layers(again, SAMPLES, spec.layout, CPU, backend="eager") is None
    assert losses(again) == pytest.approx(plain, abs=1e-4)
    assert made() == before


def wrong(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
    """A backend whose layers give a tenth too much."""
    return lambda *inputs: [1.1 * output for output in graph(*inputs)]


def failing(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
    raise RuntimeError("no compiler\nand more")


@pytest.mark.parametrize(("backend", "reason"), [(wrong, "its loss differs by "), (failing, "no compiler")])
def test_layers_that_differ_or_cannot_be_compiled_stay_as_they_were(base: Path, backend: Any, reason: str) -> None:
    loss, spec = load(base)
    plain = losses(loss)
    said = compile_layers(loss, SAMPLES, spec.layout, CPU, backend=backend)
    assert said is not None and reason in said and "\n" not in said
    assert losses(loss) == plain


def test_a_graph_that_breaks_is_no_compiled_layer(base: Path) -> None:
    loss, spec = load(base)
    loss.model.model.layers[0].register_forward_hook(lambda *_: torch._dynamo.graph_break())
    plain = losses(loss)
    assert "Unsupported" in (compile_layers(loss, SAMPLES, spec.layout, CPU, backend="eager") or "")
    assert losses(loss) == plain


def test_auto_compiles_no_short_training_and_none_on_a_cpu(base: Path) -> None:
    for layout in ({}, {"gpus": 1}, {"kernels": "plain"}):
        loss, spec = load(base)
        spec = spec.model_copy(update={"layout": spec.layout.model_copy(update=layout)})
        assert choose_kernels(loss, spec, SAMPLES, CPU) == "plain"


def test_kernels_that_cannot_be_had_are_refused_before_training(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="kernels: cannot be compiled under zero: 3"):
        train(make_spec(base, layout={"kernels": "compiled", "zero": 3}), SAMPLES, tmp_path)
    if torch.version.cuda is None:  # the build for CPUs comes without triton
        loss, spec = load(base)
        layout = spec.layout.model_copy(update={"gpus": 1, "kernels": "compiled"})
        with pytest.raises(Unsupported, match=r"triton is not installed.*use auto, or plain"):
            choose_kernels(loss, spec.model_copy(update={"layout": layout}), SAMPLES, CPU)


@pytest.mark.long
@pytest.mark.parametrize("layout", [{}, {"packing": True}, {"zero": 1, "gradient_checkpointing": True}], ids=str)
def test_training_by_the_kernels_of_a_compiler_is_that_of_torch(
    base: Path, tmp_path: Path, layout: dict[str, Any]
) -> None:
    _, plain = train(make_spec(base, (2,), layout=layout), SAMPLES, tmp_path / "plain")
    compiled = make_spec(base, (2,), layout={**layout, "kernels": "compiled"})
    summary, steps = train(compiled, SAMPLES, tmp_path / "compiled")
    assert summary.kernels == "compiled"
    assert [step.loss for step in steps] == pytest.approx([step.loss for step in plain], abs=1e-4)
