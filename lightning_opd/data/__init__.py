"""Data modules: what is trained on."""

from lightning_opd.data.evaluation import Evaluation
from lightning_opd.data.on_policy import OPDDataModule
from lightning_opd.data.supervised import SFTDataModule

__all__ = ["Evaluation", "OPDDataModule", "SFTDataModule"]
