"""`router-lab bench`: what layers, training steps, routers, the harness and a grid cost.

Contestants take turns in one process and one thread, and their own CPU time counts. So whatever
else the machine does meets all of them alike, and a ratio means the same on a busy machine.
"""
