"""Provenance tells where a result came from, and no secret ever gets into it."""

import json
import shutil
import subprocess
import sys

import pytest

from massive_sft.ledger import provenance
from massive_sft.ledger.provenance import capture_provenance, redact, redact_arguments

CANARY = "cAnArY0123456789abcdef"


@pytest.mark.parametrize(
    "text",
    [
        f"--token={CANARY}",
        f"--hf-token={CANARY}",
        f"HF_TOKEN={CANARY}",
        f"HFTOKEN={CANARY}",
        f"tracking.password={CANARY}",
        f"AWS_SECRET_ACCESS_KEY={CANARY}",
        f"apikey: {CANARY}",
        f"key={CANARY}",
        f"client_secret='{CANARY}'",
        f'{{"api_key": "{CANARY}", "x": 1}}',
        f'"password": "with space {CANARY}"',
        f"Authorization: Bearer {CANARY}",
        f"sent Bearer {CANARY}",
        f"Authorization: Token {CANARY}",
        f"headers={{'Authorization': 'ApiKey {CANARY}'}}",
        f'{{\\"api_key\\": \\"{CANARY}\\"}}',
        f"{{\\\\'password\\\\': \\\\'with space {CANARY}\\\\'}}",
        f'password="a \\" quote {CANARY}"',
        f"proxy-authorization: SSWS   {CANARY}",
        json.dumps(json.dumps(json.dumps({"x": 1, "password": f'a"b\\c {CANARY}', "y": 2}))),
        repr(f"it's {json.dumps({'access_token': CANARY})}"),
        f"body was \\'client_secret\\': \\'cut {CANARY}",
        f"https://account.blob.core.windows.net/c?sv=1&sig={CANARY}",
        f"https://bucket.s3.amazonaws.com/k?X-Amz-Signature={CANARY}",
        f"postgresql://me:{CANARY}@host/db",
        f"postgresql://me:a@{CANARY}@host/db",
        f"https://{CANARY}@host/path",
        f"https://host/path?a=1&access_token={CANARY}&b=2",
        f"https://host/?X-Amz-Signature=x&sig_key={CANARY}",
        f"hf_{CANARY}",
        f"bad token hf_{CANARY}, sorry",
        f"ghp_{CANARY}",
        f"sk-{CANARY}",
        f"eyJhbGciOi{CANARY}.eyJzdWIiOi{CANARY}.{CANARY}",
    ],
)
def test_redact_secret_is_hidden(text):
    assert CANARY not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "tokenizer=path/to/tokenizer max_tokens=512 --num-keys 3",
        "pad_token=<pad> eos_token: </s> max_new_token=5 next_token=7",
        "https://host/path?a=1",
        "monkey=1 keyboard: x author=me",
        "KeyError: 'lr'",
        "no signature: f(x, y) of signature=3",
        "unexpected token at line 3",
        "sweeps/x.yaml: blocks[2].snapshots: 12 is beyond horizon 10",
    ],
)
def test_redact_harmless_text_is_kept(text):
    assert redact(text) == text


def test_redact_keeps_what_surrounds_a_secret():
    assert redact(f"https://me:{CANARY}@host/db?a=1 failed") == "https://***@host/db?a=1 failed"
    assert redact(f"?access_token={CANARY}&b=2") == "?access_token=***&b=2"
    assert redact(rf"{{\"api_key\": \"{CANARY}\", \"b\": 2}}") == r"{\"api_key\": ***, \"b\": 2}"
    assert redact(f"Authorization: SSWS {CANARY}\nHost: x") == "Authorization: ***\nHost: x"


def test_arguments_secret_after_its_flag_is_hidden():
    arguments = ["run", "x.yaml", "--token", CANARY, "--password", CANARY, "--tokenizer", "t", "--key", "--json"]
    hidden = ["run", "x.yaml", "--token", "***", "--password", "***", "--tokenizer", "t", "--key", "--json"]
    assert redact_arguments(arguments) == hidden


def test_capture_holds_no_secret_of_command_line_or_environment(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["massive-sft", "run", f"--overlay=token={CANARY}", "--api-key", CANARY])
    monkeypatch.setenv("HF_TOKEN", CANARY)
    text = json.dumps(capture_provenance(), allow_nan=False)
    assert CANARY not in text
    assert "massive-sft run" in text


def test_capture_names_versions_machine_and_sweep_file(tmp_path):
    (tmp_path / "x.yaml").write_text("schema: 1\n")
    found = capture_provenance(tmp_path / "x.yaml")
    assert found["sweep_file"]["name"] == "x.yaml"
    assert len(found["sweep_file"]["sha256"]) == 64
    assert found["libraries"]["pydantic"]
    assert found["cpus"] > 0


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_capture_git_tells_commit_and_change(tmp_path):
    (tmp_path / "__init__.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    assert provenance._git(tmp_path) is None  # in a repository, but not of it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    clean = provenance._git(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty_sha256"] is None
    (tmp_path / "__init__.py").write_text("a = 2\n")
    dirty = provenance._git(tmp_path)
    assert dirty["commit"] == clean["commit"]
    assert len(dirty["dirty_sha256"]) == 64


@pytest.mark.parametrize(
    "part",
    [
        "a",
        "a-",
        "-",
        "token ",
        "token=",
        "a.b_",
        "http://a",
        "eyJ",
        "key: '",
        'x"',
        'key: "\\',
        '\\"',
        "?sig=",
        "authorization: a ",
    ],
)
@pytest.mark.timeout(20)
def test_redact_long_text_takes_no_quadratic_time(part):
    redact(part * (300_000 // len(part)))  # a quadratic pattern takes minutes
