"""Data modules: what is trained on."""

from lightning_opd.data.evaluation import Evaluation
from lightning_opd.data.given_responses import DatasetResponses, GivenResponses, ResponseSource, TeacherResponses
from lightning_opd.data.on_policy import OPDDataModule
from lightning_opd.data.supervised import SFTDataModule

__all__ = [
    "DatasetResponses",
    "Evaluation",
    "GivenResponses",
    "OPDDataModule",
    "ResponseSource",
    "SFTDataModule",
    "TeacherResponses",
]
