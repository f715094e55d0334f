"""Layer change against the same numbers computed from whole dense matrices."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_training import make_base, make_samples, make_spec, train
from transformers import AutoModelForCausalLM

from massive_sft.core.errors import Corrupt, InvalidInput
from massive_sft.measures import layer_change
from massive_sft.models.weight_tensors import WeightTensors
from massive_sft.sweep.schema import Model


def trained(folder: Path, family: str = "llama", **setting: Any) -> tuple[Path, Path]:
    """Return (base folder, snapshot folder)."""
    base = make_base(folder / "base", family)
    spec = make_spec(base, layout={"zero": 1}, **{"lr": 1e-2, "lora": {"rank": 3, "alpha": 5}, **setting})
    summary, _ = train(spec, make_samples(), folder)
    return base, summary.snapshots[1]


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def check(row: dict[str, Any], start: torch.Tensor, end: torch.Tensor) -> None:
    """Compare a row with dense float64 results."""
    start, end = start.double(), end.double()
    delta = end - start
    assert row["numel"] == start.numel()
    assert row["base_norm"] == pytest.approx(float(start.norm()), rel=1e-6)
    assert row["final_norm"] == pytest.approx(float(end.norm()), rel=1e-6)
    assert row["delta_norm"] == pytest.approx(float(delta.norm()), rel=1e-6, abs=1e-12)
    assert row["relative"] == pytest.approx(float(delta.norm() / start.norm()), rel=1e-6, abs=1e-12)
    assert row["max_abs"] == pytest.approx(float(delta.abs().max()), rel=1e-6, abs=1e-12)
    cosine = torch.nn.functional.cosine_similarity(start.reshape(-1), end.reshape(-1), dim=0)
    assert row["cosine"] == pytest.approx(float(cosine), abs=1e-6)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are read in many pieces, the last one shorter, as large ones are."""
    monkeypatch.setattr(layer_change, "_CHUNK", 300)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layer_change_full_equals_dense_differences(tmp_path: Path, precision: str) -> None:
    base, snapshot = trained(tmp_path, precision=precision)
    start, end = state(base), state(snapshot)
    table = layer_change.layer_change(Model(path=str(base)), snapshot).to_pylist()
    assert {row["tensor"] for row in table} == set(end)
    for row in table:
        before = start[row["tensor"]].to(end[row["tensor"]].dtype)
        check(row, before, end[row["tensor"]])
        assert row["method"] == "full"


def test_layer_change_adapter_equals_the_merged_difference(tmp_path: Path) -> None:
    base, snapshot = trained(tmp_path, method="lora")
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).double(), snapshot)
    end = merged.double().merge_and_unload().state_dict()
    start = state(base)
    table = layer_change.layer_change(Model(path=str(base)), snapshot).to_pylist()
    adapted = [row for row in table if row["method"] == "lora"]
    assert len(adapted) == 2 * 7
    assert {row["tensor"] for row in table} == set(WeightTensors([base / "model.safetensors"]).names())
    for row in (row for row in table if row["method"] == "frozen"):
        assert row["delta_norm"] == row["max_abs"] == 0
        assert row["base_norm"] == pytest.approx(float(start[row["tensor"]].double().norm()), rel=1e-6)
    for row in adapted:
        check(row, start[row["tensor"]], end[row["tensor"]])
        assert row["rounding_floor"] == 0


def test_layer_change_adapter_on_transposed_weights_equals_the_merged_difference(tmp_path: Path) -> None:
    base, snapshot = trained(tmp_path, family="gpt2", method="lora")
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), snapshot)
    end = merged.merge_and_unload().state_dict()
    table = layer_change.layer_change(Model(path=str(base)), snapshot).to_pylist()
    for row in (row for row in table if row["method"] == "lora"):
        start = state(base)[row["tensor"]]
        assert row["cosine"] == pytest.approx(
            float(torch.nn.functional.cosine_similarity(start.reshape(-1), end[row["tensor"]].reshape(-1), dim=0)),
            abs=1e-5,
        )


def test_layer_change_rounding_floor_is_what_casting_alone_does(tmp_path: Path) -> None:
    base, snapshot = trained(tmp_path, precision="bf16")
    for row in layer_change.layer_change(Model(path=str(base)), snapshot).to_pylist():
        start = state(base)[row["tensor"]]
        if start.dim() == 2:
            cast = float((start.bfloat16().float() - start).norm() / start.norm())
            assert row["rounding_floor"] == pytest.approx(cast, rel=0.1)
            assert row["rounding_floor"] == pytest.approx(1.7e-3, rel=0.1)


def test_layer_change_fp32_has_no_rounding_floor(tmp_path: Path) -> None:
    base, snapshot = trained(tmp_path)
    assert {
        row["rounding_floor"] for row in layer_change.layer_change(Model(path=str(base)), snapshot).to_pylist()
    } == {0.0}


def test_layer_change_untrained_snapshot_is_zero(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    for row in layer_change.layer_change(Model(path=str(base)), base).to_pylist():
        assert row["relative"] == 0 and row["cosine"] == pytest.approx(1)
        assert row["effective_rank"] is row["singular_values"] is None


def test_layer_change_counts_the_weights_that_changed(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    shutil.copytree(base, tmp_path / "end")
    weights = {name: value.contiguous() for name, value in state(base).items()}
    moved = next(name for name, value in weights.items() if value.dim() == 2)
    weights[moved] = weights[moved].clone()
    weights[moved][0, :3] += 0.5
    save_file(weights, tmp_path / "end" / "model.safetensors", {"format": "pt"})
    table = layer_change.layer_change(Model(path=str(base)), tmp_path / "end")
    assert {row["tensor"]: row["changed"] for row in table.to_pylist() if row["changed"]} == {moved: 3}
    _, adapter = trained(tmp_path / "lora", method="lora")
    for row in layer_change.layer_change(Model(path=str(base)), adapter).to_pylist():
        assert row["changed"] == (row["numel"] if row["method"] == "lora" else 0)


def test_layer_change_tied_weights_have_one_row(tmp_path: Path) -> None:
    base, snapshot = trained(tmp_path, family="qwen2")
    kinds = [row["kind"] for row in layer_change.layer_change(Model(path=str(base)), snapshot).to_pylist()]
    assert kinds.count("embed") == 1 and "head" not in kinds


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm"}),
        ("neox", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "norm"}),
        ("gpt2", {"c_attn", "attn.c_proj", "c_fc", "mlp.c_proj", "norm"}),
    ],
)
def test_layer_change_names_layers_and_kinds(tmp_path: Path, family: str, expected: set[str]) -> None:
    base = make_base(tmp_path / "base", family)
    rows = layer_change.layer_change(Model(path=str(base)), base).to_pylist()
    assert {row["layer"] for row in rows} == {0, 1, None}
    assert {row["kind"] for row in rows if row["layer"] == 0} == expected
    assert {row["kind"] for row in rows if row["layer"] is None} >= {"embed", "norm"}
    assert ("head" in {row["kind"] for row in rows}) == (family != "gpt2")


def test_layer_change_finds_weights_stored_without_the_models_prefix(tmp_path: Path) -> None:
    base, snapshot = trained(tmp_path, family="gpt2")
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    save_file(
        {name.removeprefix("transformer."): value.contiguous() for name, value in state(base).items()},
        bare / "model.safetensors",
    )
    with_prefix = layer_change.layer_change(Model(path=str(base)), snapshot)
    assert layer_change.layer_change(Model(path=str(bare)), snapshot).equals(with_prefix)


def test_layer_change_of_another_model_is_refused(tmp_path: Path) -> None:
    base, other = make_base(tmp_path / "base"), make_base(tmp_path / "other", "neox")
    with pytest.raises(Corrupt):
        layer_change.layer_change(Model(path=str(base)), other)


def test_layer_change_reads_the_files_that_transformers_reads(tmp_path: Path) -> None:
    base, snapshot = trained(tmp_path)
    plain = layer_change.layer_change(Model(path=str(base)), snapshot)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state(base).items()}
    save_file(zeros, base / "stray.safetensors")
    save_file({f"other.{name}": tensor for name, tensor in zeros.items()}, base / "consolidated.safetensors")
    assert layer_change.layer_change(Model(path=str(base)), snapshot).equals(plain)


@pytest.mark.parametrize("newer", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_layer_change_of_a_base_in_pytorch_format_is_that_of_safetensors(
    method: str, newer: bool, tmp_path: Path
) -> None:
    base, snapshot = trained(tmp_path, method=method)
    plain = layer_change.layer_change(Model(path=str(base)), snapshot)
    torch.save(state(base), base / "pytorch_model.bin", _use_new_zipfile_serialization=newer)
    (base / "model.safetensors").unlink()
    assert layer_change.layer_change(Model(path=str(base)), snapshot).equals(plain)


def test_adapter_has_one_row_for_a_tied_weight_that_the_base_stores_twice(tmp_path: Path) -> None:
    base, snapshot = trained(tmp_path, family="qwen2", method="lora")
    plain = layer_change.layer_change(Model(path=str(base)), snapshot)
    tensors = state(base)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, base / "model.safetensors")
    assert layer_change.layer_change(Model(path=str(base)), snapshot).equals(plain)


def test_layer_change_base_without_weights_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match=r"model\.safetensors"):
        layer_change.layer_change(Model(path=str(tmp_path / "empty")), base)


def test_summary_is_of_all_weights_and_of_a_layers_as_of_one_long_tensor(tmp_path: Path) -> None:
    base, snapshot = trained(tmp_path, family="neox", precision="bf16")
    end = state(snapshot)
    start = {name: value.to(end[name].dtype) for name, value in state(base).items() if name in end}
    table = layer_change.layer_change(Model(path=str(base)), snapshot)
    assert sum(table["numel"].to_pylist()) == sum(value.numel() for value in end.values())
    summary = layer_change.summary(table)
    for found, part in ((summary["relative"], ""), (summary["relative_by_layer"]["1"], "gpt_neox.layers.1.")):
        names = [name for name in end if name.startswith(part)]
        before, after = (torch.cat([weights[name].double().reshape(-1) for name in names]) for weights in (start, end))
        assert found == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-6)
        if not part:
            delta = (after - before).abs()
            assert (summary["weights"], summary["changed"]) == (len(before), int((delta > 0).sum()))
            assert summary["max_abs"] == pytest.approx(float(delta.max()), rel=1e-6)
    assert 1e-4 < summary["rounding_floor"] < 1e-2
    assert list(summary["relative_by_layer"]) == ["0", "1"]


def test_write_reads_back_equal(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    table = layer_change.layer_change(Model(path=str(base)), base)
    (tmp_path / "layers.parquet").write_bytes(layer_change.to_parquet(table))
    assert pq.read_table(tmp_path / "layers.parquet").equals(table)
