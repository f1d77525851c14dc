"""What a run is asked to do: YAML in, one checked and frozen object out. Imports no torch.

Read `schema` first (every key there is), then `yaml_file` (strict reading), `load` (a preset or a
file, with KEY=VALUE overrides) and `size` (what a configuration costs, as arithmetic).
"""

from charlm.config.load import load_config, preset_names, preset_text, read_config
from charlm.config.schema import (
    AttentionConfig,
    AveragingConfig,
    BigramConfig,
    Config,
    DataConfig,
    EvalConfig,
    ExpertConfig,
    GPTConfig,
    MixtureConfig,
    ModelConfig,
    MultiHeadConfig,
    NGramConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
)
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
    "RunConfig",
    "SampleConfig",
    "TrainConfig",
    "dump_yaml",
    "load_config",
    "preset_names",
    "preset_text",
    "read_config",
]
