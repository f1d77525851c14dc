"""What a run is asked to do: YAML in, one checked and frozen object out. Imports no torch.

Read in this order: `values` (how a value is read), `sections` (the keys outside the model), `base`
(what every kind of model says about itself), `models`, `mixture` (the kinds), `schema`, `yaml_file`
(strict reading), `problems` (mistakes in words), `load`, `memory`, `size` (what a run costs).
"""

from charlm.config.base import ModelConfig, Part
from charlm.config.load import (
    NotAConfiguration,
    changed,
    load_config,
    preset_names,
    preset_text,
    read_config,
)
from charlm.config.mixture import ExpertConfig, MixtureConfig
from charlm.config.models import (
    AttentionConfig,
    AveragingConfig,
    BigramConfig,
    GPTConfig,
    MultiHeadConfig,
    NGramConfig,
)
from charlm.config.schema import Config
from charlm.config.sections import DataConfig, EvalConfig, RunConfig, SampleConfig, TrainConfig
from charlm.config.yaml_file import dump_yaml

__all__ = [
    "AttentionConfig",
    "AveragingConfig",
    "BigramConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "ExpertConfig",
    "GPTConfig",
    "MixtureConfig",
    "ModelConfig",
    "MultiHeadConfig",
    "NGramConfig",
    "NotAConfiguration",
    "Part",
    "RunConfig",
    "SampleConfig",
    "TrainConfig",
    "changed",
    "dump_yaml",
    "load_config",
    "preset_names",
    "preset_text",
    "read_config",
]
