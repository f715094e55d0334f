"""What a job takes along: the files of a folder that no ignore file leaves out, as one zip file.

The rules are git's (``.gitignore`` of every folder up to the repository's own, deeper ones first) and Ray's
``.rayignore``, which reads the same. The zip file is made here rather than by Ray so that what was counted and checked
is what is sent.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from pathspec import GitIgnoreSpec

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.files import format_bytes

MOST_BYTES = 500_000_000  # Ray's own limit, on the zip file, is 512 MiB, and its head keeps every package in memory
LISTED = 5  # largest entries that a refusal names
IGNORE_FILES = (".gitignore", ".rayignore")
LEFT_OUT = frozenset({".git", ".venv", "venv", "__pycache__"})  # as Ray does
SECRETS = frozenset(
    {".env", ".env.local", ".netrc", ".pgpass", ".pypirc", ".git-credentials", "id_rsa", "id_ecdsa", "id_ed25519"}
)
Rules = tuple[tuple[Path, GitIgnoreSpec], ...]


@dataclass
class Tree:
    """A folder as a job takes it along.

    Attributes:
        root: the folder, absolute, links resolved.
        files: bytes of every packaged file, by its path below ``root`` with forward slashes.
        problems: what cannot be packaged.
    """

    root: Path
    files: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @cached_property
    def size(self) -> int:
        """Bytes of all files, uncompressed."""
        return sum(self.files.values())

    def holds(self, path: Path) -> bool:
        """Whether an absolute path is a packaged file."""
        return path.is_relative_to(self.root) and path.relative_to(self.root).as_posix() in self.files

    def __str__(self) -> str:
        return f"{len(self.files):,} files, {format_bytes(self.size)}"


def find_tree(folder: Path) -> Tree:
    """List what is packaged of a folder; links are followed. What cannot be packaged is in ``problems``."""
    tree = Tree(folder.resolve())
    if not tree.root.is_dir():
        tree.problems.append(Problem("--working-dir", "must be a folder", str(folder)))
        return tree
    _walk(tree, tree.root, _rules_above(tree.root), (tree.root,))
    if tree.size > MOST_BYTES:
        largest = ", ".join(f"{name} ({format_bytes(size)})" for name, size in _largest(tree))
        rule = f"must hold at most {format_bytes(MOST_BYTES)}, not {tree}: ignore or move the largest, {largest}"
        tree.problems.append(Problem(str(tree.root), rule))
    return tree


def write_package(tree: Tree, target: Path) -> None:
    """Write a tree as a zip file. Equal trees give equal bytes, so that the cluster keeps one package of them.

    Raises:
        InvalidInput: when a file cannot be read.
    """
    with ZipFile(target, "w") as archive:
        for name in tree.files:
            file = tree.root / name
            entry = ZipInfo(name)  # dated 1980: times are not content
            entry.compress_type = ZIP_DEFLATED
            try:
                is_program = file.stat().st_mode & stat.S_IXUSR
                entry.external_attr = (stat.S_IFREG | (0o755 if is_program else 0o644)) << 16
                with file.open("rb") as source, archive.open(entry, "w", force_zip64=True) as packed:
                    shutil.copyfileobj(source, packed, 1 << 20)
            except OSError as error:
                raise InvalidInput(Problem(str(file), f"cannot be read ({error.strerror})")) from None


def _walk(tree: Tree, folder: Path, rules: Rules, trail: tuple[Path, ...]) -> None:
    """Add a folder's files to the tree; ``trail`` holds the real folders above, to see a link that leads back."""
    try:
        rules = (*rules, *_rules_in(folder))
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        tree.problems.append(Problem(str(folder), f"cannot be read ({error.strerror})"))
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name in LEFT_OUT or _ignored(path, entry.is_dir() and not entry.is_symlink(), rules):
            continue
        if entry.is_dir():
            real = path.resolve()
            if real in trail:
                tree.problems.append(Problem(str(path), "is a link to a folder above it: ignore or remove it"))
            else:
                _walk(tree, path, rules, (*trail, real))
        else:
            _add(tree, path)


def _add(tree: Tree, path: Path) -> None:
    name = path.relative_to(tree.root).as_posix()
    problem = None
    if not path.is_file():
        problem = "is neither a file nor a folder (a broken link, a socket): ignore or remove it"
    elif not os.access(path, os.R_OK):
        problem = "cannot be read: ignore it, or change its permissions"
    elif path.name in SECRETS:
        problem = "is a file of secrets, which the cluster's users could read: name it in .gitignore or .rayignore"
    elif "\\" in name or not name.isprintable():
        problem = "has a name that the cluster does not unpack: rename or ignore it"
    if problem:
        tree.problems.append(Problem(ascii(str(path))[1:-1], problem))
    else:
        tree.files[name] = path.stat().st_size


def _rules_above(root: Path) -> Rules:
    """Return the rules of the folders above ``root`` in its repository; none outside a repository."""
    if (root / ".git").exists():
        return ()
    above: list[Path] = []
    for folder in root.parents:
        above.insert(0, folder)
        if (folder / ".git").exists():
            return tuple(rule for one in above for rule in _rules_in(one))
    return ()


def _rules_in(folder: Path) -> Iterator[tuple[Path, GitIgnoreSpec]]:
    for name in IGNORE_FILES:
        file = folder / name
        if file.is_file():
            yield folder, GitIgnoreSpec.from_lines(file.read_text(encoding="utf-8", errors="replace").splitlines())


def _ignored(path: Path, is_folder: bool, rules: Sequence[tuple[Path, GitIgnoreSpec]]) -> bool:
    """Whether the last rule that speaks of a path leaves it out."""
    for folder, spec in reversed(rules):
        name = path.relative_to(folder).as_posix() + ("/" if is_folder else "")
        include = spec.check_file(name).include
        if include is not None:
            return include
    return False


def _largest(tree: Tree) -> list[tuple[str, int]]:
    """Return the largest entries of the root: its files, and its folders with all that is in them."""
    sizes: dict[str, int] = {}
    for name, size in tree.files.items():
        top, below, _ = name.partition("/")
        sizes[top + below] = sizes.get(top + below, 0) + size
    return sorted(sizes.items(), key=lambda item: -item[1])[:LISTED]
