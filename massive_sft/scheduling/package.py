"""What a job takes along: files of a folder, as one zip file.

In a git repository those that git tracks and those that the sweep names; elsewhere all that no ignore file leaves out.
Credentials stay here in any case (``credentials``). The rules of ignore files are git's (``.gitignore`` of every folder
up to the repository's own, deeper ones first) and Ray's ``.rayignore``, which reads the same. The zip file is made here
rather than by Ray so that what was counted and checked is what is sent.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from pathspec import GitIgnoreSpec

from massive_sft.core.errors import InvalidInput, Problem
from massive_sft.core.files import format_bytes
from massive_sft.scheduling.credentials import credential_by_content, credential_by_name

MOST_BYTES = 500_000_000  # Ray's own limit, on the zip file, is 512 MiB, and its head keeps every package in memory
LISTED = 5  # entries that a sentence names
GIT_S = 60.0  # seconds that git may take to list what it tracks
IGNORE_FILES = (".gitignore", ".rayignore")
LEFT_OUT = frozenset({".git", ".venv", "venv", "__pycache__"})  # as Ray does
Rules = tuple[tuple[Path, GitIgnoreSpec], ...]


@dataclass
class Tree:
    """A folder as a job takes it along.

    Attributes:
        root: the folder, absolute, links resolved.
        files: bytes of every packaged file, by its path below ``root`` with forward slashes.
        credentials: why a file is taken for one of credentials, and left out, by its path.
        untracked: bytes of every file that is left out because git does not track it, by its path.
        untold: why git does not tell what it tracks in a repository, so that nothing is left out for that.
        obstacles: what cannot be packaged.
    """

    root: Path
    files: dict[str, int] = field(default_factory=dict)
    credentials: dict[str, str] = field(default_factory=dict)
    untracked: dict[str, int] = field(default_factory=dict)
    untold: str = ""
    obstacles: list[Problem] = field(default_factory=list)

    @property
    def problems(self) -> list[Problem]:
        """Why it cannot be sent."""
        if self.size <= MOST_BYTES:
            return self.obstacles
        largest = ", ".join(f"{name} ({format_bytes(size)})" for name, size in _largest(self))
        rule = f"must hold at most {format_bytes(MOST_BYTES)}, not {self}: ignore or move the largest, {largest}"
        return [*self.obstacles, Problem(str(self.root), rule)]

    @property
    def size(self) -> int:
        """Bytes of all files, uncompressed."""
        return sum(self.files.values())

    def take(self, path: Path) -> bool:
        """Package an absolute path that the sweep names, if only git's not tracking it left it out.

        Returns whether it is packaged.
        """
        name = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else ""
        if name in self.untracked:
            _put(self, name, self.untracked.pop(name))
        return name in self.files

    def left_out(self) -> Iterator[str]:
        """Yield a sentence on what was left out, for each reason, and on what could not be."""
        if self.credentials:
            yield "left out as credentials: " + _listed(
                [f"{name} {why}" for name, why in self.credentials.items()], "; "
            )
        if self.untracked:
            yield "left out, for git does not track them: " + _listed([name for name, _ in _largest_of(self.untracked)])
        if self.credentials or self.untracked:
            yield "--include PATH lets one in"
        if self.untold:
            yield f"what git does not track goes along, for git does not tell what it tracks: {self.untold}"

    def __str__(self) -> str:
        return f"{len(self.files):,} files, {format_bytes(self.size)}"


def find_tree(folder: Path, include: Iterable[str] = ()) -> Tree:
    """List what is packaged of a folder; links are followed. What cannot be packaged is in ``problems``.

    Args:
        folder: the folder.
        include: files, folders and patterns below it that are packaged though an ignore file names them or git does
            not track them; a file that is named by itself also if it is one of credentials.
    """
    tree = Tree(folder.resolve())
    if not tree.root.is_dir():
        tree.obstacles.append(Problem("--working-dir", "must be a folder", str(folder)))
        return tree
    tracked, tree.untold = _tracked(tree.root)
    for path in _walk(tree, tree.root, _rules_above(tree.root), (tree.root,)):
        _add(tree, path, tracked)
    for pattern in include:
        _include(tree, pattern)
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


def _tracked(root: Path) -> tuple[frozenset[str] | None, str]:
    """Return the paths below a folder that git tracks, and nothing; None where none are, and why in a repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "ls-files", "-z"], capture_output=True, timeout=GIT_S, check=True
        )
        names = frozenset(os.fsdecode(name) for name in done.stdout.split(b"\0") if name)
        why = "" if names else "it tracks nothing here"
    except subprocess.CalledProcessError as error:
        names, why = frozenset(), os.fsdecode(error.stderr).strip().partition("\n")[0]
    except (OSError, subprocess.SubprocessError) as error:
        names, why = frozenset(), str(error)
    return names or None, why if _repository(root) else ""


def _repository(root: Path) -> Path | None:
    """Return the repository that a folder is in, itself or one above; None where there is none."""
    return next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), None)


def _walk(tree: Tree, folder: Path, rules: Rules | None, trail: tuple[Path, ...]) -> Iterator[Path]:
    """Yield a folder's files, without what its rules leave out; None stands for no rules at all.

    ``trail`` holds the real folders above, to see a link that leads back.
    """
    try:
        if rules is not None:
            rules = (*rules, *_rules_in(folder))
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        tree.obstacles.append(Problem(str(folder), f"cannot be read ({error.strerror})"))
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name in LEFT_OUT or _ignored(path, entry.is_dir() and not entry.is_symlink(), rules or ()):
            continue
        if entry.is_dir():
            real = path.resolve()
            if real in trail:
                tree.obstacles.append(Problem(str(path), "is a link to a folder above it: ignore or remove it"))
            else:
                yield from _walk(tree, path, rules, (*trail, real))
        else:
            yield path


def _add(tree: Tree, path: Path, tracked: frozenset[str] | None) -> None:
    """Package a file unless a rule leaves it out; a link to a folder counts as tracked with all that is below."""
    name = path.relative_to(tree.root).as_posix()
    size = path.stat().st_size if path.is_file() else 0
    credential = credential_by_name(name)
    if credential is None and tracked is not None and not ({name, *_above(name)} & tracked):
        tree.untracked[name] = size
        return
    credential = credential or credential_by_content(path, size)
    if credential is None:
        _put(tree, name, size)
    else:
        tree.credentials[name] = credential


def _include(tree: Tree, pattern: str) -> None:
    """Package what a path or a pattern of the user names."""
    path = Path(os.path.abspath(tree.root / pattern))
    if not path.is_relative_to(tree.root):
        tree.obstacles.append(Problem("--include", f"must be below the packaged folder {tree.root}", pattern))
        return
    found = [path] if path.exists() else sorted(tree.root.glob(path.relative_to(tree.root).as_posix()))
    if not found:
        tree.obstacles.append(Problem("--include", f"names nothing below {tree.root}", pattern))
    for one in found:
        for file in _walk(tree, one, None, (one.resolve(),)) if one.is_dir() else (one,):
            name = file.relative_to(tree.root).as_posix()
            tree.untracked.pop(name, None)
            if file == path:
                tree.credentials.pop(name, None)
                _put(tree, name, file.stat().st_size)
            else:
                _add(tree, file, None)


def _above(name: str) -> Iterator[str]:
    """Yield the folders that a path lies in."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _put(tree: Tree, name: str, size: int) -> None:
    """Package a file, or say why it cannot travel."""
    path, problem = tree.root / name, None
    if not path.is_file():
        problem = "is neither a file nor a folder (a broken link, a socket): ignore or remove it"
    elif not os.access(path, os.R_OK):
        problem = "cannot be read: ignore it, or change its permissions"
    elif "\\" in name or not name.isprintable():
        problem = "has a name that the cluster does not unpack: rename or ignore it"
    if problem:
        tree.obstacles.append(Problem(ascii(str(path))[1:-1], problem))
    else:
        tree.files[name] = size


def _rules_above(root: Path) -> Rules:
    """Return the rules of the folders above ``root`` in its repository; none outside a repository."""
    top = _repository(root)
    if top is None:
        return ()
    above = [folder for folder in reversed(root.parents) if folder.is_relative_to(top)]
    return tuple(rule for folder in above for rule in _rules_in(folder))


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
    return _largest_of(tree.files)[:LISTED]


def _largest_of(files: Mapping[str, int]) -> list[tuple[str, int]]:
    sizes = Counter[str]()
    for name, size in files.items():
        top, below, _ = name.partition("/")
        sizes[top + below] += size
    return sizes.most_common()


def _listed(names: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return between.join(ascii(name)[1:-1] for name in names[:LISTED]) + more
