"""Command-line parsing: typer's commands and groups, with aliases, and errors in the user's words.

A command takes every alias of its options (`aliases`), says of the options of other programs what
stands in their place (`absent`), and suggests a spelling only if it is close. An error of the
library names a field, `top_p = 2.0`, or an argument, `overwrite=True`; people read the option that
they typed, `--top-p 2`, or can type, `--force`. typer draws sections in a command's help only
through rich; here they are plain text.

    app = typer.Typer(cls=CommandGroup)
    app.command("chat", cls=SectionedCommand)(chat)
    names = ctx.meta[TYPED].names           # of the parameters, in the order that they were typed
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from gemelo.cli import absent, aliases
from gemelo.cli.prompt_text import PromptSource, several_texts, unquoted
from gemelo.errors import GemeloError, InputError

TYPED = "gemelo.typed"  # a `Typed`, in a context's meta
_ABSENT = "gemelo.absent"
_CLOSE = 0.75  # of difflib's ratio
_LEAST_PREFIX = 3  # letters
_FIELD = re.compile(
    r"(\w+)(?: (?:=|is) (?P<value>.*?)[;:] (?P<cure>(?:expected|give) .*)"
    r"|(?P<rest> (?:= |is |has |token |of |').*))"
)
_FLAG = re.compile(r"\b(\w+)=True\b")


@dataclass(frozen=True)
class Typed:
    """What a command line held: parameters in its order, and how their values were written."""

    names: tuple[str, ...]
    spelt: dict[str, str]  # --temp for temperature
    values: dict[str, Any]


class SectionedCommand(TyperCommand):
    """A command that takes aliases, and whose help groups its options by `rich_help_panel`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for parameter in self.params:
            if isinstance(parameter, TyperArgument | TyperOption):  # Q8_0 is q8_0
                parameter.type_descriptor.parameter_info.case_sensitive = False

    def make_parser(self, ctx: Any) -> Any:
        """typer's parser, which takes aliases and options that are not here as well."""
        parser = super().make_parser(ctx)
        options = [one for one in self.get_params(ctx) if isinstance(one, TyperOption)]
        known = {name for one in options for name in (*one.opts, *one.secondary_opts)}
        for option in options:
            for twin in _twins(option, known):
                twin.add_to_parser(parser, ctx)
        for name in sorted(
            {*absent.OPTIONS, *absent.of_command(self.name), *_with_one_dash(known)} - known
        ):
            parser.add_option(options[0], [name], _ABSENT, "append_const", const=name)
        return parser

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Look at the words first for what can be said better than typer says it."""
        if not ctx.resilient_parsing:
            self._look(ctx, args)
        try:
            return super().parse_args(ctx, args)
        except GemeloError as error:
            raise _in_users_words(error, ctx) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error names the option that was typed."""
        try:
            return super().invoke(ctx)
        except GemeloError as error:
            named = _in_users_words(error, ctx)
            if named is error:
                raise
            raise named from error

    def _look(self, ctx: Any, args: list[str]) -> None:
        try:
            values, rest, order = self.make_parser(ctx).parse_args(list(args))
        except typer.TyperException as error:
            raise _better(error, ctx) from None
        if _ABSENT in values and "help" not in values:
            raise _absent_option(ctx, values[_ABSENT][0])
        given = [one for one in order if values.get(one.name) is not None]
        spelt = {one.name: max(one.opts, key=len) for one in given if one.opts}
        ctx.meta[TYPED] = Typed(tuple(one.name for one in given), spelt, values)
        if rest and "prompt" in values and "help" not in values:
            said = PromptSource(values["prompt"], values.get("prompt_option"))
            raise unquoted(ctx.command_path, said, rest, args)
        if rest and "text" in values and "help" not in values:
            raise several_texts(ctx.command_path, [values["text"], *rest])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for every group, in the order of the signature."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(_section(parameter), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class CommandGroup(TyperGroup):
    """A group that takes other names of its commands, and knows what other programs have."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """An option of a command in front of it gets a sentence of its own."""
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            if option := getattr(error, "option_name", ""):
                error.message = (
                    f"No such option: {option}; a command comes first, for example "
                    f"`{ctx.command_path} run MODEL PROMPT`"
                )
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names, here or elsewhere."""
        name = args[0]
        own = aliases.COMMANDS.get(name, name)
        if own in self.commands:
            return super().resolve_command(ctx, [own, *args[1:]])
        if sentence := absent.sentence(absent.COMMANDS, name):
            raise InputError(f"{ctx.command_path} {name}: {sentence}")
        if name.lower().endswith(".gguf"):
            ctx.fail(f"No such command {name!r}. `{ctx.command_path} run {name}` runs a model")
        near = close(name, self.commands)
        ctx.fail(f"No such command {name!r}.{f' Did you mean {near[0]!r}?' if near else ''}")


class ShowGroup(CommandGroup):
    """A group that shows a model where its first word names none of its commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`show x.gguf` is `show model x.gguf`."""
        first = args[0] if args else "--help"
        if first not in (*self.commands, *ctx.help_option_names) and not close(
            first, self.commands
        ):
            args = ["model", *args]
        return super().parse_args(ctx, args)


def close(name: str, names: Iterable[str]) -> list[str]:
    """Names that somebody who typed another may have meant, the likeliest first."""
    bare = {one.lstrip("-"): one for one in names}
    typed = name.lstrip("-").lower().replace("_", "-")
    begun = [one for one in bare if len(typed) >= _LEAST_PREFIX and one.startswith(typed)]
    found = begun or get_close_matches(typed, bare, n=2, cutoff=_CLOSE)
    return [bare[one] for one in found]


def bad_value(error: typer.TyperException) -> str:
    """What is wrong with the value of an option of a type, and the value itself, in place of
    typer's own message; "" for any other error."""
    parameter, errors = getattr(error, "param", None), getattr(error.__cause__, "errors", None)
    if not isinstance(parameter, TyperOption) or errors is None:
        return ""
    first = errors()[0]
    name = _spelt(getattr(error, "ctx", None), parameter)
    value = first["input"] or "''"
    choices = parameter.type_descriptor.choices
    if choices is not None:
        more = absent.of_format(value, choices)
        *others, last = choices
        listed = f"expected {', '.join(others)} or {last}"
        return f"{name} {value}: {listed}{'; ' if more else ''}{more}"
    kind = str(first["type"]).partition("_")[0]
    expected = {"int": "a whole number", "float": "a number"}.get(kind)
    return f"{name} {value}: expected {expected}" if expected else ""


# ---- options -------------------------------------------------------------------------------------


def _twins(option: TyperOption, known: set[str]) -> Iterator[TyperOption]:
    """The option under each of its other names, one at a time: so it shows which was typed."""
    for name in aliases.of_option(option.opts):
        if name not in known:
            known.add(name)
            twin = copy.copy(option)
            twin.opts, twin.secondary_opts = [name], []
            yield twin
    off = [aliases.underscored(name) for name in option.secondary_opts]
    if off != option.secondary_opts:
        twin = copy.copy(option)
        twin.opts, twin.secondary_opts = [], off
        yield twin


def _with_one_dash(known: Iterable[str]) -> set[str]:
    """-temperature, which would be -t with a value."""
    return {name[1:] for name in known if name.startswith("--") and len(name) > 4}


def _absent_option(ctx: Any, name: str) -> InputError:
    if sentence := absent.sentence(absent.of_command(ctx.command.name), name):
        return InputError(f"{name} is no option of {ctx.command_path}: {sentence}")
    if sentence := absent.sentence(absent.OPTIONS, name):
        return InputError(f"{name} is no option of gemelo: {sentence}")
    return InputError(f"{name} needs two dashes: -{name}")


def _better(error: typer.TyperException, ctx: Any) -> Exception:
    """A parser's error, with what is known of an option that it does not know."""
    option, name = getattr(error, "option_name", ""), ctx.command.name
    if not option:
        return error
    if any(absent.sentence(one, option) for one in (absent.OPTIONS, absent.of_command(name))):
        return _absent_option(ctx, option)
    if hasattr(error, "possibilities"):
        own = [
            one
            for one in ctx.command.get_params(ctx)
            if isinstance(one, TyperOption) and not one.hidden
        ]
        names = {other: max(one.opts, key=len) for one in own for other in _all_names(one)}
        names |= {off: off for one in own for off in one.secondary_opts}
        near = dict.fromkeys(names[name] for name in close(option, names) if len(option) > 2)
        error.possibilities = None
        if near:
            error.message = f"{error.message}. Did you mean {' or '.join(near)}?"
    return error


def _all_names(option: TyperOption) -> Iterator[str]:
    for name in (*option.opts, *aliases.of_option(option.opts)):
        if name.startswith("--") and "_" not in name and name != "--help":
            yield name


def _section(parameter: object) -> str:
    if isinstance(parameter, TyperArgument):
        return parameter.rich_help_panel or "Arguments"
    if isinstance(parameter, TyperOption):
        return parameter.rich_help_panel or "Options"
    return "Options"


# ---- errors --------------------------------------------------------------------------------------


def _in_users_words(error: GemeloError, ctx: Any) -> GemeloError:
    """An error that begins with the field of an option, or tells to turn one on, with the option
    itself in its place."""
    options = {one.name: one for one in ctx.command.params if isinstance(one, TyperOption)}
    spelt = _FLAG.sub(
        lambda flag: _spelt(ctx, options[flag[1]]) if flag[1] in options else flag[0], str(error)
    )
    if spelt != str(error):
        return type(error)(spelt)
    match = _FIELD.fullmatch(spelt)
    option = match and options.get(match[1])
    if not match or not option:
        return error
    name, typed = _spelt(ctx, option), ctx.meta.get(TYPED)
    if match["value"] is None:
        return type(error)(f"{name}{match['rest']}")
    value = typed.values.get(option.name) if typed else None
    value = value if isinstance(value, str) else match["value"]
    return type(error)(f"{name} {value}: {match['cure']}")


def _spelt(ctx: Any, option: TyperOption) -> str:
    """An option as it was typed, or its longest name."""
    typed = None if ctx is None else ctx.meta.get(TYPED)
    return (typed.spelt if typed else {}).get(option.name) or max(option.opts, key=len)
