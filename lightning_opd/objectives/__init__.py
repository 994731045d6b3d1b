"""Objectives: from a scored micro-batch to a loss."""

from lightning_opd.objectives.distribution_matching import DistributionMatching
from lightning_opd.objectives.likelihood import Likelihood
from lightning_opd.objectives.outcome_gradient import OutcomeGradient
from lightning_opd.objectives.policy_gradient import PolicyGradient

__all__ = ["DistributionMatching", "Likelihood", "OutcomeGradient", "PolicyGradient"]
