"""Which files a model's weights are read from, and what is said of those that are no weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import make_base

from massive_sft.core.errors import InvalidInput
from massive_sft.cost.shapes import shape_of
from massive_sft.models import pretrained
from massive_sft.sweep import weight_files
from massive_sft.sweep.content import Contents
from massive_sft.sweep.schema import Model

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("made") / "base")


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "base"))


def weights_id(folder: Path) -> str:
    contents = Contents(Path("/"))
    content = contents.model(Model(path=str(folder)), "models.m")
    weights = str(content["weights"])
    return weights if weights.startswith("files:") else str(contents.missing["models.m.path"])


def sharded(folder: Path) -> list[Path]:
    """Replace a folder's weights by two shards with an index, named as nobody else would."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"part-a.safetensors": names[::2], "part-b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    where = {name: file for file, held in parts.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return [folder / file for file in parts]


def test_files_that_nobody_reads_change_nothing(base: Path) -> None:
    before = weights_id(base), shape_of(Model(path=str(base)))
    shutil.copy(base / "model.safetensors", base / "consolidated.safetensors")
    shutil.copy(base / "model.safetensors", base / "aaa.safetensors")
    torch.save({}, base / "pytorch_model.bin")
    (base / INDEX).write_text("{}")
    assert (weights_id(base), shape_of(Model(path=str(base)))) == before
    assert weight_files.find(base) == [base / "model.safetensors"]


def test_shards_are_those_of_the_index(base: Path) -> None:
    whole = shape_of(Model(path=str(base)))
    shards = sharded(base)
    assert weight_files.find(base) == shards
    (base / "model-00001-of-00002.safetensors").write_bytes(b"of another time")
    assert weight_files.find(base) == shards
    assert shape_of(Model(path=str(base))) == whole
    pretrained.load_model(Model(path=str(base)), "fp32")


def test_configuration_may_name_the_file(base: Path) -> None:
    (base / "model.safetensors").rename(base / "mine.safetensors")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"transformers_weights": "mine.safetensors"}))
    assert weight_files.find(base) == [base / "mine.safetensors"]
    pretrained.load_model(Model(path=str(base)), "fp32")


def pointer(folder: Path) -> None:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4096\n"
    (folder / "model.safetensors").write_text(text)


def page(folder: Path) -> None:
    (folder / "model.safetensors").write_text("\n<!DOCTYPE html><html><body>Sign in</body></html>")


def cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def cut_in_the_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def none(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def link_to_nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blobs/gone")


def shard_missing(folder: Path) -> None:
    sharded(folder)[1].unlink()


def broken_index(folder: Path) -> None:
    sharded(folder)
    (folder / INDEX).write_text('{"weight_map": ')


def cut_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:-200])
    (folder / "model.safetensors").unlink()


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../other"}))
    shutil.copy(folder / "model.safetensors", folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (pointer, "model.safetensors is a Git LFS pointer, not the weights; run `git lfs pull`"),
        (page, "model.safetensors is a web page, not weights; download it again"),
        (cut, "bytes where its header says"),
        (cut_in_the_header, "model.safetensors is no safetensors file, or cut short; download it again"),
        (empty, "model.safetensors is no safetensors file, or cut short"),
        (none, "has no weights: neither model.safetensors nor pytorch_model.bin"),
        (link_to_nothing, "model.safetensors is a link to a file that is not there; download it again"),
        (shard_missing, "part-b.safetensors is missing, though the index beside it names it"),
        (broken_index, "is no index of weight files"),
        (cut_bin, "pytorch_model.bin is no file of PyTorch weights, or cut short"),
        (adapter, "is an adapter (adapter_config.json)"),
    ],
)
def test_what_is_no_weights_is_named_with_the_remedy(damage: Callable[[Path], None], said: str, base: Path) -> None:
    damage(base)
    assert said in weights_id(base)
    shape = shape_of(Model(path=str(base)))
    assert shape is not None and shape.source == "config"
    with pytest.raises(InvalidInput):
        pretrained.load_model(Model(path=str(base)), "fp32")


def test_weights_that_are_lacking_are_not_made_up(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InvalidInput, match=r"would be random, got 'model\.layers\.1\.mlp\.up_proj\.weight, model\.norm"
    ):
        pretrained.load_model(Model(path=str(base)), "fp32")


@pytest.mark.parametrize(
    ("names", "loaded"),
    [
        ({"pytorch_model.bin", "adapter/x.safetensors"}, {"pytorch_model.bin"}),
        ({"model.safetensors", "consolidated.safetensors", "pytorch_model.bin"}, {"model.safetensors"}),
        (
            {INDEX, "model-1-of-2.safetensors", "model-2-of-2.safetensors", "consolidated.safetensors", "x.bin"},
            {INDEX, "model-1-of-2.safetensors", "model-2-of-2.safetensors"},
        ),
        ({"onnx/model.safetensors", "consolidated.safetensors"}, set()),
    ],
)
def test_files_of_a_repository(names: set[str], loaded: set[str]) -> None:
    assert weight_files.select(names) == loaded
