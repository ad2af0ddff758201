"""A pytest plugin that takes the compiled extension from another folder, `QUIRE_TEST_EXTENSION`.

For the build with AddressSanitizer, whose library must be loaded first (LD_PRELOAD); `make check-native` does it all.
"""

import importlib.util
import os
import sys
from pathlib import Path

NAME = "quire.kernels.native._extension"


def _load(folder: Path) -> None:
    (path,) = folder.glob("_extension*.so")
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module


_load(Path(os.environ["QUIRE_TEST_EXTENSION"]))
