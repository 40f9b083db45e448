"""Control by PPO: environments, policies, the training loop, and runs of it.

Import this before anything runs on JAX: it sets a flag that XLA reads once.
"""

import os

# XLA's pool of threads on the CPU deadlocks now and then on vmapped graphs: seen on
# 2 cores, jaxlib 0.10.2; PyAutoLabs/PyAutoFit#1528 found the same, and this flag.
# Networks this small run no faster on several threads.
if "xla_cpu_multi_thread_eigen" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    )
