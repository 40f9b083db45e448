"""Named losses, composed of the public terms.

Two kinds. *Methods*, under their papers' names, in this module:
`jaxppo.recipes.dapo(log_probs, old_log_probs, advantages, mask)`; a docstring says
where a default is not the paper's, and whose it is. And *systems*, a module each, which
compute what a named version of a framework computes, with its guards, denominators and
defaults, faults included: `jaxppo.recipes.verl.vanilla(...)`. Where a system has a
fault, its recipe says "Fault:" and names what is sound.

A recipe reads as if it stood in your own file, and may be copied there: it uses nothing
but `jax` and public names of `jaxppo`. Arrays are `(batch, time)`, advantages that or
`(batch, 1)`; a mask is bool or integer. What is under it has no influence, unless that
is the fault. A loss returns `(Mean, metrics)`, as `jaxppo.learner` takes it, the
metrics under the system's own names. `weights` are data, as in the systems: make them
by the correction functions, which stop their gradient; losses do not stop it again (but
those of `areal`, `open_instruct`, `openrlhf` and `roll` do).
"""

from . import areal as areal
from . import cleanrl as cleanrl
from . import liger as liger
from . import nemo as nemo
from . import open_instruct as open_instruct
from . import openrlhf as openrlhf
from . import prime_rl as prime_rl
from . import purejaxrl as purejaxrl
from . import rlax as rlax
from . import rllib as rllib
from . import roll as roll
from . import sb3 as sb3
from . import sbx as sbx
from . import skyrl as skyrl
from . import slime as slime
from . import stoix as stoix
from . import torchrl as torchrl
from . import trl as trl
from . import tunix as tunix
from . import verl as verl
from ._methods import cispo as cispo
from ._methods import clip_cov as clip_cov
from ._methods import dapo as dapo
from ._methods import decoupled_ppo as decoupled_ppo
from ._methods import discovered_po as discovered_po
from ._methods import dppo_kl as dppo_kl
from ._methods import dppo_tv as dppo_tv
from ._methods import dr_grpo as dr_grpo
from ._methods import dr_grpo_advantages as dr_grpo_advantages
from ._methods import dro as dro
from ._methods import ema_baseline as ema_baseline
from ._methods import gdpo_advantages as gdpo_advantages
from ._methods import gmpo as gmpo
from ._methods import gpg as gpg
from ._methods import gpg_advantages as gpg_advantages
from ._methods import grpo as grpo
from ._methods import grpo_advantages as grpo_advantages
from ._methods import gspo as gspo
from ._methods import gspo_token as gspo_token
from ._methods import icepop as icepop
from ._methods import ipo as ipo
from ._methods import kimi as kimi
from ._methods import kl_cov as kl_cov
from ._methods import luffy as luffy
from ._methods import luspo as luspo
from ._methods import m2po as m2po
from ._methods import maxrl_advantages as maxrl_advantages
from ._methods import on_policy_distillation as on_policy_distillation
from ._methods import opo_advantages as opo_advantages
from ._methods import opsm as opsm
from ._methods import ppo as ppo
from ._methods import ppo_penalty as ppo_penalty
from ._methods import ppo_penalty_coef as ppo_penalty_coef
from ._methods import reinforce as reinforce
from ._methods import reinforce_pp as reinforce_pp
from ._methods import reinforce_pp_advantages as reinforce_pp_advantages
from ._methods import reinforce_pp_baseline as reinforce_pp_baseline
from ._methods import (
    reinforce_pp_baseline_advantages as reinforce_pp_baseline_advantages,
)
from ._methods import remax_advantages as remax_advantages
from ._methods import rloo as rloo
from ._methods import rloo_advantages as rloo_advantages
from ._methods import sapo as sapo
from ._methods import sequence_masked_tis as sequence_masked_tis
from ._methods import sft as sft
from ._methods import spo as spo
from ._methods import tis as tis
from ._methods import topr as topr
from ._methods import vapo as vapo
from ._methods import vapo_advantages as vapo_advantages
from ._methods import vespo as vespo
