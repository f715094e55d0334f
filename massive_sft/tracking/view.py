"""The sweep's view of its runs: columns and charts that MLflow's pages show to whoever opens them by its key.

MLflow keeps what a browser shows in that browser; what a server can offer is a saved view, an experiment's tag.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence

from massive_sft.tracking.metric_names import GAIN

KEY = "massive-sft"
TAG = f"mlflow.sharedViewState.{KEY}"
"""The experiment's tag that MLflow (3.17 on by name, 3 before without) reads the view from."""
PARAMS = ("model", "mixture", "method", "lr", "seed", "epoch")
CURVES, SCORES, GAINS = "training", "scores", "gains"
"""The first sections of the charts; MLflow adds one for each other prefix of metrics."""
_DEFLATED = "deflate;"


def make_view(metrics: Sequence[str], time_ms: int, tags: Sequence[str] = ()) -> str:
    """Return the tag's value for a view with ``PARAMS``, these tags and these scores and gains as columns.

    Its charts begin with the loss by step, then the scores and the gains of the runs beside each other.
    """
    columns = [f"params.`{name}`" for name in PARAMS] + [f"tags.`{name}`" for name in tags]
    columns += [f"metrics.`{name}`" for name in metrics]
    charts = [_chart("LINE", CURVES, f"{CURVES}/loss")]
    charts += [_chart("BAR", GAINS if name.startswith(f"{GAIN}/") else SCORES, name) for name in metrics]
    state = {
        "selectedColumns": columns,
        "columnOrder": columns,
        "compareRunCharts": charts,
        "compareRunSections": [_section(name) for name in (CURVES, SCORES, GAINS)],
        "isAccordionReordered": True,
    }
    # A tag takes 5,000 characters, which the columns of many benchmarks would fill.
    packed = _DEFLATED + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    return json.dumps({"name": KEY, "createdAt": time_ms, "updatedAt": time_ms, "state": packed})


def view_columns(value: str) -> tuple[list[str], list[str]] | None:
    """Return the metrics and the tags among a view's columns; None for a view that somebody changed."""
    try:
        view = json.loads(value)
        if view["updatedAt"] != view["createdAt"]:
            return None
        state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix(_DEFLATED))))
        columns = [column.split("`") for column in state["selectedColumns"]]
        metrics, tags = ([name for kind, name, _ in columns if kind == of] for of in ("metrics.", "tags."))
        return metrics, tags
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, zlib.error):
        return None


def _section(name: str) -> dict[str, object]:
    made = {"uuid": f"section {name}", "name": name, "display": True, "isReordered": True}
    return made | {"deleted": False, "isGenerated": True}


def _chart(kind: str, section: str, metric: str) -> dict[str, object]:
    """Return a chart as MLflow keeps one; what a bar chart has no use for, it does not read."""
    about = {"type": kind, "uuid": f"chart {metric}", "metricSectionId": f"section {section}", "metricKey": metric}
    shown = {"displayName": metric, "runsCountToCompare": 10, "deleted": False, "isGenerated": True}
    axes = {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "yAxisKey": "metric", "range": {}}
    line = {"lineSmoothness": 0, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True, "yAxisExpressions": []}
    return {**about, **shown, **(axes | line if kind == "LINE" else {})}
