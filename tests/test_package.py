"""What holds for the package as a whole: a quiet and lean import, its metadata, its layering."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.resources
import inspect
import json
import operator
import re
import runpy
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_geometric_qlr as qlr
from torch_geometric_qlr.ops.schemas import NAMES

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(qlr.__file__).resolve().parent

# Optional or heavy: `import torch_geometric_qlr` must not pull in any that PyG has not already.
NOT_ON_IMPORT = (
    "IPython",
    "brevitas.export",
    "hypothesis",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "pyarrow",
    "pytest",
    "safetensors",
    "scipy",
    "sklearn",
    "torch._dynamo",
    "torch._inductor",
    "torch_scatter",
    "torch_sparse",
    "triton",
)

# From the bottom up: a folder (or a file at the top) imports only from those before it.
LAYERS = (
    ("errors", "text", "typing", "_quiet", "_version"),
    ("overrides", "expect"),
    ("config", "files"),
    ("ops",),
    ("tensor",),
    ("quantizers",),
    ("sparse",),
    ("layers",),
    ("codes",),
    ("nn", "metrics"),
    ("calibration", "training"),
    ("search",),
    ("transforms",),
    ("loader", "io", "layerwise"),
    ("commands", "self_check"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def run_python(*args: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done


# What torch and PyG say of themselves at import is theirs; nothing may be added to it.
IMPORT_PEERS = """
import contextlib, io
with contextlib.redirect_stderr(io.StringIO()):
    import torch_geometric
"""


def probe(code: str, before: str = IMPORT_PEERS) -> dict[str, Any]:
    """Runs code in a fresh interpreter; what it leaves in ``out`` comes back."""
    done = run_python("-c", f"import json, sys\n{before}out = {{}}\n{code}\nprint(json.dumps(out))")
    assert done.stderr == "" and done.stdout.count("\n") == 1, done
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_import_is_lean_and_leaves_the_process_as_it_was() -> None:
    found = probe(
        f"""
import logging, warnings, torch, torch_geometric
names = {NOT_ON_IMPORT!r}

def state():
    # What a dependency says of warnings of its own class is its own affair.
    filters = [f for f in warnings.filters if f[2].__module__ == "builtins"]
    return [
        repr(filters), torch.get_num_threads(), str(torch.get_default_dtype()),
        torch.get_rng_state().sum().item(), torch.is_grad_enabled(),
        len(logging.getLogger().handlers), logging.getLogger().level,
    ]

before, loaded = state(), set(sys.modules)
import torch_geometric_qlr
out["before"], out["after"] = before, state()
out["new"] = [name for name in names if name in sys.modules and name not in loaded]
"""
    )
    assert found["after"] == found["before"]
    assert found["new"] == []


def test_import_is_quiet_and_keeps_the_filters_of_dependencies() -> None:
    # Nothing is imported before, and `probe` lets nothing be said but its own answer.
    code = "import warnings, brevitas\nout['filters'] = sorted(map(repr, warnings.filters))"
    theirs = probe(code.replace("brevitas", "torch_geometric_qlr"), before="")
    assert theirs == probe(code, before=f"{IMPORT_PEERS}    import brevitas\n")


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", qlr.__version__)
    assert f"[{qlr.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_installed_metadata() -> None:
    try:
        metadata = importlib.metadata.metadata("torch_geometric_qlr")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is on the path, but not installed")
    assert metadata["Version"] == qlr.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    requires = importlib.metadata.requires("torch_geometric_qlr") or []
    core = {re.split(r"[^\w.-]", line)[0] for line in requires if "extra ==" not in line}
    assert core == {"torch", "torch_geometric", "brevitas", "numpy", "tqdm"}
    extras = set(metadata.get_all("Provides-Extra") or [])
    of_use, of_work = (
        {"sparse", "triton", "examples", "hub", "onnx"},
        {"docs", "style", "test", "wheel", "dev"},
    )
    assert extras == of_use | of_work


def test_is_typed() -> None:
    assert (importlib.resources.files(qlr) / "py.typed").is_file()


def test_public_names_exist_and_are_documented() -> None:
    page = (ROOT / "docs" / "api.rst").read_text()
    listed = set(re.findall(r"^   (?:~)?([\w.]+)$", page, flags=re.MULTILINE))
    for name in qlr.__all__:
        public = getattr(qlr, name)
        is_module = type(public).__name__ == "module"
        if not is_module and not name.startswith("__"):
            assert name in listed, f"qlr.{name} is missing from docs/api.rst"
            assert public.__doc__, f"qlr.{name} has no docstring"


def in_the_reference() -> dict[str, Any]:
    """What docs/api.rst lists, by its name there."""
    found: dict[str, Any] = {}
    module: Any = qlr
    for line in (ROOT / "docs" / "api.rst").read_text().splitlines():
        if current := re.fullmatch(r"\.\. currentmodule:: ([\w.]+)", line):
            module = importlib.import_module(current[1])
        elif name := re.fullmatch(r"   ([\w.]+)", line):
            found[f"{module.__name__}.{name[1]}"] = operator.attrgetter(name[1])(module)
    return found


def is_written_here(value: Any) -> bool:
    """Whether it is a method of the package, and none that PyG has generated for a class."""
    function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    if not isinstance(function, types.FunctionType):
        return False
    return Path(function.__code__.co_filename).is_relative_to(Path(qlr.__file__).parent)


def test_all_in_the_reference_is_documented_with_its_methods() -> None:
    public = in_the_reference()
    assert len(public) > 80
    for name, thing in list(public.items()):
        own = dict(vars(thing)) if isinstance(thing, type) else {}
        for field in getattr(thing, "__dataclass_fields__", ()):
            own.pop(field, None)  # a default that is a function is no method
        methods = [key for key, value in own.items() if is_written_here(value)]
        public |= {f"{name}.{key}": getattr(thing, key) for key in methods if key[0] != "_"}
    # A method that replaces a documented one may do without, as in inspect.getdoc.
    assert [name for name, thing in public.items() if not inspect.getdoc(thing)] == []


def test_main_says_what_computes_on_gpus(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["torch_geometric_qlr"])

    def lines() -> dict[str, str]:
        runpy.run_module("torch_geometric_qlr", run_name="__main__")
        pairs = (
            re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines()
        )
        return dict(pairs)

    gpu = SimpleNamespace(name="Fast", total_memory=80 << 30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("torch_geometric_qlr.self_check.self_check", list)  # no GPU answers
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    for found, words in (
        ((["pack", "unpack"], ""), f"for 2 of {len(NAMES)} operations: pack, unpack"),
        (([], "triton: it is missing."), "none: triton: it is missing."),
    ):
        monkeypatch.setattr("torch_geometric_qlr.ops.kernels_on", lambda device, f=found: f)
        said = lines()
        assert said["GPU 0"] == "Fast, sm_90, 80 GiB" and said["GPU kernels"] == words
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert lines()["GPU"].startswith("none: torch ")


def test_main_prints_versions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["torch_geometric_qlr"])
    runpy.run_module("torch_geometric_qlr", run_name="__main__")
    printed = capsys.readouterr().out
    for package in ("torch", "torch_geometric", "brevitas"):
        assert f"{importlib.import_module(package).__version__}\n" in printed
    assert qlr.__version__ in printed


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def internal_imports(path: Path) -> list[tuple[str, str]]:
    """The (module, name) pairs a file imports from the package, modules relative to its top."""
    here = path.relative_to(PACKAGE).parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = here[: len(here) - (node.level - 1)]
        elif (node.module or "").split(".")[0] == PACKAGE.name:
            base = ()
        else:
            continue
        module = (node.module or "").removeprefix(PACKAGE.name).strip(".")
        dotted = ".".join((*base, *filter(None, [module])))
        found += [(dotted, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own not in RANK:  # the public face and the diagnostics see everything
        assert own in ("__init__", "__main__"), f"give {own!r} a place in LAYERS"
        return
    for module, name in internal_imports(path):
        other = module.split(".")[0] or name
        if other == own:
            continue
        assert RANK.get(other, len(LAYERS)) < RANK[own], f"{own} imports {module or name}"
        private = any(part.startswith("_") for part in (*module.split("."), name))
        assert not private or other == "_version", f"{own} reaches into {module}.{name}"
