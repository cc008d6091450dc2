"""Ranges without training: from batches that the model runs on."""

from torch_geometric_qlr.calibration.batches import Forward, Run, runs_of
from torch_geometric_qlr.calibration.calibrate import Calibration, calibrate, calibrating
from torch_geometric_qlr.calibration.histogram import Histogram

__all__ = ["Calibration", "Forward", "Histogram", "Run", "calibrate", "calibrating", "runs_of"]
