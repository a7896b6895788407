"""CvT, convolutions in vision transformers: exact models, published weights, and the whole way.

Nothing heavy is imported here: names are resolved when they are first used, so that `cvt --help`
is instant. The models appear in timm's registry as soon as timm has been imported, before or
after this package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cvt.after_import import after_import

if TYPE_CHECKING:
    from cvt.errors import UserError
    from cvt.evaluation import Evaluation, evaluate, probe
    from cvt.explanation import AttentionMap, attention_maps
    from cvt.inference import deploy
    from cvt.inference.export import export
    from cvt.parts.backbone import Backbone
    from cvt.parts.spec import BackboneSpec, StageSpec
    from cvt.prediction import Prediction, Predictor, predict
    from cvt.training.config import TrainConfig
    from cvt.weights.convert import convert
    from cvt.weights.timm_folder import save_pretrained
    from cvt.zoo.create import create_model, list_models, load
    from cvt.zoo.describe import describe

__version__ = "0.1.0"

_HOMES = {
    "AttentionMap": "cvt.explanation",
    "Backbone": "cvt.parts.backbone",
    "BackboneSpec": "cvt.parts.spec",
    "Evaluation": "cvt.evaluation",
    "Prediction": "cvt.prediction",
    "Predictor": "cvt.prediction",
    "StageSpec": "cvt.parts.spec",
    "TrainConfig": "cvt.training.config",
    "UserError": "cvt.errors",
    "attention_maps": "cvt.explanation",
    "convert": "cvt.weights.convert",
    "create_model": "cvt.zoo.create",
    "deploy": "cvt.inference",
    "describe": "cvt.zoo.describe",
    "evaluate": "cvt.evaluation",
    "export": "cvt.inference.export",
    "list_models": "cvt.zoo.create",
    "load": "cvt.zoo.create",
    "predict": "cvt.prediction",
    "probe": "cvt.evaluation",
    "save_pretrained": "cvt.weights.timm_folder",
}

__all__ = [
    "AttentionMap",
    "Backbone",
    "BackboneSpec",
    "Evaluation",
    "Prediction",
    "Predictor",
    "StageSpec",
    "TrainConfig",
    "UserError",
    "attention_maps",
    "convert",
    "create_model",
    "deploy",
    "describe",
    "evaluate",
    "export",
    "list_models",
    "load",
    "predict",
    "probe",
    "save_pretrained",
]


_ROOMS = (
    "bench",
    "data",
    "evaluation",
    "explanation",
    "inference",
    "parts",
    "prediction",
    "systems",
    "training",
    "weights",
    "zoo",
)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"cvt.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


after_import("timm", lambda: import_module("cvt.zoo.timm_models"))
