"""What-ifs on a finished run: `router-lab probe RUN`.

- `regret`: what the loss would have been under other choices of experts, one token and one layer at
  a time; so how often the router's choice was the best, and what the best would have saved.
- `knockout`: the loss with one expert taken away.

Both recompute the model from the changed layer up, thousands of times: seconds to minutes, said
before they begin.
"""
