"""The sweep file of the offline world."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

_SWEEP = """\
# Two small models x three domains x full tuning and LoRA, snapshots after the first and the last epoch: 24 cells
# and 2 base rows out of 12 training runs.
schema: 1
name: tiny
models:
{models}
datasets:
  facts:   {{path: {facts}, format: alpaca}}
  reverse: {{path: {reverse}, format: gsm8k}}
  arith:   {{path: {arith}, format: messages}}
  sort:    {{path: {sort}, format: p3}}      # not in the sweep below: try it
mixtures:
  sample_seed: 0
  single: {{each: [facts, reverse, arith], samples: 1400}}
settings:
  defaults: {{template: paper, max_length: 128, precision: fp32}}
  full: {{method: full, lr: 5.0e-4, batch: 32}}
  lora: {{method: lora, lr: 2.0e-3, batch: 32, lora: {{rank: 16, alpha: 32, targets: all-linear}}}}
blocks:
  - {{name: A, model: all, mixture: single, setting: [full, lora], schedule: constant, horizon: 3, snapshots: [1, 3]}}
evaluation:
  base: true
  protocol: {{engine: plain, dtype: fp32, template: training, adapters: unmerged}}
  tasks:
{tasks}
measures: [perplexity, layer_change, token_length]
storage: {{root: {ledger}, keep_snapshots: {{full: none, lora: all}}}}
"""


def sweep_text(
    models: Mapping[str, Path], datasets: Mapping[str, Path], tasks: Mapping[str, Path], ledger: Path
) -> str:
    """Return the sweep file's text; all paths are written out as they are given."""
    return _SWEEP.format(
        models="\n".join(f"  {name}: {{path: {_quoted(path)}}}" for name, path in models.items()),
        tasks="\n".join(f"    - {{path: {_quoted(path)}}}" for name, path in tasks.items() if _swept(name)),
        ledger=_quoted(ledger),
        **{name: _quoted(path) for name, path in datasets.items()},
    )


def _swept(task: str) -> bool:
    return not task.startswith("sort")


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)
