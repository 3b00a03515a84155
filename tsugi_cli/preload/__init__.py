"""One process of a machine imports torch, transformers and PEFT; agents and their workers are forked from it.

`client.py` is the launcher's side, `server.py` the process. `become.py` makes of a fork what a fresh interpreter
would be, `spares.py` has the workers of an agent ready. Without the server all is started anew (decision 0053).
"""
