"""Runs from Python: `import router_lab as rl`.

runs = rl.load("runs/first_look")
runs.frame                                 # a pandas frame with a row per run
runs.compare(baseline="mlp").frame         # the numbers of `router-lab compare`
run = runs.run("softmax_topk", seed=0)
run.routings("def f(x):")["layer0"]        # the experts of each token
rl.train("router=switch", "model=nano", "budget=tokens:200k")
"""

from router_lab.api.run import Run as Run, build as build, train as train
from router_lab.api.runs import Compared as Compared, Runs as Runs, load as load
