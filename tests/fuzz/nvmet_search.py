"""Coverage-guided search for bad input: ``python tests/fuzz/nvmet_search.py tests/fuzz/nvmet_corpus -max_len=300``.

Needs atheris (``pip install atheris``), which no test does; the arguments are libFuzzer's.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

atheris: Any = import_module("atheris")

if __name__ == "__main__":
    with atheris.instrument_imports(include=["uxk_nvmet_tcp"]):
        stream = import_module("nvmet_stream")
    atheris.Setup(sys.argv, stream.play)
    atheris.Fuzz()
