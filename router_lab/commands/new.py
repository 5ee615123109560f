"""`router-lab new NAME`: a file to start a new router from."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from router_lab.errors import UserError

TEMPLATE = '''"""{name}: softmax top-k with a temperature, to start from.

check     pytest --router {file}:{cls}
train     router-lab train plugins=[{file}] router={name}
compare   router-lab train -m plugins=[{file}] router=softmax_topk,{name} seed=0,1,2
          router-lab compare runs/single --baseline softmax_topk
"""

from torch import Tensor

from router_lab.registry import register
from router_lab.routing import Gate, Router, RouterContext, Routing


@register("{name}")
class {cls}(Router):
    """w = p on the k largest of p = softmax(x W / temperature).

    Args:
        k: experts per token.
        temperature: the larger, the more equal the weights.
    """

    default_losses = {{"load_balance": {{"coef": 0.01}}}}

    def __init__(self, d_model: int, n_experts: int, k: int = 2, temperature: float = 1.0) -> None:
        super().__init__(d_model, n_experts, k)
        self.k = k
        self.temperature = temperature
        self.gate = Gate(d_model, n_experts)  # a linear map in float32, whatever is around it

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD) / self.temperature  # T tokens, E experts
        probs_TE = logits_TE.softmax(dim=-1)
        weight_TK, index_TK = probs_TE.topk(self.k, dim=-1)  # K choices, the best first
        return Routing.from_topk(index_TK, weight_TK, logits_TE, probs_TE)
'''


def new_router(name: str, folder: str | Path = ".") -> Path:
    """Writes NAME.py, a router that passes the contract, and prints the next commands.

    Raises:
        UserError: the name is not a lower-case Python name, is taken, or the file exists.
    """
    from router_lab.routing import ROUTERS

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"{name} cannot name a router; use lower case like my_router.")
    if name in ROUTERS.names():
        raise UserError(f"There is a router named {name}; choose another name.")
    path = Path(folder).expanduser() / f"{name}.py"
    if path.exists():
        raise UserError(f"{path} exists; choose another name, or remove it.")
    if not path.parent.is_dir():
        raise UserError(f"The folder {path.parent} does not exist; make it first.")
    cls = "".join(part.capitalize() for part in name.split("_"))
    text = TEMPLATE.format(name=name, cls=cls, file=path)
    path.write_text(text, encoding="utf-8")
    print(f"Wrote {path}, a softmax top-k router to start from.\n")
    print(text.split('"""')[1].partition("\n\n")[2])
    print("The docstrings of router_lab/routing/ say what a router is given and returns.")
    return path
