"""The guides in docs/ hold word for word; every link of a page leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from doc_pages import DOCS, blocks, follow
from ruamel.yaml import YAML

from massive_sft.sweep.load import check_sweep

ROOT = DOCS.parent
PAGES = [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "cluster" / "README.md"]
FOLLOWED = ("benchmarks", "families", "gpu-node", "interpreting", "prompts")

# What pages name in the parts of sweep files that they show.
NAMED: dict[str, Any] = {
    "schema": 1,
    "name": "shown",
    "models": {name: {"hub": f"Qwen/{name}"} for name in ("Qwen2.5-0.5B", "Qwen2.5-1.5B")},
    "datasets": {name: {"path": f"{name}.jsonl", "format": "alpaca"} for name in ("alpaca", "gsm8k", "code", "flan")},
    "mixtures": {"each-1k": {"each": ["alpaca", "gsm8k"]}, "all": {"concat": "each-1k"}},
    "settings": {name: {"method": name, "lr": 1e-5, "batch": 32} for name in ("full", "lora")},
    "blocks": [
        {"name": "A", "model": "all", "mixture": "all", "setting": ["full", "lora"], "schedule": "constant"}
        | {"horizon": 1, "snapshots": 1}
    ],
    "evaluation": {"tasks": [{"name": name} for name in ("gsm8k", "mmlu", "humaneval")]},
    "measures": ["perplexity"],
    "storage": {"root": "runs"},
}

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize("name", FOLLOWED)
def test_guide_does_what_it_says(name: str, tmp_path: Path) -> None:
    follow(DOCS / "guides" / f"{name}.md", tmp_path)


def test_parts_of_sweep_files_that_pages_show_are_valid() -> None:
    shown = [(page, block) for page in PAGES for block in blocks(page) if block.language == "yaml" and not block.name]
    assert len(shown) > 8
    for page, block in shown:
        part = YAML(typ="safe", pure=True).load(block.text)
        check_sweep(NAMED | part, Path(f"{page.name}:{block.line}"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_readme_leads_to_every_guide() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in (DOCS / "guides").glob("*.md") if f"(docs/guides/{page.name})" not in text] == []
