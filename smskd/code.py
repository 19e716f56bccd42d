"""Files of one's own: networks, data, methods, spaces and pairs that aren't part of this package. No torch.

A file is used when it is named on the command line, or by `use` in Python; what YAML or a run's files say never makes
code run. It is read once, with what it imports from its own folder, and imported from what was read: so the processes
of a search run the same code, on other machines too, whatever happens to the file meanwhile. Its modules are known by
their plain names, as if its folder were on Python's path.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from smskd import blame, names

_MOST_BYTES = 2**22  # of all that a file brings with it
_SHOWN = 32  # hexadecimal digits of a digest, where people see it


@dataclass(frozen=True, kw_only=True)
class Module:
    """One module as it was read: of a file with this path."""

    path: str
    source: str
    package: bool


class Files(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):  # type: ignore[misc]
    """The files in use: what `import` finds before it looks anywhere else."""

    def __init__(self) -> None:
        self.modules: dict[str, Module] = {}
        self.of: dict[str, tuple[str, ...]] = {}  # file name -> its module, and those that it imports from its folder
        self.folders: list[Path] = []  # of the files that are being imported

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> Any:
        """As importlib asks."""
        found = self.modules.get(fullname)
        if found is None:
            return None
        inside = [str(Path(found.path).parent)] if found.package else None
        return importlib.util.spec_from_file_location(
            fullname, found.path, loader=self, submodule_search_locations=inside
        )

    def get_filename(self, fullname: str) -> str:
        """The file as it was named, so that tracebacks show it."""
        return self.modules[fullname].path

    def get_data(self, path: str | bytes) -> bytes:
        """What was read of a file."""
        return next(one.source.encode() for one in self.modules.values() if one.path == path)

    def path_stats(self, path: str | bytes) -> Mapping[str, Any]:
        """There are none, so that what was compiled elsewhere isn't looked at."""
        raise OSError("compiled code isn't kept")


_FILES = Files()  # Python has one way to import for a whole process


def is_file(name: str) -> bool:
    """Whether a name is `FILE.py` or `FILE.py:NAME`."""
    return name.partition(":")[0].endswith(".py")


def named(name: str) -> str:
    """The name without folders: `nets.py:Student` of `my/nets.py:Student`."""
    path, colon, attribute = name.partition(":")
    return Path(path).name + colon + attribute


def use(*paths: str | Path) -> None:
    """Read files, and let them be imported from now on; a file that was used before is replaced.

    Raises:
        ValueError: there is no such file, it is no Python, or two modules would have one name.
    """
    found: dict[str, Module] = {}
    of: dict[str, tuple[str, ...]] = {}
    for path in map(Path, paths):
        if path.suffix != ".py" or not path.is_file():
            raise ValueError(f"{path}: there is no such file; name one of Python, FILE.py")
        mine = _read(path.absolute())
        _check_names(mine, found)
        found |= mine
        of[path.name] = tuple(mine)
    _replace(found, of)


def install(bundle: Mapping[str, Any]) -> None:
    """Use what another process has read."""
    _replace({name: Module(**one) for name, one in bundle["modules"].items()}, dict(bundle["of"]))


def bundle() -> dict[str, Any]:
    """All files in use, plain: for install() in another process."""
    modules = {name: vars(one) for name, one in _FILES.modules.items()}
    return {"modules": modules, "of": {file: list(own) for file, own in _FILES.of.items()}}


def digest(file: str) -> str:
    """SHA-256 of a file in use, and of what it imports from its folder.

    Raises:
        ValueError: it isn't in use.
    """
    told = hashlib.sha256()
    for name in sorted(_own(file)):
        told.update(repr((name, _FILES.modules[name].source)).encode())
    return told.hexdigest()


def stamps(files: Iterable[str]) -> tuple[str, ...]:
    """`nets.py@<digest>` of each, sorted: how an experiment says which code it is of."""
    return tuple(sorted(f"{file}@{digest(file)[:_SHOWN]}" for file in files))


def check_stamps(said: Iterable[str]) -> None:
    """Refuse files that aren't those said.

    Raises:
        ValueError: one isn't in use, or has another digest.
    """
    for stamp in said:
        file, _, expected = stamp.partition("@")
        if expected and digest(file)[:_SHOWN] != expected:
            raise ValueError(
                f"{file} must be the file with the digest {expected[:12]}, but {path_of(file)}, with what it imports "
                f"from its folder, has {digest(file)[:12]}: name the file as it was"
            )


def located(name: str, key: str, *, functions: bool = False) -> tuple[str, str]:
    """The file's name, and what in it is meant: without a word of that, the only class or function that it defines.

    key: what the name was given for, for messages. functions: classes don't count.

    Raises:
        ValueError: the file isn't in use, or has no such name, or several and none is named.
    """
    path, _, attribute = name.partition(":")
    file = Path(path).name
    if file not in _FILES.of and _FILES.folders and (_FILES.folders[-1] / path).is_file():
        _add(_FILES.folders[-1] / path)  # named by a file that is in use
    tree = ast.parse(_module(file, key).source)
    kinds = ast.FunctionDef if functions else ast.FunctionDef | ast.ClassDef
    defined = [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    if attribute:
        everything = [*defined, *_assigned(tree)]
        if attribute not in everything:
            near = names.nearest(attribute, everything)
            hint = f" Did you mean {file}:{near}?" if near else ""
            raise ValueError(
                f"{key}={name}: {file} has no {attribute}; it has {', '.join(everything) or 'none'}.{hint}"
            )
        return file, attribute
    if len(defined) != 1:
        example = f"{key}={file}:{defined[0] if defined else 'NAME'}"
        raise ValueError(f"{key}={name}: {file} defines {', '.join(defined) or 'nothing'}; say which, as {example}")
    return file, defined[0]


def defining(function: str) -> list[str]:
    """Files in use that define a function of this name."""
    return [file for file in _FILES.of if function in _defined(source_of(file))]


@functools.cache  # by what it says
def _defined(source: str) -> tuple[str, ...]:
    return tuple(node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))


def load(name: str, key: str) -> Any:
    """The module of `FILE.py`, or what is called NAME in it of `FILE.py:NAME`.

    Raises:
        ValueError: the file isn't in use, or raises an exception when it is imported; told with the line.
    """
    file, _, attribute = named(name).partition(":")
    module, path = _own(file, key)[0], Path(_module(file, key).path)
    _FILES.folders.append(path.parent)
    try:
        loaded: ModuleType = importlib.import_module(module)
        return getattr(loaded, attribute) if attribute else loaded
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        raise ValueError(f"{key}={name}: {file} can't be imported: {blame.told(error, str(path))}") from error
    finally:
        _FILES.folders.pop()


def digest_of(given: Any) -> str:
    """SHA-256 of the code of a module, class or function that is there as an object, and of what it refers to.

    That is, too, what its closure, defaults and globals hold, and an object's attributes. Of a module of torch its
    printed structure and the attributes of all its modules count; the weights of the one given don't, others' do.

    Raises:
        ValueError: its source can't be read.
    """
    told, seen = hashlib.sha256(), dict[int, tuple[int, Any]]()
    todo = [given]
    while todo:
        one = todo.pop(0)
        if isinstance(one, _PLAIN):
            told.update(repr(one).encode())
            continue
        told.update(str(seen.get(id(one), (len(seen),))[0]).encode())
        if id(one) not in seen:
            seen[id(one)] = len(seen), one  # kept, lest another has its id
            text, refers = _code(one) if inspect.isroutine(one) or inspect.isclass(one) else _state(one, one is given)
            told.update(text)
            todo += refers
    return told.hexdigest()


_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def _code(one: Any) -> tuple[bytes, list[Any]]:
    """What a function or class says, and what it refers to."""
    package = (one.__module__ or "").partition(".")[0]
    file = getattr(sys.modules.get(one.__module__), "__file__", None)
    held = [one.__self__] if inspect.ismethod(one) else []
    if package in _distributions():
        return f"{one.__module__}.{one.__qualname__} {_version(package)}".encode(), held
    of_python = package in sys.stdlib_module_names and package != "__main__"
    if of_python or not (inspect.isclass(one) or hasattr(one, "__code__")):  # torch.relu has no module
        return f"{one.__module__}.{one.__qualname__}".encode(), held
    if file is not None and Path(file).is_file():
        text = repr((sorted((name, each.source) for name, each in _read(Path(file)).items()), one.__qualname__))
    else:  # of a notebook, whose cells are looked at one by one
        try:
            text = inspect.getsource(one)
        except (OSError, TypeError):
            raise ValueError(
                f"the source of {one.__qualname__} can't be read, so what it trains could be taken for another's: "
                "define it in a file, or in a cell of a notebook"
            ) from None
    refers: list[Any] = held
    for function in vars(one).values() if inspect.isclass(one) else [getattr(one, "__func__", one)]:
        if inspect.isfunction(function):
            try:
                found = inspect.getclosurevars(function)
            except ValueError:  # a variable that hasn't been given a value yet
                continue
            named = {**found.globals, **found.nonlocals, **(function.__kwdefaults__ or {})}
            refers += [(name, named[name]) for name in sorted(named) if not inspect.ismodule(named[name])]
            refers += function.__defaults__ or ()
    return text.encode(), refers


def _state(one: Any, given: bool) -> tuple[bytes, list[Any]]:
    """What an object holds: as bytes, and as others. given: it is what was asked about."""
    kind = type(one).__qualname__.encode()
    if isinstance(one, functools.partial):
        return kind, [one.func, *one.args, *one.keywords.items()]
    if isinstance(one, Mapping):
        return kind, [*one.items()]
    if isinstance(one, tuple | list):
        return kind + str(len(one)).encode(), [*one]
    if isinstance(one, set | frozenset):
        return kind, sorted(map(repr, one))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(one, torch.Tensor):
        one = one.detach().cpu().reshape(-1).view(torch.uint8).numpy() if one.numel() else one.shape
    if hasattr(one, "tobytes"):
        return kind + str((getattr(one, "shape", ()), getattr(one, "dtype", ""))).encode() + one.tobytes(), []
    if torch is not None and isinstance(one, torch.nn.Module):
        usual = vars(torch.nn.Module()).keys()
        own = [
            (name, sorted((key, value) for key, value in vars(module).items() if key not in usual))
            for name, module in one.named_modules()
        ]
        return repr(one).encode(), [type(one), own, *([] if given else one.state_dict().items())]
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(one)).encode()  # an address says nothing
    return kind + text, [type(one), *sorted(getattr(one, "__dict__", {}).items())]


@functools.cache  # a tenth of a second; nothing is installed meanwhile
def _distributions() -> Mapping[str, Sequence[str]]:
    return importlib.metadata.packages_distributions()


def _version(package: str) -> str:
    return importlib.metadata.version(_distributions()[package][0])


def path_of(file: str) -> str:
    """Where a file in use was read."""
    return _module(file).path


def source_of(file: str) -> str:
    """What was read of it."""
    return _module(file).source


def _module(file: str, key: str | None = None) -> Module:
    return _FILES.modules[_own(file, key)[0]]


def _own(file: str, key: str | None = None) -> Sequence[str]:
    if file not in _FILES.of:
        given = file if key is None else f"{key}={file}"
        raise ValueError(
            f"{given}: its code runs only if the file is named: add code=[{file}], with its path, on the command line "
            "(in Python: smskd.code.use)"
        )
    return _FILES.of[file]


def _add(path: Path) -> None:
    mine = _read(path.absolute())
    _check_names(mine, _FILES.modules)
    _FILES.modules = mine | _FILES.modules
    _FILES.of[path.name] = tuple(mine)


def _check_names(mine: Mapping[str, Module], others: Mapping[str, Module]) -> None:
    """Refuse modules whose names mean others, among these or to Python."""
    for name, module in mine.items():
        other = others.get(name)
        if other is not None and other.path != module.path:
            raise ValueError(f"two files of one name: {other.path} and {module.path}; rename one")
        _check_free(name, module.path)


def _replace(modules: Mapping[str, Module], of: Mapping[str, Sequence[str]]) -> None:
    if _FILES not in sys.meta_path:
        sys.meta_path.insert(0, _FILES)
    for name, module in modules.items():
        if _FILES.modules.get(name) != module:
            sys.modules.pop(name, None)
            _FILES.modules[name] = module
    _FILES.of |= {file: tuple(own) for file, own in of.items()}


def _read(path: Path) -> dict[str, Module]:
    """A file's module, and after it those that it imports from its folder, and so on."""
    found: dict[str, Module] = {}
    todo = [(path.stem, path)]
    size = 0
    while todo:
        name, file = todo.pop(0)
        if name in found:
            continue
        try:
            source = file.read_text(encoding="utf-8")
            tree = ast.parse(source, filename=str(file))
        except (OSError, UnicodeDecodeError, SyntaxError, ValueError) as error:
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            raise ValueError(f"{file.name}{line} is no Python: {getattr(error, 'msg', error)}") from None
        size += len(source)
        if size > _MOST_BYTES:
            raise ValueError(f"{path.name} imports more than {_MOST_BYTES} bytes from its folder, up to {file}")
        found[name] = Module(path=str(file), source=source, package=file.name == "__init__.py")
        for top in _imported(tree):
            beside = path.parent / f"{top}.py"
            package = path.parent / top / "__init__.py"
            if package.is_file():  # whatever of it is imported later is there
                for inner in sorted(package.parent.rglob("*.py")):
                    parts = inner.relative_to(path.parent).with_suffix("").parts
                    todo.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), inner))
            elif beside.is_file():
                todo.append((top, beside))
    return found


def _imported(tree: ast.Module) -> list[str]:
    """Top-level names of the modules that are imported anywhere in a file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [one.name.partition(".")[0] for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append(node.module.partition(".")[0])
    return found


def _assigned(tree: ast.Module) -> list[str]:
    """Names that are assigned or imported at the top of a file."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.Assign):
            found += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append(node.target.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found += [one.asname or one.name.partition(".")[0] for one in node.names]
    return found


def _check_free(name: str, path: str) -> None:
    """Refuse a file whose name means another module to Python."""
    if "." in name:
        return
    others = [finder for finder in sys.meta_path if not isinstance(finder, Files)]
    specs = (finder.find_spec(name, None) for finder in others if hasattr(finder, "find_spec"))
    spec = next((one for one in specs if one is not None), None)
    folder_of_that_name = spec is not None and spec.origin is None
    if spec is None or folder_of_that_name or (spec.origin and Path(spec.origin).resolve() == Path(path).resolve()):
        return
    raise ValueError(f"{path} has the name of another module, {spec.origin}: rename it")
