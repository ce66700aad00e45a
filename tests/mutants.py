"""Small changes of a function's syntax tree, for ``mutation.py``."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

OPERATORS: dict[type[ast.AST], list[type[ast.AST]]] = {
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div],
    ast.Div: [ast.Mult],
    ast.FloorDiv: [ast.Div, ast.Mod],
    ast.Mod: [ast.FloorDiv],
    ast.Pow: [ast.Mult],
    ast.MatMult: [ast.Mult],
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.And: [ast.Or],
    ast.Or: [ast.And],
}
FUNCTIONS = {
    a: b
    for pair in (
        "sum mean", "min max", "argmin argmax", "zeros ones", "zeros_like ones_like",
        "softmax log_softmax", "sqrt square", "log exp", "logdet det",
    )
    for a, b in (pair.split(), pair.split()[::-1])
}  # fmt: skip


def changed(node: ast.AST, **fields: object) -> ast.AST:
    return type(node)(**(dict(ast.iter_fields(node)) | fields))


def without(items: list, i: int) -> list:
    return items[:i] + items[i + 1 :]


def expression(source: str, **parts: ast.AST) -> ast.AST:
    """Return an expression in whose place of each name its part stands."""

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            return parts.get(node.id, node)

    return Fill().visit(ast.parse(source, mode="eval").body)


def variants(node: ast.AST, twins: dict[str, list[str]]) -> Iterator[ast.AST]:
    """Yield what could stand in the place of a node; ``twins`` are parameters of the same type."""
    match node:
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            half = value // 2 if value % 2 == 0 else value / 2
            for other in {value + 1, value - 1, 2 * value, half} - {value}:
                yield ast.Constant(other)
        case ast.Constant(str(value)):
            yield ast.Constant(value + "!")
        case ast.Name(name, ast.Load()):
            yield from (ast.Name(other, ast.Load()) for other in twins.get(name, ()))
        case ast.BinOp(left, op, right):
            yield from (left, right)
            if not isinstance(op, ast.Add | ast.Mult):
                yield changed(node, left=right, right=left)
            yield from (changed(node, op=other()) for other in OPERATORS[type(op)])
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.Compare(_, ops, _):
            for i, op in enumerate(ops):
                for other in OPERATORS[type(op)]:
                    yield changed(node, ops=[*ops[:i], other(), *ops[i + 1 :]])
        case ast.BoolOp(op, values):
            yield changed(node, op=OPERATORS[type(op)][0]())
            yield from values
        case ast.IfExp(_, body, orelse):
            yield from (body, orelse)
        case ast.Subscript(value, index):
            yield value
            if not isinstance(index, ast.Slice | ast.Tuple | ast.Constant):
                yield from (
                    changed(node, slice=expression(f"i {shift} 1", i=index)) for shift in "+-"
                )
        case ast.Slice():
            yield from (changed(node, **{end: None}) for end in ("lower", "upper"))
        case ast.Attribute(value, name):
            yield value
            if name in FUNCTIONS:
                yield changed(node, attr=FUNCTIONS[name])
        case ast.Call(function, args, keywords):
            if getattr(function, "id", "") != "list":
                yield from args
            if isinstance(function, ast.Attribute):
                yield function.value
            elif function.id in FUNCTIONS:
                yield changed(node, func=ast.Name(FUNCTIONS[function.id], ast.Load()))
            for i in range(len(args)):
                yield changed(node, args=without(args, i))
                if i and getattr(function, "id", "") not in ("min", "max"):
                    swapped = [*args[: i - 1], args[i], args[i - 1], *args[i + 1 :]]
                    yield changed(node, args=swapped)
            for i, keyword in enumerate(keywords):
                if keyword.arg != "strict":  # leaving it out is the same as False
                    yield changed(node, keywords=without(keywords, i))
        case ast.comprehension(_, source, ifs):
            yield from (changed(node, iter=other) for other in shorter(source))
            yield from (changed(node, ifs=without(ifs, i)) for i in range(len(ifs)))
        case ast.For(_, source):
            yield from (changed(node, iter=other) for other in shorter(source))
            yield ast.Pass()
        case ast.If():
            yield from (changed(node, test=ast.Constant(value)) for value in (True, False))
            yield ast.Pass()
        case ast.AugAssign(target, op, value):
            yield from (changed(node, op=other()) for other in OPERATORS[type(op)])
            yield ast.Assign([target], value)
            yield ast.Pass()
        case ast.Assign(targets):
            if len(targets) > 1:
                for i in range(len(targets)):
                    yield changed(node, targets=without(targets, i))
            yield ast.Pass()
        case ast.stmt():
            yield ast.Pass()


def shorter(source: ast.AST) -> Iterator[ast.AST]:
    """Yield what loses the first or the last item of an iterable, or has only the first."""
    for part in ("[1:]", "[:-1]", "[:1]"):
        yield expression(f"list(items){part}", items=source)


Place = tuple[ast.AST, str, int | None, ast.AST, ast.AST]


def places(node: ast.AST, statement: ast.AST) -> Iterator[Place]:
    """Yield every place below a node (parent, field, index), what is there, and its statement."""
    for field, value in ast.iter_fields(node):
        for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            hint = field in ("annotation", "returns")
            if isinstance(child, ast.AST) and not docstring and not hint:
                owner = child if isinstance(child, ast.stmt) else statement
                yield node, field, i, child, owner
                yield from places(child, owner)


def put(parent: ast.AST, field: str, i: int | None, node: ast.AST) -> None:
    if i is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[i] = node


def line(statement: ast.AST) -> str:
    """Return a statement's source, of a compound one the first line."""
    return ast.unparse(ast.fix_missing_locations(statement)).splitlines()[0]


def mutants(function: ast.FunctionDef) -> Iterator[str]:
    """Turn a function into one mutant after the other, in place, and yield their names."""
    of_type = defaultdict(list)
    for argument in function.args.args:
        of_type[ast.unparse(argument.annotation)].append(argument.arg)
    twins = {name: [n for n in names if n != name] for names in of_type.values() for name in names}
    seen = set()
    alike: dict[str, list[ast.AST]] = defaultdict(list)  # statements that read the same
    for parent, field, i, child, statement in list(places(function, function)):
        before = line(statement)
        if statement not in alike[before]:
            alike[before].append(statement)
        number = alike[before].index(statement) + 1
        which = f" ({number})" if number > 1 else ""
        for variant in variants(child, twins):
            put(parent, field, i, variant)
            after = line(variant if child is statement else statement)
            name = f"{function.name}: {before}{which} → {after}"
            if before != after and name not in seen:
                seen.add(name)
                yield name
            put(parent, field, i, child)
