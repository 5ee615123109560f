"""What-ifs on a finished run: `router-lab probe RUN`.

- `regret`: the loss under other choices of experts, one token and one layer at a time: how often
  the router's choice was the best, and how much the best would have saved.
- `knockout`: the loss with one expert removed.

Both recompute the model from the changed layer up, thousands of times. That takes seconds to
minutes; the command prints an estimate first.
"""
