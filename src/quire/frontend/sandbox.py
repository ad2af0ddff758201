"""A Jinja environment for templates that nobody has read.

A template comes with a model, so it is treated as hostile: it cannot reach Python objects (Jinja's immutable
sandbox) and cannot use more than its budget. Bounded are: the size of the template; the characters it writes and
the characters that all its operations produce together; the size of every single operation; and its time, which
is looked at in every turn of a loop, every call, filter, `+`, `*`, `~` and output. Between two looks only one
operation of bounded size can run, so a template is stopped soon after its deadline, without threads or signals.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from quire.frontend import render_budget
from quire.frontend.control_tokens import BREAK
from quire.frontend.render_budget import RenderBudget

BUDGET = "the budget"
"""Name of the budget among a template's variables; no template can write a name with a space."""

_FILTERS = frozenset(
    {
        *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "format"),
        *("indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject"),
        *("rejectattr", "replace", "reverse", "safe", "select", "selectattr", "sort", "string", "sum", "title"),
        *("tojson", "trim", "unique", "upper", "wordcount"),
    }
)
_FLATTENING_FILTERS = frozenset(
    {
        *("capitalize", "e", "escape", "format", "indent", "join", "lower", "replace", "safe", "string", "title"),
        *("tojson", "trim", "upper"),
    }
)
_REFUSED_STRING_METHODS = frozenset(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "translate", "maketrans", "format_map"}
)

_JINJA_ARGUMENTS = frozenset({"_loop_vars", "_block_vars"})
"""What compiled templates pass to every call beside the template's own arguments."""


def _budget(context: Context) -> RenderBudget:
    budget: RenderBudget = context.parent[BUDGET]
    return budget


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it, with a budget for everything. Variables must hold one as `BUDGET`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, GenerationTag],
            finalize=_finalize,
            autoescape=False,
            cache_size=0,
        )
        self.globals.pop("lipsum")
        known = {**self.filters, "tojson": _tojson}
        self.filters = {name: _guard_filter(name, known[name]) for name in _FILTERS}
        self.filters.update({"counted items": _count_items, "joined text": _join_text, "measured": _measure})

    def build(self, tree: nodes.Template) -> jinja2.Template:
        """A template from what `parse` returned. Modifies `tree`."""
        tree = _Instrument().visit(tree)
        tree.set_environment(self)
        return self.from_string(tree)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute; methods that can blow up a string are out."""
        if isinstance(obj, str) and attr in _REFUSED_STRING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a method, macro or helper; every call in a template passes through here."""
        budget = _budget(__context)
        method = getattr(__obj, "__wrapped__", __obj)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        check = render_budget.METHOD_CHECKS.get(name) if isinstance(owner, str) else None
        if check is not None:
            check(budget, owner, *args, **{key: value for key, value in kwargs.items() if key not in _JINJA_ARGUMENTS})
        budget.tick()
        return budget.accept(name, super().call(__context, __obj, *args, **kwargs), owner)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Applies one of `+ * ** %` after a look at the size of its result."""
        budget = _budget(context)
        budget.spend(render_budget.operation_size(budget, operator, left, right))
        return super().call_binop(context, operator, left, right)


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`, which marks the model's own text for training: no effect here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Instrument(NodeTransformer):
    """Puts the budget's filters where Jinja offers no other hook."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        if node.recursive:
            raise jinja2.TemplateSyntaxError("recursive loops are not supported in chat templates", node.lineno)
        written = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        assert isinstance(node.iter, nodes.Expr)
        node.iter = _filter(node.iter, "counted items", nodes.Const(written))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "joined text")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return node if all(isinstance(item, nodes.Const) for item in node.items) else _filter(node, "measured")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return node if all(isinstance(pair.value, nodes.Const) for pair in node.items) else _filter(node, "measured")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        constant = all(isinstance(item, nodes.Const) for item in node.items)
        return node if constant or node.ctx != "load" else _filter(node, "measured")


def _filter(node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    """Counts what `{{ value }}` writes."""
    budget = _budget(context)
    budget.spend(len(value) if isinstance(value, str) else budget.measure(value))
    return value


@pass_context
def _count_items(context: Context, items: Any, written: int) -> "_CountedItems":
    return _CountedItems(_budget(context), items, written)


class _CountedItems:
    """The items of a loop, with a look at the budget in every turn."""

    def __init__(self, budget: RenderBudget, items: Any, written: int) -> None:
        self._budget = budget
        self._items = items
        self._written = written

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._budget.spend(self._written)
            yield item


@pass_context
def _join_text(context: Context, parts: list[Any]) -> str:
    budget = _budget(context)
    budget.spend(budget.measure(*parts))
    return "".join([str(part) for part in parts])


@pass_context
def _measure(context: Context, value: Any) -> Any:
    _budget(context).measure(value)
    return value


def _guard_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts what it makes and refuses arguments that would make too much."""
    passes = getattr(getattr(function, "jinja_pass_arg", None), "name", "")
    check = render_budget.FILTER_CHECKS.get(name)

    @pass_context
    def guarded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.tick()
        if name == "join" and not isinstance(value, str | list | tuple):
            value = list(value)
        if name in _FLATTENING_FILTERS:
            budget.measure(value, args, kwargs)
        if check is not None:
            check(budget, value, *args, **kwargs)
        passed = {"context": context, "environment": context.environment, "eval_context": context.eval_ctx}
        first = (passed[passes],) if passes else ()
        return budget.accept(name, function(*first, value, *args, **kwargs), value)

    return guarded


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: not escaped for HTML, and with non-ASCII characters as they are."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return text.replace(json.dumps(BREAK)[1:-1], BREAK) if ensure_ascii else text
