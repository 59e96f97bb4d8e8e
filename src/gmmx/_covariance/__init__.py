import importlib
import pkgutil

from .base import AbstractCovariance as AbstractCovariance
from .base import structure_named as structure_named

# Every module of this folder is a structure or serves one: a new file is found by being here.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
