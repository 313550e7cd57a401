"""No SQL is put together from strings: a checker reads the source, and planted breaks show that it sees them.

What may stand where SQL is sent (``text``, ``execute``, ``exec_driver_sql``, ``SQL`` and their like):

- a literal, also over several lines, or literals added to one another;
- psycopg's composition: ``sql.SQL("… {} …").format(sql.Identifier(name))``, and its ``.as_string(…)`` for SQLAlchemy;
- an f-string in which every placeholder is a constant or a direct call of ``shardkit.core.names``, the one module that
  builds identifiers and checks them: ``text(f"SELECT id FROM {names.CATALOG_SCHEMA}.server")``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("shardkit", "benchmarks", "examples")
SINKS = {"text", "SQL", "execute", "executemany", "exec_driver_sql", "execute_batch", "stream", "copy", "copy_expert"}
KEYWORDS = {"text", "statement", "query", "obj", "sql"}
NAMES_MODULE = "shardkit.core.names"
COMPOSED_TYPES = {"SQL", "Composed", "Composable"}
PASSED_THROUGH = {"dedent", "cleandoc", "cast", "str", "literal_column"}


def called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


class Checker:
    """Finds the calls of one module that are given SQL made from strings."""

    def __init__(self, source: str) -> None:
        self.tree = ast.parse(source)
        self.scopes: dict[ast.AST, dict[str, list[ast.expr]]] = {}
        self.trusted: set[str] = set()
        self.names_aliases: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module == NAMES_MODULE:
                self.trusted |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and f"{node.module}.names" == NAMES_MODULE:
                self.names_aliases |= {alias.asname or alias.name for alias in node.names if alias.name == "names"}

    def breaks(self) -> Iterator[int]:
        """Lines of the calls that break the rule."""
        yield from self._visit(self.tree, [self._assigned(self.tree)])

    def _visit(self, node: ast.AST, scopes: list[dict[str, list[ast.expr]]]) -> Iterator[int]:
        for child in ast.iter_child_nodes(node):
            inside = scopes
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                inside = [*scopes, self._assigned(child)]
            if isinstance(child, ast.Call) and called(child) in SINKS:
                sent = child.args[:1] + [keyword.value for keyword in child.keywords if keyword.arg in KEYWORDS]
                if any(self._formatted(argument, scopes, frozenset()) for argument in sent):
                    yield child.lineno
            yield from self._visit(child, inside)

    @staticmethod
    def _assigned(scope: ast.AST) -> dict[str, list[ast.expr]]:
        """Every value that a name is given in *scope*, those of its inner functions left out."""
        found: dict[str, list[ast.expr]] = {}
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            for argument in [*scope.args.posonlyargs, *scope.args.args, *scope.args.kwonlyargs]:
                annotation = ast.unparse(argument.annotation) if argument.annotation else ""
                if annotation.rpartition(".")[2] in COMPOSED_TYPES:
                    found[argument.arg] = [ast.Call(ast.Name("SQL"), [], [])]  # the type checkers see to that
        waiting = list(ast.iter_child_nodes(scope))
        while waiting:
            node = waiting.pop()
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() | ast.ClassDef():
                    continue
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    found.setdefault(name, []).append(value)
                case (
                    ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
                    | ast.AugAssign(target=ast.Name(id=name), value=value)
                    | ast.NamedExpr(target=ast.Name(id=name), value=value)
                ):
                    found.setdefault(name, []).append(value)
            waiting.extend(ast.iter_child_nodes(node))
        return found

    def _formatted(self, node: ast.expr, scopes: list[dict[str, list[ast.expr]]], seen: frozenset[str]) -> bool:
        """Whether *node* is a string made from others, as far as its own module shows."""

        def again(inner: ast.expr) -> bool:
            return self._formatted(inner, scopes, seen)

        match node:
            case ast.JoinedStr(values=values):
                return not all(self._trusted(part.value) for part in values if isinstance(part, ast.FormattedValue))
            case ast.BinOp(op=ast.Mod()):
                return True
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                sides = (left, right)
                literal = [self._literal(side, scopes) for side in sides]
                return (any(literal) and not all(literal)) or any(again(side) for side in sides)
            case ast.Call(func=ast.Attribute(attr="format" | "join" | "format_map", value=receiver)):
                return not self._composed(receiver, scopes)
            case ast.Call(func=ast.Attribute(attr="strip" | "replace" | "removeprefix" | "lower", value=receiver)):
                return again(receiver)
            case ast.Call() if called(node) in PASSED_THROUGH:
                return any(again(argument) for argument in node.args)
            case ast.IfExp(body=body, orelse=orelse):
                return again(body) or again(orelse)
            case ast.NamedExpr(value=value):
                return again(value)
            case ast.Name(id=name) if name not in seen:
                values = next((scope[name] for scope in reversed(scopes) if name in scope), [])
                return any(self._formatted(value, scopes, seen | {name}) for value in values)
        return False

    def _trusted(self, node: ast.expr) -> bool:
        """Whether *node* is something of core.names, by its own name."""
        match node:
            case ast.Call(func=function):
                return self._trusted(function)
            case ast.Name(id=name):
                return name in self.trusted
            case ast.Attribute(value=ast.Name(id=module)):
                return module in self.names_aliases
        return False

    def _literal(self, node: ast.expr, scopes: list[dict[str, list[ast.expr]]]) -> bool:
        match node:
            case ast.Constant(value=str()) | ast.JoinedStr():
                return True
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return self._literal(left, scopes) and self._literal(right, scopes)
            case ast.Name(id=name):
                values = next((scope[name] for scope in reversed(scopes) if name in scope), [])
                return bool(values) and all(isinstance(value, ast.Constant) for value in values)
        return False

    def _composed(self, receiver: ast.expr, scopes: list[dict[str, list[ast.expr]]]) -> bool:
        """Whether *receiver* is psycopg's SQL, whose format() and join() quote what they are given."""
        match receiver:
            case ast.Call():
                return called(receiver) == "SQL" or (
                    isinstance(receiver.func, ast.Attribute)
                    and receiver.func.attr in ("format", "join")
                    and self._composed(receiver.func.value, scopes)
                )
            case ast.Name(id=name):
                values = next((scope[name] for scope in reversed(scopes) if name in scope), [])
                return bool(values) and all(self._composed(value, scopes) for value in values)
        return False


def test_sql_is_never_made_from_strings() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in Checker(path.read_text("utf-8")).breaks()
    ]
    assert not found, f"compose SQL (this test's module says how) in: {', '.join(found)}"


@pytest.mark.parametrize(
    "planted",
    [
        'session.execute(text(f"SELECT * FROM {table}"))',
        'sqlalchemy.text(f"SET LOCAL search_path TO {schema}")',
        'text(text=f"SELECT {x}")',
        'text("SELECT %s" % name)',
        'text("SELECT {}".format(name))',
        'text("SELECT " + name)',
        'text(name + " LIMIT 1")',
        'text("SELECT " + name + " LIMIT 1")',
        'connection.exec_driver_sql(f"DROP SCHEMA {schema}")',
        'connection.exec_driver_sql(statement=f"DROP SCHEMA {schema}")',
        'cursor.execute(f"SELECT {x}", [1])',
        'await connection.execute("SELECT %d" % x)',
        'sql.SQL(f"DROP SCHEMA {schema}")',
        'SQL("DROP SCHEMA " + schema).format()',
        'cursor.copy(f"COPY {table} TO STDOUT")',
        'op.execute("DROP SCHEMA {s}".format(s=schema))',
        'text(" ".join(parts))',
        'text(dedent(f"""SELECT {x}"""))',
        'text(f"SELECT {x}" if x else "SELECT 1")',
        'query = f"SELECT {x}"\ntext(query)',
        'QUERY = "SELECT {}"\ndef f(x):\n    connection.execute(QUERY.format(x))',
        'def f(x):\n    query = "SELECT 1"\n    query += f" LIMIT {x}"\n    cursor.execute(query)',
        'if (q := f"SELECT {x}"):\n    cursor.execute(q)',
        'cursor.execute(f"SELECT {schema_name(1, 2)}")',
        "def f(query: str):\n    cursor.execute(query.format(x))",
        'from elsewhere import schema_name\ntext(f"SET search_path TO {schema_name(1, 2)}")',
        'from shardkit.core import names\ntext(f"SELECT {names.CATALOG_SCHEMA}.{x}")',
    ],
)
def test_planted_string_is_found(planted: str) -> None:
    source = f"async def planted():\n    {planted}" if planted.startswith("await") else planted
    assert list(Checker(source).breaks()), planted


@pytest.mark.parametrize(
    "allowed",
    [
        'text("SELECT 1")',
        'text("SELECT 1" + " LIMIT 1")',
        'text("""SELECT :name""").bindparams(name=f"{x}")',
        'session.execute(select(Order).where(Order.name == f"{x}"), {"a": f"{y}"})',
        "session.execute(select(func.count() + 1))",
        'cursor.execute("SELECT %s", [f"{x}"])',
        'cursor.execute(sql.SQL("DROP SCHEMA {}").format(sql.Identifier(schema)))',
        'cursor.execute(sql.SQL("SET ") + sql.Identifier(x))',
        'cursor.execute(sql.SQL(", ").join(map(sql.Identifier, columns)))',
        'query = sql.SQL("DROP SCHEMA {}")\ncursor.execute(query.format(sql.Identifier(x)))',
        'connection.exec_driver_sql(sql.SQL("DROP SCHEMA {}").format(sql.Identifier(x)).as_string(None))',
        'from shardkit.core import names\ntext(f"SELECT id FROM {names.CATALOG_SCHEMA}.server")',
        'from shardkit.core.names import schema_name\ntext(f"SET LOCAL search_path TO {schema_name(1, 2)}")',
        "def f(query: sql.SQL):\n    cursor.execute(query.format(sql.Identifier(x)))",
        'print(f"{x}")\npath.read_text(f"{x}")\nshutil.copy(source, target)',
    ],
)
def test_composed_sql_is_let_through(allowed: str) -> None:
    assert not list(Checker(allowed).breaks()), allowed
