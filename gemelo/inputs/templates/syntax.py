"""Jinja's parser: a template's source to a syntax tree, within limits on its length and tokens.

Jinja reads it, as transformers sets Jinja up; nothing of Jinja runs it.

    tree = parse("{{ messages[0].content }}")
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser

from gemelo.errors import FileFormatError

MAX_SOURCE_CHARS = 1 << 18
MAX_TOKENS = 32_000
# Jinja's expressions for numbers go far back in a long one.
MAX_DIGITS = 1000
LONG_NUMBER = re.compile(rf"[0-9a-fA-F_]{{{MAX_DIGITS}}}")


def parse(source: str) -> nodes.Template:
    """The tree of `source`; FileFormatError for what is no template, or too large a one."""
    if len(source) > MAX_SOURCE_CHARS:
        raise FileFormatError(
            f"the chat template has {len(source):,} characters: the limit is {MAX_SOURCE_CHARS:,}"
        )
    if LONG_NUMBER.search(source):
        raise FileFormatError(f"the chat template has a number of {MAX_DIGITS:,} digits or more")
    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation, _Limit],
    )
    try:
        return Parser(environment, source).parse()
    except TemplateSyntaxError as error:
        where = f"line {error.lineno}: {error.message}"
    except RecursionError:
        where = "its expressions or blocks are nested too deeply"
    except Exception as error:  # numbers of thousands of digits, broken escapes in texts
        where = str(error)
    raise FileFormatError(f"the chat template is broken at {where}")


def mentions(source: str, *words: str) -> bool:
    """Whether `source` has one of the words as a name, an attribute or a text by itself."""
    tree = parse(source)
    return (
        any(node.name in words for node in tree.find_all(nodes.Name))
        or any(node.attr in words for node in tree.find_all(nodes.Getattr))
        or any(node.value in words for node in tree.find_all(nodes.Const))
    )


class _Generation(Extension):
    """{% generation %} marks the model's words for training: what is in it is written as ever."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Limit(Extension):
    """Counts words and signs as the parser takes them."""

    def filter_stream(self, stream: TokenStream) -> Iterable[Token]:
        return self._counted(stream)

    def _counted(self, stream: TokenStream) -> Iterator[Token]:
        for count, token in enumerate(stream):
            if count == MAX_TOKENS:
                reason = f"it has more than {MAX_TOKENS:,} words and signs"
                raise TemplateSyntaxError(reason, token.lineno)
            yield token
