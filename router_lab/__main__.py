"""`python -m router_lab`: the command `router-lab`."""

from router_lab.commands.main import main

if __name__ == "__main__":
    main()
