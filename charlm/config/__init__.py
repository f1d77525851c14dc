"""A run's configuration: from YAML to one checked, frozen object. Imports no torch.

Read in this order: `values` (types of values), `sections` (the keys outside the model), `base`
(what each kind of model states about itself), `models`, `recurrent`, `context_mixing`, `mixture` (the kinds), `schema`,
`yaml_file` (strict reading), `problems` (error messages), `settle` (keys that give way), `load`,
`memory`, `cores` (what the machine has to offer), `size` (the cost of a run), `shares` (which process
computes what).
"""

from charlm.config.base import ModelConfig, Part
from charlm.config.context_mixing import ContextMixingConfig
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
from charlm.config.recurrent import (
    BowConfig,
    GRUConfig,
    LSTMConfig,
    MinGRUConfig,
    MLPConfig,
    RNNConfig,
)
from charlm.config.schema import Config
from charlm.config.sections import (
    AdaptConfig,
    DataConfig,
    EvalConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
)
from charlm.config.yaml_file import dump_yaml

__all__ = [
    "AdaptConfig",
    "AttentionConfig",
    "AveragingConfig",
    "BigramConfig",
    "BowConfig",
    "Config",
    "ContextMixingConfig",
    "DataConfig",
    "EvalConfig",
    "ExpertConfig",
    "GPTConfig",
    "GRUConfig",
    "LSTMConfig",
    "MLPConfig",
    "MinGRUConfig",
    "MixtureConfig",
    "ModelConfig",
    "MultiHeadConfig",
    "NGramConfig",
    "NotAConfiguration",
    "Part",
    "RNNConfig",
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
