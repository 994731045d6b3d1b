"""Lightning modules: what is trained."""

from lightning_opd.modules.critic import Critic
from lightning_opd.modules.opd import OPDModule
from lightning_opd.modules.schedules import WarmupCosine
from lightning_opd.modules.supervised import SFTModule

__all__ = ["Critic", "OPDModule", "SFTModule", "WarmupCosine"]
