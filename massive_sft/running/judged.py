"""A cell's score on a benchmark that is judged: its answers, their verdicts, the table."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from massive_sft.evaluation.evaluate import EvaluationResult, LazyScorer
from massive_sft.evaluation.protocol import ScoreCache, protocol_id, write
from massive_sft.evaluation.sample_values import parquet
from massive_sft.evaluation.wrapping import Wrapping
from massive_sft.judging.answering import Conversation, answer_turns, first_turns
from massive_sft.judging.judged import Prepared, judge, prepare
from massive_sft.ledger.record import AWAITED
from massive_sft.ledger.store import Ledger
from massive_sft.planning.requirements import Requirement
from massive_sft.sweep.schema import Evaluation

TRANSCRIPTS = "verdicts"  # of a cell: every prompt, answer and verdict, by protocol


@dataclass(frozen=True)
class JudgedScoring:
    """What a cell is judged with.

    Attributes:
        closing: what ends an answer before a next turn (``Conversation.closing``).
        ends: the tokens that end an answer.
        weights: the id of the weights, under which scores are shared.
        cell: its id.
        asks: whether verdicts are asked here; else another process does so, once the answers are written.
        stop: asked before each call of a judge.
        confirm: called before anything is written; raises when it may not count.
    """

    evaluation: Evaluation
    wrapping: Wrapping
    closing: str
    ends: Collection[int]
    weights: str
    scorer: LazyScorer
    ledger: Ledger
    cell: str
    asks: bool
    stop: Callable[[], bool]
    confirm: Callable[[], None]

    def score(self, item: Requirement) -> EvaluationResult:
        """Return the cell's scores on a benchmark that is judged, written below the cell as those of any other.

        Raises:
            MassiveSFTError: why there are none (``judging.errors``, Unsupported); what is answered and judged is kept.
        """
        assert item.judged is not None and self.evaluation.judging is not None
        result = EvaluationResult()
        prepared = prepare(item.judged, item.label)
        conversation = Conversation(self.wrapping, self.closing, item.judged.max_tokens)
        requests = first_turns(item.judged, prepared.questions, conversation, self.ledger.cache_dir("requests"))
        written_by = protocol_id(self.evaluation.protocol, requests, self.ends)
        pid = prepared.protocol(written_by, self.evaluation.judging)
        cache = ScoreCache(self.ledger.storage.at("cache/scores"))
        scores = cache.get(self.weights, pid)
        if scores is None:
            place = self.ledger.cell(self.cell).at(f"responses/{written_by}")
            began = time.perf_counter()
            answers, happened = answer_turns(
                requests, prepared.questions, conversation, place, self.weights, self.scorer.score
            )
            result.happened[item.label] = dict(happened)
            result.resumed |= {item.label} if happened.get("shards_found") else set()
            result.load_seconds = self.scorer.load_seconds
            if not self.asks:
                result.missing[item.label] = AWAITED
                result.seconds[item.label] = time.perf_counter() - began - (self.scorer.load_seconds or 0.0)
                return result
            table, samples = self._judged(prepared, answers, pid, result)
            scores = {**table, "requests": requests.id, "responses": written_by}, samples
            cache.put(self.weights, pid, *scores)
            result.seconds[item.label] = time.perf_counter() - began - (self.scorer.load_seconds or 0.0)
        self.confirm()
        files = write(self.ledger.cell(self.cell).at("scores"), pid, *scores)
        result.files |= {f"scores/{key}": value for key, value in files.items()}
        result.scores[item.label] = scores[0]
        return result

    def _judged(
        self, prepared: Prepared, answers: Sequence[Sequence[str]], pid: str, result: EvaluationResult
    ) -> tuple[dict[str, Any], bytes]:
        """Have answers judged; write every prompt, answer and verdict; return the table and per-sample values."""
        assert self.evaluation.judging is not None
        outcome = judge(prepared, answers, self.evaluation.judging, self.ledger.storage.at("cache"), self.stop)
        self.confirm()
        key = f"{TRANSCRIPTS}/{pid}.jsonl.gz"
        self.ledger.cell(self.cell).put(key, outcome.transcript)
        result.files[key] = hashlib.sha256(outcome.transcript).hexdigest()
        return {**outcome.table, "protocol": pid}, parquet(outcome.samples)
