"""The Python API reference: docs/api.md, written from the code of every public name.

The names are those of `gemelo.__all__`; signatures and docstrings are what the code has, so the
page cannot say something else. Names with an underscore, and constructors that take what no user
has in hand, are left out. Names are grouped by the folder that their code lies in.

    python dev/api_reference.py            # writes docs/api.md
    python dev/api_reference.py --check    # exit code 1 where it is not what the code says
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import gemelo

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api.md"
HEAD = """# The Python API

Every public name of `gemelo`, from the code: what it takes, what it gives, what it raises. To see
it at work first: [python.md](python.md), [media.md](media.md) and [elastic.md](elastic.md), or

    python -c "import gemelo; print(gemelo.load().generate('Once upon a time', max_tokens=8).text)"

Written by `python dev/api_reference.py` from `gemelo.__all__`; in Python, `help(gemelo.load)` shows
the same. Of a shape such as `(T, V)`, T are tokens, V the vocabulary, D the width, J the tokens of
a picture or a sound.
"""
# The first that a module's name begins with.
GROUPS = {
    "gemelo.api": "Load a model, and ask it",
    "gemelo.checkpoints": "Fetch, convert and slice models",
    "gemelo.transcription": "Transcription",
    "gemelo.engine.elastic": "Sub-models, drafts and policies",
    "gemelo.config.submodel": "Sub-models, drafts and policies",
    "gemelo.config.sampling": "Sessions, sampling and answers",
    "gemelo.engine.media": "Pictures, sound and video",
    "gemelo.inputs.media": "Pictures, sound and video",
    "gemelo.engine": "Sessions, sampling and answers",
    "gemelo.inputs": "Prompts and the tokenizer",
    "gemelo.config.options": "Options that are one word of a few",
    "gemelo.config": "Configs",
    "gemelo.errors": "Errors",
    "gemelo": "More",
}

_WIDE = 100


def page() -> str:
    """The whole page."""
    groups: dict[str, list[str]] = {title: [] for title in GROUPS.values()}
    for name in gemelo.__all__:
        home = home_of(name).__name__
        first = next(prefix for prefix in GROUPS if f"{home}.".startswith(f"{prefix}."))
        groups[GROUPS[first]].append(name)
    parts = [HEAD, *_contents(groups)]
    for title, names in groups.items():
        if names:
            parts.append(f"\n## {title}\n")
            parts += [section(name) for name in sorted(names, key=_order)]
    return "\n".join(parts)


def _order(name: str) -> tuple[bool, str]:
    """Functions first, then everything else, by name."""
    return not inspect.isfunction(getattr(gemelo, name)), name


def _contents(groups: dict[str, list[str]]) -> Iterator[str]:
    for title, names in groups.items():
        if names:
            links = ", ".join(f"[{name}](#{name.lower()})" for name in sorted(names, key=_order))
            yield _wrapped(f"- **{title}**: {links}")


def _wrapped(text: str) -> str:
    return textwrap.fill(
        text, _WIDE, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )


def home_of(name: str) -> ModuleType:
    """The module whose code defines a public name."""
    value = getattr(gemelo, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        return import_module(value.__module__)
    return import_module(gemelo._HOMES[name].rpartition(".")[0])


def section(name: str) -> str:
    """A public name: what it is, where its code is, and what it has."""
    value, module = getattr(gemelo, name), home_of(name)
    path = Path(inspect.getfile(module)).resolve().relative_to(ROOT).as_posix()
    parts = [f"### {name}\n"]
    if inspect.isfunction(value):
        parts += [_code(signature(_node(value), name)), prose(inspect.getdoc(value))]
    elif inspect.isclass(value):
        parts += [_code(class_text(value)), prose(inspect.getdoc(value)), *_members(value)]
    else:
        parts.append(_code(f"{name} = {alias(gemelo._HOMES[name].rpartition('.')[2], module)}"))
    parts.append(f"Code: [{path}](../{path})\n")
    return "\n".join(part for part in parts if part)


def alias(name: str, module: ModuleType) -> str:
    """The right side of a type's other name, as it is written."""
    for node in ast.parse(inspect.getsource(module)).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return ast.unparse(value)
            case ast.AnnAssign(target=ast.Name(id=found), value=value) if found == name and value:
                return ast.unparse(value)
    raise LookupError(f"{module.__name__} does not define {name}")


def _code(text: str) -> str:
    """A block of code, its texts in the quotes that the code base uses."""
    text = re.sub(r"'([^'\"]*)'", r'"\1"', text)
    return f"```py\n{text}\n```\n"


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: signs that would be a tag stand for themselves."""
    if not docstring:
        return ""
    pieces = re.split(r"(`[^`]*`)", docstring)
    shown = [one if one.startswith("`") else one.replace("<", "\\<") for one in pieces]
    return "".join(shown).strip() + "\n"


def _node(function: Any) -> ast.FunctionDef | ast.AsyncFunctionDef:
    node = ast.parse(_dedented(function)).body[0]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef), function
    return node


def _dedented(value: Any) -> str:
    """The source of a function or class, moved to the left edge."""
    lines = inspect.getsource(value).splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] if line[:indent].isspace() else line for line in lines)


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> str:
    """How a function is called, its own first argument left out; wide ones a line an argument."""
    words = [one for one in _arguments(node.args) if one not in ("self", "cls")]
    end = f" -> {_unquoted(node.returns)}" if node.returns else ""
    name = f"async {name}" if isinstance(node, ast.AsyncFunctionDef) else name
    line = f"{name}({', '.join(words)}){end}"
    if len(line) <= _WIDE:
        return line
    return f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){end}"


def _unquoted(annotation: ast.expr) -> str:
    """An annotation as it is written; the name in it, where it had to be put into quotes."""
    is_text = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
    return ast.literal_eval(annotation) if is_text else ast.unparse(annotation)


def _arguments(args: ast.arguments) -> Iterator[str]:
    """Each argument as it is written, with the signs between their kinds."""
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    for place, (one, default) in enumerate(zip(plain, defaults, strict=True)):
        yield _argument(one, default)
        if place + 1 == len(args.posonlyargs):
            yield "/"
    if args.vararg:
        yield f"*{_argument(args.vararg, None)}"
    elif args.kwonlyargs:
        yield "*"
    for one, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield _argument(one, default)
    if args.kwarg:
        yield f"**{_argument(args.kwarg, None)}"


def _argument(one: ast.arg, default: ast.expr | None) -> str:
    text = f"{one.arg}: {ast.unparse(one.annotation)}" if one.annotation else one.arg
    if default is None:
        return text
    return (
        f"{text} = {ast.unparse(default)}" if one.annotation else f"{text}={ast.unparse(default)}"
    )


def own_classes(value: type) -> list[type]:
    """A class and those of gemelo that it is made of and that have no section of their own."""
    public = [getattr(gemelo, name) for name in gemelo.__all__]
    elsewhere = {one for base in value.__mro__[1:] if base in public for one in base.__mro__}
    return [
        one
        for one in value.__mro__
        if one.__module__.split(".")[0] == "gemelo" and one not in elsewhere
    ]


def class_text(value: type) -> str:
    """A class with its fields, or with its constructor where a user can call it."""
    bases = [base.__name__ for base in value.__bases__ if base.__module__ != "typing"]
    known = [name for name in bases if name in {*gemelo.__all__, *dir(builtins)} - {"object"}]
    init = value.__dict__.get("__init__")
    if not known and inspect.isfunction(init) and not _is_generated(init):  # no dataclass
        name = f"class {value.__name__}"
        return signature(_node(init), name)[: -len(" -> None")] if for_users(init) else name
    fields: dict[str, str] = {}
    for one in reversed(own_classes(value)):
        fields |= _fields(one)
    head = f"class {value.__name__}" + (f"({', '.join(known)})" if known else "")
    return head + "".join(f"\n    {line}" for line in fields.values())


def _fields(one: type) -> dict[str, str]:
    (node,) = ast.parse(_dedented(one)).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for field in node.body:
        match field:
            case ast.AnnAssign(target=ast.Name(id=name)) if not name.startswith("_"):
                found[name] = _field(field, vars(import_module(one.__module__)))
    return found


def _field(node: ast.AnnAssign, names: Mapping[str, Any]) -> str:
    """A field as it is written; a constant stands for its value, a factory for what it makes."""
    text = f"{ast.unparse(node.target)}: {ast.unparse(node.annotation)}"
    match node.value:
        case None:
            return text
        case ast.Name(id=name):
            return f"{text} = {names[name]!r}"
        case ast.Call(keywords=words) if ast.unparse(node.value.func).endswith("field"):
            given = {word.arg: ast.unparse(word.value) for word in words}
            if "default_factory" in given:
                return f"{text} = {given['default_factory']}()"
            return f"{text} = {given['default']}" if "default" in given else text
    return f"{text} = {ast.unparse(node.value)}"


def _is_generated(function: Any) -> bool:
    """Whether dataclasses or typing made it."""
    return not function.__code__.co_filename.startswith(str(Path(gemelo.__file__).parent))


def for_users(init: Any) -> bool:
    """Whether all that a constructor takes is public, or Python's and PyTorch's own."""
    annotations = [
        ast.unparse(one.annotation)
        for one in ast.walk(_node(init).args)
        if isinstance(one, ast.arg) and one.annotation
    ]
    names = set(re.findall(r"\b[A-Z]\w+", " ".join(annotations)))
    return names <= {*gemelo.__all__, *typing.__all__, "None", "True", "False", "Path", "Tensor"}


def _members(value: type) -> Iterator[str]:
    """Public methods and properties, in the order of the code; those of other bases after."""
    seen: set[str] = set()
    for one in own_classes(value):
        for name, member in vars(one).items():
            function = _function(member)
            if name.startswith("_") or name in seen or function is None:
                continue
            seen.add(name)
            text = _docstring(value, name)
            if text and not _is_generated(function):
                yield _member(value.__name__, name, member, function, text)


def _function(member: Any) -> Any:
    """The function behind a method, property, class method or cached property; else None."""
    for attribute in ("fget", "func", "__func__"):
        member = getattr(member, attribute, member)
    return member if inspect.isfunction(member) else None


def _docstring(value: type, name: str) -> str:
    """Of a member; but none of one that is explained where a base with a section has it."""
    for one in value.__mro__:
        if name in vars(one):
            text = inspect.getdoc(_function(vars(one)[name]))
            if text:
                return text if one in own_classes(value) else ""
    return ""


def _member(owner: str, name: str, member: Any, function: Any, text: str) -> str:
    """A heading, how it is called or of which type it is, and what its docstring says."""
    node = _node(function)
    head = f"#### {owner}.{name}\n\n"
    if isinstance(member, classmethod | staticmethod):
        return f"{head}{_code(signature(node, f'{owner}.{name}'))}\n{prose(text)}"
    if inspect.isfunction(member):
        return f"{head}{_code(signature(node, name))}\n{prose(text)}"
    type_ = f"Property, `{_unquoted(node.returns)}`.\n\n" if node.returns else ""
    return f"{head}{type_}{prose(text)}"


def main(words: list[str]) -> int:
    """Write the page, or with --check say whether it is up to date."""
    if words and words != ["--check"]:
        print(__doc__)
        return 0 if words == ["--help"] else 2
    if words == ["--check"]:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
            return 0
        print(f"{PAGE.name} is not what the code says: run python dev/api_reference.py")
        return 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
