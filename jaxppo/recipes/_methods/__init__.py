"""The methods under the names and with the defaults of their papers.

What they have in common: log-ratios are bounded at 20 nats, sequences without a token
do not count, and the metrics are jaxppo's own (`approx_kl`, `ratio_max`, ...).
"""

from ._clipped import dapo as dapo
from ._clipped import dr_grpo as dr_grpo
from ._clipped import gmpo as gmpo
from ._clipped import grpo as grpo
from ._clipped import gspo as gspo
from ._clipped import gspo_token as gspo_token
from ._clipped import luspo as luspo
from ._clipped import ppo as ppo
from ._clipped import reinforce_pp as reinforce_pp
from ._clipped import reinforce_pp_baseline as reinforce_pp_baseline
from ._clipped import sapo as sapo
from ._clipped import vapo as vapo
from ._corrected import decoupled_ppo as decoupled_ppo
from ._corrected import icepop as icepop
from ._corrected import m2po as m2po
from ._corrected import opsm as opsm
from ._corrected import sequence_masked_tis as sequence_masked_tis
from ._corrected import tis as tis
from ._estimators import dr_grpo_advantages as dr_grpo_advantages
from ._estimators import ema_baseline as ema_baseline
from ._estimators import gdpo_advantages as gdpo_advantages
from ._estimators import gpg_advantages as gpg_advantages
from ._estimators import grpo_advantages as grpo_advantages
from ._estimators import maxrl_advantages as maxrl_advantages
from ._estimators import opo_advantages as opo_advantages
from ._estimators import reinforce_pp_advantages as reinforce_pp_advantages
from ._estimators import (
    reinforce_pp_baseline_advantages as reinforce_pp_baseline_advantages,
)
from ._estimators import remax_advantages as remax_advantages
from ._estimators import rloo_advantages as rloo_advantages
from ._estimators import vapo_advantages as vapo_advantages
from ._trust_region import clip_cov as clip_cov
from ._trust_region import discovered_po as discovered_po
from ._trust_region import dppo_kl as dppo_kl
from ._trust_region import dppo_tv as dppo_tv
from ._trust_region import ipo as ipo
from ._trust_region import kl_cov as kl_cov
from ._trust_region import ppo_penalty as ppo_penalty
from ._trust_region import ppo_penalty_coef as ppo_penalty_coef
from ._trust_region import spo as spo
from ._weighted import cispo as cispo
from ._weighted import dro as dro
from ._weighted import gpg as gpg
from ._weighted import kimi as kimi
from ._weighted import luffy as luffy
from ._weighted import on_policy_distillation as on_policy_distillation
from ._weighted import reinforce as reinforce
from ._weighted import rloo as rloo
from ._weighted import sft as sft
from ._weighted import topr as topr
from ._weighted import vespo as vespo
