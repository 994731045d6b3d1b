"""Data modules: what is trained on."""

from lightning_opd.data.evaluation import Evaluation
from lightning_opd.data.off_policy import DatasetResponses, OffPolicyResponses, ResponseSource, TeacherResponses
from lightning_opd.data.on_policy import OPDDataModule
from lightning_opd.data.supervised import SFTDataModule

__all__ = [
    "DatasetResponses",
    "Evaluation",
    "OPDDataModule",
    "OffPolicyResponses",
    "ResponseSource",
    "SFTDataModule",
    "TeacherResponses",
]
