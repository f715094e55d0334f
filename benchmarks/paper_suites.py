"""The paper's suites, and both benchmarks that need a judge, end to end on small local files: scores and times.

    MODELS=... DATA=... python benchmarks/paper_suites.py FOLDER [--only paper_generated judged]

``MODELS`` and ``DATA`` are the folders of ``sweeps/real_model.yaml``, whose model is asked as it is and after a short
LoRA training. FOLDER gets the data sets (``paper_data.py``), found by their names on the hub through the same code, the
sweep file and all that the run keeps. The judge is a server in this process that says a number by the prompt's hash:
what is tried is the way, not the model.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from paper_data import CAPITALS, write_hub

from massive_sft.ledger.store import Ledger
from massive_sft.suites.metrics import headline, primary_metric
from massive_sft.suites.suite import shipped

JUDGE = "judge-of-this-machine"
QUESTIONS = 4  # of each benchmark that is judged
JUDGED = "judged"  # beside the suites: what needs a judge


class _Judge(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = int(hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest(), 16)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        text = "m" if body.get("logprobs") else f"Rating: [[{number % 10 + 1}]]"
        choice["message"] = {"role": "assistant", "content": text}
        if body.get("logprobs"):
            top = [{"token": "m", "logprob": -(number % 7) / 5}, {"token": "M", "logprob": -(number % 5) / 5}]
            choice["logprobs"] = {"content": [{"token": "m", "logprob": 0.0, "top_logprobs": top}]}
        usage = {"prompt_tokens": 300, "completion_tokens": 5}
        answer = {"object": "chat.completion", "model": JUDGE, "choices": [choice], "usage": usage}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def judge_address() -> Iterator[str]:
    """Serve a judge until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def write_judged(folder: Path, data: Path) -> None:
    """Write questions of both judged benchmarks, and a baseline's answers, in their published forms."""
    with (data / "bench/mt_bench_questions.jsonl").open(encoding="utf-8") as file:
        (folder / "question.jsonl").write_text("".join(itertools.islice(file, QUESTIONS)), encoding="utf-8")
    asked = [f"Tell me about {country} in one sentence." for country, *_ in CAPITALS[: 2 * QUESTIONS]]
    answers = [f"{country} is a country whose capital is {capital}." for country, capital, *_ in CAPITALS]
    entries = [
        {"instruction": text, "output": answer, "generator": "baseline", "dataset": "own"}
        for text, answer in zip(asked, answers, strict=False)
    ]
    for name in ("alpaca_eval.json", "baseline.json"):
        (folder / name).write_text(json.dumps(entries), encoding="utf-8")


def sweep(address: str, only: Sequence[str]) -> dict[str, Any]:
    """Return the sweep: the base model, and one short LoRA training of it, on suites and ``JUDGED``."""
    price = {"input": 2.5, "output": 10}
    judge = {"name": JUDGE, "endpoint": address, "key": "PAPER_JUDGE_KEY", "price": price, "max_tokens": 64}
    judged = [
        {"kind": "mt_bench", "questions": "question.jsonl", "max_tokens": 64},
        {"kind": "win_rate", "questions": "alpaca_eval.json", "baseline": "baseline.json", "max_tokens": 64,
         "logprobs": True},
    ]  # fmt: skip
    lora = {"rank": 8, "alpha": 16, "targets": "all-linear"}
    judging = {"judging": {"judges": [judge], "benchmarks": judged, "budget": 1}} if JUDGED in only else {}
    setting = {"method": "lora", "lr": 2.0e-4, "batch": 16, "max_length": 256, "precision": "fp32", "lora": lora}
    block = {"name": "A", "model": "all", "mixture": "gsm8k", "setting": "lora", "schedule": "constant"}
    return {
        "schema": 1,
        "name": "paper-suites",
        "models": {"SmolLM2-135M": {"path": "${MODELS}/smollm2"}},
        "datasets": {"gsm8k": {"path": "${DATA}/train/gsm8k.jsonl", "format": "gsm8k"}},
        "mixtures": {"gsm8k": {"each": "gsm8k", "samples": 32}},
        "settings": {"lora": {**setting, "template": "paper", "truncation": "left"}},
        "blocks": [block | {"horizon": 1, "snapshots": [1]}],
        "evaluation": {
            "protocol": {"dtype": "fp32", "engine": "trie"},
            "suites": [name for name in only if name != JUDGED],
            "allow_code_execution": True,
            **judging,
        },
        "measures": [],
        "storage": {"root": "runs"},
    }


def table(folder: Path) -> list[str]:
    """Return each benchmark's scores and seconds, of the base model and of the tuned one, as lines of Markdown."""
    records = {record.coordinates["setting"]: record for record in Ledger.open(folder / "runs", create=False).records()}
    lines = [f"{record.coordinates['setting']}: {record.status}, {record.missing}" for record in records.values()]
    lines += [
        "",
        "| benchmark | metric | questions | base | tuned | base s | tuned s |",
        "|---|---|---|---|---|---|---|",
    ]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for setting, record in records.items():
        for scores in record.scores.values():
            for kind, name in headline(scores):
                entries = (scores.groups if kind == "group" else scores.tasks)[name]
                for metric in {primary_metric(entries), "opencompass_acc,none", "lc_win_rate,none"} & entries.keys():
                    row = found.setdefault((scores.benchmark, str(metric)), {})
                    row |= {setting: entries[metric].value, "n": entries[metric].n}
                    row[f"{setting} s"] = record.cost["seconds"].get(scores.asked, 0.0)
    for (benchmark, metric), row in sorted(found.items()):
        values = " | ".join("" if row.get(name) is None else f"{row[name]:.3f}" for name in ("none", "lora"))
        seconds = " | ".join(f"{row.get(f'{name} s', 0.0):.0f}" for name in ("none", "lora"))
        lines.append(f"| {benchmark} | {metric} | {row['n']} | {values} | {seconds} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    everything = [*shipped(), JUDGED]
    parser.add_argument("--only", nargs="+", choices=everything, default=everything)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    data = Path(os.environ["DATA"]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    write_hub(folder, data)
    write_judged(folder, data)
    os.environ |= {"HF_HUB_OFFLINE": "1", "JMMLU": str(folder / "JMMLU"), "PAPER_JUDGE_KEY": "none"}
    os.chdir(folder)  # where `datasets` looks for a name before it asks the hub
    with judge_address() as address:
        Path("sweep.yaml").write_text(yaml.safe_dump(sweep(address, arguments.only), sort_keys=False))
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "massive_sft", "run", "sweep.yaml", "--inline"])
        print(f"exit {done.returncode} after {time.perf_counter() - began:,.0f} s")
    print("\n".join(table(folder)))


if __name__ == "__main__":
    main()
