"""Runs pytest with a compiled extension from elsewhere: `python tests/run_sanitized.py FOLDER [words for pytest]`.

For the build with AddressSanitizer, whose library must be loaded first (LD_PRELOAD); `make check-native` does it all.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

NAME = "quire.kernels.native._extension"


def main() -> int:
    (path,) = Path(sys.argv[1]).glob("_extension*.so")
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module
    return pytest.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
