"""What is wrong in a mutant: small changes to a module, one at a time.

A mutant is a place in the module's syntax tree and one of that place's changes.
Docstrings, annotations, decorators, imports, texts (messages of errors are texts) and
`__all__` are left alone.
"""

import ast
import collections
import copy
import dataclasses
import functools
from collections.abc import Iterator

COMPARISONS = {
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
}
OPERATIONS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
CALLS = {
    **{"minimum": "maximum", "min": "max", "any": "all", "floor": "ceil"},
    **{"cumsum": "cumprod", "zeros": "ones", "zeros_like": "ones_like"},
    **{"argmin": "argmax", "less": "greater", "logical_and": "logical_or"},
}
CALLS |= {new: old for old, new in CALLS.items()}
CALLS |= {"sum": "mean", "mean": "sum", "exp": "expm1", "expm1": "exp", "log1p": "log"}
CALLS |= {"sqrt": "abs", "abs": "sqrt", "square": "abs"}
LEFT = ("annotation", "returns", "type_params", "bases", "decorator_list", "ctx")
SILENT = ("cast", "TypeVar", "TypeVarTuple", "ParamSpec", "NewType", "warn")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A change of a module: which node, in the order of the walk, and which of its."""

    file: str
    node: int
    change: int
    line: int
    inside: str
    text: str

    @property
    def key(self) -> str:
        """What does not move with the lines."""
        return f"{self.file} | {self.inside} | {self.text}"


@functools.cache
def parsed(source: str) -> ast.Module:
    """Its tree; not to be changed."""
    return ast.parse(source)


def of(file: str, source: str) -> list[Mutant]:
    """Every mutant of a module."""
    tree, found, lines = parsed(source), [], set()
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    owner = owners(tree)
    for i, node in enumerate(ast.walk(tree)):
        if node not in owner:
            continue
        for k, new in enumerate(changes(node)):
            text = f"{shown(node)} -> {shown(new)}"
            line = getattr(node, "lineno", 0)
            if (line, text) not in lines:
                lines.add((line, text))
                seen[owner[node], text] += 1
                nth = seen[owner[node], text]
                more = f" ({nth})" * (nth > 1)
                found.append(Mutant(file, i, k, line, owner[node], text + more))
    return found


def mutated(source: str, mutant: Mutant) -> ast.Module:
    """The module's tree with the change in it."""
    tree = copy.deepcopy(parsed(source))
    old = next(n for i, n in enumerate(ast.walk(tree)) if i == mutant.node)
    new = ast.copy_location(changes(old)[mutant.change], old)
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, new)
            elif isinstance(value, list) and any(x is old for x in value):
                setattr(parent, field, [new if x is old else x for x in value])
    return ast.fix_missing_locations(tree)


def owners(tree: ast.Module) -> dict[ast.AST, str]:
    """The nodes that may change, and the definition that each is in."""
    found: dict[ast.AST, str] = {}

    def visit(node: ast.AST, inside: str) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.JoinedStr)) or (
            isinstance(node, ast.Assign) and shown(node.targets[0]) == "__all__"
        ):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in shown(node.test):
            return
        if isinstance(node, ast.Call) and named(node.func) in SILENT:
            return
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            inside = inside or node.name
        elif not inside and isinstance(node, ast.Assign):
            inside = shown(node.targets[0])
        elif not inside and isinstance(node, ast.AnnAssign):
            inside = shown(node.target)
        found[node] = inside
        if isinstance(node, ast.Raise):
            return  # its message
        for field, value in ast.iter_fields(node):
            if field in LEFT:
                continue
            for x in value if isinstance(value, list) else [value]:
                if isinstance(x, ast.AST):
                    visit(x, inside)

    visit(tree, "")
    return {node: inside for node, inside in found.items() if inside}


def changes(node: ast.AST) -> list[ast.AST]:
    """What may stand in a node's place."""
    kind = _CHANGES.get(type(node))
    return list(kind(node)) if kind else []


def with_(node: ast.AST, **fields: object) -> ast.AST:
    """The node with other fields."""
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})


def _compare(node: ast.Compare) -> Iterator[ast.AST]:
    for i, op in enumerate(node.ops):
        for new in COMPARISONS[type(op)]:
            yield with_(node, ops=[*node.ops[:i], new(), *node.ops[i + 1 :]])


def _operation(node: ast.BinOp) -> Iterator[ast.AST]:
    new = OPERATIONS.get(type(node.op))
    text = isinstance(node.left, (ast.Constant, ast.JoinedStr)) and "'" in shown(node)
    if new and not text:
        yield with_(node, op=new())


def _unary(node: ast.UnaryOp) -> Iterator[ast.AST]:
    if not isinstance(node.operand, ast.Constant):
        yield node.operand


def _logic(node: ast.BoolOp) -> Iterator[ast.AST]:
    yield with_(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def _constant(node: ast.Constant) -> Iterator[ast.AST]:
    x = node.value
    if isinstance(x, bool):
        yield ast.Constant(not x)
    elif isinstance(x, (int, float)):
        others = [x + 1, 2 * x, -x]
        for k, other in enumerate(others):
            if other != x and other not in others[:k]:
                yield ast.Constant(other)


def _call(node: ast.Call) -> Iterator[ast.AST]:
    name = named(node.func)
    if name == "stop_gradient":
        yield node.args[0]
    if name == "where" and len(node.args) == 3:
        condition, *both = node.args
        yield with_(node, args=[condition, *both[::-1]])
    if name in CALLS:
        yield with_(node, func=renamed(node.func, CALLS[name]))
    for i, keyword in enumerate(node.keywords):
        if keyword.arg:
            yield with_(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])


def _choice(node: ast.IfExp) -> Iterator[ast.AST]:
    yield with_(node, body=node.orelse, orelse=node.body)


def _if(node: ast.If) -> Iterator[ast.AST]:
    yield with_(node, test=ast.UnaryOp(ast.Not(), node.test))


def _gone(node: ast.AST) -> Iterator[ast.AST]:
    yield ast.Pass()


def _expression(node: ast.Expr) -> Iterator[ast.AST]:
    if not isinstance(node.value, ast.Constant):
        yield ast.Pass()


def _assign(node: ast.Assign) -> Iterator[ast.AST]:
    """Left out where the names have a value without it."""
    names = {x.id for x in ast.walk(node.targets[0]) if isinstance(x, ast.Name)}
    used = {x.id for x in ast.walk(node.value) if isinstance(x, ast.Name)}
    if names and names <= used:
        yield ast.Pass()


_CHANGES = {
    ast.Compare: _compare,
    ast.BinOp: _operation,
    ast.UnaryOp: _unary,
    ast.BoolOp: _logic,
    ast.Constant: _constant,
    ast.Call: _call,
    ast.IfExp: _choice,
    ast.If: _if,
    ast.Raise: _gone,
    ast.AugAssign: _gone,
    ast.Expr: _expression,
    ast.Assign: _assign,
}


def named(func: ast.AST) -> str:
    """The last part of what is called."""
    return getattr(func, "attr", getattr(func, "id", ""))


def renamed(func: ast.AST, name: str) -> ast.AST:
    """The same, called otherwise."""
    field = "attr" if isinstance(func, ast.Attribute) else "id"
    return with_(func, **{field: name})


def shown(node: ast.AST) -> str:
    """Source, on a line."""
    if isinstance(node, ast.If):
        return f"if {ast.unparse(node.test)}"
    return " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())
