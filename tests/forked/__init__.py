"""Commands that a test starts are forked from a server that has torch already: there in 0.1 s instead of 5 s.

`popen.py` is in the caller: every `subprocess.Popen` that would start a Python module or script of ours asks the
server instead. `server.py` forks, `become.py` makes of the fork what a fresh interpreter would be. The fork is the
caller's own child, with the caller's own group, signals, files and environment, and /proc shows its own command line
and variables; so nobody who watches, kills or waits for it can tell. What differs: modules are imported before it
begins. Tests marked `fresh` start true processes.
"""
