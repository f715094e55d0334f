"""A judge for the offline world, in the place of a model: it rates an answer by how near it is to the reference.

``python examples/offline_judge.py`` answers at http://127.0.0.1:8008/v1, as OpenAI's chat completions do, until Ctrl-C.
It reads the prompts of ``massive_sft/judging/prompts.yaml``, and rates what has a reference.
``sweeps/search_judged.yaml`` asks it.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_SECTION = re.compile(r"^=== (.+) ===$", re.MULTILINE)


def rating_of(prompt: str) -> int | None:
    """Return a rating from 1 to 10 of the last answer in a prompt; None where it has no reference."""
    _, *parts = _SECTION.split(prompt)
    sections = [(name, text.strip()) for name, text in zip(parts[::2], parts[1::2], strict=True)]
    references = [text for name, text in sections if name.startswith("reference answer")]
    answers = [text for name, text in sections if name in ("assistant", "answer of the assistant")]
    if not references or not answers:
        return None
    return 1 + round(9 * difflib.SequenceMatcher(None, references[-1], answers[-1], autojunk=False).ratio())


class _Judge(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        rating = rating_of(asked["messages"][-1]["content"])
        text = "There is no reference." if rating is None else f"Compared with the reference: [[{rating}]]"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        answer = {"object": "chat.completion", "model": asked["model"], "choices": [choice]}
        body = json.dumps(answer | {"usage": {"prompt_tokens": 0, "completion_tokens": 0}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Answer until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8008)
    server = ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), _Judge)
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
