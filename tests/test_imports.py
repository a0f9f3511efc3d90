"""What importing the package brings along, which way imports point, and which files belong together."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kd_kernels

PACKAGE = Path(kd_kernels.__file__).parent
NATIVE = ("_core", "_cuda")
ROOT = PACKAGE.parent
MODULES = sorted(p for p in PACKAGE.rglob("*.py"))

# From the ground up: a component imports those of lower layers, and none beside it but itself.
LAYERS = [
    {"language_models"},
    {"divergences", "reduction", "stats", "slice_rows", "head", "top_k", "adjoint", "_core", "_cuda"},
    {"dense_rows"},
    {"arguments", "entries", "smoothed_tvd"},
    {"backends"},
    {"chunks"},
    {"ops"},
    {"autograd"},
    {"losses", "memory", "transport"},
    {"log_probabilities"},
    {"kd_kernels"},  # the public names
    {"testing"},
    {"methods"},
    {"benchmark", "distillation", "integrations"},
    {"cli"},
    {"__main__"},
]
LAYER = {component: i for i, layer in enumerate(LAYERS) for component in layer}
FIRST_USER = LAYER["methods"]  # from here on up, users of the library like any other

# What users may import, beside the public names themselves and one another: the table of backends and the plan of
# chunks for those who report them; checks of arguments, how rows are reduced, and the parts of published methods, for
# methods.
OPEN_TO_USERS = {
    "chunks.plan", "divergences", "losses", "language_models", "memory", "stats", "backends.select", "top_k", "_core",
    "_cuda", "arguments", "reduction", "transport.arguments", "transport.entries", "transport.smoothed_tvd",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Names of modules of this package that a file imports, anywhere in it, relative to the package."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            parts = node.module.split(".")
            for alias in node.names:  # a submodule, or a name of the module
                inner = Path(*parts[1:], alias.name)
                is_module = (PACKAGE / inner).is_dir() or (PACKAGE / f"{inner}.py").exists() or alias.name in NATIVE
                modules.add(f"{node.module}.{alias.name}" if parts[0] == "kd_kernels" and is_module else node.module)
    return {m.removeprefix("kd_kernels.") for m in modules if m.split(".")[0] == "kd_kernels"}


def component(module: str) -> str:
    return module.split(".")[0]


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")
    return name or "kd_kernels"


each_module = pytest.mark.parametrize("path", MODULES, ids=module_name)


def run(code: str) -> list[str]:
    """The words that code prints in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def loaded() -> list[str]:
    """The modules that come with the package, beside torch's own; reading the environment fails."""
    return run(
        "import torch, sys, os, threading\n"
        "class Untouchable(dict):\n"
        "    def __getitem__(self, name): raise AssertionError(f'reads {name}')\n"
        "    get = __contains__ = __getitem__\n"
        "modules, threads, environ = set(sys.modules), threading.active_count(), os.environ\n"
        "os.environ = Untouchable()\n"
        "import kd_kernels\n"
        "os.environ = environ\n"
        "assert not torch.cuda.is_initialized(), 'starts CUDA'\n"
        "assert threads == threading.active_count(), 'starts threads'\n"
        "print(*(set(sys.modules) - modules))\n"
    )


@pytest.mark.parametrize("package", ["triton", "transformers", "matplotlib", "tqdm", "trl", "liger_kernel"])
def test_import_leaves_out(loaded, package):
    assert "kd_kernels.losses" in loaded
    assert package not in loaded


def test_import_loads_no_backend(loaded):
    assert "kd_kernels.backends.select" in loaded
    optional = (*NATIVE, "backends.cpu", "backends.cuda", "backends.triton")
    assert not {f"kd_kernels.{name}" for name in optional} & set(loaded)


def test_cpu_backend_does_not_load_triton():
    assert run(
        "import torch, sys, kd_kernels\n"
        "before = 'triton' in sys.modules\n"
        "z = torch.randn(2, 5, requires_grad=True)\n"
        "kd_kernels.divergence(z, torch.randn(2, 5)).backward()\n"
        "print(('triton' in sys.modules) == before, 'kd_kernels._core' in sys.modules)\n"
    ) == ["True", "True"]


@each_module
def test_triton_is_imported_by_its_backend_alone(path):
    """Elsewhere inside functions at most, that is, when asked for. Tests of its kernels are of the same kind."""
    if module_name(path).startswith(("backends.triton", "testing.triton")):
        return
    for node in ast.parse(path.read_text()).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
        assert "triton" not in {n.split(".")[0] for n in names}


@each_module
def test_imports_point_downwards(path):
    own = component(module_name(path))
    assert own in LAYER, f"{own} is new: give it a place in LAYERS"
    for imported in imports(path):
        other = component(imported)
        if other == own:
            continue
        assert other in LAYER, f"{other} is new: give it a place in LAYERS"
        assert LAYER[other] < LAYER[own], f"{module_name(path)} imports {imported}"
        if LAYER[own] >= FIRST_USER and LAYER[other] < LAYER["kd_kernels"]:
            public = any(imported == m or imported.startswith(f"{m}.") for m in OPEN_TO_USERS)
            assert public, f"{module_name(path)} goes past the public functions to {imported}"


@each_module
def test_backends_do_not_import_one_another(path):
    name = module_name(path)
    if not name.startswith("backends."):
        return
    own = name.split(".")[1]
    others = {m.split(".")[1] for m in imports(path) if m.startswith("backends.")}
    assert others <= {own}, f"{name} imports {others - {own}}"
    if own == "select":
        assert not others


def test_the_check_sees_imports():
    """So that an empty answer is none for want of looking."""
    assert "backends.select" in imports(PACKAGE / "ops" / "rows.py")
    assert "reduction" in imports(PACKAGE / "backends" / "reference" / "rows.py")
    assert "divergences" in imports(PACKAGE / "losses.py")
    assert "_core" in imports(PACKAGE / "backends" / "cpu" / "rows.py")
    assert len(MODULES) > 20


def stems(folder: Path, suffix: str) -> set[str]:
    return {p.stem for p in folder.glob(f"*{suffix}")} - {"__init__"}


def test_a_divergence_has_the_same_stem_everywhere():
    kinds = stems(PACKAGE / "divergences", ".py") - {"base"}
    assert kinds == {cls.__module__.split(".")[-1] for cls in kd_kernels.KINDS.values()}
    assert kinds == stems(PACKAGE / "backends" / "triton" / "divergences", ".py")
    tests = {s.removeprefix("test_") for s in stems(ROOT / "tests" / "divergences", ".py") if s.startswith("test_")}
    assert kinds == tests
    if (ROOT / "csrc").is_dir():
        native = stems(ROOT / "csrc" / "include" / "kd" / "divergences", ".h")
        native |= {p.stem.removesuffix("_split") for p in (ROOT / "csrc" / "cpu").glob("*_split.h")}
        assert kinds == native


def test_names_of_kinds_are_those_of_the_table():
    assert list(kd_kernels.KINDS) == [
        "forward_kl", "reverse_kl", "jeffreys", "jsd", "js_teacher", "js_student", "tvd", "skew_forward_kl",
        "skew_reverse_kl", "todi", "akl",
    ]  # fmt: skip
    for name, cls in kd_kernels.KINDS.items():
        assert cls.name == name
        assert getattr(kd_kernels, cls.__name__) is cls


def test_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_public_names():
    for name in kd_kernels.__all__:
        assert hasattr(kd_kernels, name)
    public = {n for n, x in vars(kd_kernels).items() if not n.startswith("_") and not isinstance(x, type(sys))}
    assert public == set(kd_kernels.__all__)
