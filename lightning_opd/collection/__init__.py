"""One rollout batch from prompts to micro-batches, without Lightning; begin to read in `collect.py`."""

from lightning_opd.collection.collect import Collector
from lightning_opd.collection.learner import Learner, RolloutPlan, RolloutProducer
from lightning_opd.collection.off_policy import DatasetResponses, OffPolicyResponses, ResponseSource, TeacherResponses

__all__ = [
    "Collector",
    "DatasetResponses",
    "Learner",
    "OffPolicyResponses",
    "ResponseSource",
    "RolloutPlan",
    "RolloutProducer",
    "TeacherResponses",
]
