"""What a user can set: one field each, which is a flag, a key of `--config` and an argument.

The fields' help texts are the documentation of all three. No torch here: `--help` must be quick.
"""

from eaft_probe.settings.common import DataSettings, ModelSettings, TrainedSettings
from eaft_probe.settings.finished import (
    CompareSettings,
    ExportSettings,
    GradientSettings,
    MergeSettings,
    PlotSettings,
    ReportSettings,
    ShowSettings,
    require_delta,
)
from eaft_probe.settings.forecast import ForecastSettings
from eaft_probe.settings.option import Settings
from eaft_probe.settings.reading import make_settings, read_config, typed
from eaft_probe.settings.rollout import RolloutSettings
from eaft_probe.settings.scan import (
    QUANTIZED,
    EstimateSettings,
    RenderSettings,
    RuleSettings,
    ScanSettings,
    as_scan,
    kept_share,
)
from eaft_probe.settings.train import TrainSettings

__all__ = [
    "QUANTIZED",
    "CompareSettings",
    "DataSettings",
    "EstimateSettings",
    "ExportSettings",
    "ForecastSettings",
    "GradientSettings",
    "MergeSettings",
    "ModelSettings",
    "PlotSettings",
    "RenderSettings",
    "ReportSettings",
    "RolloutSettings",
    "RuleSettings",
    "ScanSettings",
    "Settings",
    "ShowSettings",
    "TrainSettings",
    "TrainedSettings",
    "as_scan",
    "kept_share",
    "make_settings",
    "read_config",
    "require_delta",
    "typed",
]
