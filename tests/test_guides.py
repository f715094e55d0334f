"""The guides in docs/ hold word for word; every link of a page leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_pages import DOCS, follow

ROOT = DOCS.parent
PAGES = [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "cluster" / "README.md"]
FOLLOWED = ("benchmarks", "families", "gpu-node", "interpreting", "prompts")

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize("name", FOLLOWED)
def test_guide_does_what_it_says(name: str, tmp_path: Path) -> None:
    follow(DOCS / "guides" / f"{name}.md", tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_readme_leads_to_every_guide() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in (DOCS / "guides").glob("*.md") if f"(docs/guides/{page.name})" not in text] == []
