"""verl 0.9.1, from `verl/trainer/ppo/core_algos.py` and `rollout_corr_helper.py`.

Most losses bound the log-ratio at 20, and all divide by rows that have a token. Its
`weights` are those of the rollout correction. A response mask that rejection has made
smaller is the `mask` here, so that rejected tokens leave the denominator.
"""

from .advantages import gae as gae
from .advantages import gdpo as gdpo
from .advantages import gpg_advantages as gpg_advantages
from .advantages import grpo as grpo
from .advantages import grpo_no_std as grpo_no_std
from .advantages import grpo_passk as grpo_passk
from .advantages import opo as opo
from .advantages import optimal_token_baseline as optimal_token_baseline
from .advantages import reinforce_plus_plus as reinforce_plus_plus
from .advantages import reinforce_plus_plus_baseline as reinforce_plus_plus_baseline
from .advantages import remax as remax
from .advantages import rloo as rloo
from .advantages import rloo_vectorized as rloo_vectorized
from .advantages import tir_optimal_token_baseline as tir_optimal_token_baseline
from .losses import cispo as cispo
from .losses import clip_cov as clip_cov
from .losses import dppo_kl as dppo_kl
from .losses import dppo_tv as dppo_tv
from .losses import dro as dro
from .losses import geo_mean as geo_mean
from .losses import gpg as gpg
from .losses import gspo as gspo
from .losses import kl_cov as kl_cov
from .losses import reinforce as reinforce
from .losses import sapo as sapo
from .losses import value_loss as value_loss
from .losses import vanilla as vanilla
from .penalties import abs_kl as abs_kl
from .penalties import k1 as k1
from .penalties import k1_plus as k1_plus
from .penalties import k2 as k2
from .penalties import k3_plus as k3_plus
from .penalties import kl_control as kl_control
from .penalties import kl_in_reward as kl_in_reward
from .penalties import low_var_kl as low_var_kl
from .rollout import combined as combined
from .rollout import off_policy_metrics as off_policy_metrics
from .rollout import rejection as rejection
from .rollout import sequence_band_weights as sequence_band_weights
from .rollout import sequence_weights as sequence_weights
from .rollout import token_band_weights as token_band_weights
from .rollout import token_weights as token_weights
