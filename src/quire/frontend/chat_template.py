"""Messages to prompt: Jinja chat templates."""

import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes

from quire.errors import ConfigError, InvalidRequestError, ParameterError, QuireError
from quire.frontend.control_tokens import BREAK, ControlTokens
from quire.frontend.messages import CUT, map_strings, mark_end, normalise_messages, plain_value
from quire.frontend.render_budget import RenderBudget, TemplateLimits
from quire.frontend.sandbox import BUDGET, TemplateEnvironment
from quire.frontend.tokenizer import Tokenizer

_NO_CONTROL_TOKENS = ControlTokens(())
_OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A chat as a prompt.

    Attributes:
        text: What the template wrote.
        token_ids: Its tokens. They hold control tokens only where the template wrote them.
    """

    text: str
    token_ids: list[int]


class ChatTemplate:
    """A chat template, compiled once; `render` and `encode` may run in several threads.

    Args:
        text: The Jinja source.
        named_tokens: bos_token, eos_token and so on, which templates use as variables.
        limits: What a rendering may use.
        clock: Seconds, monotonic; for the time limit.
        now: For the template's `strftime_now`.

    Attributes:
        wants_parts: Whether it goes through contents part by part.
        reads_tools: Whether it looks at the tools that it is given.

    Raises:
        ConfigError: The template is too long or does not compile.
    """

    def __init__(
        self,
        text: str,
        *,
        named_tokens: Mapping[str, str] | None = None,
        limits: TemplateLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.text = text
        self._named_tokens = dict(named_tokens or {})
        self._limits = limits or TemplateLimits()
        self._clock = clock
        if len(text) > self._limits.template_characters:
            raise ConfigError(
                f"the chat template has {len(text)} characters, more than {self._limits.template_characters}",
                param="chat_template",
            )
        environment = TemplateEnvironment()
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
        try:
            tree = environment.parse(text)
            self.wants_parts = _wants_parts(tree)
            self.reads_tools = any(name.name == "tools" for name in tree.find_all(nodes.Name))
            self._template = environment.build(tree)
        except (jinja2.TemplateError, SyntaxError, RecursionError, MemoryError) as error:
            raise ConfigError(
                f"the chat template does not compile: {_short(error)}",
                hint="give another one with --chat-template",
                param="chat_template",
            ) from error
        self._reserved = _OWN_VARIABLES | environment.globals.keys()

    def render(self, messages: Any, **options: Any) -> str:
        """The prompt as text. Options as for `encode`.

        Raises:
            InvalidRequestError: As for `encode`.
        """
        return self._render(messages, _NO_CONTROL_TOKENS, **options)

    def encode(self, messages: Any, tokenizer: Tokenizer, **options: Any) -> ChatPrompt:
        """The prompt as text and tokens.

        What the template writes may be control tokens; strings from messages, tools and `variables` may not: the
        same characters in them stay text. To that end such strings are broken by a noncharacter before the template
        sees them, which is invisible to it unless it compares them with a control token.

        Args:
            messages: Objects with role and content.
            tokenizer: The model's.
            **options: `add_generation_prompt` (True): end with the head of an answer. `continue_final_message`
                (False): end within the last message, to go on with it. `tools`, `documents`: lists, as the
                template expects them. `variables`: further variables for the template.

        Raises:
            InvalidRequestError: Messages that are malformed, that the template refuses, or with which it fails or
                exceeds its limits.
        """
        marked = self._render(messages, tokenizer.control_tokens, **options)
        return ChatPrompt(text=marked.replace(BREAK, ""), token_ids=tokenizer.encode_broken(marked))

    def _render(
        self,
        messages: Any,
        control: ControlTokens,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Any = None,
        documents: Any = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        if continue_final_message and add_generation_prompt:
            raise ParameterError("continue_final_message", "false with add_generation_prompt", True)
        self._check_variables(variables or {})
        normalised: list[dict[str, Any]] = map_strings(
            normalise_messages(messages, as_parts=self.wants_parts), control.break_up
        )
        if continue_final_message:
            normalised[-1] = mark_end(normalised[-1])
        given = {"tools": tools or None, "documents": documents or None, **(variables or {})}
        plain = {name: map_strings(plain_value(value, name), control.break_up) for name, value in given.items()}
        text = self._run(
            {
                **self._named_tokens,
                **plain,
                "messages": normalised,
                "add_generation_prompt": add_generation_prompt,
                BUDGET: RenderBudget(self._limits, self._clock, control),
            }
        )
        return _cut(text) if continue_final_message else text

    def _check_variables(self, variables: Mapping[str, Any]) -> None:
        for name in variables:
            if not isinstance(name, str) or not name.isidentifier() or name in self._reserved:
                raise ParameterError(
                    "chat_template_kwargs", "an object whose names the template does not reserve", name
                )

    def _run(self, variables: Mapping[str, Any]) -> str:
        budget: RenderBudget = variables[BUDGET]
        written = []
        num_characters = 0
        try:
            for piece in self._template.generate(variables):
                num_characters += len(piece)
                if num_characters > self._limits.output_characters:
                    budget.spend(num_characters)
                written.append(piece)
        except QuireError:
            raise
        except Exception as error:
            raise InvalidRequestError(
                f"the chat template fails with these messages: {_short(error)}", param="messages"
            ) from error
        return "".join(written)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _short(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _cut(text: str) -> str:
    """`text` up to the mark, without trailing space if the template strips contents."""
    text, mark, rest = text.rpartition(CUT)
    if not mark:
        raise InvalidRequestError(
            "continue_final_message: the chat template leaves out the content of the last message",
            param="continue_final_message",
        )
    return text if rest.startswith(" ") else text.rstrip()


def _wants_parts(tree: nodes.Template) -> bool:
    """Whether a template goes through a message's content part by part and never asks whether it is a string."""
    aliases = {
        assignment.target.name
        for assignment in tree.find_all(nodes.Assign)
        if isinstance(assignment.target, nodes.Name) and _reads_content(assignment.node, frozenset())
    }
    asks = any(
        test.name in ("string", "iterable", "sequence") and _reads_content(test.node, aliases)
        for test in tree.find_all(nodes.Test)
    )
    return not asks and any(_reads_content(loop.iter, aliases) for loop in tree.find_all(nodes.For))


def _reads_content(node: nodes.Node, aliases: Set[str]) -> bool:
    while isinstance(node, nodes.Filter) and node.node is not None:
        node = node.node
    if isinstance(node, nodes.Name):
        return node.name in aliases
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"
