"""The public names, and what importing them costs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import upslope


def test_every_public_name_is_there():
    for name in upslope.__all__:
        assert getattr(upslope, name) is not None
    assert set(upslope.__all__) <= set(dir(upslope))


def test_importing_upslope_loads_nothing_heavy():
    heavy = ("gymnasium", "matplotlib", "transformers", "numba", "scipy", "rich", "PIL", "torch")
    code = f"import sys, upslope; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_core_loads_no_world():
    names = "('gymnasium', 'matplotlib', 'numba')"
    code = f"import sys; from upslope import PPO, tabular, train, testing; tabular.MDP; print([m for m in {names} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


SOURCE = Path(upslope.__file__).parent
PATHS = {".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in PATHS.items()}


def imports_of(node: ast.AST, *, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Our own modules that a piece of code imports when it runs, and whether in a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.ImportFrom) and (child.module or "").startswith("upslope"):
            for name in child.names:
                whole = f"{child.module}.{name.name}"
                yield whole if whole in MODULES else str(child.module), inside
        yield from imports_of(child, inside=inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def test_modules_import_in_one_direction_and_seldom_in_functions():
    """Functions import only what would be dear to load before it is needed; and nothing that imports them, however deep."""
    found = {name: list(imports_of(ast.parse(path.read_text(encoding="utf-8")))) for name, path in MODULES.items()}
    assert len({(name, other) for name, imports in found.items() for other, inside in imports if inside}) <= 13
    graph = {name: {other for other, _ in imports if other in MODULES and other != name} for name, imports in found.items()}
    for name in graph:
        reached, ahead = set(), list(graph[name])
        while ahead:
            if (other := ahead.pop()) not in reached:
                reached.add(other)
                ahead += graph[other]
        assert name not in reached, f"{name} imports itself"


def test_the_oldest_tested_torch_is_the_first_that_is_allowed():
    root = SOURCE.parents[1]
    allowed = re.search(r'"torch>=([\d.]+)"', (root / "pyproject.toml").read_text(encoding="utf-8"))
    tested = re.findall(r"torch==([\d.]+)", (root / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    assert allowed is not None and tested == [f"{allowed[1]}.0"]


def test_no_bare_assert_reaches_a_user():
    """What a user can run into says what to do, in one line; only the compiler of our own kernels asserts what it was written for."""
    own_kernels = {"fast/descent.py", "fast/expressions.py", "fast/translate.py"}
    found = {
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert) and str(path.relative_to(SOURCE)) not in own_kernels and path.parent.name != "testing"
    }
    assert found == set()


REFUSED_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml", "code", "runpy"}
REFUSED_CALLS = {"eval", "exec", "compile", "__import__"}
REFUSED_METHODS = {("torch", "load"), ("torch", "save"), ("jit", "load"), ("os", "system"), ("subprocess", "getoutput")}


def dangers_of(tree: ast.AST) -> set[str]:
    """What in a piece of code could make code of data."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] in REFUSED_MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in REFUSED_MODULES and not node.level:
            found.add(str(node.module))
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in REFUSED_CALLS:
                found.add(node.func.id)
            if isinstance(node.func, ast.Attribute):
                owner = node.func.value
                name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
                found |= {f"{name}.{node.func.attr}"} if (name, node.func.attr) in REFUSED_METHODS else set()
            for keyword in node.keywords:
                if keyword.arg in ("allow_pickle", "trust_remote_code", "shell") and not isinstance(keyword.value, ast.Constant | ast.Name):
                    found.add(str(keyword.arg))
                if isinstance(keyword.value, ast.Constant) and keyword.value.value is True:
                    found |= {keyword.arg} & {"allow_pickle", "trust_remote_code", "shell"}
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code":
                    found |= set() if isinstance(value, ast.Constant) and value.value is False else {"trust_remote_code"}
    return found


def test_nothing_in_the_package_makes_code_of_data():
    assert {name: dangers for name, path in MODULES.items() if (dangers := dangers_of(ast.parse(path.read_text(encoding="utf-8"))))} == {}


def test_what_is_refused_is_seen():
    for code in (
        *("import pickle", "from pickle import loads", "import yaml", "eval(x)", "exec(x)", "compile(x, '', 'exec')", "torch.load(path)"),
        *("np.load(path, allow_pickle=True)", "f(trust_remote_code=True)", "f(trust_remote_code=x.y)", "{'trust_remote_code': trusted}"),
        *("subprocess.run(x, shell=True)", "os.system(x)", "torch.jit.load(x)", "__import__(x)"),
    ):
        assert dangers_of(ast.parse(code)), code
