"""verl 0.9.1, from `verl/trainer/ppo/core_algos.py` and `rollout_corr_helper.py`.

Most losses bound the log-ratio at 20, and all divide by rows that have a token. Its
`weights` are those of the rollout correction. A response mask that rejection has made
smaller is the `mask` here, so that rejected tokens leave the denominator.
"""

from ._advantages import gae as gae
from ._advantages import gdpo as gdpo
from ._advantages import gpg_advantages as gpg_advantages
from ._advantages import grpo as grpo
from ._advantages import grpo_no_std as grpo_no_std
from ._advantages import grpo_passk as grpo_passk
from ._advantages import opo as opo
from ._advantages import optimal_token_baseline as optimal_token_baseline
from ._advantages import reinforce_plus_plus as reinforce_plus_plus
from ._advantages import reinforce_plus_plus_baseline as reinforce_plus_plus_baseline
from ._advantages import remax as remax
from ._advantages import rloo as rloo
from ._advantages import rloo_vectorized as rloo_vectorized
from ._advantages import tir_optimal_token_baseline as tir_optimal_token_baseline
from ._losses import cispo as cispo
from ._losses import clip_cov as clip_cov
from ._losses import dppo_kl as dppo_kl
from ._losses import dppo_tv as dppo_tv
from ._losses import dro as dro
from ._losses import geo_mean as geo_mean
from ._losses import gpg as gpg
from ._losses import gspo as gspo
from ._losses import kl_cov as kl_cov
from ._losses import reinforce as reinforce
from ._losses import sapo as sapo
from ._losses import vanilla as vanilla
from ._penalties import abs_kl as abs_kl
from ._penalties import k1 as k1
from ._penalties import k1_plus as k1_plus
from ._penalties import k2 as k2
from ._penalties import k3_plus as k3_plus
from ._penalties import kl_control as kl_control
from ._penalties import kl_in_reward as kl_in_reward
from ._penalties import low_var_kl as low_var_kl
from ._rollout import batch_normalised as batch_normalised
from ._rollout import batch_normalised_sequences as batch_normalised_sequences
from ._rollout import combined as combined
from ._rollout import off_policy_metrics as off_policy_metrics
from ._rollout import rejection as rejection
from ._rollout import sequence_band_weights as sequence_band_weights
from ._rollout import sequence_weights as sequence_weights
from ._rollout import token_band_weights as token_band_weights
from ._rollout import token_weights as token_weights
from ._value import value_loss as value_loss
