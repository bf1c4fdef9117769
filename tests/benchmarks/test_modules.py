import importlib
import pkgutil

import pytest

import benchmarks

MODULES = [module.name for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_every_benchmark_imports(name):
    """Benchmarks run only by hand, so that a rename in the packages would break them unnoticed."""
    importlib.import_module(name)
