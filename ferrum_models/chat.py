"""Chat templates: the Jinja programs that come with tokenizers, run so that a bad one can do no harm.

A template is code from a file that somebody else made. It runs in Jinja's immutable sandbox (no attributes of Python
objects, no changes of what it is given), and it is stopped when it loops, calls itself or grows without end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import cache, wraps
from typing import Any, NoReturn

__all__ = ["ChatTemplate", "Message"]

Message = Mapping[str, Any]

#: rounds of all loops together, and characters of the result; real templates need a few of each for each message
_ROUNDS = 1_000_000
_CHARACTERS = 50_000_000
#: what one step may make
_LENGTH = 50_000_000
_WIDE = re.compile(r"\d{7,}|\*")
_PADDING = frozenset(("center", "expandtabs", "indent", "ljust", "rjust", "wordwrap", "zfill"))


class ChatTemplate:
    """A chat template: messages in, the prompt that the model was trained on out.

    The template sees ``messages``, ``add_generation_prompt``, ``tools``, the special tokens by name
    (``bos_token`` ...) and what else is given; it may call ``raise_exception(text)`` and
    ``strftime_now(format)``, as templates of Hugging Face checkpoints expect.

    Raises:
        ImportError: without the library ``jinja2``. ValueError: if the template is not valid Jinja.

    Examples:
        >>> from ferrum_models.chat import ChatTemplate
        >>> template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
        >>> template([{"role": "user", "content": "hello"}])
        '<user>hello'
    """

    def __init__(self, source: str, special: Mapping[str, str] | None = None) -> None:
        self.source = source
        self._special = dict(special or {})
        self._template = _compiled(source)

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Any] | None = None,
        **more: Any,
    ) -> str:
        """The prompt for *messages*, each a mapping with ``role`` and ``content``.

        Raises:
            TypeError: if *messages* is not a sequence of mappings. ValueError: if the template refuses
            them, does what the sandbox forbids, or does not come to an end.
        """
        from jinja2 import TemplateError

        if isinstance(messages, (str, bytes)) or not all(isinstance(one, Mapping) for one in messages):
            raise TypeError(
                "chat: messages must be a list of mappings such as {'role': 'user', 'content': 'hello'}, "
                f"got {type(messages).__name__}"
            )
        given = {**self._special, **more}
        pieces, length = [], 0
        token = _budget.set([_ROUNDS])
        try:
            for piece in self._template.generate(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                tools=tools,
                **given,
            ):
                length += len(piece)
                if length > _CHARACTERS:
                    raise ValueError(f"chat template: the prompt is longer than {_CHARACTERS} characters")
                pieces.append(piece)
        except (TemplateError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
            raise ValueError(f"chat template: {error or type(error).__name__}") from None
        except RecursionError:
            raise ValueError("chat template: it calls itself without end") from None
        finally:
            _budget.reset(token)
        return "".join(pieces)

    def __repr__(self) -> str:
        return f"ChatTemplate({len(self.source)} characters)"


#: what is left of the rounds that the loops of the run at hand may take
_budget: ContextVar[list[int]] = ContextVar("ferrum_chat_budget")


class _Counted:
    """The items of a loop, each paid for."""

    def __init__(self, items: Any) -> None:
        self._items = items if hasattr(items, "__len__") else list(_paid(items))

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return _paid(self._items)


def _paid(items: Any) -> Iterator[Any]:
    rounds = _budget.get()
    for item in items:
        rounds[0] -= 1
        if rounds[0] < 0:
            raise ValueError(f"chat template: its loops take more than {_ROUNDS} rounds")
        yield item


@cache
def _environment() -> Any:
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ImportError("chat templates need the library 'jinja2': pip install 'ferrum[models]'") from error

    class Environment(ImmutableSandboxedEnvironment):
        # these operators are the way to gigabytes in one step
        intercepted_binops = frozenset(("*", "**", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _guard(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
            owner = getattr(function, "__self__", None)
            _guard(getattr(function, "__name__", ""), *((owner,) if isinstance(owner, str) else ()), *args)
            return super().call(context, function, *args, **kwargs)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], autoescape=False
    )
    for name in ("center", "format", "indent", "join", "replace", "round", "wordwrap"):
        environment.filters[name] = _guarded(name, environment.filters[name])
    environment.filters["tojson"] = _to_json
    environment.filters["counted"] = _Counted
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _guard(name: str, *operands: Any) -> None:
    """Refuse steps that make gigabytes at once: great counts, powers, widths and products of lengths."""
    sizes = [len(one) for one in operands if hasattr(one, "__len__")]
    numbers = [abs(one) for one in operands if isinstance(one, (int, float))]
    if (
        name == "**"
        or max(numbers, default=0) > 1e9
        or (name != "range" and sizes and max(sizes) * max(numbers, default=0) > _LENGTH)
        or (name in ("replace", "join") and len(sizes) > 1 and sizes[0] * max(sizes[1:]) > _LENGTH)
        or (name in ("%", "format") and any(isinstance(one, str) and _WIDE.search(one) for one in operands))
        or (name in _PADDING and max(numbers, default=0) > _LENGTH)
    ):
        raise ValueError(f"chat template: {name} of something so large is refused")


def _guarded(name: str, function: Any) -> Any:
    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _guard(name, *(one for one in (*args, *kwargs.values()) if isinstance(one, (str, int, float, list, tuple))))
        return function(*args, **kwargs)

    return guarded


def _compiled(source: str) -> Any:
    environment = _environment()
    from jinja2 import TemplateSyntaxError, nodes

    try:
        tree = environment.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        tree.set_environment(environment)
        code = environment.compile(tree)
    except TemplateSyntaxError as error:
        raise ValueError(f"chat template: line {error.lineno}: {error.message}") from None
    return environment.template_class.from_code(environment, code, environment.make_globals(None))


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    # as templates expect it: readable characters, and no escapes for HTML
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"chat template: {message}")
