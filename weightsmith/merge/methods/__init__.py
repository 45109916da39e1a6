"""The ways to merge, each a frozen dataclass whose fields are its hyper-parameters, registered by name."""

from weightsmith.merge.methods import arithmetic, breadcrumbs, dare, model_stock, slerp, spectral, ties
from weightsmith.merge.methods.registry import METHODS, Method, create

__all__ = [
    "METHODS",
    "Method",
    "arithmetic",
    "breadcrumbs",
    "create",
    "dare",
    "model_stock",
    "slerp",
    "spectral",
    "ties",
]
