"""Generation of many answers at once: one that ends gives its slot to the next prompt in the same step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from massive_sft.core.errors import Unsupported
from massive_sft.evaluation.drafts import MOST_GUESSES, Draft
from massive_sft.evaluation.sampled_tokens import picked
from massive_sft.evaluation.writing import Endings, Prompt, Writing
from massive_sft.models.out_of_memory import is_out_of_memory
from massive_sft.models.slot_attention import NAME, PASS, Piece, SlotCache, SlotRow, whole_keys
from massive_sft.models.tree_support import computing_with

HEAD_TOKENS = 32  # that all prompts begin with: fewer are kept with each


@dataclass(frozen=True)
class Room:
    """What is computed at once.

    Attributes:
        slots: answers.
        cache_bytes: of their keys and values.
        tokens: of prompts in a step.
    """

    slots: int
    cache_bytes: int
    tokens: int

    def halved(self, slots: int) -> Room:
        """Return half of it, where that many slots did not fit. Raises Unsupported where one does not fit."""
        if slots == 1:
            raise Unsupported("a single sequence does not fit into memory; score on a device with more of it")
        return Room(slots // 2, self.cache_bytes, max(1, self.tokens // 2))


@dataclass
class Counts:
    """What happened: forward passes that wrote, tokens that were guessed and that were right, memory that ran out."""

    steps: int = 0
    guessed: int = 0
    guessed_right: int = 0
    memory_splits: int = 0


@dataclass
class _Fed:
    """A sequence in a slot.

    Attributes:
        feed: the tokens that come next; ``guesses`` of them, the last ones, are a draft's.
        held: how many of its tokens are in the cache, behind the head.
    """

    feed: list[int]
    held: int = 0
    guesses: int = 0


@dataclass(kw_only=True)
class _Slot(_Fed):
    """An answer in the making."""

    place: int
    answer: Writing
    draft: Draft


@torch.inference_mode()
def write(
    model: Any, prompts: Sequence[Prompt], drafts: Sequence[Sequence[int]], endings: Endings, room: Room
) -> tuple[list[Writing], Counts]:
    """Write all answers; returns them in the order of the prompts.

    What is computed together depends on prompts, drafts and room alone, and no answer on what is computed with it, but
    for rounding. Where memory runs out, answers that are not finished begin anew in half the room.

    Args:
        drafts: tokens that each answer may begin with.

    Raises:
        Unsupported: the model does not compute by slots, or a single sequence does not fit into memory.
    """
    counts = Counts()
    finished = {i: Writing(prompt, endings) for i, prompt in enumerate(prompts) if prompt.most == 0}
    with computing_with(model, NAME):
        bytes_a_token = _bytes_a_token(model)
        while len(finished) < len(prompts):
            left = [place for place in range(len(prompts)) if place not in finished]
            members, slots = wave_of([whole_keys(_need(prompts[place])) for place in left], room, bytes_a_token)
            try:
                wave = _Wave(model, endings, counts, finished, room.tokens)
                wave.run(prompts, drafts, [left[i] for i in members], slots)
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler: the exception holds the frames, and they hold the tensors that did not fit.
            room = room.halved(slots)
            counts.memory_splits += 1
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return [finished[place] for place in range(len(prompts))], counts


def _need(prompt: Prompt) -> int:
    return len(prompt.tokens) + prompt.most


def wave_of(needs: Sequence[int], room: Room, bytes_a_token: int) -> tuple[list[int], int]:
    """Return which answers share a cache next, the longest first, and how many slots it has.

    Each slot has the room of the longest. Where memory then limits the slots, answers of less than half its length wait
    for a cache of their own.

    Args:
        needs: tokens of each prompt and its answer.
    """
    longest = max(needs)
    slots = max(1, min(room.slots, room.cache_bytes // (longest * bytes_a_token)))
    members = sorted(range(len(needs)), key=lambda i: (-needs[i], i))
    if slots < room.slots:
        members = [i for i in members if 2 * needs[i] >= longest]
    return members, min(slots, len(members))


def _bytes_a_token(model: Any) -> int:
    """Return the memory of a token's keys and values in all layers, as seen in a forward pass."""
    cache = SlotCache(1, 1)
    _start(model, cache, [0])
    return cache.nbytes


class _Wave:
    """Answers that share a cache; finished ones are put into ``finished``."""

    def __init__(self, model: Any, endings: Endings, counts: Counts, finished: dict[int, Writing], tokens: int):
        self._model, self._endings, self._counts = model, endings, counts
        self._finished, self._tokens = finished, tokens
        self._alive: list[_Slot] = []  # by slot

    def run(
        self, prompts: Sequence[Prompt], drafts: Sequence[Sequence[int]], places: Sequence[int], slots: int
    ) -> None:
        """Write the answers to the prompts at ``places``."""
        head = head_of([prompts[place].tokens for place in places])
        capacity = max(_need(prompts[place]) for place in places) - len(head)
        self._cache = _cache_of(self._model, slots, capacity, head)
        waiting = [
            self._begin(place, prompts[place], Draft(drafts[place]), len(head)) for place in reversed(list(places))
        ]
        while waiting or self._alive:
            fed = 0
            while waiting and len(self._alive) < self._cache.slots:
                fed += len(waiting[-1].feed)
                if fed > self._tokens and fed > len(waiting[-1].feed):
                    break
                self._alive.append(waiting.pop())
            self._step()

    def _begin(self, place: int, prompt: Prompt, draft: Draft, head: int) -> _Slot:
        slot = _Slot(prompt.tokens[head:], place=place, answer=Writing(prompt, self._endings), draft=draft)
        if self._model.dtype == torch.float32:  # a prompt with guesses behind it rounds otherwise than one without
            self._guess(slot)
        return slot

    def _guess(self, slot: _Slot) -> None:
        guesses = slot.draft.propose(slot.answer.made, slot.answer.prompt.most - len(slot.answer.made) - 1)
        slot.feed, slot.guesses = [*slot.feed, *guesses], len(guesses)

    def _step(self) -> None:
        """Compute what is fed to each slot, take the tokens that follow, and free the slots of finished answers."""
        row, reads = _row_of(self._cache, self._alive, self._model.device)
        draws = [
            slot.answer.prompt.draw(len(slot.answer.made) + guess)
            for slot in self._alive
            for guess in range(slot.guesses + 1)
        ]
        picks = iter(picked(PASS.logits(self._model, row, row.positions, reads), draws).tolist())
        self._counts.steps += 1
        for slot in self._alive:
            self._take(slot, [next(picks) for _ in range(slot.guesses + 1)])
        for number in reversed(range(len(self._alive))):
            if self._alive[number].answer.finish is not None:
                self._leave(number)

    def _take(self, slot: _Slot, picks: Sequence[int]) -> None:
        """Take the model's picks, up to the first behind a wrong guess."""
        guesses = slot.feed[len(slot.feed) - slot.guesses :]
        right = 0
        for pick in picks:
            slot.answer.take(pick)
            if slot.answer.finish is not None or right == slot.guesses or pick != guesses[right]:
                break
            right += 1
        self._counts.guessed += slot.guesses
        self._counts.guessed_right += right
        slot.held += len(slot.feed) - slot.guesses + right
        slot.draft.learn(slot.guesses, right, slot.answer.made[-right - 1 :])
        slot.feed = slot.answer.made[-1:]
        self._guess(slot)

    def _leave(self, number: int) -> None:
        """Put a finished answer away; the last slot's takes its place, so that slots in use stand side by side."""
        left = self._alive[number]
        self._finished[left.place] = left.answer
        last = self._alive.pop()
        if last is not left:
            self._cache.move(len(self._alive), number, last.held)
            self._alive[number] = last


def head_of(prompts: Sequence[list[int]]) -> list[int]:
    """Return what all prompts begin with, the last token of the shortest left out; nothing where that is short."""
    if len(prompts) < 2:
        return []
    first, last = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    shared = next((i for i in range(most) if first[i] != last[i]), most)
    return list(first[:shared]) if shared >= HEAD_TOKENS else []


def _cache_of(model: Any, slots: int, capacity: int, head: Sequence[int]) -> SlotCache:
    """Return an empty cache of slots for so many tokens, behind a head that is computed where there is one."""
    cache = SlotCache(slots, whole_keys(capacity))
    if head:
        kept = SlotCache(1, len(head))
        _start(model, kept, head)
        cache.head = kept.as_head()
    return cache


@torch.inference_mode()
def rounds_alike(model: Any, prompts: Sequence[list[int]], answers: Sequence[Sequence[int]]) -> bool:
    """Return whether tokens in blocks give the same logits to the bit as one after another, tried on some answers.

    Then an answer does not depend on which of its tokens were guessed right.

    Args:
        answers: tokens to each prompt, one at least.
    """
    length = min(MOST_GUESSES + 1, *map(len, answers))
    fed = [list(answer[:length]) for answer in answers]
    with computing_with(model, NAME):
        one, blocks = (_logits(model, prompts, fed, size) for size in (1, length))
    return torch.equal(one, blocks)


def _logits(model: Any, prompts: Sequence[list[int]], answers: Sequence[list[int]], size: int) -> torch.Tensor:
    """Return the logits behind each token of answers of one length, fed ``size`` at once."""
    head, length = head_of(prompts), len(answers[0])
    cache = _cache_of(model, len(prompts), max(map(len, prompts)) + length, head)
    slots = [_Fed(prompt[len(head) :]) for prompt in prompts]
    found = []
    for begin in range(0, length + size, size):
        row, reads = _row_of(cache, slots, model.device)
        logits = PASS.logits(model, row, row.positions, reads)
        found.append(logits.view(len(slots), -1, logits.shape[-1]))
        for slot, answer in zip(slots, answers, strict=True):
            slot.held += len(slot.feed)
            slot.feed = answer[begin : begin + size]
            slot.guesses = len(slot.feed) - 1
    return torch.cat(found, dim=1)


def _start(model: Any, cache: SlotCache, tokens: Sequence[int]) -> None:
    """Compute one sequence from its beginning, into the first slot."""
    count = len(tokens)
    ids, places = (torch.tensor(part, device=model.device) for part in (tokens, range(count)))
    row = SlotRow(cache, ids, places, torch.zeros_like(places), [(0, count)], [])
    PASS.logits(model, row, places, [0])


def _row_of(cache: SlotCache, alive: Sequence[_Fed], device: torch.device) -> tuple[SlotRow, list[int]]:
    """Return the row of all that is fed, and where in it something is read."""
    tokens: list[int] = []
    own: list[int] = []
    slots: list[int] = []
    reads: list[int] = []
    starts: list[tuple[int, int]] = []
    going_on: list[tuple[int, int, int]] = []  # of each slot: where in the row, how many, how many are held
    for number, slot in enumerate(alive):
        begin, end = len(tokens), len(tokens) + len(slot.feed)
        tokens += slot.feed
        own += range(slot.held, slot.held + len(slot.feed))
        slots += [number] * len(slot.feed)
        reads += range(end - slot.guesses - 1, end)
        if slot.held:
            going_on.append((begin, end - begin, slot.held))
        else:
            starts.append((begin, end))
    # One transfer to the device.
    columns = torch.tensor([tokens, own, slots], device=device)
    positions = columns[1] + cache.head_tokens
    row = SlotRow(cache, columns[0], positions, columns[2], starts, _pieces(going_on, device))
    return row, reads


def _pieces(going_on: Sequence[tuple[int, int, int]], device: torch.device) -> list[Piece]:
    """Return the queries of slots that go on, which are the first ones.

    On a CPU those of a slot that has several are a piece of their own; its first query is in the piece of all as well.
    On a GPU, where calls cost more than padding, all are one piece, in which the shorter ones repeat their last query.
    """
    if not going_on:
        return []
    if device.type == "cpu":
        alone = [(number, one) for number, one in enumerate(going_on) if one[1] > 1]
        pieces = [_piece(0, going_on, 1, device)] if len(alone) < len(going_on) else []
        return pieces + [_piece(number, [one], one[1], device) for number, one in alone]
    return [_piece(0, going_on, max(count for _, count, _ in going_on), device)]


def _piece(first: int, members: Sequence[tuple[int, int, int]], queries: int, device: torch.device) -> Piece:
    steps = [[min(i, count - 1) for i in range(queries)] for _, count, _ in members]
    tokens = [begin + i for (begin, _, _), row in zip(members, steps, strict=True) for i in row]
    positions = [[held + i for i in row] for (_, _, held), row in zip(members, steps, strict=True)]
    longest = whole_keys(max(row[-1] for row in positions) + 1)
    return Piece(
        first,
        first + len(members),
        torch.tensor(tokens, device=device),
        torch.tensor(positions, device=device),
        longest,
    )
