"""CvT, convolutions in vision transformers: exact models, published weights, and the whole way.

Nothing heavy is imported here: names are resolved when they are first used, so that `cvt --help`
is instant. The models appear in timm's registry as soon as timm has been imported, before or
after this package.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from cvt.imports import after_import, lazy_door

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
    from cvt.training.loop import train
    from cvt.weights.convert import convert
    from cvt.weights.timm_folder import save_pretrained
    from cvt.zoo.create import create_model, list_models, load
    from cvt.zoo.describe import describe

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_door(
    __name__,
    {
        "errors": "UserError",
        "evaluation": "Evaluation evaluate probe",
        "explanation": "AttentionMap attention_maps",
        "inference": "deploy",
        "inference.export": "export",
        "parts.backbone": "Backbone",
        "parts.spec": "BackboneSpec StageSpec",
        "prediction": "Prediction Predictor predict",
        "training.config": "TrainConfig",
        "training.loop": "train",
        "weights.convert": "convert",
        "weights.timm_folder": "save_pretrained",
        "zoo.create": "create_model list_models load",
        "zoo.describe": "describe",
    },
    chapters="bench data evaluation explanation inference parts prediction systems training "
    "weights zoo",
)

after_import("timm", lambda: import_module("cvt.zoo.timm_models"))
