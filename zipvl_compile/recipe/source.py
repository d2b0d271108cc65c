"""Where a recipe's values come from: YAML files, the parts they extend and --set, each value with its file and line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from zipvl_serving.errors import InputError, nearest

Key = tuple[str, ...]

_MAX_BYTES = 1 << 20  # a recipe is a page of text: larger is a wrong file, such as weights
_MAX_DIGITS = 100
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Mark:
    """A line of a file; a mark without a file is the command line's --set."""

    file: Path | None
    line: int = 1

    def __str__(self) -> str:
        return f"{shown_path(self.file)}:{self.line}" if self.file else "--set"


@dataclass(frozen=True)
class Leaf:
    """A scalar or a list, and where its key was written."""

    value: object
    mark: Mark


@dataclass(frozen=True)
class Section:
    """A mapping, and where its key was written."""

    items: dict[str, Leaf | Section]
    mark: Mark

    def plain(self) -> dict[str, object]:
        return {k: v.plain() if isinstance(v, Section) else v.value for k, v in self.items.items()}

    def marks(self, prefix: Key = ()) -> Iterator[tuple[Key, Mark]]:
        """Every key path in this section with its mark; the section itself comes first."""
        yield prefix, self.mark
        for name, child in self.items.items():
            if isinstance(child, Section):
                yield from child.marks((*prefix, name))
            else:
                yield (*prefix, name), child.mark


def merge(base: Section, over: Section) -> Section:
    """Deep merge: `over` wins, and only mappings are joined."""
    items = dict(base.items)
    for name, new in over.items.items():
        old = items.get(name)
        items[name] = merge(old, new) if isinstance(old, Section) and isinstance(new, Section) else new
    return Section(items, over.mark)


def problem(where: Mark | Path | str, key: Key, message: str) -> InputError:
    """The error line `WHERE: KEY: message`; anything that would break the line is escaped."""
    start = shown_path(where) if isinstance(where, Path) else str(where)
    line = ": ".join([start, *([".".join(shorten(part) for part in key)] if key else []), message])
    return InputError("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))


def shorten(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def show(value: object) -> str:
    """A value as it looks in YAML, short enough for an error line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return shorten(repr(value))


def shown_path(file: Path) -> str:
    """Relative to the current directory when inside it, else absolute."""
    path = os.path.relpath(file)
    return os.path.abspath(file) if path.startswith("..") else path  # noqa: PTH100 - must not follow links


# --- finding files ---------------------------------------------------------------------------------------------------


def recipes_dir() -> Path:
    """The recipes that come with this package: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "data" / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes in `recipes_dir()` that `find_recipe` takes in place of a path: `digits`, `shapes/NAME`."""
    root = recipes_dir()
    files = (*root.glob("*.yaml"), *root.glob("shapes/*.yaml"))
    return sorted(file.relative_to(root).with_suffix("").as_posix() for file in files)


def find_recipe(path: str | Path) -> Path:
    """A recipe file, by path or else by the name of one in `recipes_dir()`."""
    return find_shipped(path, recipe_names(), recipes_dir(), "recipe")


def find_shipped(path: str | Path, names: Sequence[str], folder: Path, noun: str) -> Path:
    """A YAML file, by path or else by one of the `names` that ship in `folder`; InputError lists them."""
    if is_file(Path(path)):
        return Path(path)
    name = str(path).removesuffix(".yaml")
    if name in names:
        return folder / f"{name}.yaml"
    raise problem(shorten(str(path), 200) or "''", (), f"no such {noun} file; {nearest(shorten(name), names)}")


def is_file(path: Path) -> bool:
    return _safely(path.is_file)


def is_dir(path: Path) -> bool:
    return _safely(path.is_dir)


def _safely(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # a name too long, a folder that may not be read
        return False


# --- reading one file ------------------------------------------------------------------------------------------------


def read_file(file: Path) -> Section:
    """The top-level mapping of one YAML file, before `extends`."""
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise problem(file, (), f"is too large for a recipe; must be YAML of at most {_MAX_BYTES} bytes")
        data = file.read_bytes()
    except OSError as error:
        raise problem(file, (), f"cannot be read ({error.strerror}); must be a readable file") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mark = Mark(file, data[: error.start].count(b"\n") + 1)
        raise problem(mark, (), f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8") from None
    root = _parse(text, Mark(file), ())
    if isinstance(root, Section):
        return root
    what = "is empty" if root.value is None else "is not a mapping"
    raise problem(root.mark, (), f"{what}; must be a mapping that starts with 'name: ...'")


def read_override(text: str) -> Section:
    """A `--set` argument, `zipvl.tau=0.96`, as the nested sections it stands for."""
    name, equals, value = text.partition("=")
    key = tuple(name.strip().split("."))
    mark = Mark(None)
    if not equals or not all(key):
        what = "missing key" if equals else "missing '='"
        raise problem(mark, (shorten(text),), f"{what}; write KEY=VALUE, such as zipvl.tau=0.96")
    child = _parse(value, mark, key)
    for part in reversed(key):
        child = Section({part: child}, mark)
    assert isinstance(child, Section)  # the key has at least one part
    return child


def _parse(text: str, start: Mark, key: Key) -> Leaf | Section:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return Leaf(None, start) if node is None else _Reader(start, key).read(node, key)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason, line = error.problem or error.context or "syntax error", mark.line + 1 if mark else 1
    except yaml.reader.ReaderError as error:
        reason, line = f"unprintable character {chr(error.character)!r}", text.count("\n", 0, error.position) + 1
    except RecursionError:
        reason, line = "nested too deeply", 1
    raise problem(Mark(start.file, line), key, f"invalid YAML, {reason}; write 'key: value', indented with spaces")


class _Reader:
    """Turns the composed nodes of one file into sections and leaves."""

    def __init__(self, start: Mark, root: Key) -> None:
        self.file = start.file
        self.root = root
        self.seen: set[int] = set()
        self.scalars = yaml.constructor.SafeConstructor()

    def read(self, node: yaml.Node, key: Key, mark: Mark | None = None) -> Leaf | Section:
        """`mark` is where the node's key stands: without one, the node's own line."""
        mark = mark or self._mark(node)
        if id(node) in self.seen:
            # They could be cyclic, or grow without bound; and `extends` is the way to share.
            raise problem(mark, key, "YAML aliases (*name) are not supported; write the value out, or use extends")
        self.seen.add(id(node))
        if not isinstance(node, yaml.ScalarNode) and node.tag not in (_TAG + "map", _TAG + "seq"):
            raise self._wrong_tag(node, key, mark)
        if isinstance(node, yaml.MappingNode):
            return self._section(node, key, mark)
        if isinstance(node, yaml.SequenceNode):
            children = [self.read(child, key) for child in node.value]
            return Leaf([c.plain() if isinstance(c, Section) else c.value for c in children], mark)
        return Leaf(self._scalar(node, key, mark), mark)

    def _section(self, node: yaml.MappingNode, key: Key, mark: Mark) -> Section:
        items: dict[str, Leaf | Section] = {}
        for name_node, value in node.value:
            at = self._mark(name_node)
            if not isinstance(name_node, yaml.ScalarNode):
                raise problem(at, key, "a key is a list or mapping; must be plain text")
            name = str(name_node.value)
            if name in items:
                first = items[name].mark.line
                raise problem(at, (*key, name), f"duplicate key, first written on line {first}; keep one of them")
            items[name] = self.read(value, (*key, name), at)
        return Section(items, mark)

    def _scalar(self, node: yaml.Node, key: Key, mark: Mark) -> object:
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "timestamp", "value", "merge"):
            return str(node.value)
        if kind not in ("int", "float", "bool", "null"):
            raise self._wrong_tag(node, key, mark)
        if len(node.value) > _MAX_DIGITS:
            raise problem(mark, key, f"value too long; a number has at most {_MAX_DIGITS} characters")
        try:
            return self.scalars.construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, OverflowError):
            raise problem(mark, key, f"{shorten(node.value)!r} is not a valid {kind}; write a plain value") from None

    def _wrong_tag(self, node: yaml.Node, key: Key, mark: Mark) -> InputError:
        return problem(mark, key, f"YAML tag {shorten(node.tag)} is not supported; write a plain value")

    def _mark(self, node: yaml.Node) -> Mark:
        return Mark(self.file, node.start_mark.line + 1 if self.file else 1)


# --- extends ---------------------------------------------------------------------------------------------------------


def gather(file: Path, chain: tuple[Path, ...] = ()) -> Section:
    """One file merged over all that it extends; `chain` holds the files that are being extended by it."""
    own = read_file(file)
    extends = own.items.pop("extends", None)
    merged = Section({}, own.mark)
    chain = (*chain, file.resolve())
    for name in _extended_names(extends):
        assert extends is not None
        part = _find_part(name, file, extends.mark)
        if part.resolve() in chain:
            loop = [*chain[chain.index(part.resolve()) :], part.resolve()]
            names = " -> ".join(link.name for link in loop)
            raise problem(extends.mark, ("extends",), f"cycle {names}; a part must not extend itself")
        merged = merge(merged, gather(part, chain))
    return merge(merged, own)


def _extended_names(extends: Leaf | Section | None) -> list[str]:
    if extends is None:
        return []
    value = extends.value if isinstance(extends, Leaf) else None
    names = value if isinstance(value, list) else [value]
    found = [name for name in names if isinstance(name, str) and name]
    if len(found) == len(names):
        return found
    raise problem(extends.mark, ("extends",), "is not a name; must be a part's name or path, or a list of them")


def _find_part(name: str, file: Path, mark: Mark) -> Path:
    """A path has a '/' or ends in .yaml; a bare name is looked up in shared/, the recipe's own before the package's."""
    if "/" in name or re.search(r"\.ya?ml$", name):
        path = file.parent / name
        if is_file(path):
            return path
        raise problem(mark, ("extends",), f"no file {shorten(str(path), 200)}; must be a path relative to this file")
    folders = [file.parent / "shared", recipes_dir() / "shared"]
    if file.parent.name == "shared":
        folders.insert(0, file.parent)
    for folder in folders:
        if is_file(folder / f"{name}.yaml"):
            return folder / f"{name}.yaml"
    known = {part.stem for folder in folders for part in folder.glob("*.yaml")}
    raise problem(mark, ("extends",), f"no shared part {shorten(name)!r}; {nearest(shorten(name), known)}")
