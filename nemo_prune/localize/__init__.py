"""The job: gate, search, repair, confirm, and what of it is written.

The package is also the function `nemo_prune.localize`, which would otherwise be hidden by the package
as soon as a module of it is imported.
"""

import sys
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A package that can be called; by name, so that this room imports nothing above it."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return import_module("nemo_prune.api").localize(*arguments, **options)

    @property
    def __signature__(self) -> Signature:
        return signature(import_module("nemo_prune.api").localize)


sys.modules[__name__].__class__ = _Room
