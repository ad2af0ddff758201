"""How models write tool calls and reasoning: descriptions, as data, and their names.

A marker is written with the white space that models put around it, which is what a grammar makes them write; in
reading, white space around markers does not matter. Where several markers are given, the first is the one written.
"""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

from quire.errors import ConfigError


@dataclass(frozen=True, slots=True)
class JsonCall:
    """A call is `{"name": NAME, "arguments": {...}}`; one object, several in a row or a list of them."""

    name_keys: tuple[str, ...] = ("name",)
    arguments_keys: tuple[str, ...] = ("arguments", "parameters")


@dataclass(frozen=True, slots=True)
class NamedCall:
    """A call is its name and an object of arguments.

    Attributes:
        before_name: Optional.
        after_name: Optional.
        after_arguments: Optional.
        id_marker: Between the name and an id, where the model writes one.
        has_numbers: The name is written as `functions.NAME:NUMBER`, which is also the call's id.
    """

    before_name: str = ""
    after_name: str = ""
    after_arguments: str = ""
    id_marker: str = ""
    has_numbers: bool = False


@dataclass(frozen=True, slots=True)
class TaggedCall:
    """A call is its name and a tagged text for each argument: the text itself for a string, otherwise JSON.

    Names may be quoted; behind the name of an argument `string="true"` or `"false"` says what its text is.

    Attributes:
        after_name: Ends the call's name; the next tag does so too.
        argument_begin: Before an argument's name.
        value_begin: Between an argument's name and its value.
        value_end: Behind the value.
        padding: Belongs to the tags where a value begins or ends with it.
        quote: Around names.
        attribute: Behind an argument's name, with `{}` for "true" or "false".
    """

    argument_begin: str
    value_begin: str
    value_end: str
    after_name: str = ""
    before_name: str = ""
    padding: str = ""
    quote: str = ""
    attribute: str = ""


@dataclass(frozen=True, slots=True)
class PythonCall:
    """A call is `NAME(ARGUMENT=LITERAL, ...)`; one, several in a row or a list of them."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model writes tool calls.

    Attributes:
        name: Under which it is registered.
        call: The shape of a call.
        section_begin: Before all calls.
        section_end: Behind all calls.
        list_begin: Before the first call.
        separator: Between calls.
        list_end: Behind the last call.
        call_begin: Before each call.
        call_end: Behind each call.
        is_bare: An answer may begin with a call without any marker. Then only the name of a given tool makes it one.
        short_ids: The template accepts ids of nine letters and digits only.
    """

    name: str
    call: JsonCall | NamedCall | TaggedCall | PythonCall
    section_begin: tuple[str, ...] = ()
    section_end: str = ""
    list_begin: str = ""
    separator: str = ""
    list_end: str = ""
    call_begin: tuple[str, ...] = ()
    call_end: str = ""
    is_bare: bool = False
    short_ids: bool = False

    @property
    def openers(self) -> tuple[str, ...]:
        """The markers that a call follows."""
        return _stripped(self.call_begin or self.section_begin)

    @property
    def boundaries(self) -> tuple[str, ...]:
        """The markers behind a call."""
        return _stripped((self.call_end, self.section_end))

    @property
    def markers(self) -> frozenset[str]:
        """Every marker that is never a part of the answer's text."""
        tags = [tag.strip() for text in self.texts for tag in text.split("\n")]
        inner = [tag for tag in tags if ("<" in tag or "[" in tag) and len(tag) > len("</>")]
        outer = (*self.section_begin, self.section_end, *self.call_begin, self.call_end)
        return frozenset((*_stripped(outer), *inner))

    @property
    def texts(self) -> tuple[str, ...]:
        """The fixed texts inside calls."""
        values = (getattr(self.call, each.name) for each in fields(self.call))
        return tuple(value for value in values if isinstance(value, str))


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How a model marks its reasoning.

    Attributes:
        name: Under which it is registered.
        begin: Before it; a template may have written it already.
        end: Behind it.
        begins_unmarked: Where the template has not decided it, the answer begins with reasoning, marked or not.
        ends_with_call: A tool call ends the reasoning, too.
        content_wrappers: Around the content; not a part of it.
    """

    name: str
    begin: tuple[str, ...] = ("<think>",)
    end: tuple[str, ...] = ("</think>",)
    begins_unmarked: bool = False
    ends_with_call: bool = False
    content_wrappers: tuple[str, ...] = ()

    @property
    def markers(self) -> frozenset[str]:
        """All markers."""
        return frozenset((*self.begin, *self.end, *self.content_wrappers))


_Format = TypeVar("_Format", ToolFormat, ReasoningFormat)


def _stripped(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text.strip() for text in texts if text.strip())


PLAIN_JSON = ToolFormat("json", JsonCall(), list_begin="[", separator=", ", list_end="]", is_bare=True)
"""For models whose template has no format of its own."""

_DSML_CALL = TaggedCall(
    quote='"',
    after_name=">\n",
    argument_begin="<｜DSML｜parameter name=",
    attribute=' string="{}"',
    value_begin=">",
    value_end="</｜DSML｜parameter>\n",
)

_TOOL_FORMATS = (
    PLAIN_JSON,
    ToolFormat("hermes", JsonCall(), call_begin=("<tool_call>\n",), call_end="\n</tool_call>", separator="\n"),
    ToolFormat(
        "qwen3_coder",
        TaggedCall(
            after_name=">\n",
            argument_begin="<parameter=",
            value_begin=">\n",
            value_end="\n</parameter>\n",
            padding="\n",
        ),
        section_begin=("<tool_call>\n",),
        section_end="\n</tool_call>",
        call_begin=("<function=",),
        call_end="</function>",
        separator="\n</tool_call>\n<tool_call>\n",
    ),
    ToolFormat(
        "llama3_json",
        JsonCall(arguments_keys=("parameters", "arguments")),
        section_begin=("<|python_tag|>",),
        separator="; ",
        is_bare=True,
    ),
    ToolFormat("pythonic", PythonCall(), list_begin="[", separator=", ", list_end="]", is_bare=True),
    ToolFormat(
        "llama4_pythonic",
        PythonCall(),
        section_begin=("<|python_start|>",),
        section_end="<|python_end|>",
        list_begin="[",
        separator=", ",
        list_end="]",
        is_bare=True,
    ),
    ToolFormat(
        "olmo3",
        PythonCall(),
        section_begin=("<function_calls>\n",),
        section_end="\n</function_calls>",
        separator="\n",
    ),
    ToolFormat(
        "lfm2",
        PythonCall(),
        section_begin=("<|tool_call_start|>",),
        section_end="<|tool_call_end|>",
        list_begin="[",
        separator=", ",
        list_end="]",
    ),
    ToolFormat(
        "mistral",
        NamedCall(after_name="[ARGS]", id_marker="[CALL_ID]"),
        call_begin=("[TOOL_CALLS]",),
        short_ids=True,
    ),
    ToolFormat(
        "deepseek_v3",
        NamedCall(before_name="function<｜tool▁sep｜>", after_name="\n```json\n", after_arguments="\n```"),
        section_begin=("<｜tool▁calls▁begin｜>",),
        section_end="<｜tool▁calls▁end｜>",
        call_begin=("<｜tool▁call▁begin｜>",),
        call_end="<｜tool▁call▁end｜>",
        separator="\n",
    ),
    ToolFormat(
        "deepseek_v31",
        NamedCall(after_name="<｜tool▁sep｜>"),
        section_begin=("<｜tool▁calls▁begin｜>",),
        section_end="<｜tool▁calls▁end｜>",
        call_begin=("<｜tool▁call▁begin｜>",),
        call_end="<｜tool▁call▁end｜>",
    ),
    ToolFormat(
        "deepseek_v32",
        _DSML_CALL,
        section_begin=("<｜DSML｜function_calls>\n",),
        section_end="\n</｜DSML｜function_calls>",
        call_begin=("<｜DSML｜invoke name=",),
        call_end="</｜DSML｜invoke>",
        separator="\n",
    ),
    ToolFormat(
        "deepseek_v4",
        _DSML_CALL,
        section_begin=("<｜DSML｜tool_calls>\n",),
        section_end="\n</｜DSML｜tool_calls>",
        call_begin=("<｜DSML｜invoke name=",),
        call_end="</｜DSML｜invoke>",
        separator="\n",
    ),
    ToolFormat(
        "granite",
        JsonCall(),
        section_begin=("<|tool_call|>", "<tool_call>"),
        list_begin="[",
        separator=", ",
        list_end="]",
    ),
    ToolFormat("granite-20b-fc", JsonCall(), call_begin=("<function_call> ",), separator="\n"),
    ToolFormat("phi4_mini", JsonCall(), section_begin=("functools[",), separator=", ", list_end="]"),
    ToolFormat(
        "kimi_k2",
        NamedCall(after_name="<|tool_call_argument_begin|>", has_numbers=True),
        section_begin=("<|tool_calls_section_begin|>",),
        section_end="<|tool_calls_section_end|>",
        call_begin=("<|tool_call_begin|>",),
        call_end="<|tool_call_end|>",
    ),
    ToolFormat(
        "glm45",
        TaggedCall(
            after_name="\n",
            argument_begin="<arg_key>",
            value_begin="</arg_key>\n<arg_value>",
            value_end="</arg_value>\n",
        ),
        call_begin=("<tool_call>",),
        call_end="</tool_call>",
        separator="\n",
    ),
    ToolFormat(
        "glm47",
        TaggedCall(argument_begin="<arg_key>", value_begin="</arg_key><arg_value>", value_end="</arg_value>"),
        call_begin=("<tool_call>",),
        call_end="</tool_call>",
    ),
    ToolFormat(
        "jamba",
        JsonCall(),
        section_begin=("<tool_calls>",),
        section_end="</tool_calls>",
        list_begin="[\n    ",
        separator=",\n    ",
        list_end="\n]",
    ),
    ToolFormat(
        "hunyuan_a13b",
        JsonCall(),
        section_begin=("<tool_calls>",),
        section_end="</tool_calls>",
        list_begin="[",
        separator=", ",
        list_end="]",
    ),
    ToolFormat(
        "internlm",
        JsonCall(arguments_keys=("parameters", "arguments")),
        call_begin=("<|action_start|><|plugin|>\n",),
        call_end="<|action_end|>",
    ),
    ToolFormat(
        "minimax_m2",
        TaggedCall(
            quote='"',
            after_name=">\n",
            argument_begin="<parameter name=",
            value_begin=">",
            value_end="</parameter>\n",
        ),
        section_begin=("<minimax:tool_call>\n",),
        section_end="\n</minimax:tool_call>",
        call_begin=("<invoke name=",),
        call_end="</invoke>",
        separator="\n",
    ),
    ToolFormat(
        "seed_oss",
        TaggedCall(after_name=">\n", argument_begin="<parameter=", value_begin=">", value_end="</parameter>\n"),
        section_begin=("<seed:tool_call>\n",),
        section_end="\n</seed:tool_call>",
        call_begin=("<function=",),
        call_end="</function>",
        separator="\n</seed:tool_call>\n<seed:tool_call>\n",
    ),
    ToolFormat(
        "step3",
        TaggedCall(
            before_name="function<｜tool_sep｜><steptml:invoke name=",
            quote='"',
            after_name=">",
            argument_begin="<steptml:parameter name=",
            value_begin=">",
            value_end="</steptml:parameter>",
        ),
        section_begin=("<｜tool_calls_begin｜>",),
        section_end="<｜tool_calls_end｜>",
        call_begin=("<｜tool_call_begin｜>",),
        call_end="</steptml:invoke><｜tool_call_end｜>",
        separator="\n",
    ),
    ToolFormat(
        "longcat",
        JsonCall(),
        call_begin=("<longcat_tool_call>\n",),
        call_end="\n</longcat_tool_call>",
        separator="\n",
    ),
)

_TOOL_ALIASES = {
    "qwen3_json": "hermes",
    "granite4": "hermes",
    "ernie45": "hermes",
    "mimo": "hermes",
    "qwen3_xml": "qwen3_coder",
    "step3p5": "qwen3_coder",
    "nemotron_v3": "qwen3_coder",
    "llama4_json": "llama3_json",
    "phi4_mini_json": "phi4_mini",
    "xlam": "json",
}

_REASONING_FORMATS = (
    ReasoningFormat("deepseek_r1", begins_unmarked=True),
    ReasoningFormat("deepseek_v3"),
    ReasoningFormat("qwen3"),
    ReasoningFormat("glm45"),
    ReasoningFormat("kimi_k2", ends_with_call=True),
    ReasoningFormat("minimax_m2", begins_unmarked=True),
    ReasoningFormat("step3", begins_unmarked=True),
    ReasoningFormat("hunyuan_a13b", content_wrappers=("<answer>", "</answer>")),
    ReasoningFormat("ernie45", content_wrappers=("<response>", "</response>")),
    ReasoningFormat("mistral", ("[THINK]",), ("[/THINK]",)),
    ReasoningFormat("seed_oss", ("<seed:think>",), ("</seed:think>",), begins_unmarked=True),
    ReasoningFormat(
        "granite",
        tuple(f"{words} my thought process:{space}" for words in ("Here is", "Here's") for space in ("", " ")),
        tuple(f"{words} my response:{space}" for words in ("Here is", "Here's") for space in ("", " ")),
    ),
)

_REASONING_ALIASES = {
    "deepseek_v31": "deepseek_v3",
    "deepseek_v32": "deepseek_v3",
    "deepseek_v4": "deepseek_v3",
    "glm47": "glm45",
    "holo2": "qwen3",
    "mimo": "qwen3",
    "nemotron_v3": "qwen3",
    "olmo3": "deepseek_r1",
    "step3p5": "deepseek_r1",
}


def _register(formats: tuple[_Format, ...], aliases: dict[str, str]) -> dict[str, _Format]:
    by_name = {format.name: format for format in formats}
    return dict(
        sorted((by_name | {alias: replace(by_name[name], name=alias) for alias, name in aliases.items()}).items())
    )


_TOOLS = _register(_TOOL_FORMATS, _TOOL_ALIASES)
_REASONING = _register(_REASONING_FORMATS, _REASONING_ALIASES)


def tool_format(name: str) -> ToolFormat:
    """The tool format of that name.

    Raises:
        ConfigError: There is none; the text lists those that there are.
    """
    return _find(_TOOLS, name, "tool_call_parser")


def reasoning_format(name: str) -> ReasoningFormat:
    """The reasoning format of that name.

    Raises:
        ConfigError: There is none; the text lists those that there are.
    """
    return _find(_REASONING, name, "reasoning_parser")


def tool_format_names() -> tuple[str, ...]:
    """Every name that `tool_format` knows, sorted."""
    return tuple(_TOOLS)


def reasoning_format_names() -> tuple[str, ...]:
    """Every name that `reasoning_format` knows, sorted."""
    return tuple(_REASONING)


def _find(formats: dict[str, _Format], name: str, param: str) -> _Format:
    try:
        return formats[name]
    except KeyError:
        known = ", ".join(formats)
        raise ConfigError(f"{param} {name!r} is not known", hint=f"known are {known}", param=param) from None
